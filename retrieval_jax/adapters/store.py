"""Adapted indexes on disk: everything that searching takes, in one folder.

  index.json       kind, options, and what the index was fitted to
  targets.npy      [N, D] float32, moved or as they were
  target_ids.txt   one id per row
  and for PEFA-XL  train_queries.npy, label_starts.npy, label_rows.npy
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

import jax
import numpy as np

from retrieval_jax import files
from retrieval_jax.adapters import methods
from retrieval_jax.adapters import moved
from retrieval_jax.adapters import pairs as pairs_lib
from retrieval_jax.adapters import pefa_xl
from retrieval_jax.data import embeddings
from retrieval_jax.data import settings
from retrieval_jax.indexes import exact
from retrieval_jax.indexes import faiss as faiss_index

_FILE = 'index.json'

QUERY_INDEXES = {
    'exact': lambda index: index,
    # The published graph (papers' protocol).
    'hnsw': lambda index: faiss_index.FaissHNSW(
        links=32, ef_construction=500, ef_search=300),
}
"""Ways to search training queries, given the index of the targets."""


def save(folder: str, index: Any, targets: np.ndarray,
         pairs: pairs_lib.Pairs, target_ids: Sequence[str],
         facts: Mapping[str, Any], knn: str = 'exact') -> None:
  """Fits `index` and writes it as `folder`, whole or not at all.

  Args:
    folder: must not exist.
    index: PefaXL, or Moved with its move.
    targets: [N, D], before they are moved.
    pairs: training queries and their targets.
    target_ids: N strings.
    knn: of PEFA-XL, which of `QUERY_INDEXES` its queries are searched by.
    facts: further entries of index.json, of JSON types.
  """
  with files.new_folder(folder) as temporary:
    path = lambda name: os.path.join(temporary, name)
    if isinstance(index, pefa_xl.PefaXL):
      pairs.check_targets(targets)
      kind, options = 'pefa_xl', methods.constants(index)
      files.save_array(
          path('targets.npy'), np.asarray(targets, np.float32))
      files.save_array(
          path('train_queries.npy'), np.asarray(pairs.queries, np.float32))
      for name, array in zip(('label_starts', 'label_rows'), pairs.labels):
        files.save_array(path(f'{name}.npy'), array)
    else:
      kind, options = 'moved', {
          'move': type(index.move).__name__, **methods.constants(index)}
      with files.new_array(
          path('targets.npy'), np.float32, targets.shape) as out:
        moved.move_targets(index.move, targets, pairs, out=out)
    embeddings.write_ids(path('target_ids.txt'), target_ids)
    content = {'kind': kind, 'options': options, 'knn': knn, **facts}
    files.write_json(path(_FILE), content)
    files.seal(temporary)


def origin(folder: str) -> Mapping[str, Any] | None:
  """Returns what the targets were made by, see `origins`, if it is known."""
  return files.read_object(os.path.join(folder, _FILE)).get('origin')


def load(folder: str, mesh: jax.sharding.Mesh, chunk_rows: int
         ) -> tuple[Any, Any, Sequence[str]]:
  """Returns (index, state, target ids) of a folder that `save` wrote.

  Args:
    folder: of the index.
    mesh: devices that share the targets.
    chunk_rows: targets scored at a time on each device.

  Raises:
    ValueError: where the folder holds no index, or a damaged one, naming the
      file.
  """
  path = os.path.join(folder, _FILE)
  if not os.path.isfile(path):
    raise ValueError(
        f'{folder} holds no {_FILE}; it is not an adapted index. Make one '
        'with python -m experiments.adapt.')
  problem = files.damage(folder)
  if problem:
    raise ValueError(f'{problem}. The index is damaged; fit it again.')
  saved = settings.Settings(files.read_json(path), path)
  read_matrix = lambda name: embeddings.read_matrix(
      os.path.join(folder, f'{name}.npy'))
  targets = read_matrix('targets')
  ids = embeddings.read_ids(os.path.join(folder, 'target_ids.txt'))
  if len(ids) != len(targets):
    raise ValueError(
        f'{folder}: {len(ids)} ids for {len(targets)} targets; the folder is '
        'damaged, fit it again.')
  inner = exact.ExactIndex(mesh, chunk_rows)
  if saved.expect('kind', 'moved', 'pefa_xl') == 'moved':
    return inner, inner.build(targets), ids
  try:
    index = pefa_xl.PefaXL(
        inner, QUERY_INDEXES[saved.expect('knn', *QUERY_INDEXES)](inner),
        **saved.read('options', dict))
  except TypeError as error:
    raise ValueError(f'{path}: options: {error}; fit it again.') from error
  queries = read_matrix('train_queries')
  state = pefa_xl.XLState(
      inner.build(targets),
      index.query_index.build(queries),
      *_read_labels(folder, len(queries), len(targets)),
      targets if index.missing == 'exact' else None,
      len(targets))
  return index, state, ids


def _read_labels(folder: str, num_queries: int, num_targets: int
                 ) -> tuple[np.ndarray, np.ndarray]:
  """Returns label_starts and label_rows, see pefa_xl.XLState."""
  arrays = []
  for name in ('label_starts', 'label_rows'):
    path = os.path.join(folder, f'{name}.npy')
    try:
      arrays.append(np.load(path, mmap_mode='r'))
    except (ValueError, OSError, EOFError) as error:
      raise ValueError(
          f'{path}: cannot read it: {error}; fit it again.') from error
  starts, rows = arrays
  if (starts.shape != (num_queries + 1,) or rows.ndim != 1 or starts[0] != 0
      or starts[-1] != len(rows) or (np.diff(starts) < 0).any()
      or ((rows < 0) | (rows >= num_targets)).any()):
    raise ValueError(
        f'{folder}: label_starts.npy and label_rows.npy do not list targets '
        f'of {num_queries} queries among {num_targets}; fit it again.')
  return starts, rows
