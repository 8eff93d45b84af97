"""The propose phase against the bare matmul of the same shape.

  python -m experiments.benchmarks.propose --num_rows=1000000 --dim=256

Times the kernels of `retrieval_jax.scoring` and a scan that only multiplies
the same chunks, in turns, and prints medians and ratios of medians. 'corrected'
kernels move every row by an MLP corrector of width --hidden first; next to them
is the ratio of their matmul FLOPs to the bare matmul's, 1 + 2 hidden / B.
'linear' kernels move every row by a linear map, 'folded' ones the queries in
place of the rows. 'bfloat16' and 'int8' kernels scan coarse copies of the rows.
On an accelerator it also prints how much of the roofline each kernel reaches:
the least time in which the device can read the table, or its copies, once and
multiply it, by published figures (roofline.py).
"""

import functools
import statistics
import time

from absl import app
from absl import flags
import jax
from jax import numpy as jnp
import numpy as np

from experiments.benchmarks import roofline
from retrieval_jax import coarse
from retrieval_jax import correctors
from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types

_NUM_ROWS = flags.DEFINE_multi_integer(
    'num_rows', [100_000, 1_000_000], 'Table rows M; may be repeated.')
_DIM = flags.DEFINE_multi_integer('dim', [256, 384], 'Dimension D; same.')
_NUM_QUERIES = flags.DEFINE_integer('num_queries', 128, 'Queries B.')
_NUM_NEGATIVES = flags.DEFINE_integer('num_negatives', 64, 'Draws K.')
_NUM_EXCLUDED = flags.DEFINE_integer('num_excluded', 4, 'Excluded rows E.')
_CHUNK_ROWS = flags.DEFINE_integer('chunk_rows', 4096, 'Rows per chunk C.')
_DTYPE = flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Of the table.')
_HIDDEN = flags.DEFINE_integer(
    'hidden', 256, 'Width of the corrector; 0 leaves it out.')
_SCALE = flags.DEFINE_float('scale', 20., 'beta.')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed calls per kernel.')


def _unit(key, num, dim):
  vectors = jax.random.normal(key, (num, dim))
  return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)


def _corrector(rows):
  """Returns (corrector, state), a state that moves every row of a table."""
  corrector = correctors.MLP(
      hidden=_HIDDEN.value, learning_rate=1e-3, warmup_steps=0,
      updates_per_step=1, use_after=0, weight_decay=0.,
      distribution_weight=0.,
      average_decay=0., condition_on_age=False, num_anchors=0, keep_norm=True,
      reset_on_refresh=True)
  state = corrector.init(jax.random.key(0), rows)
  return corrector, jax.tree.map(lambda x: jnp.full_like(x, 1e-3), state)


def _linear(rows):
  """Returns the same of a linear map."""
  corrector = correctors.Linear(
      fit='ridge', ridge=1e-2, decay=1., num_anchors=0, use_after=0,
      keep_norm=False, reset_on_refresh=True)
  state = corrector.init(jax.random.key(0), rows)
  return corrector, jax.tree.map(lambda x: jnp.full_like(x, 1e-3), state)


