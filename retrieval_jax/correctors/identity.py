"""The corrector that trusts the memory as it is."""

from collections.abc import Mapping
import dataclasses

import jax
from jax import numpy as jnp

from retrieval_jax import scoring
from retrieval_jax import types


@dataclasses.dataclass(frozen=True)
class Identity:
  """Leaves stale rows where they are: what every corrector must beat."""
  num_anchors = 0
  folds = True

  def init(self, key: jax.Array, table: types.TargetTable) -> tuple[()]:
    """Returns the empty state."""
    del key, table
    return ()

  def anchor_rows(self, state: tuple[()], key: jax.Array,
                  table: types.TargetTable, step: jax.Array) -> jax.Array:
    """Returns no rows, [0] int32."""
    del state, key, table, step
    return jnp.zeros([0], jnp.int32)

  def apply(self, state: tuple[()], stale: types.TargetTable) -> jax.Array:
    """Returns `stale.embeddings` [..., D] as float32."""
    del state
    return scoring.uncorrected(stale)

  def fold(self, state: tuple[()], queries: jax.Array
           ) -> tuple[jax.Array, jax.Array]:
    """Returns the queries, and zeros."""
    del state
    return scoring.unmoved(queries)

  def update(self, state: tuple[()], observation: types.Observation
             ) -> tuple[tuple[()], Mapping[str, jax.Array]]:
    """Returns the empty state, and nothing to log."""
    del observation
    return state, {}

  def rebuild(self, state: tuple[()], key: jax.Array,
              table: types.TargetTable) -> tuple[()]:
    """Returns the empty state."""
    del key, table
    return state

  def flops_per_row(self, dim: int) -> float:
    """Returns the FLOPs of `apply` per row."""
    del dim
    return 0.

  def flops_per_update(self, num_rows: int, num_queries: int, dim: int
                       ) -> float:
    """Returns the FLOPs of `update` on `num_rows` observed rows."""
    del num_rows, num_queries, dim
    return 0.
