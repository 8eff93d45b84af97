"""Gathers runs of experiments.adapt into a CSV file, and prints it as a table.

  python -m experiments.results.adapters.gains --csv=FILE [--adapted=DIR/*] \
      [--picture=FILE]

With --adapted, folders of experiments.adapt, a line of each method of each is
written to FILE first: the folder's name, measures on test, gains with their
standard errors, paired by query, and the constants. Without, FILE is printed as
it is: gains in points with 95% intervals (1.96 standard errors). --picture
draws the gain in Recall@100 over the share of targets that have training
queries, which is what follows the last '_' of a folder's name, a line for each
method and for each beginning of the names.
"""

import csv
import glob
import os

from absl import app
from absl import flags

from retrieval_jax import files
from retrieval_jax.comparison import plots
from retrieval_jax.comparison import tables
from retrieval_jax.jobs import adapt

_CSV = flags.DEFINE_string('csv', None, 'File to print, or to write first.')
_ADAPTED = flags.DEFINE_string('adapted', '', 'Pattern of folders to gather.')
_PICTURE = flags.DEFINE_string('picture', '', 'Figure to draw.')
flags.mark_flag_as_required('csv')

_MEASURES = {'R@100': 'R@100', 'RR@10': 'MRR@10'}


def gather(pattern):
  """Yields a record for each method of each folder of the pattern."""
  folders = sorted(glob.glob(pattern))
  if not folders:
    raise app.UsageError(f'--adapted={pattern}: no such folder.')
  for folder in folders:
    facts = files.read_json(os.path.join(folder, 'results.json'))
    of_folder = {'folder': os.path.basename(folder),
                 'targets': facts['num_targets'],
                 'covered': facts['covered_targets'],
                 'pairs': facts['num_pairs'],
                 'test queries': facts['num_test_queries']}
    for method, report in facts['methods'].items():
      yield of_folder | {'method': method} | {
          measure: report['test'][measure] for measure in _MEASURES} | {
              f'{kind} of {measure}': value for measure in _MEASURES
              for kind, value in zip(('gain', 'error'),
                                     report.get('gain', {}).get(measure, ()))
          } | {'constants': ', '.join(
              f'{name} {value:g}' for name, value in
              report.get('constants', {}).items()
              if isinstance(value, float))}


def table(records):
  """Returns the records as a Markdown table, a line for each folder."""
  by_folder = {}
  for record in records:
    by_folder.setdefault(record['folder'], {})[record['method']] = record
  methods = list(dict.fromkeys(
      record['method'] for record in records if record['gain of R@100']))
  names = list(_MEASURES.values())
  header = ['', *names, *(f'{adapt.label(method)} {name}'
                          for method in methods for name in names)]
  lines = ['| ' + ' | '.join(header) + ' |', '|' + ' --- |' * len(header)]
  for folder, of in by_folder.items():
    cells = [folder, *(f'{float(of["encoder"][measure]):.3f}'
                       for measure in _MEASURES)]
    for method in methods:
      for measure in _MEASURES:
        cells.append(_gain(of[method], measure) if method in of else '')
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def draw(records, path):
  """Draws the gain of each method over the share of covered targets."""
  curves = {}
  for record in records:
    if record['gain of R@100']:
      kind, _, share = record['folder'].rpartition('_')
      curves.setdefault(f'{adapt.label(record["method"])}, {kind}', []).append(
          (float(share), 100 * float(record['gain of R@100'])))
  plots.lines(path, {name: sorted(points) for name, points in curves.items()},
              'share of targets with training queries',
              'gain in Recall@100, points')


def _gain(record, measure):
  gain, error = (100 * float(record[f'{kind} of {measure}'])
                 for kind in ('gain', 'error'))
  return f'{gain:+.1f} ± {1.96 * error:.1f}'


def main(argv):
  del argv
  if _ADAPTED.value:
    files.write_text(
        _CSV.value, tables.to_csv(list(gather(_ADAPTED.value))))
  with open(_CSV.value, newline='', encoding='utf-8') as file:
    records = list(csv.DictReader(file))
  print(table(records))
  if _PICTURE.value:
    draw(records, _PICTURE.value)


if __name__ == '__main__':
  app.run(main)
