"""How fresh logits become a gradient: the losses.

Every estimator maps (positive [B], negative [B, J], mask [B, J], proposal) to
a surrogate [B], whose gradient is the method's estimate of
grad -log P(y+ | x), and to metrics [B], of which 'nll' is the interpretable
number. Nothing in the proposal carries gradient. `ESTIMATORS` says of each what
it needs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import numpy as jnp

from retrieval_jax import types


def truncated_softmax(
    positive: jax.Array, negative: jax.Array, mask: jax.Array,
    proposal: types.Proposal) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns softmax cross-entropy over the positive and the columns it sees.

    nll = -log( exp(s+) / (exp(s+) + sum_j exp(s_j)) )

  Args:
    positive: [B] float32, fresh logits of the true targets.
    negative: [B, J] float32, fresh logits of the columns.
    mask: [B, J] bool, False for columns that must not count.
    proposal: unused.

  Returns:
    (nll [B] float32, {'nll': nll}).

  Source: Monath et al., ICML 2024 (truncated softmax over S(Y)); with in-batch
    columns the usual in-batch softmax.
  """
  del proposal
  types.check_shapes({'positive': (positive, 'B'),
                      'negative': (negative, 'B J'), 'mask': (mask, 'B J')})
  nll = _log_total(positive, jnp.where(mask, negative, -jnp.inf)) - positive
  return nll, {'nll': nll}


def full_softmax(
    positive: jax.Array, negative: jax.Array, mask: jax.Array,
    proposal: types.Proposal) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the exact loss: softmax cross-entropy over every live target.

  The same formula as `truncated_softmax`; exact because the columns are all
  targets (sampler 'exhaustive', columns 'draws'). For small corpora: it encodes
  every target in every step.

  Args and returns: as `truncated_softmax`, with J >= N - 1.
  """
  return truncated_softmax(positive, negative, mask, proposal)


def cache_gradient(
    positive: jax.Array, negative: jax.Array, mask: jax.Array,
    proposal: types.Proposal) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns a surrogate whose gradient estimates that of the full softmax loss.

  With y- drawn from the softmax q over the table without the positive,
    grad(-log p+) = (1 - p+) * E[grad(s-) - grad(s+)],
    p+ = sigmoid(s+ - log_z)
  One draw per query replaces the expectation; the value itself is not a loss.
  K draws y_1 .. y_K one after the other, without replacement, give K unbiased
  estimates, since given y_1 .. y_{k-1} the next is y with probability
  q(y) / (1 - sum_{j<k} q(y_j)); their mean replaces the expectation:
    t_k = sum_{j<k} q(y_j) s_j + (1 - sum_{j<k} q(y_j)) s_k

  Args:
    positive: [B] float32, fresh logits of the true targets.
    negative: [B, K] float32, fresh logits of the drawn rows, in the order
      drawn.
    mask: [B, K] bool, False where no row was left to draw; a query without any
      gives 0.
    proposal: draw-time record; only `log_z` [B] and `log_q` [B, K] are read,
      as constants.

  Returns:
    (surrogate [B] float32, {'nll': -log p+ under the remembered table, 'p':
    p+}), both [B].

  Source: Lindgren et al., NeurIPS 2021, and the public code of that paper
    (its training loss and interpretable loss, K = 1); Des Raj, JASA 1956 (the
    ordered estimator, K > 1: ours). Deviation: the table is row-sharded and
    `log_z` is global; known positives are excluded from it.
  """
  types.check_shapes({'positive': (positive, 'B'),
                      'negative': (negative, 'B K'), 'mask': (mask, 'B K'),
                      'proposal.log_q': (proposal.log_q, 'B K')})
  log_z = jax.lax.stop_gradient(proposal.log_z)
  margin = jax.lax.stop_gradient(positive) - log_z
  chance = jnp.where(mask, jnp.exp(jax.lax.stop_gradient(proposal.log_q)), 0.0)
  left = 1.0 - (jnp.cumsum(chance, axis=1) - chance)  # when y_k was drawn
  num_draws = negative.shape[1]
  later = jnp.arange(num_draws - 1, -1, -1)[None]  # t_j for j > k hold q(y_k)
  share = jnp.where(mask, (left + later * chance) / num_draws, 0.0)
  difference = jnp.where(mask, negative - positive[:, None], 0.0)
  # 1 - p+ times the estimate of E[s- - s+].
  return jax.nn.sigmoid(-margin) * jnp.sum(share * difference, axis=1), {
      'nll': jax.nn.softplus(-margin), 'p': jax.nn.sigmoid(margin)}


def sampled_softmax(
    positive: jax.Array, negative: jax.Array, mask: jax.Array,
    proposal: types.Proposal) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns cross-entropy with importance-weighted negatives.

    Z_hat = exp(s+) + (1 / K) * sum_k exp(s_k) / q_k,   nll = log Z_hat - s+

  Z_hat is unbiased when the K rows are independent draws from q over the
  non-positive rows. The positive is always in the denominator, so it is not
  corrected by q.

  Args:
    positive: [B] float32, fresh logits of the true targets.
    negative: [B, K] float32, fresh logits of the drawn rows.
    mask: [B, K] bool, False for rows that must not count.
    proposal: only `log_q` [B, K] is read, as a constant.

  Returns:
    (nll [B] float32, {'nll': nll}).

  Source: Bengio and Senecal 2008, as used for retrieval by Monath et al.,
    AISTATS 2023. Rows from 'gumbel' with K > 1 are drawn without replacement;
    their log_q is that of one draw, so Z_hat is then biased (ours, documented).
  """
  types.check_shapes({'positive': (positive, 'B'),
                      'negative': (negative, 'B K'), 'mask': (mask, 'B K'),
                      'proposal.log_q': (proposal.log_q, 'B K')})
  log_q = jax.lax.stop_gradient(jnp.where(mask, proposal.log_q, 0.0))
  count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
  weighted = negative - log_q - jnp.log(count)
  nll = _log_total(positive, jnp.where(mask, weighted, -jnp.inf)) - positive
  return nll, {'nll': nll}


def _log_total(positive, negative):
  """Returns log(exp(positive) + sum_j exp(negative_j)), [B]."""
  return jax.nn.logsumexp(
      jnp.concatenate([positive[:, None], negative], axis=1), axis=1)


class Estimator(NamedTuple):
  """A loss, and under which conditions it is right.

  Attributes:
    loss: (positive, negative, mask, proposal) -> (surrogate, metrics), above.
    needs: as of a `types.Objective`.
    columns: the only kind of columns that it is right for; None for any.
  """
  loss: Callable[[jax.Array, jax.Array, jax.Array, types.Proposal],
                 tuple[jax.Array, dict[str, jax.Array]]]
  needs: frozenset[str] = frozenset()
  columns: str | None = None


ESTIMATORS = {
    'truncated_softmax': Estimator(truncated_softmax),
    'full_softmax': Estimator(
        full_softmax, frozenset({'every_row', 'only_draws'}), 'draws'),
    'cache_gradient': Estimator(
        cache_gradient, frozenset({'log_z', 'only_draws'}), 'own'),
    'sampled_softmax': Estimator(
        sampled_softmax, frozenset({'log_q', 'only_draws'}), 'own'),
}
