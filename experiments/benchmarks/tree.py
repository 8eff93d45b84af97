"""The cost of a draw along a tree beside that of exact scoring, as N grows.

  python -m experiments.benchmarks.tree --num_rows=1000000 --num_rows=5000000

Rows are synthetic: unit vectors around centres of clusters whose sizes follow a
power law, made on the device from a seed. For each number
of rows it builds the tree, then times in turns, for one batch of queries,
'tree' (draws for each beam and length of the chain) and 'exact' (Gumbel draws
from all rows), and prints medians, the bytes that the tree and the table hold,
and at the end the exponent of each time in the number of rows, by least squares
of the logarithms.
"""

import json
import statistics
import time

from absl import app
from absl import flags
import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.factory import defaults
from retrieval_jax.factory import registries

_DEFAULTS = defaults.get_config().sampler
_NUM_ROWS = flags.DEFINE_multi_integer(
    'num_rows', [100_000, 1_000_000], 'Table rows N; may be repeated.')
_DIM = flags.DEFINE_integer('dim', 256, 'Dimension D.')
_NUM_QUERIES = flags.DEFINE_integer('num_queries', 128, 'Queries B.')
_NUM_NEGATIVES = flags.DEFINE_integer('num_negatives', 1, 'Draws K.')
_CHUNK_ROWS = flags.DEFINE_integer('chunk_rows', 4096, 'Rows per chunk.')
_DTYPE = flags.DEFINE_enum(
    'dtype', 'bfloat16', ['float32', 'bfloat16'], 'Of the table.')
_SCALE = flags.DEFINE_float('scale', 20., 'beta.')
_SPREAD = flags.DEFINE_float(
    'spread', 0.7, 'Distance of rows from their centres, before normalising.')
_LEAF_SIZE = flags.DEFINE_integer(
    'leaf_size', _DEFAULTS.leaf_size, 'Rows of a leaf.')
_OPENED = flags.DEFINE_integer(
    'opened', _DEFAULTS.opened, 'Leaves opened per query.')
_BEAM = flags.DEFINE_multi_integer(
    'beam', [0, 64], 'Parents whose leaves are weighed; 0: all.')
_CHAIN_STEPS = flags.DEFINE_multi_integer(
    'chain_steps', [0, 4], 'Of the chain; 0: proposals as they are.')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed calls of each.')
_JSON = flags.DEFINE_string('json', '', 'File to write the numbers to.')


