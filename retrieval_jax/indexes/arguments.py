"""What every index asks of the arguments of a search."""

import numpy as np


def checked(queries, k: int, exclude) -> tuple[np.ndarray, np.ndarray]:
  """Returns queries [n, D] float32 and exclude [n, E] int32.

  Args:
    queries: [n, D], any n.
    k: results per query.
    exclude: [n, E] ids that must not come out, -1 for none; None is E = 0.

  Raises:
    ValueError: if queries and exclude differ in length, or k < 1.
  """
  queries = np.asarray(queries, np.float32)
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
