"""What samplers that keep nothing between steps have in common."""

from collections.abc import Mapping
from typing import ClassVar

import jax

from retrieval_jax import types


class Stateless:
  """A `types.Sampler` without state, but for its choice.

  It draws rows of the memory by what is remembered, on the device, and gives
  neither log q nor log Z; a subclass says what differs.
  """
  gives: ClassVar[frozenset[str]] = frozenset()
  draws_from_memory: ClassVar[bool] = True
  draws_from_pools: ClassVar[bool] = False
  on_host: ClassVar[bool] = False
  reads_embeddings: ClassVar[bool] = True
  maintain_every: ClassVar[int] = 0
  takes_few_rows: ClassVar[bool] = False

  def init(self, key: jax.Array, view: types.View) -> tuple[()]:
    """Returns the empty state."""
    del key, view
    return ()

  def update(self, state: tuple[()], observation: types.Observation
             ) -> tuple[tuple[()], Mapping[str, jax.Array]]:
    """Returns the empty state, and nothing to log."""
    del observation
    return state, {}

  def diagnose(self, state: tuple[()], request: types.Request,
               view: types.View) -> Mapping[str, jax.Array]:
    """Returns nothing."""
    del state, request, view
    return {}

  def rebuild(self, state: tuple[()], key: jax.Array, episode: types.Episode
              ) -> tuple[()]:
    """Returns the empty state."""
    del key, episode
    return state

  def rows_compared(self, capacity: int) -> tuple[int, int]:
    """Returns 0 and 0: there is nothing to build."""
    del capacity
    return 0, 0
