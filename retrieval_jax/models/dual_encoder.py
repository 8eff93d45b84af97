"""Query and target towers over one tree of parameters."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from retrieval_jax.models import transformer
from retrieval_jax import types

POOLINGS = ('mean', 'cls')


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
    """Returns embeddings [n, D] float32 of tokens [n, L] int32."""
    table, rest = self.split(params)
    return self.body(rest, transformer.look_up(table, tokens), tokens)

  def split(self, params: types.Params) -> tuple[jax.Array, types.Params]:
    """Returns the tower's token table [V, H] and the params without it."""
    tower = dict(params[self.name])
    tower['transformer'] = dict(tower['transformer'])
    table = tower['transformer'].pop('token_table')
    return table, {**params, self.name: tower}

  def merge(self, table: jax.Array, rest: types.Params) -> types.Params:
    """Undoes `split`, for params and for their gradients."""
    tower = dict(rest[self.name])
    tower['transformer'] = {**tower['transformer'], 'token_table': table}
    return {**rest, self.name: tower}

  def body(self, rest: types.Params, token_vectors: jax.Array,
           tokens: jax.Array) -> jax.Array:
    """Returns [n, D] float32 from token vectors [n, L, H] and tokens."""
    model, params = self.model, rest[self.name]
    hidden = transformer.Transformer(model.config).apply(
        {'params': params['transformer']}, tokens, token_vectors)
    pooled = pool(hidden, tokens != model.config.pad_id, model.pooling)
    if model.projection is not None:
      pooled = pooled @ params['projection']['kernel']
    return normalise(pooled) if model.normalize else pooled


@dataclasses.dataclass(frozen=True)
class DualEncoder:
  """A dual encoder: how queries and targets become vectors of one space.

  Frozen and hashable; parameters are a dict with an entry 'tower' (tied) or
  'query_tower' and 'target_tower', each {'transformer': ..., 'projection':
  {'kernel': [H, D]} where there is one}, and 'log_scale' [] where learned.

  Attributes:
    config: of the transformer.
    pooling: 'mean' over the tokens that are not padding, or 'cls': the first.
    projection: D of a linear map without bias after pooling; None for none.
    normalize: give every embedding length one.
    tied: one tower for queries and targets.
    scale: beta in exp(beta <q, g>); the initial value where learned.
    learn_scale: train log beta with the other parameters.
  """
  config: transformer.TransformerConfig
  pooling: str = 'mean'
  projection: int | None = None
  normalize: bool = True
  tied: bool = True
  scale: float = 20.
  learn_scale: bool = False

  def __post_init__(self):
    if self.pooling not in POOLINGS:
      raise ValueError(
          f'pooling={self.pooling!r} must be one of {", ".join(POOLINGS)}.')
    if self.projection is not None and self.projection < 1:
      raise ValueError(
          f'projection={self.projection} must be at least 1, or None for no '
          'projection.')
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
    return params

  def with_pretrained(self, params: types.Params,
                      transformer_params: types.Params) -> types.Params:
    """Returns params with every tower's transformer replaced by a copy.

    Args:
      params: as `init` returns them.
      transformer_params: as `pretrained.load_pretrained` returns them.

    Raises:
      ValueError: naming the first parameter of another shape.
    """
    for name in self.tower_names:
      _check_same_shapes(params[name]['transformer'], transformer_params)
    # Copies, so that donating one tower never invalidates the other.
    return {**params, **{
        name: {**params[name],
               'transformer': jax.tree.map(jnp.array, transformer_params)}
        for name in self.tower_names}}

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
    if self.tied and not other.tied:
      raise ValueError(
          'The parameters to start from have two towers; set '
          'model.tied=False.')
    sources = other.tower_names if len(other.tower_names) == len(
        self.tower_names) else other.tower_names * 2
    # Copies, so that donating one tower never invalidates the other.
    return {**params, **{
        name: jax.tree.map(jnp.array, other_params[source])
        for name, source in zip(self.tower_names, sources)}}

  def scale_of(self, params: types.Params) -> jax.Array:
    """Returns beta, [] float32."""
    if self.learn_scale:
      return jnp.exp(params['log_scale'])
    return jnp.float32(self.scale)

  def _init_tower(self, key):
    transformer_key, projection_key = jax.random.split(key)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = transformer.Transformer(self.config).init(
        transformer_key, tokens)['params']
    tower = {'transformer': params}
    if self.projection is not None:
      hidden = self.config.hidden_size
      kernel = jax.random.normal(projection_key, (hidden, self.projection))
      tower['projection'] = {'kernel': kernel / math.sqrt(hidden)}
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
  """Returns [n, H] from hidden [n, L, H]; zeros for a mean over no tokens."""
  if pooling == 'cls':
    return hidden[:, 0]
  weights = mask.astype(hidden.dtype)
  total = jnp.sum(hidden * weights[:, :, None], axis=1)
  return total / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.)


def normalise(x: jax.Array) -> jax.Array:
  """Returns x [n, D] with rows of length one; a row of zeros stays zero.

  The square root is kept away from zero on the way in, or the gradient of a
  row of zeros would be nan.
  """
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  positive = square > 0.
  length = jnp.sqrt(jnp.where(positive, square, 1.))
  return jnp.where(positive, x / length, x * 0.)
