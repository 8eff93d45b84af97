"""Compares runs query by query: differences and their intervals.

  python -m experiments.results.paired --split=test --against=RUN --runs=A,B

For each of --runs a line of a Markdown table: its MRR@10 and R@20 and how far
they are above those of --against, in points, with 95% intervals (1.96 standard
errors of the mean over the queries of the split, which both have answered). It
reads SPLIT.run of all folders. An interval over queries says nothing about
seeds.
"""

import os

from absl import app
from absl import flags
import numpy as np

from retrieval_jax import trained
from retrieval_jax.evaluation import measures as measures_lib
from retrieval_jax.evaluation import trec
from retrieval_jax.factory import datasets

_SPLIT = flags.DEFINE_string('split', 'test', 'Split to compare on.')
_AGAINST = flags.DEFINE_string('against', None, 'Folder of a run.')
_RUNS = flags.DEFINE_list('runs', None, 'Folders of runs.')
flags.mark_flags_as_required(['against', 'runs'])
_MEASURES = {'RR@10': 'MRR@10', 'R@20': 'R@20'}


def per_query(workdir, split):
  """Returns measure -> [Q] of a run, queries by id."""
  dataset = datasets.make_dataset(trained.read_config(workdir), training=False)
  qrels = dataset.qrels[split]
  judged = measures_lib.qrels_from_rows(
      qrels.query_rows, qrels.corpus_rows, qrels.grades, dataset.query_ids,
      dataset.corpus_ids)
  values = measures_lib.per_query(
      trec.read_run(os.path.join(workdir, f'{split}.run')), judged,
      tuple(_MEASURES))
  return {measure: np.array([of_query[name] for name in sorted(of_query)])
          for measure, of_query in values.items()}


def cell(values, others):
  """Returns 'mean, difference ± half width of its interval'."""
  differences = 100 * (others - values)
  width = 1.96 * differences.std(ddof=1) / np.sqrt(len(differences))
  return f'{others.mean():.4f}, {differences.mean():+.2f} ± {width:.2f}'


def main(argv):
  del argv
  first = per_query(_AGAINST.value, _SPLIT.value)
  print(f'| {_SPLIT.value}, against {os.path.basename(_AGAINST.value)} | ' +
        ' | '.join(_MEASURES.values()) + ' |')
  print('| --- |' + ' --- |' * len(_MEASURES))
  for other in _RUNS.value:
    found = per_query(other, _SPLIT.value)
    print(f'| {os.path.basename(other)} | ' + ' | '.join(
        cell(first[measure], found[measure]) for measure in _MEASURES) + ' |')


if __name__ == '__main__':
  app.run(main)
