"""The block of today's encoders: rotary positions, gates, grouped queries.

One module; which family it is is a matter of its config. Parameter names are
ours, `families/modern.py` maps published ones to them:

  token_table [V, H]
  embeddings/{types [T, H] where there are any, norm}
  layer_i/attention/{norm, qkv_kernel [H, (heads + 2 kv) S], out_kernel,
                     q_norm_scale [S], k_norm_scale [S], post_norm}
  layer_i/mlp/{norm, up_kernel [H, 2 F], down_kernel [F, H], post_norm}
  final_norm

with S = head_size; a `norm` is norm_scale [H] and maybe norm_bias [H], and a
kernel may have a bias. The first half of `up_kernel` goes through the
activation, the second is multiplied with it.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from retrieval_jax.models import dense
from retrieval_jax.models import layers
from retrieval_jax.models import transformer

_INIT_STDDEV = 0.02
NORMS = ('layer', 'rms', 'rms_plus_one')
NORMS_AT = ('before', 'after', 'around')
BIASES = ('qkv', 'out', 'up', 'down')
ACTIVATIONS = {
    'gelu': lambda x: jax.nn.gelu(x, approximate=False),
    'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
    'silu': jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class ModernConfig:
  """The shape of an encoder; `transformer.TransformerConfig` has the rest.

  Attributes:
    vocab_size: V, rows of the token table.
    hidden_size: H.
    num_layers: number of blocks; 0 leaves the embeddings, normalised where the
      architecture does.
    num_heads: heads of queries.
    num_kv_heads: heads of keys and values, each for as many of the queries'.
    head_size: S of one head; all together need not be H.
    intermediate_size: F, width of the feed-forward layers.
    max_positions: longest text in tokens.
    norm: 'layer', LayerNorm; 'rms', over the root mean square; 'rms_plus_one',
      the same with 1 + scale in place of scale.
    norm_at: 'before' attention and feed-forward layers, and once at the end;
      'after' the residual is added, and of the embeddings, not at the end;
      'around', before and after each, and at the end.
    norm_bias: of a 'layer' norm.
    norm_eps: added to the variance or the mean square.
    first_norm: whether layer 0 has one before its attention.
    embedding_norm: whether the embeddings are normalised.
    embedding_scale: what the token vectors are multiplied by.
    type_vocab_size: rows of the token type table, of which all tokens are 0.
    activation: a key of ACTIVATIONS, of the gate.
    biases: those of BIASES that there are.
    qk_norm: whether each head of queries and keys is normalised, before
      rotation.
    query_scale: what attention logits are multiplied by; 0 for 1 / sqrt(S).
    causal: a token sees itself and those before it.
    global_layers: the layers whose tokens see all others; None for all layers.
    window: the greatest distance that tokens see in other layers.
    theta: base of the rotation's wavelengths, in global layers.
    local_theta: the same in others.
    ntk_factor: by which wavelengths are stretched, see `rotation`.
    pad_id: what published code pads with, None where it does not say; here
      padding is -1.
    model_type: what config.json calls it; a key of `families.FAMILIES`.
    dtype: of matmuls and attention; the rest is float32.
    remat: recompute each block in the backward pass instead of keeping it.
  """
  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_size: int
  intermediate_size: int
  max_positions: int
  norm: str
  norm_at: str
  norm_eps: float
  activation: str
  theta: float
  model_type: str
  norm_bias: bool = False
  first_norm: bool = True
  embedding_norm: bool = False
  embedding_scale: float = 1.
  type_vocab_size: int = 0
  biases: tuple[str, ...] = ()
  qk_norm: bool = False
  query_scale: float = 0.
  causal: bool = False
  global_layers: tuple[int, ...] | None = None
  window: int = 0
  local_theta: float = 0.
  ntk_factor: float = 1.
  pad_id: int | None = None
  dtype: str = 'float32'
  remat: bool = False

  def __post_init__(self):
    for name in ('biases', 'global_layers'):  # which JSON makes lists
      if getattr(self, name) is not None:
        object.__setattr__(self, name, tuple(getattr(self, name)))
    transformer.check_shape(
        self, 'vocab_size', 'hidden_size', 'num_heads', 'num_kv_heads',
        'head_size', 'intermediate_size', 'max_positions', pads=False)
    for name in ('window', 'type_vocab_size'):
      if getattr(self, name) < 0:
        raise ValueError(
            f'{name}={getattr(self, name)} must not be negative.')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
          f'num_heads={self.num_heads} must be a multiple of '
          f'num_kv_heads={self.num_kv_heads}.')
    if self.head_size % 2:
      raise ValueError(
          f'head_size={self.head_size} must be even: halves are rotated.')
    for name, allowed in (
        ('norm', NORMS), ('norm_at', NORMS_AT), ('activation', ACTIVATIONS)):
      if getattr(self, name) not in allowed:
        raise ValueError(f'{name}={getattr(self, name)!r} must be one of '
                         f'{", ".join(allowed)}.')
    for name in ('theta',) + (() if self.global_layers is None
                              else ('local_theta',)):
      if not getattr(self, name) > 0:
        raise ValueError(f'{name}={getattr(self, name)} must be positive.')

  @property
  def qkv_widths(self) -> tuple[int, int, int]:
    """Of queries, keys and values, all heads together."""
    keys = self.num_kv_heads * self.head_size
    return self.num_heads * self.head_size, keys, keys

  def is_global(self, layer: int) -> bool:
    """Whether tokens of a layer see all others."""
    return self.global_layers is None or layer in self.global_layers

  def flops(self, length: int) -> float:
    """Returns the matmul FLOPs of encoding one text of `length` tokens.

    Attention counts all pairs of tokens, masked ones too.
    """
    inner = self.num_heads * self.head_size
    weights = self.hidden_size * (
        sum(self.qkv_widths) + inner + 3 * self.intermediate_size)
    return 2. * length * self.num_layers * (weights + 2 * length * inner)

  def module(self) -> nn.Module:
    """Returns the encoder of this shape."""
    return ModernEncoder(self)


def _norm(module, config, name, x):
  """Returns x normalised by parameters of `module`, in float32."""
  shape = x.shape[-1:]
  start = (nn.initializers.zeros if config.norm == 'rms_plus_one'
           else nn.initializers.ones)
  scale = module.param(f'{name}_scale', start, shape)
  ones = (1,) * (x.ndim - 1) + (-1,)
  if config.norm == 'layer':
    x = x - jnp.mean(x, axis=-1, keepdims=True)
  x = x * jax.lax.rsqrt(
      jnp.mean(jnp.square(x), axis=-1, keepdims=True) + config.norm_eps)
  x = x * (scale + (config.norm == 'rms_plus_one')).reshape(ones)
  if config.norm == 'layer' and config.norm_bias:
    bias = module.param(f'{name}_bias', nn.initializers.zeros, shape)
    x = x + bias.reshape(ones)
  return x


def _dense(module, config, name, x, width):
  """Returns x [..., I] times a kernel [I, width], in float32."""
  kernel = dense.param(module, f'{name}_kernel',
                       nn.initializers.normal(_INIT_STDDEV),
                       (x.shape[-1], width))
  bias = None
  if name in config.biases:
    bias = module.param(f'{name}_bias', nn.initializers.zeros, (width,))
  return dense.apply(x, kernel, jnp.dtype(config.dtype), bias)


def rotation(length: int, head_size: int, theta: float, ntk_factor: float = 1.
             ) -> tuple[jax.Array, jax.Array]:
  """Returns (cosines, sines) [length, head_size / 2] float32 of positions.

  Source: Su et al., 2021 (arXiv 2104.09864), eq. 34, with pairs of dimensions
  (d, d + S / 2) as published weights have them, not (2 d, 2 d + 1). A factor
  other than 1 stretches wavelength 2 pi theta^(2 d / S) by
  factor^((2 d + 2) / S), the last by it all: the fixed NTK scaling of GTE.
  """
  exponents = jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size
  stretch = ntk_factor ** (exponents + 2 / head_size)
  angles = (jnp.arange(length, dtype=jnp.float32)[:, None]
            / (theta ** exponents * stretch)[None])
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Returns x [n, L, heads, S] turned by `rotation`."""
  cosines, sines = (part[None, :, None] for part in turn)
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([
      first * cosines - second * sines, second * cosines + first * sines], -1)


