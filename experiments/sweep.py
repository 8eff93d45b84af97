r"""Trains one run for every setting that a config's sweep function yields.

  python -m experiments.sweep --config=configs/stale.py --sweep=sweep \
      --workdir=runs/sweep [--dry_run] [--only=regex] [--parallel=n] \
      [-- --config.seed=1 ...]

The function named by --sweep, in the config's file, takes nothing and yields
dicts of dotted overrides:

  def sweep():
    for k in (1, 4, 16):
      yield {'sampler.k': k, 'optimizer.learning_rate': 3e-5}

An entry 'name' is not an override but the name of the run; otherwise the
overrides name it. Runs stand in WORKDIR/NNN_name, one after the other, each a
process of its own. A finished run (it has results.json) is skipped, an
unfinished one resumes, a failed one does not stop the others. At the end the
finished runs are compared in WORKDIR/comparison. What stands behind `--` goes
to every run. The exit status is 1 if a run failed, 130 if it was interrupted.

--only runs the settings whose name matches. --parallel=n starts runs in the
same order but has n of them going, each with its share of the cores; what they
print goes to WORKDIR/NNN_name/log.txt.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import app
from absl import flags

from experiments import compare
from retrieval_jax.evaluation import report
from retrieval_jax.evaluation import trec

_OVERRIDES_FILE = 'sweep.json'
_LOG_FILE = 'log.txt'
_MAX_NAME = 120  # a folder name has at most 255 bytes
_POLL = 0.05  # seconds between looks at the running trials


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run of the sweep.

  Attributes:
    workdir: its folder.
    overrides: dotted config name -> value.
    command: what to execute.
  """
  workdir: str
  overrides: Mapping[str, Any]
  command: tuple[str, ...]

  @property
  def name(self) -> str:
    """The folder's name without its number."""
    return os.path.basename(self.workdir).partition('_')[2]

  def finished(self) -> bool:
    return report.is_finished(self.workdir)


