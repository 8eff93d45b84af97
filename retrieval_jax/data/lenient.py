"""Judgements read leniently: what is refused otherwise is dropped and counted.

Public sets hold judgements of documents that their corpus lacks, pairs that are
judged twice, and queries without an answer. By default each is an error with
file and line, because the cause may be a wrong file. Read leniently,

  * a judgement or candidate of an unknown query or target is dropped;
  * of a pair that is judged several times the highest grade is kept, whichever
    line it stands in;
  * a query of which no relevant target is left is dropped with its other
    judgements, so that it does not count as a failure in any mean; if it has
    answers, it stays as a question;
  * answers to an unknown query are dropped.

Malformed lines and ids that occur twice in the corpus are refused still.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
import functools
import hashlib

from retrieval_jax.data import dataset
from retrieval_jax.data import dropped as dropped_lib


class Lenient:
  """A reader's data without what makes its judgements unusable.

  Implements `dataset.Reader`. Holds the ids of targets and queries, and the
  judgements of a split.
  """

  def __init__(self, reader: dataset.Reader):
    self._reader = reader
    self._dropped: dict[str, dropped_lib.Counts] = {}
    self.name = reader.name
    self.splits = reader.splits

  @property
  def dropped(self) -> Mapping[str, dropped_lib.Counts]:
    """{split: counts}, of the splits that were read to their end."""
    return self._dropped

  def fingerprint(self) -> str:
    """Returns the reader's fingerprint, marked as read leniently."""
    text = f'{self._reader.fingerprint()} lenient'
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def corpus(self) -> Iterator[tuple[str, str]]:
    return self._reader.corpus()

  def queries(self) -> Iterator[tuple[str, str]]:
    return self._reader.queries()

  def where(self, column: str, row: int) -> str:
    return self._reader.where(column, row)

  def qrels(self, split: str) -> Iterator[tuple[str, str, int, str]]:
    """Yields the usable judgements, in the order of their first lines."""
    kept, counts = keep(
        self._reader.qrels(split), self._ids['queries'], self._ids['corpus'])
    self._dropped.setdefault(split, {}).update(counts)
    return iter(kept)

  def candidates(self, split: str) -> Iterator[
      tuple[str, str, float | None, str]]:
    """Yields the candidates of known queries and targets, if there are any."""
    read = getattr(self._reader, 'candidates', None)
    if read is None:
      return
    dropped = 0
    for record in read(split):
      if record[0] in self._ids['queries'] and record[1] in self._ids['corpus']:
        yield record
      else:
        dropped += 1
    if dropped:
      self._dropped.setdefault(split, {})['unknown_candidates'] = dropped

  def answers(self, split: str) -> Iterator[tuple[str, Sequence[str], str]]:
    """Yields the answers to known queries, if there are any."""
    read = getattr(self._reader, 'answers', None)
    if read is None:
      return
    dropped = 0
    for record in read(split):
      if record[0] in self._ids['queries']:
        yield record
      else:
        dropped += 1
    if dropped:
      self._dropped.setdefault(split, {})['unknown_answers'] = dropped

  @functools.cached_property
  def _ids(self) -> dict[str, frozenset[str]]:
    return {column: frozenset(name for name, _ in
                              getattr(self._reader, column)())
            for column in ('queries', 'corpus')}


def keep(records: Iterable[tuple[str, str, int, str]],
         query_ids: Container[str], corpus_ids: Container[str]
         ) -> tuple[Sequence[tuple[str, str, int, str]], dropped_lib.Counts]:
  """Returns the usable judgements of a split, and counts of the others.

  Args:
    records: (query id, corpus id, grade, 'file:line') each.
    query_ids: those that there are.
    corpus_ids: likewise.
  """
  counts = dict.fromkeys(
      ('unknown_queries', 'unknown_targets', 'repeated'), 0)
  kept: dict[tuple[str, str], tuple[int, str]] = {}
  judged = set()
  for query_id, corpus_id, grade, where in records:
    if query_id not in query_ids:
      counts['unknown_queries'] += 1
      continue
    judged.add(query_id)
    if corpus_id not in corpus_ids:
      counts['unknown_targets'] += 1
      continue
    pair = query_id, corpus_id
    if pair in kept:
      counts['repeated'] += 1
      if grade <= kept[pair][0]:
        continue
    kept[pair] = grade, where
  answered = {query_id for (query_id, _), (grade, _) in kept.items()
              if grade > 0}
  counts['without_positive'] = len(judged - answered)
  return [(query_id, corpus_id, *of_pair)
          for (query_id, corpus_id), of_pair in kept.items()
          if query_id in answered], counts
