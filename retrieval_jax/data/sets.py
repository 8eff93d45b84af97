"""Which rows of a joined data set belong to which of its sets."""

from collections.abc import Sequence
import dataclasses

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True, eq=False)
class Sets:
  """S data sets that were joined: the rows of each follow one another.

  Attributes:
    names: S names, in the order of the rows.
    corpus_starts: [S + 1] int64, the first corpus row of each, then N.
    query_starts: [S + 1] int64, the first query row of each, then Q.
  """
  names: Sequence[str]
  corpus_starts: np.ndarray
  query_starts: np.ndarray

  def __post_init__(self):
    for name in ('corpus_starts', 'query_starts'):
      object.__setattr__(self, name, np.asarray(getattr(self, name), np.int64))

  def corpus(self, i: int) -> range:
    """Returns the corpus rows of set i."""
    return range(*self.corpus_starts[i:i + 2].tolist())

  def queries(self, i: int) -> range:
    """Returns the query rows of set i."""
    return range(*self.query_starts[i:i + 2].tolist())

  def of_queries(self, query_rows: ArrayLike) -> np.ndarray:
    """Returns the set [...] int64 of query rows [...]."""
    return np.searchsorted(self.query_starts, query_rows, side='right') - 1
