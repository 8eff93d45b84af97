"""No drawn negatives: the in-batch baseline."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import types
from retrieval_jax.samplers import stateless


@dataclasses.dataclass(frozen=True)
class NoNegatives(stateless.Stateless):
  """Proposes nothing (K = 0), so that only in-batch columns are left."""
  num_negatives = 0
  draws_from_memory = False
  reads_embeddings = False

  def propose(self, state: tuple[()], key: jax.Array, request: types.Request,
              view: types.View) -> types.Proposal:
    """Returns a Proposal of shape [B, 0]."""
    del state, key, view
    size = request.queries.shape[0]
    empty = jnp.zeros((size, 0))
    none = empty.astype(jnp.int32)
    return types.Proposal(
        rows=none, ids=none, logits=empty, log_q=empty,
        log_z=jnp.full(size, jnp.nan), mask=empty.astype(bool))

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    del num_queries, capacity
    return 0, 0
