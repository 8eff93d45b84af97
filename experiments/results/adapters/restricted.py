"""Keeps the targets that have training queries, as NQ-320K and TriviaQA do.

  python -m experiments.results.adapters.restricted --embeddings=DIR --out=DIR \
      [--train_split=train] [--covered_share=0.5] [--seed=0]

A folder of experiments.embed becomes another in which every target has a
training query: other targets go, with the judgements of them, the queries that
have no judgement left and the further pairs (pairs-NAME.npy) of them. With
--covered_share the training queries of the other targets go, and the targets
stay: the share that is covered is a choice then, and the corpus and the test
queries are the same whatever it is. Smaller shares are parts of larger ones.
"""

import glob
import os

from absl import app
from absl import flags
import numpy as np

from retrieval_jax import processes
from retrieval_jax.data import dataset
from retrieval_jax.data import embeddings as embeddings_lib

_EMBEDDINGS = flags.DEFINE_string('embeddings', None, 'Folder to read.')
_OUT = flags.DEFINE_string('out', None, 'Folder to write; must not exist.')
_TRAIN = flags.DEFINE_string('train_split', 'train', 'Split that covers.')
_COVERED = flags.DEFINE_float(
    'covered_share', 1., 'Share of the targets that keep their training '
    'queries.', lower_bound=0., upper_bound=1.)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the choice of covered targets.')
flags.mark_flags_as_required(['embeddings', 'out'])


def main(argv):
  del argv
  source = _EMBEDDINGS.value
  targets, queries = embeddings_lib.read_both(source)
  qrels = os.path.join(source, 'qrels')
  judged = {split: embeddings_lib.read_qrels(
      qrels, split, queries.ids, targets.ids)
            for split in embeddings_lib.read_splits(qrels)}
  train = judged[_TRAIN.value]
  rows = np.unique(train.corpus_rows[train.grades > 0])
  drawn = np.random.default_rng(_SEED.value).permutation(rows)
  covered = drawn[:round(_COVERED.value * len(rows))]
  with processes.new_folder(_OUT.value) as folder:
    os.makedirs(os.path.join(folder, 'qrels'))
    _write(folder, 'targets', 'target_ids.txt', targets, rows)
    asked = []
    for split, of_split in judged.items():
      kept = np.isin(of_split.corpus_rows,
                     covered if split == _TRAIN.value else rows)
      left = dataset.Qrels(of_split.query_rows[kept],
                           of_split.corpus_rows[kept], of_split.grades[kept])
      asked.append(np.unique(left.query_rows))
      embeddings_lib.write_qrels(os.path.join(folder, 'qrels'), split, left,
                                 queries.ids, targets.ids)
      print(f'{split}: {len(asked[-1]):,} of {len(of_split.queries()):,} '
            'queries.')
    _write(folder, 'queries', 'query_ids.txt', queries,
           np.unique(np.concatenate(asked)))
    for path in glob.glob(os.path.join(source, 'pairs-*.npy')):
      _write_pairs(folder, path, {targets.ids[row] for row in rows})
  print(f'{_OUT.value}: {len(rows):,} of {len(targets.ids):,} targets, '
        f'{len(covered):,} of them with training queries.')


def _write(folder, side, ids, embeddings, rows):
  np.save(os.path.join(folder, f'{side}.npy'), embeddings.vectors[rows])
  embeddings_lib.write_ids(os.path.join(folder, ids),
                           [embeddings.ids[row] for row in rows])


def _write_pairs(folder, path, kept):
  """Copies those of the further pairs whose target is kept."""
  ids_path = os.path.splitext(path)[0] + '_target_ids.txt'
  ids = embeddings_lib.read_ids(ids_path, distinct=False)
  rows = [row for row, name in enumerate(ids) if name in kept]
  np.save(os.path.join(folder, os.path.basename(path)),
          embeddings_lib.read_matrix(path)[rows])
  embeddings_lib.write_ids(os.path.join(folder, os.path.basename(ids_path)),
                           [ids[row] for row in rows])


if __name__ == '__main__':
  app.run(main)
