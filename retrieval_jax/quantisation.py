"""Embeddings in fewer bytes: int8 with a range per dimension, or sign bits.

With r_d the least and R_d the largest value of dimension d in the embeddings
that calibrate, here the corpus, and w_d = (R_d - r_d) / 255, or 1 where that is
0 (a dimension that never varies):

  int8    code_d = clip(floor((x_d - r_d) / w_d), 0, 255) - 128, in float32,
          which stands for r_d + (code_d + 128) * w_d; D bytes.
  binary  bit_d = x_d > 0, eight to a byte, the first in its highest bit;
          D / 8 bytes, rounded up.

Both are, byte for byte, what sentence-transformers' `quantize_embeddings` makes
of float32 embeddings as 'int8' and 'ubinary' (tested where it is installed).
`indexes.Int8Index` and `indexes.BinaryIndex` search them.

Source: Shakir, Aarsen and Lee, Binary and Scalar Embedding Quantization, 2024;
  bits whose best are scored again: Yamada, Asai and Hajishirzi, ACL 2021.
"""

from collections.abc import Iterator, Sequence

import numpy as np

PRECISIONS = ('int8', 'binary')
"""What embeddings can be stored as, besides floats."""

_ROWS = 65536  # quantised at a time: embeddings may be mapped


def check(precisions: Sequence[str], option: str) -> None:
  """Raises a ValueError unless they are of PRECISIONS, each at most once."""
  if isinstance(precisions, str) or len(set(precisions)) != len(
      precisions) or not set(precisions) <= set(PRECISIONS):
    raise ValueError(
        f'{option}={precisions!r}: expected names among {PRECISIONS}, each '
        'once.')


def check_multiplier(rescore_multiplier: int, option: str) -> None:
  """Raises a ValueError unless it is at least 0."""
  if rescore_multiplier < 0:
    raise ValueError(
        f'{option}={rescore_multiplier} must be at least 1: so many times the '
        'results asked for are scored again; or 0, none.')


def variants(precisions: Sequence[str], rescore_multiplier: int) -> list[str]:
  """Returns the names under which each way of searching is measured.

  'int8' is scored by the float query. 'binary' is by Hamming distance alone;
  'binary_rescored' are its best, scored again by the float query and the bits,
  'binary_rescored_int8' by the float query and int8, where there is both.
  """
  names = list(precisions)
  if 'binary' in precisions and rescore_multiplier:
    names.append('binary_rescored')
    if 'int8' in precisions:
      names.append('binary_rescored_int8')
  return names


def ranges(embeddings: np.ndarray) -> np.ndarray:
  """Returns r and R, the least and the largest value of each dimension.

  Args:
    embeddings: [N, D] of any float dtype, at least one row, numpy or mapped.

  Returns:
    [2, D] float32.

  Raises:
    ValueError: if there is no row, or one is not finite.
  """
  if not len(embeddings):
    raise ValueError(
        'Expected embeddings to take ranges of, got none; calibrate by those '
        'of the corpus.')
  found = np.stack([np.min(embeddings, axis=0),
                    np.max(embeddings, axis=0)]).astype(np.float32)
  if not np.isfinite(found).all():
    raise ValueError(
        'Expected finite embeddings to take ranges of, got nan or inf in '
        f'dimension {int(np.argmin(np.isfinite(found).all(axis=0)))}.')
  return found


def steps(ranges: np.ndarray) -> np.ndarray:
  """Returns w, the width of a step of each dimension, [D] float32."""
  low, high = np.asarray(ranges, np.float32)
  width = (high - low) / np.float32(255)
  return np.where(width == 0, np.float32(1), width)


def to_int8(embeddings: np.ndarray, ranges: np.ndarray) -> np.ndarray:
  """Returns the codes of embeddings; what lies out of range gets its end.

  Args:
    embeddings: [n, D] of any float dtype, numpy or mapped.
    ranges: [2, D], of `ranges`.

  Returns:
    [n, D] int8.

  Raises:
    ValueError: if the ranges are of another dimension.
  """
  if np.shape(ranges) != (2, embeddings.shape[1]):
    raise ValueError(
        f'ranges have the shape {np.shape(ranges)}, expected '
        f'(2, {embeddings.shape[1]}) for embeddings {embeddings.shape}.')
  low, width = np.asarray(ranges[0], np.float32), steps(ranges)
  codes = np.empty(embeddings.shape, np.int8)
  for start, part in _parts(embeddings):
    levels = np.clip(np.floor((part - low) / width), 0, 255)
    codes[start:start + len(part)] = levels - 128
  return codes


def from_int8(codes: np.ndarray, ranges: np.ndarray) -> np.ndarray:
  """Returns the embeddings [n, D] float32 that codes [n, D] stand for.

  Each is the lower end of its step, as sentence-transformers has it. Its middle
  would add the same to all scores of a query.
  """
  return ranges[0] + (codes.astype(np.float32) + 128) * steps(ranges)


def to_binary(embeddings: np.ndarray) -> np.ndarray:
  """Returns the bits [n, ceil(D / 8)] uint8 of embeddings [n, D].

  Zeros are among the negative; the bits that fill up the last byte are 0.
  """
  num_rows, dim = embeddings.shape
  packed = np.empty((num_rows, -(-dim // 8)), np.uint8)
  for start, part in _parts(embeddings):
    packed[start:start + len(part)] = np.packbits(part > 0, axis=1)
  return packed


def _parts(embeddings: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (first row, float32 rows) of embeddings that may be mapped."""
  for start in range(0, len(embeddings), _ROWS):
    yield start, np.asarray(embeddings[start:start + _ROWS], np.float32)
