"""The decoder of T5, beside the encoder of `t5.py`.

Parameters; `families/t5.py` maps published names to them:

  encoder/...   those of `t5.T5Encoder`, the token table of both among them
  decoder/relative_bias [buckets, heads], shared by all layers
  decoder/layer_i/{attention, mlp}, as in the encoder
  decoder/layer_i/cross/{norm_scale [H], q_kernel [H, A], kv_kernel [H, 2A],
                         out_kernel [A, H]}
  decoder/final_norm_scale [H]
  output_table [V, H], where it is not the token table
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from retrieval_jax import types
from retrieval_jax.models import dense
from retrieval_jax.models import layers
from retrieval_jax.models import relative_positions
from retrieval_jax.models import t5
from retrieval_jax.models import transformer


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig:
  """The shape of a T5 with its decoder.

  Attributes:
    encoder: a t5.T5Config; but for the number of layers the decoder has the
      same.
    num_layers: of the decoder.
    tied_output: whether the token table gives the logits.
    scaled_output: whether hidden vectors are divided by sqrt(H) before it, as
      in T5; not in T5 1.1, whose output is not tied either.
    eos_id: of the token that ends an answer.
  """
  encoder: t5.T5Config
  num_layers: int
  tied_output: bool = True
  scaled_output: bool = True
  eos_id: int = 1

  model_type = 't5'

  def __post_init__(self):
    if self.num_layers < 1:
      raise ValueError(f'num_layers={self.num_layers} must be at least 1.')

  @property
  def start_id(self) -> int:
    """The token before the first: T5 begins with padding."""
    return self.encoder.pad_id

  def flops(self, length: int, context: int) -> float:
    """Returns the matmul FLOPs of decoding with a context, logits included.

    Args:
      length: tokens decoded.
      context: tokens that the encoder has read; its own FLOPs are not in this.
    """
    cfg = self.encoder
    inner = cfg.num_heads * cfg.head_size
    wide = (3 if cfg.gated else 2) * cfg.intermediate_size
    own = cfg.hidden_size * (6 * inner + wide) + 2 * inner * (length + context)
    return (2. * length * self.num_layers * own
            + 4. * context * self.num_layers * cfg.hidden_size * inner
            + 2. * length * cfg.hidden_size * cfg.vocab_size)

  def init(self, key: jax.Array) -> types.Params:
    """Returns random parameters, float32."""
    keys = jax.random.split(key, 3)
    tokens = jnp.zeros((1, 1), jnp.int32)
    hidden = jnp.zeros((1, 1, self.encoder.hidden_size))
    params = {
        'encoder': self.encoder.module().init(keys[0], tokens)['params'],
        'decoder': Decoder(self).init(
            keys[1], hidden, hidden, tokens >= 0)['params']}
    if not self.tied_output:
      params['output_table'] = jax.random.normal(
          keys[2], (self.encoder.vocab_size, self.encoder.hidden_size))
    return params

  def encode(self, params: types.Params, tokens: jax.Array,
             token_vectors: jax.Array | None = None) -> jax.Array:
    """Returns what the decoder looks at, [n, L, H] float32.

    Args:
      params: of the encoder.
      tokens: [n, L] int32, -1 for padding.
      token_vectors: as of `t5.T5Encoder`.
    """
    return jnp.asarray(self.encoder.module().apply(
        {'params': params}, tokens, token_vectors))

  def decode(self, params: types.Params, table: jax.Array, tokens: jax.Array,
             context: jax.Array, mask: jax.Array, *,
             place: jax.Array | None = None) -> jax.Array:
    """Returns the log-probabilities [n, T, V] of the next tokens, float32.

    Args:
      params: with 'decoder', and 'output_table' where there is one.
      table: [V, H], the token table.
      tokens: [n, T] int32, those before the next, the start among them.
      context: [n, L, H] float32, what was encoded.
      mask: [n, L] bool, which of it is there.
      place: [] int32, in [0, T), for those of one place alone, [n, V].
    """
    hidden = jnp.asarray(Decoder(self).apply(
        {'params': params['decoder']}, transformer.look_up(table, tokens),
        context, mask))
    if place is not None:  # the table is larger than all of the decoder
      hidden = jax.lax.dynamic_index_in_dim(
          hidden, place, axis=1, keepdims=False)
    if self.scaled_output:
      hidden = hidden * self.encoder.hidden_size ** -0.5
    output = table if self.tied_output else params['output_table']
    dtype = jnp.dtype(self.encoder.dtype)
    return jax.nn.log_softmax(dense.matmul(
        hidden.astype(dtype), output.T.astype(dtype)))


class _Cross(nn.Module):
  """Attention from the answer to what was encoded; no bias by distance."""
  config: t5.T5Config

  @nn.compact
  def __call__(self, x, context, mask):
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    n, length, hidden = x.shape
    inner = cfg.num_heads * cfg.head_size
    fan_in = nn.initializers.lecun_normal()
    norm_scale = self.param('norm_scale', nn.initializers.ones, (hidden,))
    q_kernel = dense.param(self, 'q_kernel', fan_in, (hidden, inner))
    kv_kernel = dense.param(self, 'kv_kernel', fan_in, (hidden, 2 * inner))
    out_kernel = dense.param(self, 'out_kernel', fan_in, (inner, hidden))

    heads = lambda y: y.astype(dtype).reshape(
        n, -1, cfg.num_heads, cfg.head_size)
    query = heads(dense.apply(t5.rms_norm(x, norm_scale, cfg.layer_norm_eps),
                           q_kernel, dtype))
    key, value = (heads(part) for part in jnp.split(
        dense.apply(context, kv_kernel, dtype), 2, axis=-1))
    y = jax.nn.dot_product_attention(
        query, key, value, mask=mask[:, None, None], scale=1.)
    return dense.apply(y.reshape(n, length, inner), out_kernel, dtype)


class _Block(nn.Module):
  """Attention to what was said and to what was read, then feed-forward."""
  config: t5.T5Config

  @nn.compact
  def __call__(self, x, context, mask, bias, causal):
    x = x + t5.Attention(self.config, name='attention')(x, causal, bias)
    x = x + _Cross(self.config, name='cross')(x, context, mask)
    return x + t5.Mlp(self.config, name='mlp')(x)


class Decoder(nn.Module):
  """Maps the tokens so far to vectors from which the next follow.

  Source: Raffel et al., JMLR 2020. Deviation: no dropout.
  """
  config: Seq2SeqConfig

  @nn.compact
  def __call__(self, token_vectors: jax.Array, context: jax.Array,
               mask: jax.Array) -> jax.Array:
    """Returns hidden vectors [n, T, H] float32.

    Args:
      token_vectors: [n, T, H] float32, rows of the token table.
      context: [n, L, H] float32, what was encoded.
      mask: [n, L] bool, which of it is there.
    """
    cfg, length = self.config.encoder, token_vectors.shape[1]
    bias = relative_positions.bias(
        self.param('relative_bias', nn.initializers.normal(
            cfg.hidden_size ** -0.5), (cfg.relative_buckets, cfg.num_heads)),
        length, cfg.max_distance, causal=True)
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    x = layers.run(
        self, _Block, self.config.num_layers, token_vectors,
        lambda i: (context, mask, bias, causal), options=lambda i: (cfg,),
        remat=cfg.remat)
    return t5.rms_norm(x, self.param(
        'final_norm_scale', nn.initializers.ones, (cfg.hidden_size,)),
                       cfg.layer_norm_eps)
