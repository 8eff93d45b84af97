"""Vectors that another encoder has made of the same data, looked up by id."""

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from retrieval_jax.data import dataset as datasets
from retrieval_jax.data import embeddings
from retrieval_jax.data import errors


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
  """A teacher's vectors of one side of a data set.

  Attributes:
    stored: embeddings.Embeddings, of these texts and maybe of more.
    rows: [n] int64, which of these is of each text of the data, -1 where none.
  """
  stored: embeddings.Embeddings
  rows: np.ndarray

  @property
  def dim(self) -> int:
    """D', their dimension."""
    return self.stored.vectors.shape[1]

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, ids: np.ndarray) -> np.ndarray:
    """Returns the vectors [..., D'] float32 of ids [...], zeros where -1."""
    ids = np.asarray(ids)
    rows = np.where(ids >= 0, self.rows[np.maximum(ids, 0)], -1)
    found = np.asarray(self.stored.vectors[np.maximum(rows, 0)], np.float32)
    return np.where(rows[..., None] >= 0, found, np.float32(0))


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
  """A teacher's vectors of a data set.

  Attributes:
    queries: Vectors by query id.
    targets: Vectors by corpus id.
  """
  queries: Vectors
  targets: Vectors

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash of the files of vectors and of their ids.

    It costs about a second per gigabyte, see `dataset.hash_files`.
    """
    sides = self.targets.stored, self.queries.stored
    return datasets.hash_files(
        [side.path for side in sides], *('\n'.join(side.ids) for side in sides))


def read_dim(folder: str) -> int:
  """Returns D', the dimension of the vectors in a folder.

  Raises:
    DataError: naming --config.teacher.folder, if there are none.
  """
  return _read(folder)[1].vectors.shape[1]


def read(folder: str, dataset: datasets.RetrievalDataset, *,
         asked: np.ndarray, dim: int) -> Teacher:
  """Returns the vectors of a data set's targets and queries.

  Args:
    folder: as `data.embeddings` describes it. It may hold vectors of more
      targets and queries than there are, in any order.
    dataset: whose ids are looked up.
    asked: [n], the rows of the queries that need a vector.
    dim: D' of the run.

  Raises:
    DataError: naming --config.teacher.folder, where files are missing or do not
      fit each other, a target or a query that is asked has no vector, their
      dimension is another one, or the folder was made of other texts under the
      same ids.
  """
  targets, queries = _read(folder)
  option = f'--config.teacher.folder={folder}'
  found = targets.vectors.shape[1]
  if found != dim:
    raise errors.DataError(
        f'{option} has vectors of {found} dimensions, but this run was made '
        f'for {dim} (--config.teacher.dim); give the folder that it was '
        'started with, or start again in another --workdir.')
  origin = embeddings.read_origin(folder)
  if (origin and origin['corpus'] != dataset.corpus_fingerprint
      and list(targets.ids) == list(dataset.corpus_ids)):
    raise errors.DataError(
        f'{option} was made of other texts than those of '
        f'{dataset.name}, under the same ids; embed them again.')
  made = Teacher(_by_id(queries, dataset.query_ids),
                 _by_id(targets, dataset.corpus_ids))
  for what, side, ids, needed in (
      ('targets', made.targets, dataset.corpus_ids, None),
      ('training queries', made.queries, dataset.query_ids, asked)):
    rows = np.arange(len(ids)) if needed is None else needed
    missing = rows[side.rows[rows] < 0]
    if len(missing):
      name = ids[int(missing[0])]
      raise errors.DataError(
          f'{option} has no vector of {len(missing)} of {len(rows)} '
          f'{what} of {dataset.name}, the first {name!r}.'
          f'{errors.lookalike(name, side.stored.ids)} Make it of the same data '
          'by experiments.embed.')
  return made


def _read(folder):
  """Returns the Embeddings (targets, queries) of a folder."""
  try:
    return embeddings.read_both(folder)
  except errors.DataError as error:
    raise errors.DataError(
        f'--config.teacher.folder={folder} must be a folder that '
        f'experiments.embed wrote: {error}') from error


def _by_id(stored: embeddings.Embeddings, ids: Sequence[str]) -> Vectors:
  places = {name: row for row, name in enumerate(stored.ids)}
  return Vectors(stored, np.fromiter(
      (places.get(name, -1) for name in ids), np.int64, len(ids)))
