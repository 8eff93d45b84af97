"""A row for every target of the corpus."""

import dataclasses
from typing import Any

import jax
import numpy as np

from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.memories import on_device


@dataclasses.dataclass(frozen=True)
class Corpus(on_device.OnDevice):
  """Remembers all N targets from the start; row i holds target i.

  A target whose text an earlier one has is never asked for; its row is empty.

  Attributes:
    num_targets: N.
    dtype: of the remembered embeddings, 'float32' or 'bfloat16'.
    chunk_rows: C, rows scored at a time on each device.
  """
  num_targets: int
  dtype: str
  chunk_rows: int
  kind = 'corpus'
  holds_corpus = True

  @property
  def num_slots(self) -> int:
    """N."""
    return self.num_targets

  def first_ids(self, num_targets: int, seed: int) -> np.ndarray:
    """Returns all ids, [num_targets] int64."""
    del seed
    return np.arange(num_targets)

  def create(self, embeddings: Any, ids: Any, *, dim: int,
             mesh: jax.sharding.Mesh, step: int = 0) -> types.TargetTable:
    """Returns the table of embeddings [n, dim] of `ids` [n], in their rows.

    The rows of other targets, of copies that is, stay empty.
    """
    rows = np.arange(self.num_targets)
    if len(ids) < self.num_targets:
      every = np.zeros((self.num_targets, dim), np.float32)
      every[ids] = embeddings
      embeddings, rows = every, np.where(np.isin(rows, ids), rows, -1)
    return tables.create(
        embeddings, rows, mesh=mesh, chunk_rows=self.chunk_rows,
        dtype=self.dtype, step=step, rows_are_ids=True)
