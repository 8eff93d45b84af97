"""Mining against sentence-transformers: time, memory and the same negatives.

  python -m experiments.benchmarks.mine --embeddings=embeddings/minilm
  python -m experiments.benchmarks.mine --num_targets=100000 --dim=384

From given embeddings, or random unit vectors. Each arm runs in its own process,
so that its peak memory is its own; the arms take turns `--rounds` times, so
that a busy machine slows all. Time is from embeddings to chosen negatives,
building the index included, of the first call (ours compiles in it) and of a
second one; extra memory is the peak of the first call above what was resident
before it, which has the embeddings, but not the copy that an index makes of
them. Seconds of CPU, of all threads, say more than others where the machine is
busy.

sentence-transformers gets a model that looks its embeddings up, and ids in
place of texts; 'bfloat16' and 'int8' are our exact index with that scan_dtype,
'batched' is its option faiss_batch_size at our --batch_size.
Its arms need the packages sentence-transformers and datasets, those of faiss
faiss-cpu; they are left out where a package is absent. Linux only.
"""

import gc
import importlib.util
import json
import statistics
import subprocess
import sys
import time

from absl import app
from absl import flags
import numpy as np

from experiments.benchmarks import memory
from retrieval_jax import indexes
from retrieval_jax import mining
from retrieval_jax import sharding
from retrieval_jax.data import dataset as datasets
from retrieval_jax.data import embeddings

_EMBEDDINGS = flags.DEFINE_string(
    'embeddings', None, 'Folder that experiments.embed wrote.')
