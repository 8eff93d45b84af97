"""Random encoders of the shape of published ones, to time; not scripts."""

import os

from absl import flags
import jax

from retrieval_jax import data
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import export
from retrieval_jax.models import modern

SHAPES = {
    'modernbert': dict(
        norm='layer', norm_at='before', norm_bias=False, first_norm=False,
        embedding_norm=True, activation='gelu', theta=160_000.,
        local_theta=10_000., global_layers=(0, 3), window=64, norm_eps=1e-5),
    'qwen3': dict(
        norm='rms', norm_at='before', activation='silu', causal=True,
        qk_norm=True, theta=1e6, norm_eps=1e-6),
}
"""Family -> what its published encoders have in common."""

_HEAD = 64


def define_flags(values: flags.FlagValues, family: str | None, text: str
                 ) -> None:
  """Defines --family, --hidden_size and --num_layers.

  Args:
    values: gets them.
    family: the default; None for an encoder that is not random.
    text: what --family does.
  """
  flags.DEFINE_enum('family', family, sorted(SHAPES), text, flag_values=values)
  flags.DEFINE_integer('hidden_size', 256, 'Of a random encoder.',
                       lower_bound=_HEAD, flag_values=values)
  flags.DEFINE_integer('num_layers', 4, 'Of a random encoder.', lower_bound=1,
                       flag_values=values)


def config(family: str, *, hidden_size: int, num_layers: int, vocab_size: int,
           pad_id: int | None = None) -> modern.ModernConfig:
  """Returns the config of an encoder with heads of 64 dimensions.

  Its feed-forward layers are three times as wide as it is; of qwen3, two heads
  share their keys and values.

  Args:
    family: of SHAPES.
    hidden_size: H, a multiple of 64.
    num_layers: number of blocks.
    vocab_size: V.
    pad_id: of the tokenizer.
  """
  heads = hidden_size // _HEAD
  return modern.ModernConfig(
      vocab_size=vocab_size, hidden_size=hidden_size, num_layers=num_layers,
      num_heads=heads, num_kv_heads=(
          max(heads // 2, 1) if family == 'qwen3' else heads),
      head_size=_HEAD, intermediate_size=3 * hidden_size, max_positions=8192,
      pad_id=pad_id, model_type=family, **SHAPES[family])


def write(folder: str, family: str, *, hidden_size: int, num_layers: int,
          tokenizer: data.Tokenizer, max_length: int) -> None:
  """Writes a random encoder as sentence-transformers loads one.

  Args:
    folder: made.
    family: of SHAPES.
    hidden_size: as of `config`; the next, too.
    num_layers: number of blocks.
    tokenizer: written with it.
    max_length: at which it cuts.
  """
  os.makedirs(folder)
  model = dual_encoder.DualEncoder(config(
      family, hidden_size=hidden_size, num_layers=num_layers,
      vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id))
  export.write(folder, model, jax.jit(model.init)(jax.random.key(0)), tokenizer,
               lengths=(max_length, max_length), prompts=('', ''))
