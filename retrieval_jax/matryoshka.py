"""Embeddings whose prefixes are embeddings too."""

from collections.abc import Callable, Sequence
import dataclasses

import jax
import numpy as np

from retrieval_jax.models import dual_encoder


@dataclasses.dataclass(frozen=True)
class Matryoshka:
  """A loss over several prefixes of each embedding, encoded once.

    L = sum_m c_m L(f(x)_{1:m}, g(y)_{1:m})   over the m of `dims`

  Proposals are drawn, and targets remembered, with all D dimensions. Below D
  the estimator 'cache_gradient' is therefore that of a proposal from another
  model, and no longer unbiased; for 'sampled_softmax' log q stays what it is.

  Source: Kusupati et al., NeurIPS 2022, eq. 1; re-normalised prefixes as in
    their section on retrieval. Deviation: D itself counts only if listed.

  Attributes:
    dims: lengths of the prefixes, ascending; () leaves the loss as it is.
    weights: c_m, one per prefix; () for 1 each.
    normalize: give every prefix length one, as the model does embeddings.
  """
  dims: tuple[int, ...] = ()
  weights: tuple[float, ...] = ()
  normalize: bool = False

  def __post_init__(self):
    check_dims(self.dims, None, 'estimator.matryoshka_dims')
    if self.weights and (len(self.weights) != len(self.dims)
                         or min(self.weights) <= 0):
      raise ValueError(
          f'estimator.matryoshka_weights={self.weights} must be one positive '
          f'number for each of estimator.matryoshka_dims={self.dims}, or ().')

  def total(self, loss: Callable, queries: jax.Array, targets: jax.Array):
    """Returns (L, (metrics, ...)) of `loss` on the prefixes.

    Args:
      loss: (queries [B, m], targets [n, m]) -> ([] float32, (metrics, *rest)).
      queries: [B, D] float32.
      targets: [n, D] float32.

    Returns:
      As `loss`. Metrics are those of the longest prefix, beside 'loss' and
      'loss_m' of each; `rest` is that of whole embeddings.
    """
    if not self.dims:
      return loss(queries, targets)
    check_dims(self.dims, queries.shape[-1], 'estimator.matryoshka_dims')
    cut = lambda x, dim: (dual_encoder.normalise(x[:, :dim]) if self.normalize
                          else x[:, :dim])
    total, of_each = 0.0, {}
    for dim, weight in zip(self.dims, self.weights or (1.0,) * len(self.dims)):
      value, (metrics, *_) = loss(cut(queries, dim), cut(targets, dim))
      total += weight * value
      of_each[f'loss_{dim}'] = value
    _, (_, *rest) = loss(queries, targets)
    return total, ({**metrics, **of_each, 'loss': total}, *rest)


def check_dims(dims: Sequence[int], limit: int | None, option: str):
  """Raises a ValueError unless dims ascend from at least 1 to at most limit."""
  if any(b <= a for a, b in zip((0, *dims), dims)):
    raise ValueError(
        f'{option}={tuple(dims)} must be ascending numbers of dimensions, the '
        'first at least 1.')
  if limit is not None and dims and dims[-1] > limit:
    raise ValueError(
        f'{option}={tuple(dims)} goes beyond the {limit} dimensions of the '
        'embeddings; leave the larger ones out.')


def truncate(embeddings: np.ndarray, dim: int, normalize: bool) -> np.ndarray:
  """Returns the first `dim` columns of [n, D], on the host.

  With `normalize` rows have length one again; a row of zeros stays zero.
  """
  cut = np.asarray(embeddings)[:, :dim]
  if not normalize:
    return cut
  length = np.linalg.norm(cut, axis=1, keepdims=True)
  return cut / np.where(length > 0, length, 1).astype(cut.dtype)
