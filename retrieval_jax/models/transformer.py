"""A BERT-type transformer encoder.

Parameter names are ours, `families/bert.py` maps published ones to them:

  token_table [V, H]
  relative_bias [buckets, heads], of MPNet alone
  embeddings/{positions [P, H], types [T, H], norm_scale [H], norm_bias [H]}
  layer_i/attention/{qkv_kernel [H, 3H], qkv_bias [3H],
                     out_kernel [H, H], out_bias [H], norm_scale, norm_bias}
  layer_i/mlp/{up_kernel [H, F], up_bias [F], down_kernel [F, H],
               down_bias [H], norm_scale, norm_bias}

The token table is at the top level because its gradient is large and nearly
empty: `chunking.py` keeps it apart from the rest.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from retrieval_jax.models import dense
from retrieval_jax.models import layers
from retrieval_jax.models import relative_positions

_INIT_STDDEV = 0.02  # BERT's initializer_range.
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The shape of a BERT-type encoder.

  Attributes:
    vocab_size: V, rows of the token table.
    hidden_size: H, a multiple of `num_heads`.
    num_layers: number of blocks; 0 leaves the normalised embeddings.
    num_heads: attention heads.
    intermediate_size: F, width of the feed-forward layers.
    max_positions: longest text in tokens.
    type_vocab_size: rows of the token type table; all tokens are of type 0
      unless a caller says more. 0 for a model without one.
    layer_norm_eps: added to the variance.
    pad_id: what published code pads with, and counts positions from where the
      family does; here padding is -1.
    relative_buckets: of distances between tokens, each with a bias per head
      that all layers share; 0 for none.
    model_type: what config.json calls it; a key of `families.FAMILIES`, which
      decides nothing but how it is exported.
    dtype: of matmuls and attention: 'float32', or 'bfloat16', which is faster
      on GPU, TPU and CPUs with avx512_bf16; parameters, layer normalisation,
      softmax and the result are float32 either way.
    remat: recompute each block in the backward pass instead of keeping it.
  """
  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  intermediate_size: int
  max_positions: int = 512
  type_vocab_size: int = 0
  layer_norm_eps: float = 1e-12
  pad_id: int = 0
  relative_buckets: int = 0
  model_type: str = 'bert'
  dtype: str = 'float32'
  remat: bool = False

  def __post_init__(self):
    check_shape(self, 'vocab_size', 'hidden_size', 'num_heads',
                'intermediate_size', 'max_positions')
    if self.hidden_size % self.num_heads:
      raise ValueError(
          f'hidden_size={self.hidden_size} must be a multiple of '
          f'num_heads={self.num_heads}.')

  def flops(self, length: int) -> float:
    """Returns the matmul FLOPs of encoding one text of `length` tokens."""
    hidden, wide = self.hidden_size, self.intermediate_size
    weights = 4 * hidden * hidden + 2 * hidden * wide
    attention = 2 * length * hidden
    return 2. * length * self.num_layers * (weights + attention)

  def module(self) -> nn.Module:
    """Returns the encoder of this shape."""
    return Transformer(self)


def _layer_norm(x, scale, bias, eps):
  """Returns x [..., H] normalised over its last axis, in float32."""
  ones = (1,) * (x.ndim - 1) + (-1,)
  mean = jnp.mean(x, axis=-1, keepdims=True)
  centred = x - mean
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  # Not E[x^2] - E[x]^2, which loses digits that the reference keeps.
  return (centred * jax.lax.rsqrt(variance + eps) * scale.reshape(ones)
          + bias.reshape(ones))


class _Block(nn.Module):
  """One post-LN block: attention, then the feed-forward layers."""
  config: TransformerConfig

  @nn.compact
  def __call__(self, x, mask, bias):
    """Returns [n, L, H] float32.

    Args:
      x: [n, L, H] float32.
      mask: [n, 1, 1, L] bool, what may be attended to.
      bias: [1, heads, L, L] added to attention logits, or None.
    """
    x = _Attention(self.config, name='attention')(x, mask, bias)
    return _Mlp(self.config, name='mlp')(x)