class _Residual(nn.Module):
  """x + f(x) with the norms of the config; f is `inner` of a subclass.

  Attributes:
    config: ModernConfig.
    layer: number of the block.
  """
  config: ModernConfig
  layer: int

  def apply_around(self, x, inner, first_norm=True):
    cfg = self.config
    y = x
    if cfg.norm_at != 'after' and first_norm:
      y = _norm(self, cfg, 'norm', y)
    y = inner(y)
    if cfg.norm_at == 'around':
      y = _norm(self, cfg, 'post_norm', y)
    x = x + y
    return _norm(self, cfg, 'norm', x) if cfg.norm_at == 'after' else x


class _Attention(_Residual):
  """Self-attention of one block."""

  @nn.compact
  def __call__(self, x, lengths, turn):
    return self.apply_around(
        x, lambda y: self._attend(y, lengths, turn),
        first_norm=self.layer > 0 or self.config.first_norm)

  def _attend(self, x, lengths, turn):
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    n, length, hidden = x.shape
    widths = cfg.qkv_widths
    qkv = _dense(self, cfg, 'qkv', x, sum(widths))
    query, key, value = (
        part.reshape(n, length, -1, cfg.head_size) for part in jnp.split(
            qkv, (widths[0], widths[0] + widths[1]), axis=-1))
    if cfg.qk_norm:
      query = _norm(self, cfg, 'q_norm', query)
      key = _norm(self, cfg, 'k_norm', key)
    query, key = rotate(query, turn), rotate(key, turn)
    y = jax.nn.dot_product_attention(
        query.astype(dtype), key.astype(dtype), value.astype(dtype),
        scale=cfg.query_scale or cfg.head_size ** -0.5,
        key_value_seq_lengths=lengths, is_causal=cfg.causal,
        local_window_size=None if cfg.is_global(self.layer) else (
            cfg.window, 0 if cfg.causal else cfg.window))
    return _dense(self, cfg, 'out', y.reshape(n, length, -1), hidden)


