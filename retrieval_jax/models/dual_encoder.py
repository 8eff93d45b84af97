"""Query and target towers over one tree of parameters."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from retrieval_jax import base_params
from retrieval_jax import types
from retrieval_jax.models import dense
from retrieval_jax.models import lora as adapters
from retrieval_jax.models import transformer

POOLINGS = ('mean', 'cls', 'max', 'mean_sqrt_len', 'weightedmean', 'lasttoken')

ACTIVATIONS = {
    'identity': lambda x: x,
    'tanh': jnp.tanh,
    'relu': jax.nn.relu,
    'gelu': lambda x: jax.nn.gelu(x, approximate=False),
    'sigmoid': jax.nn.sigmoid,
}
"""What may follow the projection."""


@dataclasses.dataclass(frozen=True)
class Tower:
  """An `encode(params, tokens) -> [n, D]` that can be taken apart.

  It equals `body(rest, look_up(table, tokens), tokens)` with
  `table, rest = split(params)`, which lets `chunking.py` keep the gradient of
  the token table, nearly empty and often larger than all others together, out
  of what it adds up per chunk.

  Attributes:
    model: the DualEncoder.
    name: of the tower's entry in the params.
  """
  model: 'DualEncoder'
  name: str

  def __call__(self, params: types.Params, tokens: jax.Array) -> jax.Array:
    """Returns embeddings [n, D] float32 of tokens [n, L] int32.

    Each text is followed by -1, padding.
    """
    table, rest = self.split(params)
    return self.body(rest, transformer.look_up(table, tokens), tokens)

  def trains_table(self, params: types.Params) -> bool:
    """Returns whether the token table is not among `base_params`."""
    return base_params.KEY not in params

  def split(self, params: types.Params) -> tuple[jax.Array, types.Params]:
    """Returns the tower's token table [V, H] and the params without it."""
    tower = dict(self._holder(params)[self.name])
    tower['transformer'] = dict(tower['transformer'])
    table = tower['transformer'].pop('token_table')
    return table, self._with(params, tower)

  def merge(self, table: jax.Array, rest: types.Params) -> types.Params:
    """Undoes `split`, for params and for their gradients."""
    tower = dict(self._holder(rest)[self.name])
    tower['transformer'] = {**tower['transformer'], 'token_table': table}
    return self._with(rest, tower)

  def _holder(self, params):
    """Returns what has the tower's entry with the transformer."""
    return params if self.trains_table(params) else params[base_params.KEY]

  def _with(self, params, tower):
    """Returns params with another such entry."""
    if self.trains_table(params):
      return {**params, self.name: tower}
    return {**params, base_params.KEY: {
        **params[base_params.KEY], self.name: tower}}

  def body(self, rest: types.Params, token_vectors: jax.Array,
           tokens: jax.Array) -> jax.Array:
    """Returns [n, D] float32 from token vectors [n, L, H] and tokens."""
    model, params = self.model, rest[self.name]
    variables = {'params': self._holder(rest)[self.name]['transformer']}
    if model.lora is not None:
      variables[dense.ADAPTERS] = model.lora.scaled(params['lora'])
    hidden = model.config.module().apply(
        variables, tokens, token_vectors.astype(
            jnp.promote_types(token_vectors.dtype, jnp.float32)))
    pooled = pool(hidden, tokens >= 0, model.pooling)
    if model.projection is not None:
      pooled = pooled @ params['projection']['kernel']
      if model.projection_bias:
        pooled = pooled + params['projection']['bias'][None]
      pooled = ACTIVATIONS[model.projection_activation](pooled)
    return normalise(pooled) if model.normalize else pooled


