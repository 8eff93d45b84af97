"""What samplers share: records of rows they chose, and a check of options."""

from collections.abc import Mapping

import jax
from jax import numpy as jnp

from retrieval_jax import scoring
from retrieval_jax import table as tables
from retrieval_jax import types


def scored(rows: jax.Array, logits: jax.Array, view: types.View,
           log_z: jax.Array | None = None,
           metrics: Mapping[str, jax.Array] | None = None) -> types.Proposal:
  """Returns the Proposal of rows that came out of a scan with their logits.

  Args:
    rows: [B, K] int32, -1 where no row was left.
    logits: [B, K] float32, corrected.
    view: what was scanned.
    log_z: [B] float32 log partition of the draws, each with log probability
      logits - log_z; None where the rows were not drawn by their logits: then
      log_q is 0 and log_z nan.
    metrics: of the Proposal.
  """
  mask = rows >= 0
  log_q = jnp.zeros(rows.shape)
  if log_z is None:
    log_z = jnp.full(rows.shape[:1], jnp.nan)
  else:
    log_q = jnp.where(mask, logits - log_z[:, None], 0.0)
  return types.Proposal(
      rows=rows, ids=jnp.where(mask, tables.take(view.table, rows).ids, -1),
      logits=logits, log_q=log_q, log_z=log_z, mask=mask, metrics=metrics or {})


def of_scan(found: scoring.Best | scoring.Draws, view: types.View
            ) -> dict[str, jax.Array]:
  """Returns the metrics of a scan by coarse rows, none of one without.

  'blocks_opened' is the mean of the blocks of a query that were scored again in
  float32, 'log_z_error' the most that log Z of any is off by.
  """
  if view.table.coarse is None:
    return {}
  metrics = {'blocks_opened': jnp.mean(found.opened.astype(jnp.float32))}
  if isinstance(found, scoring.Draws):
    metrics['log_z_error'] = jnp.max(found.log_z_error)
  return metrics


def described(rows: jax.Array, log_q: jax.Array, request: types.Request,
              view: types.View) -> types.Proposal:
  """Returns the Proposal of rows that were chosen without scoring the table.

  Masks the rows to exclude and empty ones; scores the rest with the view.

  Args:
    rows: [B, K] int32, -1 for none.
    log_q: [B, K] float32.
    request: for whom.
    view: where.
  """
  known = jnp.any(
      rows[:, :, None] == request.exclude_rows[:, None, :], axis=-1)
  chosen = tables.take(view.table, rows)
  logits = view.scale * scoring.inner(
      'bd,bkd->bk', request.queries, view, chosen)
  mask = (rows >= 0) & (chosen.ids >= 0) & ~known
  return types.Proposal(
      rows=jnp.where(mask, rows, -1), ids=jnp.where(mask, chosen.ids, -1),
      logits=jnp.where(mask, logits, -jnp.inf),
      log_q=jnp.where(mask, log_q, 0.0),
      log_z=jnp.full(rows.shape[:1], jnp.nan), mask=mask)


def check_enough(option: str, size: int, num_negatives: int) -> None:
  """Raises a ValueError if an option leaves fewer rows than are drawn."""
  if size < num_negatives:
    raise ValueError(
        f'sampler.{option}={size} is smaller than '
        f'sampler.num_negatives={num_negatives}; raise {option}.')