def load_sweep(config: str, function: str) -> list[dict[str, Any]]:
  """Returns the overrides that FUNCTION in the config's file yields.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if there is no such function, or it yields something else than
      dicts with string keys, the same dict twice, or nothing.
  """
  path = config if os.path.exists(config) else config.split(':', 1)[0]
  if not os.path.isfile(path):
    raise FileNotFoundError(
        f'Expected --config to name a file, got {config!r}; run this from the '
        'folder that holds configs/.')
  spec = importlib.util.spec_from_file_location('swept_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not callable(getattr(module, function, None)):
    known = [name for name, value in vars(module).items()
             if callable(value) and name.startswith('sweep')]
    raise ValueError(
        f'Expected a function {function!r} in {path}, found '
        f'{", ".join(known) or "no sweep function"}; change --sweep or write '
        'one that yields dicts of dotted overrides.')
  settings = []
  for overrides in getattr(module, function)():
    if not isinstance(overrides, Mapping) or not all(
        isinstance(name, str) for name in overrides):
      raise ValueError(
          f'Expected {function} in {path} to yield dicts of dotted overrides '
          f"such as {{'sampler.k': 4}}, got {overrides!r}.")
    if dict(overrides) in settings:
      raise ValueError(
          f'{function} in {path} yields {dict(overrides)!r} twice; each run '
          'would do the same.')
    settings.append(dict(overrides))
  if not settings:
    raise ValueError(f'{function} in {path} yields nothing to run.')
  return settings


def name_of(overrides: Mapping[str, Any]) -> str:
  """Returns a folder name such as 'k=4,learning_rate=3e-05'.

  Only the last part of a dotted name is kept, unless two would look alike.
  """
  if 'name' in overrides:
    name = str(overrides['name'])
  else:
    last = [key.rsplit('.', 1)[-1] for key in overrides]
    name = ','.join(
        f'{short if last.count(short) == 1 else key}={_text(value)}'
        for (key, value), short in zip(overrides.items(), last)) or 'base'
  return re.sub(r'[^\w.,=+-]+', '_', name)[:_MAX_NAME]


def _text(value: Any) -> str:
  """Returns a value as the command line of a config flag takes it."""
  return str(value).lower() if isinstance(value, bool) else str(value)


def trials(config: str, settings: Sequence[Mapping[str, Any]], workdir: str,
           extra: Sequence[str] = ()) -> Iterator[Trial]:
  """Yields the runs of a sweep in order."""
  digits = max(3, len(str(len(settings) - 1)))
  for number, setting in enumerate(settings):
    folder = os.path.join(
        workdir, f'{number:0{digits}d}_{name_of(setting)}')
    overrides = {k: v for k, v in setting.items() if k != 'name'}
    yield Trial(folder, overrides, (
        sys.executable, '-m', 'experiments.train', f'--config={config}',
        f'--workdir={folder}', *extra,
        *(f'--config.{name}={_text(value)}'
          for name, value in overrides.items())))


def check_same_command(trial: Trial) -> None:
  """Refuses to take a folder for a run of other settings.

  Raises:
    ValueError: naming the folder and both commands.
  """
  path = os.path.join(trial.workdir, _OVERRIDES_FILE)
  if not os.path.exists(path):
    return
  with open(path, encoding='utf-8') as f:
    before = json.load(f)['arguments']
  now = _settings(trial)
  if before != now:
    raise ValueError(
        f'{trial.workdir} holds a run of other settings:\n'
        f'  there: {shlex.join(before)}\n  now:   {shlex.join(now)}\n'
        'Choose another --workdir, or delete that folder.')


def _settings(trial: Trial) -> list[str]:
  """Returns what decides a run: its arguments, wherever it stands."""
  return [argument for argument in trial.command[1:]
          if not argument.startswith('--workdir=')]


def matching(planned: Sequence[Trial], only: str) -> list[Trial]:
  """Returns the trials in whose names the regular expression is found.

  Raises:
    ValueError: if it is none, or matches no name; the names are listed.
  """
  try:
    found = [trial for trial in planned if re.search(only, trial.name)]
  except re.error as error:
    raise ValueError(
        f'Expected --only to be a regular expression, got {only!r} ({error}).'
    ) from error
  if not found:
    raise ValueError(
        f'Expected --only to match the name of a run, got {only!r}; there is '
        f'{", ".join(trial.name for trial in planned)}.')
  return found


def shares(parallel: int) -> list[frozenset[int] | None]:
  """Returns the cores of each of `parallel` trials, as equal as can be.

  One trial has all cores, and so has each where the platform cannot pin
  processes (None).

  Raises:
    ValueError: if there are more trials than cores.
  """
  if parallel == 1 or not hasattr(os, 'sched_setaffinity'):
    return [None] * parallel
  cores = sorted(os.sched_getaffinity(0))
  if parallel > len(cores):
    raise ValueError(
        f'Expected --parallel to be at most the {len(cores)} cores that are '
        f'free to use, got {parallel}.')
  return [frozenset(cores[i * len(cores) // parallel:
                          (i + 1) * len(cores) // parallel])
          for i in range(parallel)]


def start_trial(trial: Trial, cores: frozenset[int] | None = None, *,
                to_log: bool = False) -> subprocess.Popen:
  """Starts a trial, on the given cores; None for all of them.

  Args:
    trial: what to run.
    cores: where it runs, set before it executes the command, because libraries
      size their thread pools by it.
    to_log: whether its output goes to the end of log.txt in its folder.
  """
  os.makedirs(trial.workdir, exist_ok=True)
  trec.write_text(
      os.path.join(trial.workdir, _OVERRIDES_FILE),
      json.dumps({'arguments': _settings(trial),
                  'overrides': trial.overrides}, indent=2, default=str) + '\n')
  with contextlib.ExitStack() as closing:
    log = to_log and closing.enter_context(
        open(os.path.join(trial.workdir, _LOG_FILE), 'ab'))
    if cores is not None:
      closing.enter_context(_on(cores))
    return subprocess.Popen(trial.command, stdout=log or None,
                            stderr=subprocess.STDOUT if log else None)


@contextlib.contextmanager
def _on(cores: frozenset[int]) -> Iterator[None]:
  """Pins this thread, and what it starts meanwhile, to the cores.

  A child inherits this; to pin itself before it executes its command it would
  need Python code after a fork, which JAX warns of.
  """
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def outcome_of(trial: Trial, status: int) -> str:
  """Returns the outcome of a trial that ended with an exit status."""
  if status in (-2, -15, 130, 143):
    return 'interrupted'
  if status == 0 and not trial.finished():
    print(f'sweep: {trial.workdir} ended without results.json.')
    status = 1
  return 'finished' if status == 0 else f'failed (exit {status})'


def run_sweep(planned: Sequence[Trial],
              cores: Sequence[frozenset[int] | None] = (None,)
              ) -> dict[str, str]:
  """Runs what is not finished, and returns workdir -> outcome.

  Outcomes are 'finished', 'skipped (finished before)', 'failed (exit N)' and
  'interrupted'; what an interrupt left unstarted is 'not started'.

  Args:
    planned: trials, started in this order.
    cores: of each trial that runs at a time, as `shares` returns them.
  """
  outcomes = {
      trial.workdir:
          'skipped (finished before)' if trial.finished() else 'not started'
      for trial in planned}
  waiting = [(number, trial) for number, trial in enumerate(planned, 1)
             if outcomes[trial.workdir] == 'not started']
  running = {}  # index into cores -> (trial, process, start)
  try:
    while waiting or running:
      for slot in range(len(cores)):
        if slot not in running and waiting:
          number, trial = waiting.pop(0)
          print(f'sweep: run {number} of {len(planned)}: '
                f'{shlex.join(trial.command)}', flush=True)
          outcomes[trial.workdir] = 'interrupted'  # until it has ended
          running[slot] = (
              trial, start_trial(trial, cores[slot], to_log=len(cores) > 1),
              time.perf_counter())
      time.sleep(_POLL)
      for slot, (trial, process, start) in list(running.items()):
        status = process.poll()
        if status is None:
          continue
        del running[slot]
        outcomes[trial.workdir] = outcome_of(trial, status)
        if outcomes[trial.workdir] == 'interrupted':
          waiting.clear()
        # Which one ended is clear where only one was running.
        which = f'{trial.name} ' if len(cores) > 1 else ''
        print(f'sweep: {which}{outcomes[trial.workdir]} after '
              f'{time.perf_counter() - start:.0f} s', flush=True)
  except KeyboardInterrupt:
    pass
  finally:
    # The terminal sent the signal to the runs as well, which now save
    # checkpoints; leaving them behind would make them stray processes. A
    # second signal stops them at once, and this too.
    with contextlib.suppress(KeyboardInterrupt):
      for _, process, _ in running.values():
        process.wait()
  return outcomes


def define_flags(values: flags.FlagValues) -> None:
  """Adds this script's flags; importing the module must not, because other
  scripts have flags of the same names.
  """
  # A string, not a config flag: FILE:VARIANT is passed on as it is.
  flags.DEFINE_string(
      'config', None, 'Config file, or FILE:VARIANT.', flag_values=values)
  flags.DEFINE_string(
      'sweep', 'sweep', 'Function in the config file that yields overrides.',
      flag_values=values)
  flags.DEFINE_string(
      'workdir', None, 'Folder of the runs.', flag_values=values)
  flags.DEFINE_bool(
      'dry_run', False, 'Print the commands and run nothing.',
      flag_values=values)
  flags.DEFINE_string(
      'only', '', 'Regular expression; only runs in whose names it is found '
      'are run.', flag_values=values)
  flags.DEFINE_integer(
      'parallel', 1, 'Runs that go on at a time, each pinned to its share of '
      'the cores. Must be 1 on a machine with accelerators, which a run takes '
      'all of.', lower_bound=1, flag_values=values)
  flags.DEFINE_string(
      'split', 'dev', 'Split that is compared.', flag_values=values)
  flags.DEFINE_string(
      'measure', 'RR@10', 'Measure that is plotted.', flag_values=values)
  flags.mark_flags_as_required(['config', 'workdir'], flag_values=values)


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
  try:
    settings = load_sweep(values.config, values.sweep)
    every = list(trials(values.config, settings, values.workdir, argv[1:]))
    planned = matching(every, values.only)
    cores = shares(values.parallel)
    for trial in planned:
      check_same_command(trial)
  except (FileNotFoundError, ValueError) as error:
    sys.exit(f'sweep: {error}')
  if values.dry_run:
    for trial in planned:
      print(shlex.join(trial.command)
            + ('  # finished' if trial.finished() else ''))
    return
  outcomes = run_sweep(planned, cores)
  done = [trial.workdir for trial in every if trial.finished()]
  if done:
    out = os.path.join(values.workdir, 'comparison')
    try:
      print(compare.compare(
          done, out, split=values.split, measure=values.measure))
      print(f'Wrote the comparison to {out}.')
    except ValueError as error:
      print(f'sweep: nothing compared: {error}')
  print('sweep:')
  for workdir, outcome in outcomes.items():
    print(f'  {workdir}: {outcome}')
  if {'interrupted', 'not started'} & set(outcomes.values()):
    sys.exit(130)
  if any(outcome.startswith('failed') for outcome in outcomes.values()):
    sys.exit(1)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
