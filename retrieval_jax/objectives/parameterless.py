"""What objectives without parameters of their own have in common."""

from typing import ClassVar

import jax

from retrieval_jax import types


class Parameterless:
  """A `types.Objective` of embeddings but for the loss itself."""
  reads_tokens: ClassVar[bool] = False

  def init(self, key: jax.Array) -> types.Params:
    """Returns no parameters, {}."""
    del key
    return {}
