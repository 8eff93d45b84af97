"""Ambiguous negatives: candidates that score about as high as the positive."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import scoring
from retrieval_jax.samplers import positives
from retrieval_jax.samplers import proposals


@dataclasses.dataclass(frozen=True)
class SimANS:
  """Draws K of the exact top rows, by how near they are to the positive.

    p(d) ~ exp(-a (s(q, d) - s(q, d+) - b)^2)

  over the `pool_size` highest rows that are not known positives, without
  replacement; s is the unscaled score under the (corrected) memory. A query
  whose positive is not remembered draws uniformly from its candidates (ours;
  it happens in a ring only).

  Source: Zhou et al., EMNLP 2022. There candidates and scores come from a
  dump of the index; here from the memory, in every step.

  Attributes:
    num_negatives: K.
    pool_size: candidates per query, at least K.
    a: how sharply the chance falls with the distance, at least 0.
    b: where it is highest, relative to the positive's score.
    chunk_rows: C, rows scored at a time on each shard; must divide its rows.
    mesh: the mesh whose axis 'data' shards the table.
    ceiling: a positives.Ceiling, to leave out rows too near the positive.
  """
  num_negatives: int
  pool_size: int
  a: float
  b: float
  chunk_rows: int
  mesh: jax.sharding.Mesh = dataclasses.field(repr=False)
  ceiling: positives.Ceiling | None = None
  gives_log_q = False
  gives_log_z = False
  reads_embeddings = True

  def __post_init__(self):
    proposals.check_enough('pool_size', self.pool_size, self.num_negatives)
    if self.a < 0:
      raise ValueError(
          f'sampler.simans_a={self.a} must be at least 0; 0 draws uniformly '
          'from the candidates.')

  def propose(self, key, queries, exclude_rows, view):
    """Returns K draws; log_q is not defined, and log_z is not computed."""
    logits, rows = scoring.top_k(
        queries, view, self.pool_size, mesh=self.mesh,
        chunk_rows=self.chunk_rows, exclude_rows=exclude_rows,
        ceiling=self.ceiling and self.ceiling.logits(queries, view))
    scores, known = positives.positive_scores(queries, view)
    gaps = logits / view.scale - scores[:, None] - self.b
    log_chances = jnp.where(known[:, None], -self.a * jnp.square(gaps), 0.0)
    keys = log_chances + jax.random.gumbel(key, rows.shape)
    _, which = jax.lax.top_k(
        jnp.where(rows >= 0, keys, -jnp.inf), self.num_negatives)
    rows = jnp.take_along_axis(rows, which, axis=1)  # -1 past the candidates
    return proposals.scored(
        rows, jnp.take_along_axis(logits, which, axis=1), view)

  def rows_scored(self, num_queries, capacity):
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    scored, corrected = scoring.top_k_rows_scored(
        num_queries, capacity, self.pool_size)
    return scored + num_queries, corrected + num_queries  # the positives
