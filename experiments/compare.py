r"""Compares finished runs: tables (Markdown, CSV) and figures (PNG).

  python -m experiments.compare --sweep=runs/methods --out=runs/comparison \
      --split=test --reference=oracle --pairs=stale:in_batch \
      --curves=diagnostics/kl,diagnostics/tv

Takes every finished run of the sweeps' folders and of --workdirs, reads its
results.json, metrics.jsonl and config.json, and writes

  comparison.md   quality and cost of each method, and differences of methods
  comparison.csv  the first of these tables in full precision
  runs.csv        every single run
  comparison.png  quality against target-encoder calls, FLOPs and seconds
  curves.png      the scalars named by --curves over training steps

Runs whose configs differ in nothing but the seed are one method, named after
the first of them without number and seed: 003_stale-seed0 is 'stale'. Shown are
mean, sample standard deviation, least and greatest over seeds.
"""

import collections
import csv
import dataclasses
import io
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app
from absl import flags

from experiments import finished
from experiments import plots
from retrieval_jax.evaluation import measures
from retrieval_jax.evaluation import report
from retrieval_jax.evaluation import trec

_COSTS = {
    'target calls, step': '{:,.0f}', 're-embedded targets': '{:,.0f}',
    'encoder TFLOP': '{:,.1f}', 'training seconds': '{:,.0f}',
    'total seconds': '{:,.0f}', 'table MiB': '{:,.0f}'}
_SPREAD = ('sd', 'min', 'max')
# Student's t: 97.5 % quantiles for 1, 2, ... 9 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclasses.dataclass(frozen=True)
class Difference:
  """How much better one method is than another, in points (hundredths).

  With as few seeds as are usual, look at all three answers: the interval
  assumes normal differences and is wide (for 3 seeds 2.5 standard deviations to
  either side), the spreads assume nothing and promise no level.

  Attributes:
    method: the first method.
    against: the second.
    points: mean of the first less mean of the second.
    paired: whether both have the same seeds. Then differences are taken seed
      by seed, which removes what a seed does to both alike.
    error: standard error of `points`: s / sqrt(n) of the differences if
      paired, else sqrt(s1^2 / n1 + s2^2 / n2). None if a method has one seed.
    interval: 95 % t interval. Degrees of freedom are n - 1, unpaired those of
      the method with fewer seeds, and at most 9: too wide rather than too
      narrow.
    exceeds_spread: whether |points| is greater than max - min over the seeds
      of the first and greater than that of the second. None as above.
  """
  method: str
  against: str
  points: float
  paired: bool
  error: float | None = None
  interval: tuple[float, float] | None = None
  exceeds_spread: bool | None = None


def difference(groups: plots.Groups, method: str, against: str, split: str,
               measure: str) -> Difference:
  """Returns the judgement of two methods.

  Raises:
    ValueError: if there is no such method, naming those there are.
  """
  for name in (method, against):
    if name not in groups:
      raise ValueError(
          f'Expected --reference and --pairs to name methods, got {name!r}; '
          f'there is {", ".join(groups)}.')
  values = [[100 * run.measure(split, measure) for run in groups[name]]
            for name in (method, against)]
  seeds = [[run.results.get('seed') for run in groups[name]]
           for name in (method, against)]
  points = statistics.fmean(values[0]) - statistics.fmean(values[1])
  paired = None not in seeds[0] and set(seeds[0]) == set(seeds[1])
  fewest = min(map(len, values))
  if fewest < 2:
    return Difference(method, against, points, paired)
  if paired:
    first, second = (dict(zip(s, v)) for s, v in zip(seeds, values))
    error = statistics.stdev(
        first[seed] - second[seed] for seed in first) / math.sqrt(fewest)
  else:
    error = math.sqrt(sum(statistics.variance(v) / len(v) for v in values))
  margin = _T[min(fewest - 1, len(_T)) - 1] * error
  return Difference(
      method, against, points, paired, error,
      (points - margin, points + margin),
      abs(points) > max(max(v) - min(v) for v in values))


def choose(groups: plots.Groups, split: str, measure: str
           ) -> tuple[dict[str, list[finished.FinishedRun]], list[str]]:
  """Keeps the best setting of every method.

  Settings of one method have the same 'method' in results.json and differ
  elsewhere, for instance in the learning rate.

  Returns:
    The groups that are kept, and a sentence for each method that had a choice.
  """
  settings = collections.defaultdict(dict)
  for name, members in groups.items():
    settings[members[0].results.get('method', name)][name] = statistics.fmean(
        run.measure(split, measure) for run in members)
  kept, sentences = {}, []
  for quality in settings.values():
    best = max(quality, key=quality.get)
    kept[best] = groups[best]
    if len(quality) > 1:
      others = ', '.join(f'{name} ({value:.4f})'
                         for name, value in quality.items() if name != best)
      sentences.append(f'Chosen by {measure} on {split}: {best} '
                       f'({quality[best]:.4f}) over {others}.')
  return kept, sentences


