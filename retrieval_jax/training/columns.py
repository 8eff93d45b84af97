"""The columns of the loss: what each query's positive competes with."""

from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

IN_BATCH, DRAWN, CANDIDATE = range(3)


class Columns(NamedTuple):
  """Fresh logits of the targets that each query's loss sees.

  Attributes:
    logits: [B, J] float32.
    ids: [B, J] int32, their corpus ids, -1 where there is no target.
    mask: [B, J] bool, False for columns that must not count.
    sources: [J] numpy, IN_BATCH, DRAWN or CANDIDATE.
  """
  logits: jax.Array
  ids: jax.Array
  mask: jax.Array
  sources: np.ndarray


def make(kind, queries, positives, negatives, batch, proposal, scale):
  """Returns the Columns of a batch; a target that is in it twice counts twice.

  Args:
    kind: one of method.COLUMNS.
    queries: [B, D] float32.
    positives: [B, D] float32, fresh embeddings of the batch's positives.
    negatives: [B, K, D] float32, fresh embeddings of the draws, then of the
      candidates.
    batch: types.Batch; a column whose corpus id is a known positive of the
      query (its own positive included) is masked by id, never by score.
    proposal: types.Proposal of the draws and candidates.
    scale: [] float32.
  """
  num_queries, num_negatives = negatives.shape[:2]
  own_sources = np.repeat([DRAWN, CANDIDATE], [
      num_negatives - batch.num_candidates, batch.num_candidates])
  own_ids = jnp.where(proposal.mask, proposal.ids, -1)  # [B, K]
  logits, ids, sources = [], [], []
  if kind in ('own', 'positives'):
    logits.append(jnp.einsum('bd,bkd->bk', queries, negatives))
    ids.append(own_ids)
    sources.append(own_sources)
  shared, shared_ids = [], []
  if kind in ('positives', 'all'):
    shared.append(positives)
    shared_ids.append(batch.target_ids)
    sources.append(np.full(num_queries, IN_BATCH))
  if kind in ('all', 'draws'):
    shared.append(negatives.reshape(-1, negatives.shape[-1]))
    shared_ids.append(own_ids.reshape(-1))
    sources.append(np.tile(own_sources, num_queries))
  if shared:
    logits.append(queries @ jnp.concatenate(shared).T)
    every = jnp.concatenate(shared_ids)
    ids.append(jnp.broadcast_to(every, (num_queries, every.shape[0])))
  ids = jnp.concatenate(ids, axis=1)
  known = jnp.any(
      ids[:, :, None] == batch.known_positives[:, None, :], axis=-1)
  return Columns(scale * jnp.concatenate(logits, axis=1), ids,
                 (ids >= 0) & ~known, np.concatenate(sources))


def below(columns, ceiling, positive, scale):
  """Returns Columns without those that score too near the positive.

  Scores are fresh, and the choice has no gradient.

  Args:
    columns: a Columns.
    ceiling: a samplers.Ceiling, or None to keep them all.
    positive: [B] float32, fresh logits of the positives.
    scale: [] float32.
  """
  if ceiling is None:
    return columns
  highest = scale * ceiling.highest(positive / scale)
  return columns._replace(
      mask=columns.mask & (columns.logits <= highest[:, None]))


def breakdown(columns, target_ids):
  """Returns how many columns a query's loss sees, and where they come from.

  Args:
    columns: a Columns.
    target_ids: [B] int32, the positives'.

  Returns:
    'columns', and of these 'columns_in_batch' (positives of other queries),
    'columns_drawn' and 'columns_candidates' (of the query, or of another where
    all are shared); beside them 'columns_masked', targets that were left out as
    known positives or for their score. Means over the batch, [] float32; the
    query's own positive is in none.
  """
  count = lambda which: which.sum(axis=1).astype(jnp.float32).mean()
  of = lambda source: count(columns.mask & (columns.sources == source)[None])
  other = (columns.ids >= 0) & (columns.ids != target_ids[:, None])
  return {'columns': count(columns.mask), 'columns_in_batch': of(IN_BATCH),
          'columns_drawn': of(DRAWN), 'columns_candidates': of(CANDIDATE),
          'columns_masked': count(other & ~columns.mask)}
