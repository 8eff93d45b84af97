r"""A tree with its rows on the host, against rows on the device.

  python -m experiments.benchmarks.dynamic_index --num_rows=1000000 \
      --num_rows=5000000 --num_rows=20000000 --held=5000000 --out=results.json

Rows are unit vectors in clusters, made from the seed and written into a file
that is mapped (in --folder; nameless, gone afterwards). For each number of rows
it prints what is alive on the device between proposals, and at most during one
where rows come from the host, and the median and range of the times of one, of

  host     the tree, rows on the host
  device   the same tree, rows on the device; draws are equal
  exact    Gumbel draws from all rows, on the device
  cache    the negative cache of as many rows, with their tokens, on the device:
           draws from its shortlist, their tokens, and a batch pushed

and at the end the exponents of time and of rows scored in the number of rows,
by least squares of logarithms, and where the times of 'host' and 'exact' cross.
Bytes are those of live arrays, measured when nothing else is alive; 'share' is
by how much those of 'cache' exceed them. Where there are more rows than --held,
'host' alone is measured: bytes of the others are those of the largest size that
was, in proportion to the rows, and say so.
"""

import dataclasses
import functools
import gc
import statistics
import tempfile
import time
from typing import Any
from unittest import mock

from absl import app
from absl import flags
import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import files
from retrieval_jax import host_table
from retrieval_jax import samplers
from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.factory import defaults
from retrieval_jax.factory import registries
from retrieval_jax.training import meter

ARMS = ('host', 'device', 'exact', 'cache')

_NUM_ROWS = flags.DEFINE_multi_integer(
    'num_rows', [1_000_000], 'Rows N; may be repeated.')
_ARMS = flags.DEFINE_list('arms', list(ARMS), 'Which to measure.')
_HELD = flags.DEFINE_integer(
    'held', 2**31, 'The most rows that are put on the device.')
_DIM = flags.DEFINE_integer('dim', 256, 'Dimension D.')
_DTYPE = flags.DEFINE_enum(
    'dtype', 'float16', ['float32', 'float16', 'bfloat16'], 'Of the rows.')
_CLUSTER = flags.DEFINE_integer('cluster', 200, 'Rows per cluster.')
_SPREAD = flags.DEFINE_float(
    'spread', 0.6, 'Distance of a row from the centre of its cluster.')
_FOLDER = flags.DEFINE_string(
    'folder', tempfile.gettempdir(), "Of the mapped file; '' for none.")
_NUM_QUERIES = flags.DEFINE_integer('num_queries', 128, 'Queries B.')
_NUM_NEGATIVES = flags.DEFINE_integer('num_negatives', 1, 'Draws K.')
_SCALE = flags.DEFINE_float('scale', 20., 'beta.')
_LEAF_SIZE = flags.DEFINE_integer('leaf_size', 640, 'Rows of a leaf.')
_MOMENTS = flags.DEFINE_integer('moments', 0, 'Axes of second moments.')
_BEAM = flags.DEFINE_integer('beam', 16, 'Parents; 0: all leaves.')
_OPENED = flags.DEFINE_integer('opened', 4, 'Leaves scored per query.')
_CHAIN_STEPS = flags.DEFINE_integer('chain_steps', 4, 'Steps of a chain.')
_SHORTLIST = flags.DEFINE_integer('shortlist', 64, 'Of the cache.')
_TOKENS = flags.DEFINE_integer('tokens', 48, 'Tokens per target, int32.')
_CHUNK_ROWS = flags.DEFINE_integer('chunk_rows', 16384, 'Rows per chunk C.')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed calls.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of rows, queries and tree.')
_OUT = flags.DEFINE_string('out', '', 'JSON file of all numbers.')

_MADE = 2**16  # rows that are made at a time


def _unit(vectors):
  return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)


@jax.jit
def _made(key, centres):
  """Returns rows near centres drawn at random, [_MADE, D]."""
  which, noise = jax.random.split(key)
  near = centres[jax.random.randint(which, (_MADE,), 0, len(centres))]
  away = _unit(jax.random.normal(noise, near.shape))
  return _unit(near + _SPREAD.value * away).astype(_DTYPE.value)


