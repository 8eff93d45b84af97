"""Columns of the loss that a teacher takes for false negatives."""

from collections.abc import Sequence
import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import ceiling as ceilings
from retrieval_jax import products
from retrieval_jax import types
from retrieval_jax.objectives import columns as columns_lib

KINDS = ('none', 'embeddings', 'scores')
"""What a teacher's scores are: products of its vectors, of every column; or
those that came with the data, of a query's own candidates."""


@dataclasses.dataclass(frozen=True)
class Guide:
  """Leaves out columns that a teacher takes for positives.

  With the teacher's scores t, unscaled, the column of query x with target y
  is left out if t(x, y) > c(t(x, y+)), where

    c(t) = t - min_margin   or   t - (1 - max_share) |t|.

  By 'embeddings' t is the inner product of the teacher's vectors, which is the
  cosine where these have length one. A pair of the batch (`columns.PAIRS`) is
  judged by the teacher's product of that pair, against the same ceiling. By
  'scores' t is the score that came with the data; a target that has none for
  the query stays, and one that has is left out of whichever column it is in.

  Source: Solatorio, arXiv 2402.16829 (GISTEmbed), with min_margin=0; margins
    as in sentence-transformers' GISTEmbedLoss, 'absolute' (min_margin) and
    'relative' (max_share = 1 - margin). Deviations: that takes the cosine
    whatever the length of the guide's vectors; columns that are drawn from a
    memory, and scores of the data, are ours.

  Attributes:
    by: one of KINDS but 'none'.
    ceiling: what scores must not exceed.
    dim: D', of the teacher's vectors; not read by 'scores'.
  """
  by: str
  ceiling: ceilings.Ceiling
  dim: int = 0

  def __post_init__(self):
    if self.by not in KINDS[1:]:
      raise ValueError(f'guide.by={self.by!r} is not one of {list(KINDS)}.')

  @property
  def needs(self) -> frozenset[str]:
    """What an objective that it guides needs."""
    return frozenset(
        {'teacher_vectors'} if self.by == 'embeddings' else {'teacher'})

  def leave_out(self, columns: columns_lib.Columns, kind: str,
                pairs: Sequence[str], fresh: types.Fresh, batch: types.Batch,
                proposal: types.Proposal
                ) -> tuple[columns_lib.Columns, dict[str, jax.Array]]:
    """Returns Columns without those left out, and what share that is.

    Args:
      columns: of `columns.make` and `with_pairs`.
      kind: of `columns.KINDS`, what they were made by, as is `pairs`.
      pairs: of `columns.PAIRS`.
      fresh: with the teacher's vectors.
      batch: the step's.
      proposal: the draws and candidates.

    Returns:
      columns: of the same shapes.
      info: 'guided', the share of columns, else counted, that is left out; []
        float32, 0 where there are none.
    """
    if self.by == 'embeddings':
      out = self._by_embeddings(kind, pairs, fresh, batch, proposal)
    else:
      out = self._by_scores(columns, batch)
    out &= columns.mask
    share = out.sum() / jnp.maximum(columns.mask.sum(), 1)
    return columns._replace(mask=columns.mask & ~out), {'guided': share}

  def _by_embeddings(self, kind, pairs, fresh, batch, proposal):
    """Returns [B, J], whether the product of a column is above the ceiling."""
    assert fresh.teacher is not None  # its vectors are needed
    queries, positives, negatives = fresh.teacher
    # The same columns, made of its vectors, are in the same order.
    theirs = types.Fresh(queries, positives, negatives, jnp.ones(()))
    scores = columns_lib.with_pairs(
        columns_lib.make(kind, theirs, batch, proposal), pairs, theirs,
        batch).logits
    positive = products.inner('bd,bd->b', queries, positives)
    return scores > self.ceiling.highest(positive)[:, None]

  def _by_scores(self, columns, batch):
    """Returns [B, J], whether a column is a candidate above the ceiling."""
    candidates = batch.candidates
    assert candidates is not None  # a teacher's scores are needed
    highest = self.ceiling.highest(candidates.positive_scores)
    above = candidates.scores > highest[:, None]  # not where one is nan
    ids = jnp.where(above, candidates.ids, -1)
    return jnp.any((columns.ids[:, :, None] == ids[:, None, :])
                   & (ids[:, None, :] >= 0), axis=-1)

  def flops(self, batch_size: int, num_columns: int) -> float:
    """Returns the FLOPs of the teacher's products with so many columns each.

    The meter takes all products of an objective for such that have a gradient,
    so it counts these, which have none, three times.
    """
    if self.by == 'scores':
      return 0.
    return 2. * batch_size * (1 + num_columns) * self.dim
