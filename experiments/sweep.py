r"""Trains one run for every setting that a config's sweep function yields.

  python -m experiments.sweep --config=configs/stale.py --sweep=sweep \
      --workdir=runs/sweep [--dry_run] [-- --config.seed=1 ...]

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
"""

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
_MAX_NAME = 120  # a folder name has at most 255 bytes


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


def run_trial(trial: Trial) -> int:
  """Runs one trial and returns its exit status; 0 only if it finished."""
  os.makedirs(trial.workdir, exist_ok=True)
  trec.write_text(
      os.path.join(trial.workdir, _OVERRIDES_FILE),
      json.dumps({'arguments': _settings(trial),
                  'overrides': trial.overrides}, indent=2, default=str) + '\n')
  process = subprocess.Popen(trial.command)
  try:
    status = process.wait()
  except KeyboardInterrupt:
    # The terminal sent the signal to the run as well, which now saves a
    # checkpoint; leaving it behind would make it a stray process.
    process.wait()
    raise
  if status == 0 and not trial.finished():
    print(f'sweep: {trial.workdir} ended without results.json.')
    return 1
  return status


def run_sweep(planned: Sequence[Trial]) -> dict[str, str]:
  """Runs what is not finished, and returns workdir -> outcome.

  Outcomes are 'finished', 'skipped (finished before)', 'failed (exit N)' and
  'interrupted'; what an interrupt left unstarted is 'not started'.
  """
  outcomes = {trial.workdir: 'not started' for trial in planned}
  for number, trial in enumerate(planned, 1):
    if trial.finished():
      outcomes[trial.workdir] = 'skipped (finished before)'
      continue
    print(f'sweep: run {number} of {len(planned)}: '
          f'{shlex.join(trial.command)}', flush=True)
    start = time.perf_counter()
    try:
      status = run_trial(trial)
    except KeyboardInterrupt:
      outcomes[trial.workdir] = 'interrupted'
      break
    if status in (-2, -15, 130, 143):
      outcomes[trial.workdir] = 'interrupted'
      break
    outcomes[trial.workdir] = (
        'finished' if status == 0 else f'failed (exit {status})')
    print(f'sweep: {outcomes[trial.workdir]} after '
          f'{time.perf_counter() - start:.0f} s', flush=True)
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
      'split', 'dev', 'Split that is compared.', flag_values=values)
  flags.DEFINE_string(
      'measure', 'RR@10', 'Measure that is plotted.', flag_values=values)
  flags.mark_flags_as_required(['config', 'workdir'], flag_values=values)


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
  try:
    settings = load_sweep(values.config, values.sweep)
    planned = list(trials(
        values.config, settings, values.workdir, argv[1:]))
    for trial in planned:
      check_same_command(trial)
  except (FileNotFoundError, ValueError) as error:
    sys.exit(f'sweep: {error}')
  if values.dry_run:
    for trial in planned:
      print(shlex.join(trial.command)
            + ('  # finished' if trial.finished() else ''))
    return
  outcomes = run_sweep(planned)
  done = [trial.workdir for trial in planned if trial.finished()]
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
  if 'interrupted' in outcomes.values():
    sys.exit(130)
  if any(outcome.startswith('failed') for outcome in outcomes.values()):
    sys.exit(1)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
