"""Targets that say the same as another one, word for word."""

from collections.abc import Iterable, Sequence
import hashlib

import numpy as np


def same_texts(texts: Sequence[str], ids: Iterable[int]
               ) -> dict[int, np.ndarray]:
  """Returns id -> the other ids [m] int32 of equal text, where there are any.

  Corpora often hold a passage more than once, and a copy of a positive is no
  negative. Memory is 8 bytes per text.

  Args:
    texts: N texts, streamed once; those that look equal are read again.
    ids: those whose copies are wanted.
  """
  hashes = np.fromiter(
      (int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
       for text in texts), np.uint64, len(texts))
  order = np.argsort(hashes, kind='stable').astype(np.int32)
  ids = np.unique(np.fromiter(ids, np.int64))
  sought = hashes[ids]
  starts, stops = (np.searchsorted(hashes, sought, side, sorter=order)
                   for side in ('left', 'right'))
  found = {}
  for i in np.flatnonzero(stops - starts > 1):
    one = int(ids[i])
    others = [other for other in order[starts[i]:stops[i]].tolist()
              if other != one and texts[other] == texts[one]]
    if others:
      found[one] = np.asarray(others, np.int32)
  return found
