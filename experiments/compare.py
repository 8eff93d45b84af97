r"""Compares finished runs: a table (Markdown, CSV) and a plot (PNG).

  python -m experiments.compare --workdirs=runs/in_batch,runs/stale \
      --out=runs/comparison --split=test --measure=RR@10

Reads results.json, metrics.jsonl and config.json of every workdir and writes
comparison.md, comparison.csv and comparison.png. The plot shows quality against
what the papers are about, calls of the target encoder, and against seconds.
Runs whose configs differ in nothing but the seed are shown as their mean, with
a band from the worst to the best of them.
"""

import csv
import dataclasses
import io
import json
import os
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import app
from absl import flags

from retrieval_jax.evaluation import measures
from retrieval_jax.evaluation import report
from retrieval_jax.evaluation import trec

_CALLS = ('meter/target_encoder_calls',)
_CALL_PARTS = ('meter/target_encoder_calls_in_step',
               'meter/target_encoder_calls_reembedding')
# Okabe and Ito's palette without its yellow (too pale on white): apart for
# every common colour blindness. Markers differ too, for print in grey.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00',
            '#000000')
_MARKERS = 'osD^vPX*'


@dataclasses.dataclass(frozen=True)
class Point:
  """One evaluation during a run: where it stood and how good it was."""
  step: int
  seconds: float | None
  calls: float | None
  quality: float


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """What one workdir holds.

  Attributes:
    name: short and unlike every other run's.
    results: the content of results.json.
    config: the resolved config, {} if the run left none.
    curve: evaluations during training, by step.
  """
  name: str
  results: Mapping[str, Any]
  config: Mapping[str, Any]
  curve: tuple[Point, ...]


def read_run(workdir: str, name: str, split: str, measure: str) -> FinishedRun:
  """Returns the run of one workdir.

  Raises:
    FileNotFoundError: if the run has not finished.
    ValueError: if the split was not evaluated, or a file is not JSON.
  """
  results = report.read_results(workdir)
  evaluated = results.get('measures', {})
  if measure not in evaluated.get(split, {}):
    known = ', '.join(
        f'{s}: {" ".join(values)}' for s, values in evaluated.items())
    raise ValueError(
        f'{workdir}: expected {measure} of split {split!r} in results.json, '
        f'which has {known or "no measures"}; change --split or --measure.')
  config = results.get('config') or {}
  config_path = os.path.join(workdir, 'config.json')
  if os.path.exists(config_path):
    with open(config_path, encoding='utf-8') as f:
      try:
        config = json.load(f)
      except json.JSONDecodeError as error:
        raise ValueError(
            f'{config_path}:{error.lineno}: expected JSON ({error.msg}).'
        ) from error
  return FinishedRun(
      name, results, config, read_curve(workdir, f'{split}/{measure}', results,
                                        split, measure))


def read_curve(workdir: str, tag: str, results: Mapping[str, Any], split: str,
               measure: str) -> tuple[Point, ...]:
  """Returns the evaluations that metrics.jsonl logged under `tag`, by step.

  Counts that are logged less often keep their last value. A run that logged
  none gets one point, its end.
  """
  points, seconds, calls = {}, None, None
  path = os.path.join(workdir, 'metrics.jsonl')
  if os.path.exists(path):
    with open(path, encoding='utf-8') as f:
      for number, line in enumerate(f, 1):
        if not line.strip():
          continue
        try:
          logged = json.loads(line)
        except json.JSONDecodeError as error:
          raise ValueError(
              f'{path}:{number}: expected one JSON object per line '
              f'({error.msg}); remove that line.') from error
        seconds = logged.get('seconds', seconds)
        calls = _calls(logged, calls)
        if logged.get(tag) is not None:
          points[logged['step']] = Point(
              logged['step'], seconds, calls, logged[tag])
  if not points:
    meter = results.get('meter', {})
    points[0] = Point(
        results.get('steps', 0), meter.get('seconds', {}).get('total'),
        _total_calls(meter), results['measures'][split][measure])
  return tuple(points[step] for step in sorted(points))


