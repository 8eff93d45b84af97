"""What adapters learn from: query embeddings and the targets they belong to."""

from collections.abc import Iterator
import dataclasses
import functools

import numpy as np

# How far from 1 a norm may be: float16 rows are within 1e-3 of it.
UNIT_TOLERANCE = 2e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Queries, and the sparse label matrix Y [m, N] of their positives.

  A pair may occur several times: Y may hold numbers above one.

  Attributes:
    queries: [m, D] float, rows of norm 1.
    query_rows: [P] int, rows of `queries`.
    target_rows: [P] int, the targets they belong to.

  Raises:
    ValueError: where there is no pair, shapes or rows do not fit, or a query
      is not of norm 1.
  """
  queries: np.ndarray
  query_rows: np.ndarray
  target_rows: np.ndarray

  def __post_init__(self):
    if self.queries.ndim != 2:
      raise ValueError(
          f'queries has shape {self.queries.shape}, expected [m, D].')
    if self.query_rows.shape != self.target_rows.shape or (
        self.query_rows.ndim != 1):
      raise ValueError(
          f'query_rows {self.query_rows.shape} and target_rows '
          f'{self.target_rows.shape} must be two lists of one length.')
    if not len(self.query_rows):
      raise ValueError(
          'Expected pairs of a query and its target to fit an adapter to, got '
          'none; is it the right split?')
    least, most = self.query_rows.min(), self.query_rows.max()
    if least < 0 or most >= len(self.queries) or self.target_rows.min() < 0:
      raise ValueError(
          f'query_rows reach from {least} to {most}, expected rows of the '
          f'{len(self.queries)} queries; target_rows start at '
          f'{self.target_rows.min()}, expected at least 0.')
    check_unit(self.queries, 'training query')

  @property
  def dim(self) -> int:
    return self.queries.shape[1]

  def join(self, other: 'Pairs') -> 'Pairs':
    """Returns the pairs of both, queries of `other` after ours."""
    return Pairs(
        np.concatenate([self.queries, other.queries]),
        np.concatenate([self.query_rows, other.query_rows + len(self.queries)]),
        np.concatenate([self.target_rows, other.target_rows]))

  def check_targets(self, targets: np.ndarray) -> None:
    """Raises ValueError unless `targets` [N, D] has all rows, of norm 1."""
    if targets.shape[1] != self.dim:
      raise ValueError(
          f'The targets have {targets.shape[1]} dimensions, the training '
          f'queries {self.dim}; embed both by one encoder.')
    if self.target_rows.max() >= len(targets):
      raise ValueError(
          f'target_rows reach to {self.target_rows.max()}, but there are '
          f'{len(targets)} targets.')
    check_unit(targets, 'target')

  @functools.cached_property
  def labels(self) -> tuple[np.ndarray, np.ndarray]:
    """Y by query: starts [m + 1] int64 and target rows [P] int32."""
    return _grouped(self.query_rows, self.target_rows, len(self.queries))

  def covered(self, num_targets: int) -> np.ndarray:
    """Returns whether each target has a training query: [N] bool."""
    found = np.zeros(num_targets, bool)
    found[self.target_rows] = True
    return found

  def sums(self, num_targets: int, chunk_rows: int
           ) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, rows [C, D] float32 of Y^T Q), chunk by chunk.

    A row is the sum of the embeddings of a target's queries, zero where it has
    none. At most `chunk_rows` sums, and as many queries, are in memory at once.
    """
    order = np.argsort(self.target_rows, kind='stable')
    targets, rows = self.target_rows[order], self.query_rows[order]
    for first in range(0, num_targets, chunk_rows):
      last = min(first + chunk_rows, num_targets)
      total = np.zeros((last - first, self.dim), np.float32)
      start, stop = np.searchsorted(targets, (first, last))
      for i in range(start, stop, chunk_rows):
        j = min(i + chunk_rows, stop)
        unique, starts = np.unique(targets[i:j], return_index=True)
        total[unique - first] += np.add.reduceat(
            self.queries[rows[i:j]].astype(np.float32), starts)
      yield first, total


def unit(vectors: np.ndarray) -> np.ndarray:
  """Returns vectors [n, D] divided by their norms; zero vectors stay zero."""
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.where(norms > 0, norms, 1)


def check_unit(vectors: np.ndarray, name: str,
               chunk_rows: int = 65536) -> None:
  """Raises ValueError at the first that is not finite or not of norm 1."""
  for first in range(0, len(vectors), chunk_rows):
    chunk = np.asarray(vectors[first:first + chunk_rows], np.float32)
    norms = np.linalg.norm(chunk, axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= UNIT_TOLERANCE))
    if len(wrong):
      raise ValueError(
          f'The embedding of {name} {first + wrong[0]} has norm '
          f'{norms[wrong[0]]:.6g}, expected 1: adapters mix queries and '
          'targets, which takes vectors on the unit sphere. Divide the rows by '
          'their norms (--normalize).')


def _grouped(keys: np.ndarray, values: np.ndarray, num_keys: int
             ) -> tuple[np.ndarray, np.ndarray]:
  order = np.argsort(keys, kind='stable')
  counts = np.bincount(keys, minlength=num_keys)
  return (np.concatenate([[0], np.cumsum(counts)]),
          np.asarray(values[order], np.int32))
