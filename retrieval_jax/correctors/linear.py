"""The best linear map from stale to fresh rows, in closed form."""

from collections.abc import Mapping
import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import types
from retrieval_jax.correctors import learned
from retrieval_jax.correctors import maps
from retrieval_jax.correctors import ridge as ridges

FITS = ('ridge', 'procrustes')


@types.register
@dataclasses.dataclass(frozen=True)
class LinearState:
  """State of a `Linear`; replicated, float32.

  Attributes:
    matrix: [D + 1, D], the map of a stale row with a one appended, minus the
      identity.
    inputs: [D + 1, D + 1], running sum of x x^T, x = (v, 1).
    outputs: [D + 1, D], running sum of x (g - v)^T.
    num_updates: [] int32, observations so far.
  """
  matrix: jax.Array
  inputs: jax.Array
  outputs: jax.Array
  num_updates: jax.Array


@dataclasses.dataclass(frozen=True)
class Linear(learned.Learned):
  """Fits h(v) = A v + b to the (stale, fresh) pairs seen so far.

  The pairs enter through two sums, in which a pair's weight w decays by `decay`
  per step:
    ridge       h(v) = v + M x, x = v with a one appended,
                argmin sum w |v + M x - g|^2 + ridge * mean(x^2) sum w |M|^2
    procrustes  argmax tr(A sum w v g^T) over orthogonal A, b = 0
  Both shrink towards the identity, which they are before the first pair. There
  is no learning rate: the baseline that a network must beat.

  Source: ridge as in the Nystrom regression of Monath et al., AISTATS 2023,
    with linear features; Procrustes as in Drift-Adapter, EMNLP 2025
    (arXiv 2509.23471). Decay and the penalty's scale are ours.

  Attributes:
    fit: 'ridge' or 'procrustes'.
    ridge: penalty, relative; at least `ridge.least_ridge(D)`.
    decay: weight that the sums keep from one step to the next, in (0, 1].
    num_anchors, use_after, keep_norm, reset_on_refresh: see `Learned`.
  """
  fit: str
  ridge: float
  decay: float
  num_anchors: int
  use_after: int
  keep_norm: bool
  reset_on_refresh: bool

  def __post_init__(self):
    if self.fit not in FITS:
      raise ValueError(f'corrector.fit={self.fit!r} is not one of {FITS}.')
    if not self.ridge > 0:
      raise ValueError(
          f'corrector.ridge={self.ridge} must be positive: before D pairs are '
          'seen nothing else fixes the map.')
    if not 0 < self.decay <= 1:
      raise ValueError(f'corrector.decay={self.decay} must lie in (0, 1].')
    learned.check_range('num_anchors', self.num_anchors, 0)
    learned.check_range('use_after', self.use_after, 0)

  def init(self, key: jax.Array, table: types.TargetTable) -> LinearState:
    """Returns the state that has seen nothing: the identity.

    Raises:
      ValueError: if `ridge` is too small for this many dimensions.
    """
    del key
    dim = table.embeddings.shape[-1]
    if self.ridge < ridges.least_ridge(dim):
      raise ValueError(
          f'corrector.ridge={self.ridge} must be at least '
          f'{ridges.least_ridge(dim):.1e} for embeddings of {dim} dimensions, '
          'what float32 resolves: before D pairs are seen nothing else fixes '
          'the map.')
    return LinearState(
        matrix=jnp.zeros((dim + 1, dim)),
        inputs=jnp.zeros((dim + 1, dim + 1)),
        outputs=jnp.zeros((dim + 1, dim)),
        num_updates=jnp.zeros([], jnp.int32))

  def moved(self, state: LinearState, stale: types.TargetTable) -> jax.Array:
    """Returns A v + b [..., D] float32, of the norm of v if `keep_norm`."""
    vectors = stale.embeddings.astype(jnp.float32)
    residual = maps.affine(vectors, state.matrix[:-1], state.matrix[-1])
    return (maps.moved(vectors, residual) if self.keep_norm
            else vectors + residual)

  @property
  def folds(self) -> bool:
    """Whether rows are moved by the map alone."""
    return not self.keep_norm

  def affine(self, state: LinearState) -> jax.Array:
    """Returns the map, minus the identity, [D + 1, D]."""
    return state.matrix

  def update(self, state: LinearState, observation: types.Observation
             ) -> tuple[LinearState, Mapping[str, jax.Array]]:
    """Returns the state that also fits this observation; nothing to log."""
    stale = observation.stale.embeddings.astype(jnp.float32)
    inputs = jnp.concatenate([stale, jnp.ones((len(stale), 1))], axis=1)
    inputs, outputs = ridges.added(
        state.inputs, state.outputs, features=inputs,
        displacements=observation.fresh - stale, mask=observation.mask,
        decay=self.decay)
    # Without a pair there is no scale for the penalty, and no map to find.
    seen = jnp.trace(inputs) > 0
    matrix = self._solve(
        jnp.where(seen, inputs, jnp.eye(len(inputs))), outputs)
    return LinearState(
        jnp.where(seen, matrix, 0.0), inputs, outputs,
        state.num_updates + observation.mask.any()), {}

  def _solve(self, inputs, outputs):
    if self.fit == 'ridge':
      return ridges.solved(inputs, outputs, self.ridge)
    size, penalty = len(inputs), ridges.penalty(inputs, self.ridge)
    # sum v g^T = sum v (g - v)^T + sum v v^T; without the row of ones.
    cross = outputs[:-1] + inputs[:-1, :-1] + penalty * jnp.eye(size - 1)
    left, _, right = jnp.linalg.svd(cross, full_matrices=False)
    turn = left @ right - jnp.eye(size - 1)
    return jnp.concatenate([turn, jnp.zeros((1, size - 1))])

  def flops_per_row(self, dim: int) -> float:
    """Returns the FLOPs of `apply` per row."""
    return 2. * dim**2

  def flops_per_update(self, num_rows: int, num_queries: int, dim: int
                       ) -> float:
    """Returns the FLOPs of `update` on `num_rows` observed rows.

    Those of Procrustes' solution are a singular value decomposition (22 D^3 in
    Golub & Van Loan's count) and a product.
    """
    del num_queries
    sums = ridges.flops_of_sums(num_rows, dim + 1, dim)
    if self.fit == 'ridge':
      return sums + ridges.flops_of_solution(dim + 1, dim)
    return sums + 24. * dim**3
