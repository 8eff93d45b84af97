"""Finished runs as comparisons read them, and groups of seeds."""

import collections
from collections.abc import Mapping, Sequence
import csv
import dataclasses
import json
import os
import re
from typing import Any

from retrieval_jax import files
from retrieval_jax.data.readers import lines
from retrieval_jax.evaluation import measures
from retrieval_jax.evaluation import report

_CALLS = 'meter/target_encoder_calls'
_CALL_PARTS = (f'{_CALLS}_in_step', f'{_CALLS}_reembedding')

FLOP_PARTS = {'step': 'flops_in_step', 're-embedding': 'flops_reembedding',
              'scoring': 'flops_scoring', 'correcting': 'flops_correcting',
              'indexing': 'flops_indexing', 'reading': 'flops_reading'}
"""Parts of what a run computes -> their names in the meter of results.json.

Runs from before scoring and correcting were counted have the first two; only
those along a tree and those with a reader have the last ones.
"""

# What a run leaves before it has finished.
_TRACES = ('config.json', 'metrics.jsonl', 'sweep.json')


@dataclasses.dataclass(frozen=True)
class Point:
  """One evaluation during a run: when, at what cost, and how good it was."""
  step: int
  seconds: float | None
  calls: float | None
  flops: float | None
  quality: float


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """What one workdir holds.

  Attributes:
    name: short, and different from every other run's.
    results: the content of results.json.
    config: the resolved config, {} if the run left none.
    log: the lines of metrics.jsonl, in order.
    curve: evaluations during training, by step.
    forgetting: the content of forgetting.json, {} if the run left none.
  """
  name: str
  results: Mapping[str, Any]
  config: Mapping[str, Any]
  log: tuple[Mapping[str, float], ...]
  curve: tuple[Point, ...]
  forgetting: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def measure(self, split: str, measure: str) -> float:
    """Returns a final measure.

    Raises:
      ValueError: if it was not evaluated, naming those that were.
    """
    evaluated = self.results.get('measures', {})
    if measure not in evaluated.get(split, {}):
      known = ', '.join(
          f'{s}: {" ".join(values)}' for s, values in evaluated.items())
      raise ValueError(
          f'{self.name}: expected {measure} of split {split!r} in '
          f'results.json, which has {known or "no measures"}; change --split, '
          '--choose_on or --measure.')
    return evaluated[split][measure]


Groups = Mapping[str, Sequence[FinishedRun]]
"""Runs of one method, one for each seed, under its name."""


def check_method(groups: Groups, name: str, flags: str) -> None:
  """Raises a ValueError, naming the flags, if no group has this name."""
  if name not in groups:
    raise ValueError(
        f'Expected {flags} to name methods, got {name!r}; there is '
        f'{", ".join(groups)}.')


def in_sweep(folder: str) -> tuple[list[str], list[str]]:
  """Returns the finished and the unfinished runs among a folder's children.

  Children that are not runs, such as the comparison, are skipped.

  Raises:
    FileNotFoundError: if the folder holds no finished run.
  """
  finished, unfinished = [], []
  children = sorted(os.listdir(folder)) if os.path.isdir(folder) else ()
  for name in children:
    child = os.path.join(folder, name)
    if report.is_finished(child):
      finished.append(child)
    elif any(os.path.exists(os.path.join(child, f)) for f in _TRACES):
      unfinished.append(child)
  if not finished:
    raise FileNotFoundError(
        f'Expected finished runs (folders with results.json) in {folder!r}, '
        f'found {len(unfinished)} unfinished and {len(children)} entries in '
        'all; run the sweep first, or name its --workdir.')
  return finished, unfinished


def read_run(workdir: str, name: str, split: str, measure: str) -> FinishedRun:
  """Returns the run of one workdir.

  Raises:
    FileNotFoundError: if the run has not finished.
    ValueError: if the split was not evaluated, or a file is not JSON.
  """
  results = report.read_results(workdir)
  config = results.get('config') or {}
  config_path = os.path.join(workdir, 'config.json')
  if os.path.exists(config_path):
    config = files.read_json(config_path)
  forgetting_path = os.path.join(workdir, 'forgetting.json')
  run = FinishedRun(
      name, results, config, read_log(workdir), (),
      files.read_object(forgetting_path)
      if os.path.exists(forgetting_path) else {})
  return dataclasses.replace(run, curve=_curve(run, split, measure))


