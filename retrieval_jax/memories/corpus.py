"""A row for every target of the corpus."""

import dataclasses
from typing import Any

import jax
import numpy as np

from retrieval_jax import coarse
from retrieval_jax import host_table
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax.memories import on_device

PLACES = ('device', 'host')


@dataclasses.dataclass(frozen=True)
class Corpus(on_device.OnDevice):
  """Remembers all N targets from the start; row i holds target i.

  A target whose text an earlier one has is never asked for; its row is empty.

  Attributes:
    num_targets: N.
    dtype: of the remembered embeddings, 'float32', 'bfloat16' or 'float16'.
    chunk_rows: C, rows scored at a time on each device.
    place: where rows are, 'device' or 'host'. In the latter case the table is a
      HostTable, of which a step sees what it asks for; nothing scans it.
    folder: of the file that rows of the host are mapped from, which is gone
      when the process ends; '' keeps them in memory.
    scan_dtype: what scans of all rows read, 'float32', or copies of the rows in
      'bfloat16' or 'int8', see `coarse`: the same draws in less time.
  """
  num_targets: int
  dtype: str
  chunk_rows: int
  place: str = 'device'
  folder: str = ''
  scan_dtype: str = 'float32'
  kind = 'corpus'
  holds_corpus = True

  def __post_init__(self):
    coarse.check(self.scan_dtype, 'memory.scan_dtype')
    if self.scan_dtype != 'float32' and self.place == 'host':
      raise ValueError(
          f'memory.scan_dtype={self.scan_dtype!r} is of scans over all rows, '
          "which nothing does with memory.place='host'; leave it out.")
    if self.place not in PLACES:
      raise ValueError(
          f'memory.place={self.place!r} is not one of {list(PLACES)}.')
    if self.folder and self.place != 'host':
      raise ValueError(
          f'memory.folder={self.folder!r} is of rows on the host; leave it '
          "out, or set memory.place='host'.")

  @property
  def on_host(self) -> bool:
    """Whether rows are in the memory of the host."""
    return self.place == 'host'

  @property
  def num_slots(self) -> int:
    """N."""
    return self.num_targets

  def first_ids(self, num_targets: int, seed: int) -> np.ndarray:
    """Returns all ids, [num_targets] int64."""
    del seed
    return np.arange(num_targets)

  def create(self, embeddings: Any, ids: Any, *, dim: int,
             mesh: jax.sharding.Mesh, step: int = 0) -> Any:
    """Returns the table of embeddings [n, dim] of `ids` [n], in their rows.

    The rows of other targets, of copies that is, stay empty. Embeddings may be
    None: zeros, which the caller overwrites.

    Raises:
      ValueError: on the host, if there are several processes.
    """
    rows = np.arange(self.num_targets)
    if self.on_host:
      if jax.process_count() > 1:
        raise ValueError(
            f"memory.place='host' with {jax.process_count()} processes: each "
            "would write to rows of its own; set memory.place='device'.")
      table = host_table.create(
          self.num_targets, dim, live=np.isin(rows, ids), dtype=self.dtype,
          step=step, folder=self.folder, place=sharding.replicated(mesh))
      if embeddings is not None:
        table.embeddings[np.asarray(ids)] = embeddings
      return table
    if len(ids) < self.num_targets:
      rows = np.where(np.isin(rows, ids), rows, -1)
      if embeddings is not None:
        embeddings = _Spread(embeddings, np.asarray(ids), (
            self.num_targets, dim))
    if embeddings is None:
      embeddings = jax.ShapeDtypeStruct((self.num_targets, dim), np.float32)
    return tables.create(
        embeddings, rows, mesh=mesh, chunk_rows=self.chunk_rows,
        dtype=self.dtype, step=step, rows_are_ids=True,
        scan_dtype=self.scan_dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class _Spread:
  """Embeddings [n, D] in the rows of their ids, of zeros besides.

  It is made a slice at a time, as `table.create` reads it.

  Attributes:
    embeddings: [n, D] numpy.
    ids: [n] int, rising.
    shape: (N, D).
  """
  embeddings: np.ndarray
  ids: np.ndarray
  shape: tuple[int, int]

  def __getitem__(self, rows: slice) -> np.ndarray:
    """Returns the rows [m, D] of a slice without a step."""
    start, stop, _ = rows.indices(self.shape[0])
    first, last = np.searchsorted(self.ids, (start, stop))
    every = np.zeros((stop - start, self.shape[1]), np.float32)
    every[self.ids[first:last] - start] = self.embeddings[first:last]
    return every
