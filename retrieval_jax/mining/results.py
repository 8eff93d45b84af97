"""Search results in batches of queries, and the negatives mined from them."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple, Protocol

import numpy as np

from retrieval_jax.data import dataset as datasets
from retrieval_jax.mining import negatives

Holds = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From query rows [n] and corpus rows [n, k] to [n, k] bool."""


class Results(Protocol):
  """What queries are answered with, and how their positives score."""

  def search(self, query_rows: np.ndarray, depth: int
             ) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids [n, depth] int32 and scores [n, depth], as negatives.choose.

    Args:
      query_rows: [n] int.
      depth: results wanted; fewer may come.
    """

  def score(self, query_rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Returns scores [n, P] float32 of ids [n, P], nan where the id is -1.

    -inf where the score is unknown, for the search did not return the target.
    """


@dataclasses.dataclass(frozen=True, eq=False)
class IndexResults:
  """Results of an index over embeddings.

  The index says which targets are the best; their scores are computed again
  here, like those of the positives. So a pair has one score, whatever index and
  however many devices found it, margins do not depend on these, and a copy of a
  positive scores exactly like it.

  Attributes:
    index: anything with `build` and `search`.
    queries: [Q, D] by query row, maybe mapped.
    targets: [N, D], maybe mapped.
    state: what `index.build(targets)` returned.
  """
  index: Any
  queries: np.ndarray
  targets: np.ndarray
  state: Any

  def search(self, query_rows: np.ndarray, depth: int
             ) -> tuple[np.ndarray, np.ndarray]:
    depth = min(depth, len(self.targets))
    _, ids = self.index.search(
        self.state, np.asarray(self.queries[query_rows], np.float32), depth)
    scores = self.score(query_rows, ids)
    scores[ids < 0] = -np.inf
    order = np.lexsort((ids, -scores))
    return (np.take_along_axis(ids, order, axis=1),
            np.take_along_axis(scores, order, axis=1))

  def score(self, query_rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    # Not a matmul, whose rounding depends on the place in the matrix.
    scores = np.einsum(
        'nd,nkd->nk', np.asarray(self.queries[query_rows], np.float32),
        np.asarray(self.targets[ids], np.float32))
    if not np.isfinite(scores).all():
      raise ValueError(
          'Expected finite scores, got nan or inf; the embeddings are not '
          'finite, so the encoder that made them is broken.')
    return np.where(ids < 0, np.float32(np.nan), scores)


@dataclasses.dataclass(frozen=True, eq=False)
class Listed:
  """Results that were found before: those of a run file, or of BM25.

  Attributes:
    ids: [Q, k] int32 by query row, -1 for none.
    scores: [Q, k] float32, in falling order.
  """
  ids: np.ndarray
  scores: np.ndarray

  def search(self, query_rows: np.ndarray, depth: int
             ) -> tuple[np.ndarray, np.ndarray]:
    return self.ids[query_rows, :depth], self.scores[query_rows, :depth]

  def score(self, query_rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    found = self.ids[query_rows]
    scores = np.full(ids.shape, -np.inf, np.float32)
    for column in range(ids.shape[1]):  # as many as a query has positives
      row, place = np.nonzero(found == ids[:, column, None])
      scores[row, column] = self.scores[query_rows[row], place]
    return np.where(ids < 0, np.float32(np.nan), scores)


class Mined(NamedTuple):
  """What mining found for n queries.

  Attributes:
    query_rows: [n] int32.
    positives: [n, P] int32 ids, -1 for none.
    positive_scores: [n, P] float32, nan for none, -inf where unknown.
    ids: [n, num_negatives] int32, -1 where there are fewer.
    scores: [n, num_negatives] float32, -inf where there are fewer.
    removed: filter -> results that it removed.
  """
  query_rows: np.ndarray
  positives: np.ndarray
  positive_scores: np.ndarray
  ids: np.ndarray
  scores: np.ndarray
  removed: Mapping[str, int]


def depth(qrels: datasets.Qrels, rules: negatives.Rules, *,
          own: np.ndarray | None = None,
          twins: Mapping[int, np.ndarray] | None = None,
          has_answer: Holds | None = None) -> int:
  """Returns how many results make sure that the window of ranks is full.

  rules.end + the most ids that are barred for any query; arguments as `mine`.
  How many have an answer nobody knows: ten times rules.end are looked at.
  """
  rows = qrels.queries()
  return (rules.end * (1 if has_answer is None else 10)
          + qrels.padded_known(rows[:1]).shape[1] + (own is not None)
          + max((len(x) for x in _copies(qrels, rows, twins)), default=0))


def mine(results: Results, qrels: datasets.Qrels, query_ids: Sequence[str],
         rules: negatives.Rules, *,
         batch_size: int, own: np.ndarray | None = None,
         twins: Mapping[int, np.ndarray] | None = None,
         has_answer: Holds | None = None,
         progress: Callable[[int], object] = lambda num: None) -> Mined:
  """Returns the negatives of every query of a split that has a positive.

  Memory beyond `results` and the answer is that of batch_size queries: their
  search, and with `IndexResults` batch_size * depth embeddings, see `depth`.

  Args:
    results: of the queries.
    qrels: of the split; targets of any grade but 0 are barred.
    query_ids: strings by query row.
    rules: negatives.Rules.
    batch_size: queries at a time; changes nothing but time and memory.
    own: [Q] int32 by query row, the target that is the query itself, -1 where
      none is; None bars none.
    twins: id -> ids of equal text; those of positives are barred. None bars
      none.
    has_answer: from query rows [n] and results [n, k] int to [n, k] bool, which
      of them hold an answer and are barred; None bars none.
    progress: called with the number of queries done since the last call.
  """
  query_rows = qrels.queries()
  copies = _copies(qrels, query_rows, twins)
  most = max(map(len, copies), default=0)
  wanted = depth(qrels, rules, own=own, twins=twins, has_answer=has_answer)
  ids = np.full((len(query_rows), rules.num_negatives), -1, np.int32)
  scores = np.full(ids.shape, -np.inf, np.float32)
  positives = qrels.padded_positives(query_rows)
  positive_scores = np.full(positives.shape, np.nan, np.float32)
  removed: dict[str, int] = {}
  for start in range(0, len(query_rows), batch_size):
    part = slice(start, start + batch_size)
    rows = query_rows[part]
    barred = {'positive': qrels.padded_known(rows)}
    if own is not None:
      barred['same id'] = own[rows][:, None]
    if twins is not None:
      barred['same text'] = _padded(copies[part], most)
    positive_scores[part] = results.score(rows, positives[part])
    found_ids, found_scores = results.search(rows, wanted)
    if has_answer is not None:
      barred['answer'] = np.where(has_answer(rows, found_ids), found_ids, -1)
    chosen = negatives.choose(
        found_ids, found_scores, barred=barred,
        positive_scores=positive_scores[part],
        query_ids=[query_ids[int(row)] for row in rows], rules=rules)
    ids[part], scores[part] = chosen.ids, chosen.scores
    for why, number in chosen.removed.items():
      removed[why] = removed.get(why, 0) + number
    progress(len(rows))
  return Mined(query_rows, positives, positive_scores, ids, scores, removed)


def _copies(qrels, query_rows, twins):
  """Returns, for each query, the ids whose text is that of a positive."""
  return [[int(twin) for one in qrels.positives(row)
           for twin in (twins or {}).get(int(one), ())] for row in query_rows]


def _padded(lists, width):
  """Returns the lists as [n, width] int32, padded with -1."""
  padded = np.full((len(lists), width), -1, np.int32)
  for row, values in enumerate(lists):
    padded[row, :len(values)] = values
  return padded
