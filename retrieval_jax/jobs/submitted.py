"""Sweeps as jobs of a cluster, by submitit: a SLURM array, or processes."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.util
import os
import signal
import time
from typing import Any

from retrieval_jax.jobs import sweep

_FOLDER = 'jobs'
_POLL = 2.0  # seconds between looks at the jobs
_MINUTES = 7 * 24 * 60  # where none are given: submitit's own are five


@dataclasses.dataclass
class Run:
  """What a job does: it trains a trial, and goes on when it is queued again.

  Attributes:
    trial: the run.
  """
  trial: sweep.Trial
  _process: Any = dataclasses.field(default=None, repr=False)

  def __call__(self) -> int:
    """Returns the exit status; output goes to log.txt in the run's folder."""
    self._process = sweep.start(self.trial, to_log=True)
    return self._process.wait()

  def checkpoint(self) -> Any:
    """Stops the run, which saves, and returns the job to be queued again.

    submitit calls it, by this name, when the job is preempted or near its time
    limit.
    """
    import submitit
    if self._process is not None and self._process.poll() is None:
      self._process.send_signal(signal.SIGTERM)
      self._process.wait()
    return submitit.helpers.DelayedSubmission(Run(self.trial))


def check_installed() -> None:
  """Raises a ModuleNotFoundError, with what to do, without submitit."""
  if importlib.util.find_spec('submitit') is None:
    raise ModuleNotFoundError(
        "--launcher=submitit needs pip install 'retrieval_jax[submitit]'.")


def parse_options(given: Sequence[str]) -> dict[str, Any]:
  """Returns name -> value of options such as 'gpus_per_node=1'.

  Raises:
    ValueError: naming one that has another form, or comes twice.
  """
  found: dict[str, Any] = {}
  for option in given:
    name, sign, value = option.partition('=')
    if not sign or not name or name in found:
      raise ValueError(
          f'--slurm: expected NAME=VALUE, each name once, got {option!r}; for '
          'instance --slurm=partition=gpu,gpus_per_node=1,timeout_min=600.')
    found[name] = int(value) if value.isdigit() else value
  return found


def run(planned: Sequence[sweep.Trial], workdir: str, *, at_a_time: int,
        options: Mapping[str, Any], say: Callable[[str], None] = print
        ) -> dict[str, str]:
  """Submits what is not finished, waits, and returns workdir -> outcome.

  As `sweep.run`, but an interrupt leaves the jobs as they are: those that wait
  or run are 'left to the cluster'.

  Args:
    planned: trials, submitted in this order.
    workdir: of the sweep; WORKDIR/jobs holds what submitit writes.
    at_a_time: how many may run at a time.
    options: of the jobs: those of submitit (timeout_min, mem_gb, gpus_per_node,
      cpus_per_task, nodes, tasks_per_node), any other is one of sbatch.
    say: takes a line of progress.

  Raises:
    ModuleNotFoundError: if submitit is not installed.
    ValueError: for options that it does not take.
  """
  check_installed()
  import submitit
  outcomes = {
      trial.workdir:
          'skipped (finished before)' if trial.finished() else 'not started'
      for trial in planned}
  waiting = [trial for trial in planned
             if outcomes[trial.workdir] == 'not started']
  if not waiting:
    return outcomes
  executor = submitit.AutoExecutor(os.path.join(workdir, _FOLDER, '%j'))
  by_slurm = executor.cluster == 'slurm'
  _set_options(executor, options, at_a_time)
  jobs: list[tuple[sweep.Trial, Any]] = []

  def submit(trials):
    found = (executor.submit_array([Run(trial) for trial in trials])
             if by_slurm else [executor.submit(Run(trials[0]))])
    for trial, job in zip(trials, found):
      outcomes[trial.workdir] = 'left to the cluster'  # until it has ended
      say(f'{trial.name}: job {job.job_id}, {trial.workdir}/log.txt')
      jobs.append((trial, job))

  try:
    if by_slurm:  # which keeps to at_a_time itself
      submit(waiting)
      waiting = []
    while waiting or jobs:
      while waiting and len(jobs) < at_a_time:
        submit([waiting.pop(0)])
      for trial, job in list(jobs):
        if job.done():
          jobs.remove((trial, job))
          outcomes[trial.workdir] = _outcome(trial, job, say)
          say(f'{trial.name} {outcomes[trial.workdir]}')
      if jobs:
        time.sleep(_POLL)
  except KeyboardInterrupt:
    say('the jobs go on; the same command waits for what is left of them.')
  return outcomes


def _set_options(executor, options, at_a_time):
  generic = executor._valid_parameters()
  named = {name if name in generic else f'slurm_{name}': value
           for name, value in options.items()}
  try:
    executor.update_parameters(
        **{'timeout_min': _MINUTES, 'name': 'sweep',
           'slurm_array_parallelism': at_a_time} | named)
  except (AssertionError, NameError, TypeError, ValueError) as error:
    raise ValueError(f'--slurm: {error}') from error


def _outcome(trial, job, say):
  error = job.exception()
  if error is not None:
    say(f'{trial.workdir}: {error}')
    return 'failed (the job)'
  return sweep.outcome_of(trial, max(job.results()), say)
