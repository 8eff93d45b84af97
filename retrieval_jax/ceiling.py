"""The score of the positive, to judge negatives by."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import scoring
from retrieval_jax import table as tables
from retrieval_jax import types


@dataclasses.dataclass(frozen=True)
class Ceiling:
  """Leaves out negatives that score so high that they may well be positives.

  With the positive's score s+ (unscaled; under the memory for rows to draw,
  fresh for columns of the loss), one is left out whose score is above

    s+ - (1 - max_share) |s+|   (TopK-PercPos)   or   s+ - min_margin
                                                      (TopK-MarginPos).

  The first is max_share * s+ for s+ > 0, as in the paper; for s+ < 0, where
  that would lie above s+, it lies as far below s+ (ours). Where both are given,
  the lower counts. A query whose positive is not remembered has no ceiling.

  Source: NV-Retriever, arXiv 2407.15831, its two positive-aware rules.

  Attributes:
    max_share: in (0, 1], or None.
    min_margin: at least 0, or None.
    section: of the config that the two are in, for errors.
  """
  max_share: float | None
  min_margin: float | None
  section: str = dataclasses.field(default='sampler', repr=False)

  def __post_init__(self):
    if self.max_share is not None and not 0 < self.max_share <= 1:
      raise ValueError(
          f'{self.section}.max_share={self.max_share} must lie in (0, 1], for '
          'instance 0.95; leave it out for no ceiling.')
    if self.min_margin is not None and self.min_margin < 0:
      raise ValueError(
          f'{self.section}.min_margin={self.min_margin} must be at least 0, '
          'for instance 0.05; leave it out for no ceiling.')

  def highest(self, scores: jax.Array) -> jax.Array:
    """Returns the largest allowed scores [B], given those of the positives."""
    highest = scores
    if self.max_share is not None:
      highest = scores - (1 - self.max_share) * jnp.abs(scores)
    if self.min_margin is not None:
      highest = jnp.minimum(highest, scores - self.min_margin)
    return highest

  def logits(self, request: types.Request, view: types.View) -> jax.Array:
    """Returns the largest allowed logit of each query, [B] float32."""
    scores, known = positive_scores(request, view)
    return jnp.where(known, view.scale * self.highest(scores), jnp.inf)


def highest_logits(ceiling: Ceiling | None, request: types.Request,
                   view: types.View) -> jax.Array | None:
  """Returns what `Ceiling.logits` does, or None where there is no ceiling."""
  return None if ceiling is None else ceiling.logits(request, view)


def positive_scores(request: types.Request, view: types.View
                    ) -> tuple[jax.Array, jax.Array]:
  """Returns each query's score with its positive, as the memory has it.

  Returns:
    scores: [B] float32, unscaled, 0 where unknown.
    known: [B] bool, whether the positive is remembered.
  """
  known = request.positive_rows >= 0
  positives = tables.take(view.table, request.positive_rows)
  scores = scoring.inner('bd,bd->b', request.queries, view, positives)
  return jnp.where(known, scores, 0.0), known
