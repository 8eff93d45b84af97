"""What adapters are fitted to and measured by, read and checked."""

import dataclasses
import os

import jax
import numpy as np

from retrieval_jax import adapters
from retrieval_jax import sharding
from retrieval_jax.adapters import pairs as pairs_lib
from retrieval_jax.data import dataset as datasets
from retrieval_jax.data import embeddings as embeddings_lib


@dataclasses.dataclass(frozen=True)
class Problem:
  """What there is to learn from and to be measured by.

  Attributes:
    targets: [N, D] float32 or memory-mapped, norm 1.
    queries: of all splits, norm 1.
    pairs: to fit to.
    final_pairs: to fit to with chosen constants, `pairs` and the dev queries
      where those were held out of the training split.
    dev: judgements to choose by; None if nothing is chosen.
    test: judgements to report.
    mesh: devices.
  """
  targets: embeddings_lib.Embeddings
  queries: embeddings_lib.Embeddings
  pairs: adapters.Pairs
  final_pairs: adapters.Pairs
  dev: datasets.Qrels | None
  test: datasets.Qrels
  mesh: jax.sharding.Mesh


def read_problem(options) -> Problem:
  """Returns the Problem that `adapt.Options` name.

  Raises:
    ValueError: where files do not fit each other or a query is in two splits.
  """
  targets, queries = (
      _normalized(side, options.normalize)
      for side in embeddings_lib.read_both(options.embeddings))
  folder = options.qrels or os.path.join(options.embeddings, 'qrels')
  read = lambda split: embeddings_lib.read_qrels(
      folder, split, queries.ids, targets.ids)
  train, test = read(options.train_split), read(options.test_split)
  shared = np.intersect1d(train.queries(), test.queries())
  if len(shared):
    raise ValueError(
        f'{len(shared)} queries, the first {queries.ids[shared[0]]!r}, are in '
        f'--train_split={options.train_split} and in --test_split='
        f'{options.test_split}; an adapter would know their answers. Remove '
        'them from one.')
  dev, held_out = None, train
  if options.dev_split:
    dev = read(options.dev_split)
    both = np.intersect1d(dev.queries(), np.union1d(
        train.queries(), test.queries()))
    if len(both):
      raise ValueError(
          f'{len(both)} queries, the first {queries.ids[both[0]]!r}, of '
          f'--dev_split={options.dev_split} are in the training or test split; '
          'remove them from one.')
  elif options.dev_share:
    held_out, dev = _hold_out(train, options.dev_share, options.seed)
  extra = _extra_pairs(options, targets)
  make = lambda qrels: _with(
      _pairs_of(qrels, queries).sample(options.share, options.seed), extra)
  pairs = make(held_out)
  final = pairs if held_out is train else make(train)
  return Problem(targets, queries, pairs, final, dev, test,
                 sharding.make_mesh(options.num_devices))


def _normalized(side, wanted):
  """Returns Embeddings with rows of norm 1, or raises where they are not."""
  if wanted:
    vectors = pairs_lib.unit(np.asarray(side.vectors, np.float32))
    return dataclasses.replace(side, vectors=vectors)
  try:
    pairs_lib.check_unit(side.vectors, 'row')
  except ValueError as error:
    raise ValueError(f'{side.path}: {error}') from error
  return side


def _pairs_of(qrels, queries):
  """Returns the relevant pairs of a split; their queries, renumbered."""
  kept = qrels.grades > 0
  rows, places = np.unique(qrels.query_rows[kept], return_inverse=True)
  return adapters.Pairs(np.asarray(queries.vectors[rows], np.float32), places,
                        qrels.corpus_rows[kept])


def _with(pairs, extra):
  for more in extra:
    pairs = pairs.join(more)
  return pairs


def _extra_pairs(options, targets):
  """Returns Pairs of the vectors that --pairs names."""
  found = []
  row_of = {name: row for row, name in enumerate(targets.ids)}
  for name in options.pairs:
    path = (name if os.path.splitext(name)[1] else
            os.path.join(options.embeddings, f'pairs-{name}.npy'))
    vectors = embeddings_lib.read_matrix(path)
    ids_path = os.path.splitext(path)[0] + '_target_ids.txt'
    if not os.path.isfile(ids_path):
      raise ValueError(
          f'--pairs={name}: {ids_path} is missing; expected the target id of '
          f'each row of {path}, one per line.')
    with open(ids_path, encoding='utf-8', newline='\n') as file:
      ids = [line.rstrip('\r\n') for line in file]
    if len(ids) != len(vectors):
      raise ValueError(
          f'{ids_path}: {len(ids)} ids for {len(vectors)} rows of {path}.')
    unknown = next((i for i, name in enumerate(ids) if name not in row_of), -1)
    if unknown >= 0:
      raise ValueError(
          f'{ids_path}:{unknown + 1}: target {ids[unknown]!r} has no embedding '
          f'in {targets.path}.')
    side = _normalized(embeddings_lib.Embeddings(vectors, ids, path),
                       options.normalize)
    found.append(adapters.Pairs(
        np.asarray(side.vectors, np.float32), np.arange(len(ids)),
        np.array([row_of[name] for name in ids])))
  return found


def _hold_out(qrels, share, seed):
  """Returns (the rest, a random share of the queries) as Qrels."""
  if not 0 < share < 1:
    raise ValueError(f'--dev_share={share} must be between 0 and 1.')
  queries = qrels.queries()
  count = max(1, round(share * len(queries)))
  chosen = np.random.default_rng(seed).permutation(queries)[:count]
  inside = np.isin(qrels.query_rows, chosen)
  return tuple(datasets.Qrels(
      qrels.query_rows[part], qrels.corpus_rows[part], qrels.grades[part])
               for part in (~inside, inside))
