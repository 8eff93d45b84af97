"""Runs: what a system answered to each query."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Run:
  """The ranked passages of n queries, best first.

  Attributes:
    query_ids: n strings.
    ids: [n, k] object, corpus ids as strings; '' where fewer than k passages
      came back.
    scores: [n, k] float, higher is better; ignored where the id is ''.
  """
  query_ids: Sequence[str]
  ids: np.ndarray
  scores: np.ndarray

  def __post_init__(self) -> None:
    if (self.ids.ndim != 2 or self.ids.shape != self.scores.shape
        or len(self.ids) != len(self.query_ids)):
      raise ValueError(
          f'Expected ids [n, k] and scores [n, k] of n={len(self.query_ids)} '
          f'queries, got ids {self.ids.shape} and scores '
          f'{self.scores.shape}; pass one row per query id.')
    scores = self.scores[self.ids != '']
    if not np.isfinite(scores).all():
      raise ValueError(
          f'Expected finite scores, got {scores[~np.isfinite(scores)][0]}; the '
          'embeddings that made this run are not finite.')

  def rankings(self) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Yields (query id, its passages, their scores), empty places left out."""
    for query_id, ids, scores in zip(self.query_ids, self.ids, self.scores):
      live = ids != ''
      yield query_id, ids[live].tolist(), scores[live]

  def top(self, k: int) -> 'Run':
    """Returns the run cut to its first k columns."""
    return Run(self.query_ids, self.ids[:, :k], self.scores[:, :k])


def from_rows(query_ids: Sequence[str], rows: np.ndarray, scores: np.ndarray,
              corpus_ids: Sequence[str]) -> Run:
  """Returns the run whose passages are given as corpus rows.

  Args:
    query_ids: n strings.
    rows: [n, k] int, positions in `corpus_ids`, -1 where there is none.
    scores: [n, k] float.
    corpus_ids: N strings; only the rows that occur are read, so a sequence
      that lives on disk stays there.
  """
  rows, scores = np.asarray(rows), np.asarray(scores)
  seen, inverse = np.unique(rows, return_inverse=True)
  names = np.array(
      ['' if row < 0 else corpus_ids[int(row)] for row in seen], dtype=object)
  return Run(tuple(query_ids), names[inverse].reshape(rows.shape), scores)


def merge(query_ids: Sequence[str], parts: Sequence[tuple[np.ndarray, Run]]
          ) -> Run:
  """Returns the run of n queries whose answers are in several runs.

  Args:
    query_ids: n strings.
    parts: (places [m] int among the queries, run of these) each; a query is in
      one of them.
  """
  width = max((run.ids.shape[1] for _, run in parts), default=0)
  ids = np.full((len(query_ids), width), '', object)
  scores = np.full(ids.shape, -np.inf, np.float32)
  for places, run in parts:
    ids[places, :run.ids.shape[1]] = run.ids
    scores[places, :run.ids.shape[1]] = run.scores
  return Run(tuple(query_ids), ids, scores)


def to_rows(run: Run, corpus_ids: Iterable[str]) -> np.ndarray:
  """Returns the corpus rows [n, k] int32 of a run, -1 where there is none.

  Args:
    run: what `from_rows` made.
    corpus_ids: N strings, of which those that occur are held.

  Raises:
    ValueError: if one that occurs is not among them.
  """
  names, inverse = np.unique(run.ids.astype(str), return_inverse=True)
  wanted = set(names.tolist())
  rows = {name: row for row, name in enumerate(corpus_ids) if name in wanted}
  rows[''] = -1
  unknown = wanted - rows.keys()
  if unknown:
    raise ValueError(
        f'Expected a run of this corpus, got {len(unknown)} ids of another, '
        f'such as {min(unknown)!r}.')
  of_name = np.array([rows[name] for name in names.tolist()], np.int32)
  return of_name[inverse].reshape(run.ids.shape)


def drop_self_matches(run: Run) -> Run:
  """Returns the run without the passages whose id equals their query's id.

  Columns are not refilled: search for one passage more than you need.
  """
  own = run.ids == np.array(run.query_ids, dtype=object)[:, None]
  order = np.argsort(own, axis=1, kind='stable')  # dropped places go last
  ids = np.where(own, '', run.ids)
  return Run(run.query_ids, np.take_along_axis(ids, order, axis=1),
             np.take_along_axis(run.scores, order, axis=1))