def run_row(run: finished.FinishedRun, split: str,
            names: Sequence[str]) -> dict[str, Any]:
  """Returns measures and cost of one run; what is not known is None."""
  meter, values = run.results.get('meter', {}), run.results['measures'][split]
  flops, table = finished.total_flops(meter), meter.get('table_bytes')
  return {name: values.get(name) for name in names} | dict(zip(_COSTS, (
      meter.get('target_encoder_calls_in_step'),
      meter.get('target_encoder_calls_reembedding'),
      None if flops is None else flops / 1e12,
      finished.training_seconds(meter), meter.get('seconds', {}).get('total'),
      None if table is None else table / 2**20), strict=True))


def method_row(members: Sequence[finished.FinishedRun], split: str,
               names: Sequence[str]) -> dict[str, Any]:
  """Returns means over seeds, and their spread in columns such as 'R@1 sd'."""
  rows = [run_row(run, split, names) for run in members]
  found = {'seeds': len(rows)}
  for column in rows[0]:
    values = [row[column] for row in rows]
    if None in values:
      values = []
    found[column] = statistics.fmean(values) if values else None
    several = len(values) > 1
    found |= {
        f'{column} sd': statistics.stdev(values) if several else None,
        f'{column} min': min(values) if several else None,
        f'{column} max': max(values) if several else None}
  return found


def baselines(loaded: Sequence[finished.FinishedRun], split: str
              ) -> dict[str, Mapping[str, float]]:
  """Returns BM25 and untrained measures; one entry per distinct outcome."""
  found = {}
  for label, field in (('BM25', 'bm25'), ('untrained', 'untrained')):
    outcomes = {}
    for run in loaded:
      values = (run.results.get(field) or {}).get(split)
      if values:
        key = json.dumps(values, sort_keys=True)
        outcomes.setdefault(key, (run.name, values))
    for name, values in outcomes.values():
      found[label if len(outcomes) == 1 else f'{label} ({name})'] = values
  return found


def tabulate(groups: plots.Groups, split: str, measure: str
             ) -> list[dict[str, Any]]:
  """Returns the rows of the table: baselines, then methods."""
  names = list(dict.fromkeys([*report.LABELS, measure]))
  runs = [run for members in groups.values() for run in members]
  rows = [{'method': label} | {name: values.get(name) for name in names}
          for label, values in baselines(runs, split).items()]
  rows += [{'method': name} | method_row(members, split, names)
           for name, members in groups.items()]
  return _aligned(rows)


def tabulate_runs(groups: plots.Groups, split: str) -> list[dict[str, Any]]:
  """Returns a row for every single run, with all its measures."""
  seen = {name for members in groups.values() for run in members
          for name in run.results['measures'][split]}
  names = [name for name in measures.MEASURES if name in seen] + sorted(
      seen - set(measures.MEASURES))
  return _aligned([
      {'run': run.name, 'method': method, 'seed': run.results.get('seed'),
       'steps': run.results.get('steps')} | run_row(run, split, names)
      for method, members in groups.items() for run in members])


