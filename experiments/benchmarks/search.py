"""Exact search against faiss: time and peak extra memory of both in one run.

  python -m experiments.benchmarks.search --num_targets=1000000 --dim=384

Each arm runs in its own process, so that its peak memory is its own; the arms
take turns `--rounds` times, so that a busy machine slows all. The arms float32,
bfloat16 and int8 are our index with that `scan_dtype`. Extra memory is
the peak of resident memory during the first search (of ours, its compilation
too) above what was resident before it. The faiss arm needs the package
faiss-cpu and is left out where it is absent. Linux only.
"""

import gc
import importlib.util
import json
import subprocess
import sys
import time

from absl import app
from absl import flags
import numpy as np

from experiments.benchmarks import memory
from retrieval_jax import coarse

_NUM_TARGETS = flags.DEFINE_integer('num_targets', 1_000_000, 'Targets N.')
_NUM_QUERIES = flags.DEFINE_integer('num_queries', 512, 'Queries.')
_DIM = flags.DEFINE_integer('dim', 384, 'Embedding dimension D.')
_K = flags.DEFINE_integer('k', 64, 'Results per query.')
_CHUNK_ROWS = flags.DEFINE_integer('chunk_rows', 2048, 'Rows scored at a time.')
_ROUNDS = flags.DEFINE_integer('rounds', 2, 'Processes per arm, in turns.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Searches per process.')
_ARM = flags.DEFINE_enum('arm', None, [*coarse.DTYPES, 'faiss'],
                         'Internal: run this arm alone.')


def _data() -> tuple[np.ndarray, np.ndarray]:
  """Returns unit vectors: targets [N, D] and queries [n, D]."""
  rng = np.random.default_rng(0)
  def unit(num):
    vectors = rng.standard_normal((num, _DIM.value), np.float32)
    for part in np.array_split(vectors, max(1, num // 50_000)):
      part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors
  return unit(_NUM_TARGETS.value), unit(_NUM_QUERIES.value)


def _make_search(arm: str, targets: np.ndarray):
  """Returns search(queries) -> (scores, ids) over built targets."""
  if arm == 'faiss':
    import faiss  # Optional: only this arm needs it.
    index = faiss.IndexFlatIP(targets.shape[1])
    index.add(targets)
    return lambda queries: index.search(queries, _K.value)
  import jax

  from retrieval_jax import indexes
  from retrieval_jax import sharding
  index = indexes.ExactIndex(
      sharding.make_mesh(), _CHUNK_ROWS.value, scan_dtype=arm)
  # Copying to the device is asynchronous and must not count as search.
  state = jax.block_until_ready(index.build(targets))
  return lambda queries: index.search(state, queries, _K.value)


def _run_arm(arm: str):
  """Prints one JSON line: seconds, extra bytes and a checksum of the ids."""
  targets, queries = _data()
  search = _make_search(arm, targets)
  del targets
  gc.collect()
  memory.forget_peak()
  before, seconds = memory.resident_bytes('VmRSS'), []
  for _ in range(_REPEATS.value + 1):
    start = time.perf_counter()
    _, ids = search(queries)
    seconds.append(time.perf_counter() - start)
  print(json.dumps({
      'seconds': seconds[1:], 'first': seconds[0],
      'extra_bytes': memory.resident_bytes('VmHWM') - before,
      'ids': np.sort(ids, axis=1).astype(int).tolist()}))


def main(argv):
  if _ARM.value:
    _run_arm(_ARM.value)
    return
  arms = [*coarse.DTYPES]
  if importlib.util.find_spec('faiss'):
    arms.append('faiss')
  found = {arm: [] for arm in arms}
  for _ in range(_ROUNDS.value):
    for arm in arms:
      command = [sys.executable, '-m', 'experiments.benchmarks.search',
                 *argv[1:], f'--arm={arm}',
                 *(f'--{name}={flags.FLAGS[name].value}' for name in (
                     'num_targets', 'num_queries', 'dim', 'k', 'chunk_rows',
                     'repeats'))]
      output = subprocess.run(
          command, check=True, stdout=subprocess.PIPE, text=True).stdout
      found[arm].append(json.loads(output.splitlines()[-1]))
  matrix = 4 * _NUM_TARGETS.value * _NUM_QUERIES.value
  print(f'top-{_K.value} of {_NUM_QUERIES.value} queries over '
        f'{_NUM_TARGETS.value:,} x {_DIM.value}; the full score matrix has '
        f'{matrix / 2**20:,.0f} MiB')
  for arm in arms:
    seconds = np.concatenate([run['seconds'] for run in found[arm]])
    extra = max(run['extra_bytes'] for run in found[arm])
    print(f'{arm:14s} median {np.median(seconds):.3f} s, best '
          f'{np.min(seconds):.3f} s, first call '
          f'{found[arm][0]["first"]:.2f} s, extra memory '
          f'{extra / 2**20:,.0f} MiB ({extra / matrix:.3f} of the matrix)')
  ids = [np.asarray(found[arm][0]['ids']) for arm in arms]
  for arm, others in zip(arms[1:], ids[1:]):
    print(f'{arm}: {np.mean(ids[0] == others):.6f} of the ids are those of '
          f'{arms[0]}')


if __name__ == '__main__':
  app.run(main)