class _Attention(nn.Module):
  """Self-attention with its residual and layer normalisation."""
  config: TransformerConfig

  @nn.compact
  def __call__(self, x, mask, bias):
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    n, length, hidden = x.shape
    normal = nn.initializers.normal(_INIT_STDDEV)
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    qkv_kernel = dense.param(self, 'qkv_kernel', normal, (hidden, 3 * hidden))
    qkv_bias = self.param('qkv_bias', zeros, (3 * hidden,))
    out_kernel = dense.param(self, 'out_kernel', normal, (hidden, hidden))
    out_bias = self.param('out_bias', zeros, (hidden,))
    norm_scale = self.param('norm_scale', ones, (hidden,))
    norm_bias = self.param('norm_bias', zeros, (hidden,))

    qkv = dense.apply(x, qkv_kernel, dtype, qkv_bias).astype(dtype)
    heads = (n, length, cfg.num_heads, hidden // cfg.num_heads)
    query, key, value = (
        part.reshape(heads) for part in jnp.split(qkv, 3, axis=-1))
    y = jax.nn.dot_product_attention(
        query, key, value, bias=bias, mask=mask)
    y = dense.apply(y.reshape(n, length, hidden), out_kernel, dtype, out_bias)
    return _layer_norm(x + y, norm_scale, norm_bias, cfg.layer_norm_eps)


class _Mlp(nn.Module):
  """Feed-forward layers with their residual and layer normalisation."""
  config: TransformerConfig

  @nn.compact
  def __call__(self, x):
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    hidden, wide = cfg.hidden_size, cfg.intermediate_size
    normal = nn.initializers.normal(_INIT_STDDEV)
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    up_kernel = dense.param(self, 'up_kernel', normal, (hidden, wide))
    up_bias = self.param('up_bias', zeros, (wide,))
    down_kernel = dense.param(self, 'down_kernel', normal, (wide, hidden))
    down_bias = self.param('down_bias', zeros, (hidden,))
    norm_scale = self.param('norm_scale', ones, (hidden,))
    norm_bias = self.param('norm_bias', zeros, (hidden,))

    y = dense.apply(x, up_kernel, dtype, up_bias)
    # The tanh approximation is 4e-4 away from what BERT was trained with.
    y = jax.nn.gelu(y, approximate=False)
    y = dense.apply(y, down_kernel, dtype, down_bias)
    return _layer_norm(x + y, norm_scale, norm_bias, cfg.layer_norm_eps)


class _Embeddings(nn.Module):
  """Adds positions and the token type, then normalises."""
  config: TransformerConfig

  @nn.compact
  def __call__(self, x, token_types):
    cfg = self.config
    length = x.shape[1]
    normal = nn.initializers.normal(_INIT_STDDEV)
    shape = (cfg.max_positions, cfg.hidden_size)
    added = self.param('positions', normal, shape)[None, :length]
    if cfg.type_vocab_size:
      types = self.param(
          'types', normal, (cfg.type_vocab_size, cfg.hidden_size))
      added = added + (
          types[None, :1] if token_types is None else types[token_types])
    norm_scale = self.param('norm_scale', nn.initializers.ones, shape[1:])
    norm_bias = self.param('norm_bias', nn.initializers.zeros, shape[1:])
    return _layer_norm(x + added, norm_scale, norm_bias,
                       cfg.layer_norm_eps)


class Transformer(nn.Module):
  """Maps tokens to contextual vectors, one per token.

  Source: Devlin et al., NAACL 2019 (post-LN blocks, learned positions, erf
  gelu); with `relative_buckets`, Song et al., NeurIPS 2020. Deviation: no
  dropout.
  """
  config: TransformerConfig

  @nn.compact
  def __call__(self, tokens: jax.Array,
               token_vectors: jax.Array | None = None,
               token_types: jax.Array | None = None) -> jax.Array:
    """Returns hidden vectors [n, L, H] float32.

    Args:
      tokens: [n, L] int32. Vectors at -1, padding, are finite and meaningless.
      token_vectors: [n, L, H] float32, rows of the token table when they were
        looked up outside; the table is not touched then.
      token_types: [n, L] int32, below `type_vocab_size`; None for all 0. Not
        read by a model without types.

    Raises:
      ValueError: where tokens is not [n, L] or L exceeds `max_positions`.
    """
    cfg = self.config
    check_tokens(tokens, cfg.max_positions)
    if token_vectors is None:
      table = self.param('token_table', nn.initializers.normal(_INIT_STDDEV),
                         (cfg.vocab_size, cfg.hidden_size))
      token_vectors = look_up(table, tokens)
    x = _Embeddings(cfg, name='embeddings')(token_vectors, token_types)
    mask = (tokens >= 0)[:, None, None, :]  # [n, 1, 1, L]
    bias = None
    if cfg.relative_buckets:
      bias = relative_positions.bias(self.param(
          'relative_bias', nn.initializers.normal(_INIT_STDDEV),
          (cfg.relative_buckets, cfg.num_heads)), tokens.shape[1])
    return layers.run(
        self, _Block, cfg.num_layers, x, lambda i: (mask, bias),
        options=lambda i: (cfg,), remat=cfg.remat)


def look_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
  """Returns rows of table [V, H] for tokens [n, L]: [n, L, H].

  Tokens outside the table, padding among them, are clipped into it: the default
  of indexing would spend a comparison and a select per value on turning them
  into nan.
  """
  return table.at[jnp.maximum(tokens, 0)].get(mode='clip')


def check_tokens(tokens: jax.Array, max_positions: int | None) -> None:
  """Raises ValueError where tokens is not [n, L], L at most max_positions."""
  if tokens.ndim != 2:
    raise ValueError(
        f'tokens has shape {tokens.shape}, expected two dimensions [n, L].')
  if max_positions is not None and tokens.shape[1] > max_positions:
    raise ValueError(
        f'tokens has L={tokens.shape[1]}, but the model has '
        f'max_positions={max_positions}; truncate the texts.')


def check_shape(config: Any, *sizes: str, pads: bool = True) -> None:
  """Raises ValueError, which names the field, for numbers that cannot be.

  Args:
    config: of an encoder.
    sizes: fields that must be at least 1.
    pads: whether `pad_id` must be there; else it may be None.
  """
  for name in sizes:
    if getattr(config, name) < 1:
      raise ValueError(f'{name}={getattr(config, name)} must be at least 1.')
  if config.num_layers < 0:
    raise ValueError(f'num_layers={config.num_layers} must not be negative.')
  if (pads or config.pad_id is not None) and not (
      0 <= config.pad_id < config.vocab_size):
    raise ValueError(
        f'pad_id={config.pad_id} must lie in [0, vocab_size='
        f'{config.vocab_size}).')
  if config.dtype not in DTYPES:
    raise ValueError(
        f'dtype={config.dtype!r} must be one of {", ".join(DTYPES)}.')
