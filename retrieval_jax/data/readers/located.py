"""Readers whose targets and queries come with their file and line."""

import abc
from collections.abc import Iterable, Iterator

from retrieval_jax.data import errors

Record = tuple[str, str, str]
"""(id, text, 'file:line')."""


class LocatedReader(abc.ABC):
  """The columns of a `dataset.Reader`, made from records with their places."""

  @property
  @abc.abstractmethod
  def name(self) -> str:
    """Short name for reports."""

  path: str
  """Of the data, by which errors name it."""

  @abc.abstractmethod
  def records(self, column: str) -> Iterator[Record]:
    """Yields the records of 'corpus' or 'queries'."""

  def corpus(self) -> Iterator[tuple[str, str]]:
    """Yields (id, text) of every target."""
    return ((name, text) for name, text, _ in self.records('corpus'))

  def queries(self) -> Iterator[tuple[str, str]]:
    """Yields (id, text) of every query of every split."""
    return ((name, text) for name, text, _ in self.records('queries'))

  def where(self, column: str, row: int) -> str:
    """Returns 'file:line' of a row; reads again, so only for errors."""
    for i, (_, _, where) in enumerate(self.records(column)):
      if i == row:
        return where
    return f'{self.path}, {column}'


def once(records: Iterable[Record], column: str) -> Iterator[Record]:
  """Yields every id once, at its first occurrence; memory holds ids only.

  Raises:
    DataError: if an id comes with two texts.
  """
  seen = {}
  for name, text, where in records:
    digest = hash(text)
    if name not in seen:
      seen[name] = digest
      yield name, text, where
    elif seen[name] != digest:
      raise errors.DataError(
          f'{where}: id {name!r} of the {column} has another text here than '
          'further up. Give one of the two another id, or both the same text.')


def scored_first(scored: Iterable[tuple], unscored: Iterable[tuple]
                 ) -> Iterator[tuple]:
  """Yields all scored candidates, then the unscored ones not among them.

  So a target that is both a negative of a triple and in a run comes once.
  Memory holds one number per scored candidate.
  """
  seen = set()
  for candidate in scored:
    seen.add(hash(candidate[:2]))
    yield candidate
  for candidate in unscored:
    if hash(candidate[:2]) not in seen:
      yield candidate
