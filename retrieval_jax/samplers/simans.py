"""Ambiguous negatives: candidates that score about as high as the positive."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import ceiling as ceilings
from retrieval_jax import scoring
from retrieval_jax import types
from retrieval_jax.samplers import proposals
from retrieval_jax.samplers import stateless


@dataclasses.dataclass(frozen=True)
class SimANS(stateless.Stateless):
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
    simans_a: a, how sharply the chance falls with the distance, at least 0.
    simans_b: b, where it is highest, relative to the positive's score.
    ceiling: to leave out rows too near the positive.
  """
  num_negatives: int
  pool_size: int
  simans_a: float
  simans_b: float
  ceiling: ceilings.Ceiling | None = None

  def __post_init__(self):
    proposals.check_enough('pool_size', self.pool_size, self.num_negatives)
    if self.simans_a < 0:
      raise ValueError(
          f'sampler.simans_a={self.simans_a} must be at least 0; 0 draws '
          'uniformly from the candidates.')

  def propose(self, state: tuple[()], key: jax.Array, request: types.Request,
              view: types.View) -> types.Proposal:
    """Returns K draws; log_q is not defined, and log_z is not computed."""
    del state
    found = scoring.best(
        request.queries, view, self.pool_size,
        exclude_rows=request.exclude_rows,
        ceiling=ceilings.highest_logits(self.ceiling, request, view))
    scores, known = ceilings.positive_scores(request, view)
    logits, rows = found.logits, found.rows
    gaps = logits / view.scale - scores[:, None] - self.simans_b
    log_chances = jnp.where(
        known[:, None], -self.simans_a * jnp.square(gaps), 0.0)
    keys = log_chances + jax.random.gumbel(key, rows.shape)
    _, which = jax.lax.top_k(
        jnp.where(rows >= 0, keys, -jnp.inf), self.num_negatives)
    rows = jnp.take_along_axis(rows, which, axis=1)  # -1 past the candidates
    return proposals.scored(
        rows, jnp.take_along_axis(logits, which, axis=1), view,
        metrics=proposals.of_scan(found, view))

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    scored, corrected = scoring.top_k_rows_scored(
        num_queries, capacity, self.pool_size)
    return scored + num_queries, corrected + num_queries  # the positives
