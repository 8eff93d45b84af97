"""PEFA-XL: the encoder's score and that of the nearest training queries.

Chang et al., PEFA: parameter-free adapters for large-scale embedding-based
retrieval models, WSDM 2024.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np

from retrieval_jax.adapters import pairs as pairs_lib
from retrieval_jax.adapters import pefa_xs

NORMALISATIONS = ('mean', 'sum')
MISSING = ('zero', 'exact')
NEIGHBOURS = (16, 32, 64)
"""Values of k to choose from."""


Found = tuple[np.ndarray, np.ndarray]
"""Scores [n, k] and ids [n, k]."""


class XLState(NamedTuple):
  """What `PefaXL.build` makes.

  Attributes:
    targets: state of the index of targets.
    queries: state of the index of training queries.
    label_starts: [m + 1] int64, where the targets of each query start.
    label_rows: [P] int32, targets by query.
    vectors: [N, D], the targets themselves where missing='exact', else None.
    num_targets: N.
  """
  targets: Any
  queries: Any
  label_starts: np.ndarray
  label_rows: np.ndarray
  vectors: np.ndarray | None
  num_targets: int


@dataclasses.dataclass(frozen=True)
class PefaXL:
  """f(q, p_j) = lambda <q, p_j> + (1 - lambda) sum_i w <q, q_i> Y_ij.

  The sum is over the k training queries nearest to q. The candidates are the
  first `depth` targets by the encoder and all targets of those k queries; where
  lambda is 0 and missing is 'zero', as published, the latter alone.

  Attributes:
    index: index of the targets: anything with `build` and `search`.
    query_index: the same of the training queries; exact, or a graph for
      millions of them (published: HNSW with M = 32, efConstruction = 500,
      efSearch = 300).
    weight: lambda in [0, 1]; 1 is the encoder alone.
    num_neighbours: k.
    normalisation: 'mean', w = 1/k ("v0", used for NQ), or 'sum', w = 1 ("v1",
      used for TriviaQA).
    missing: the encoder's score of a candidate that only the training queries
      found: 'zero', as published, or 'exact', ours: it is computed, and with
      exact indexes the results are the first targets by f among all.
    depth: targets taken from the encoder; published: 500.
    batch_size: queries merged at a time; bounds memory.

  Raises:
    ValueError: for options out of range.
  """
  GRID: ClassVar[Mapping[str, Sequence[Any]]] = {
      'normalisation': NORMALISATIONS, 'num_neighbours': NEIGHBOURS,
      'weight': pefa_xs.LAMBDAS}

  index: Any
  query_index: Any
  weight: float
  num_neighbours: int
  normalisation: str = 'mean'
  missing: str = 'zero'
  depth: int = 500
  batch_size: int = 256

  def __post_init__(self):
    pefa_xs.check_weight(self.weight)
    if self.num_neighbours < 1:
      raise ValueError(
          f'num_neighbours (--neighbours) is {self.num_neighbours}, expected '
          'at least 1.')
    for option, allowed in (('normalisation', NORMALISATIONS),
                            ('missing', MISSING)):
      if getattr(self, option) not in allowed:
        raise ValueError(
            f'{option} is {getattr(self, option)!r}, expected one of '
            f'{list(allowed)}.')

  def build(self, targets: np.ndarray, pairs: pairs_lib.Pairs) -> XLState:
    """Returns the state for targets [N, D] and their training queries.

    Raises:
      ValueError: where targets and pairs do not fit each other, or there are
        fewer queries than neighbours are asked for.
    """
    pairs.check_targets(targets)
    self._check_neighbours(len(pairs.queries))
    return XLState(
        self.index.build(targets), self.query_index.build(pairs.queries),
        *pairs.labels, targets if self.missing == 'exact' else None,
        len(targets))

  def _check_neighbours(self, num_queries: int):
    if self.num_neighbours > num_queries:
      raise ValueError(
          f'num_neighbours (--neighbours) is {self.num_neighbours} nearest '
          f'training queries, but there are {num_queries}; lower it.')

  def search(self, state: XLState, queries: np.ndarray, k: int,
             exclude: np.ndarray | None = None
             ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k targets of largest f; arguments as of `ExactIndex`.

    Returns:
      scores: [n, k] float32 in falling order, -inf where no target is left.
      ids: [n, k] int32 corpus ids, ties by lowest id, -1 where none is left.
    """
    if self.weight == 1:  # the encoder's ranking, to the last bit
      return self.index.search(state.targets, queries, k, exclude)
    found = self.look_up(state, queries, k, exclude)
    return self.merge(state, queries, found, k, exclude)

  def look_up(self, state: XLState, queries: np.ndarray, k: int,
              exclude: np.ndarray | None = None) -> tuple[Found, Found]:
    """Returns what the index of targets and that of queries find, for `merge`.

    It depends on no option but `depth` and, as an upper bound, on
    `num_neighbours`: a grid over the others searches once.
    """
    depth = min(max(self.depth, k), state.num_targets)
    return (self.index.search(state.targets, queries, depth, exclude),
            self.query_index.search(state.queries, queries,
                                    self.num_neighbours))

  def merge(self, state: XLState, queries: np.ndarray,
            found: tuple[Found, Found], k: int,
            exclude: np.ndarray | None = None
            ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k targets of largest f among what `look_up` found."""
    self._check_neighbours(len(state.label_starts) - 1)
    queries = np.asarray(queries, np.float32)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    ids = np.full((len(queries), k), -1, np.int32)
    for first in range(0, len(queries), self.batch_size):
      part = slice(first, first + self.batch_size)
      of_targets, of_queries = ((s[part], i[part]) for s, i in found)
      scores[part], ids[part] = self._merge(
          state, queries[part], of_targets, of_queries, k,
          None if exclude is None else np.asarray(exclude)[part])
    return scores, ids

  def _merge(self, state, queries, of_targets, of_queries, k, exclude):
    """Merges one batch; entries are (query, target, score) in flat arrays."""
    rows, targets, similarities = self._votes(state, of_queries)
    if exclude is not None and exclude.shape[1]:
      kept = ~np.any(exclude[rows] == targets[:, None], axis=1)
      rows, targets, similarities = (
          a[kept] for a in (rows, targets, similarities))
    # Votes for one target of one query become one candidate.
    keys, places = np.unique(rows * state.num_targets + targets,
                             return_inverse=True)
    votes = np.bincount(places, similarities, len(keys))
    if self.normalisation == 'mean':
      votes /= self.num_neighbours
    encoder_scores, encoder_ids = of_targets
    # At lambda = 0 the encoder proposes nothing: zeros would rank by id.
    live = (encoder_ids >= 0) & (self.weight > 0 or self.missing == 'exact')
    encoder_keys = (np.arange(len(queries))[:, None] * state.num_targets
                    + encoder_ids)[live]
    everything = np.union1d(keys, encoder_keys)
    score = np.zeros(len(everything))
    known = np.zeros(len(everything), bool)
    at = np.searchsorted(everything, encoder_keys)
    score[at], known[at] = self.weight * encoder_scores[live], True
    rows, targets = np.divmod(everything, state.num_targets)
    if self.missing == 'exact':
      lost = np.flatnonzero(~known)
      score[lost] = self.weight * np.einsum(
          'nd,nd->n', queries[rows[lost]],
          np.asarray(state.vectors[targets[lost]], np.float32))
    score[np.searchsorted(everything, keys)] += (1 - self.weight) * votes
    return _first(rows, targets, score, len(queries), k)

  def _votes(self, state, found):
    """Returns query, target and similarity of each label of a neighbour."""
    scores, neighbours = (a[:, :self.num_neighbours] for a in found)
    live = neighbours >= 0
    rows = np.repeat(np.arange(len(scores)), live.sum(axis=1))
    scores, neighbours = scores[live], neighbours[live]
    starts = state.label_starts[neighbours]
    counts = state.label_starts[neighbours + 1] - starts
    ends = np.cumsum(counts)
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(
        ends - counts, counts)
    targets = state.label_rows[np.repeat(starts, counts) + within]
    return (np.repeat(rows, counts), targets.astype(np.int64),
            np.repeat(scores, counts))


def _first(rows, targets, scores, num_queries, k):
  """Returns the k best (scores, ids) of each row of flat candidates."""
  order = np.lexsort((targets, -scores, rows))
  rows, targets, scores = rows[order], targets[order], scores[order]
  place = np.arange(len(rows)) - np.searchsorted(rows, rows)
  kept = place < k
  best = np.full((num_queries, k), -np.inf, np.float32)
  ids = np.full((num_queries, k), -1, np.int32)
  best[rows[kept], place[kept]] = scores[kept]
  ids[rows[kept], place[kept]] = targets[kept]
  return best, ids
