"""The K highest-scoring remembered targets: ANCE-type hard negatives."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import ceiling as ceilings
from retrieval_jax import scoring
from retrieval_jax import types
from retrieval_jax.samplers import proposals
from retrieval_jax.samplers import stateless


@dataclasses.dataclass(frozen=True)
class TopK(stateless.Stateless):
  """Takes K of the `depth` rows with the highest corrected logits, exactly.

  With `depth` above K they are a uniform choice without replacement, in random
  order: ANCE (ICLR 2021) draws its negatives from the top 200 of its index.

  Attributes:
    num_negatives: K.
    depth: rows to choose from, at least K; None for K: the K highest.
    ceiling: to leave out rows too near the positive.
  """
  num_negatives: int
  depth: int | None = None
  ceiling: ceilings.Ceiling | None = None

  def __post_init__(self):
    if self.depth is not None:
      proposals.check_enough('depth', self.depth, self.num_negatives)

  def propose(self, state: tuple[()], key: jax.Array, request: types.Request,
              view: types.View) -> types.Proposal:
    """Returns K rows, without `depth` hardest first; log_q is not defined."""
    del state
    found = scoring.best(
        request.queries, view, self.depth or self.num_negatives,
        exclude_rows=request.exclude_rows,
        ceiling=ceilings.highest_logits(self.ceiling, request, view))
    logits, rows = found.logits, found.rows
    if self.depth is not None:
      order = jax.random.uniform(key, rows.shape)
      # Rows that were found come before the -1 of queries with fewer.
      _, chosen = jax.lax.top_k(order + (rows >= 0), self.num_negatives)
      logits, rows = (jnp.take_along_axis(a, chosen, axis=1)
                      for a in (logits, rows))
    return proposals.scored(
        rows, logits, view, metrics=proposals.of_scan(found, view))

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    positives = num_queries if self.ceiling else 0
    scored, corrected = scoring.top_k_rows_scored(
        num_queries, capacity, self.depth or self.num_negatives)
    return scored + positives, corrected + positives
