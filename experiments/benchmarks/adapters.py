"""Adapters at scale: seconds to fit, memory and search time, in one run.

  python -m experiments.benchmarks.adapters --num_targets=1000000 \
      --num_queries=300000 --dim=128

Random unit vectors in memory-mapped files; each training query has one target.
The arms take turns `--rounds` times when searching. Extra memory is the peak of
resident memory while fitting (searching) above what was resident before it,
the index itself included. Linux only.
"""

import os
import tempfile
import time

from absl import app
from absl import flags
import jax
import numpy as np

from experiments.benchmarks import memory
from retrieval_jax import adapters
from retrieval_jax import files
from retrieval_jax import sharding
from retrieval_jax.adapters import fitting
from retrieval_jax.adapters import store
from retrieval_jax.indexes import exact

_NUM_TARGETS = flags.DEFINE_integer('num_targets', 1_000_000, 'Targets N.')
_NUM_QUERIES = flags.DEFINE_integer('num_queries', 300_000,
                                    'Training queries m.')
_DIM = flags.DEFINE_integer('dim', 128, 'Embedding dimension D.')
_NEIGHBOURS = flags.DEFINE_integer('k', 16, 'Neighbours of PEFA-XL.')
_ARMS = flags.DEFINE_list('arms', ['encoder', 'xs', 'nudge_n', 'xl', 'xl_hnsw'],
                          'What to measure.')
_SEARCHED = flags.DEFINE_integer('searched', 512, 'Queries per search.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Searches of each arm, in turns.')
_CHUNK_ROWS = flags.DEFINE_integer('chunk_rows', 4096, 'Rows scored at a time.')


def _unit_vectors(path, num):
  """Writes unit vectors [num, D] to a file and returns them, mapped."""
  rng = np.random.default_rng(num)
  with files.new_array(path, np.float32, (num, _DIM.value)) as out:
    for start in range(0, num, 65536):
      rows = rng.standard_normal(
          (min(65536, num - start), _DIM.value), np.float32)
      out[start:start + 65536] = rows / np.linalg.norm(
          rows, axis=1, keepdims=True)
  return np.load(path, mmap_mode='r')


def _make_index(arm, inner):
  if arm == 'encoder':
    return inner
  if arm in ('xs', 'nudge_n'):
    return adapters.Moved(adapters.PefaXS(0.5) if arm == 'xs'
                          else adapters.NudgeN(0.2), inner)
  knn = 'hnsw' if arm == 'xl_hnsw' else 'exact'
  return adapters.PefaXL(inner, store.QUERY_INDEXES[knn](inner), 0.5,
                         _NEIGHBOURS.value)


def main(argv):
  del argv
  inner = exact.ExactIndex(sharding.make_mesh(), _CHUNK_ROWS.value)
  with tempfile.TemporaryDirectory() as folder:
    targets = _unit_vectors(os.path.join(folder, 't.npy'), _NUM_TARGETS.value)
    train = _unit_vectors(os.path.join(folder, 'q.npy'), _NUM_QUERIES.value)
    rng = np.random.default_rng(0)
    pairs = adapters.Pairs(train, np.arange(len(train)), rng.integers(
        0, len(targets), len(train)))
    queries = np.asarray(train[:_SEARCHED.value])
    print(f'{len(targets):,} targets, {len(train):,} training queries, '
          f'{_DIM.value} dimensions ({targets.nbytes / 2**20:,.0f} MiB and '
          f'{train.nbytes / 2**20:,.0f} MiB); searches of {len(queries)}')
    indexes, seconds = {}, {arm: [] for arm in _ARMS.value}
    for arm in _ARMS.value:
      index = _make_index(arm, inner)
      memory.forget_peak()
      before, start = memory.resident_bytes('VmRSS'), time.perf_counter()
      state = jax.block_until_ready(
          index.build(targets) if arm == 'encoder'
          else index.build(targets, pairs))
      taken = time.perf_counter() - start
      extra = memory.resident_bytes('VmHWM') - before
      indexes[arm] = index, state
      print(f'{arm:8s} fit {taken:7.2f} s, extra memory '
            f'{extra / 2**20:7,.0f} MiB, index '
            f'{fitting.index_bytes(state) / 2**20:,.0f} MiB', flush=True)
    for turn in range(_ROUNDS.value + 1):
      for arm, (index, state) in indexes.items():
        memory.forget_peak()
        before, start = memory.resident_bytes('VmRSS'), time.perf_counter()
        index.search(state, queries, 100)
        if turn:  # the first compiles
          seconds[arm].append(time.perf_counter() - start)
          extra = memory.resident_bytes('VmHWM') - before
          print(f'{arm:8s} {seconds[arm][-1]:.3f} s, extra memory '
                f'{extra / 2**20:,.0f} MiB', flush=True)
  base = np.median(seconds[_ARMS.value[0]])
  for arm, found in seconds.items():
    print(f'{arm:8s} {1e3 * np.median(found) / len(queries):.2f} ms per query, '
          f'{np.median(found) / base:.2f} of {_ARMS.value[0]}')


if __name__ == '__main__':
  app.run(main)