def _calls(logged: Mapping[str, float], before: float | None) -> float | None:
  """Returns the target-encoder calls that a log line states, or `before`."""
  for name in _CALLS:
    if name in logged:
      return logged[name]
  parts = [logged[name] for name in _CALL_PARTS if name in logged]
  return sum(parts) if parts else before


def _total_calls(meter: Mapping[str, Any]) -> float | None:
  parts = [meter.get(name) for name in ('target_encoder_calls_in_step',
                                        'target_encoder_calls_reembedding')]
  parts = [part for part in parts if part is not None]
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


def _without_seed(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {name: _without_seed(item) for name, item in value.items()
            if name not in ('seed', 'workdir')}
  return value


def group_seeds(finished: Sequence[FinishedRun]
                ) -> dict[str, list[FinishedRun]]:
  """Returns runs by name; those that differ in the seed alone share one."""
  alike = {}
  for run in finished:
    key = (json.dumps(_without_seed(run.config), sort_keys=True)
           if run.config else run.name)
    alike.setdefault((run.results.get('method'), key), []).append(run)
  groups = {}
  for members in alike.values():
    name = members[0].name
    if len(members) > 1:
      # 'stale_seed3', '002_stale,seed=3' -> 'stale', '002_stale'
      name = re.sub(r'[-_,.]?(seed|s)[-_=]?\d+$', '', name) or name
    while name in groups:
      name += "'"
    groups[name] = members
  return groups


def _row(run: FinishedRun, split: str) -> dict[str, Any]:
  meter = run.results.get('meter', {})
  values = run.results['measures'][split]
  return {
      'run': run.name, 'seed': run.results.get('seed'),
      'steps': run.results.get('steps'),
      **{name: values.get(name) for name in _measures((run,), split)},
      'target calls, step': meter.get('target_encoder_calls_in_step'),
      'target calls, re-embedding':
          meter.get('target_encoder_calls_reembedding'),
      'target calls': _total_calls(meter),
      'encoder TFLOP': _tera(meter),
      'seconds': meter.get('seconds', {}).get('total'),
      'table MiB': (meter['table_bytes'] / 2**20
                    if meter.get('table_bytes') is not None else None)}


def _tera(meter: Mapping[str, Any]) -> float | None:
  parts = [meter.get(name) for name in ('flops_in_step', 'flops_reembedding')]
  parts = [part for part in parts if part is not None]
  return sum(parts) / 1e12 if parts else None


def _measures(finished: Sequence[FinishedRun], split: str) -> list[str]:
  """Returns the names any run has, the usual ones first."""
  seen = {name for run in finished for name in run.results['measures'][split]}
  return [name for name in measures.MEASURES if name in seen] + sorted(
      seen - set(measures.MEASURES))


def _baselines(finished: Sequence[FinishedRun], split: str
               ) -> dict[str, Mapping[str, float]]:
  """Returns BM25 and untrained measures; one entry per distinct outcome."""
  found = {}
  for label, field in (('BM25', 'bm25'), ('untrained', 'untrained')):
    outcomes = {}
    for run in finished:
      values = (run.results.get(field) or {}).get(split)
      if values:
        key = json.dumps(values, sort_keys=True)
        outcomes.setdefault(key, (run.name, values))
    for name, values in outcomes.values():
      found[label if len(outcomes) == 1 else f'{label} ({name})'] = values
  return found


def tabulate(groups: Mapping[str, Sequence[FinishedRun]], split: str
             ) -> list[dict[str, Any]]:
  """Returns the rows of the table; missing values are None.

  Baselines come first, then every run, then the mean of each group of seeds
  with '±' columns holding the standard deviation over seeds.
  """
  finished = [run for members in groups.values() for run in members]
  names = _measures(finished, split)
  rows = [{'run': label} | {name: values.get(name) for name in names}
          for label, values in _baselines(finished, split).items()]
  rows += [_row(run, split) for run in finished]
  for label, members in groups.items():
    if len(members) > 1:
      rows.append(_mean_row(label, [_row(run, split) for run in members],
                            names))
  columns = ['run', 'seed', 'steps', *names, *(f'{n} ±' for n in names)]
  columns += [c for row in rows for c in row if c not in columns]
  columns = list(dict.fromkeys(columns))
  used = [c for c in columns if any(row.get(c) is not None for row in rows)]
  return [{c: row.get(c) for c in used} for row in rows]


def _mean_row(label: str, rows: Sequence[Mapping[str, Any]],
              names: Sequence[str]) -> dict[str, Any]:
  mean = {'run': f'{label}, mean of {len(rows)} seeds'}
  for column in rows[0]:
    values = [row[column] for row in rows]
    if column in ('run', 'seed') or None in values:
      continue
    mean[column] = statistics.fmean(values)
    if column in names:
      mean[f'{column} ±'] = statistics.stdev(values)
  return mean


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table with full precision; missing values are empty."""
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table rounded for reading; '±' joins the column before it."""
  columns = [c for c in rows[0] if not c.endswith(' ±')]
  lines = ['| ' + ' | '.join(columns) + ' |',
           '| --- |' + ' ---: |' * (len(columns) - 1)]
  for row in rows:
    cells = []
    for column in columns:
      text = _cell(column, row[column])
      if row.get(f'{column} ±') is not None:
        text += f' ± {row[f"{column} ±"]:.4f}'
      cells.append(text)
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def _cell(column: str, value: Any) -> str:
  if value is None:
    return ''
  if column == 'run':
    return str(value).replace('|', '\\|')
  if '@' in column:
    return f'{value:.4f}'
  if column in ('encoder TFLOP', 'table MiB', 'seconds'):
    return f'{value:,.1f}'
  return f'{value:,.0f}' if column != 'seed' else str(value)


def _mean_curve(members: Sequence[FinishedRun], axis: str
                ) -> list[tuple[float, float, float, float]]:
  """Returns (x, mean, worst, best) at the steps that all members logged."""
  by_step = [{p.step: p for p in run.curve if getattr(p, axis) is not None}
             for run in members]
  curve = []
  for step in sorted(set.intersection(*(set(points) for points in by_step))):
    points = [points[step] for points in by_step]
    quality = [p.quality for p in points]
    curve.append((statistics.fmean(getattr(p, axis) for p in points),
                  statistics.fmean(quality), min(quality), max(quality)))
  return curve


def _time_unit(finished: Sequence[FinishedRun]) -> tuple[str, int]:
  """Returns the unit that gives the longest run a readable number."""
  longest = max((p.seconds or 0 for run in finished for p in run.curve),
                default=0)
  for unit, seconds in (('h', 3600), ('min', 60)):
    if longest >= 3 * seconds:
      return unit, seconds
  return 's', 1


def _is_log(groups: Iterable[Sequence[FinishedRun]], axis: str) -> bool:
  """Returns whether some run costs more than five times another."""
  ends = [curve[-1][0] for curve in (
      _mean_curve(members, axis) for members in groups) if curve]
  ends = [end for end in ends if end > 0]
  return bool(ends) and max(ends) > 5 * min(ends)


def plot(path: str, groups: Mapping[str, Sequence[FinishedRun]], split: str,
         measure: str) -> None:
  """Draws quality against target-encoder calls and against seconds."""
  import matplotlib
  matplotlib.use('Agg')  # no display is needed to write a file
  from matplotlib import pyplot
  from matplotlib import ticker

  style = {'font.size': 9, 'axes.spines.top': False, 'axes.grid': True,
           'axes.spines.right': False, 'grid.alpha': 0.3, 'grid.linewidth': 0.6,
           'savefig.dpi': 200, 'axes.axisbelow': True}
  finished = [run for members in groups.values() for run in members]
  baselines = {
      label: values[measure]
      for label, values in _baselines(finished, split).items()
      if values.get(measure) is not None}
  with pyplot.rc_context(style):
    figure, panels = pyplot.subplots(
        1, 2, figsize=(7.2, 3.1), sharey=True, layout='constrained')
    unit, seconds_per_unit = _time_unit(finished)
    for axes, axis, label, divisor in (
        (panels[0], 'calls', 'target-encoder calls (texts)', 1),
        (panels[1], 'seconds', f'time ({unit})', seconds_per_unit)):
      log = _is_log(groups.values(), axis)
      for number, (name, members) in enumerate(groups.items()):
        curve = _mean_curve(members, axis)
        if log:
          # A log axis has no place for 0; 'untrained' shows the same number.
          curve = [point for point in curve if point[0] > 0]
        if not curve:
          continue
        x, mean, worst, best = zip(*curve)
        x = [value / divisor for value in x]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(
            x, mean, color=colour, linewidth=1.4, markersize=3.8,
            marker=_MARKERS[number % len(_MARKERS)], markeredgewidth=0,
            linestyle=('-', '--', ':')[number // len(_COLOURS) % 3],
            label=name if len(members) == 1
            else f'{name} ({len(members)} seeds)')
        if len(members) > 1:
          axes.fill_between(x, worst, best, color=colour, alpha=0.18,
                            linewidth=0)
      for number, (name, value) in enumerate(baselines.items()):
        axes.axhline(value, color='0.35', linewidth=1, label=name,
                     linestyle=((0, (1, 1.5)), (0, (5, 2)), (0, (5, 1, 1, 1))
                                )[number % 3])
      axes.set_xlabel(label)
      if log:
        axes.set_xscale('log')
        if axis == 'seconds':  # few decades: 0.5, 1, 2, 5 read better
          axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
          axes.xaxis.set_major_formatter('{x:g}')
          axes.xaxis.set_minor_formatter(ticker.NullFormatter())
      else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
        axes.set_xlim(left=0)
    shown = measure.replace('RR@', 'MRR@') if measure.startswith('RR@') else (
        measure)
    panels[0].set_ylabel(f'{shown} on {split}')
    handles, labels = [], []
    for axes in panels:  # a run may have points in one of the panels only
      for handle, name in zip(*axes.get_legend_handles_labels()):
        if name not in labels:
          handles.append(handle)
          labels.append(name)
    longest = max(map(len, labels), default=0)
    columns = max(1, min(4, len(labels), 110 // (longest + 8)))
    figure.legend(handles, labels, loc='outside lower center', frameon=False,
                  ncols=columns)
    # The legend takes its place below the panels, not from them.
    figure.set_figheight(2.75 + 0.19 * -(-len(labels) // columns))
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    temporary = path + '.partial.png'
    try:
      figure.savefig(temporary)
      os.replace(temporary, path)
    finally:
      pyplot.close(figure)
      if os.path.exists(temporary):
        os.remove(temporary)


def compare(workdirs: Sequence[str], out: str, *, split: str = 'dev',
            measure: str = 'RR@10') -> str:
  """Writes the comparison into `out` and returns its Markdown table."""
  workdirs = [w for w in workdirs if w]
  if not workdirs:
    raise ValueError('Expected --workdirs=A,B,... with at least one folder.')
  finished = [
      read_run(workdir, name, split, measure)
      for workdir, name in zip(workdirs, names_of(workdirs))]
  groups = group_seeds(finished)
  rows = tabulate(groups, split)
  markdown = to_markdown(rows)
  trec.write_text(os.path.join(out, 'comparison.csv'), to_csv(rows))
  trec.write_text(
      os.path.join(out, 'comparison.md'),
      f'# Comparison on {split}\n\n{markdown}\n'
      f'![{measure} against cost](comparison.png)\n')
  plot(os.path.join(out, 'comparison.png'), groups, split, measure)
  return markdown


def define_flags(values: flags.FlagValues) -> None:
  """Adds this script's flags; importing the module must not, because other
  scripts have flags of the same names.
  """
  flags.DEFINE_list(
      'workdirs', None, 'Folders of finished runs, separated by commas.',
      flag_values=values)
  flags.DEFINE_string(
      'out', None, 'Folder to write the comparison to.', flag_values=values)
  flags.DEFINE_string(
      'split', 'dev', 'Split whose measures are shown.', flag_values=values)
  flags.DEFINE_string(
      'measure', 'RR@10', 'Measure that is plotted.', flag_values=values)
  flags.mark_flags_as_required(['workdirs', 'out'], flag_values=values)


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Expected flags only, got {argv[1:]}.')
  try:
    print(compare(values.workdirs, values.out, split=values.split,
                  measure=values.measure))
  except (FileNotFoundError, ValueError) as error:
    sys.exit(f'compare: {error}')
  print(f'Wrote comparison.md, comparison.csv and comparison.png to '
        f'{values.out}.')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
