"""A reader's data cut down to a few targets, for quick looks and tests."""

from collections.abc import Iterator, Mapping, Sequence
import functools
import hashlib
import itertools

from retrieval_jax.data import dataset
from retrieval_jax.data import dropped as dropped_lib


class Subset:
  """Keeps about `num_targets` targets of a reader, and the queries they serve.

  A target stays when the hash of its id falls below the wanted share; a query
  stays when every one of its judged targets does, so one that has answers and
  is not judged does. The choice depends on ids
  only, so it is the same everywhere and grows monotonically. What the whole
  data is refused for, ids that occur twice or are unknown, a part of it is
  refused for too. Implements `dataset.Reader`.
  """

  def __init__(self, reader: dataset.Reader, num_targets: int):
    """Wraps `reader`; `num_targets` is the expected number kept, at least 1."""
    if num_targets < 1:
      raise ValueError(
          f'--config.data.num_targets={num_targets} must be positive, or 0 for '
          'the whole corpus.')
    self._reader, self._num_targets = reader, num_targets
    self.name = f'{reader.name}[{num_targets}]'
    self.splits = reader.splits

  @property
  def dropped(self) -> Mapping[str, dropped_lib.Counts]:
    """What the reader left out, of the whole data."""
    return getattr(self._reader, 'dropped', {})

  def fingerprint(self) -> str:
    """Returns the reader's fingerprint and the size, hashed."""
    text = f'{self._reader.fingerprint()} subset {self._num_targets}'
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def corpus(self) -> Iterator[tuple[str, str]]:
    """Yields the kept (id, text) pairs."""
    kept = self._kept_targets
    return (pair for pair in self._reader.corpus() if pair[0] in kept)

  def queries(self) -> Iterator[tuple[str, str]]:
    """Yields (id, text) of the kept queries."""
    kept = self._kept_queries()
    return (pair for pair in self._reader.queries() if pair[0] in kept)

  def qrels(self, split: str) -> Iterator[tuple[str, str, int, str]]:
    """Yields the judgements of kept queries."""
    queries = self._kept_queries()
    return (row for row in self._reader.qrels(split) if row[0] in queries)

  def candidates(self, split: str) -> Iterator[
      tuple[str, str, float | None, str]]:
    """Yields the kept candidates of kept queries, where the reader has any."""
    read = getattr(self._reader, 'candidates', None)
    if read is None:
      return
    queries, kept = self._kept_queries(), self._kept_targets
    for row in read(split):
      self._check_known(row[0], row[1], row[3])
      if row[0] in queries and row[1] in kept:
        yield row

  def answers(self, split: str) -> Iterator[tuple[str, Sequence[str], str]]:
    """Yields the answers to kept queries, where the reader has any."""
    read = getattr(self._reader, 'answers', None)
    if read is None:
      return
    queries = self._kept_queries()
    yield from (row for row in read(split) if row[0] in queries)

  def where(self, column: str, row: int) -> str:
    """Returns 'file:line' of a row of 'corpus' or 'queries', for errors."""
    kept = self._kept_targets if column == 'corpus' else self._kept_queries()
    rows = (i for i, (name, _) in enumerate(getattr(self._reader, column)())
            if name in kept)
    return self._reader.where(
        column, next(itertools.islice(rows, row, None), row))

  def _kept_queries(self) -> set[str]:
    judged: dict[str, list[str]] = {}
    for split in self.splits:
      for query_id, target_id, _, where in self._reader.qrels(split):
        # An unknown target is no reason to drop its query in silence.
        self._check_known(query_id, target_id, where)
        judged.setdefault(query_id, []).append(target_id)
      read = getattr(self._reader, 'answers', None)
      for query_id, _, where in read(split) if read else ():
        dataset.row_of(self._rows, 'queries', query_id, where)
        judged.setdefault(query_id, [])
    kept = self._kept_targets
    return {query_id for query_id, targets in judged.items()
            if all(target in kept for target in targets)}

  def _check_known(self, query_id: str, target_id: str, where: str) -> None:
    """Raises DataError unless the whole data has such a query and target."""
    dataset.row_of(self._rows, 'queries', query_id, where)
    dataset.row_of(self._rows, 'corpus', target_id, where)

  @functools.cached_property
  def _rows(self) -> dataset.Rows:
    """The row of every id of the reader; raises where one occurs again."""
    rows: dict[str, dict[str, int]] = {'corpus': {}, 'queries': {}}
    for column, of_column in rows.items():
      for row, (name, _) in enumerate(getattr(self._reader, column)()):
        dataset.add_row(of_column, name, row, self._reader, column)
    return rows

  @functools.cached_property
  def _kept_targets(self) -> set[str]:
    ids = self._rows['corpus']
    share = min(1.0, self._num_targets / max(len(ids), 1))
    kept = {i for i in ids if _unit_hash(i) < share}
    if not kept:
      raise ValueError(
          f'--config.data.num_targets={self._num_targets} keeps none of the '
          f'{len(ids)} targets of {self._reader.name}; raise it.')
    return kept


def _unit_hash(text: str) -> float:
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64
