"""Whose turn it is: which of several data sets the batch of a step is of.

The set of step t is one draw by a hash of (seed, t), independent of all others.
So are batches of one set at a time, whichever step is asked for first.
"""

from collections.abc import Mapping, Sequence
import functools

import numpy as np

from retrieval_jax.data import hashing

_TURN = 4  # what a hash is for; those of data.pipeline are others
_BLOCK = 4096  # steps that are drawn at a time


def chances(sizes: Mapping[str, int], weights: Sequence[float] = (),
            temperature: float = 1.) -> np.ndarray:
  """Returns the chance [S] float64 of each set to give a step its batch.

    p_i = w_i / sum_j w_j,   or   n_i^(1/T) / sum_j n_j^(1/T)

  where there are no weights. T = 1 draws queries alike, whichever set they are
  of; with a higher T the chances come closer to each other.

  Args:
    sizes: name -> n, training queries of each set.
    weights: w, one for each set, positive; () for none.
    temperature: T, positive.

  Raises:
    ValueError: where the weights or the temperature do not fit.

  Source: the temperature is that of multilingual pre-training, Arivazhagan et
    al. 2019, section 4.2.
  """
  if not weights:
    if not 0 < temperature < np.inf:
      raise ValueError(
          f'--config.data.temperature={temperature} must be positive: 1 takes '
          'sets by their size, a higher one more alike.')
    # By logarithms: a small T would raise sizes to a high power.
    logs = np.log(list(sizes.values())) / temperature
    found = np.exp(logs - logs.max())
    return found / found.sum()
  if temperature != 1:
    raise ValueError(
        f'--config.data.weights={tuple(weights)} and '
        f'--config.data.temperature={temperature} both say how often a set '
        'takes its turn; leave one of them out.')
  if len(weights) != len(sizes) or not all(0 < w < np.inf for w in weights):
    raise ValueError(
        f'--config.data.weights={tuple(weights)} must be a positive number for '
        f'each of the {len(sizes)} sets {list(sizes)}, in their order.')
  return np.asarray(weights, np.float64) / np.sum(weights)


class Turns:
  """Which of S sets each step is of, and which turn of the set it is.

  Args:
    starts: [S + 1] int, the first query row of each set, then Q.
    chances: [S], of each set, with sum 1.
    seed: any int that fits 64 bits.
  """

  def __init__(self, starts: np.ndarray, chances: np.ndarray, seed: int):
    self.starts, self.chances, self.seed = starts, chances, seed
    # Memory is a few bytes per block; steps are asked for nearly in order.
    self._sets_of = functools.lru_cache(maxsize=4)(self._draw)
    self._count = functools.lru_cache(maxsize=None)(self._make_count)
    self._before = functools.lru_cache(maxsize=4)(self._make_before)

  def at(self, step: int) -> tuple[int, int]:
    """Returns the set of a step, and how many earlier steps had the same."""
    block, place = divmod(step, _BLOCK)
    sets = self._sets_of(block)
    chosen = int(sets[place])
    earlier = self._before(block)[chosen] + (sets[:place] == chosen).sum()
    return chosen, int(earlier)

  def _draw(self, block: int) -> np.ndarray:
    """Returns the sets [_BLOCK] int64 of the steps of a block."""
    steps = np.arange(block * _BLOCK, (block + 1) * _BLOCK)
    # The 53 bits of a float64 in [0, 1).
    draws = (hashing.hashes(self.seed, _TURN, steps) >> np.uint64(11)) * 2.**-53
    return np.searchsorted(
        np.cumsum(self.chances)[:-1], draws, side='right')

  def _make_count(self, block: int) -> np.ndarray:
    return np.bincount(self._draw(block), minlength=len(self.chances))

  def _make_before(self, block: int) -> np.ndarray:
    """Returns how many steps before a block are of each set, [S] int64."""
    return np.sum([self._count(earlier) for earlier in range(block)], axis=0,
                  dtype=np.int64) + np.zeros(len(self.chances), np.int64)
