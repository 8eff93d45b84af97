"""A small residual network that follows the encoder: target correctors."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
from jax import numpy as jnp
import optax

from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.correctors import learned
from retrieval_jax.correctors import maps

_AGE_SCALE = 100.0


@types.register
@dataclasses.dataclass(frozen=True)
class MLPState:
  """State of an `MLP`; replicated.

  Attributes:
    params: Psi, of the network.
    average: exponential average of Psi, which corrects; () without averaging.
    opt_state: of Psi's own optimizer.
    step: [] int32, training step whose parameters the network aims at.
    num_updates: [] int32, observations so far.
  """
  params: Any
  average: Any
  opt_state: Any
  step: jax.Array
  num_updates: jax.Array


@dataclasses.dataclass(frozen=True)
class MLP(learned.Learned):
  """Adds a two-layer network's output to every stale row.

    u = v + W2 gelu(W1 v + b1) + b2,    h(v) = u |v| / |u|

  W2 and b2 start at zero, so h is the identity, bit for bit, until it has
  learned something. At each step Psi takes `updates_per_step` steps of AdamW on

    mean_P |h(v) - g|^2 + w KL(softmax(beta <q, g>) || softmax(beta <q, h(v)>))

  over the rows that the step encoded anyway. The softmaxes range over all
  observed rows, for every query of the batch (ours: a query's own draws would
  be few; a row observed twice counts twice).

  With `condition_on_age` the network also sees a = age / (age + 100) and its
  output is multiplied by a: a row written in this very step stays as it is.

  Source: Monath et al., ICML 2024: the correction network on the stale
    embedding and the drift loss at each training step. The paper's width and
    learning rate are not known to us; all defaults are ours. Ours too: keeping
    |v| (encoders normalise, so the norm is right already), age and averaging.

  Attributes:
    hidden: width of the network.
    learning_rate: peak rate of Psi, constant after the warm-up.
    warmup_steps: training steps over which the rate rises linearly, counted
      again after a reset.
    updates_per_step: optimizer steps on each observation, at least 1.
    weight_decay: decoupled decay of W1 and W2 per unit of learning rate.
    distribution_weight: w; 0 leaves the divergence out.
    average_decay: decay per training step of an exponential average of Psi
      that corrects in place of Psi, in [0, 1); 0 for none.
    condition_on_age: see above; for tables whose rows differ in age.
    num_anchors, use_after, keep_norm, reset_on_refresh: see `Learned`;
      keep_norm=False gives h(v) = u, for encoders that do not normalise.
  """
  hidden: int
  learning_rate: float
  warmup_steps: int
  updates_per_step: int
  weight_decay: float
  distribution_weight: float
  average_decay: float
  condition_on_age: bool
  num_anchors: int
  use_after: int
  keep_norm: bool
  reset_on_refresh: bool

  def __post_init__(self):
    for name, low, high in (
        ('hidden', 1, None), ('learning_rate', 0, None),
        ('warmup_steps', 0, None), ('updates_per_step', 1, None),
        ('weight_decay', 0, None), ('distribution_weight', 0, None),
        ('average_decay', 0, 1), ('num_anchors', 0, None),
        ('use_after', 0, None)):
      learned.check_range(name, getattr(self, name), low, high)

  def init(self, key: jax.Array, table: types.TargetTable) -> MLPState:
    """Returns the state whose network is the identity."""
    dim = table.embeddings.shape[-1]
    params = {
        'hidden': {
            'kernel': jax.random.normal(key, (dim, self.hidden)) * dim**-0.5,
            'bias': jnp.zeros(self.hidden)},
        'output': {'kernel': jnp.zeros((self.hidden, dim)),
                   'bias': jnp.zeros(dim)}}
    if self.condition_on_age:
      params['hidden']['age'] = jnp.zeros(self.hidden)
    return MLPState(
        params=params,
        average=jax.tree.map(jnp.array, params) if self.average_decay else (),
        opt_state=self._optimizer().init(params),
        step=jnp.zeros([], jnp.int32), num_updates=jnp.zeros([], jnp.int32))

  def moved(self, state: MLPState, stale: types.TargetTable) -> jax.Array:
    """Returns h(v) [..., D] float32 of the stale embeddings v."""
    params = state.average if self.average_decay else state.params
    return self._correct(params, stale, state.step)

  def update(self, state: MLPState, observation: types.Observation
             ) -> tuple[MLPState, Mapping[str, jax.Array]]:
    """Returns the state after an observation, and 'corrector_loss' [].

    An observation without any row changes nothing but the step.
    """
    gradient_of = jax.value_and_grad(self._loss)
    optimizer = self._optimizer()

    def body(carry, _):
      params, opt_state = carry
      loss, gradient = gradient_of(params, observation)
      updates, opt_state = optimizer.update(gradient, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), loss

    (params, opt_state), losses = jax.lax.scan(
        body, (state.params, state.opt_state), length=self.updates_per_step)
    average = state.average
    if self.average_decay:
      average = optax.incremental_update(
          params, average, 1 - self.average_decay)
    # Without a row, weight decay and moments would still change the network.
    seen = observation.mask.any()
    keep = lambda new, old: jax.tree.map(
        lambda a, b: jnp.where(seen, a, b), new, old)
    return MLPState(
        keep(params, state.params), keep(average, state.average),
        keep(opt_state, state.opt_state), observation.step + 1,
        state.num_updates + seen), {
            'corrector_loss': jnp.where(seen, losses[0], 0.0)}

  def _optimizer(self):
    warmup = self.warmup_steps * self.updates_per_step
    rate = lambda count: self.learning_rate * jnp.minimum(
        1.0, (count + 1) / max(warmup, 1))
    decayed = lambda params: jax.tree.map(lambda x: x.ndim >= 2, params)
    return optax.adamw(
        rate, weight_decay=self.weight_decay, mask=decayed)

  def _correct(self, params, stale, step):
    vectors = stale.embeddings.astype(jnp.float32)
    hidden = maps.affine(
        vectors, params['hidden']['kernel'], params['hidden']['bias'])
    if self.condition_on_age:
      age = jnp.maximum(tables.age(stale, step), 0).astype(jnp.float32)
      age = (age / (age + _AGE_SCALE))[..., None]
      hidden += age * jnp.broadcast_to(params['hidden']['age'], hidden.shape)
    residual = maps.affine(
        jax.nn.gelu(hidden), params['output']['kernel'],
        params['output']['bias'])
    if self.condition_on_age:
      residual *= age
    return (maps.moved(vectors, residual) if self.keep_norm
            else vectors + residual)

  def _loss(self, params, observation):
    stale, mask = observation.stale, observation.mask
    corrected = self._correct(params, stale, observation.step)
    count = jnp.maximum(mask.sum(), 1)
    distance = jnp.sum(jnp.square(corrected - observation.fresh), axis=-1)
    loss = jnp.where(mask, distance, 0.0).sum() / count
    if self.distribution_weight:
      log_softmax = lambda targets: jax.nn.log_softmax(jnp.where(
          mask, observation.scale * observation.queries @ targets.T, -1e30))
      target, ours = log_softmax(observation.fresh), log_softmax(corrected)
      divergence = jnp.sum(jnp.exp(target) * (target - ours), axis=1).mean()
      loss += self.distribution_weight * divergence
    return loss

  def flops_per_row(self, dim: int) -> float:
    """Returns the FLOPs of `apply` per row."""
    return 4. * dim * self.hidden

  def flops_per_update(self, num_rows: int, num_queries: int, dim: int
                       ) -> float:
    """Returns the FLOPs of `update` on `num_rows` observed rows.

    For the network the forward pass and, as its input needs no gradient, one
    and a half times that backward. For the divergence the logits of fresh rows,
    and those of corrected ones with their gradient.
    """
    network = 10. * dim * self.hidden
    divergence = 6. * num_queries * dim if self.distribution_weight else 0.
    return self.updates_per_step * num_rows * (network + divergence)
