"""Indexes over the embeddings of a run: recall, latency, memory, time to build.

  python -m experiments.benchmarks.index --workdir=runs/quickstart

Searches the targets of a run, as its encoder embeds them, for the first dev
queries: exactly, along a tree (for each --opened and --beam, and with neither
limit), and by faiss along a graph (HNSW, for each --ef_search) and in lists of
k-means (IVF, for each --probes), where the package faiss-cpu is installed.

Prints recall@10 and @100, the share of the exact results that are among as many
found; for each --batch_size the median time of a batch, divided by its queries,
all indexes taking turns batch by batch, so that a busy machine slows all; the
size of the index, targets included; and the time to build it, compilation
included. A tree without limits must find what the exact search finds: the last
line says how nearly it does.
"""

import functools
import importlib.util
import math
import statistics
import time

from absl import app
from absl import flags
import jax
import numpy as np

from experiments import process
from retrieval_jax import indexes
from retrieval_jax import sharding
from retrieval_jax import trained
from retrieval_jax.training import meter

_WORKDIR = process.DEFINE_path(
    'workdir', None, 'A finished run.', required=True)
_OPENED = flags.DEFINE_multi_integer(
    'opened', [16, 64, 256], 'Leaves of the tree whose targets are scored.')
_BEAM = flags.DEFINE_multi_integer(
    'beam', [0, 8], 'Parents whose leaves are looked at; 0: all.')
_LEAF_SIZE = flags.DEFINE_integer(
    'leaf_size', indexes.TreeIndex.leaf_size, 'Targets of a leaf, at most.')
_EF_SEARCH = flags.DEFINE_multi_integer(
    'ef_search', [32, 128, 512], 'Candidates of HNSW in a search.')
_PROBES = flags.DEFINE_multi_integer(
    'probes', [4, 16, 64], 'Lists of IVF that are searched.')
_LISTS = flags.DEFINE_integer(
    'lists', 0, 'Lists of IVF; 0: four times the root of the targets.')
_NUM_QUERIES = flags.DEFINE_integer('num_queries', 512, 'First dev queries.')
_BATCH_SIZE = flags.DEFINE_multi_integer(
    'batch_size', [64, 1], 'Queries searched at a time.')
_BATCHES = flags.DEFINE_integer('batches', 8, 'Timed, of each size.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Times that each is timed.')
_K = 100


def _run_data():
  """Returns targets [N, D], queries [n, D] and the rows of a chunk."""
  retriever = trained.open(_WORKDIR.value)
  dataset = retriever.dataset
  rows = np.unique(dataset.qrels['dev'].query_rows)[:_NUM_QUERIES.value]
  queries = retriever.embed_queries([dataset.query_texts[row] for row in rows])
  return (np.asarray(retriever.stored_targets(), np.float32), queries,
          retriever.config.memory.chunk_rows)


def _timed(call, *arguments):
  """Returns what a call returns, and its seconds."""
  start = time.perf_counter()
  found = jax.block_until_ready(call(*arguments))
  return found, time.perf_counter() - start


def _arms(targets, mesh, chunk_rows):
  """Yields (name, search, bytes, seconds to build) of all indexes.

  The seconds are None of one that is built already.
  """
  exact = indexes.ExactIndex(mesh, chunk_rows)
  table, seconds = _timed(exact.build, targets)
  yield ('exact', functools.partial(exact.search, table),
         meter.num_bytes(table), seconds)

  make = functools.partial(
      indexes.TreeIndex, mesh, chunk_rows, leaf_size=_LEAF_SIZE.value)
  state, seconds = _timed(make().build, targets)
  num_leaves, num_parents = (
      int((level.counts > 0).sum())
      for level in (state.tree.leaves, state.tree.parents))
  print(f'tree of {num_leaves:,} leaves under {num_parents:,} parents',
        flush=True)
  for beam in _BEAM.value:
    for opened in _OPENED.value:
      yield (f'tree, {opened} leaves' + (f', beam {beam}' if beam else ''),
             functools.partial(make(opened=opened, beam=beam).search, state),
             meter.num_bytes(state), seconds)
      seconds = None
  yield ('tree, no limits', functools.partial(make(opened=0).search, state),
         meter.num_bytes(state), None)
  if importlib.util.find_spec('faiss'):
    yield from _arms_of_faiss(targets)


