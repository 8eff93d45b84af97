"""The K highest-scoring remembered targets: ANCE-type hard negatives."""

import dataclasses

import jax

from retrieval_jax import scoring
from retrieval_jax.samplers import positives
from retrieval_jax.samplers import proposals


@dataclasses.dataclass(frozen=True)
class TopK:
  """Takes the K rows with the highest corrected logits, exactly.

  Attributes:
    num_negatives: K.
    chunk_rows: C, rows scored at a time on each shard; must divide its rows.
    mesh: the mesh whose axis 'data' shards the table.
    ceiling: a positives.Ceiling, to leave out rows too near the positive.
  """
  num_negatives: int
  chunk_rows: int
  mesh: jax.sharding.Mesh = dataclasses.field(repr=False)
  ceiling: positives.Ceiling | None = None
  gives_log_q = False
  gives_log_z = False
  reads_embeddings = True

  def propose(self, key, queries, exclude_rows, view):
    """Returns the K highest rows, hardest first; log_q is not defined."""
    del key
    logits, rows = scoring.top_k(
        queries, view, self.num_negatives, mesh=self.mesh,
        chunk_rows=self.chunk_rows, exclude_rows=exclude_rows,
        ceiling=self.ceiling and self.ceiling.logits(queries, view))
    return proposals.scored(rows, logits, view)

  def rows_scored(self, num_queries, capacity):
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    positives = num_queries if self.ceiling else 0
    scored, corrected = scoring.top_k_rows_scored(
        num_queries, capacity, self.num_negatives)
    return scored + positives, corrected + positives
