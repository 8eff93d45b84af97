"""What objectives around another one have in common."""

import dataclasses

import jax

from retrieval_jax import types


@dataclasses.dataclass(frozen=True)
class Wrapping:
  """A `types.Objective` around another but for the loss itself.

  Attributes:
    inner: the objective.
  """
  inner: types.Objective

  @property
  def needs(self) -> frozenset[str]:
    """What the inner objective needs."""
    return self.inner.needs

  @property
  def reads_tokens(self) -> bool:
    """Whether the inner objective does."""
    return self.inner.reads_tokens

  def init(self, key: jax.Array) -> types.Params:
    """Returns the parameters of the inner objective."""
    return self.inner.init(key)
