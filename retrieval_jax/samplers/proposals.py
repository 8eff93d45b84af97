"""What samplers that score the table share: records of draws, and a check."""

from jax import numpy as jnp

from retrieval_jax import table as tables
from retrieval_jax import types


def scored(rows, logits, view, log_z=None):
  """Returns the Proposal of rows that came out of a scan with their logits.

  Args:
    rows: [B, K] int32, -1 where no row was left.
    logits: [B, K] float32, corrected.
    view: types.View that was scanned.
    log_z: [B] float32 log partition of the draws, each with log probability
      logits - log_z; None where the rows were not drawn by their logits: then
      log_q is 0 and log_z nan.
  """
  mask = rows >= 0
  log_q = jnp.zeros(rows.shape)
  if log_z is None:
    log_z = jnp.full(rows.shape[:1], jnp.nan)
  else:
    log_q = jnp.where(mask, logits - log_z[:, None], 0.0)
  return types.Proposal(
      rows=rows, ids=jnp.where(mask, tables.take(view.table, rows).ids, -1),
      logits=logits, log_q=log_q, log_z=log_z, mask=mask)


def check_enough(option, size, num_negatives):
  """Raises a ValueError if an option leaves fewer rows than are drawn."""
  if size < num_negatives:
    raise ValueError(
        f'sampler.{option}={size} is smaller than '
        f'sampler.num_negatives={num_negatives}; raise {option}.')
