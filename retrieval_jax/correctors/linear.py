"""The best linear map from stale to fresh rows, in closed form."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import types
from retrieval_jax.correctors import mlp

FITS = ('ridge', 'procrustes')


@types.register
@dataclasses.dataclass(frozen=True)
class LinearState:
  """State of a `Linear`; replicated, float32.

  Attributes:
    matrix: [D + 1, D], the map of a stale row with a one appended, minus the
      identity.
    inputs: [D + 1, D + 1], running sum of v v^T.
    outputs: [D + 1, D], running sum of v (g - v)^T.
    weight: [] the sum's total weight, in pairs.
  """
  matrix: jax.Array
  inputs: jax.Array
  outputs: jax.Array
  weight: jax.Array


@dataclasses.dataclass(frozen=True)
class Linear:
  """Fits h(v) = A v + b to the (stale, fresh) pairs seen so far.

  The pairs enter through two sums, which decay by `decay` per step:
    ridge       argmin sum w |A v + b - g|^2 + ridge W (|A - I|^2 + |b|^2),
                shrunk towards the identity; W is the pairs' total weight
                times the mean square of a coordinate
    procrustes  argmax tr(A sum w v g^T) over orthogonal A, b = 0
  It has no learning rate: the baseline that a network must beat.

  Source: ridge as in the Nystrom regression of Monath et al., AISTATS 2023,
    with linear features; Procrustes as in Drift-Adapter, EMNLP 2025
    (arXiv 2509.23471). Decay and the penalty's scale are ours.

  Attributes:
    fit: 'ridge' or 'procrustes'.
    ridge: penalty, relative; of 'ridge' only.
    decay: weight that the sums keep from one step to the next, in (0, 1].
    num_anchors: rows drawn uniformly and encoded at each step for the fit.
    keep_norm: rescale h(v) to the norm of v.
    reset_on_refresh: whether to forget all pairs after the whole table was
      re-encoded.
  """
  fit: str
  ridge: float
  decay: float
  num_anchors: int
  keep_norm: bool
  reset_on_refresh: bool

  def __post_init__(self):
    if self.fit not in FITS:
      raise ValueError(f'corrector.fit={self.fit!r} is not one of {FITS}.')
    if not self.ridge >= 1e-6:
      raise ValueError(
          f'corrector.ridge={self.ridge} must be at least 1e-6, what float32 '
          'resolves: before D pairs are seen nothing else fixes the map.')
    if not 0 < self.decay <= 1:
      raise ValueError(f'corrector.decay={self.decay} must lie in (0, 1].')
    if self.num_anchors < 0:
      raise ValueError(
          f'corrector.num_anchors={self.num_anchors} must be at least 0.')

  def init(self, key, dim):
    """Returns a LinearState that has seen nothing: the identity."""
    del key
    return LinearState(
        matrix=jnp.zeros((dim + 1, dim)), inputs=jnp.zeros((dim + 1, dim + 1)),
        outputs=jnp.zeros((dim + 1, dim)), weight=jnp.zeros([]))

  def apply(self, state, rows):
    """Returns A v + b [..., D] float32, of the norm of v if `keep_norm`."""
    stale = rows.embeddings.astype(jnp.float32)
    residual = mlp.affine(stale, state.matrix[:-1], state.matrix[-1])
    return (mlp.moved(stale, residual) if self.keep_norm
            else stale + residual)

  def update(self, state, observation):
    """Returns the state that also fits this observation; nothing to log."""
    stale = observation.stale.embeddings.astype(jnp.float32)
    weights = observation.mask.astype(jnp.float32)
    inputs = jnp.concatenate([stale, jnp.ones((len(stale), 1))], axis=1)
    weighted = inputs * weights[:, None]
    sums = lambda old, new: self.decay * old + new
    state = LinearState(
        matrix=state.matrix,
        inputs=sums(state.inputs, weighted.T @ inputs),
        outputs=sums(state.outputs, weighted.T @ (observation.fresh - stale)),
        weight=sums(state.weight, weights.sum()))
    return dataclasses.replace(state, matrix=self._solve(state)), {}

  def _solve(self, state):
    size = len(state.inputs)
    if self.fit == 'ridge':
      penalty = self.ridge * jnp.trace(state.inputs) / size
      return jax.scipy.linalg.solve(
          state.inputs + penalty * jnp.eye(size),
          state.outputs, assume_a='pos')
    # sum v g^T = sum v (g - v)^T + sum v v^T; without the row of ones.
    cross = state.outputs[:-1] + state.inputs[:-1, :-1]
    # Shrunk towards the identity while pairs are few.
    cross += self.ridge * jnp.trace(state.inputs) / size * jnp.eye(size - 1)
    left, _, right = jnp.linalg.svd(cross, full_matrices=False)
    turn = left @ right - jnp.eye(size - 1)
    return jnp.concatenate([turn, jnp.zeros((1, size - 1))])
