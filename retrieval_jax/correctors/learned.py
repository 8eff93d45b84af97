"""What correctors that learn from observations have in common."""

from typing import Any

import jax
from jax import numpy as jnp

from retrieval_jax import products
from retrieval_jax import scoring
from retrieval_jax import table as tables
from retrieval_jax import types


class Learned:
  """The options of a corrector that learns, and when it takes effect.

  A subclass is a frozen dataclass whose state has `num_updates`, [] int32, the
  observations since `init`, and which defines `init`, `moved` and `update`.

  Source: the warm-up phase that precedes the corrector's use is of Monath et
    al., ICML 2024; its length is not known to us.

  Attributes:
    num_anchors: rows drawn uniformly and encoded at each step for the corrector
      to learn from; it has to be right for rows that no sampler selects, too.
    use_after: observations after which it corrects; until then it learns, and
      rows are taken as they are. 0: from the first.
    keep_norm: rescale a corrected row to the norm of the stale one.
    reset_on_refresh: whether to start from the identity after the whole table
      was re-encoded.
  """
  num_anchors: int
  use_after: int
  keep_norm: bool
  reset_on_refresh: bool

  def apply(self, state: Any, stale: types.TargetTable) -> jax.Array:
    """Returns present embeddings [..., D] float32 of a slice of the table."""
    moved = self.moved(state, stale)
    if not self.use_after:
      return moved
    return jnp.where(state.num_updates >= self.use_after, moved,
                     scoring.uncorrected(stale))

  def anchor_rows(self, state: Any, key: jax.Array, table: types.TargetTable,
                  step: jax.Array) -> jax.Array:
    """Returns distinct live rows, each equally likely, [num_anchors] int32."""
    del state, step
    return tables.systematic_rows(key, table, self.num_anchors)

  @property
  def folds(self) -> bool:
    """Whether queries can be moved in place of rows."""
    return False

  def fold(self, state: Any, queries: jax.Array
           ) -> tuple[jax.Array, jax.Array]:
    """Returns x' = x + M x [B, D] and c = <x, b> [B] of queries x.

    With h(v) = v + v M + b this is <x, h(v)> = <x', v> + c.
    """
    matrix = self.affine(state)
    if self.use_after:
      matrix = jnp.where(state.num_updates >= self.use_after, matrix, 0.0)
    moved = products.inner('bd,ed->be', queries, matrix)  # [B, D + 1]
    return queries + moved[:, :-1], moved[:, -1]

  def rebuild(self, state: Any, key: jax.Array, table: types.TargetTable
              ) -> Any:
    """Returns a new state, or the same if it is not to be reset."""
    return self.init(key, table) if self.reset_on_refresh else state

  def init(self, key: jax.Array, table: types.TargetTable) -> Any:
    """Returns the state that is the identity."""
    raise NotImplementedError

  def affine(self, state: Any) -> jax.Array:
    """Returns M with b as its last row, [D + 1, D], where it `folds`."""
    raise NotImplementedError

  def moved(self, state: Any, stale: types.TargetTable) -> jax.Array:
    """Returns what `apply` does once it is in use."""
    raise NotImplementedError


def check_range(name: str, value: float, low: float,
                high: float | None = None) -> None:
  """Raises a ValueError unless low <= corrector.NAME < high."""
  if value < low or high is not None and value >= high:
    raise ValueError(
        f'corrector.{name}={value} must be at least {low}'
        + (f' and below {high}.' if high is not None else '.'))
