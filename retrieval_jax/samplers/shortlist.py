"""Draws from the softmax over the hardest remembered targets alone."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import scoring
from retrieval_jax import types
from retrieval_jax.samplers import proposals
from retrieval_jax.samplers import stateless


@dataclasses.dataclass(frozen=True)
class ShortlistGumbel(stateless.Stateless):
  """Keeps the rows of highest logit and draws K of them by Gumbel-top-k.

  The distribution is softmax(corrected logits) restricted to the shortlist, and
  log_z is the shortlist's: too small, so that `cache_gradient` over-estimates
  p+ and is biased even with a fresh memory.

  Ours; the negative cache's code has the approximation of `BucketedGumbel`.

  Attributes:
    num_negatives: K.
    shortlist: rows kept per query, at least K.
  """
  num_negatives: int
  shortlist: int
  gives = frozenset({'log_z'})

  def __post_init__(self):
    proposals.check_enough('shortlist', self.shortlist, self.num_negatives)

  def propose(self, state: tuple[()], key: jax.Array, request: types.Request,
              view: types.View) -> types.Proposal:
    """Returns K draws with log_z of the shortlist, log_q = logits - log_z."""
    del state
    kept, rows = self._keep(request, view)
    log_z = jax.nn.logsumexp(kept, axis=1)
    _, drawn = jax.lax.top_k(
        kept + jax.random.gumbel(key, kept.shape), self.num_negatives)
    return proposals.scored(
        jnp.take_along_axis(rows, drawn, axis=1),
        jnp.take_along_axis(kept, drawn, axis=1), view, log_z)

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    return scoring.top_k_rows_scored(num_queries, capacity, self.shortlist)

  def _keep(self, request, view):
    return scoring.top_k(request.queries, view, self.shortlist,
                         exclude_rows=request.exclude_rows)


@dataclasses.dataclass(frozen=True)
class BucketedGumbel(ShortlistGumbel):
  """As `ShortlistGumbel`, from the highest row of each of equal buckets.

  See `scoring.bucket_maxima`; `shortlist` is the number of buckets.

  Source: the option top_k of the public code of Lindgren et al., NeurIPS 2021
    (64 in its examples).
  """

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    return scoring.bucket_rows_scored(num_queries, capacity, self.shortlist)

  def _keep(self, request, view):
    return scoring.bucket_maxima(request.queries, view, self.shortlist,
                                 exclude_rows=request.exclude_rows)
