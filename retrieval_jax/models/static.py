"""Static embeddings: a table of token vectors, and nothing else.

What remains of an encoder without context; the text's vector is the mean of its
tokens' (`pool`), so encoding costs a lookup.
"""

import dataclasses

from flax import linen as nn
import jax

from retrieval_jax.models import transformer


@dataclasses.dataclass(frozen=True)
class StaticConfig:
  """The shape of a table; the fields it shares mean what they do elsewhere.

  Attributes:
    vocab_size: V, rows of the token table.
    hidden_size: H.
    pad_id: what published code pads with, None where it does not say; here
      padding is -1.
    dtype: not used: there are no matmuls.
    remat: not used.
  """
  vocab_size: int
  hidden_size: int
  pad_id: int | None = None
  dtype: str = 'float32'
  remat: bool = False

  model_type = 'static'
  max_positions = None
  num_layers = 0

  def __post_init__(self):
    for name in ('vocab_size', 'hidden_size'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1.')

  def flops(self, length: int) -> float:
    """Returns 0: there are no matmuls."""
    del length
    return 0.

  def module(self) -> nn.Module:
    """Returns the table."""
    return StaticEncoder(self)


class StaticEncoder(nn.Module):
  """Maps tokens to their vectors, wherever they are."""
  config: StaticConfig

  @nn.compact
  def __call__(self, tokens: jax.Array,
               token_vectors: jax.Array | None = None) -> jax.Array:
    """Returns token vectors [n, L, H] float32; see `Transformer`."""
    transformer.check_tokens(tokens, None)
    if token_vectors is None:
      table = self.param('token_table', nn.initializers.normal(1.),
                         (self.config.vocab_size, self.config.hidden_size))
      token_vectors = transformer.look_up(table, tokens)
    return token_vectors
