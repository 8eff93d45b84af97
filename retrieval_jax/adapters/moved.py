"""Adapters that move the targets: one index, no cost when searching."""

import dataclasses
from typing import Any, Protocol

import numpy as np

from retrieval_jax.adapters import pairs as pairs_lib

CHUNK_ROWS = 16384
"""Targets moved at a time; beyond the targets, memory is a few times this."""


class Move(Protocol):
  """Moves each target by itself. Frozen and hashable."""

  def __call__(self, targets: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Returns the moved targets.

    Args:
      targets: [C, D] float32, of norm 1.
      sums: [C, D] float32, the sums of the embeddings of their training
        queries, zero where a target has none.

    Returns:
      [C, D] float32.
    """


def move_targets(move: Move, targets: np.ndarray, pairs: pairs_lib.Pairs, *,
                 out: np.ndarray | None = None,
                 chunk_rows: int = CHUNK_ROWS) -> np.ndarray:
  """Returns all targets moved: [N, D] float32.

  Args:
    move: of a target and the sum of its queries.
    targets: [N, D] of norm 1; may be memory-mapped.
    pairs: the training queries and their targets.
    out: [N, D] array to write to, such as a memory-mapped one; a new one by
      default.
    chunk_rows: targets in memory at a time.

  Raises:
    ValueError: where targets and pairs do not fit each other.
  """
  pairs.check_targets(targets)
  if out is None:
    out = np.empty(targets.shape, np.float32)
  for first, sums in pairs.sums(len(targets), chunk_rows):
    moving = np.asarray(targets[first:first + len(sums)], np.float32)
    out[first:first + len(sums)] = move(moving, sums)
  return out


@dataclasses.dataclass(frozen=True)
class Moved:
  """An index over moved targets.

  Attributes:
    move: `PefaXS`, `NudgeM` or `NudgeN`.
    index: anything with `build` and `search`.
  """
  move: Move
  index: Any

  def build(self, targets: np.ndarray, pairs: pairs_lib.Pairs) -> Any:
    """Returns the inner index's state for targets [N, D] and their queries."""
    return self.index.build(move_targets(self.move, targets, pairs))

  def search(self, state: Any, queries: np.ndarray, k: int,
             exclude: np.ndarray | None = None
             ) -> tuple[np.ndarray, np.ndarray]:
    """Searches as the inner index does."""
    return self.index.search(state, queries, k, exclude)