@dataclasses.dataclass(frozen=True)
class DualEncoder:
  """A dual encoder: how queries and targets become vectors of one space.

  Frozen and hashable; parameters are a dict with an entry 'tower' (tied) or
  'query_tower' and 'target_tower', each {'transformer': ..., 'projection':
  {'kernel': [H, D], 'bias': [D]} where there is one}, and 'log_scale' [] where
  learned. With low-rank adapters a tower has an entry 'lora' in place of
  'transformer', which is in params['base'][tower] then; see `lora` and
  `base_params`.

  Attributes:
    config: of the encoder; see `families` for what it must have.
    pooling: one of POOLINGS, of the tokens that are not padding; see `pool`.
    projection: D of a linear map after pooling; None for none.
    projection_bias: the map has a bias.
    projection_activation: a key of ACTIVATIONS, what follows the map.
    normalize: give every embedding length one.
    tied: one tower for queries and targets.
    scale: beta in exp(beta <q, g>); the initial value where learned.
    learn_scale: train log beta with the other parameters.
    lora: the low-rank adapters that are trained in place of the transformers;
      None for none.
  """
  config: Any
  pooling: str = 'mean'
  projection: int | None = None
  projection_bias: bool = False
  projection_activation: str = 'identity'
  normalize: bool = True
  tied: bool = True
  scale: float = 20.
  learn_scale: bool = False
  lora: adapters.Lora | None = None

  def __post_init__(self):
    if self.pooling not in POOLINGS:
      raise ValueError(
          f'pooling={self.pooling!r} must be one of {", ".join(POOLINGS)}.')
    if self.projection is not None and self.projection < 1:
      raise ValueError(
          f'projection={self.projection} must be at least 1, or None for no '
          'projection.')
    if self.projection_activation not in ACTIVATIONS:
      raise ValueError(
          f'projection_activation={self.projection_activation!r} must be one '
          f'of {", ".join(ACTIVATIONS)}.')
    if not (self.scale > 0 and math.isfinite(self.scale)):
      raise ValueError(f'scale={self.scale} must be positive and finite.')

  @property
  def dim(self) -> int:
    """D, the dimension of the embeddings."""
    return self.projection or self.config.hidden_size

  @property
  def tower_names(self) -> tuple[str, ...]:
    """The names of the towers in the params."""
    return ('tower',) if self.tied else ('query_tower', 'target_tower')

  @property
  def encode_queries(self) -> Tower:
    """(params, tokens [n, L] int32) -> [n, D] float32."""
    return Tower(self, self.tower_names[0])

  @property
  def encode_targets(self) -> Tower:
    """(params, tokens [n, L] int32) -> [n, D] float32."""
    return Tower(self, self.tower_names[-1])

  def flops(self, length: int) -> float:
    """Returns the matmul FLOPs of encoding one text of `length` tokens."""
    projection = 2. * self.config.hidden_size * (self.projection or 0)
    return self.config.flops(length) + projection

  def init(self, key: jax.Array) -> types.Params:
    """Returns random parameters, float32."""
    keys = jax.random.split(key, len(self.tower_names))
    params = {name: self._init_tower(key)
              for name, key in zip(self.tower_names, keys)}
    if self.learn_scale:
      params['log_scale'] = jnp.float32(math.log(self.scale))
    if self.lora is not None:
      lora_key = jax.random.fold_in(key, len(keys))
      params = self.lora.adapt(
          self.config, params, self.tower_names, lora_key)
    return params

  def with_pretrained(self, params: types.Params,
                      *towers: types.Params) -> types.Params:
    """Returns params with what is pretrained in every tower replaced by a copy.

    Args:
      params: as `init` returns them.
      *towers: one for all towers or one for each: a dict with 'transformer',
        as `pretrained.load_pretrained` returns its params, and 'projection'
        where that is pretrained too.

    Raises:
      ValueError: naming the first parameter of another shape, or if there are
        two towers for this model's one.
    """
    by_name = self._one_for_each(towers)
    for name, tower in by_name.items():
      for part in tower:
        _check_same_shapes(params[name][part], tower[part])
    # Copies, so that donating one tower never invalidates the other.
    return {**params, **{
        name: {**params[name], **jax.tree.map(jnp.array, tower)}
        for name, tower in by_name.items()}}

  def _one_for_each(self, towers):
    """Returns tower name -> the one of `towers` that it starts from."""
    if self.tied and len(towers) > 1:
      raise ValueError(
          'The parameters to start from have two towers; set '
          'model.tied=False.')
    return dict(zip(self.tower_names,
                    towers * 2 if len(towers) == 1 else towers))

  def with_towers_of(self, params: types.Params, other: 'DualEncoder',
                     other_params: types.Params) -> types.Params:
    """Returns params with the towers of another model's params.

    One tower may become two, equal at first; the temperature stays.

    Args:
      params: as `init` returns them.
      other: equal to this model but for `tied`, `scale` and `learn_scale`.
      other_params: its parameters.

    Raises:
      ValueError: if `other` has two towers and this model one.
    """
    # Copies, so that donating one tower never invalidates the other.
    return {**params, **{
        name: jax.tree.map(jnp.array, other_params[source])
        for name, source in self._one_for_each(other.tower_names).items()}}

  def merged(self, params: types.Params
             ) -> tuple['DualEncoder', types.Params]:
    """Returns the same dual encoder, and its params, without adapters.

    Their products are in its kernels. Without any it is this one.
    """
    if self.lora is None:
      return self, params
    return dataclasses.replace(self, lora=None), self.lora.merge(
        self.config, params, self.tower_names)

  def scale_of(self, params: types.Params) -> jax.Array:
    """Returns beta, [] float32."""
    if self.learn_scale:
      return jnp.exp(params['log_scale'])
    return jnp.float32(self.scale)

  def _init_tower(self, key):
    transformer_key, projection_key = jax.random.split(key)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = self.config.module().init(transformer_key, tokens)['params']
    tower = {'transformer': params}
    if self.projection is not None:
      hidden = self.config.hidden_size
      kernel = jax.random.normal(projection_key, (hidden, self.projection))
      tower['projection'] = {'kernel': kernel / math.sqrt(hidden)}
      if self.projection_bias:
        tower['projection']['bias'] = jnp.zeros((self.projection,))
    return tower


