"""Several data sets joined into one, each of them as it is alone."""

from collections.abc import Iterator, Mapping, Sequence
import hashlib
import json

from retrieval_jax.data import dataset
from retrieval_jax.data import dropped as dropped_lib
from retrieval_jax.data import errors


class Mixture:
  """Joins readers: one corpus, set after set, and ids that begin 'NAME/'.

  A split has the judgements, candidates and answers of all sets that have a
  split of that name. Implements `dataset.Reader`.

  Attributes:
    set_names: of the sets, in the order of their rows.
  """

  def __init__(self, readers: Mapping[str, dataset.Reader]):
    """Wraps the readers of the sets, by name; a name has no '/'."""
    assert not any('/' in name for name in readers)
    self._readers = readers
    self.set_names = tuple(readers)
    self.name = '+'.join(readers)
    self.splits: Sequence[str] = tuple(dict.fromkeys(
        split for reader in readers.values() for split in reader.splits))

  @property
  def dropped(self) -> Mapping[str, dropped_lib.Counts]:
    """What the readers left out, together."""
    total: dict[str, dropped_lib.Counts] = {}
    for reader in self._readers.values():
      for split, counts in getattr(reader, 'dropped', {}).items():
        of_split = total.setdefault(split, {})
        for kind, number in counts.items():
          of_split[kind] = of_split.get(kind, 0) + number
    return total

  def fingerprint(self) -> str:
    """Returns a hash of the names and fingerprints, in their order."""
    facts = [[name, reader.fingerprint()]
             for name, reader in self._readers.items()]
    text = json.dumps(['mixture', *facts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def corpus(self) -> Iterator[tuple[str, str]]:
    """Yields ('NAME/id', text) of all sets, one after another."""
    return self._records('corpus')

  def queries(self) -> Iterator[tuple[str, str]]:
    """Yields ('NAME/id', text) of all sets, one after another."""
    return self._records('queries')

  def qrels(self, split: str) -> Iterator[tuple[str, str, int, str]]:
    """Yields the judgements of the sets that have this split."""
    for name, reader in self._having(split):
      for query_id, corpus_id, grade, where in reader.qrels(split):
        yield f'{name}/{query_id}', f'{name}/{corpus_id}', grade, where

  def candidates(self, split: str) -> Iterator[
      tuple[str, str, float | None, str]]:
    """Yields the candidates of the sets that have any."""
    for name, reader in self._having(split):
      read = getattr(reader, 'candidates', None)
      for query_id, corpus_id, score, where in read(split) if read else ():
        yield f'{name}/{query_id}', f'{name}/{corpus_id}', score, where

  def answers(self, split: str) -> Iterator[tuple[str, Sequence[str], str]]:
    """Yields the answers of the sets that have any."""
    for name, reader in self._having(split):
      read = getattr(reader, 'answers', None)
      for query_id, texts, where in read(split) if read else ():
        yield f'{name}/{query_id}', texts, where

  def where(self, column: str, row: int) -> str:
    """Returns 'file:line' of a row of 'corpus' or 'queries', for errors."""
    *others, last = self._readers.values()
    for reader in others:
      size = sum(1 for _ in getattr(reader, column)())
      if row < size:
        return reader.where(column, row)
      row -= size
    return last.where(column, row)

  def _records(self, column: str) -> Iterator[tuple[str, str]]:
    for name, reader in self._readers.items():
      empty = True
      for one, text in getattr(reader, column)():
        empty = False
        yield f'{name}/{one}', text
      if empty:
        raise errors.DataError(
            f'{reader.where(column, 0)}: expected at least one record in the '
            f'{column} of the set {name!r}, found none. Is the file complete?')

  def _having(self, split: str) -> Iterator[tuple[str, dataset.Reader]]:
    return ((name, reader) for name, reader in self._readers.items()
            if split in reader.splits)
