"""Kernel regression from landmarks that are encoded in turn."""

from collections.abc import Mapping
import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import products
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.correctors import learned
from retrieval_jax.correctors import maps
from retrieval_jax.correctors import ridge as ridges

KERNELS = ('linear', 'rbf')
LANDMARKS = ('uniform', 'greedy')

_CANDIDATES = 8  # rows per landmark among which the greedy choice is made
_JITTER = 1e-6  # of the kernel matrix, relative to its trace


@types.register
@dataclasses.dataclass(frozen=True)
class NystromState:
  """State of a `Nystrom`; replicated, float32 but for the integers.

  Attributes:
    ids: [m] int32, corpus ids of the landmarks.
    first: [m, D], the landmarks as the table holds them, g_0.
    present: [m, D], as they were last encoded, g_t; g_0 before that.
    factor: [F, F], lower triangular C that makes features of kernel values,
      phi(v) = C^-1 k(v); the identity where these are features already.
    inputs: [F, F], running sum of phi phi^T over the other rows seen.
    outputs: [F, D], running sum of phi (g_t - g_0)^T over the same.
    weights: [F, D], C^-T W.
    num_updates: [] int32, observations so far.
  """
  ids: jax.Array
  first: jax.Array
  present: jax.Array
  factor: jax.Array
  inputs: jax.Array
  outputs: jax.Array
  weights: jax.Array
  num_updates: jax.Array


