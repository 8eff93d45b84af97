"""An objective with parameters of its own that reads tokens, as slots allow."""

import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax.objectives import contrastive
from retrieval_jax.objectives import estimators


@dataclasses.dataclass(frozen=True)
class Biased:
  """Adds a learned number per token to the logits of a query's own columns.

  Attributes:
    vocabulary_size: V.
  """
  vocabulary_size: int
  needs = frozenset({'negatives', 'only_draws'})
  reads_tokens = True

  def init(self, key):
    return {'bias': jax.random.normal(key, (self.vocabulary_size,))}

  def flops(self, batch_size, num_negatives, num_candidates, dim):
    return 2. * batch_size * (1 + num_negatives) * dim

  def __call__(self, params, fresh, batch, proposal):
    biased = lambda logits, tokens: logits + params['bias'][tokens].mean(-1)
    loss, info = estimators.truncated_softmax(
        biased(contrastive.positive_logits(fresh), batch.target_tokens),
        biased(fresh.scale * jnp.einsum(
            'bd,bkd->bk', fresh.queries, fresh.negatives),
               fresh.negative_tokens), proposal.mask, proposal)
    return loss, {name: value.mean() for name, value in info.items()}
