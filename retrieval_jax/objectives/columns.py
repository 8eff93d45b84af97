"""The columns of the loss: what each query's positive competes with."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import ceiling as ceilings
from retrieval_jax import products
from retrieval_jax import types

KINDS = ('own', 'positives', 'all', 'draws')
"""Which fresh targets each query's loss sees besides its positive: its own
draws; these and the other queries' positives; all draws and positives of the
batch; all draws of the batch and no in-batch positives. Explicit candidates go
with the draws."""

PAIRS = ('query_query', 'query_target', 'target_target')
"""What else of the batch may compete: the query with other queries, its
positive with other queries, its positive with other positives."""

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


def make(kind: str, fresh: types.Fresh, batch: types.Batch,
         proposal: types.Proposal, *, distinct: bool = False) -> Columns:
  """Returns the Columns of a batch.

  Args:
    kind: one of KINDS.
    distinct: whether a target counts once for a query, in its first column,
      though several queries have drawn it; else as often as it is there.
    fresh: what the step encoded.
    batch: the step's; a column whose corpus id is a known positive of the query
      (its own positive included) is masked by id, never by score.
    proposal: the draws and candidates.
  """
  queries, positives, negatives, scale = fresh[:4]
  num_queries, num_negatives = negatives.shape[:2]
  own_sources = np.repeat([DRAWN, CANDIDATE], [
      num_negatives - batch.num_candidates, batch.num_candidates])
  own_ids = jnp.where(proposal.mask, proposal.ids, -1)  # [B, K]
  logits, ids, sources = [], [], []
  if kind in ('own', 'positives'):
    logits.append(products.inner('bd,bkd->bk', queries, negatives))
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
    logits.append(products.inner(
        'bd,jd->bj', queries, jnp.concatenate(shared)))
    every = jnp.concatenate(shared_ids)
    ids.append(jnp.broadcast_to(every, (num_queries, every.shape[0])))
  every_id = jnp.concatenate(ids, axis=1)
  mask = (every_id >= 0) & ~_known(every_id, batch)
  if distinct:
    # All queries have one list where all columns are shared.
    mask &= is_first(every_id[:1] if len(ids) == 1 and shared else every_id)
  return Columns(scale * jnp.concatenate(logits, axis=1), every_id, mask,
                 np.concatenate(sources))


def _known(ids, batch):
  """Returns [B, J], whether ids [B or 1, J] are known positives of queries."""
  return jnp.any(
      ids[:, :, None] == batch.known_positives[:, None, :], axis=-1)


def with_pairs(columns: Columns, pairs: Sequence[str], fresh: types.Fresh,
               batch: types.Batch) -> Columns:
  """Returns Columns and those of other pairs of the batch, B of each kind.

  Two queries do not compete where either's positive is a known positive of the
  other.

  Args:
    columns: of `make`.
    pairs: names in PAIRS.
    fresh: what the step encoded.
    batch: the step's.

  Source: Li et al., 2023 (GTE, arXiv 2308.03281), the improved contrastive
    loss: all four kinds in one sum. Deviation: known positives are masked.
  """
  if not pairs:
    return columns
  queries, targets = fresh.queries, fresh.positives
  own_and_others = {'query_query': (queries, queries),
                    'query_target': (targets, queries),
                    'target_target': (targets, targets)}
  logits = [fresh.scale * products.inner('bd,jd->bj', *own_and_others[kind])
            for kind in pairs]
  ids = batch.target_ids
  knows = _known(ids[None], batch)  # [i, j]: positive j, for query i
  related = knows | knows.T
  repeat = lambda of_batch: jnp.tile(of_batch, (1, len(pairs)))
  return Columns(
      jnp.concatenate([columns.logits, *logits], axis=1),
      jnp.concatenate([columns.ids, repeat(jnp.broadcast_to(
          ids, related.shape))], axis=1),
      jnp.concatenate([columns.mask, repeat(~related)], axis=1),
      np.concatenate([columns.sources,
                      np.full(len(pairs) * len(ids), IN_BATCH)]))


def harder(columns: Columns, hardness: float, scale: jax.Array) -> Columns:
  """Returns Columns in which hard draws and candidates weigh more.

  The term exp(s) of one becomes w exp(s), with w = exp(hardness s / beta) that
  has no gradient; columns of the batch stay as they are.

  Source: Schechter Vera et al., 2025 (EmbeddingGemma, arXiv 2509.20354),
    hardness of 5 for its one hard negative.
  """
  if not hardness:
    return columns
  weights = hardness * jax.lax.stop_gradient(columns.logits / scale)
  return columns._replace(logits=columns.logits + jnp.where(
      (columns.sources != IN_BATCH)[None], weights, 0.))


def is_first(ids: jax.Array) -> jax.Array:
  """Returns [B, J] bool, whether an id is the first of its value in a row."""
  order = jnp.argsort(ids, axis=1, stable=True)
  rising = jnp.take_along_axis(ids, order, axis=1)
  new = jnp.pad(rising[:, 1:] != rising[:, :-1], ((0, 0), (1, 0)),
                constant_values=True)
  return jnp.put_along_axis(
      jnp.zeros(ids.shape, bool), order, new, axis=1, inplace=False)


def number(kind: str, batch_size: int, num_negatives: int) -> int:
  """Returns J, the columns besides its positive that a query's loss sees.

  Args:
    kind: one of KINDS.
    batch_size: B.
    num_negatives: K, draws and candidates of a query.
  """
  return {'own': num_negatives, 'positives': num_negatives + batch_size,
          'all': (1 + num_negatives) * batch_size,
          'draws': num_negatives * batch_size}[kind]


def below(columns: Columns, ceiling: ceilings.Ceiling | None,
          positive: jax.Array, scale: jax.Array) -> Columns:
  """Returns Columns without those that score too near the positive.

  Scores are fresh, and the choice has no gradient.

  Args:
    columns: all of them.
    ceiling: None to keep them all.
    positive: [B] float32, fresh logits of the positives.
    scale: [] float32.
  """
  if ceiling is None:
    return columns
  highest = scale * ceiling.highest(positive / scale)
  return columns._replace(
      mask=columns.mask & (columns.logits <= highest[:, None]))


def breakdown(columns: Columns, target_ids: jax.Array
              ) -> dict[str, jax.Array]:
  """Returns how many columns a query's loss sees, and where they come from.

  Args:
    columns: those of the loss.
    target_ids: [B] int32, the positives'.

  Returns:
    'columns', and of these 'columns_in_batch' (positives of other queries),
    'columns_drawn' and 'columns_candidates' (of the query, or of another where
    all are shared); also 'columns_masked', targets that were left out as known
    positives, for a score, fresh or a teacher's, or as counted already. Means
    over the batch, [] float32; the query's own positive is in none.
  """
  count = lambda which: which.sum(axis=1).astype(jnp.float32).mean()
  of = lambda source: count(columns.mask & (columns.sources == source)[None])
  other = (columns.ids >= 0) & (columns.ids != target_ids[:, None])
  return {'columns': count(columns.mask), 'columns_in_batch': of(IN_BATCH),
          'columns_drawn': of(DRAWN), 'columns_candidates': of(CANDIDATE),
          'columns_masked': count(other & ~columns.mask)}
