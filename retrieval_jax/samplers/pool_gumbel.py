"""Negatives from a query's mined pool, and others from the whole memory."""

from collections.abc import Mapping
import dataclasses
from typing import ClassVar

import jax
from jax import numpy as jnp

from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.samplers import gumbel
from retrieval_jax.samplers import pool
from retrieval_jax.samplers import proposals


@dataclasses.dataclass(frozen=True)
class PoolGumbel:
  """Draws some of K as `Pool` does, and behind them the rest as `Gumbel`.

  What comes again in a query's draws is masked, so that each id is there once.
  All are scored by the memory, which must hold the corpus. Ours.

  Attributes:
    num_negatives: K.
    num_pooled: how many of them are of the pool, at least 1 and less than K.
    pool_order: as all that follow, of a `Pool`.
    pool_capacity: P.
    num_queries: Q.
    epoch_size: queries of an epoch of training.
  """
  num_negatives: int
  num_pooled: int
  pool_order: str
  pool_capacity: int
  num_queries: int
  epoch_size: int
  gives: ClassVar[frozenset[str]] = frozenset()
  draws_from_memory: ClassVar[bool] = True
  draws_from_pools: ClassVar[bool] = True
  on_host: ClassVar[bool] = False
  maintain_every: ClassVar[int] = 0
  takes_few_rows: ClassVar[bool] = False
  reads_embeddings: ClassVar[bool] = True

  def __post_init__(self):
    if not 1 <= self.num_pooled < self.num_negatives:
      raise ValueError(
          f'sampler.num_pooled={self.num_pooled} must be at least 1 and less '
          f'than sampler.num_negatives={self.num_negatives}; all of them are '
          "of the pool with sampler.name='pool', and none with 'gumbel'.")
    _ = self._pool  # which checks its options

  @property
  def _pool(self):
    return pool.Pool(self.num_pooled, self.pool_order, self.pool_capacity,
                     self.num_queries, self.epoch_size)

  @property
  def _gumbel(self):
    return gumbel.Gumbel(self.num_negatives - self.num_pooled)

  def init(self, key: jax.Array, view: types.View) -> pool.Pools:
    """Returns pools that are empty."""
    return self._pool.init(key, view)

  def propose(self, state: pool.Pools, key: jax.Array, request: types.Request,
              view: types.View) -> types.Proposal:
    """Returns K draws, those of the pool first; log_q and log_z are unknown."""
    pool_key, gumbel_key = jax.random.split(key)
    pooled = self._pool.propose(state, pool_key, request, view)
    if not self._pool.draws_from_memory:
      pooled = proposals.described(
          tables.rows_of(view.table, pooled.ids), pooled.log_q, request, view)
    drawn = self._gumbel.propose((), gumbel_key, request, view)
    rows, logits = (jnp.concatenate(parts, axis=1) for parts in (
        (pooled.rows, drawn.rows), (pooled.logits, drawn.logits)))
    again = jnp.any(jnp.tril(rows[:, :, None] == rows[:, None, :], -1), axis=2)
    return proposals.scored(
        jnp.where(again, -1, rows), jnp.where(again, -jnp.inf, logits), view,
        metrics=drawn.metrics)

  def update(self, state: pool.Pools, observation: types.Observation
             ) -> tuple[pool.Pools, Mapping[str, jax.Array]]:
    """Returns the pools as they are."""
    return self._pool.update(state, observation)

  def rebuild(self, state: pool.Pools, key: jax.Array, episode: types.Episode
              ) -> pool.Pools:
    """Returns the pools that were mined, or these if none were."""
    return self._pool.rebuild(state, key, episode)

  def diagnose(self, state: pool.Pools, request: types.Request,
               view: types.View) -> Mapping[str, jax.Array]:
    """Returns nothing: part of the draws is not by the softmax."""
    return self._pool.diagnose(state, request, view)

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    scored, corrected = self._gumbel.rows_scored(num_queries, capacity)
    pooled = self._pool.rows_scored(num_queries, capacity)[0]
    if not self._pool.draws_from_memory:
      pooled = num_queries * self.num_pooled
    return scored + pooled, corrected + pooled

  def rows_compared(self, capacity: int) -> tuple[int, int]:
    """Returns 0 and 0: pools are mined, and that is counted there."""
    return self._pool.rows_compared(capacity)