def _rows(num_rows):
  """Returns a HostTable of rows and some queries near rows, [B, D]."""
  table = host_table.create(
      num_rows, _DIM.value, live=np.ones(num_rows, bool), dtype=_DTYPE.value,
      folder=_FOLDER.value)
  centre_key, row_key, which_key, noise_key = jax.random.split(
      jax.random.key(_SEED.value), 4)
  centres = _unit(jax.random.normal(
      centre_key, (max(num_rows // _CLUSTER.value, 1), _DIM.value)))
  for i, start in enumerate(range(0, num_rows, _MADE)):
    part = table.embeddings[start:start + _MADE]
    part[:] = np.asarray(
        _made(jax.random.fold_in(row_key, i), centres))[:len(part)]
  at = jax.random.randint(which_key, (_NUM_QUERIES.value,), 0, num_rows)
  vectors = table.take(at).embeddings.astype(jnp.float32)
  away = _unit(jax.random.normal(noise_key, vectors.shape))
  return table, _unit(vectors + _SPREAD.value * away)


def _request(queries):
  none = jnp.full((len(queries), 1), -1, jnp.int32)
  return types.Request(queries, none[:, 0], none, none, none[:, 0],
                       jnp.int32(0))


def _timed(call):
  """Returns the seconds of call(i), rising, after two that fill caches."""
  seconds = []
  for i in range(_REPEATS.value + 2):
    start = time.perf_counter()
    jax.block_until_ready(call(i))
    seconds.append(time.perf_counter() - start)
  return sorted(seconds[2:])


def _bytes_while(call):
  """Returns the most that is alive on the device while rows are sent to it."""
  sizes = []
  take = host_table.HostTable.take

  def watched(*arguments):
    part = take(*arguments)
    sizes.append(meter.live_bytes())
    return part

  with mock.patch.object(host_table.HostTable, 'take', watched):
    jax.block_until_ready(call(0))
  return max(sizes)


def _milliseconds(seconds):
  low, middle, high = (1e3 * value for value in (
      min(seconds), statistics.median(seconds), max(seconds)))
  return f'{middle:,.1f} ({low:,.1f} to {high:,.1f})'


def _measure(num_rows):
  """Returns the numbers of one size, by arm."""
  begun = time.perf_counter()
  arms = set(_ARMS.value)
  if num_rows > _HELD.value:
    arms &= {'host'}
  mesh = sharding.make_mesh(1)
  key = functools.partial(jax.random.fold_in, jax.random.key(_SEED.value + 1))
  host, queries = _rows(num_rows)
  request = _request(queries)
  view = lambda table: types.View(
      table, jax.tree_util.Partial(scoring.uncorrected),
      jnp.float32(_SCALE.value), types.Scan(mesh, _CHUNK_ROWS.value))
  sampler = registries.make(registries.SAMPLERS, 'sampler.name', {
      **defaults.get_config().sampler, 'name': 'tree',
      'num_negatives': _NUM_NEGATIVES.value, 'leaf_size': _LEAF_SIZE.value,
      'moments': _MOMENTS.value, 'beam': _BEAM.value, 'opened': _OPENED.value,
      'chain_steps': _CHAIN_STEPS.value})
  found = {'num_rows': num_rows, 'make_seconds': time.perf_counter() - begun,
           'host_bytes': meter.num_host_bytes(host)}
  say = lambda text: print(f'N={num_rows:,}: {text}', flush=True)
  say(f'made in {found["make_seconds"]:.1f} s')

  def measured(arm, call, scored):
    gc.collect()  # what the last arm has left
    live = meter.live_bytes()
    seconds = _timed(call)
    found[arm] = {'live_bytes': live, 'rows_scored': scored,
                  'seconds': statistics.median(seconds), 'times': seconds}
    say(f'{arm}: {live / 1e6:,.1f} MB on the device, {_milliseconds(seconds)} '
        'ms')

  tree, drawn = None, {}
  if {'host', 'device'} & arms:
    begun = time.perf_counter()
    tree = sampler.init(jax.random.key(_SEED.value + 2), view(host))
    jax.block_until_ready(tree.leaves.centres)
    found['build_seconds'] = time.perf_counter() - begun
    found['leaves'] = int(tree.first[-1])
    say(f'tree of {found["leaves"]:,} leaves built in '
        f'{found["build_seconds"]:.1f} s, compilation included')
  scored = sampler.rows_scored(_NUM_QUERIES.value, num_rows)[0]
  every = _NUM_QUERIES.value * num_rows
  if 'host' in arms:
    propose = lambda i: sampler.propose(tree, key(i), request, view(host))
    measured('host', propose, scored)
    found['host']['drawing_bytes'] = _bytes_while(propose)
    say(f'{found["host"]["drawing_bytes"] / 1e6:,.1f} MB while it draws')
    drawn['host'] = np.asarray(propose(0).rows)
  tree = jax.device_get(tree)

  table = tokens = None
  if arms - {'host'}:
    table = tables.from_embeddings(
        host.embeddings, mesh, _CHUNK_ROWS.value, _DTYPE.value)
  if 'exact' in arms:
    exact = samplers.Gumbel(num_negatives=_NUM_NEGATIVES.value)
    propose = jax.jit(lambda key, request, table: exact.propose(
        (), key, request, view(table)))
    measured('exact', lambda i: propose(key(i), request, table), every)
  if 'device' in arms:
    tree = jax.device_put(tree)
    propose = jax.jit(lambda tree, key, request, table: sampler.propose(
        tree, key, request, view(table)))
    measured('device', lambda i: propose(tree, key(i), request, table),
             scored)
    drawn['device'] = np.asarray(propose(tree, key(0), request, table).rows)
  tree = None
  if 'cache' in arms:
    short = samplers.ShortlistGumbel(
        num_negatives=_NUM_NEGATIVES.value, shortlist=_SHORTLIST.value)
    table = dataclasses.replace(table, rows_are_ids=False, full=False)
    tokens = jnp.zeros((len(table.ids), _TOKENS.value), jnp.int32)
    ids = jnp.arange(_NUM_QUERIES.value)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(table, tokens, key, request):
      proposal = short.propose((), key, request, view(table))
      return tables.push(table, ids, request.queries, 1), tokens[proposal.rows]

    def advance(i):
      nonlocal table
      table, found = step(table, tokens, key(i), request)
      return found

    measured('cache', advance, every)
  if len(drawn) == 2:
    found['equal_draws'] = float(np.mean(drawn['host'] == drawn['device']))
    say(f'{found["equal_draws"]:.1%} of the draws are equal')
  return found


def _complete(results):
  """Adds bytes of what was not put on the device to its numbers."""
  for arm in _ARMS.value:
    held = [numbers for numbers in results if arm in numbers]
    for numbers in results:
      if held and arm not in numbers:
        share = numbers['num_rows'] / held[-1]['num_rows']
        numbers[arm] = {
            'live_bytes': round(share * held[-1][arm]['live_bytes']),
            'computed': True}


def _fits(results, name):
  """Returns (intercept, exponent) of a logarithm in log N by arm."""
  fits = {}
  for arm in _ARMS.value:
    points = [(numbers['num_rows'], numbers[arm][name])
              for numbers in results if name in numbers.get(arm, ())]
    if len(points) > 1:
      sizes, values = np.log(points).T
      fits[arm] = tuple(map(float, np.polynomial.polynomial.polyfit(
          sizes, values, 1)))
  return fits


def _report(results):
  """Prints the table of all sizes; returns what is fitted to it."""
  print(f'\nB={_NUM_QUERIES.value} K={_NUM_NEGATIVES.value} D={_DIM.value} '
        f'{_DTYPE.value}, beta {_SCALE.value:g}, seed {_SEED.value}, on '
        f'{jax.devices()[0].device_kind}')
  print('| rows | arm | MB on the device | share | rows scored per query | ms |'
        '\n| --- | --- | --- | --- | --- | --- |')
  _complete(results)
  for numbers in results:
    for arm in filter(numbers.get, _ARMS.value):
      of_arm = numbers[arm]
      size = of_arm['live_bytes']
      share = ('' if 'cache' not in numbers else
               f'{numbers["cache"]["live_bytes"] / size:.1f}')
      cells = [f'{numbers["num_rows"]:,}', arm, f'{size / 1e6:,.1f}', share]
      cells += ['computed', ''] if 'computed' in of_arm else [
          f'{of_arm["rows_scored"] / _NUM_QUERIES.value:,.0f}',
          _milliseconds(of_arm['times'])]
      print(f'| {" | ".join(cells)} |')
  times, scored = (_fits(results, name) for name in ('seconds', 'rows_scored'))
  fitted: dict[str, Any] = {'exponents': {
      arm: {'seconds': times[arm][1], 'rows_scored': scored[arm][1]}
      for arm in times}}
  for arm, exponents in fitted['exponents'].items():
    print(f'{arm}: time ~ N^{exponents["seconds"]:.2f}, '
          f'rows scored ~ N^{exponents["rows_scored"]:.2f}')
  if {'host', 'exact'} <= times.keys():
    (one, slow), (other, fast) = times['host'], times['exact']
    if fast > slow:
      fitted['crossing'] = float(np.exp((one - other) / (fast - slow)))
      print(f'host and exact take as long at N = {fitted["crossing"]:,.0f}')
  return fitted


def main(argv):
  del argv
  unknown = set(_ARMS.value) - set(ARMS)
  if unknown:
    raise app.UsageError(f'--arms has {sorted(unknown)}; there are {ARMS}.')
  results = []
  for num_rows in _NUM_ROWS.value:
    results.append(_measure(num_rows))
    if _OUT.value:  # as far as it has come
      files.write_json(_OUT.value, {'results': results})
  fitted = _report(results)
  if _OUT.value:
    files.write_json(_OUT.value, {
        'flags': {flag.name: flag.value for flag in
                  flags.FLAGS.get_key_flags_for_module(__name__)},
        'device': jax.devices()[0].device_kind, 'results': results, **fitted})


if __name__ == '__main__':
  app.run(main)
