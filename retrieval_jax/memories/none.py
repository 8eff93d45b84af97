"""No memory: negatives come from the batch, or from the data."""

import dataclasses
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.memories import on_device


@dataclasses.dataclass(frozen=True)
class Nothing(on_device.OnDevice):
  """Remembers no target. Its table is a few empty rows.

  There are as many on every mesh whose size divides 512, so that a run goes on
  with another number of devices.
  """
  kind = 'none'
  num_slots = 0
  holds_corpus = False
  chunk_rows = 1
  scan_dtype = 'float32'

  def first_ids(self, num_targets: int, seed: int) -> np.ndarray:
    """Returns no ids, [0] int64."""
    del num_targets, seed
    return np.arange(0)

  def create(self, embeddings: Any, ids: Any, *, dim: int,
             mesh: jax.sharding.Mesh, step: int = 0) -> types.TargetTable:
    """Returns the table in which every row is empty, and of one dimension."""
    del embeddings, ids, dim, step
    return tables.empty(
        0, 1, mesh=mesh, chunk_rows=max(512 // sharding.num_shards(mesh), 1),
        dtype='float32')

  def write(self, table: types.TargetTable, rows: jax.Array,
            embeddings: jax.Array, step: jax.Array) -> types.TargetTable:
    """Returns the table as it is."""
    del rows, embeddings, step
    return table

  def push(self, table: types.TargetTable, ids: jax.Array,
           embeddings: jax.Array, step: jax.Array) -> types.TargetTable:
    """Returns the table as it is."""
    del ids, embeddings, step
    return table

  def rows_of(self, table: types.TargetTable, ids: jax.Array) -> jax.Array:
    """Returns -1 for each of corpus ids [...]."""
    del table
    return jnp.full(ids.shape, -1, jnp.int32)
