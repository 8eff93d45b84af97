"""A loss over prefixes of the embeddings."""

from collections.abc import Mapping
import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import matryoshka
from retrieval_jax import types
from retrieval_jax.models import dual_encoder
from retrieval_jax.objectives import wrapping


@dataclasses.dataclass(frozen=True)
class Matryoshka(wrapping.Wrapping):
  """The weighted sum of an objective over several prefixes of embeddings.

    L = sum_m c_m L(f(x)_{1:m}, g(y)_{1:m})   over the m of `dims`

  Proposals are drawn, and targets remembered, with all D dimensions. Below D
  the estimator 'cache_gradient' is therefore that of a proposal from another
  model, and no longer unbiased; for 'sampled_softmax' log q stays what it is.

  Source: Kusupati et al., NeurIPS 2022, eq. 1; re-normalised prefixes as in
    their section on retrieval. Deviation: D itself counts only if listed.

  Attributes:
    inner: the objective of each prefix.
    dims: lengths of the prefixes, ascending, at least one.
    weights: c_m, one per prefix; () for 1 each.
    normalize: give every prefix length one, as the model does embeddings.
  """
  dims: tuple[int, ...]
  weights: tuple[float, ...] = ()
  normalize: bool = False

  def __post_init__(self):
    matryoshka.check_dims(self.dims, None, 'estimator.matryoshka_dims')
    if self.weights and (len(self.weights) != len(self.dims)
                         or min(self.weights) <= 0):
      raise ValueError(
          f'estimator.matryoshka_weights={self.weights} must be one positive '
          f'number for each of estimator.matryoshka_dims={self.dims}, or ().')

  def __call__(self, params: types.Params, fresh: types.Fresh,
               batch: types.Batch, proposal: types.Proposal
               ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Returns the sum [B], the metrics of the longest prefix, and 'loss_m'."""
    matryoshka.check_dims(
        self.dims, fresh.queries.shape[-1], 'estimator.matryoshka_dims')
    total = jnp.zeros(())
    of_each: dict[str, jax.Array] = {}
    info: Mapping[str, jax.Array] = {}
    for dim, weight in zip(self.dims, self.weights or (1.0,) * len(self.dims)):
      loss, info = self.inner(params, self._cut(fresh, dim), batch, proposal)
      total += weight * loss
      of_each[f'loss_{dim}'] = loss.mean()
    return total, {**info, **of_each}

  def flops(self, batch_size: int, num_negatives: int, num_candidates: int,
            dim: int) -> float:
    """Returns the FLOPs of the inner objective over each prefix."""
    del dim
    return sum(self.inner.flops(batch_size, num_negatives, num_candidates, cut)
               for cut in self.dims)

  def _cut(self, fresh, dim):
    cut = lambda x: x[..., :dim]
    if self.normalize:
      cut = lambda x: dual_encoder.normalise(x[..., :dim])
    return fresh._replace(
        queries=cut(fresh.queries), positives=cut(fresh.positives),
        negatives=cut(fresh.negatives))
