"""Stochastic negative mining: the hardest of a uniform pool."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import scoring
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.samplers import proposals
from retrieval_jax.samplers import stateless


@dataclasses.dataclass(frozen=True)
class StochasticNegativeMining(stateless.Stateless):
  """Scores a uniform pool of rows and keeps each query's K highest.

  The pool is drawn once per step and shared by the batch (ours: it costs one
  gather of `pool_size` rows instead of B); repeated rows count once.

  Source: Reddi et al., AISTATS 2019 (top-k of a uniform sample).

  Attributes:
    num_negatives: K.
    pool_size: rows drawn, at least K.
  """
  num_negatives: int
  pool_size: int
  takes_few_rows = True

  def __post_init__(self):
    proposals.check_enough('pool_size', self.pool_size, self.num_negatives)

  def propose(self, state: tuple[()], key: jax.Array, request: types.Request,
              view: types.View) -> types.Proposal:
    """Returns the pool's K highest, hardest first; log_q is not defined."""
    del state
    live = jnp.maximum(tables.num_live(view.table), 1)
    ranks = jnp.sort(jax.random.randint(key, (self.pool_size,), 0, live))
    repeated = jnp.concatenate([jnp.zeros(1, bool), ranks[1:] == ranks[:-1]])
    pool = tables.live_rows(view.table, ranks)
    chosen = tables.take(view.table, pool)
    logits = view.scale * scoring.inner(
        'bd,ud->bu', request.queries, view, chosen)
    known = jnp.any(
        pool[None, :, None] == request.exclude_rows[:, None, :], axis=-1)
    allowed = ~known & ((chosen.ids >= 0) & ~repeated)[None, :]
    best, columns = jax.lax.top_k(
        jnp.where(allowed, logits, -jnp.inf), self.num_negatives)
    rows = jnp.where(jnp.isfinite(best), pool[columns], -1)
    return proposals.described(rows, jnp.zeros(rows.shape), request, view)

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    del capacity
    kept = num_queries * self.num_negatives  # scored again on their own
    return num_queries * self.pool_size + kept, self.pool_size + kept
