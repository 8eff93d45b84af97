"""What samplers share that keep nothing from one step to the next."""

from collections.abc import Mapping
from typing import ClassVar

import jax

from retrieval_jax import types


class Stateless:
  """The parts of a `types.Sampler` beside its choice, for one without state.

  It draws rows of the memory by what is remembered, on the device, and gives
  neither log q nor log Z; what is different, a subclass says.
  """
  gives: ClassVar[frozenset[str]] = frozenset()
  draws_from_memory: ClassVar[bool] = True
  on_host: ClassVar[bool] = False
  reads_embeddings: ClassVar[bool] = True

  def init(self, key: jax.Array, view: types.View) -> tuple[()]:
    """Returns the empty state."""
    del key, view
    return ()

  def update(self, state: tuple[()], observation: types.Observation
             ) -> tuple[tuple[()], Mapping[str, jax.Array]]:
    """Returns the empty state, and nothing to log."""
    del observation
    return state, {}

  def rebuild(self, state: tuple[()], key: jax.Array, episode: types.Episode
              ) -> tuple[()]:
    """Returns the empty state."""
    del key, episode
    return state
