"""Seconds of each phase of a training step, by size of the table.

  python -m experiments.benchmarks.step --num_rows=100000 --num_rows=1000000

Random texts and a randomly initialised encoder; the shapes are what matters.
On an accelerator use --dtype=bfloat16 --hidden_size=384 --num_layers=6, and
--num_rows up to what its memory holds (a row is hidden_size * 4 or 2 bytes);
there the time of proposing is compared with the roofline of the scan
(roofline.py).
"""

import statistics
import time

from absl import app
from absl import flags
import jax
import numpy as np
import optax

from experiments.benchmarks import roofline
from retrieval_jax import coarse
from retrieval_jax import correctors
from retrieval_jax import memories
from retrieval_jax import method as methods
from retrieval_jax import objectives
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.models import chunking
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import transformer
from retrieval_jax.training import step as steps

_NUM_ROWS = flags.DEFINE_multi_integer(
    'num_rows', [100_000, 1_000_000], 'Table rows M; may be repeated.')
_HIDDEN_SIZE = flags.DEFINE_integer('hidden_size', 128, 'Of the encoder; D.')
_NUM_LAYERS = flags.DEFINE_integer('num_layers', 2, 'Of the encoder.')
_NUM_QUERIES = flags.DEFINE_integer('num_queries', 128, 'B.')
_NUM_NEGATIVES = flags.DEFINE_multi_integer(
    'num_negatives', [1, 8], 'K; may be repeated.')
_LENGTH = flags.DEFINE_integer('length', 32, 'Tokens per text.')
_DTYPE = flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Of encoder and table.')
_SCAN_DTYPE = flags.DEFINE_enum(
    'scan_dtype', 'float32', coarse.DTYPES, 'What the scan of the table reads.')
_CHUNK_SIZE = flags.DEFINE_integer('chunk_size', 128, 'Texts; 0: all at once.')
_CHUNK_ROWS = flags.DEFINE_integer('chunk_rows', 4096, 'Rows per chunk C.')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed steps.')
_VOCABULARY = 16384


def measure(num_rows, num_negatives):
  """Prints median seconds of propose and update for one size."""
  mesh = sharding.make_mesh()
  hidden = _HIDDEN_SIZE.value
  model = dual_encoder.DualEncoder(transformer.TransformerConfig(
      vocab_size=_VOCABULARY, hidden_size=hidden,
      num_layers=_NUM_LAYERS.value, num_heads=max(1, hidden // 32),
      intermediate_size=4 * hidden, max_positions=_LENGTH.value,
      dtype=_DTYPE.value))
  wrap = lambda encode: chunking.chunked(
      encode, chunk_size=_CHUNK_SIZE.value or None, buckets=(_LENGTH.value,),
      layout=sharding.Layout(mesh))
  method = methods.Method(
      memory=memories.Corpus(num_rows, _DTYPE.value, _CHUNK_ROWS.value,
                             scan_dtype=_SCAN_DTYPE.value),
      corrector=correctors.Identity(), sampler=samplers.Gumbel(num_negatives),
      objective=objectives.Contrastive('truncated_softmax', 'own'),
      refresh=methods.Refresh(write_back=True))
  train_step = steps.make_train_step(
      steps.Encoders(wrap(model.encode_queries), wrap(model.encode_targets),
                     model.scale_of),
      method, optax.adam(1e-4), mesh=mesh, seed=0)
  rng = np.random.default_rng(0)
  embeddings = rng.standard_normal((num_rows, hidden), np.float32)
  embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
  state = train_step.init_state(
      model.init(jax.random.key(0)), method.memory.create(
          embeddings, np.arange(num_rows), dim=hidden, mesh=mesh))
  size = _NUM_QUERIES.value
  tokens = lambda n: rng.integers(
      1, _VOCABULARY, (n, _LENGTH.value)).astype(np.int32)
  ids = rng.integers(0, num_rows, size).astype(np.int32)
  batch, negatives, probes = sharding.put_batch(
      (types.Batch(tokens(size), tokens(size), ids, ids, ids[:, None]),
       tokens(size * num_negatives), tokens(0)), mesh)
  seconds = {'propose': [], 'update': []}
  for _ in range(1 + _REPEATS.value):
    start = time.perf_counter()
    draws = jax.block_until_ready(train_step.propose(state, batch))
    seconds['propose'].append(time.perf_counter() - start)
    start = time.perf_counter()
    state, _ = jax.block_until_ready(train_step.update(
        state, batch, draws, negatives, probes))
    seconds['update'].append(time.perf_counter() - start)
  line = '  '.join(
      f'{name} {statistics.median(values[1:]):.3f} s'
      for name, values in seconds.items())
  of_scan = {'int8': 1, 'bfloat16': 2, 'float32': state.table.embeddings.dtype
             .itemsize}[_SCAN_DTYPE.value]
  least = roofline.least_seconds(
      of_scan * num_rows * hidden / mesh.size,
      2. * num_rows * hidden * size / mesh.size,
      'float32' if _SCAN_DTYPE.value == 'float32' else 'bfloat16')
  if least is not None:
    share = least / statistics.median(seconds['propose'][1:])
    line += f', proposing {share:.0%} of the roofline of its scan'
  print(f'M={num_rows:,} D={hidden} B={size} K={num_negatives} '
        f'L={_LENGTH.value} {_DTYPE.value}: {line}', flush=True)


def main(argv):
  del argv
  for num_rows in _NUM_ROWS.value:
    for num_negatives in _NUM_NEGATIVES.value:
      measure(num_rows, num_negatives)


if __name__ == '__main__':
  app.run(main)