def _arms_of_faiss(targets):
  """Yields the same of faiss's indexes."""
  import faiss  # Optional: only these arms need it.
  search = indexes.FaissFlat().search
  size = lambda index: len(faiss.serialize_index(index))

  def with_option(index, name, value, queries, k):
    faiss.ParameterSpace().set_index_parameter(index, name, value)
    return search(index, queries, k)

  graph, seconds = _timed(indexes.FaissHNSW().build, targets)
  for value in _EF_SEARCH.value:
    yield (f'faiss HNSW, ef {value}', functools.partial(
        with_option, graph, 'efSearch', value), size(graph), seconds)
    seconds = None

  lists = _LISTS.value or round(4 * math.sqrt(len(targets)))
  def build_lists():
    index = faiss.index_factory(
        targets.shape[1], f'IVF{lists},Flat', faiss.METRIC_INNER_PRODUCT)
    index.train(targets)
    index.add(targets)
    return index
  inverted, seconds = _timed(build_lists)
  for value in _PROBES.value:
    yield (f'faiss IVF, {value} of {lists} lists', functools.partial(
        with_option, inverted, 'nprobe', value), size(inverted), seconds)
    seconds = None


def _recall(found, exact, k):
  """Returns the share of exact ids [n, >= k] that are found among k."""
  return np.mean([np.isin(a, b).mean()
                  for a, b in zip(exact[:, :k], found[:, :k])])


def _milliseconds(arms, queries, size):
  """Returns the median time of a query in batches of a size, by arm."""
  batches = [np.take(queries, range(start, start + size), axis=0, mode='wrap')
             for start in range(0, size * _BATCHES.value, size)]
  seconds = {name: [] for name in arms}
  for search in arms.values():
    search(batches[0], _K)  # compiles
  for _ in range(_REPEATS.value):
    for batch in batches:
      for name, search in arms.items():
        seconds[name].append(_timed(search, batch, _K)[1])
  return {name: 1e3 * statistics.median(values) / size
          for name, values in seconds.items()}


def main(argv):
  del argv
  targets, queries, chunk_rows = _run_data()
  arms = {name: rest for name, *rest in _arms(
      targets, sharding.make_mesh(1), chunk_rows)}
  largest = max(_BATCH_SIZE.value)
  found = {}
  for name, (search, *_) in arms.items():
    # Without limits a search is slow: one batch says whether it is right.
    some = queries[:largest] if name == 'tree, no limits' else queries
    parts = [search(some[start:start + largest], _K)
             for start in range(0, len(some), largest)]
    found[name] = tuple(np.concatenate(part) for part in zip(*parts))
  scores, ids = found['exact']
  timed = {name: search for name, (search, *_) in arms.items()
           if name != 'tree, no limits'}
  times = [_milliseconds(timed, queries, size) for size in _BATCH_SIZE.value]
  print(f'{len(targets):,} targets of {targets.shape[1]} dimensions, '
        f'{len(queries)} dev queries, on {jax.devices()[0].device_kind}\n')
  columns = [f'ms, {size} at a time' for size in _BATCH_SIZE.value]
  print(f'| index | recall@10 | recall@100 | {" | ".join(columns)} | MiB | '
        'building, s |')
  print('| --- ' * (5 + len(columns)) + '|')
  for name, (_, size, seconds) in arms.items():
    cells = [f'{_recall(found[name][1], ids, k):.4f}' for k in (10, _K)]
    cells += [f'{of_size[name]:.2f}' if name in of_size else ''
              for of_size in times]
    cells += [f'{size / 2**20:,.1f}',
              '' if seconds is None else f'{seconds:.1f}']
    print(f'| {name} | {" | ".join(cells)} |')
  free_scores, free_ids = found['tree, no limits']
  same = free_ids == ids[:len(free_ids)]
  away = np.abs(free_scores - scores[:len(free_ids)]).max()
  print(f'\ntree without limits: {same.mean():.6f} of the ids are those of the '
        f'exact search, scores differ by at most {away:.1e}')


if __name__ == '__main__':
  app.run(main)
