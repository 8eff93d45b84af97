"""A loss that keeps embeddings apart."""

from collections.abc import Mapping
import dataclasses
import math

import jax
from jax import numpy as jnp

from retrieval_jax import products
from retrieval_jax import types
from retrieval_jax.objectives import wrapping


@dataclasses.dataclass(frozen=True)
class SpreadOut(wrapping.Wrapping):
  """An objective, and what queries and targets of a batch have in common.

    L + c (mean_{i != j} <f(x_i), f(x_j)>^2 + mean_{i != j} <g(y_i), g(y_j)>^2)

  Unit vectors drawn evenly from the sphere have 1 / D for each mean. Pairs of
  the same target do not count.

  Source: Zhang et al., ICCV 2017, the second moment of the spread-out
    regulariser, as EmbeddingGemma (2025, arXiv 2509.20354) has it. Deviation:
    no hinge at 1 / D, no first moment.

  Attributes:
    inner: the objective.
    weight: c, positive.
  """
  weight: float

  def __post_init__(self):
    if not 0 < self.weight < math.inf:
      raise ValueError(f'estimator.spread_out={self.weight} must be positive '
                       'and finite, or 0 for none.')

  @property
  def needs(self) -> frozenset[str]:
    """What the inner objective needs, and positives."""
    return super().needs | {'positives'}

  def __call__(self, params: types.Params, fresh: types.Fresh,
               batch: types.Batch, proposal: types.Proposal
               ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Returns the sum [B], the inner metrics and 'spread' of each side."""
    loss, info = self.inner(params, fresh, batch, proposal)
    ids = batch.target_ids
    queries = _squares(fresh.queries, ~jnp.eye(len(ids), dtype=bool))
    targets = _squares(fresh.positives, ids[:, None] != ids[None])
    return loss + self.weight * (queries + targets), {
        **info, 'spread_queries': queries, 'spread_targets': targets}

  def flops(self, batch_size: int, num_negatives: int, num_candidates: int,
            dim: int) -> float:
    """Returns the FLOPs of the inner objective and of the two products."""
    return self.inner.flops(
        batch_size, num_negatives, num_candidates, dim) + (
            4. * batch_size * batch_size * dim)


def _squares(vectors, mask):
  """Returns the mean of squared products where the mask [B, B] is True."""
  squares = jnp.square(products.inner('bd,jd->bj', vectors, vectors))
  return (jnp.sum(jnp.where(mask, squares, 0.))
          / jnp.maximum(jnp.sum(mask), 1))
