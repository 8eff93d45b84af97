"""What memories share whose rows lie in device memory."""

from retrieval_jax import table as tables


class OnDevice:
  """Reads and writes a table on the devices; rows sharded over them."""

  def take(self, table, rows):
    """Returns the slice at rows [...], with id -1 where a row is -1."""
    return tables.take(table, rows)

  def rows_of(self, table, ids):
    """Returns the rows [...] int32 of corpus ids [...], -1 where none."""
    return tables.rows_of(table, ids)

  def write(self, table, rows, embeddings, step):
    """Overwrites rows [P] with embeddings [P, D]; the last of equals wins."""
    return tables.write(table, rows, embeddings, step)

  def push(self, table, ids, embeddings, step):
    """Remembers corpus ids [P] with embeddings [P, D], see `table.push`."""
    return tables.push(table, ids, embeddings, step)
