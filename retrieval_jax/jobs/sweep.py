"""Sweeps: a config's settings, each trained in a process and folder of its own.

A sweep is a function in the config's file that takes nothing and yields dicts
of dotted overrides:

  def sweep():
    for num_negatives in (1, 4, 16):
      yield {'sampler.num_negatives': num_negatives,
             'optimizer.learning_rate': 3e-5}

An entry 'name' is not an override but the name of the run; otherwise the
overrides name it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from typing import Any

from retrieval_jax import files
from retrieval_jax.evaluation import report

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
    ValueError: if it is not Python, there is no such function, or it yields
      anything but dicts with string keys, the same dict twice, or nothing.
  """
  path = config if os.path.exists(config) else config.split(':', 1)[0]
  if not os.path.isfile(path):
    raise FileNotFoundError(
        f'Expected --config to name a file, got {config!r}; run this from the '
        'folder that holds configs/.')
  spec = importlib.util.spec_from_file_location('swept_config', path)
  if spec is None or spec.loader is None:
    raise ValueError(f'Expected --config to name a .py file, got {config!r}.')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not callable(getattr(module, function, None)):
    known = [name for name, value in vars(module).items()
             if callable(value) and name.startswith('sweep')]
    raise ValueError(
        f'Expected a function {function!r} in {path}, found '
        f'{", ".join(known) or "no sweep function"}; change --sweep or write '
        'one that yields dicts of dotted overrides.')
  settings: list[dict[str, Any]] = []
  for overrides in getattr(module, function)():
    if not isinstance(overrides, Mapping) or not all(
        isinstance(name, str) for name in overrides):
      raise ValueError(
          f'Expected {function} in {path} to yield dicts of dotted overrides '
          f"such as {{'sampler.num_negatives': 4}}, got {overrides!r}.")
    if dict(overrides) in settings:
      raise ValueError(
          f'{function} in {path} yields {dict(overrides)!r} twice; each run '
          'would do the same.')
    settings.append(dict(overrides))
  if not settings:
    raise ValueError(f'{function} in {path} yields nothing to run.')
  return settings


def name_of(overrides: Mapping[str, Any]) -> str:
  """Returns a folder name such as 'num_negatives=4,learning_rate=3e-05'.

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
  """Yields the runs of a sweep in order.

  Args:
    config: file, or file:variant, that each run is given.
    settings: overrides of each run, and maybe its 'name'.
    workdir: folder of the sweep.
    extra: arguments for every run.

  Raises:
    ValueError: if `extra` sets what the sweep sets as well.
  """
  _check_no_conflict(extra, settings)
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


def _check_no_conflict(extra: Sequence[str],
                       settings: Sequence[Mapping[str, Any]]) -> None:
  """Raises where one of two values would silently win.

  A folder is named after the sweep's value, and runs that the sweep tells apart
  would all do the same, so the user's value cannot win either.
  """
  for argument in extra:
    flag = re.match('-+([^=]*)', argument)
    if not flag:
      continue
    name = flag.group(1)
    if name in ('config', 'workdir'):
      raise ValueError(
          f'Got {argument} after --, but the sweep sets --{name} of every run; '
          'give it before the --.')
    option = re.sub('^(no)?config[.]', '', name)
    for setting in settings:
      if option != 'name' and option in setting:
        raise ValueError(
            f'Got {argument} after --, but the sweep sets {option}, in run '
            f'{name_of(setting)} to {_text(setting[option])}; leave it out, or '
            'change the sweep function.')


def check_same_command(trial: Trial) -> None:
  """Raises where a folder holds a run of other settings.

  Raises:
    ValueError: naming the folder and both commands.
  """
  path = os.path.join(trial.workdir, _OVERRIDES_FILE)
  if not os.path.exists(path):
    return
  before = files.read_json(path)['arguments']
  now = _settings(trial)
  if before != now:
    raise ValueError(
        f'{trial.workdir} holds a run of other settings:\n'
        f'  there: {shlex.join(before)}\n  now:   {shlex.join(now)}\n'
        'Choose another --workdir, or delete that folder.')


def _settings(trial: Trial) -> list[str]:
  """Returns what decides a run: its arguments, whatever its folder."""
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


def start(trial: Trial, cores: frozenset[int] | None = None, *,
          to_log: bool = False) -> subprocess.Popen:
  """Starts a trial, on the given cores; None for all of them.

  Args:
    trial: what to run.
    cores: where it runs, set before it executes the command, because libraries
      size their thread pools by it.
    to_log: whether its output goes to the end of log.txt in its folder.
  """
  os.makedirs(trial.workdir, exist_ok=True)
  files.write_text(
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


def outcome_of(trial: Trial, status: int, say: Callable[[str], None]) -> str:
  """Returns the outcome of a trial that ended with an exit status."""
  if status in (-2, -15, 130, 143):
    return 'interrupted'
  if status == 0 and not trial.finished():
    say(f'{trial.workdir} ended without results.json.')
    status = 1
  return 'finished' if status == 0 else f'failed (exit {status})'


def run(planned: Sequence[Trial],
        cores: Sequence[frozenset[int] | None] = (None,), *,
        say: Callable[[str], None] = print) -> dict[str, str]:
  """Runs what is not finished, and returns workdir -> outcome.

  Outcomes are 'finished', 'skipped (finished before)', 'failed (exit N)' and
  'interrupted'; what an interrupt left unstarted is 'not started'.

  Args:
    planned: trials, started in this order.
    cores: of each trial that runs at a time, as `shares` returns them.
    say: takes a line of progress.
  """
  outcomes = {
      trial.workdir:
          'skipped (finished before)' if trial.finished() else 'not started'
      for trial in planned}
  waiting = [(number, trial) for number, trial in enumerate(planned, 1)
             if outcomes[trial.workdir] == 'not started']
  # Index into cores -> (trial, process, when it began).
  running: dict[int, tuple[Trial, subprocess.Popen, float]] = {}
  try:
    while waiting or running:
      for slot in range(len(cores)):
        if slot not in running and waiting:
          number, trial = waiting.pop(0)
          say(f'run {number} of {len(planned)}: {shlex.join(trial.command)}')
          outcomes[trial.workdir] = 'interrupted'  # until it has ended
          running[slot] = (
              trial, start(trial, cores[slot], to_log=len(cores) > 1),
              time.perf_counter())
      time.sleep(_POLL)
      for slot, (trial, process, began) in list(running.items()):
        status = process.poll()
        if status is None:
          continue
        del running[slot]
        outcomes[trial.workdir] = outcome_of(trial, status, say)
        if outcomes[trial.workdir] == 'interrupted':
          waiting.clear()
        # Which one ended is clear where only one was running.
        which = f'{trial.name} ' if len(cores) > 1 else ''
        say(f'{which}{outcomes[trial.workdir]} after '
            f'{time.perf_counter() - began:.0f} s')
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
