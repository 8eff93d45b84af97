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
    """Returns all ids, [N] int64."""
    del seed
    return np.arange(num_targets)

  def create(self, embeddings: Any, ids: Any, *, dim: int,
             mesh: jax.sharding.Mesh, step: int = 0) -> types.TargetTable:
    """Returns the table of embeddings [N, dim], `ids` being 0 .. N - 1."""
    del ids, dim
    return tables.from_embeddings(
        embeddings, mesh=mesh, chunk_rows=self.chunk_rows, dtype=self.dtype,
        step=step)
