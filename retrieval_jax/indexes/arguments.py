"""The arguments of a search, checked, and what excludes a result."""

import numpy as np


def checked(queries: np.ndarray, k: int, exclude: np.ndarray | None, dim: int
            ) -> tuple[np.ndarray, np.ndarray]:
  """Returns queries [n, D] float32 and exclude [n, E] int32.

  Args:
    queries: [n, D], any n.
    k: results per query.
    exclude: [n, E] ids that must not come out, -1 for none; None is E = 0.
    dim: D of the targets.

  Raises:
    ValueError: if queries and exclude differ in length, queries and targets in
      dimension, or k < 1.
  """
  queries = np.asarray(queries, np.float32)
  if queries.shape[1:] != (dim,):
    raise ValueError(
        f'queries have the shape {queries.shape}, expected [n, {dim}] as the '
        'targets; embed both with one encoder.')
  if exclude is None:
    exclude = np.full((len(queries), 0), -1, np.int32)
  exclude = np.asarray(exclude, np.int32)
  if len(exclude) != len(queries):
    raise ValueError(
        f'exclude has {len(exclude)} rows, expected one for each of the '
        f'{len(queries)} queries; use -1 where nothing is excluded.')
  if k < 1:
    raise ValueError(f'k is {k}, expected at least 1.')
  return queries, exclude


def listed(ids: np.ndarray, lists: np.ndarray) -> np.ndarray:
  """Returns [n, k] bool, whether ids [n, k] are in the lists [n, E]; -1 is not.

  Memory is that of the arguments, not n * k * E.
  """
  ids, lists = np.asarray(ids, np.int64), np.asarray(lists, np.int64)
  size = 1 + max(ids.max(initial=0), lists.max(initial=0))
  offsets = size * np.arange(len(ids), dtype=np.int64)[:, None]
  return (ids >= 0) & np.isin(ids + offsets, (lists + offsets)[lists >= 0])