class _Mlp(_Residual):
  """The gated feed-forward layers of one block."""

  @nn.compact
  def __call__(self, x):
    return self.apply_around(x, self._feed_forward)

  def _feed_forward(self, x):
    cfg = self.config
    gate, up = jnp.split(
        _dense(self, cfg, 'up', x, 2 * cfg.intermediate_size), 2, axis=-1)
    y = ACTIVATIONS[cfg.activation](gate) * up
    return _dense(self, cfg, 'down', y, x.shape[-1])


class _Block(nn.Module):
  """One block: attention, then the feed-forward layers."""
  config: ModernConfig
  layer: int

  @nn.compact
  def __call__(self, x, lengths, turn):
    """Returns [n, L, H] float32.

    Args:
      x: [n, L, H] float32.
      lengths: [n] int32.
      turn: `rotation` of L positions, as this layer turns them.
    """
    x = _Attention(self.config, self.layer, name='attention')(x, lengths, turn)
    return _Mlp(self.config, self.layer, name='mlp')(x)


class _Embeddings(nn.Module):
  """Scales token vectors, adds the token type and normalises."""
  config: ModernConfig

  @nn.compact
  def __call__(self, x):
    cfg = self.config
    x = x * cfg.embedding_scale
    if cfg.type_vocab_size:
      types = self.param('types', nn.initializers.normal(_INIT_STDDEV),
                         (cfg.type_vocab_size, cfg.hidden_size))
      x = x + types[None, :1]
    return _norm(self, cfg, 'norm', x) if cfg.embedding_norm else x


class ModernEncoder(nn.Module):
  """Maps tokens to contextual vectors, one per token.

  Sources: rotary positions, Su et al., 2021 (arXiv 2104.09864); gates, Shazeer,
  2020 (2002.05202); grouped queries, Ainslie et al., EMNLP 2023; local and
  global layers, Warner et al., 2024 (ModernBERT, 2412.13663). Deviation: no
  dropout.
  """
  config: ModernConfig

  @nn.compact
  def __call__(self, tokens: jax.Array,
               token_vectors: jax.Array | None = None) -> jax.Array:
    """Returns hidden vectors [n, L, H] float32.

    Args:
      tokens: [n, L] int32, each text followed by -1, padding, whose vectors are
        finite and meaningless.
      token_vectors: [n, L, H] float32, rows of the token table when they were
        looked up outside; the table is not touched then.

    Raises:
      ValueError: where tokens is not [n, L] or L exceeds `max_positions`.
    """
    cfg = self.config
    transformer.check_tokens(tokens, cfg.max_positions)
    if token_vectors is None:
      table = self.param('token_table', nn.initializers.normal(_INIT_STDDEV),
                         (cfg.vocab_size, cfg.hidden_size))
      token_vectors = transformer.look_up(table, tokens)
    x = _Embeddings(cfg, name='embeddings')(token_vectors)
    lengths = jnp.sum(tokens >= 0, axis=1, dtype=jnp.int32)
    turn_by = {theta: rotation(tokens.shape[1], cfg.head_size, theta,
                               cfg.ntk_factor)
               for theta in {cfg.theta, cfg.local_theta or cfg.theta}}
    theta = lambda i: cfg.theta if cfg.is_global(i) else cfg.local_theta
    x = layers.run(
        self, _Block, cfg.num_layers, x, lambda i: (lengths, turn_by[theta(i)]),
        options=lambda i: (cfg, i), remat=cfg.remat,
        kind=lambda i: (cfg.is_global(i), i > 0 or cfg.first_norm))
    return x if cfg.norm_at == 'after' else _norm(self, cfg, 'final_norm', x)
