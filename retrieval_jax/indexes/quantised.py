"""Exact search over quantised targets, with queries in floats or bits."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import products
from retrieval_jax import quantisation
from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import table
from retrieval_jax import types
from retrieval_jax.indexes import arguments
from retrieval_jax.indexes import exact

_LIST_ROWS = 16  # candidates gathered at a time for a query


@types.register
@dataclasses.dataclass(frozen=True)
class Int8State:
  """Attributes: table, of codes [M@data, D] int8; low, width, [D] float32."""
  table: types.TargetTable
  low: jax.Array
  width: jax.Array


@types.register
@dataclasses.dataclass(frozen=True)
class BinaryState:
  """Attributes: table, of bits [M@data, ceil(D / 8)] uint8; dim, D, static."""
  table: types.TargetTable
  dim: int = dataclasses.field(metadata={'static': True})


@dataclasses.dataclass(frozen=True)
class _Quantised(exact.Scanned):
  """What both have: candidates of another search can be scored again."""

  def rescore(self, state: Any, queries: np.ndarray, ids: np.ndarray, k: int
              ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k candidates of largest product with each float query.

    Args:
      state: what `build` returned.
      queries: [n, D].
      ids: [n, K] int32 corpus ids, such as another index found; -1 for none.
      k: how many per query, at most K of which there are.

    Returns:
      scores: [n, k] float32 in falling order, -inf where no candidate is left:
        inner products of the query and what the stored target stands for, of
        bits -1 and 1.
      ids: [n, k] int32, ties by lowest id, -1 where none is left.

    Raises:
      ValueError: if queries and ids differ in length, queries and targets in
        dimension, or k < 1.
    """
    queries, _ = arguments.checked(queries, k, None, self._dim(state))
    ids = np.asarray(ids, np.int32)
    if len(ids) != len(queries):
      raise ValueError(
          f'ids has {len(ids)} rows, expected one for each of the '
          f'{len(queries)} queries.')
    return self._by_batches(
        functools.partial(_rescored, index=self), state, queries, ids, k)


@dataclasses.dataclass(frozen=True)
class Int8Index(_Quantised):
  """Float queries against int8 targets: a quarter of the bytes of float32.

  A score is the inner product of the query, which is not quantised, with what
  the codes stand for, see `quantisation`; the ranges are those of the targets.
  That is the score of sentence-transformers' rescoring of int8, here of all
  targets, and, up to a constant of the query, that of faiss's
  IndexScalarQuantizer with QT_8bit.

  Attributes: those of `exact.Scanned`.
  """

  def build(self, targets: np.ndarray) -> Int8State:
    """Returns the state for targets [N, D], numpy or memory-mapped.

    Raises:
      ValueError: if a target is not finite, or there is none.
    """
    ranges = quantisation.ranges(targets)
    return Int8State(
        table.from_embeddings(
            quantisation.to_int8(targets, ranges), self.mesh, self.chunk_rows,
            np.int8),
        *sharding.put((ranges[0], quantisation.steps(ranges)),
                      sharding.replicated(self.mesh)))

  def _dim(self, state):
    return len(state.low)

  def _view(self, state):
    # <x, low + (code + 128) width> = <x width, code> + <x, low + 128 width>:
    # no code is turned back.
    return types.View(
        state.table, scoring.uncorrected, jnp.ones(()),
        types.Scan(self.mesh, self.chunk_rows), fold=lambda queries: (
            queries * state.width[None], products.inner(
                'bd,d->b', queries, state.low + 128 * state.width)))


@dataclasses.dataclass(frozen=True)
class BinaryIndex(_Quantised):
  """Signs of queries against those of targets, by Hamming distance.

  A score is minus the number of dimensions whose signs differ, and so is the
  same for many targets. `rescore` ranks the best of them by the float query, as
  does an Int8Index of the same targets. Bits are unpacked a chunk at a time and
  multiplied as -1 and 1, which is exact; on a CPU that takes longer than a
  search in floats, and faiss's IndexBinaryFlat finds the same faster.

  Attributes: those of `exact.Scanned`.
  """

  def build(self, targets: np.ndarray) -> BinaryState:
    """Returns the state for targets [N, D], numpy or memory-mapped."""
    return BinaryState(
        table.from_embeddings(
            quantisation.to_binary(targets), self.mesh, self.chunk_rows,
            np.uint8),
        targets.shape[1])

  def _dim(self, state):
    return state.dim

  def _view(self, state):
    return types.View(
        state.table, functools.partial(_signs, dim=state.dim), jnp.ones(()),
        types.Scan(self.mesh, self.chunk_rows))

  def _found(self, queries, state, exclude, k):
    return _nearest(queries, state, exclude, k=k, index=self)


def _signs(rows, *, dim):
  """Returns [..., D] float32 of -1 and 1, of a slice of packed bits."""
  bits = jnp.unpackbits(rows.embeddings, axis=-1, count=dim)
  return 2. * bits.astype(jnp.float32) - 1.


@functools.partial(jax.jit, static_argnames=('k', 'index'))
def _nearest(queries, state, exclude, *, k, index):
  # Of D signs h differ, so that <s, s'> = D - 2 h.
  view = index._view(state)._replace(scale=jnp.float32(0.5))
  found, rows = scoring.top_k(
      jnp.where(queries > 0, 1., -1.), view, k, exclude_rows=exclude)
  return found - state.dim / 2, rows


@functools.partial(jax.jit, static_argnames=('k', 'index'))
def _rescored(queries, state, ids, *, k, index):
  missing = -ids.shape[1] % _LIST_ROWS
  rows = jnp.pad(ids, ((0, 0), (0, missing)), constant_values=-1).reshape(
      len(ids), -1, _LIST_ROWS)
  found = scoring.logits_of(queries, index._view(state), rows)
  return exact.sorted_best(found, rows, k)
