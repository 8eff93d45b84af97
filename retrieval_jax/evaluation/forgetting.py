"""How much of what a run has learned it forgets, and how its negatives change.

A run is looked at every so many steps, from step 0 on. At each look a fixed
probe of queries gets a *group* of negatives: random ones of its nearest targets
by the encoder as it is, positives left out, as mining would. A pair of a query
and a negative is *right* while the query's positive scores above the negative.
Each look then tests the groups of all looks before it:

  accuracy   share of a group's pairs that are right at a look
  learned    of the pairs wrong at the look that made them, the share right at
             the next
  forgotten  of the pairs right at the look after the one that made them, the
             share wrong at a later look
  swap       1 - the mean Jaccard index of a query's nearest targets at a look
             and at the one before
  return     share of the nearest targets that were so two looks ago, but not at
             the last

These definitions are ours: that of Sun et al., EMNLP 2022, whose question it
is, is not public.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from retrieval_jax.indexes import arguments


class Look(NamedTuple):
  """What one look has seen of n queries.

  Attributes:
    step: number of finished steps.
    nearest: [n, k] int32, ids of the nearest targets, -1 for none.
    group: [n, m] int32, the negatives made at this look, -1 for none.
    right: [looks, n, m] bool, of the groups of the looks so far, this last.
  """
  step: int
  nearest: np.ndarray
  group: np.ndarray
  right: np.ndarray


def are_right(queries: np.ndarray, positives: np.ndarray,
              negatives: np.ndarray) -> np.ndarray:
  """Returns [n, m] bool, whether the positive scores above each negative.

  Args:
    queries: [n, D].
    positives: [n, D].
    negatives: [n, m, D].
  """
  return (np.einsum('nd,nmd->nm', queries, negatives)
          < np.einsum('nd,nd->n', queries, positives)[:, None])


def summary(looks: Sequence[Look]) -> dict[str, Any]:
  """Returns what looks, in order, say; plain JSON.

  Returns:
    steps: of the looks.
    accuracy: [i][j], of the group of look i at look j, None for j < i.
    learned: [i], of the group of look i, None of the last.
    forgotten: [i][j], likewise, None for j < i + 2.
    swap, return: [j], None where there are too few looks before.
    A share of no pairs is None.
  """
  number = len(looks)
  accuracy: list[list[float | None]] = [[None] * number for _ in looks]
  forgotten: list[list[float | None]] = [[None] * number for _ in looks]
  learned: list[float | None] = [None] * number
  for i, made in enumerate(looks):
    live = made.group >= 0
    right = {j: looks[j].right[i] for j in range(i, number)}
    for j in range(i, number):
      accuracy[i][j] = _share(right[j], live)
      if j == i + 1:
        learned[i] = _share(right[j], live & ~right[i])
      if j > i + 1:
        forgotten[i][j] = _share(~right[j], live & right[i + 1])
  found = [look.nearest for look in looks]
  swap = [None, *(1 - _jaccard(a, b) for a, b in zip(found, found[1:]))]
  returned = [None] * min(number, 2) + [
      _share(arguments.listed(now, two_ago) & ~arguments.listed(now, one_ago),
             now >= 0)
      for two_ago, one_ago, now in zip(found, found[1:], found[2:])]
  return {'steps': [look.step for look in looks], 'accuracy': accuracy,
          'learned': learned, 'forgotten': forgotten, 'swap': swap[:number],
          'return': returned}


def scalars(found: dict[str, Any]) -> dict[str, float]:
  """Returns what the last look of a `summary` adds, as scalars by name.

  `forgotten` is the mean over groups.
  """
  last = {
      'accuracy': found['accuracy'][-1][-1],
      'learned': found['learned'][-2] if len(found['steps']) > 1 else None,
      'swap': found['swap'][-1], 'return': found['return'][-1]}
  lost = [row[-1] for row in found['forgotten'] if row[-1] is not None]
  if lost:
    last['forgotten'] = float(np.mean(lost))
  return {f'forgetting/{name}': value for name, value in last.items()
          if value is not None}


def _share(what: np.ndarray, among: np.ndarray) -> float | None:
  return float((what & among).sum() / among.sum()) if among.any() else None


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
  """Returns the mean over rows of |A and B| / |A or B|; ids in A differ."""
  both = arguments.listed(one, other).sum(axis=1)
  either = (one >= 0).sum(axis=1) + (other >= 0).sum(axis=1) - both
  return float(np.mean(both / np.maximum(either, 1)))
