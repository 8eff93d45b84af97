"""Search by faiss on the host: of every target, or along a graph (HNSW)."""

from collections.abc import Iterator
import contextlib
import dataclasses
from typing import Any

import numpy as np

from retrieval_jax.indexes import arguments

_ADDED_ROWS = 65536  # copied to float32 at a time: targets may be mapped

_PAIRS = 20
"""Queries below which a batch is scored pair by pair rather than as a matrix.

faiss 1.15 does so below 128,000 numbers of queries, 334 of 384, which on few
cores takes seven times as long (issue 4925; pull request 5109 lowers it again).
Before, it was this.
"""


@dataclasses.dataclass(frozen=True)
class FaissFlat:
  """Inner-product search by the package faiss, the extra `faiss`.

  Finds what `ExactIndex` finds, up to the rounding of a score and up to which
  of several equal scores are the last to be kept.

  Attributes:
    batch_size: queries searched at a time. Memory beyond the index is about
      batch_size * (k + E) results.
  """
  batch_size: int = 256

  def __post_init__(self) -> None:
    # faiss 1.15.1 crashes the process for fewer than two links.
    for name, value in dataclasses.asdict(self).items():
      least = 2 if name == 'links' else 1
      if value < least:
        raise ValueError(f'{name} is {value}, expected at least {least}.')

  def _empty(self, faiss: Any, dim: int) -> Any:
    """Returns faiss's index without targets."""
    return faiss.IndexFlatIP(dim)

  def build(self, targets: np.ndarray) -> Any:
    """Returns the state, a faiss index, for targets [N, D], maybe mapped.

    Raises:
      ModuleNotFoundError: without faiss; the message says how to install it.
    """
    try:
      import faiss  # Optional: only this method needs it.
    except ModuleNotFoundError as error:
      raise ModuleNotFoundError(
          'This index needs the package faiss, which is not installed; '
          "pip install 'retrieval_jax[faiss]', or take the exact index."
      ) from error
    index = self._empty(faiss, targets.shape[1])
    for start in range(0, len(targets), _ADDED_ROWS):
      index.add(np.ascontiguousarray(
          targets[start:start + _ADDED_ROWS], np.float32))
    return index

  def search(self, state: Any, queries: np.ndarray, k: int,
             exclude: np.ndarray | None = None
             ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k targets of largest inner product with each query.

    k + E are fetched, of which the excluded ones are dropped, so that k are
    left however many of the excluded ones were among the best.

    Args:
      state: what `build` returned.
      queries: [n, D], any n.
      k: how many per query.
      exclude: [n, E] int32 corpus ids that must not come out, -1 for none.

    Returns:
      scores: [n, k] float32 in falling order, -inf where no target is left.
      ids: [n, k] int32 corpus ids, ties by lowest id among the fetched, -1
        where none is left.

    Raises:
      ValueError: if queries and exclude differ in length, queries and targets
        in dimension, or k < 1.
    """
    queries, exclude = arguments.checked(queries, k, exclude, state.d)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    ids = np.full((len(queries), k), -1, np.int32)
    depth = min(k + exclude.shape[1], state.ntotal)
    for start in range(0, len(queries), self.batch_size):
      part = slice(start, start + self.batch_size)
      with _as_a_matrix():
        found, rows = state.search(np.ascontiguousarray(queries[part]), depth)
      gone = (rows < 0) | arguments.listed(rows, exclude[part])
      found[gone], rows[gone] = -np.inf, -1
      best = np.lexsort((rows, -found, gone))[:, :k]
      width = best.shape[1]
      scores[part, :width] = np.take_along_axis(found, best, axis=1)
      ids[part, :width] = np.take_along_axis(rows, best, axis=1)
    return scores, ids


@contextlib.contextmanager
def _as_a_matrix() -> Iterator[None]:
  """Lets faiss multiply matrices for all but a few queries, and resets that."""
  import faiss
  before = faiss.cvar.distance_compute_blas_threshold
  faiss.cvar.distance_compute_blas_threshold = _PAIRS
  try:
    yield
  finally:
    faiss.cvar.distance_compute_blas_threshold = before


@dataclasses.dataclass(frozen=True)
class FaissHNSW(FaissFlat):
  """Search by faiss along a graph of neighbours, which finds most of the best.

  The graph depends on the order in which threads add to it: set
  OMP_NUM_THREADS=1 for the same one every time.

  Attributes:
    links: M of HNSW, neighbours of a target in the graph (twice as many on its
      lowest level).
    ef_construction: candidates looked at when a target is added.
    ef_search: candidates looked at in a search; faiss takes at least as many as
      results are asked for.

  Source: Malkov and Yashunin, TPAMI 2020; the names are faiss's.
  """
  links: int = 32
  ef_construction: int = 40
  ef_search: int = 64

  def _empty(self, faiss: Any, dim: int) -> Any:
    """Returns faiss's index without targets."""
    index = faiss.IndexHNSWFlat(dim, self.links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = self.ef_construction
    index.hnsw.efSearch = self.ef_search
    return index
