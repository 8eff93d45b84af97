"""Draws from the softmax over the hardest remembered targets alone."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import scoring
from retrieval_jax.samplers import proposals


@dataclasses.dataclass(frozen=True)
class ShortlistGumbel:
  """Keeps a shortlist of rows per query and draws K of them by Gumbel-top-k.

  The distribution is softmax(corrected logits) restricted to the shortlist, and
  log_z is the shortlist's: too small, so that `cache_gradient` over-estimates
  p+ and is biased even with a fresh memory.

  Source: the option top_k of the public code of Lindgren et al., NeurIPS 2021
    (64 in its examples), which is `bucketed`; the exact shortlist is ours.

  Attributes:
    num_negatives: K.
    shortlist: rows kept per query, at least K.
    bucketed: False keeps the rows of highest logit, True the highest of each
      of `shortlist` equal buckets of rows, see `scoring.bucket_maxima`.
    chunk_rows: C, rows scored at a time on each shard; must divide its rows.
    mesh: the mesh whose axis 'data' shards the table.
  """
  num_negatives: int
  shortlist: int
  bucketed: bool
  chunk_rows: int
  mesh: jax.sharding.Mesh = dataclasses.field(repr=False)
  gives_log_q = False
  gives_log_z = True
  reads_embeddings = True

  def __post_init__(self):
    proposals.check_enough('shortlist', self.shortlist, self.num_negatives)

  def propose(self, key, queries, exclude_rows, view):
    """Returns K draws with log_z of the shortlist, log_q = logits - log_z."""
    keep = scoring.bucket_maxima if self.bucketed else scoring.top_k
    kept, rows = keep(
        queries, view, self.shortlist, mesh=self.mesh,
        chunk_rows=self.chunk_rows, exclude_rows=exclude_rows)
    log_z = jax.nn.logsumexp(kept, axis=1)
    _, drawn = jax.lax.top_k(
        kept + jax.random.gumbel(key, kept.shape), self.num_negatives)
    return proposals.scored(
        jnp.take_along_axis(rows, drawn, axis=1),
        jnp.take_along_axis(kept, drawn, axis=1), view, log_z)

  def rows_scored(self, num_queries, capacity):
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    count = (scoring.bucket_rows_scored if self.bucketed
             else scoring.top_k_rows_scored)
    return count(num_queries, capacity, self.shortlist)
