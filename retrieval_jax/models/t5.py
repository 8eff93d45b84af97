"""The encoder of T5, as GTR and sentence-T5 use it.

Parameter names are ours, `families/t5.py` maps published ones to them:

  token_table [V, H]
  relative_bias [buckets, heads], shared by all layers
  layer_i/attention/{norm_scale [H], qkv_kernel [H, 3A], out_kernel [A, H]}
  layer_i/mlp/{norm_scale [H], up_kernel [H, F], down_kernel [F, H],
               gate_kernel [H, F] where gated}
  final_norm_scale [H]

with A = num_heads * head_size.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from retrieval_jax.models import dense
from retrieval_jax.models import layers
from retrieval_jax.models import relative_positions
from retrieval_jax.models import transformer


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The shape of a T5 encoder; the fields it shares mean what they do there.

  Attributes:
    vocab_size: V, rows of the token table.
    hidden_size: H.
    num_layers: number of blocks; 0 leaves the normalised embeddings.
    num_heads: attention heads.
    head_size: of one head; all together need not be H.
    intermediate_size: F, width of the feed-forward layers.
    gated: gelu(x gate) * (x up), as T5 1.1 has it, in place of relu(x up).
    relative_buckets: of distances between tokens.
    max_distance: from here on all distances share a bucket.
    layer_norm_eps: added to the mean square.
    pad_id: what published code pads with; here padding is -1.
    dtype: of matmuls and attention, see `transformer.TransformerConfig`.
    remat: recompute each block in the backward pass instead of keeping it.
  """
  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  head_size: int
  intermediate_size: int
  gated: bool = False
  relative_buckets: int = 32
  max_distance: int = 128
  layer_norm_eps: float = 1e-6
  pad_id: int = 0
  dtype: str = 'float32'
  remat: bool = False

  model_type = 't5'
  max_positions = None  # Distances are unbounded.

  def __post_init__(self):
    transformer.check_shape(self, 'vocab_size', 'hidden_size', 'num_heads',
                            'head_size', 'intermediate_size')

  def flops(self, length: int) -> float:
    """Returns the matmul FLOPs of encoding one text of `length` tokens."""
    inner = self.num_heads * self.head_size
    wide = (3 if self.gated else 2) * self.intermediate_size
    weights = self.hidden_size * (4 * inner + wide)
    return 2. * length * self.num_layers * (weights + 2 * length * inner)

  def module(self) -> nn.Module:
    """Returns the encoder of this shape."""
    return T5Encoder(self)


def rms_norm(x, scale, eps):
  """Returns x [..., H] over its root mean square, times scale [H]."""
  mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
  ones = (1,) * (x.ndim - 1) + (-1,)
  return x * jax.lax.rsqrt(mean_square + eps) * scale.reshape(ones)


class _Block(nn.Module):
  """One pre-norm block: attention, then the feed-forward layers."""
  config: T5Config

  @nn.compact
  def __call__(self, x, mask, bias):
    """Returns [n, L, H] float32; see `transformer._Block`."""
    x = x + Attention(self.config, name='attention')(x, mask, bias)
    return x + Mlp(self.config, name='mlp')(x)


class Attention(nn.Module):
  """Self-attention without biases and without the usual 1 / sqrt(size)."""
  config: T5Config

  @nn.compact
  def __call__(self, x, mask, bias):
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    n, length, hidden = x.shape
    inner = cfg.num_heads * cfg.head_size
    fan_in = nn.initializers.lecun_normal()
    norm_scale = self.param('norm_scale', nn.initializers.ones, (hidden,))
    qkv_kernel = dense.param(self, 'qkv_kernel', fan_in, (hidden, 3 * inner))
    out_kernel = dense.param(self, 'out_kernel', fan_in, (inner, hidden))

    x = rms_norm(x, norm_scale, cfg.layer_norm_eps)
    qkv = dense.apply(x, qkv_kernel, dtype).astype(dtype)
    query, key, value = (
        part.reshape(n, length, cfg.num_heads, cfg.head_size)
        for part in jnp.split(qkv, 3, axis=-1))
    y = jax.nn.dot_product_attention(
        query, key, value, bias=bias, mask=mask, scale=1.)
    return dense.apply(y.reshape(n, length, inner), out_kernel, dtype)


class Mlp(nn.Module):
  """Feed-forward layers, gated or not."""
  config: T5Config

  @nn.compact
  def __call__(self, x):
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    hidden, wide = cfg.hidden_size, cfg.intermediate_size
    fan_in = nn.initializers.lecun_normal()
    norm_scale = self.param('norm_scale', nn.initializers.ones, (hidden,))
    up_kernel = dense.param(self, 'up_kernel', fan_in, (hidden, wide))
    down_kernel = dense.param(self, 'down_kernel', fan_in, (wide, hidden))

    x = rms_norm(x, norm_scale, cfg.layer_norm_eps)
    y = dense.apply(x, up_kernel, dtype)
    if cfg.gated:
      gate_kernel = dense.param(self, 'gate_kernel', fan_in, (hidden, wide))
      # T5 1.1 was trained with the tanh approximation, unlike BERT.
      y = jax.nn.gelu(dense.apply(x, gate_kernel, dtype), approximate=True) * y
    else:
      y = jax.nn.relu(y)
    return dense.apply(y, down_kernel, dtype)


class T5Encoder(nn.Module):
  """Maps tokens to contextual vectors, one per token.

  Source: Raffel et al., JMLR 2020; gated: Shazeer, 2020 (arXiv 2002.05202).
  Deviation: no dropout.
  """
  config: T5Config

  @nn.compact
  def __call__(self, tokens: jax.Array,
               token_vectors: jax.Array | None = None) -> jax.Array:
    """Returns hidden vectors [n, L, H] float32.

    Args:
      tokens: [n, L] int32. Vectors at -1, padding, are finite and meaningless.
      token_vectors: [n, L, H] float32, rows of the token table when they were
        looked up outside; the table is not touched then.

    Raises:
      ValueError: where tokens is not [n, L].
    """
    cfg = self.config
    transformer.check_tokens(tokens, cfg.max_positions)
    normal = nn.initializers.normal
    if token_vectors is None:
      table = self.param('token_table', normal(1.),
                         (cfg.vocab_size, cfg.hidden_size))
      token_vectors = transformer.look_up(table, tokens)
    bias = relative_positions.bias(
        self.param('relative_bias', normal(cfg.hidden_size ** -0.5),
                   (cfg.relative_buckets, cfg.num_heads)),
        tokens.shape[1], cfg.max_distance)
    mask = (tokens >= 0)[:, None, None, :]  # [n, 1, 1, L]
    x = layers.run(
        self, _Block, cfg.num_layers, token_vectors, lambda i: (mask, bias),
        options=lambda i: (cfg,), remat=cfg.remat)
    scale = self.param('final_norm_scale', nn.initializers.ones,
                       (cfg.hidden_size,))
    return rms_norm(x, scale, cfg.layer_norm_eps)
