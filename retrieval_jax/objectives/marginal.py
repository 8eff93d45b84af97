"""Losses of questions with answers, in which the passage is not known.

A reader says how likely the answer is given each drawn passage y_k; the
retriever's fresh scores say how likely the passage is. With the draws S,

  p_k = P(y_k | x) = softmax_S(beta <x, y_k>),    l_k = log P(a | x, y_k),
  r_k = P(y_k | x, a) proportional to p_k exp(l_k)  (the posterior).
"""

from collections.abc import Mapping
import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import products
from retrieval_jax import types
from retrieval_jax.objectives import parameterless

ESTIMATES = ('marginal', 'joint', 'emdr2', 'perplexity')


@dataclasses.dataclass(frozen=True)
class Marginal(parameterless.Parameterless):
  """-log of the answer's likelihood over the drawn passages.

    marginal    -log sum_k p_k exp(l_k)
    joint       the same with one softmax over what could be read from any
                passage: -log sum_k exp(s_k) m_k / sum_k exp(s_k) n_k, where
                exp(l_k) = m_k / n_k; ORQA's
    emdr2       -log sum_k p_k sg[exp(l_k)]  +  the reader's own loss
    perplexity  KL(softmax_S(sg[l_k] / T) || p)  +  the reader's own loss

  with sg, no gradient. The reader's own loss is -log P(a | x, S) of all
  passages together: of a reader that fuses them, or -log(sum_k m_k / sum_k n_k)
  of one that does not.

  The gradient of the first by s_k is p_k - r_k, and by l_k it is -r_k. So is
  that of 'emdr2' by s_k. Both vanish for a reader to which all passages are the
  same.

  A question none of whose draws can give its answer has loss 0 and is counted;
  a single passage that cannot give it has r_k = 0.

  Source: Guu et al., ICML 2020 (REALM) and Lewis et al., NeurIPS 2020, for the
    marginal; Lee et al., ACL 2019 (ORQA), for the joint; Singh et al., NeurIPS
    2021, for EMDR2; Izacard et al., JMLR 2023 (Atlas), for the perplexity.
    Deviation: a reader that fuses nothing has a loss of its own in the last
    two, where theirs does.

  Attributes:
    estimate: one of ESTIMATES.
    temperature: T, of the teacher in 'perplexity'; not read otherwise.
    importance: weigh p_k by 1 / q_k, for independent draws with probability q_k
      (of the sampler). Draws without replacement need no weight, but what they
      leave out biases the sum.
  """
  estimate: str = 'marginal'
  temperature: float = 1.0
  importance: bool = False

  def __post_init__(self):
    if self.estimate not in ESTIMATES:
      raise ValueError(
          f'objective.estimate={self.estimate!r} is not one of '
          f'{list(ESTIMATES)}.')
    if not self.temperature > 0:
      raise ValueError(
          f'objective.temperature={self.temperature} must be positive; the '
          "reader's log-likelihoods are divided by it.")

  @property
  def needs(self) -> frozenset[str]:
    """Draws, a reader and answers; log q where they are weighed."""
    needs = {'negatives', 'answers'}
    if self.importance:
      needs |= {'log_q', 'independent'}
    if self.estimate in ('marginal', 'joint'):
      needs.add('reads_alone')
    return frozenset(needs)

  def __call__(self, params: types.Params, fresh: types.Fresh,
               batch: types.Batch, proposal: types.Proposal
               ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Returns the loss [B], and scalars.

    These are 'nll', -log sum_k p_k exp(l_k) of the questions that have an
    answer among their draws; 'answerable', the share of those; 'shift', the
    mean of KL(r || p), which is how much the answer says about the passage;
    and 'reader_nll', their mean of -sum_k r_k l_k.
    """
    del params, batch
    assert fresh.read is not None  # answers are needed
    types.check_shapes({
        'fresh.negatives': (fresh.negatives, 'B K D'),
        'fresh.read': (fresh.read, 'B K 2'),
        'proposal.mask': (proposal.mask, 'B K')})
    answer, everything = fresh.read[..., 0], fresh.read[..., 1]
    mask = proposal.mask
    found = mask & (answer > types.NO_ANSWER / 2)
    answered = found.any(axis=1)
    logits = fresh.scale * products.inner(
        'bd,bkd->bk', fresh.queries, fresh.negatives)
    if self.importance:
      logits = logits - jax.lax.stop_gradient(
          jnp.where(mask, proposal.log_q, 0.0))
    prior = jax.nn.log_softmax(_only(mask, logits))  # [B, K], a logarithm
    likelihood = _only(found, answer - everything)
    log_marginal = _total(found, prior + likelihood)
    fixed = jax.lax.stop_gradient(likelihood)
    if self.estimate == 'marginal':
      loss = -log_marginal
    elif self.estimate == 'joint':
      loss = _total(mask, logits + everything) - _total(found, logits + answer)
    else:
      if self.estimate == 'emdr2':
        loss = -_total(found, prior + fixed)
      else:
        teacher = jax.nn.log_softmax(_only(found, fixed / self.temperature))
        loss = _divergence(found, teacher, prior)
      if fresh.fused is None:
        loss += _total(mask, everything) - _total(found, answer)
      else:
        loss -= fresh.fused
    posterior = jax.nn.log_softmax(_only(found, prior + likelihood))
    mean = lambda values: jnp.where(answered, values, 0.0).sum() / jnp.maximum(
        answered.sum(), 1)
    weights = jnp.where(found, jnp.exp(posterior), 0.0)
    return jnp.where(answered, loss, 0.0), jax.lax.stop_gradient({
        'nll': mean(-log_marginal),
        'answerable': answered.mean(dtype=jnp.float32),
        'shift': mean(_divergence(found, posterior, prior)),
        'reader_nll': mean(-jnp.where(found, weights * likelihood, 0.0).sum(
            axis=1))})

  def flops(self, batch_size: int, num_negatives: int, num_candidates: int,
            dim: int) -> float:
    """Returns the FLOPs of the scores; the reader's are counted apart."""
    del num_candidates
    return 2. * batch_size * num_negatives * dim


def _only(mask, values):
  """Returns values [B, K] with others so low that they count for nothing.

  Finite, unlike -inf: a row without any has no nan in its gradient.
  """
  return jnp.where(mask, values, types.NO_ANSWER)


def _total(mask, values):
  """Returns log sum exp of values [B, K] where mask, [B]."""
  return jax.nn.logsumexp(_only(mask, values), axis=1)


def _divergence(mask, log_p, log_q):
  """Returns KL(p || q) [B] of distributions [B, K] that are 0 off mask."""
  p = jnp.where(mask, jnp.exp(log_p), 0.0)
  return jnp.sum(p * jnp.where(mask, log_p - log_q, 0.0), axis=1)
