"""Draws from the softmax over all remembered targets."""

import dataclasses

import jax

from retrieval_jax import scoring
from retrieval_jax.samplers import positives
from retrieval_jax.samplers import proposals


@dataclasses.dataclass(frozen=True)
class Gumbel:
  """Draws K rows without replacement from softmax(corrected logits).

  Gumbel-top-k over every live row that is not a known positive: for K = 1 the
  Gumbel-max draw of the negative cache, for K > 1 the subset S(Y) of the
  corrector networks.

  Source: Lindgren et al., NeurIPS 2021 (K = 1); Monath et al., ICML 2024.

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
  gives_log_q = True
  gives_log_z = True
  reads_embeddings = True

  def propose(self, key, queries, exclude_rows, view):
    """Returns K draws with the exact log_z and log_q = logits - log_z."""
    rows, logits, log_z = scoring.gumbel_top_k(
        key, queries, view, self.num_negatives, mesh=self.mesh,
        chunk_rows=self.chunk_rows, exclude_rows=exclude_rows,
        ceiling=self.ceiling and self.ceiling.logits(queries, view))
    return proposals.scored(rows, logits, view, log_z)

  def rows_scored(self, num_queries, capacity):
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    positives = num_queries if self.ceiling else 0
    scored, corrected = scoring.gumbel_rows_scored(
        num_queries, capacity, self.num_negatives)
    return scored + positives, corrected + positives
