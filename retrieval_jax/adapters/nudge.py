"""NUDGE: targets moved towards their training queries by a bounded step.

Zeighami, Wellmer, Parameswaran, NUDGE: lightweight non-parametric fine-tuning
of embeddings for retrieval, ICLR 2025. Both solve for the largest sum of
training similarities, sum_i <q_i, p_y(i)>, under a bound on each target's
change; g = sum of the embeddings of a target's training queries.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import sharding
from retrieval_jax.adapters import pairs as pairs_lib

GAMMAS = tuple(round(0.02 * i, 2) for i in range(25))
"""The published grid of NUDGE-N: 0 to 0.48 in steps of 0.02."""


@dataclasses.dataclass(frozen=True)
class NudgeM:
  """p + gamma g / |g|: bounded change, norms may grow.

  Attributes:
    gamma: the length of the step, at least 0; published: the one that
      `best_step` finds on validation queries.

  Raises:
    ValueError: for a negative gamma.
  """
  GRID: ClassVar[Mapping[str, Sequence[Any]]] = {}

  gamma: float

  @classmethod
  def fitted(cls, *args: Any, **options: Any) -> 'NudgeM':
    """Returns the one whose gamma `best_step` finds, of these arguments."""
    return cls(best_step(*args, **options))

  def __post_init__(self):
    if not self.gamma >= 0:
      raise ValueError(f'gamma is {self.gamma}, expected at least 0.')

  def __call__(self, targets: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Returns the moved targets [C, D]; see `moved.Move`."""
    return targets + np.float32(self.gamma) * pairs_lib.unit(sums)


