"""What memories whose rows are on the devices have in common."""

import jax

from retrieval_jax import table as tables
from retrieval_jax import types


class OnDevice:
  """Reads and writes a table on the devices; rows sharded over them."""

  @property
  def on_host(self) -> bool:
    """False: functions of `table` may scan it inside a jit."""
    return False

  def take(self, table: types.TargetTable, rows: jax.Array
           ) -> types.TargetTable:
    """Returns the slice at rows [...], with id -1 where a row is -1."""
    return tables.take(table, rows)

  def rows_of(self, table: types.TargetTable, ids: jax.Array) -> jax.Array:
    """Returns the rows [...] int32 of corpus ids [...], -1 where none."""
    return tables.rows_of(table, ids)

  def write(self, table: types.TargetTable, rows: jax.Array,
            embeddings: jax.Array, step: jax.Array) -> types.TargetTable:
    """Overwrites rows [P] with embeddings [P, D]; the last of equals wins."""
    return tables.write(table, rows, embeddings, step)

  def push(self, table: types.TargetTable, ids: jax.Array,
           embeddings: jax.Array, step: jax.Array) -> types.TargetTable:
    """Remembers corpus ids [P] with embeddings [P, D], see `table.push`."""
    return tables.push(table, ids, embeddings, step)
