"""Random numbers that are hashes: the same whatever was drawn before them."""

import numpy as np
from numpy.typing import ArrayLike


def _mix(x: np.ndarray) -> np.ndarray:
  """Returns the finaliser of splitmix64 of uint64 values."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
  return x ^ (x >> np.uint64(31))


def hashes(seed: int, purpose: int, epoch: ArrayLike, *items: ArrayLike
           ) -> np.ndarray:
  """Returns uint64 hashes of (seed, purpose, epoch, *items), elementwise."""
  state = np.full([1], seed, np.int64).astype(np.uint64)
  for value in (purpose, epoch, *items):
    value = np.atleast_1d(np.asarray(value)).astype(np.uint64)
    state = _mix(state + np.uint64(0x9e3779b97f4a7c15) + _mix(value))
  return state


def order_of(ranks: np.ndarray, absent: np.ndarray) -> np.ndarray:
  """Returns the order [n, k] of ranks in their rows, what is absent last.

  Args:
    ranks: [n, k] uint64, hashes.
    absent: [n, k] bool.
  """
  # Hashes of 63 bits, so that the last one tells both kinds apart.
  ranks = (ranks >> np.uint64(1)) | (absent.astype(np.uint64) << np.uint64(63))
  return np.argsort(ranks, axis=1, kind='stable')
