r"""Seconds of each phase of a training step, by size; or what it takes up.

  python -m experiments.benchmarks.step --num_rows=100000 --num_rows=1000000
  JAX_NUM_CPU_DEVICES=8 python -m experiments.benchmarks.step --compiled \
      --num_rows=10000000 --devices=1 --devices=8 --parameters=by_layer

Random texts and a randomly initialised encoder; the shapes are what matters.
On an accelerator use --dtype=bfloat16 --hidden_size=384 --num_layers=6, and
--num_rows up to what its memory holds (a row is hidden_size * 4 or 2 bytes);
there the time of proposing is compared with the roofline of the scan
(roofline.py).

With --compiled nothing is run: the two programs of a step are compiled, by
shapes alone, for so many devices (virtual ones of a CPU will do), and what they
hold and send is read from them. So it needs memory for neither table nor model.
"""

import dataclasses
import itertools
import statistics
import time

from absl import app
from absl import flags
import jax
import numpy as np
import optax

from experiments.benchmarks import hlo
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
from retrieval_jax.training import state as states
from retrieval_jax.training import step as steps

_NUM_ROWS = flags.DEFINE_multi_integer(
    'num_rows', [100_000, 1_000_000], 'Table rows M; may be repeated.')
_HIDDEN_SIZE = flags.DEFINE_integer('hidden_size', 128, 'Of the encoder; D.')
_NUM_LAYERS = flags.DEFINE_integer('num_layers', 2, 'Of the encoder.')
_NUM_QUERIES = flags.DEFINE_multi_integer(
    'num_queries', [128], 'B; may be repeated.')
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
_COMPILED = flags.DEFINE_bool(
    'compiled', False, 'Compile, and print bytes, instead of running.')
_DEVICES = flags.DEFINE_multi_integer(
    'devices', None, 'Of those there are; may be repeated; all by default.')
_PARAMETERS = flags.DEFINE_multi_enum(
    'parameters', ['replicated'], ['replicated', 'sharded', 'by_layer'],
    'As sharding.parameters; may be repeated.')
_VOCABULARY = 16384


def make(mesh, parameters, num_rows, num_negatives):
  """Returns (train step, its Method, initial params) of one size."""
  hidden = _HIDDEN_SIZE.value
  model = dual_encoder.DualEncoder(transformer.TransformerConfig(
      vocab_size=_VOCABULARY, hidden_size=hidden,
      num_layers=_NUM_LAYERS.value, num_heads=max(1, hidden // 32),
      intermediate_size=4 * hidden, max_positions=_LENGTH.value,
      dtype=_DTYPE.value))
  layout = sharding.Layout(
      mesh, None if parameters == 'replicated' else 4096,
      by_layer=parameters == 'by_layer')
  wrap = lambda encode: chunking.chunked(
      encode, chunk_size=_CHUNK_SIZE.value or None, buckets=(_LENGTH.value,),
      layout=layout)
  method = methods.Method(
      memory=memories.Corpus(num_rows, _DTYPE.value, _CHUNK_ROWS.value,
                             scan_dtype=_SCAN_DTYPE.value),
      corrector=correctors.Identity(), sampler=samplers.Gumbel(num_negatives),
      objective=objectives.Contrastive('truncated_softmax', 'own'),
      refresh=methods.Refresh(write_back=True))
  return steps.make_train_step(
      steps.Encoders(wrap(model.encode_queries), wrap(model.encode_targets),
                     model.scale_of),
      method, optax.adam(1e-4), mesh=mesh, seed=0, layout=layout
  ), method, model.init(jax.random.key(0))


def inputs(mesh, rng, num_rows, num_queries, num_negatives):
  """Returns a batch, the negatives' tokens and those of no row, on a mesh."""
  tokens = lambda n: rng.integers(
      1, _VOCABULARY, (n, _LENGTH.value)).astype(np.int32)
  ids = rng.integers(0, num_rows, num_queries).astype(np.int32)
  return sharding.put_batch(
      (types.Batch(tokens(num_queries), tokens(num_queries), ids, ids,
                   ids[:, None]),
       tokens(num_queries * num_negatives), tokens(0)), mesh)


def measure(mesh, parameters, num_rows, num_queries, num_negatives):
  """Prints median seconds of propose and update for one size."""
  train_step, method, params = make(mesh, parameters, num_rows, num_negatives)
  hidden = _HIDDEN_SIZE.value
  rng = np.random.default_rng(0)
  embeddings = rng.standard_normal((num_rows, hidden), np.float32)
  embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
  state = train_step.init_state(params, method.memory.create(
      embeddings, np.arange(num_rows), dim=hidden, mesh=mesh))
  batch, negatives, probes = inputs(
      mesh, rng, num_rows, num_queries, num_negatives)
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
      2. * num_rows * hidden * num_queries / mesh.size,
      'float32' if _SCAN_DTYPE.value == 'float32' else 'bfloat16')
  if least is not None:
    share = least / statistics.median(seconds['propose'][1:])
    line += f', proposing {share:.0%} of the roofline of its scan'
  print(f'M={num_rows:,} D={hidden} B={num_queries} K={num_negatives} '
        f'L={_LENGTH.value} {_DTYPE.value}: {line}', flush=True)


