"""Negatives drawn uniformly from the remembered targets."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.samplers import proposals
from retrieval_jax.samplers import stateless


@dataclasses.dataclass(frozen=True)
class Uniform(stateless.Stateless):
  """Draws K rows per query, independently and with replacement.

  A draw that hits a known positive is masked rather than redrawn, so that
  given the mask the rest is uniform over the live rows without the known
  positives.

  Attributes:
    num_negatives: K.
  """
  num_negatives: int
  gives = frozenset({'log_q'})
  reads_embeddings = False
  takes_few_rows = True

  def propose(self, state: tuple[()], key: jax.Array, request: types.Request,
              view: types.View) -> types.Proposal:
    """Returns uniform rows [B, K] with log_q = -log(rows to choose from)."""
    del state
    shape = (request.queries.shape[0], self.num_negatives)
    live = tables.num_live(view.table)
    ranks = jax.random.randint(key, shape, 0, jnp.maximum(live, 1))
    rows = tables.live_rows(view.table, ranks)
    excluded = jnp.sum(request.exclude_rows >= 0, axis=1, keepdims=True)
    log_q = -jnp.log(jnp.maximum(live - excluded, 1).astype(jnp.float32))
    return proposals.described(
        rows, jnp.broadcast_to(log_q, shape), request, view)

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    del capacity
    return (num_queries * self.num_negatives,) * 2