def read_table(path: str, split: str, measure: str) -> list[FinishedRun]:
  """Returns the runs of a runs.csv, as far as that tells of them.

  What it does not tell: their logs, so their curves, and their configs.

  Args:
    path: of a file that `tables.tabulate_runs` made.
    split: that its measures are of, which it does not say.
    measure: that is plotted.

  Raises:
    ValueError: naming the file and the line, where one is no run, or lacks the
      measure.
  """
  with open(path, encoding='utf-8', newline='') as f:
    reader, found = csv.DictReader(f), []
    columns = reader.fieldnames or ()
    for row in reader:
      try:
        found.append(_of_row(row, split, measure))
      except (KeyError, ValueError) as error:
        raise ValueError(
            f'{path}:{reader.line_num}: expected a run of '
            f'experiments.compare, with {measure}: {error}') from error
  if not found:
    raise ValueError(
        f'{path}: expected a runs.csv of experiments.compare, found the '
        f'columns {", ".join(columns) or "of no file"} and no run.')
  return found


def _of_row(row: Mapping[str, str], split: str, measure: str) -> FinishedRun:
  number = lambda name, unit=1.: (
      float(row[name]) * unit if row.get(name) else None)
  meter = {
      'target_encoder_calls_in_step': number('target calls, step'),
      'target_encoder_calls_reembedding': number('re-embedded targets'),
      **{key: number(f'TFLOP, {part}', 1e12)
         for part, key in FLOP_PARTS.items()},
      'table_bytes': number('table MiB', 2**20),
      'device_bytes': number('device MiB', 2**20),
      # Of the phases the table has the sum.
      'seconds': {'update': number('training seconds'),
                  'total': number('total seconds')}}
  seed = number('seed')
  run = FinishedRun(
      row['run'], {
          'method': row['method'], 'steps': int(number('steps') or 0),
          'seed': None if seed is None else int(seed),
          'commit': row.get('commit'), 'meter': meter, 'measures': {split: {
              name: float(row[name]) for name in measures.ALL
              if row.get(name)}}}, {'method': row['method']}, (), ())
  return dataclasses.replace(run, curve=_curve(run, split, measure))


def read_log(workdir: str) -> tuple[Mapping[str, float], ...]:
  """Returns the lines of metrics.jsonl; none if there is no such file.

  Raises:
    ValueError: naming a line that is not JSON in UTF-8.
  """
  path = os.path.join(workdir, 'metrics.jsonl')
  if not os.path.exists(path):
    return ()
  return tuple(record for _, record in lines.json_lines(path))


def _curve(run: FinishedRun, split: str, measure: str) -> tuple[Point, ...]:
  """Returns the logged evaluations by step.

  Counts that are logged less often keep their last value. A run that logged
  no evaluation gets one point, its end.
  """
  final, meter = run.measure(split, measure), run.results.get('meter', {})
  points: dict[int, Point] = {}
  seconds, calls, flops = None, None, None
  for logged in run.log:
    seconds = logged.get('seconds', seconds)
    calls = _logged_calls(logged, calls)
    flops = logged.get('meter/flops', flops)
    quality = logged.get(f'{split}/{measure}')
    if quality is not None:
      step = int(logged['step'])
      points[step] = Point(
          step, seconds, calls, _flops(run.results, step, calls)
          if flops is None else flops, quality)
  if not points:
    points[0] = Point(
        run.results.get('steps', 0), meter.get('seconds', {}).get('total'),
        total_calls(meter), total_flops(meter), final)
  return tuple(points[step] for step in sorted(points))


def _logged_calls(logged: Mapping[str, float], before: float | None
                  ) -> float | None:
  """Returns the target-encoder calls that a log line states, or `before`."""
  if _CALLS in logged:
    return logged[_CALLS]
  parts = [logged[name] for name in _CALL_PARTS if name in logged]
  return sum(parts) if parts else before


