"""No drawn negatives: the in-batch baseline."""

import dataclasses

from jax import numpy as jnp

from retrieval_jax import types


@dataclasses.dataclass(frozen=True)
class NoNegatives:
  """Proposes nothing (K = 0), so that only in-batch columns are left."""
  num_negatives = 0
  gives_log_q = False
  gives_log_z = False
  reads_embeddings = False

  def propose(self, key, queries, exclude_rows, view):
    """Returns a Proposal of shape [B, 0]."""
    del key, exclude_rows, view
    empty = jnp.zeros((queries.shape[0], 0))
    none = empty.astype(jnp.int32)
    return types.Proposal(
        rows=none, ids=none, logits=empty, log_q=empty,
        log_z=jnp.full(queries.shape[:1], jnp.nan), mask=empty.astype(bool))

  def rows_scored(self, num_queries, capacity):
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    del num_queries, capacity
    return 0, 0