_NUM_TARGETS = flags.DEFINE_integer('num_targets', 100_000, 'N, if random.')
_DIM = flags.DEFINE_integer('dim', 384, 'D, if random.')
_NUM_QUERIES = flags.DEFINE_integer('num_queries', 1000, 'Queries mined.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 256, 'Queries at a time.')
_NUM_NEGATIVES = flags.DEFINE_integer('num_negatives', 3, 'Per query.')
_RANGE_MAX = flags.DEFINE_integer('range_max', 33, 'End of the window.')
_RELATIVE_MARGIN = flags.DEFINE_float('relative_margin', 0.05, 'Margin.')
_ROUNDS = flags.DEFINE_integer('rounds', 2, 'Processes per arm, in turns.')

_ST = ('sentence_transformers', 'datasets')
_ARMS = {
    'retrieval_jax exact': (), 'retrieval_jax bfloat16': (),
    'retrieval_jax int8': (), 'retrieval_jax faiss': ('faiss',),
    'sentence-transformers': _ST, 'sentence-transformers batched': _ST,
    'sentence-transformers faiss': (*_ST, 'faiss')}
_ARM = flags.DEFINE_enum('arm', None, list(_ARMS), 'Internal: run this alone.')


def _data():
  """Returns queries [n, D], targets [N, D] and Qrels, all of them in memory."""
  if _EMBEDDINGS.value:
    targets, queries = embeddings.read_both(_EMBEDDINGS.value)
    train = embeddings.read_qrels(
        f'{_EMBEDDINGS.value}/qrels', 'train', queries.ids, targets.ids)
    rows = train.queries()[:_NUM_QUERIES.value]
    return (np.array(queries.vectors[rows]), np.array(targets.vectors),
            datasets.Qrels.from_triples([
                (row, target, 1) for row, query_row in enumerate(rows)
                for target in train.positives(query_row)]))
  rng = np.random.default_rng(0)
  def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  targets = unit(rng.standard_normal(
      (_NUM_TARGETS.value, _DIM.value), np.float32))
  right = rng.choice(len(targets), _NUM_QUERIES.value, replace=False)
  noise = unit(rng.standard_normal((len(right), _DIM.value), np.float32))
  # A cosine of 0.24 to the positive, near which the best of the others are.
  return unit(targets[right] + 4 * noise), targets, datasets.Qrels.from_triples(
      [(row, target, 1) for row, target in enumerate(right)])


def _ours(kind, queries, targets, qrels):
  """Returns a list of ids per query."""
  if kind == 'faiss':
    index = indexes.FaissFlat(batch_size=_BATCH_SIZE.value)
  else:
    index = indexes.ExactIndex(
        sharding.make_mesh(), 4096, _BATCH_SIZE.value,
        scan_dtype='float32' if kind == 'exact' else kind)
  results = mining.IndexResults(index, queries, targets, index.build(targets))
  rules = mining.Rules(
      _NUM_NEGATIVES.value, range_max=_RANGE_MAX.value,
      relative_margin=_RELATIVE_MARGIN.value)
  mined = mining.mine(results, qrels, [str(i) for i in range(len(queries))],
                      rules, batch_size=_BATCH_SIZE.value)
  return [[i for i in ids if i >= 0] for ids in mined.ids.tolist()]


class _LookUp:
  """What mine_hard_negatives needs of a model; texts are 'q3' and 't17'."""
  device = 'cpu'

  def __init__(self, queries, targets):
    self._queries, self._targets = queries, targets

  def get_embedding_dimension(self):
    return self._targets.shape[1]

  def encode_query(self, texts, **options):
    del options
    return self._queries[[int(text[1:]) for text in texts]]

  def encode_document(self, texts, **options):
    del options
    # All of them in order: no copy that an encoder would not make either.
    assert [int(text[1:]) for text in texts] == list(range(len(self._targets)))
    return self._targets

  def similarity(self, a, b):
    import torch
    return torch.as_tensor(a) @ torch.as_tensor(b).T

  def similarity_pairwise(self, a, b):
    import torch
    return (torch.as_tensor(a) * torch.as_tensor(b)).sum(-1)


def _theirs(kind, queries, targets, qrels):
  """Returns a list of ids per query."""
  import datasets as hf_datasets
  from sentence_transformers import util
  pairs = hf_datasets.Dataset.from_dict({
      'query': [f'q{row}' for row in qrels.query_rows],
      'positive': [f't{row}' for row in qrels.corpus_rows]})
  rows = util.mine_hard_negatives(
      pairs, _LookUp(queries, targets),
      corpus=[f't{row}' for row in range(len(targets))],
      range_max=_RANGE_MAX.value, relative_margin=_RELATIVE_MARGIN.value,
      num_negatives=_NUM_NEGATIVES.value, output_format='triplet',
      use_faiss=kind == 'faiss', verbose=False,
      **({'faiss_batch_size': _BATCH_SIZE.value} if kind == 'batched' else {}))
  found = [{} for _ in queries]  # a query has a row for each of its positives
  for query, one in zip(rows['query'], rows['negative']):
    found[int(query[1:])][int(one[1:])] = None
  return [list(ids) for ids in found]


def _run_arm(arm):
  """Prints one JSON line: seconds, extra bytes and the negatives."""
  library, _, kind = arm.partition(' ')
  world = _data()
  if library == 'retrieval_jax':
    import jax
    jax.devices()  # starting it is not mining, nor is importing the other
    mine = _ours
  else:
    import datasets  # noqa: F401
    import sentence_transformers  # noqa: F401
    mine = _theirs
  gc.collect()
  memory.forget_peak()
  before, seconds, busy = memory.resident_bytes('VmRSS'), [], []
  for _ in range(2):
    start, start_busy = time.perf_counter(), time.process_time()
    found = mine(kind, *world)
    seconds.append(time.perf_counter() - start)
    busy.append(time.process_time() - start_busy)
    if len(seconds) == 1:
      extra = memory.resident_bytes('VmHWM') - before
  print(json.dumps({'seconds': seconds, 'busy': busy, 'extra_bytes': extra,
                    'ids': found}))


def main(argv):
  if _ARM.value:
    _run_arm(_ARM.value)
    return
  arms = [arm for arm, packages in _ARMS.items()
          if all(map(importlib.util.find_spec, packages))]
  found = {arm: [] for arm in arms}
  for _ in range(_ROUNDS.value):
    for arm in arms:
      command = [sys.executable, '-m', 'experiments.benchmarks.mine',
                 *argv[1:], f'--arm={arm}',
                 *(f'--{flag.name}={flag.value}' for flag in (
                     _NUM_TARGETS, _DIM, _NUM_QUERIES, _BATCH_SIZE,
                     _NUM_NEGATIVES, _RANGE_MAX, _RELATIVE_MARGIN)),
                 *([f'--embeddings={_EMBEDDINGS.value}']
                   if _EMBEDDINGS.value else [])]
      output = subprocess.run(
          command, check=True, stdout=subprocess.PIPE, text=True).stdout
      found[arm].append(json.loads(output.splitlines()[-1]))
  expected = found[arms[0]][0]['ids']
  print(f'{len(expected)} queries, {sum(map(len, expected)):,} negatives')
  for arm in arms:
    first, second, first_busy, second_busy = (
        statistics.median(run[name][i] for run in found[arm])
        for name in ('seconds', 'busy') for i in range(2))
    extra = max(run['extra_bytes'] for run in found[arm])
    same = np.mean([ids == other for run in found[arm]
                    for ids, other in zip(run['ids'], expected)])
    print(f'{arm:30s} first call {first:.2f} s ({first_busy:.2f} s of CPU), '
          f'second {second:.2f} s ({second_busy:.2f} s), extra memory '
          f'{extra / 2**20:,.0f} MiB, same negatives for {same:.4f} of the '
          'queries')


if __name__ == '__main__':
  app.run(main)
