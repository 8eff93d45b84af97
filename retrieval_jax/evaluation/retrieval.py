"""Full-corpus retrieval: embeddings in, a run out."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from retrieval_jax import quantisation
from retrieval_jax.evaluation import runs
from retrieval_jax.indexes import exact
from retrieval_jax.indexes import quantised

NUM_RESULTS = 100
"""Passages kept per query: the deepest measure reported is R@100."""


def search_corpus(query_embeddings: np.ndarray, target_embeddings: np.ndarray,
                  *, query_ids: Sequence[str], corpus_ids: Sequence[str],
                  mesh: jax.sharding.Mesh | None = None, k: int = NUM_RESULTS,
                  exclude: np.ndarray | None = None, chunk_rows: int = 4096,
                  index: Any = None) -> runs.Run:
  """Returns the k best targets of each query among all targets, exactly.

  Scores are inner products. The index takes the queries in batches, so memory
  is the targets' plus what it needs for one batch and one chunk of rows.

  Args:
    query_embeddings: [n, D] float32.
    target_embeddings: [N, D] float32.
    query_ids: n strings.
    corpus_ids: N strings.
    mesh: devices that share the targets; needed unless `index` is given.
    k: results per query; at most N come back.
    exclude: [n, E] int, corpus rows that must not be found for each query, -1
      for none; None excludes nothing.
    chunk_rows: rows scored at a time on each device, a multiple of
      `scoring.BLOCK_ROWS`.
    index: anything with `build` and `search`; None is an exact index.

  Raises:
    ValueError: if the numbers of rows do not fit each other.
  """
  if len(target_embeddings) != len(corpus_ids):
    raise ValueError(
        f'Expected one target embedding per corpus id ({len(corpus_ids)}), '
        f'got {len(target_embeddings)}; embed the whole corpus.')
  if index is None:
    if mesh is None:
      raise ValueError(
          'Expected a mesh for the exact index, got None; pass '
          'mesh=sharding.make_mesh(), or an index.')
    index = exact.ExactIndex(mesh, chunk_rows)
  return search_index(
      index, index.build(target_embeddings), query_embeddings,
      query_ids=query_ids, corpus_ids=corpus_ids, k=k, exclude=exclude)


def search_index(index: Any, state: Any, query_embeddings: np.ndarray, *,
                 query_ids: Sequence[str], corpus_ids: Sequence[str],
                 k: int = NUM_RESULTS, exclude: np.ndarray | None = None
                 ) -> runs.Run:
  """Returns the run of an index that is already built.

  Arguments are those of `search_corpus`; `state` is what `index.build` gave.
  """
  if len(query_embeddings) != len(query_ids):
    raise ValueError(
        f'Expected one embedding per query id ({len(query_ids)}), got '
        f'{len(query_embeddings)}; embed all queries of the split.')
  if exclude is not None and len(exclude) != len(query_ids):
    raise ValueError(
        f'Expected exclude to have one row per query ({len(query_ids)}), got '
        f'{len(exclude)}.')
  scores, rows = index.search(
      state, query_embeddings, min(k, len(corpus_ids)), exclude)
  return runs.from_rows(query_ids, rows, scores, corpus_ids)


def search_quantised(query_embeddings: np.ndarray,
                     target_embeddings: np.ndarray,
                     precisions: Sequence[str], *, rescore_multiplier: int,
                     query_ids: Sequence[str], corpus_ids: Sequence[str],
                     mesh: jax.sharding.Mesh, k: int = NUM_RESULTS,
                     chunk_rows: int = 4096) -> Iterator[tuple[str, runs.Run]]:
  """Yields (name, run) of every way to search quantised targets.

  The names are `quantisation.variants`. Bits are searched once, for
  rescore_multiplier * k results by Hamming distance; the first k of these are
  'binary', the best k by the float query the rescored ones.

  Args:
    query_embeddings: [n, D] float32.
    target_embeddings: [N, D] float32, of which the ranges are.
    precisions: of quantisation.PRECISIONS.
    rescore_multiplier: candidates per result that are scored again; 0: none.
    query_ids: n strings.
    corpus_ids: N strings.
    mesh: devices that share the targets.
    k: results per query; at most N come back.
    chunk_rows: as of `search_corpus`.

  Raises:
    ValueError: for another precision.
  """
  quantisation.check(precisions, 'precisions')
  k = min(k, len(corpus_ids))
  names = quantisation.variants(precisions, rescore_multiplier)
  as_run = lambda found: runs.from_rows(
      query_ids, found[1], found[0], corpus_ids)
  int8 = quantised.Int8Index(mesh, chunk_rows)
  int8_targets = None
  if 'int8' in names:
    int8_targets = int8.build(target_embeddings)
    yield 'int8', as_run(int8.search(int8_targets, query_embeddings, k))
  if 'binary' not in names:
    return
  binary = quantised.BinaryIndex(mesh, chunk_rows)
  targets = binary.build(target_embeddings)
  scores, ids = binary.search(
      targets, query_embeddings,
      min(k * max(rescore_multiplier, 1), len(corpus_ids)))
  yield 'binary', as_run((scores[:, :k], ids[:, :k]))
  for name, index, state in (
      ('binary_rescored', binary, targets),
      ('binary_rescored_int8', int8, int8_targets)):
    if name in names:
      yield name, as_run(index.rescore(state, query_embeddings, ids, k))