def _check_same_shapes(ours, theirs):
  ours, theirs = (
      {jax.tree_util.keystr(path): value.shape for path, value
       in jax.tree_util.tree_leaves_with_path(tree)}
      for tree in (ours, theirs))
  for name in sorted(set(ours) | set(theirs)):
    if ours.get(name) != theirs.get(name):
      raise ValueError(
          f'parameter {name} has shape {ours.get(name)} in the model, but '
          f'{theirs.get(name)} in the pretrained weights; build the model '
          'from the config that came with the weights.')


def pool(hidden: jax.Array, mask: jax.Array, pooling: str) -> jax.Array:
  """Returns one vector per text, as sentence-transformers names the ways.

  With m tokens that are not padding:
    cls            the vector of the first token
    lasttoken      that of the last of the m
    max            the largest value of each dimension over the m
    mean           sum over the m / m
    mean_sqrt_len  sum over the m / sqrt(m)
    weightedmean   the mean with weight i for the token at position i = 1, 2...

  Args:
    hidden: [n, L, H] float32.
    mask: [n, L] bool, False for padding, which is at the end.
    pooling: one of POOLINGS.

  Returns:
    [n, H]; for a text of padding only, zeros, or with 'cls' and 'lasttoken'
    the vector of its first token.
  """
  if pooling == 'cls':
    return hidden[:, 0]
  if pooling == 'lasttoken':
    last = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
  if pooling == 'max':
    largest = jnp.max(jnp.where(mask[:, :, None], hidden, -jnp.inf), axis=1)
    return jnp.where(jnp.any(mask, axis=1, keepdims=True), largest, 0.)
  weights = mask.astype(hidden.dtype)
  if pooling == 'weightedmean':
    weights *= jnp.arange(1, mask.shape[1] + 1, dtype=hidden.dtype)[None]
  total = jnp.sum(hidden * weights[:, :, None], axis=1)
  count = jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.)
  return total / (jnp.sqrt(count) if pooling == 'mean_sqrt_len' else count)


def normalise(x: jax.Array) -> jax.Array:
  """Returns x [n, D] with rows of length one; a row of zeros stays zero.

  The square root is kept away from zero on the way in, or the gradient of a
  row of zeros would be nan.
  """
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  positive = square > 0.
  length = jnp.sqrt(jnp.where(positive, square, 1.))
  return jnp.where(positive, x / length, x * 0.)