def describe(mesh, parameters, num_rows, num_queries, num_negatives):
  """Prints a line of what the programs of one size hold and send."""
  train_step, method, params = make(mesh, parameters, num_rows, num_negatives)
  few = mesh.size * _CHUNK_ROWS.value
  small = dataclasses.replace(method.memory, num_targets=few).create(
      np.zeros((few, _HIDDEN_SIZE.value), np.float32), np.arange(few),
      dim=_HIDDEN_SIZE.value, mesh=mesh)
  state = states.abstract(train_step.init_state(params, small))
  rows = sharding.capacity(num_rows, mesh, _CHUNK_ROWS.value)
  grown = lambda leaf: jax.ShapeDtypeStruct(
      (leaf.shape[0] // few * rows, *leaf.shape[1:]), leaf.dtype,
      sharding=leaf.sharding)
  state = dataclasses.replace(state, table=dataclasses.replace(
      jax.tree.map(grown, state.table), capacity=num_rows,
      full=rows == num_rows))
  batch, negatives, probes = states.abstract(inputs(
      mesh, np.random.default_rng(0), num_rows, num_queries, num_negatives))
  lowered = train_step.propose.lower(state, batch)
  propose = lowered.compile()
  draws = jax.tree.map(
      lambda of, where: jax.ShapeDtypeStruct(
          of.shape, of.dtype, sharding=where),
      lowered.out_info, propose.output_shardings)
  update = train_step.update.lower(
      state, batch, draws, negatives, probes).compile()
  here = lambda tree: sum(
      np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)) / 1e6
  temporary = lambda program: (
      program.memory_analysis().temp_size_in_bytes / 1e6)
  sent = lambda program: hlo.received_bytes(program, mesh.size) / 1e6
  print(f'| {mesh.size} | {parameters} | {num_rows:,} | {num_queries} | '
        f'{num_negatives} | {here(state.table):,.1f} | '
        f'{here((state.params, state.opt_state)):,.1f} | '
        f'{temporary(propose):,.1f} | {temporary(update):,.1f} | '
        f'{sent(propose):,.2f} | {sent(update):,.2f} |', flush=True)


def main(argv):
  del argv
  if _COMPILED.value:
    print('| devices | parameters | N | B | K | table, MB | parameters and '
          'moments, MB | propose, MB | update, MB | received by propose, MB | '
          'by update, MB |\n' + '| --- ' * 11 + '|', flush=True)
  for devices, *sizes in itertools.product(
      _DEVICES.value or [None], _PARAMETERS.value, _NUM_ROWS.value,
      _NUM_QUERIES.value, _NUM_NEGATIVES.value):
    (describe if _COMPILED.value else measure)(
        sharding.make_mesh(devices), *sizes)


if __name__ == '__main__':
  app.run(main)
