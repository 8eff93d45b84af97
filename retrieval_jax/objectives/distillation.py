"""Losses that follow a teacher's scores of a query's own targets.

A term compares the student's fresh logits of a query's positive and of its
explicit candidates with scores that came with the data, usually those of a
cross-encoder. A target without a score is left out; a query whose positive, or
all of whose candidates, have none gives 0.
"""

from collections.abc import Callable, Mapping
import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import products
from retrieval_jax import types
from retrieval_jax.objectives import contrastive
from retrieval_jax.objectives import wrapping


def kl(positive: jax.Array, candidates: jax.Array, teacher: jax.Array,
       scores: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns KL(teacher || student) over the positive and the candidates.

    p = softmax(t),  q = softmax(s),  KL = sum_j p_j (log p_j - log q_j)

  Args:
    positive: [B] float32, the student's logits of the positives.
    candidates: [B, n] float32, the student's logits of the candidates.
    teacher: [B] float32, the teacher's logits of the positives, finite.
    scores: [B, n] float32, the teacher's logits of the candidates, finite.
    mask: [B, n] bool, False for candidates that must not count.

  Returns:
    [B] float32, at least 0 but for rounding.

  Source: the listwise distillation of dense retrievers, for instance RocketQAv2
    (EMNLP 2021), there over the same kind of list.
  """
  mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
  log_softmax = lambda first, others: jax.nn.log_softmax(jnp.where(
      mask, jnp.concatenate([first[:, None], others], axis=1), -jnp.inf))
  log_p, log_q = log_softmax(teacher, scores), log_softmax(positive, candidates)
  # Where the mask is False both are -inf, whose difference has no gradient.
  gap = jnp.where(mask, log_p, 0.0) - jnp.where(mask, log_q, 0.0)
  return jnp.sum(jnp.exp(log_p) * gap, axis=1)


def margin_mse(positive: jax.Array, candidates: jax.Array,
               teacher: jax.Array, scores: jax.Array, mask: jax.Array
               ) -> jax.Array:
  """Returns the mean squared difference of the student's and teacher's margins.

    mean_j ((s+ - s_j) - (t+ - t_j))^2

  Args and returns: as `kl`.

  Source: Hofstaetter et al., arXiv 2010.02666, with one candidate per positive.
    Deviation: the student's margin is that of its logits, beta included.
  """
  margin = positive[:, None] - candidates
  wanted = teacher[:, None] - scores
  squares = jnp.where(mask, jnp.square(margin - wanted), 0.0)
  return squares.sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)


KINDS: dict[str, Callable[..., jax.Array] | None] = {
    'none': None, 'kl': kl, 'margin_mse': margin_mse}


@dataclasses.dataclass(frozen=True)
class Distillation:
  """The share that a teacher has in the loss.

  Attributes:
    kind: a name in `KINDS`.
    weight: of the term, in (0, 1]; the estimator's loss has 1 - weight, so
      that 1 is distillation alone.
    temperature: the teacher's scores are divided by it.
  """
  kind: str = 'none'
  weight: float = 0.5
  temperature: float = 1.0

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(
          f'distillation.kind={self.kind!r} is not one of {list(KINDS)}.')
    if not 0 < self.weight <= 1:
      raise ValueError(
          f'distillation.weight={self.weight} must lie in (0, 1]; 1 leaves '
          "nothing of the estimator's loss; to leave out distillation's, set "
          "distillation.kind='none'.")
    if not self.temperature > 0:
      raise ValueError(
          f'distillation.temperature={self.temperature} must be positive; the '
          "teacher's scores are divided by it.")

  def mix(self, surrogate: jax.Array, positive: jax.Array, logits: jax.Array,
          candidates: types.Candidates
          ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss with the teacher's term, and what to log of it.

    Args:
      surrogate: [B] float32, of the estimator.
      positive: [B] float32, fresh logits of the positives.
      logits: [B, n] float32, fresh logits of the candidates.
      candidates: types.Candidates.

    Returns:
      loss: [B] float32, (1 - weight) * surrogate + weight * term.
      info: 'distillation', the term, and 'distilled', 1 where there is one;
        both [B] float32. Nothing where `kind` is 'none'.
    """
    divergence = KINDS[self.kind]
    if divergence is None:
      return surrogate, {}
    types.check_shapes({
        'positive': (positive, 'B'), 'logits': (logits, 'B n'),
        'candidates.scores': (candidates.scores, 'B n'),
        'candidates.positive_scores': (candidates.positive_scores, 'B')})
    mask = (candidates.ids >= 0) & jnp.isfinite(candidates.scores)
    mask &= jnp.isfinite(candidates.positive_scores)[:, None]
    given = mask.any(axis=1)
    term = divergence(
        positive, logits,
        jnp.where(given, candidates.positive_scores, 0.0) / self.temperature,
        jnp.where(mask, candidates.scores, 0.0) / self.temperature, mask)
    term = jnp.where(given, term, 0.0)
    return (1 - self.weight) * surrogate + self.weight * term, {
        'distillation': term, 'distilled': given.astype(jnp.float32)}


@dataclasses.dataclass(frozen=True)
class Distilled(wrapping.Wrapping):
  """An objective mixed with a term that follows a teacher's scores.

  Attributes:
    inner: the objective.
    distillation: the teacher's share in the loss; its kind is not 'none'.
  """
  distillation: Distillation

  @property
  def needs(self) -> frozenset[str]:
    """What the inner objective needs, and a teacher."""
    return super().needs | {'teacher'}

  def __call__(self, params: types.Params, fresh: types.Fresh,
               batch: types.Batch, proposal: types.Proposal
               ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Returns the mixed loss [B], and scalars of both parts."""
    loss, info = self.inner(params, fresh, batch, proposal)
    assert batch.candidates is not None  # a teacher is needed
    num_draws = fresh.negatives.shape[1] - batch.num_candidates
    loss, of_teacher = self.distillation.mix(
        loss, contrastive.positive_logits(fresh),
        fresh.scale * products.inner(
            'bd,bnd->bn', fresh.queries, fresh.negatives[:, num_draws:]),
        batch.candidates)
    return loss, {**info, **{
        name: value.mean() for name, value in of_teacher.items()}}

  def flops(self, batch_size: int, num_negatives: int, num_candidates: int,
            dim: int) -> float:
    """Returns the FLOPs of the inner objective and of the candidates."""
    return 2. * batch_size * num_candidates * dim + self.inner.flops(
        batch_size, num_negatives, num_candidates, dim)
