"""Memory-mapped sequences of strings: one utf-8 blob and its offsets.

A list of a few million Python strings costs gigabytes and seconds to load;
these cost nothing until they are read.
"""

import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from retrieval_jax import files

_CHUNK = 4096  # strings decoded per read of the blob while iterating


def _paths(folder_prefix: str) -> tuple[str, str]:
  return f'{folder_prefix}.utf8', f'{folder_prefix}.offsets.npy'


def write_strings(folder_prefix: str, strings: Iterable[str]) -> int:
  """Writes strings to `folder_prefix`.utf8 and .offsets.npy; returns how many.

  Memory is 8 bytes per string. Not atomic: callers write into a temporary
  folder that they rename.
  """
  blob_path, offsets_path = _paths(folder_prefix)
  offsets, end = array.array('q', [0]), 0
  with open(blob_path, 'wb') as blob:
    for string in strings:
      end += blob.write(string.encode('utf-8'))
      offsets.append(end)
  files.save_array(offsets_path, np.frombuffer(offsets, np.int64))
  return len(offsets) - 1


class StringArray(Sequence[str]):
  """Strings that `write_strings` wrote, memory-mapped.

  `strings[i]` is a str; a slice or an integer array gives a list of str.
  """

  def __init__(self, folder_prefix: str):
    """Maps the two files at `folder_prefix`."""
    blob_path, offsets_path = _paths(folder_prefix)
    self._prefix = folder_prefix
    self._offsets = np.load(offsets_path, mmap_mode='r')
    # An empty file cannot be mapped.
    self._blob = (np.memmap(blob_path, np.uint8, 'r') if self._offsets[-1]
                  else np.zeros([0], np.uint8))

  def __len__(self) -> int:
    return len(self._offsets) - 1

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      start, stop, step = index.indices(len(self))
      if step == 1:
        return self._run(start, max(start, stop))
      return [self[i] for i in range(start, stop, step)]
    if np.ndim(index):
      return [self[i] for i in np.asarray(index).tolist()]
    index = int(index)
    if not -len(self) <= index < len(self):
      raise IndexError(
          f'string {index} of {len(self)} in {self._prefix} was asked for.')
    index %= len(self)
    return self._run(index, index + 1)[0]

  def __iter__(self) -> Iterator[str]:
    for start in range(0, len(self), _CHUNK):
      yield from self._run(start, min(start + _CHUNK, len(self)))

  def __repr__(self) -> str:
    return f'StringArray({self._prefix!r}, {len(self)} strings)'

  def __reduce__(self) -> tuple[type['StringArray'], tuple[str]]:
    return StringArray, (self._prefix,)

  def _run(self, start: int, stop: int) -> list[str]:
    """Returns strings [start, stop), with one read of the blob."""
    offsets = self._offsets[start:stop + 1].tolist()
    first = offsets[0]
    blob = self._blob[first:offsets[-1]].tobytes()
    return [blob[a - first:b - first].decode('utf-8')
            for a, b in zip(offsets, offsets[1:])]


class Part(Sequence[str]):
  """Consecutive strings of a sequence, read where they are asked for."""

  def __init__(self, strings: Sequence[str], rows: range):
    """Takes the strings at `rows`."""
    self._strings, self._rows = strings, rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: Any) -> Any:
    rows = self._rows[index]
    if isinstance(rows, range):
      return self._strings[rows.start:rows.stop:rows.step]
    return self._strings[rows]

  def __iter__(self) -> Iterator[str]:
    for start in range(0, len(self), _CHUNK):
      yield from self[start:start + _CHUNK]


class Prefixed(Sequence[str]):
  """Strings behind the prefix of their group, read where they are asked for."""

  def __init__(self, strings: Sequence[str], prefixes: Sequence[str],
               starts: np.ndarray):
    """Puts prefix i before the strings starts[i] .. starts[i + 1] - 1."""
    self._strings, self._prefixes, self._starts = strings, prefixes, starts

  def __len__(self) -> int:
    return len(self._strings)

  def __getitem__(self, index: Any) -> Any:
    rows = range(len(self))[index]
    groups = np.searchsorted(self._starts, rows, side='right') - 1
    if isinstance(rows, range):
      return [self._prefixes[group] + text for group, text in zip(
          groups.tolist(), self._strings[rows.start:rows.stop:rows.step])]
    return self._prefixes[int(groups)] + self._strings[rows]
