"""Prints the table of this folder's README from runs.csv and loss.csv.

  python -m experiments.results.all_methods.table

And how well the loss of the last quarter orders the arms of one objective.
"""

import collections
import csv
import pathlib
import statistics

from absl import app
from scipy import stats

from retrieval_jax.comparison import differences
from retrieval_jax.comparison import runs as runs_lib

FOLDER = pathlib.Path(__file__).parent
MEASURES = ('R@1', 'R@20', 'R@100', 'nDCG@10')
REFERENCES = ('oracle', 'stale')


def late_losses():
  """Returns run -> mean of what loss.csv has of it."""
  found = collections.defaultdict(list)
  with (FOLDER / 'loss.csv').open(encoding='utf-8', newline='') as f:
    for row in csv.DictReader(f):
      found[row['run']].append(float(row['nll']))
  return {run: statistics.fmean(values) for run, values in found.items()}


def mean(members, of):
  """Returns the mean of a function of runs."""
  return statistics.fmean(map(of, members))


def short(value):
  """Returns three digits behind the point, and no zero before it."""
  return f'{value:.3f}'.lstrip('0')


def line(name, groups, losses):
  """Returns the cells of an arm."""
  members = groups[name]
  measure = lambda key: [run.measure('test', key) for run in members]
  meter = lambda run: run.results['meter']
  cells = [name, f'{short(statistics.fmean(measure("RR@10")))} ± '
           f'{short(statistics.stdev(measure("RR@10")))}']
  cells += [short(statistics.fmean(measure(key))) for key in MEASURES]
  cells += [
      f'{mean(members, lambda run: runs_lib.total_calls(meter(run))):,.0f}',
      f'{mean(members, lambda r: runs_lib.total_flops(meter(r))) / 1e12:.1f}',
      f'{mean(members, lambda r: runs_lib.training_seconds(meter(r))):.0f}',
      f'{mean(members, lambda run: meter(run)["device_bytes"]) / 2**20:.0f}']
  for reference in REFERENCES:
    found = differences.difference(groups, name, reference, 'test', 'RR@10')
    cells.append('' if name == reference else (
        f'{found.points:+.2f} ({found.interval[0]:+.1f}..'
        f'{found.interval[1]:+.1f})'))
  loss = mean(members, lambda run: losses[run.name])
  return [*cells, f'{loss:.2f}' + '*' * name.startswith('cache_')]


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  groups = runs_lib.group_seeds(runs_lib.read_table(
      str(FOLDER / 'runs.csv'), 'test', 'RR@10'))
  losses = late_losses()
  quality = {name: mean(members, lambda run: run.measure('test', 'RR@10'))
             for name, members in groups.items()}
  columns = ['arm', 'MRR@10', *MEASURES, 'targets encoded', 'TFLOP',
             'training s', 'device MiB', *(f'against {name}'
                                          for name in REFERENCES), 'late loss']
  print('| ' + ' | '.join(columns) + ' |\n|' + ' --- |' * len(columns))
  for name in sorted(groups, key=quality.__getitem__, reverse=True):
    print('| ' + ' | '.join(line(name, groups, losses)) + ' |')
  alike = [name for name in groups if not name.startswith('cache_')]
  found = stats.spearmanr(
      [mean(groups[name], lambda run: losses[run.name]) for name in alike],
      [quality[name] for name in alike])
  print(f'\nSpearman of late loss and MRR@10, {len(alike)} arms: '
        f'{found.statistic:.2f}')


if __name__ == '__main__':
  app.run(main)
