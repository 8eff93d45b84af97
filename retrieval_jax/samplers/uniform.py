"""Negatives drawn uniformly from the remembered targets."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import table as tables
from retrieval_jax import types


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Draws K rows per query, independently and with replacement.

  A draw that hits a known positive is masked rather than redrawn, so that
  given the mask the rest is uniform over the M_live - (known positives) rows.

  Attributes:
    num_negatives: K.
  """
  num_negatives: int
  gives_log_q = True
  gives_log_z = False
  reads_embeddings = False

  def propose(self, key, queries, exclude_rows, view):
    """Returns uniform rows [B, K] with log_q = -log(rows to choose from)."""
    shape = (queries.shape[0], self.num_negatives)
    live = tables.num_live(view.table)
    rows = jax.random.randint(key, shape, 0, jnp.maximum(live, 1))
    excluded = jnp.sum(exclude_rows >= 0, axis=1, keepdims=True)
    log_q = -jnp.log(jnp.maximum(live - excluded, 1).astype(jnp.float32))
    return describe(rows, jnp.broadcast_to(log_q, shape), queries,
                    exclude_rows, view)

  def rows_scored(self, num_queries, capacity):
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    del capacity
    return (num_queries * self.num_negatives,) * 2


def describe(rows, log_q, queries, exclude_rows, view):
  """Returns the Proposal for rows [B, K] chosen without scoring the table.

  Masks known positives and empty rows; scores the rest with the view.
  """
  known = jnp.any(rows[:, :, None] == exclude_rows[:, None, :], axis=-1)
  chosen = tables.take(view.table, rows)
  logits = view.scale * jnp.einsum(
      'bd,bkd->bk', queries, view.correct(chosen),
      preferred_element_type=jnp.float32)
  mask = (rows >= 0) & (chosen.ids >= 0) & ~known
  return types.Proposal(
      rows=jnp.where(mask, rows, -1), ids=jnp.where(mask, chosen.ids, -1),
      logits=jnp.where(mask, logits, -jnp.inf),
      log_q=jnp.where(mask, log_q, 0.0),
      log_z=jnp.full(queries.shape[:1], jnp.nan), mask=mask)
