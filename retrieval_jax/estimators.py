"""How fresh logits become a gradient: the losses.

Every estimator maps (positive [B], negative [B, J], mask [B, J], proposal) to
a surrogate [B], whose gradient is the method's estimate of
grad -log P(y+ | x), and to metrics [B], of which 'nll' is the interpretable
number. Nothing in the proposal carries gradient.

`needs` lists what an estimator reads beyond logits, so that `method.Method`
can refuse combinations that cannot work when they are built.
"""

import jax
from jax import numpy as jnp

from retrieval_jax import types


def truncated_softmax(positive, negative, mask, proposal):
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


def full_softmax(positive, negative, mask, proposal):
  """Returns the exact loss: softmax cross-entropy over every live target.

  The same formula as `truncated_softmax`; exact because the columns are all
  targets (sampler 'exhaustive', columns 'draws'), which `method.Method`
  enforces. For small corpora: it encodes every target in every step.

  Args and returns: as `truncated_softmax`, with J >= N - 1.
  """
  return truncated_softmax(positive, negative, mask, proposal)


def cache_gradient(positive, negative, mask, proposal):
  """Returns a surrogate whose gradient estimates that of the full softmax loss.

  With y- drawn from the softmax over the table without the positive,
    grad(-log p+) = (1 - p+) * E[grad(s-) - grad(s+)],
    p+ = sigmoid(s+ - log_z)
  One draw per query replaces the expectation; the value itself is not a loss.

  Args:
    positive: [B] float32, fresh logits of the true targets.
    negative: [B, 1] float32, fresh logits of the drawn rows.
    mask: [B, 1] bool, False where no row could be drawn; such queries give 0.
    proposal: draw-time record; only `log_z` [B] is read, as a constant.

  Returns:
    (surrogate [B] float32, {'nll': -log p+ under the remembered table, 'p':
    p+}), both [B].

  Raises:
    ValueError: if more than one column comes in; use `truncated_softmax`.

  Source: Lindgren et al., NeurIPS 2021, and the public code of that paper
    (its training loss and interpretable loss). Deviation: the table is
    row-sharded and `log_z` is global; known positives are excluded from it.
  """
  types.check_shapes({'positive': (positive, 'B'),
                      'negative': (negative, 'B J'), 'mask': (mask, 'B J')})
  if negative.shape[1] != 1:
    raise ValueError(
        f'cache_gradient takes one drawn negative per query, got '
        f'{negative.shape[1]} columns; set sampler.num_negatives=1 and '
        "estimator.columns='own', or estimator.name='truncated_softmax'.")
  log_z = jax.lax.stop_gradient(proposal.log_z)
  margin = jax.lax.stop_gradient(positive) - log_z
  live = mask[:, 0]
  weight = jnp.where(live, jax.nn.sigmoid(-margin), 0.0)  # 1 - p+
  difference = jnp.where(live, negative[:, 0] - positive, 0.0)
  return weight * difference, {'nll': jax.nn.softplus(-margin),
                               'p': jax.nn.sigmoid(margin)}


def sampled_softmax(positive, negative, mask, proposal):
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


ESTIMATORS = {
    'truncated_softmax': truncated_softmax,
    'full_softmax': full_softmax,
    'cache_gradient': cache_gradient,
    'sampled_softmax': sampled_softmax,
}
