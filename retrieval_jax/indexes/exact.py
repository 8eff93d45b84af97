"""Exact search: every target is scored, on as many devices as there are."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import coarse
from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import table
from retrieval_jax.indexes import arguments
from retrieval_jax.types import Scan, TargetTable, View


@dataclasses.dataclass(frozen=True)
class Scanned:
  """Search on the devices that go over all rows of a corpus, in batches.

  Attributes:
    mesh: the mesh over which the corpus is sharded.
    chunk_rows: rows scored at a time, a multiple of `scoring.BLOCK_ROWS`.
    batch_size: queries searched at a time. Memory beyond the corpus is about
      batch_size * (chunk_rows + rows per shard / scoring.BLOCK_ROWS) floats.
  """
  mesh: jax.sharding.Mesh
  chunk_rows: int
  batch_size: int = 256

  def __post_init__(self) -> None:
    if self.batch_size < 1:
      raise ValueError(
          f'batch_size is {self.batch_size}, expected at least 1.')

  def search(self, state: Any, queries: np.ndarray, k: int,
             exclude: np.ndarray | None = None
             ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k targets of largest score with each query.

    Args:
      state: what `build` returned.
      queries: [n, D], any n.
      k: how many per query.
      exclude: [n, E] int32 corpus ids that must not come out, -1 for none.

    Returns:
      scores: [n, k] float32 in falling order, -inf where no target is left;
        inner products where the class says nothing else.
      ids: [n, k] int32 corpus ids, ties by lowest id, -1 where none is left.

    Raises:
      ValueError: if queries and exclude differ in length, queries and targets
        in dimension, or k < 1.
    """
    queries, exclude = arguments.checked(
        queries, k, exclude, self._dim(state))
    return self._by_batches(self._found, state, queries, exclude, k)

  def _dim(self, state: Any) -> int:
    """Returns D of the targets."""
    return state.embeddings.shape[1]

  def _view(self, state: Any) -> View:
    """Returns how a query sees the rows of a state."""
    raise NotImplementedError

  def _found(self, queries: jax.Array, state: Any, exclude: jax.Array, k: int
             ) -> tuple[jax.Array, jax.Array]:
    """Returns what `search` does, of a batch that is on the devices."""
    return _search(queries, state, exclude, k=k, index=self)

  def _by_batches(self, function: Callable, state: Any, queries: np.ndarray,
                  lists: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (scores, ids) [n, k] of `function`, batch by batch.

    Args:
      function: (queries, state, lists, k=k) to the same of a batch.
      state: what `build` returned.
      queries: [n, D].
      lists: [n, E] int32, ids for each query, padded with -1.
      k: results per query.
    """
    num_queries = len(queries)
    scores = np.full((num_queries, k), -np.inf, np.float32)
    ids = np.full((num_queries, k), -1, np.int32)
    # Powers of two, so that a varying n compiles a handful of programs.
    size = min(self.batch_size, 1 << max(num_queries - 1, 0).bit_length())
    put = functools.partial(
        sharding.put, where=sharding.replicated(self.mesh))
    for start in range(0, num_queries, size):
      stop = min(start + size, num_queries)
      pad = ((0, size - (stop - start)), (0, 0))
      found = function(
          put(np.pad(queries[start:stop], pad)), state,
          put(np.pad(lists[start:stop], pad, constant_values=-1)), k=k)
      scores[start:stop], ids[start:stop] = (
          np.asarray(a)[:stop - start] for a in found)
    return scores, ids


@dataclasses.dataclass(frozen=True)
class ExactIndex(Scanned):
  """Inner-product search by brute force, sharded over the rows of the corpus.

  Attributes: those of `Scanned`, and
    dtype: of the stored targets, 'float32' or 'bfloat16'.
    scan_dtype: what a search reads of all targets: 'float32', or copies in
      'bfloat16' or 'int8', see `coarse`, for the same results in less time.
  """
  dtype: str = 'float32'
  scan_dtype: str = 'float32'

  def __post_init__(self) -> None:
    super().__post_init__()
    coarse.check(self.scan_dtype, 'scan_dtype')

  def build(self, targets: np.ndarray) -> Any:
    """Returns the state for targets [N, D], numpy or memory-mapped."""
    return table.from_embeddings(
        targets, self.mesh, self.chunk_rows, self.dtype,
        scan_dtype=self.scan_dtype)

  def of_table(self, rows: TargetTable) -> Any:
    """Returns the state for the targets of a table; row i holds target i."""
    return table.with_coarse(rows, self.scan_dtype)

  def _view(self, state: Any) -> View:
    return View(state, scoring.uncorrected, jnp.ones(()),
                Scan(self.mesh, self.chunk_rows),
                fold=scoring.unmoved)


@functools.partial(jax.jit, static_argnames=('k', 'index'))
def _search(queries, state, exclude, *, k, index):
  # Row i of a corpus table holds id i, so rows need no translation.
  return scoring.top_k(queries, index._view(state), k, exclude_rows=exclude)


def sorted_best(scores: jax.Array, rows: jax.Array, k: int
                ) -> tuple[jax.Array, jax.Array]:
  """Returns the k best of listed rows, equal ones by lowest row.

  Args:
    scores: [B, n, g] float32, -inf for rows that must not come out.
    rows: [B, n, g] int32, each at most once.
    k: how many per query.

  Returns:
    scores: [B, k] float32 in falling order, -inf where no row is left.
    rows: [B, k] int32, -1 where none is left.
  """
  flat = lambda array: array.reshape(len(rows), -1)
  falling, rows = jax.lax.sort((-flat(scores), flat(rows)), num_keys=2)
  missing = max(k - rows.shape[1], 0)
  pad = lambda array, fill: jnp.pad(
      array, ((0, 0), (0, missing)), constant_values=fill)[:, :k]
  scores, rows = pad(-falling, -jnp.inf), pad(rows, -1)
  return scores, jnp.where(scores > -jnp.inf, rows, -1)