@dataclasses.dataclass(frozen=True)
class Nystrom(learned.Learned):
  """Interpolates the drift between landmarks, by kernels on the first rows.

    h(v) = v + phi(v) W,    phi(v) = K_LL^-1/2 k(L, v)
    W = argmin sum_l |phi(l) W - (g_t(l) - g_0(l))|^2
               + sum_y w |phi(y) W - (g_t(y) - g_0(y))|^2 + penalty |W|^2

  L are m landmarks, rows of the table, of which `num_anchors` are encoded at
  each step, in turn: each comes again after R = m / num_anchors steps, and its
  latest encoding counts. y are the other rows that a step encodes for its own
  purposes, whose weight w decays by `decay` per step. g_0 is what the table
  holds, so nothing may be written to it.

  Kernels are <v, l> + 1 and exp(-|v - l|^2 / (2 (bandwidth s)^2)), s^2 being
  the mean squared distance of two landmarks. Without other rows both give
  v + k(v, L) (K_LL + penalty)^-1 (g_t(L) - g_0(L)). The first is computed from
  features (v, 1), whose inner products are k: the solution is the same (by the
  push-through identity) and costs 2 D^2 FLOPs per row, not 4 m D. It is that
  of `Linear`, but for the pairs that it is fitted to.

  Source: the Nystrom regression of Monath et al., AISTATS 2023. Its kernel, m,
    R, penalty and choice of landmarks are not known to us; all of these, the
    turns and the weight of other rows are ours. By the Cholesky factor in place
    of the square root, which turns phi and W but changes no prediction.

  Attributes:
    num_landmarks: m.
    landmarks: 'uniform', or 'greedy': each the farthest from those before it,
      of 8 m uniform rows.
    kernel: 'linear' or 'rbf'.
    bandwidth: of 'rbf', relative to s.
    ridge: penalty, relative; at least `ridge.least_ridge(F)`, with F = D + 1
      ('linear') or m.
    decay: in [0, 1]; 0: other rows count for the step in which they were seen.
    num_anchors: landmarks encoded at each step, 1 to m.
    use_after, keep_norm: see `Learned`.
  """
  num_landmarks: int
  landmarks: str
  kernel: str
  bandwidth: float
  ridge: float
  decay: float
  num_anchors: int
  use_after: int
  keep_norm: bool

  def __post_init__(self):
    for name, known in (('kernel', KERNELS), ('landmarks', LANDMARKS)):
      if getattr(self, name) not in known:
        raise ValueError(
            f'corrector.{name}={getattr(self, name)!r} is not one of {known}.')
    learned.check_range('num_landmarks', self.num_landmarks, 1)
    if not 1 <= self.num_anchors <= self.num_landmarks:
      raise ValueError(
          f'corrector.num_anchors={self.num_anchors} must be a number of '
          'landmarks to encode at each step, from 1 to corrector.num_landmarks='
          f'{self.num_landmarks}.')
    for name in ('bandwidth', 'ridge'):
      if not getattr(self, name) > 0:
        raise ValueError(
            f'corrector.{name}={getattr(self, name)} must be positive.')
    if not 0 <= self.decay <= 1:
      raise ValueError(f'corrector.decay={self.decay} must lie in [0, 1].')
    learned.check_range('use_after', self.use_after, 0)

  def init(self, key: jax.Array, table: types.TargetTable) -> NystromState:
    """Returns the state that has chosen its landmarks: the identity.

    Raises:
      ValueError: if `ridge` is too small for this many features.
    """
    dim = table.embeddings.shape[-1]
    size = self._num_features(dim)
    if self.ridge < ridges.least_ridge(size):
      raise ValueError(
          f'corrector.ridge={self.ridge} must be at least '
          f'{ridges.least_ridge(size):.1e} for {size} features '
          f'(corrector.kernel={self.kernel!r}), what float32 resolves.')
    chosen = tables.take(table, self._chosen(key, table))
    first = chosen.embeddings.astype(jnp.float32)
    factor = jnp.eye(size)
    if self.kernel == 'rbf':
      kernel = self._kernel_values(first, first)
      factor = jnp.linalg.cholesky(
          kernel + _JITTER * jnp.trace(kernel) * jnp.eye(size))
    return NystromState(
        ids=chosen.ids, first=first, present=jnp.copy(first), factor=factor,
        inputs=jnp.zeros((size, size)), outputs=jnp.zeros((size, dim)),
        weights=jnp.zeros((size, dim)), num_updates=jnp.zeros([], jnp.int32))

  def rebuild(self, state: NystromState, key: jax.Array,
              table: types.TargetTable) -> NystromState:
    """Returns the state of the new table, whose g_0 are others."""
    del state
    return self.init(key, table)

  def anchor_rows(self, state: NystromState, key: jax.Array,
                  table: types.TargetTable, step: jax.Array) -> jax.Array:
    """Returns the rows of the landmarks whose turn it is, [num_anchors]."""
    del key
    start = step % self.num_landmarks * self.num_anchors
    turn = (start + jnp.arange(self.num_anchors)) % self.num_landmarks
    return tables.rows_of(table, state.ids[turn])

  def moved(self, state: NystromState, stale: types.TargetTable) -> jax.Array:
    """Returns v + phi(v) W [..., D] float32, with |v| if `keep_norm`."""
    vectors = stale.embeddings.astype(jnp.float32)
    values = self._kernel_values(vectors, state.first)
    residual = ridges.product(values, state.weights)
    return (maps.moved(vectors, residual) if self.keep_norm
            else vectors + residual)

  @property
  def folds(self) -> bool:
    """Whether rows are moved by an affine map alone."""
    return self.kernel == 'linear' and not self.keep_norm

  def affine(self, state: NystromState) -> jax.Array:
    """Returns W [D + 1, D], of the kernel 'linear'."""
    return state.weights

  def update(self, state: NystromState, observation: types.Observation
             ) -> tuple[NystromState, Mapping[str, jax.Array]]:
    """Returns the state that also fits this observation; nothing to log."""
    stale, fresh = observation.stale, observation.fresh
    vectors = stale.embeddings.astype(jnp.float32)
    # A landmark counts once, however often and for whatever it was encoded.
    match = (observation.mask & (stale.ids >= 0))[:, None] & (
        stale.ids[:, None] == state.ids[None])  # [P, m]
    present = jnp.where(
        match.any(axis=0)[:, None], fresh[jnp.argmax(match, axis=0)],
        state.present)
    inputs, outputs = ridges.added(
        state.inputs, state.outputs,
        features=self._features(state.factor, vectors, state.first),
        displacements=fresh - vectors,
        mask=observation.mask & ~match.any(axis=1), decay=self.decay)
    of_landmarks = self._landmark_features(state)
    solution = ridges.solved(
        inputs + ridges.product(of_landmarks.T, of_landmarks),
        outputs + ridges.product(of_landmarks.T, present - state.first),
        self.ridge)
    return dataclasses.replace(
        state, present=present, inputs=inputs, outputs=outputs,
        weights=jax.scipy.linalg.solve_triangular(
            state.factor, solution, trans='T', lower=True),
        num_updates=state.num_updates + observation.mask.any()), {}

  def _chosen(self, key, table):
    """Returns the rows of the landmarks, [m] int32, distinct."""
    sample_key, order_key = jax.random.split(key)
    if self.landmarks == 'uniform':
      rows = tables.systematic_rows(sample_key, table, self.num_landmarks)
      # Neighbours of a corpus may be alike: their turns should not be.
      return jax.random.permutation(order_key, rows)
    rows = tables.systematic_rows(sample_key, table, min(
        _CANDIDATES * self.num_landmarks, table.num_slots))
    vectors = tables.take(table, rows).embeddings.astype(jnp.float32)
    return rows[_farthest_first(vectors, self.num_landmarks)]

  def _num_features(self, dim):
    return dim + 1 if self.kernel == 'linear' else self.num_landmarks

  def _kernel_values(self, vectors, landmarks):
    """Returns k(v, L) [..., m], or (v, 1) [..., D + 1] where k is of those."""
    if self.kernel == 'linear':
      return jnp.concatenate(
          [vectors, jnp.ones_like(vectors[..., :1])], axis=-1)
    square = lambda x: jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    centred = landmarks - landmarks.mean(axis=0, keepdims=True)
    spread = jnp.maximum(2 * square(centred).mean(), 1e-12)  # s^2
    inner = products.inner('...d,md->...m', vectors, landmarks)
    norms = jnp.broadcast_to(square(landmarks)[:, 0], inner.shape)
    distances = jnp.maximum(square(vectors) + norms - 2 * inner, 0.)
    return jnp.exp(-distances / (2 * self.bandwidth**2 * spread))

  def _features(self, factor, vectors, landmarks):
    """Returns phi(v) [P, F]."""
    values = self._kernel_values(vectors, landmarks)
    return jax.scipy.linalg.solve_triangular(factor, values.T, lower=True).T

  def _landmark_features(self, state):
    """Returns phi(l) [m, F].

    For 'rbf' C^-1 K_LL = C^T, but for the jitter, which thus adds to the
    penalty.
    """
    if self.kernel == 'linear':
      return self._kernel_values(state.first, state.first)
    return state.factor

  def flops_per_row(self, dim: int) -> float:
    """Returns the FLOPs of `apply` per row."""
    if self.kernel == 'linear':
      return 2. * dim**2
    return 4. * self.num_landmarks * dim

  def flops_per_update(self, num_rows: int, num_queries: int, dim: int
                       ) -> float:
    """Returns the FLOPs of `update` on `num_rows` observed rows.

    Features of the rows (kernel values for 'rbf', and the triangular factor);
    sums over them and over landmarks; the solution, and the factor again.
    """
    del num_queries
    size = self._num_features(dim)
    values = 0. if self.kernel == 'linear' else 2. * size * dim
    return (num_rows * (values + size**2)
            + ridges.flops_of_sums(num_rows + self.num_landmarks, size, dim)
            + ridges.flops_of_solution(size, dim) + size**2 * dim)


def _farthest_first(vectors: jax.Array, number: int) -> jax.Array:
  """Returns which vectors [n, D] are each the farthest from those before it.

  Args:
    vectors: [n, D] float32; the first one comes first.
    number: m <= n.

  Returns:
    [m] int32, distinct.
  """
  def body(place, carry):
    chosen, distances = carry
    new = vectors[chosen[place - 1]]
    distances = jnp.minimum(
        distances, jnp.sum(jnp.square(vectors - new[None]), axis=1))
    distances = distances.at[chosen[place - 1]].set(-1.)  # equals may be left
    farthest = jnp.argmax(distances).astype(jnp.int32)
    return chosen.at[place].set(farthest), distances

  return jax.lax.fori_loop(
      1, number, body, (jnp.zeros(number, jnp.int32),
                        jnp.full(len(vectors), jnp.inf)))[0]