def _kernels(mesh, rows):
  """Returns name -> (jitted kernel(key, queries, table, exclude), table)."""
  k = _NUM_NEGATIVES.value
  scan = types.Scan(mesh, _CHUNK_ROWS.value)
  view = lambda table: types.View(
      table, scoring.uncorrected, jnp.float32(_SCALE.value), scan,
      fold=scoring.unmoved)

  def matmul(key, queries, table, exclude):
    del key, exclude
    def multiply(embeddings, queries):
      def body(largest, start):
        chunk = jax.lax.dynamic_slice_in_dim(
            embeddings, start, _CHUNK_ROWS.value).astype(jnp.float32)
        # A product that nothing depends on would be removed by the compiler.
        logits = jax.lax.optimization_barrier(chunk @ queries.T)
        return jnp.maximum(largest, logits[0]), None
      starts = jnp.arange(0, embeddings.shape[0], _CHUNK_ROWS.value)
      return jax.lax.scan(
          body, jnp.zeros(queries.shape[0]), starts)[0][None]
    # Called on one device only (see main), so no shard_map is needed.
    return multiply(table.embeddings, queries)

  def gumbel(k, view=view):
    return lambda key, queries, table, exclude: scoring.gumbel_top_k(
        key, queries, view(table), k, exclude_rows=exclude)

  def top_k(key, queries, table, exclude):
    del key
    return scoring.top_k(queries, view(table), k, exclude_rows=exclude)

  named = {
      'matmul': matmul,
      'log_partition': lambda key, queries, table, exclude: (
          scoring.log_partition(
              queries, view(table), exclude_rows=exclude)),
      'gumbel K=1': gumbel(1),
      f'gumbel K={k}': gumbel(k),
      f'top_k K={k}': top_k}
  if _HIDDEN.value:
    corrector, state = _corrector(rows)
    corrected = lambda table: types.View(
        table, functools.partial(corrector.apply, state),
        jnp.float32(_SCALE.value), scan)
    named |= {f'corrected K={size}': gumbel(size, corrected)
              for size in (1, k)}
  linear, matrix = _linear(rows)
  moved = lambda table: types.View(
      table, functools.partial(linear.apply, matrix),
      jnp.float32(_SCALE.value), scan)
  folded = lambda table: moved(table)._replace(
      fold=functools.partial(linear.fold, matrix))
  named |= {'linear K=1': gumbel(1, moved), 'folded K=1': gumbel(1, folded)}
  kernels = {name: (jax.jit(kernel), rows) for name, kernel in named.items()}
  for dtype in coarse.DTYPES[1:]:
    copies = tables.with_coarse(rows, dtype)
    kernels |= {f'{dtype} {name}': (jax.jit(kernel), copies)
                for name, kernel in (
                    ('K=1', gumbel(1)), (f'K={k}', gumbel(k)),
                    (f'top_k K={k}', top_k))}
  return kernels


def _measure(num_rows: int, dim: int):
  """Times all kernels on one table and prints a line for each."""
  mesh = sharding.make_mesh(1)
  key = jax.random.key(0)
  rows = tables.from_embeddings(
      np.asarray(_unit(key, num_rows, dim)), mesh, _CHUNK_ROWS.value,
      _DTYPE.value)
  kernels = _kernels(mesh, rows)
  queries = _unit(jax.random.key(1), _NUM_QUERIES.value, dim)
  exclude = jax.random.randint(
      jax.random.key(2), (_NUM_QUERIES.value, _NUM_EXCLUDED.value), 0, num_rows)
  arguments = {name: (jax.random.key(3), queries, table, exclude)
               for name, (_, table) in kernels.items()}
  compiled = {name: kernel.lower(*arguments[name]).compile()
              for name, (kernel, _) in kernels.items()}
  for name, kernel in compiled.items():
    jax.block_until_ready(kernel(*arguments[name]))
  seconds = {name: [] for name in compiled}
  for _ in range(_REPEATS.value):
    for name, kernel in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(kernel(*arguments[name]))
      seconds[name].append(time.perf_counter() - start)
  matmul = statistics.median(seconds['matmul'])
  matrix = 4 * num_rows * _NUM_QUERIES.value
  print(f'\nM={num_rows:,} D={dim} B={_NUM_QUERIES.value} {_DTYPE.value} on '
        f'{jax.devices()[0].device_kind}')
  for name, values in seconds.items():
    median = statistics.median(values)
    memory = compiled[name].memory_analysis().temp_size_in_bytes
    line = (f'{name:19s} {1e3 * median:9.2f} ms (best {1e3 * min(values):.2f})'
            f', {median / matmul:.2f} x matmul, {memory / 2**20:.0f} MiB = '
            f'{memory / matrix:.3f} of [B, M]')
    if name.startswith('corrected'):
      flops = 1 + 2 * _HIDDEN.value / _NUM_QUERIES.value
      line += f', {flops:.1f} x its FLOPs'
    copies = kernels[name][1].coarse
    read = rows.embeddings if copies is None or copies.codes is None else (
        copies.codes)
    least = roofline.least_seconds(
        read.nbytes, 2. * num_rows * dim * _NUM_QUERIES.value,
        'float32' if copies is None else 'bfloat16')
    if least is not None:
      line += f', {least / median:.0%} of the roofline'
    print(line, flush=True)


def main(argv):
  del argv
  for num_rows in _NUM_ROWS.value:
    for dim in _DIM.value:
      _measure(num_rows, dim)


if __name__ == '__main__':
  app.run(main)
