"""Every remembered target as a negative: the oracle for small corpora."""

import dataclasses

from jax import numpy as jnp

from retrieval_jax.samplers import uniform


@dataclasses.dataclass(frozen=True)
class Exhaustive:
  """Deals the table out to the batch: query b proposes rows bK .. bK + K - 1.

  With columns 'draws' every query then sees every row. K has to be at least
  M / B, which `factory` computes.

  Attributes:
    num_negatives: K.
  """
  num_negatives: int
  gives_log_q = False
  gives_log_z = False
  reads_embeddings = False

  def propose(self, key, queries, exclude_rows, view):
    """Returns the B * K first rows; masked beyond the last live one."""
    del key
    size = queries.shape[0] * self.num_negatives
    capacity = view.table.ids.shape[0]
    if size < capacity:
      raise ValueError(
          f'sampler exhaustive: {queries.shape[0]} queries x '
          f'num_negatives={self.num_negatives} leave out some of the '
          f'{capacity} rows; need num_negatives >= '
          f'{-(-capacity // queries.shape[0])}.')
    rows = jnp.arange(size, dtype=jnp.int32)
    rows = jnp.where(rows < capacity, rows, -1)
    rows = rows.reshape(queries.shape[0], self.num_negatives)
    # The known positives of query b are masked per query in the loss: the rows
    # dealt to b serve the other queries too.
    nothing = jnp.full((queries.shape[0], 1), -1, exclude_rows.dtype)
    return uniform.describe(rows, jnp.zeros(rows.shape), queries, nothing, view)

  def rows_scored(self, num_queries, capacity):
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    del capacity
    return (num_queries * self.num_negatives,) * 2
