"""PEFA-XS: the nearest-neighbour term folded into the targets' rows.

Chang et al., PEFA: parameter-free adapters for large-scale embedding-based
retrieval models, WSDM 2024.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar

import numpy as np

from retrieval_jax.adapters import pairs as pairs_lib

LAMBDAS = tuple(round(0.1 * i, 1) for i in range(1, 11))
"""Values of lambda to choose from."""


@dataclasses.dataclass(frozen=True)
class PefaXS:
  """f(q, p_j) = <q, lambda p_j + (1 - lambda) Pi(Q^T Y_j)>.

  Pi divides by the norm, so a target's queries count as one vector whatever
  their number. The result is not normalised again, as published: targets whose
  queries lie apart from them get shorter rows.

  Attributes:
    weight: lambda in [0, 1], of the encoder's own score; 1 is the encoder.
    keep_uncovered: False, as published: a target without a training query has
      lambda p_j, so it falls behind those that have one. True, ours: it keeps
      its full row.

  Raises:
    ValueError: for a weight outside [0, 1].
  """
  GRID: ClassVar[Mapping[str, Sequence[Any]]] = {'weight': LAMBDAS}

  weight: float
  keep_uncovered: bool = False

  def __post_init__(self):
    check_weight(self.weight)

  def __call__(self, targets: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Returns the moved targets [C, D]; see `moved.Move`."""
    weight = np.float32(self.weight)
    neighbours = pairs_lib.unit(sums)
    moved = weight * targets + (1 - weight) * neighbours
    if not self.keep_uncovered:
      return moved
    return np.where(np.any(sums, axis=1, keepdims=True), moved, targets)


def check_weight(weight: float) -> None:
  """Raises ValueError for a lambda outside [0, 1]."""
  if not 0 <= weight <= 1:
    raise ValueError(
        f'lambda is {weight}, expected a number in [0, 1]: the share of the '
        "encoder's own score, 1 for the encoder alone.")
