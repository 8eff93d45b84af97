"""Draws from the softmax over all remembered targets."""

import dataclasses

import jax

from retrieval_jax import ceiling as ceilings
from retrieval_jax import scoring
from retrieval_jax import types
from retrieval_jax.samplers import proposals
from retrieval_jax.samplers import stateless


@dataclasses.dataclass(frozen=True)
class Gumbel(stateless.Stateless):
  """Draws K rows without replacement from softmax(corrected logits).

  Gumbel-top-k over every live row that is not a known positive: for K = 1 the
  Gumbel-max draw of the negative cache, for K > 1 the subset S(Y) of the
  corrector networks.

  Source: Lindgren et al., NeurIPS 2021 (K = 1); Monath et al., ICML 2024.

  Attributes:
    num_negatives: K.
    ceiling: to leave out rows too near the positive.
  """
  num_negatives: int
  ceiling: ceilings.Ceiling | None = None
  gives = frozenset({'log_q', 'log_z'})

  def propose(self, state: tuple[()], key: jax.Array, request: types.Request,
              view: types.View) -> types.Proposal:
    """Returns K draws with the exact log_z and log_q = logits - log_z."""
    del state
    drawn = scoring.gumbel_draws(
        key, request.queries, view, self.num_negatives,
        exclude_rows=request.exclude_rows,
        ceiling=ceilings.highest_logits(self.ceiling, request, view))
    return proposals.scored(drawn.rows, drawn.logits, view, drawn.log_z,
                            proposals.of_scan(drawn, view))

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns (products <query, row>, rows corrected) of one `propose`."""
    positives = num_queries if self.ceiling else 0
    scored, corrected = scoring.gumbel_rows_scored(
        num_queries, capacity, self.num_negatives)
    return scored + positives, corrected + positives
