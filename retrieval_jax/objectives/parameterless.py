"""What objectives share that have no parameters of their own."""

from typing import ClassVar

import jax

from retrieval_jax import types


class Parameterless:
  """The parts of a `types.Objective` beside the loss, for one of embeddings."""
  reads_tokens: ClassVar[bool] = False

  def init(self, key: jax.Array) -> types.Params:
    """Returns no parameters, {}."""
    del key
    return {}
