"""A loss that brings embeddings to a teacher's vectors of the same texts."""

from collections.abc import Callable, Mapping
import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import products
from retrieval_jax import types
from retrieval_jax.models import dual_encoder
from retrieval_jax.objectives import wrapping


def mse(vectors: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns |f - t|^2 [...] of vectors and a teacher's, [..., D'] each.

  Source: Reimers & Gurevych, EMNLP 2020, eq. 1. sentence-transformers' MSELoss
    also divides by D', which changes nothing where it stands alone; beside
    another loss it would leave unit vectors next to no share.
  """
  return jnp.sum(jnp.square(vectors - teacher), axis=-1)


def cosine(vectors: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns 1 - cos(f, t) [...] of vectors and a teacher's, [..., D'] each.

  Source: Zhang et al., arXiv 2412.19048 (Jasper and Stella), their first loss.
  """
  return 1. - products.inner(
      '...d,...d->...', dual_encoder.normalise(vectors),
      dual_encoder.normalise(teacher))


KINDS: dict[str, Callable[[jax.Array, jax.Array], jax.Array] | None] = {
    'none': None, 'mse': mse, 'cosine': cosine}


@dataclasses.dataclass(frozen=True)
class EmbeddingDistilled(wrapping.Wrapping):
  """An objective mixed with the distance of embeddings to a teacher's vectors.

    (1 - w) L + w mean(d(f(x) W, t(x)), d(g(y+) W, t(y+)),
                       mean_k d(g(y_k) W, t(y_k)))

  with W the identity, or learned: an own parameter [D, D'], at first of normal
  numbers with variance 1 / D'. The last of the three is of the query's draws
  and candidates, and left out of the mean where it has none.

  Source: those of `mse` and `cosine`; that queries, positives and negatives
    count alike, as in EmbeddingGemma (arXiv 2509.20354), embedding matching.

  Attributes:
    inner: the objective.
    kind: a name in `KINDS`.
    weight: w in (0, 1]; 1 is distillation alone.
    projects: whether W is learned.
    teacher_dim: D'.
    dim: D; 0 where it is not known yet, see `fitted`.
  """
  kind: str
  weight: float
  projects: bool
  teacher_dim: int
  dim: int = 0

  def __post_init__(self):
    if KINDS.get(self.kind) is None:
      raise ValueError(
          f'teacher.loss={self.kind!r} is not one of {list(KINDS)}.')
    if not 0 < self.weight <= 1:
      raise ValueError(
          f'teacher.weight={self.weight} must lie in (0, 1]; 1 leaves nothing '
          "of the estimator's loss; to leave out the teacher's, set "
          "teacher.loss='none'.")

  def fitted(self, dim: int) -> 'EmbeddingDistilled':
    """Returns it for embeddings of `dim` dimensions.

    Raises:
      ValueError: if the teacher has others and nothing is projected.
    """
    if not self.projects and dim != self.teacher_dim:
      raise ValueError(
          f'--config.teacher.folder has vectors of {self.teacher_dim} '
          f'dimensions, and the encoder embeds in {dim}; set '
          '--config.teacher.projection=True, which learns a matrix between '
          'them, or take another teacher.')
    return dataclasses.replace(self, dim=dim)

  @property
  def needs(self) -> frozenset[str]:
    """What the inner objective needs, positives and a teacher's vectors."""
    return super().needs | {'positives', 'teacher_vectors'}

  def init(self, key: jax.Array) -> types.Params:
    """Returns the parameters of the inner objective, and 'projection', W."""
    if not self.projects:
      return super().init(key)
    assert self.dim  # it was fitted
    inner_key, key = jax.random.split(key)
    matrix = jax.random.normal(key, (self.dim, self.teacher_dim))
    return {**super().init(inner_key),
            'projection': matrix / jnp.sqrt(self.teacher_dim)}

  def __call__(self, params: types.Params, fresh: types.Fresh,
               batch: types.Batch, proposal: types.Proposal
               ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Returns the mixed loss [B], and scalars of both parts.

    These are 'distance_queries', 'distance_positives' and, of a query that has
    any, 'distance_draws': means over the batch.
    """
    loss, info = self.inner(params, fresh, batch, proposal)
    teacher, distance = fresh.teacher, KINDS[self.kind]
    assert teacher is not None and distance is not None

    def of(vectors, theirs):
      if self.projects:
        vectors = products.inner('...d,de->...e', vectors, params['projection'])
      return distance(vectors, theirs)

    queries = of(fresh.queries, teacher.queries)
    positives = of(fresh.positives, teacher.positives)
    mask = proposal.mask
    draws = jnp.where(mask, of(fresh.negatives, teacher.negatives), 0.).sum(
        axis=1) / jnp.maximum(mask.sum(axis=1), 1)
    has_draws = mask.any(axis=1)
    term = (queries + positives + draws) / (2 + has_draws)
    return (1 - self.weight) * loss + self.weight * term, {
        **info, 'distance_queries': queries.mean(),
        'distance_positives': positives.mean(),
        'distance_draws': draws.sum() / jnp.maximum(has_draws.sum(), 1)}

  def flops(self, batch_size: int, num_negatives: int, num_candidates: int,
            dim: int) -> float:
    """Returns the FLOPs of the inner objective, of W and of the distances."""
    texts = batch_size * (2 + num_negatives)
    return self.inner.flops(batch_size, num_negatives, num_candidates, dim) + (
        2. * texts * self.teacher_dim * (1 + self.projects * dim))