def _flops(results: Mapping[str, Any], step: int, calls: float | None
           ) -> float | None:
  """Returns the FLOPs up to a step of a run whose log does not state them.

  Every step costs the same, scoring and correcting included, and its share of
  the indexing; what calls exceed those of the steps so far is re-embedding, and
  every re-embedded target costs the same.
  """
  meter, steps = results.get('meter', {}), results.get('steps')
  reembedding, everything = meter.get('flops_reembedding'), total_flops(meter)
  if not steps or None in (calls, reembedding, everything):
    return None
  part = step / steps
  reembedded = calls - part * meter['target_encoder_calls_in_step']
  total = meter['target_encoder_calls_reembedding']
  return part * (everything - reembedding) + (
      reembedding * reembedded / total if total else 0)


def total_calls(meter: Mapping[str, Any]) -> float | None:
  """Returns the target-encoder calls of a whole run."""
  return _sum(meter, ('target_encoder_calls_in_step',
                      'target_encoder_calls_reembedding'))


def total_flops(meter: Mapping[str, Any]) -> float | None:
  """Returns the FLOPs of a whole run, of all parts that were counted."""
  return _sum(meter, tuple(FLOP_PARTS.values()))


def training_seconds(meter: Mapping[str, Any]) -> float | None:
  """Returns the seconds of the steps and of re-embedding.

  Unlike the total they leave out preparation, evaluation and diagnostics.
  """
  return _sum(meter.get('seconds', {}), (
      'data', 'propose', 'gather', 'rows', 'update', 'refresh'))


def _sum(values: Mapping[str, float], names: Sequence[str]) -> float | None:
  parts = [values[name] for name in names if values.get(name) is not None]
  return sum(parts) if parts else None


def names_of(workdirs: Sequence[str]) -> list[str]:
  """Returns the shortest path endings that tell the workdirs apart."""
  parts = [os.path.normpath(os.path.abspath(w)).split(os.sep)
           for w in workdirs]
  if len({tuple(p) for p in parts}) != len(parts):
    raise ValueError(
        f'Expected every workdir once, got {", ".join(workdirs)}.')
  depth = 1
  while len({tuple(p[-depth:]) for p in parts}) != len(parts):
    depth += 1
  return ['/'.join(p[-depth:]) for p in parts]


# Parts of a config that change nothing about what is learned, and those that
# the method's own text has, without the options that it does not read.
_NO_METHOD = ('seed', 'workdir', 'log', 'checkpoint', 'profile', 'diagnostics',
              'corrector', 'sampler', 'estimator', 'refresh', 'targets')


def _method_part(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what tells methods apart in a config, besides the method's text."""
  return {name: value for name, value in config.items()
          if name not in _NO_METHOD}


def group_seeds(finished: Sequence[FinishedRun]
                ) -> dict[str, list[FinishedRun]]:
  """Returns runs by name; those that differ in the seed alone share one.

  A group has each seed once: the second run of a config and seed opens, or
  joins, a second group of that config.
  """
  alike: dict[tuple, list[FinishedRun]] = {}
  times: collections.Counter[tuple] = collections.Counter()
  for run in finished:
    key = (run.results.get('method'),
           json.dumps(_method_part(run.config), sort_keys=True)
           if run.config else run.name)
    seed = (*key, run.results.get('seed'))
    alike.setdefault((*key, times[seed]), []).append(run)
    times[seed] += 1
  groups = {}
  for members in alike.values():
    name = _method_name(members)
    while name in groups:
      name += "'"
    groups[name] = members
  return groups


def _method_name(members: Sequence[FinishedRun]) -> str:
  """Returns the 'stale' of '002_stale-seed3' and of 'stale_s0'."""
  name = re.sub(r'(^|/)\d{3,}_', r'\1', members[0].name)
  seed = '(seed|s)' if len(members) > 1 else 'seed'
  return re.sub(rf'[-_,.]?{seed}[-_=]?\d+$', '', name) or members[0].name
