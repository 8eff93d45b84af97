"""Embeddings whose prefixes are embeddings too."""

from collections.abc import Sequence

import numpy as np


def check_dims(dims: Sequence[int], limit: int | None, option: str) -> None:
  """Raises a ValueError unless dims ascend from at least 1 to at most limit."""
  if any(b <= a for a, b in zip((0, *dims), dims)):
    raise ValueError(
        f'{option}={tuple(dims)} must be ascending numbers of dimensions, the '
        'first at least 1.')
  if limit is not None and dims and dims[-1] > limit:
    raise ValueError(
        f'{option}={tuple(dims)} goes beyond the {limit} dimensions of the '
        'embeddings; leave the larger ones out.')


def truncate(embeddings: np.ndarray, dim: int, normalize: bool) -> np.ndarray:
  """Returns the first `dim` columns of [n, D], on the host.

  With `normalize` rows have length one again; a row of zeros stays zero.
  """
  cut = np.asarray(embeddings)[:, :dim]
  if not normalize:
    return cut
  length = np.linalg.norm(cut, axis=1, keepdims=True)
  return cut / np.where(length > 0, length, 1).astype(cut.dtype)