def _unit(vectors):
  return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def _rows(num_rows, dim, dtype, mesh):
  """Returns a table of clustered unit rows, made chunk by chunk."""
  chunk = 65_536
  centres = _unit(jax.random.normal(
      jax.random.key(7), (max(16, num_rows // 100), dim)))

  @jax.jit
  def made(key):
    which, noise = jax.random.split(key)
    # Sizes by a power law: the square of a uniform number.
    at = (jax.random.uniform(which, (chunk,)) ** 2 * len(centres)).astype(int)
    spread = _SPREAD.value * jax.random.normal(noise, (chunk, dim)) / dim ** 0.5
    return _unit(centres[at] + spread).astype(dtype)

  padded = -(-num_rows // _CHUNK_ROWS.value) * _CHUNK_ROWS.value
  embeddings = jnp.zeros((padded, dim), dtype)
  write = jax.jit(jax.lax.dynamic_update_slice_in_dim, static_argnums=3,
                  donate_argnums=0)
  keys = jax.random.split(jax.random.key(8), -(-num_rows // chunk))
  for number, key in enumerate(keys):
    start = number * chunk
    part = made(key)[:num_rows - start]
    embeddings = write(embeddings, part, start, 0)
  ids = jnp.where(jnp.arange(padded) < num_rows, jnp.arange(padded), -1)
  place = lambda array: jax.device_put(array, sharding.rows(mesh))
  return types.TargetTable(
      place(embeddings), place(ids.astype(jnp.int32)),
      place(jnp.zeros(padded, jnp.int32)), rows_are_ids=True,
      capacity=num_rows, full=True), centres


def _queries(centres):
  """Returns queries [B, D] at some distance of random centres."""
  at, noise = jax.random.split(jax.random.key(9))
  chosen = centres[jax.random.randint(
      at, (_NUM_QUERIES.value,), 0, len(centres))]
  return _unit(chosen + 0.7 * jax.random.normal(
      noise, chosen.shape) / chosen.shape[1] ** 0.5)


def _sampler(beam, chain_steps):
  return registries.make(registries.SAMPLERS, 'sampler.name', {
      **_DEFAULTS, 'name': 'tree', 'num_negatives': _NUM_NEGATIVES.value,
      'leaf_size': _LEAF_SIZE.value, 'beam': beam, 'opened': _OPENED.value,
      'chain_steps': chain_steps})


def _bytes(tree):
  return sum(array.nbytes for array in jax.tree.leaves(tree))


def _measure(num_rows):
  """Builds, times and prints one table; returns a dict of numbers."""
  mesh = sharding.make_mesh(1)
  table, centres = _rows(num_rows, _DIM.value, _DTYPE.value, mesh)
  view = types.View(
      table, scoring.uncorrected, jnp.float32(_SCALE.value),
      types.Scan(mesh, _CHUNK_ROWS.value))
  of = lambda table: view._replace(table=table)
  none = jnp.full([_NUM_QUERIES.value], -1, jnp.int32)
  request = types.Request(
      _queries(centres), none, none[:, None], none[:, None], none, jnp.int32(0))
  build = jax.jit(lambda key, table: _sampler(0, 0).init(key, of(table)))
  start = time.perf_counter()
  build = build.lower(jax.random.key(1), table).compile()
  compiled = time.perf_counter() - start
  start = time.perf_counter()
  tree = jax.block_until_ready(build(jax.random.key(1), table))
  numbers = {'num_rows': num_rows, 'build_seconds': time.perf_counter() - start,
             'compile_seconds': compiled, 'table_bytes': _bytes(table),
             'tree_bytes': _bytes(tree)}
  calls = {}
  for beam in _BEAM.value:
    for steps in _CHAIN_STEPS.value:
      sampler = _sampler(beam, steps)
      calls[f'tree, beam {beam}, chain {steps}'] = jax.jit(
          lambda key, tree, table, sampler=sampler: sampler.propose(
              tree, key, request, of(table)))
  calls['exact'] = jax.jit(lambda key, tree, table: scoring.gumbel_top_k(
      key, request.queries, of(table), _NUM_NEGATIVES.value,
      exclude_rows=request.exclude_rows))
  arguments = (jax.random.key(2), tree, table)
  seconds = {name: [] for name in calls}
  for call in calls.values():
    jax.block_until_ready(call(*arguments))
  for _ in range(_REPEATS.value):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call(*arguments))
      seconds[name].append(time.perf_counter() - start)
  numbers |= {'seconds': {name: statistics.median(values)
                          for name, values in seconds.items()}}
  print(f'\nN={num_rows:,} D={_DIM.value} B={_NUM_QUERIES.value} '
        f'{_DTYPE.value} on {jax.devices()[0].device_kind}: built in '
        f'{numbers["build_seconds"]:.1f} s, compiled in {compiled:.1f} s; '
        f'table {numbers["table_bytes"] / 2**20:,.0f} MiB, tree '
        f'{numbers["tree_bytes"] / 2**20:,.1f} MiB')
  exact = numbers['seconds']['exact']
  for name, median in numbers['seconds'].items():
    print(f'{name:24s} {1e3 * median:9.2f} ms (best '
          f'{1e3 * min(seconds[name]):.2f}), {median / exact:.2f} x exact',
          flush=True)
  return numbers


def main(argv):
  del argv
  found = [_measure(num_rows) for num_rows in _NUM_ROWS.value]
  if len(found) > 1:
    size = np.log([numbers['num_rows'] for numbers in found])
    for name in found[0]['seconds']:
      exponent, _ = np.polyfit(
          size, np.log([numbers['seconds'][name] for numbers in found]), 1)
      print(f'{name}: time grows as N^{exponent:.2f}')
  if _JSON.value:
    with open(_JSON.value, 'w', encoding='utf-8') as file:
      json.dump(found, file, indent=1)


if __name__ == '__main__':
  app.run(main)
