"""Embeddings of any encoder as files: vectors, their ids, judgements.

  DIR/targets.npy       [N, D]; or targets.npz or targets.safetensors, with
                        one matrix in it
  DIR/target_ids.txt    one id per line; without it ids are '0', '1', ...
  DIR/queries.npy, DIR/query_ids.txt   the same of all queries
  DIR/qrels/SPLIT.tsv   query-id <tab> corpus-id <tab> score

  DIR/embeddings.json   not needed; what they were made by
This is what experiments/embed.py writes. For an encoder that is only a service
returning vectors, write the same files yourself.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from retrieval_jax import files
from retrieval_jax.data import dataset
from retrieval_jax.data import dropped as dropped_lib
from retrieval_jax.data import errors
from retrieval_jax.data import lenient
from retrieval_jax.data import settings as settings_lib
from retrieval_jax.data import tensor_files
from retrieval_jax.data.readers import beir
from retrieval_jax.data.readers import lines

_IDS = {'targets': 'target_ids.txt', 'queries': 'query_ids.txt'}
_KINDS = ('.npy', '.npz', '.safetensors')


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
  """Vectors and their ids.

  Attributes:
    vectors: [n, D] floats, memory-mapped where the file allows it.
    ids: n different strings.
    path: of the vectors, for messages.
  """
  vectors: np.ndarray
  ids: Sequence[str]
  path: str


def read(folder: str, side: str) -> Embeddings:
  """Returns the embeddings of one side: 'targets' or 'queries'.

  Raises:
    DataError: where files are missing or do not fit each other, an id occurs
      twice, or there is not exactly one matrix of floats.
  """
  paths = [os.path.join(folder, side + kind) for kind in _KINDS]
  found = [path for path in paths if os.path.isfile(path)]
  if len(found) != 1:
    raise errors.DataError(
        f'{folder}: expected one of {", ".join(map(os.path.basename, paths))}, '
        f'found {", ".join(map(os.path.basename, found)) or "none"}.')
  vectors = read_matrix(found[0])
  path = os.path.join(folder, _IDS[side])
  if os.path.isfile(path):
    ids = read_ids(path)
  else:
    ids = [str(row) for row in range(len(vectors))]
  if len(ids) != len(vectors):
    raise errors.DataError(
        f'{path}: {len(ids)} ids, but {found[0]} has {len(vectors)} rows; '
        'expected one id per row.')
  return Embeddings(vectors, ids, found[0])


def read_both(folder: str) -> tuple[Embeddings, Embeddings]:
  """Returns the embeddings of the targets and those of the queries.

  Raises:
    DataError: as `read`, and where their dimensions differ.
  """
  targets, queries = read(folder, 'targets'), read(folder, 'queries')
  if targets.vectors.shape[1] != queries.vectors.shape[1]:
    raise errors.DataError(
        f'{targets.path} has {targets.vectors.shape[1]} dimensions, '
        f'{queries.path} {queries.vectors.shape[1]}; embed both with one '
        'encoder.')
  return targets, queries


def read_origin(folder: str) -> Mapping[str, Any] | None:
  """Returns what the embeddings were made by, see `origins`, if it is known.

  Raises:
    ValueError: naming the file, if embeddings.json is damaged.
  """
  path = os.path.join(folder, 'embeddings.json')
  if not os.path.isfile(path):
    return None
  facts = settings_lib.Settings(files.read_json(path), path)
  return facts.read('origin', dict, None)


def read_matrix(path: str) -> np.ndarray:
  """Returns the one matrix [n, D] of floats in a file.

  Raises:
    DataError: naming the file, if there is none or more than one, and the row
      where `check_rows` refuses one.
  """
  kind = os.path.splitext(path)[1]
  try:
    if kind == '.npy':
      arrays = {'': np.load(path, mmap_mode='r')}
    elif kind == '.npz':
      with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    elif kind == '.safetensors':
      arrays = tensor_files.read_all(path)
    else:
      raise errors.DataError(
          f'{path}: expected a file that ends in one of {", ".join(_KINDS)}.')
  except FileNotFoundError:
    raise errors.DataError(f'{path}: no such file.') from None
  except errors.DataError:
    raise
  # Numpy reads a header as a Python literal, which fails in many ways.
  except Exception as error:
    raise errors.DataError(f'{path}: cannot read it: {error}.') from error
  matrices = {name: a for name, a in arrays.items()
              if a.ndim == 2 and np.issubdtype(a.dtype, np.floating)}
  if len(matrices) != 1:
    shown = ', '.join(f'{name} {a.dtype} {list(a.shape)}'
                      for name, a in arrays.items())
    raise errors.DataError(
        f'{path}: expected exactly one matrix [n, D] of floats, found {shown}.')
  [matrix] = matrices.values()
  if not len(matrix):
    raise errors.DataError(f'{path}: the matrix has no rows.')
  check_rows(matrix, path)
  return matrix


def check_rows(vectors: np.ndarray, path: str, chunk_rows: int = 8192) -> None:
  """Raises DataError at the first row that is not finite or is all zeros.

  Such a row has no inner products, or the same with everything: its encoder is
  broken, or the row was never written.

  Args:
    vectors: [n, D] floats, maybe mapped.
    path: of their file, for the message.
    chunk_rows: rows looked at at a time.
  """
  for first in range(0, len(vectors), chunk_rows):
    with np.errstate(over='ignore'):  # float64 that float32 cannot hold
      chunk = np.asarray(vectors[first:first + chunk_rows], np.float32)
    finite = np.asarray(np.isfinite(chunk).all(axis=1))
    wrong = np.flatnonzero(~(finite & chunk.any(axis=1)))
    if len(wrong):
      row = wrong[0]
      found = ('zeros only' if finite[row]
               else f'{chunk[row][~np.isfinite(chunk[row])][0]}')
      raise errors.DataError(
          f'{path}: row {first + row} (from 0) holds {found}; expected '
          'embeddings that are finite and not all zero. Embed that text again; '
          'if there are more such rows, the encoder is broken.')


def read_ids(path: str, *, distinct: bool = True) -> list[str]:
  """Returns the ids of a file, one per line; a byte order mark is none of it.

  Raises:
    DataError: with file and line, where an id is empty, or occurs twice though
      they should be `distinct`, or the file is not UTF-8.
  """
  ids = [line for _, line in lines.read_all(path)]
  seen: dict[str, int] = {}
  for line, name in enumerate(ids, 1):
    if not name:
      raise errors.DataError(f'{path}:{line}: expected an id, got nothing.')
    if distinct and seen.setdefault(name, line) != line:
      raise errors.DataError(
          f'{path}:{line}: id {name!r} already occurs in line {seen[name]}; '
          'rows must have different ids.')
  return ids


def write_ids(path: str, ids: Sequence[str]) -> None:
  """Writes one id per line."""
  with open(path, 'w', encoding='utf-8', newline='\n') as file:
    file.writelines(f'{name}\n' for name in ids)


def write_qrels(folder: str, split: str, qrels: dataset.Qrels,
                query_ids: Sequence[str], target_ids: Sequence[str]) -> None:
  """Writes FOLDER/SPLIT.tsv, as `read_qrels` reads it."""
  lines = (f'{query_ids[query]}\t{target_ids[target]}\t{grade}\n'
           for query, target, grade in zip(
               qrels.query_rows, qrels.corpus_rows, qrels.grades))
  files.write_text(os.path.join(folder, f'{split}.tsv'),
                   'query-id\tcorpus-id\tscore\n' + ''.join(lines))


def read_splits(folder: str) -> list[str]:
  """Returns the names of the splits that have judgements in `folder`."""
  if not os.path.isdir(folder):
    raise errors.DataError(
        f'{folder}: no such folder; expected judgements as SPLIT.tsv in it.')
  return sorted(_judgements(folder))


def _judgements(folder: str) -> dict[str, str]:
  """Returns {split: path} of the files of judgements in `folder`."""
  return lines.named_files(folder, r'(?P<name>.+)\.tsv' + lines.COMPRESSED)


def read_qrels(folder: str, split: str, query_ids: Sequence[str],
               target_ids: Sequence[str], *,
               dropped: dict[str, dropped_lib.Counts] | None = None
               ) -> dataset.Qrels:
  """Returns the judgements in FOLDER/SPLIT.tsv[.gz] as rows of the ids.

  Args:
    folder: of the judgements.
    split: name.
    query_ids: of the rows of the queries' embeddings.
    target_ids: of those of the targets.
    dropped: gets the counts of what is left out of the split, which is then
      read leniently; None refuses it.

  Raises:
    DataError: with file and line, where a line is malformed, an id has no
      embedding, or a pair is judged twice with different grades.
  """
  kinds = {'queries': 'query', 'corpus': 'target'}
  rows = {column: {name: row for row, name in enumerate(ids)}
          for column, ids in (('queries', query_ids), ('corpus', target_ids))}
  path = _judgements(folder).get(split)
  if path is None:
    raise errors.DataError(
        f'{os.path.join(folder, split)}.tsv: no such file; there are the '
        f'splits {", ".join(read_splits(folder)) or "none"}.')

  def row_of(column: str, name: str, where: str) -> int:
    if name not in rows[column]:
      raise errors.DataError(
          f'{where}: {kinds[column]} {name!r} has no embedding.'
          f'{errors.lookalike(name, rows[column])} Embed it too, or remove the '
          'line.')
    return rows[column][name]

  records: Iterable[tuple[str, str, int, str]] = beir.read_qrels(path)
  if dropped is not None:
    records, dropped[split] = lenient.keep(
        records, rows['queries'], rows['corpus'])
    dropped_lib.warn(folder, {split: dropped[split]})
  return dataset.read_qrels(records, row_of)


def read_collection(folder: str, *, query_ids: Sequence[str],
                    corpus_ids: Sequence[str],
                    splits: Sequence[str] | None = None,
                    dropped: dict[str, dropped_lib.Counts] | None = None
                    ) -> dataset.Collection:
  """Returns what FOLDER/qrels judges, as a collection without texts.

  Args:
    folder: of embeddings.
    query_ids: of the rows of the queries' embeddings.
    corpus_ids: of those of the targets.
    splits: which to read; None for all.
    dropped: as of `read_qrels`.

  Raises:
    DataError: as `read_splits` and `read_qrels`.
  """
  judged = os.path.join(folder, 'qrels')
  return dataset.Collection(
      name=folder, corpus_ids=corpus_ids, query_ids=query_ids, qrels={
          split: read_qrels(
              judged, split, query_ids, corpus_ids, dropped=dropped)
          for split in (read_splits(judged) if splits is None else splits)},
      dropped=dropped or {})
