"""What adapters are fitted to and measured by: embeddings and judgements."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os

import jax
import numpy as np

from retrieval_jax import sharding
from retrieval_jax.adapters import pairs as pairs_lib
from retrieval_jax.data import dataset as datasets
from retrieval_jax.data import dropped as dropped_lib
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
    dropped: split -> what was left out of it, where it was read leniently.
  """
  targets: embeddings_lib.Embeddings
  queries: embeddings_lib.Embeddings
  pairs: pairs_lib.Pairs
  final_pairs: pairs_lib.Pairs
  dev: datasets.Qrels | None
  test: datasets.Qrels
  mesh: jax.sharding.Mesh
  dropped: Mapping[str, dropped_lib.Counts]


def read(embeddings: str, *, qrels: str | None = None,
         train_split: str = 'train', dev_split: str = 'dev',
         test_split: str = 'test', share: float = 1., dev_share: float = 0.,
         pairs: Sequence[str] = (), normalize: bool = False,
         num_devices: int | None = None, seed: int = 0,
         lenient: bool = False) -> Problem:
  """Returns the Problem of a folder of embeddings.

  Args:
    embeddings: folder of targets, queries and ids, see data/embeddings.py.
    qrels: folder of SPLIT.tsv; embeddings/qrels by default.
    train_split: judgements to fit to.
    dev_split: judgements to choose by; '' for none.
    test_split: judgements to report.
    share: share of the training queries that is used at all.
    dev_share: share of these that is held out to choose by, where there is no
      dev_split.
    pairs: names of further pairs to fit to: NAME for pairs-NAME.npy of the
      folder, or a file, with the target ids beside it.
    normalize: whether to divide all vectors by their norms.
    num_devices: devices to use; all by default.
    seed: of both shares.
    lenient: whether what is wrong with judgements is dropped and counted; else
      it is refused.

  Raises:
    ValueError: where files do not fit each other or a query is in two splits.
  """
  targets, queries = (_normalized(side, normalize)
                      for side in embeddings_lib.read_both(embeddings))
  folder = qrels or os.path.join(embeddings, 'qrels')
  dropped: dict[str, dropped_lib.Counts] = {}
  judged = lambda split: embeddings_lib.read_qrels(
      folder, split, queries.ids, targets.ids,
      dropped=dropped if lenient else None)
  train, test = judged(train_split), judged(test_split)
  shared = np.intersect1d(train.queries(), test.queries())
  if len(shared):
    raise ValueError(
        f'{len(shared)} queries, the first {queries.ids[shared[0]]!r}, are in '
        f'--train_split={train_split} and in --test_split={test_split}; an '
        'adapter would know their answers. Remove them from one.')
  if not 0 < share <= 1:
    raise ValueError(f'--share={share}, expected a number in (0, 1].')
  dev = None
  if dev_split:
    if dev_share:
      raise ValueError(
          f'--dev_share={dev_share} holds training queries out to choose by, '
          f'but there is --dev_split={dev_split!r} for that; give one of the '
          "two (--dev_split='').")
    dev = judged(dev_split)
    both = np.intersect1d(dev.queries(), np.union1d(
        train.queries(), test.queries()))
    if len(both):
      raise ValueError(
          f'{len(both)} queries, the first {queries.ids[both[0]]!r}, of '
          f'--dev_split={dev_split} are in the training or test split; remove '
          'them from one.')
  train, _ = _divided(train, share, seed)
  fitted = train
  if dev_share:
    if not 0 < dev_share < 1:
      raise ValueError(f'--dev_share={dev_share} must be between 0 and 1.')
    dev, fitted = _divided(train, dev_share, seed)
  extra = _extra_pairs(embeddings, pairs, targets, normalize)
  make = lambda qrels: _with(_pairs_of(qrels, queries), extra)
  chosen_by = make(fitted)
  final = chosen_by if fitted is train else make(train)
  return Problem(targets, queries, chosen_by, final, dev, test,
                 sharding.make_mesh(num_devices), dropped)


def _normalized(side: embeddings_lib.Embeddings, wanted: bool
                ) -> embeddings_lib.Embeddings:
  """Returns Embeddings with rows of norm 1, or raises where they are not."""
  if wanted:
    vectors = pairs_lib.unit(np.asarray(side.vectors, np.float32))
    return dataclasses.replace(side, vectors=vectors)
  try:
    pairs_lib.check_unit(side.vectors, 'row')
  except ValueError as error:
    raise ValueError(f'{side.path}: {error}') from error
  return side


def _pairs_of(qrels: datasets.Qrels, queries: embeddings_lib.Embeddings
              ) -> pairs_lib.Pairs:
  """Returns the relevant pairs of a split, over none but its queries."""
  kept = qrels.grades > 0
  rows, places = np.unique(qrels.query_rows[kept], return_inverse=True)
  return pairs_lib.Pairs(np.asarray(queries.vectors[rows], np.float32), places,
                        qrels.corpus_rows[kept])


def _with(pairs: pairs_lib.Pairs, extra: Iterable[pairs_lib.Pairs]
          ) -> pairs_lib.Pairs:
  for more in extra:
    pairs = pairs.join(more)
  return pairs


def _extra_pairs(folder: str, names: Sequence[str],
                 targets: embeddings_lib.Embeddings, normalize: bool
                 ) -> list[pairs_lib.Pairs]:
  """Returns Pairs of the vectors that --pairs names."""
  found = []
  row_of = {name: row for row, name in enumerate(targets.ids)}
  for name in names:
    path = (name if os.path.splitext(name)[1] else
            os.path.join(folder, f'pairs-{name}.npy'))
    vectors = embeddings_lib.read_matrix(path)
    ids_path = os.path.splitext(path)[0] + '_target_ids.txt'
    if not os.path.isfile(ids_path):
      raise ValueError(
          f'--pairs={name}: {ids_path} is missing; expected the target id of '
          f'each row of {path}, one per line.')
    ids = embeddings_lib.read_ids(ids_path, distinct=False)
    if len(ids) != len(vectors):
      raise ValueError(
          f'{ids_path}: {len(ids)} ids for {len(vectors)} rows of {path}.')
    unknown = next((i for i, name in enumerate(ids) if name not in row_of), -1)
    if unknown >= 0:
      raise ValueError(
          f'{ids_path}:{unknown + 1}: target {ids[unknown]!r} has no embedding '
          f'in {targets.path}.')
    side = _normalized(embeddings_lib.Embeddings(vectors, ids, path),
                       normalize)
    found.append(pairs_lib.Pairs(
        np.asarray(side.vectors, np.float32), np.arange(len(ids)),
        np.array([row_of[name] for name in ids])))
  return found


def _divided(qrels: datasets.Qrels, share: float, seed: int
             ) -> tuple[datasets.Qrels, datasets.Qrels]:
  """Returns the judgements of a random share of the queries, and the rest.

  The queries of a smaller share are among those of a larger one; there is at
  least one.
  """
  queries = qrels.queries()
  count = max(1, round(share * len(queries)))
  chosen = np.random.default_rng(seed).permutation(queries)[:count]
  inside = np.isin(qrels.query_rows, chosen)
  first, rest = (datasets.Qrels(
      qrels.query_rows[part], qrels.corpus_rows[part], qrels.grades[part])
                 for part in (inside, ~inside))
  return first, rest
