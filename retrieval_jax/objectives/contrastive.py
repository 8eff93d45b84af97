"""The contrastive loss: a positive against columns of other targets."""

from collections.abc import Mapping
import dataclasses
import math

import jax

from retrieval_jax import ceiling as ceilings
from retrieval_jax import products
from retrieval_jax import types
from retrieval_jax.objectives import columns as columns_lib
from retrieval_jax.objectives import estimators
from retrieval_jax.objectives import guide as guides
from retrieval_jax.objectives import parameterless


@dataclasses.dataclass(frozen=True)
class Contrastive(parameterless.Parameterless):
  """An estimator of -log P(y+ | x), over the columns that each query sees.

  Attributes:
    estimator: a name in `estimators.ESTIMATORS`.
    columns: a name in `columns.KINDS`, which fresh targets each query's loss
      sees besides its positive.
    ceiling: what columns must stay below, by fresh scores; None for nothing.
    distinct: whether a target that is in several columns counts once.
    pairs: names in `columns.PAIRS`, what else of the batch competes.
    hardness: by how much hard columns weigh more, see `columns.harder`.
    guide: what leaves out columns as a teacher sees them; None for nothing.
  """
  estimator: str
  columns: str
  ceiling: ceilings.Ceiling | None = None
  distinct: bool = False
  pairs: tuple[str, ...] = ()
  hardness: float = 0.
  guide: guides.Guide | None = None

  def __post_init__(self):
    for option, value, choices in (
        ('name', self.estimator, estimators.ESTIMATORS),
        ('columns', self.columns, columns_lib.KINDS)):
      if value not in choices:
        raise ValueError(
            f'estimator.{option}={value!r} is not one of {list(choices)}.')
    unknown = set(self.pairs) - set(columns_lib.PAIRS)
    if unknown or len(set(self.pairs)) < len(self.pairs):
      raise ValueError(
          f'estimator.pairs={self.pairs} must be some of {columns_lib.PAIRS}, '
          'each once.')
    if not 0 <= self.hardness < math.inf:
      raise ValueError(f'estimator.hardness={self.hardness} must be at least '
                       '0 and finite.')
    wanted = estimators.ESTIMATORS[self.estimator].columns
    if wanted not in (None, self.columns):
      raise ValueError(
          f'estimator.name={self.estimator!r} is right for one kind of columns '
          f'alone; set estimator.columns={wanted!r} (it is {self.columns!r}).')
    if self.ceiling and 'only_draws' in self.needs:
      raise ValueError(
          'estimator.max_share or min_margin changes the columns of the loss, '
          f'but estimator.name={self.estimator!r} is right for all that was '
          'drawn and nothing else; leave it out, or use '
          "estimator.name='truncated_softmax'.")
    if self.guide and 'only_draws' in self.needs:
      raise ValueError(
          f'guide.by={self.guide.by!r} leaves out columns of the loss, but '
          f'estimator.name={self.estimator!r} is right for all that was drawn '
          "and nothing else; set guide.by='none', or use "
          "estimator.name='truncated_softmax'.")
    if self.distinct and 'only_draws' in self.needs:
      raise ValueError(
          'estimator.distinct=True leaves out draws that occur again, but '
          f'estimator.name={self.estimator!r} is right with every draw that '
          "was made; leave it out, or use estimator.name='truncated_softmax'.")
    if (self.pairs or self.hardness) and 'only_draws' in self.needs:
      raise ValueError(
          f'estimator.pairs={self.pairs} and estimator.hardness='
          f'{self.hardness} change the sum over columns, but estimator.name='
          f'{self.estimator!r} is right for draws as they are; leave them out, '
          "or use estimator.name='truncated_softmax'.")

  @property
  def needs(self) -> frozenset[str]:
    """What the estimator and the guide need.

    And negatives, if nothing else is a column.
    """
    needs = estimators.ESTIMATORS[self.estimator].needs
    if self.columns in ('own', 'draws'):
      needs |= {'negatives'}
    if self.guide:
      needs |= self.guide.needs
    return needs

  def __call__(self, params: types.Params, fresh: types.Fresh,
               batch: types.Batch, proposal: types.Proposal
               ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Returns the surrogate [B], and what to log of it and of its columns."""
    del params
    positive = positive_logits(fresh)
    columns = columns_lib.make(self.columns, fresh, batch, proposal,
                               distinct=self.distinct)
    columns = columns_lib.with_pairs(columns, self.pairs, fresh, batch)
    of_guide: Mapping[str, jax.Array] = {}
    if self.guide:
      columns, of_guide = self.guide.leave_out(
          columns, self.columns, self.pairs, fresh, batch, proposal)
    columns = columns_lib.below(columns, self.ceiling, positive, fresh.scale)
    columns = columns_lib.harder(columns, self.hardness, fresh.scale)
    surrogate, info = estimators.ESTIMATORS[self.estimator].loss(
        positive, columns.logits, columns.mask, proposal)
    return surrogate, {
        **{name: value.mean() for name, value in info.items()},
        **columns_lib.breakdown(columns, batch.target_ids), **of_guide,
        'positive_logit': positive.mean()}

  def flops(self, batch_size: int, num_negatives: int, num_candidates: int,
            dim: int) -> float:
    """Returns the FLOPs of the products with positives and columns.

    Those of the guide, which have no gradient, are among them.
    """
    del num_candidates
    seen = (columns_lib.number(self.columns, batch_size, num_negatives)
            + len(self.pairs) * batch_size)
    guide = self.guide.flops(batch_size, seen) if self.guide else 0.
    return 2. * batch_size * (1 + seen) * dim + guide


def positive_logits(fresh: types.Fresh) -> jax.Array:
  """Returns the fresh logits of the positives, [B] float32."""
  return fresh.scale * products.inner(
      'bd,bd->b', fresh.queries, fresh.positives)