def _aligned(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns rows with the same columns, none of which is empty."""
  longest = max(rows, key=len)
  used = [column for column in longest
          if any(row.get(column) is not None for row in rows)]
  return [{column: row.get(column) for column in used} for row in rows]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table with full precision; missing values are empty."""
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table of methods, rounded for reading."""
  columns = [c for c in rows[0] if c.rpartition(' ')[2] not in _SPREAD]
  return _markdown([report.LABELS.get(c, c) for c in columns],
                   [[_cell(row, column) for column in columns] for row in rows])


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
  return ''.join('| ' + ' | '.join(
      cell.replace('|', '\\|') for cell in line) + ' |\n' for line in lines)


def _cell(row: Mapping[str, Any], column: str) -> str:
  """Returns 'mean ± sd (min..max)', or 'mean' where all seeds agree."""
  value = row[column]
  if value is None or column in ('method', 'seeds'):
    return '' if value is None else str(value)
  shown = _COSTS.get(column, '{:.4f}').format
  sd, least, greatest = (row.get(f'{column} {name}') for name in _SPREAD)
  if least is None or shown(least) == shown(greatest):
    return shown(value)
  return f'{shown(value)} ± {shown(sd)} ({shown(least)}..{shown(greatest)})'


def differences_markdown(found: Sequence[Difference]) -> str:
  """Returns the second table."""
  yes = {None: '', True: 'yes', False: 'no'}
  return _markdown(
      ['method', 'against', 'difference', 'standard error', '95 % interval',
       'paired', 'exceeds both spreads'],
      [[d.method, d.against, f'{d.points:+.2f}',
        '' if d.error is None else f'{d.error:.2f}',
        '' if d.interval is None else
        f'{d.interval[0]:+.2f}..{d.interval[1]:+.2f}',
        yes[d.paired], yes[d.exceeds_spread] or 'one seed'] for d in found])


def compare(workdirs: Sequence[str], out: str, *, split: str = 'dev',
            measure: str = 'RR@10', choose_on: str | None = None,
            reference: str | None = None, pairs: Sequence[str] = (),
            curves: Sequence[str] = ()) -> str:
  """Writes the comparison into `out` and returns its Markdown tables.

  Args:
    workdirs: folders of finished runs.
    out: folder to write to.
    split: whose measures are shown.
    measure: what is plotted, judged and chosen by.
    choose_on: the split on which the best setting of each method is chosen;
      None to show all.
    reference: a method that all others are judged against.
    pairs: 'A:B', methods A to be judged against methods B.
    curves: names of logged scalars to plot over steps.

  Raises:
    FileNotFoundError: if a run has not finished.
    ValueError: if there is no such split, measure, method or scalar.
  """
  if not workdirs:
    raise ValueError(
        'Expected --sweep=DIR or --workdirs=A,B,... with at least one folder.')
  groups = finished.group_seeds([
      finished.read_run(workdir, name, split, measure)
      for workdir, name in zip(workdirs, finished.names_of(workdirs))])
  sentences = []
  if choose_on:
    groups, sentences = choose(groups, choose_on, measure)
  judged = [(name, reference) for name in groups
            if reference and name != reference]
  for pair in pairs:
    method, colon, against = pair.partition(':')
    if not colon:
      raise ValueError(f'Expected --pairs=A:B,..., got {pair!r}.')
    judged.append((method, against))
  found = [difference(groups, *pair, split, measure)
           for pair in dict.fromkeys(judged)]
  rows = tabulate(groups, split, measure)
  label = f'{report.LABELS.get(measure, measure)} on {split}'
  parts = [f'# Comparison on {split}\n', to_markdown(rows),
           *(f'{sentence}\n' for sentence in sentences)]
  if found:
    parts += [f'## Differences in {label}, in points\n',
              differences_markdown(found)]
  markdown = '\n'.join(parts)
  if curves:  # first of all, because it may refuse a name
    plots.over_steps(os.path.join(out, 'curves.png'), groups, curves)
  trec.write_text(os.path.join(out, 'comparison.csv'), to_csv(rows))
  trec.write_text(os.path.join(out, 'runs.csv'),
                  to_csv(tabulate_runs(groups, split)))
  figures = [f'![{label} against cost](comparison.png)\n',
             *(['![Scalars over steps](curves.png)\n'] if curves else [])]
  trec.write_text(os.path.join(out, 'comparison.md'),
                  '\n'.join([markdown, *figures]))
  runs = [run for members in groups.values() for run in members]
  plots.quality_against_cost(
      os.path.join(out, 'comparison.png'), groups,
      {name: values[measure] for name, values in baselines(runs, split).items()
       if values.get(measure) is not None}, label)
  return markdown


def define_flags(values: flags.FlagValues) -> None:
  """Adds this script's flags; importing the module must not, because other
  scripts have flags of the same names.
  """
  flags.DEFINE_list(
      'sweep', [], 'Folders whose finished children are compared, such as '
      '--workdir of experiments.sweep.', flag_values=values)
  flags.DEFINE_list(
      'workdirs', [], 'Folders of finished runs, separated by commas.',
      flag_values=values)
  flags.DEFINE_string(
      'out', None, 'Folder to write the comparison to.', flag_values=values)
  flags.DEFINE_string(
      'split', 'dev', 'Split whose measures are shown.', flag_values=values)
  flags.DEFINE_string(
      'measure', 'RR@10', 'Measure that is plotted, judged and chosen by.',
      flag_values=values)
  flags.DEFINE_string(
      'choose_on', None, 'Split on which the best of several settings of the '
      'same method is chosen; all are shown by default.', flag_values=values)
  flags.DEFINE_string(
      'reference', None, 'Method that all others are judged against.',
      flag_values=values)
  flags.DEFINE_list(
      'pairs', [], 'A:B,... to judge method A against method B.',
      flag_values=values)
  flags.DEFINE_list(
      'curves', [], 'Scalars of metrics.jsonl to plot over steps, such as '
      'diagnostics/kl.', flag_values=values)
  flags.mark_flag_as_required('out', flag_values=values)


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Expected flags only, got {argv[1:]}.')
  try:
    workdirs = list(values.workdirs)
    for folder in values.sweep:
      done, unfinished = finished.in_sweep(folder)
      workdirs += done
      for workdir in unfinished:
        print(f'compare: {workdir} has not finished and is left out.',
              file=sys.stderr)
    print(compare(
        workdirs, values.out, split=values.split, measure=values.measure,
        choose_on=values.choose_on, reference=values.reference,
        pairs=values.pairs, curves=values.curves))
  except (FileNotFoundError, ValueError) as error:
    sys.exit(f'compare: {error}')
  print(f'Wrote comparison.md to {values.out}, with CSV files and figures.')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
