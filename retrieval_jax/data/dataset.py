"""Corpus, queries and relevance judgements, prepared once and memory-mapped.

`prepare` turns whatever a reader yields into files of one form; everything
downstream sees corpus ids and query ids as int32 rows of those files.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from typing import Any, Protocol
import warnings

import numpy as np
from numpy.typing import ArrayLike

from retrieval_jax import files
from retrieval_jax.data import cache
from retrieval_jax.data import copies as copies_lib
from retrieval_jax.data import dropped as dropped_lib
from retrieval_jax.data import errors
from retrieval_jax.data import progress as progress_lib
from retrieval_jax.data import sets as sets_lib
from retrieval_jax.data import strings

_FORMAT = 3  # of prepared folders: a change here prepares all data again
Rows = Mapping[str, Mapping[str, int]]
"""'queries' or 'corpus' -> id -> row."""


class Reader(Protocol):
  """Where a dataset comes from. Iterators stream and start afresh each call.

  A reader may also have `candidates(split)`, which yields (query id, corpus id,
  score or None, 'file:line') of the targets that someone proposed for a query:
  hard negatives, and positives that a teacher scored beside them. And
  `answers(split)`, which yields (query id, list of answers, 'file:line') of
  questions: strings of which each is right, none empty. A question may come
  several times, and need not be judged. And `dropped`, what it left out of each
  split, see `lenient`, and a `path`, by which errors name it. And `set_names`,
  see `mixture`.

  Attributes:
    name: short name for reports.
    splits: names of the splits that have judgements or answers.
  """
  @property
  def name(self) -> str:
    ...

  @property
  def splits(self) -> Sequence[str]:
    ...

  def fingerprint(self) -> str:
    """Returns a hash that changes whenever anything the reader yields does."""

  def corpus(self) -> Iterator[tuple[str, str]]:
    """Yields (id, text) of every target."""

  def queries(self) -> Iterator[tuple[str, str]]:
    """Yields (id, text) of every query of every split."""

  def qrels(self, split: str) -> Iterator[tuple[str, str, int, str]]:
    """Yields (query id, corpus id, grade, 'file:line'); maybe none."""

  def where(self, column: str, row: int) -> str:
    """Returns 'file:line' of a row of 'corpus' or 'queries', for errors."""


@dataclasses.dataclass(frozen=True, eq=False)
class Qrels:
  """Judgements of one split, sorted by (query_row, corpus_row).

  A grade above 0 is relevant, 0 is not relevant. A target with a grade below 0
  ("junk") is not an answer either, and measures count it as one that is not
  judged: it keeps its rank and gains nothing. But it is too close to an answer
  to learn from as a negative, so training and mining leave it out like a
  positive.

  Attributes:
    query_rows: [J] int32.
    corpus_rows: [J] int32.
    grades: [J] int32.
  """
  query_rows: np.ndarray
  corpus_rows: np.ndarray
  grades: np.ndarray

  @classmethod
  def from_triples(cls, triples: ArrayLike) -> 'Qrels':
    """Builds from rows (query_row, corpus_row, grade) in any order."""
    triples = np.asarray(triples, np.int32).reshape(-1, 3)
    order = np.lexsort((triples[:, 1], triples[:, 0]))
    return cls(*np.ascontiguousarray(triples[order].T))

  def queries(self) -> np.ndarray:
    """Returns the sorted rows [Q] int32 of queries with a positive."""
    return self._relevant[0]

  def positives(self, query_row: int) -> np.ndarray:
    """Returns the corpus rows with grade > 0 of one query; maybe none."""
    return _listed(self._relevant, query_row)

  def padded_positives(self, query_rows: np.ndarray) -> np.ndarray:
    """Returns corpus rows with grade > 0, padded with -1.

    Args:
      query_rows: [n] integers.

    Returns:
      [n, E] int32, E = the most positives that any query of the split has,
      whichever queries are asked for, so that shapes are static.
    """
    return _padded(self._relevant, query_rows)

  def padded_known(self, query_rows: np.ndarray) -> np.ndarray:
    """Returns corpus rows that must not be negatives: grade != 0.

    Like `padded_positives`, with the targets of negative grade added.
    """
    return _padded(self._known, query_rows)

  def between(self, start: int, stop: int) -> 'Qrels':
    """Returns those of the query rows start .. stop - 1."""
    part = slice(*np.searchsorted(self.query_rows, [start, stop]))
    return Qrels(
        self.query_rows[part], self.corpus_rows[part], self.grades[part])

  def by_text(self, copies: copies_lib.Copies) -> 'Qrels':
    """Returns these with the first target of a text in place of its copies.

    Of a query's grades of one text a positive counts before a negative, and
    that before 0.
    """
    if not len(copies.ids):
      return self
    corpus_rows = copies.firsts_of(self.corpus_rows)
    order = np.lexsort((-self.grades, self.grades < 0, self.grades == 0,
                        corpus_rows, self.query_rows))
    pairs = _pairs(self.query_rows, corpus_rows)[order]
    kept = order[np.append(True, pairs[1:] != pairs[:-1])[:len(order)]]
    return Qrels(self.query_rows[kept], corpus_rows[kept], self.grades[kept])

  @functools.cached_property
  def _relevant(self) -> '_Grouped':
    return self._grouped(self.grades > 0)

  @functools.cached_property
  def _known(self) -> '_Grouped':
    return self._grouped(self.grades != 0)

  def _grouped(self, keep: np.ndarray) -> '_Grouped':
    rows, starts = np.unique(self.query_rows[keep], return_index=True)
    corpus_rows = self.corpus_rows[keep]
    return rows, np.append(starts, len(corpus_rows)), corpus_rows


_COLUMNS = ('query_row', 'corpus_row', 'score')
_CANDIDATE = np.dtype(list(zip(_COLUMNS, (np.int32, np.int32, np.float32))))
# Sorted rows [Q], starts [Q + 1] and the items of each row, one after another.
_Grouped = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class CandidatePairs:
  """Targets proposed for the queries of a split, with a teacher's scores.

  Sorted by (query_row, corpus_row), each pair once.

  Attributes:
    query_rows: [C] int32.
    corpus_rows: [C] int32.
    scores: [C] float32, nan where the teacher gave none.
  """
  query_rows: np.ndarray
  corpus_rows: np.ndarray
  scores: np.ndarray

  def negatives(self, qrels: Qrels) -> 'CandidatePairs':
    """Returns those whose pair is not known: neither relevant nor junk."""
    return self._chosen(~self._judged(qrels, qrels.grades != 0))

  def positives(self, qrels: Qrels) -> 'CandidatePairs':
    """Returns those that the judgements call relevant."""
    return self._chosen(self._judged(qrels, qrels.grades > 0))

  def by_text(self, copies: copies_lib.Copies) -> 'CandidatePairs':
    """Returns these with the first target of a text in place of its copies.

    Where several of a query's candidates have one text, the first of those
    with a score counts.
    """
    if not len(copies.ids):
      return self
    corpus_rows = copies.firsts_of(self.corpus_rows)
    order = np.lexsort((self.corpus_rows, np.isnan(self.scores), corpus_rows,
                        self.query_rows))
    pairs = _pairs(self.query_rows, corpus_rows)[order]
    kept = order[np.append(True, pairs[1:] != pairs[:-1])[:len(order)]]
    return CandidatePairs(
        self.query_rows[kept], corpus_rows[kept], self.scores[kept])

  def padded_places(self, query_rows: np.ndarray) -> np.ndarray:
    """Returns the places of the candidates of queries, padded with -1.

    Args:
      query_rows: [n] integers.

    Returns:
      [n, W] int32, W = the most candidates that any query has.
    """
    return _padded(self._places, query_rows)

  def scores_of(self, query_rows: np.ndarray,
                corpus_rows: np.ndarray) -> np.ndarray:
    """Returns the scores [n] float32 of pairs; nan where there is none."""
    if not len(self.scores):
      return np.full(len(query_rows), np.nan, np.float32)
    pairs = _pairs(query_rows, corpus_rows)
    at = np.minimum(np.searchsorted(self._sorted_pairs, pairs),
                    len(self.scores) - 1)
    return np.where(self._sorted_pairs[at] == pairs, self.scores[at],
                    np.float32(np.nan))

  @functools.cached_property
  def _sorted_pairs(self) -> np.ndarray:
    return _pairs(self.query_rows, self.corpus_rows)

  @functools.cached_property
  def _places(self) -> _Grouped:
    rows, starts = np.unique(self.query_rows, return_index=True)
    return rows, np.append(starts, len(self.scores)), np.arange(
        len(self.scores))

  def _judged(self, qrels: Qrels, keep: np.ndarray) -> np.ndarray:
    """Returns [C] bool, whether a pair is one of the judgements to keep."""
    return np.isin(self._sorted_pairs, _pairs(
        qrels.query_rows[keep], qrels.corpus_rows[keep]))

  def _chosen(self, keep: np.ndarray) -> 'CandidatePairs':
    return CandidatePairs(
        self.query_rows[keep], self.corpus_rows[keep], self.scores[keep])


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
  """What is a right answer to the questions of a split.

  Attributes:
    query_rows: [Q] int32, rising, the queries that have answers.
    starts: [Q + 1] int64, where the texts of each begin.
    texts: of all answers, one question after another; as the data has them.
      Those before the first start and behind the last belong to others.
  """
  query_rows: np.ndarray
  starts: np.ndarray
  texts: Sequence[str]

  @classmethod
  def from_lists(cls, lists: Mapping[int, Sequence[str]]) -> 'Answers':
    """Builds from query row -> its answers."""
    rows = sorted(lists)
    return cls(np.array(rows, np.int32),
               np.cumsum([0, *(len(lists[row]) for row in rows)]),
               [text for row in rows for text in lists[row]])

  def of(self, query_row: int) -> list[str]:
    """Returns the answers to one query; maybe none."""
    i = int(np.searchsorted(self.query_rows, query_row))
    if i == len(self.query_rows) or self.query_rows[i] != query_row:
      return []
    return list(self.texts[int(self.starts[i]):int(self.starts[i + 1])])

  def between(self, start: int, stop: int) -> 'Answers':
    """Returns those to the query rows start .. stop - 1."""
    first, last = np.searchsorted(self.query_rows, [start, stop])
    return Answers(self.query_rows[first:last], self.starts[first:last + 1],
                   self.texts)


def _pairs(query_rows: np.ndarray, corpus_rows: np.ndarray) -> np.ndarray:
  """Returns one int64 per pair, in the order of (query_row, corpus_row)."""
  return (np.asarray(query_rows, np.int64) << 32) | corpus_rows


def _listed(grouped: _Grouped, query_row: int) -> np.ndarray:
  rows, starts, corpus_rows = grouped
  i = np.searchsorted(rows, query_row)
  if i == len(rows) or rows[i] != query_row:
    return corpus_rows[:0]
  return corpus_rows[starts[i]:starts[i + 1]]


def _padded(grouped: _Grouped, query_rows: ArrayLike) -> np.ndarray:
  rows, starts, corpus_rows = grouped
  query_rows = np.asarray(query_rows)
  if not len(rows):
    return np.full([len(query_rows), 1], -1, np.int32)
  counts = np.diff(starts)
  i = np.minimum(np.searchsorted(rows, query_rows), len(rows) - 1)
  count = np.where(rows[i] == query_rows, counts[i], 0)
  slots = np.arange(counts.max())
  listed = slots < count[:, None]
  index = np.where(listed, starts[i][:, None] + slots, 0)
  return np.where(listed, corpus_rows[index], -1).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Collection:
  """Targets, queries and judgements: what is searched, mined and measured.

  Attributes:
    name: short name for reports and messages.
    corpus_ids: string ids by corpus row.
    query_ids: string ids by query row.
    qrels: split name -> judgements; none in a split of answers alone.
    corpus_texts: texts by corpus row; None where only embeddings are known.
    query_texts: texts by query row; likewise.
    candidates: split name -> candidates, of the splits that have any.
    answers: split name -> answers, likewise.
    copies: targets of equal text; None where only embeddings are known.
    dropped: split name -> what was left out of it, where data were read
      leniently.
    sets: which rows are whose, where several data sets were joined; else None.
  """
  name: str
  corpus_ids: Sequence[str]
  query_ids: Sequence[str]
  qrels: Mapping[str, Qrels]
  corpus_texts: Sequence[str] | None = None
  query_texts: Sequence[str] | None = None
  candidates: Mapping[str, CandidatePairs] = dataclasses.field(
      default_factory=dict)
  answers: Mapping[str, Answers] = dataclasses.field(default_factory=dict)
  copies: copies_lib.Copies | None = None
  dropped: Mapping[str, dropped_lib.Counts] = dataclasses.field(
      default_factory=dict)
  sets: sets_lib.Sets | None = None

  @functools.cached_property
  def parts(self) -> 'dict[str, Collection]':
    """Set name -> this, with the judgements and answers of that alone.

    Rows and texts stay as they are. {} where there is one data set.
    """
    if self.sets is None:
      return {}
    parts = {}
    for i, name in enumerate(self.sets.names):
      rows = self.sets.queries(i)
      answers = {split: of_split.between(rows.start, rows.stop)
                 for split, of_split in self.answers.items()}
      parts[name] = dataclasses.replace(
          self, name=name, sets=None, qrels={
              split: of_split.between(rows.start, rows.stop)
              for split, of_split in self.qrels.items()},
          answers={split: of_split for split, of_split in answers.items()
                   if len(of_split.query_rows)})
    return parts

  def queries_of(self, split: str) -> np.ndarray:
    """Returns the rows [n], rising, of the queries that a split asks.

    They are those with a positive or an answer.
    """
    rows = self.qrels[split].queries()
    if split not in self.answers:
      return rows
    return np.union1d(rows, self.answers[split].query_rows)

  def answers_of(self, split: str) -> dict[str, list[str]]:
    """Returns query id -> its answers; none in a split without answers."""
    if split not in self.answers:
      return {}
    of_split = self.answers[split]
    return {self.query_ids[row]: of_split.of(row)
            for row in of_split.query_rows.tolist()}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RetrievalDataset(Collection):
  """A collection with texts that `prepare` wrote, in memory only where read.

  Attributes:
    folder: where the prepared files are.
    fingerprint: hash of the source; key caches by it.
    corpus_fingerprint: hash of the ids and texts of the corpus, in their order.
  """
  corpus_texts: Sequence[str]
  query_texts: Sequence[str]
  folder: str
  fingerprint: str
  corpus_fingerprint: str
  copies: copies_lib.Copies

  @property
  def distinct_ids(self) -> np.ndarray:
    """The corpus rows [n] int64 of the first target of each text."""
    return self.copies.distinct(len(self.corpus_ids))

  @functools.cached_property
  def by_text(self) -> 'RetrievalDataset':
    """This data set as training sees it: a text is one target.

    Judgements and candidates name the first target of each text. Its copies
    are neither drawn nor remembered, for a copy of a positive is no negative.
    """
    of = lambda splits: {
        split: part.by_text(self.copies) for split, part in splits.items()}
    return dataclasses.replace(
        self, qrels=of(self.qrels), candidates=of(self.candidates))


def hash_files(paths: Iterable[str], *facts: str) -> str:
  """Returns a hash of the names and contents of files and of some facts.

  Contents, not times and sizes: a copy that keeps its time, a checkout or an
  edit within the clock's grain would otherwise pass for the old file. It
  costs about a second per gigabyte.
  """
  digest = hashlib.blake2b(digest_size=12)
  digest.update(json.dumps(facts).encode())
  for path in paths:
    with open(path, 'rb') as file:
      content = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
    digest.update(json.dumps([os.path.basename(path), content]).encode())
  return digest.hexdigest()


def prepare(source: Reader, cache_folder: str, *,
            progress: bool = True) -> RetrievalDataset:
  """Converts a source once into a folder of `cache_folder` and maps it.

  The fingerprint hashes the contents of the source's files, so a changed file
  is prepared afresh and an unchanged one, wherever it is, is reused. So is one
  whose files here are damaged, with a warning; see `files.damage`. Texts
  stream; while preparing, the string ids are held in memory.

  Args:
    source: any `Reader`.
    cache_folder: made if absent. Folders in it may be deleted at any time.
    progress: shows progress on stderr.

  Returns:
    The memory-mapped dataset.

  Raises:
    DataError: on malformed input: bad record, duplicate id, unknown id in the
      judgements, candidates or answers, empty corpus, query without a positive
      or an answer. Nothing half-written stays behind.
    OSError: naming --config.data.cache, where that folder cannot be written.
  """
  fingerprint = source.fingerprint()
  folder = os.path.join(cache_folder, f'{fingerprint}-{_FORMAT}')
  cache.folder(folder, lambda temporary: _write(
      source, temporary, fingerprint, progress))
  dataset = load(folder)
  dropped_lib.warn(dataset.name, dataset.dropped)
  return dataset


def load(folder: str) -> RetrievalDataset:
  """Maps a folder that `prepare` wrote."""
  facts = files.read_json(os.path.join(folder, 'dataset.json'))
  column = lambda name: strings.StringArray(os.path.join(folder, name))
  qrels = {
      split: Qrels(*np.load(os.path.join(folder, f'qrels_{i}.npy'),
                            mmap_mode='r'))
      for i, split in enumerate(facts['splits'])}
  candidates, answers = {}, {}
  for i, split in enumerate(facts['splits']):
    path = os.path.join(folder, f'candidates_{i}.npy')
    if os.path.exists(path):
      records = np.load(path, mmap_mode='r')
      candidates[split] = CandidatePairs(
          *(records[name] for name in _COLUMNS))
    path = os.path.join(folder, f'answers_{i}')
    if os.path.exists(f'{path}.npy'):
      query_rows, counts = np.load(f'{path}.npy')
      answers[split] = Answers(
          query_rows, np.append(0, np.cumsum(counts, dtype=np.int64)),
          strings.StringArray(path))
  return RetrievalDataset(
      name=facts['name'], corpus_ids=column('corpus_ids'),
      corpus_texts=column('corpus_texts'), query_ids=column('query_ids'),
      query_texts=column('query_texts'), qrels=qrels, folder=folder,
      fingerprint=facts['fingerprint'],
      corpus_fingerprint=facts['corpus_fingerprint'], candidates=candidates,
      answers=answers,
      copies=copies_lib.Copies(*np.load(os.path.join(folder, 'copies.npy'))),
      dropped=facts.get('dropped', {}),
      sets=sets_lib.Sets(**facts['sets']) if facts.get('sets') else None)


def _sets(names: Sequence[str] | None, rows: Rows) -> dict[str, Any] | None:
  """Returns the fields of Sets, as JSON; None where none were joined."""
  if names is None:
    return None
  # The ids of a set begin with its name, which has no slash.
  sizes = [collections.Counter(one.partition('/')[0] for one in rows[column])
           for column in ('corpus', 'queries')]
  return {'names': names, **{
      f'{kind}_starts': [0, *itertools.accumulate(size[name] for name in names)]
      for kind, size in zip(('corpus', 'query'), sizes)}}


def _write(source: Reader, folder: str, fingerprint: str, progress: bool
           ) -> None:
  """Writes all files of a prepared dataset."""
  rows, fingerprints = {}, {}
  for column, prefix in (('corpus', 'corpus'), ('queries', 'query')):
    records = progress_lib.track(
        getattr(source, column)(), f'preparing {source.name}: {column}',
        show=progress)
    rows[column], fingerprints[column] = _write_records(
        source, records, column, os.path.join(folder, prefix))
  files.save_array(
      os.path.join(folder, 'copies.npy'), np.stack(copies_lib.find(
          strings.StringArray(os.path.join(folder, 'corpus_texts')))))
  for i, split in enumerate(source.splits):
    answers = _read_answers(source, split, rows)
    if len(answers.query_rows):
      path = os.path.join(folder, f'answers_{i}')
      strings.write_strings(path, answers.texts)
      files.save_array(f'{path}.npy', np.stack(
          [answers.query_rows, np.diff(answers.starts).astype(np.int32)]))
    qrels = _read_qrels(source, split, rows, answers)
    files.save_array(os.path.join(folder, f'qrels_{i}.npy'), np.stack(
        [qrels.query_rows, qrels.corpus_rows, qrels.grades]))
    candidates = _read_candidates(source, split, rows)
    if len(candidates):
      files.save_array(
          os.path.join(folder, f'candidates_{i}.npy'), candidates)
  files.write_json(os.path.join(folder, 'dataset.json'), {
      'name': source.name, 'fingerprint': fingerprint,
      'corpus_fingerprint': fingerprints['corpus'],
      'splits': list(source.splits),
      'dropped': getattr(source, 'dropped', {}),
      'sets': _sets(getattr(source, 'set_names', None), rows)})


def _write_records(source: Reader, records: Iterable[tuple[str, str]],
                   column: str, prefix: str) -> tuple[dict[str, int], str]:
  """Writes ids and texts of one column.

  Returns:
    The row of each id, and a hash of ids and texts in their order.
  """
  rows: dict[str, int] = {}
  digest = hashlib.blake2b(digest_size=12)

  def texts() -> Iterator[str]:
    for row, (name, text) in enumerate(records):
      add_row(rows, name, row, source, column)
      for part in (name.encode(), text.encode()):
        digest.update(len(part).to_bytes(8, 'little'))
        digest.update(part)
      yield text

  strings.write_strings(f'{prefix}_texts', texts())
  if not rows:
    raise errors.DataError(
        f'{source.where(column, 0)}: expected at least one record in the '
        f'{column} of {source.name}, found none. Is the file complete?')
  strings.write_strings(f'{prefix}_ids', rows)
  _warn_of_lookalikes(source.name, column, rows)
  return rows, digest.hexdigest()


def _warn_of_lookalikes(name: str, column: str, ids: Mapping[str, int]
                        ) -> None:
  """Warns where two different ids look the same; they stay two."""
  seen: dict[str, str] = {}
  for one in ids:
    if one.isascii():  # of two that look the same, one at least is not
      continue
    looks = errors.appearance(one)
    other = seen.setdefault(looks, looks if looks in ids else one)
    if other != one:
      warnings.warn(
          f'{name}: two ids of the {column} look the same but differ, and stay '
          f'two: {ascii(other)} and {ascii(one)}. There may be more.',
          stacklevel=2)
      return


def add_row(rows: dict[str, int], name: str, row: int, source: Reader,
            column: str) -> None:
  """Notes the row of an id.

  Args:
    rows: id -> row; gets the new one.
    name: id.
    row: its row.
    source: of the rows, which knows their lines.
    column: 'corpus' or 'queries'.

  Raises:
    DataError: with both places, where the id has a row already.
  """
  if rows.setdefault(name, row) != row:
    raise errors.DataError(
        f'{source.where(column, row)}: id {name!r} occurs again (first at '
        f'{source.where(column, rows[name])}); ids must be unique within '
        f'the {column}. Remove or rename one of the two.')


def read_qrels(records: Iterable[tuple[str, str, int, str]],
               row_of: Callable[[str, str, str], int]) -> Qrels:
  """Returns judgements by row; a pair that is judged twice alike counts once.

  Args:
    records: (query id, corpus id, grade, 'file:line') each.
    row_of: from ('queries' or 'corpus', id, 'file:line') to the id's row;
      raises DataError where there is none.

  Raises:
    DataError: with file and line, where a pair is judged twice with different
      grades.
  """
  grades: dict[tuple[int, int], int] = {}
  for query_id, corpus_id, grade, where in records:
    pair = (row_of('queries', query_id, where),
            row_of('corpus', corpus_id, where))
    if grades.setdefault(pair, grade) != grade:
      raise errors.DataError(
          f'{where}: query {query_id!r} and target {corpus_id!r} are judged '
          f'{grade} here but {grades[pair]} further up. Keep one of the two.')
  pairs = np.fromiter((x for pair in grades for x in pair), np.int32)
  values = np.fromiter(grades.values(), np.int32)
  return Qrels.from_triples(np.column_stack([pairs.reshape(-1, 2), values]))


def _read_answers(source: Reader, split: str, rows: Rows) -> Answers:
  """Returns the answers of a split, of each question each string once."""
  read = getattr(source, 'answers', None)
  lists: dict[int, dict[str, None]] = {}
  for query_id, texts, where in read(split) if read else ():
    of_query = lists.setdefault(row_of(rows, 'queries', query_id, where), {})
    of_query.update(dict.fromkeys(texts))
  return Answers.from_lists({row: list(texts) for row, texts in lists.items()})


def _read_qrels(source: Reader, split: str, rows: Rows, answers: Answers
                ) -> Qrels:
  """Returns the judgements of a split; its queries have what `answers` lacks.

  That is, each has a positive or an answer.
  """
  qrels = read_qrels(source.qrels(split), functools.partial(row_of, rows))
  if not len(qrels.grades) and not len(answers.query_rows):
    raise errors.DataError(
        f'{getattr(source, "path", source.name)}: split {split!r} has no '
        'judgements. Add some or remove the file.')
  judged = np.unique(qrels.query_rows)
  without = set(np.setdiff1d(
      judged, np.append(qrels.queries(), answers.query_rows)).tolist())
  if without:
    places: dict[str, str] = {}  # in the order of the file
    for query_id, _, _, where in source.qrels(split):
      if rows['queries'][query_id] in without:
        places.setdefault(query_id, where)
    listed = ', '.join(map(repr, itertools.islice(places, 5)))
    raise errors.DataError(
        f'{next(iter(places.values()))}: {len(without)} of {len(judged)} '
        f'queries of split {split!r} have no target with a score above 0 '
        f'(first: {listed}). Add a positive or remove their lines.')
  return qrels


def _read_candidates(source: Reader, split: str, rows: Rows) -> np.ndarray:
  """Returns the candidates of a split, checked and sorted, [C] _CANDIDATE."""
  read = getattr(source, 'candidates', None)
  if read is None:
    return np.empty([0], _CANDIDATE)
  # Numbers only, for there may be hundreds of candidates per query.
  records = np.fromiter(
      ((row_of(rows, 'queries', query_id, where),
        row_of(rows, 'corpus', corpus_id, where),
        np.nan if score is None else score)
       for query_id, corpus_id, score, where in read(split)), _CANDIDATE)
  if not len(records):
    return records
  pairs = _pairs(records['query_row'], records['corpus_row'])
  # Of a pair that occurs several times the records with a score come first.
  order = np.lexsort((np.isnan(records['score']), pairs))
  records, pairs = records[order], pairs[order]
  again = np.append(False, pairs[1:] == pairs[:-1])
  scores = records['score']
  differs = np.flatnonzero(
      again & ~np.isnan(scores) & (scores != np.roll(scores, 1)))
  if len(differs):
    lines = sorted(order[differs[0] - 1:differs[0] + 1])
    (_, _, _, first), (query_id, corpus_id, _, second) = (
        next(itertools.islice(read(split), line, None)) for line in lines)
    raise errors.DataError(
        f'{second}: target {corpus_id!r} is a candidate of query {query_id!r} '
        f'with another score than at {first}. Keep one of the two.')
  return records[~again]


def row_of(rows: Rows, column: str, name: str, where: str) -> int:
  """Returns the row of an id, or raises where it is unknown."""
  if name not in rows[column]:
    raise errors.DataError(
        f'{where}: id {name!r} is not in the {column} ({len(rows[column])} '
        f'ids, the first is {next(iter(rows[column]))!r}).'
        f'{errors.lookalike(name, rows[column])} Add the record to the '
        f'{column} or remove this line.')
  return rows[column][name]
