"""Targets that say the same as an earlier one, word for word."""

from collections.abc import Iterable
import hashlib
from typing import NamedTuple

import numpy as np


class Copies(NamedTuple):
  """Which targets of a corpus are copies, and of which.

  Attributes:
    ids: [c] int32, rising, the targets whose text an earlier target has.
    firsts: [c] int32, the first target of that text.
  """
  ids: np.ndarray
  firsts: np.ndarray

  @property
  def num_texts(self) -> int:
    """How many texts occur more than once."""
    return len(np.unique(self.firsts))

  def firsts_of(self, ids: np.ndarray) -> np.ndarray:
    """Returns ids [...] int with each copy replaced by the first of its text.

    Two targets have the same text where these are equal. -1 stays.
    """
    if not len(self.ids):
      return ids
    at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
    return np.where(self.ids[at] == ids, self.firsts[at], ids)

  def distinct(self, num_targets: int) -> np.ndarray:
    """Returns the ids [N - c] int64 of the N targets that are no copies."""
    return np.delete(np.arange(num_targets), self.ids)

  def others(self, ids: Iterable[int]) -> dict[int, np.ndarray]:
    """Returns id -> the other ids [m] int32 of equal text, where there are any.

    Args:
      ids: those that are asked for.
    """
    order = np.argsort(self.firsts, kind='stable')
    ids = np.unique(np.fromiter(ids, np.int64))
    firsts = self.firsts_of(ids)
    starts, stops = (
        np.searchsorted(self.firsts, firsts, side, sorter=order)
        for side in ('left', 'right'))
    found = {}
    for i in np.flatnonzero(stops > starts):
      group = np.append(firsts[i], self.ids[order[starts[i]:stops[i]]])
      found[int(ids[i])] = group[group != ids[i]].astype(np.int32)
    return found


  def within(self, starts: np.ndarray) -> 'Copies':
    """Returns the copies of targets of the same set.

    Args:
      starts: [S + 1] int, rising, the first target of each set, then N.
    """
    members = np.concatenate([self.ids, np.unique(self.firsts)])
    firsts = self.firsts_of(members)
    of_set = np.searchsorted(starts, members, side='right')
    order = np.lexsort((members, of_set, firsts))
    members, firsts, of_set = members[order], firsts[order], of_set[order]
    return _of_runs(members, (firsts[1:] == firsts[:-1])
                    & (of_set[1:] == of_set[:-1]))


NONE = Copies(np.zeros(0, np.int32), np.zeros(0, np.int32))
"""Of a corpus whose texts all differ."""


def find(texts: Iterable[str]) -> Copies:
  """Returns the copies among N texts: the very same string.

  Texts are equal where their hashes of 128 bits are, of which no two that
  differ are known. Takes about 50 bytes per text.

  Args:
    texts: streamed once.
  """
  digests = bytearray()
  for text in texts:
    digests += hashlib.blake2b(text.encode(), digest_size=16).digest()
  high, low = np.frombuffer(digests, np.uint64).reshape(-1, 2).T
  order = np.lexsort((low, high))  # stable: ids of one text rise
  high, low = high[order], low[order]
  return _of_runs(
      order, (high[1:] == high[:-1]) & (low[1:] == low[:-1]))


def _of_runs(members: np.ndarray, same: np.ndarray) -> Copies:
  """Returns the copies among targets that are sorted by their text.

  Args:
    members: [n] int, rising within a text.
    same: [n - 1] bool, whether two neighbours have the same text.
  """
  again = np.append(False, same)[:len(members)]
  start = np.maximum.accumulate(np.where(again, 0, np.arange(len(members))))
  ids, firsts = members[again], members[start[again]]
  order = np.argsort(ids)
  return Copies(ids[order].astype(np.int32), firsts[order].astype(np.int32))
