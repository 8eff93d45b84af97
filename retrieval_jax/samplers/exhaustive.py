"""Every remembered target as a negative: the oracle for small corpora."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import types
from retrieval_jax.samplers import proposals
from retrieval_jax.samplers import stateless


@dataclasses.dataclass(frozen=True)
class Exhaustive(stateless.Stateless):
  """Deals the memory out to the batch: query b proposes rows bK .. bK + K - 1.

  With columns 'draws' every query then sees every row. K is the least number
  with B K >= rows.

  Attributes:
    num_slots: rows of the memory.
    batch_size: B.
  """
  num_slots: int
  batch_size: int
  gives = frozenset({'every_row'})
  reads_embeddings = False

  @property
  def num_negatives(self) -> int:
    """K."""
    return -(-self.num_slots // self.batch_size)

  def propose(self, state: tuple[()], key: jax.Array, request: types.Request,
              view: types.View) -> types.Proposal:
    """Returns all rows; masked beyond the last one, and where one is empty."""
    del state, key
    size, num_queries = view.table.num_slots, request.queries.shape[0]
    if (size, num_queries) != (self.num_slots, self.batch_size):
      raise ValueError(
          f'sampler exhaustive was made for {self.batch_size} queries and '
          f'{self.num_slots} rows, and got {num_queries} and {size}.')
    rows = jnp.arange(num_queries * self.num_negatives, dtype=jnp.int32)
    rows = jnp.where(rows < size, rows, -1).reshape(num_queries, -1)
    # The known positives of query b are masked per query in the loss: the rows
    # dealt to b serve the other queries too.
    serves_all = request._replace(
        exclude_rows=jnp.full((num_queries, 1), -1, jnp.int32))
    return proposals.described(rows, jnp.zeros(rows.shape), serves_all, view)

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    del capacity
    return (num_queries * self.num_negatives,) * 2