@dataclasses.dataclass(frozen=True)
class NudgeN:
  """The point of the sphere nearest to g within squared distance gamma of p.

  Targets turn towards g along a great circle, by at most the angle whose
  cosine is 1 - gamma / 2; one that reaches g / |g| stays there. As in the
  authors' code, gamma bounds the *square* of the distance, and targets that
  point away from their queries (<p, g> < 0) stay.

  Attributes:
    gamma: in [0, 2]; published: the best of `GAMMAS` on validation queries.

  Raises:
    ValueError: for a gamma out of range.
  """
  GRID: ClassVar[Mapping[str, Sequence[Any]]] = {'gamma': GAMMAS}

  gamma: float

  def __post_init__(self):
    if not 0 <= self.gamma <= 2:
      raise ValueError(
          f'gamma is {self.gamma}, expected a number in [0, 2]: the squared '
          'distance that a target may move on the unit sphere.')

  def __call__(self, targets: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Returns the moved targets [C, D]; see `moved.Move`."""
    goal = pairs_lib.unit(sums)
    cosine = np.sum(targets * goal, axis=1, keepdims=True)
    across = pairs_lib.unit(goal - cosine * targets)
    most = np.float32(1 - self.gamma / 2)
    turned = most * targets + np.sqrt(1 - most**2) * across
    moved = np.where(cosine >= most, goal, turned)
    stays = (cosine < 0) | ~np.any(sums, axis=1, keepdims=True)
    return np.where(stays | (self.gamma == 0), targets, moved)


def best_step(queries: np.ndarray, query_rows: np.ndarray,
              target_rows: np.ndarray, targets: np.ndarray,
              pairs: pairs_lib.Pairs, *, mesh: jax.sharding.Mesh,
              chunk_rows: int = 16384, batch_size: int = 512) -> float:
  """Returns the gamma of NUDGE-M that answers the most validation queries.

  A judged pair (query, target) has the target first for an interval of gammas,
  since all scores are linear in it. The result lies in as many intervals as
  possible: in the middle of the range where they overlap. The authors' code
  takes its lower end, where two scores tie.

  Args:
    queries: [n, D] embeddings of validation queries.
    query_rows: [P] int, their judged pairs: rows of `queries`.
    target_rows: [P] int, likewise: rows of `targets`.
    targets: [N, D], before they are moved.
    pairs: of the training queries.
    mesh: devices that share each chunk of targets.
    chunk_rows: targets scored at a time, over all devices.
    batch_size: validation pairs scored at a time.
  """
  pairs.check_targets(targets)
  low, high = intervals(queries, query_rows, target_rows, targets, pairs,
                        mesh=mesh, chunk_rows=chunk_rows, batch_size=batch_size)
  return most_crossed(low, high)


def intervals(queries: np.ndarray, query_rows: np.ndarray,
              target_rows: np.ndarray, targets: np.ndarray,
              pairs: pairs_lib.Pairs, *, mesh: jax.sharding.Mesh,
              chunk_rows: int, batch_size: int
              ) -> tuple[np.ndarray, np.ndarray]:
  """Returns the gammas [low, high] at which each pair's target is first.

  Arguments are those of `best_step`; low > high where it never is.
  """
  queries = np.asarray(queries, np.float32)
  num_pairs = len(query_rows)
  # Scores s + gamma g of the judged targets themselves.
  own_sums = np.empty((num_pairs, pairs.dim), np.float32)
  for first, sums in pairs.sums(len(targets), chunk_rows):
    inside = (target_rows >= first) & (target_rows < first + len(sums))
    own_sums[inside] = sums[target_rows[inside] - first]
  own = np.asarray(targets[target_rows], np.float32)
  of_pair = queries[query_rows]
  s, g = (np.einsum('nd,nd->n', of_pair, vectors) for vectors in (
      own, pairs_lib.unit(own_sums)))

  low = np.zeros(num_pairs, np.float32)
  high = np.full(num_pairs, np.inf, np.float32)
  by_row = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec('data'))
  put = functools.partial(sharding.put, where=sharding.replicated(mesh))
  chunk_rows = -(-chunk_rows // mesh.size) * mesh.size
  for first, sums in pairs.sums(len(targets), chunk_rows):
    pad = ((0, chunk_rows - len(sums)), (0, 0))
    moving = np.asarray(targets[first:first + len(sums)], np.float32)
    chunk = sharding.put((
        np.pad(moving, pad), np.pad(pairs_lib.unit(sums), pad),
        first + np.arange(chunk_rows, dtype=np.int32)), by_row)
    for i in range(0, num_pairs, batch_size):
      part = slice(i, min(i + batch_size, num_pairs))
      fill = batch_size - (part.stop - part.start)
      batch = put(tuple(
          np.pad(a[part], ((0, fill),) + ((0, 0),) * (a.ndim - 1)) for a in (
              of_pair, s, g, target_rows.astype(np.int32))))
      lower, upper = (np.asarray(a)[:part.stop - part.start]
                      for a in _limits(*batch, *chunk, len(targets)))
      low[part] = np.maximum(low[part], lower)
      high[part] = np.minimum(high[part], upper)
  return low, high


@jax.jit
def _limits(queries, s, g, own_rows, targets, directions, rows, num_targets):
  """Returns [b] limits that a chunk of rivals sets to s + gamma g."""
  ahead = queries @ targets.T - s[:, None]  # by how much rivals lead at 0
  slope = g[:, None] - queries @ directions.T  # how fast the lead shrinks
  rival = (rows[None, :] != own_rows[:, None]) & (rows < num_targets)[None, :]
  crossing = ahead / jnp.where(slope == 0, 1., slope)
  lower = jnp.where(rival & (slope > 0), crossing, 0.)
  upper = jnp.where(rival & (slope < 0), crossing, jnp.inf)
  never = rival & (slope == 0) & (ahead > 0)
  return (jnp.max(jnp.where(never, jnp.inf, lower), axis=1),
          jnp.min(upper, axis=1))


def most_crossed(low: np.ndarray, high: np.ndarray) -> float:
  """Returns a point in as many of the intervals [low, high] as possible.

  The middle of the first range of such points; where that has no end, just
  above its start; 0 where there is no interval.
  """
  kept = (low <= high) & np.isfinite(low)
  low, high = np.sort(low[kept]), np.sort(high[kept])
  if not len(low):
    return 0.
  starts = np.unique(low)
  inside = (np.searchsorted(low, starts, 'right')
            - np.searchsorted(high, starts, 'left'))
  start = starts[np.argmax(inside)]
  ends = [low[np.searchsorted(low, start, 'right'):][:1],
          high[np.searchsorted(high, start, 'left'):][:1]]
  end = min([float(e[0]) for e in ends if len(e)], default=np.inf)
  return float((start + end) / 2 if np.isfinite(end) else start * 1.001 + 1e-6)
