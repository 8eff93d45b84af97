"""Reads any dataset in the layout of BEIR.

  DIR/corpus.jsonl[.gz]    {"_id": str, "title": str (optional), "text": str}
  DIR/queries.jsonl[.gz]   {"_id": str, "text": str}; ids may be integers
  DIR/qrels/SPLIT.tsv[.gz] query-id <tab> corpus-id <tab> score, with or without
                           a header line; the score is an integer grade
  DIR/candidates/SPLIT.tsv[.gz]  optional, the same three columns: targets to
                           train a query against; the score is a teacher's, any
                           number, or empty
  DIR/answers/SPLIT.jsonl[.gz]  optional, {"_id": query id, "answers": [str]}:
                           strings of which each is a right answer; an empty
                           list counts as no record. Such a split needs no
                           judgements
  DIR/answers.jsonl[.gz]   optional, in place of that folder, the same of all
                           splits: an answer is of the splits that judge its
                           query

Files may be compressed: .gz, .bz2, .xz, .zst. Other fields are ignored, blank
lines skipped. The text of a target is 'title text' where the title is not
empty, as sentence encoders and BEIR's own dense baselines join them. Ids are
any strings: there is no quoting in the judgements, so quote marks, commas and
all of Unicode have no special meaning.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
import dataclasses
import functools
import os
from typing import Any

from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data.readers import answers as answers_lib
from retrieval_jax.data.readers import lines

_SPLIT_FILE = r'(?P<name>.+)\.tsv' + lines.COMPRESSED
_HEADERS = ('query-id', 'query_id', 'qid', 'q_id')


@dataclasses.dataclass(frozen=True)
class BeirReader:
  """Streams a folder in BEIR's layout; implements `dataset.Reader`.

  Attributes:
    path: the folder.

  Raises:
    DataError: on construction where files are missing; while iterating, with
      file and line, where a record is malformed.
  """
  path: str

  def __post_init__(self) -> None:
    if not os.path.isdir(self.path):
      raise errors.DataError(
          f'{self.path}: no such folder; expected one with corpus.jsonl, '
          'queries.jsonl and qrels/SPLIT.tsv (BEIR layout, .gz allowed).')
    self._file('corpus')
    self._file('queries')
    if not self.splits:
      raise errors.DataError(
          f'{os.path.join(self.path, "qrels")}: expected at least one file of '
          'judgements such as train.tsv, found none, nor one of answers such '
          'as ../answers/train.jsonl.')
    if self._all_answers and self._answer_files:
      raise errors.DataError(
          f'{self._all_answers[0]}: expected answers in this file or in '
          f'{os.path.join(self.path, "answers")}, found both. Remove one.')
    for split, path in self._candidate_files.items():
      if split not in self.splits:
        raise errors.DataError(
            f'{path}: candidates of split {split!r}, which has no judgements '
            f'nor answers; there are those of {", ".join(self.splits)}. Rename '
            'the file, or add the judgements.')

  @property
  def name(self) -> str:
    return os.path.basename(os.path.abspath(self.path))

  @functools.cached_property
  def splits(self) -> Sequence[str]:
    return tuple(dict.fromkeys((*self._qrels_files, *self._answer_files)))

  @functools.cached_property
  def _qrels_files(self) -> dict[str, str]:
    return lines.named_files(os.path.join(self.path, 'qrels'), _SPLIT_FILE)

  @functools.cached_property
  def _candidate_files(self) -> dict[str, str]:
    return lines.named_files(
        os.path.join(self.path, 'candidates'), _SPLIT_FILE)

  @functools.cached_property
  def _answer_files(self) -> dict[str, str]:
    return lines.named_files(
        os.path.join(self.path, 'answers'),
        rf'(?P<name>.+)\.jsonl{lines.COMPRESSED}')

  @functools.cached_property
  def _all_answers(self) -> list[str]:
    """The one file of answers of all splits, if it is there."""
    return _files(self.path, 'answers')

  @functools.cached_property
  def _judged(self) -> dict[str, frozenset[str]]:
    """Split -> ids of the queries that it judges; for `_all_answers`."""
    return {split: frozenset(row[0] for row in self.qrels(split))
            for split in self.splits}

  def fingerprint(self) -> str:
    files = [self._file('corpus'), self._file('queries')]
    answers = [*self._answer_files.values(), *self._all_answers]
    return dataset.hash_files(
        [*files, *self._qrels_files.values(), *self._candidate_files.values(),
         *answers],
        'beir', self.name, *self._candidate_files,
        *(['answers', *self._answer_files] if answers else []))

  def corpus(self) -> Iterator[tuple[str, str]]:
    return ((name, text) for name, text, _ in read_records(
        self._file('corpus'), titles=True))

  def queries(self) -> Iterator[tuple[str, str]]:
    return ((name, text) for name, text, _ in read_records(
        self._file('queries'), titles=False))

  def qrels(self, split: str) -> Iterator[tuple[str, str, int, str]]:
    if split not in self.splits:
      raise errors.DataError(
          f'{os.path.join(self.path, "qrels")}: no split {split!r}; there are '
          f'{", ".join(self.splits)}.')
    if split in self._qrels_files:
      yield from read_qrels(self._qrels_files[split])

  def candidates(
      self, split: str) -> Iterator[tuple[str, str, float | None, str]]:
    """Yields (query id, corpus id, score or None, 'file:line'); maybe none."""
    if split in self._candidate_files:
      yield from read_candidates(self._candidate_files[split])

  def answers(self, split: str) -> Iterator[tuple[str, Sequence[str], str]]:
    """Yields (query id, answers, 'file:line'); maybe none."""
    if split in self._answer_files:
      yield from _read_answers(self._answer_files[split])
    for path in self._all_answers:
      for query_id, texts, where in _read_answers(path):
        if query_id in self._judged[split]:
          yield query_id, texts, where
        elif not any(query_id in ids for ids in self._judged.values()):
          raise errors.DataError(
              f'{where}: no split judges query {query_id!r}, so these answers '
              'are of none. Put them into answers/SPLIT.jsonl or remove the '
              'line.')

  def where(self, column: str, row: int) -> str:
    """Returns 'file:line' of a row; re-reads the file, so only for errors."""
    path = self._file(column)
    for i, (line, _) in enumerate(lines.read(path)):
      if i == row:
        return f'{path}:{line}'
    return path

  def _file(self, column: str) -> str:
    found = _files(self.path, column)
    if len(found) != 1:
      count = ' and '.join(map(os.path.basename, found)) or 'neither'
      raise errors.DataError(
          f'{self.path}: expected {column}.jsonl or {column}.jsonl.gz, found '
          f'{count}.')
    return found[0]


def is_data_set(folder: str) -> bool:
  """Returns whether a folder holds a corpus, and so is meant as a data set."""
  return bool(_files(folder, 'corpus'))


def data_sets(folder: str) -> dict[str, str]:
  """Returns {name: path} of the data sets that are folders of `folder`.

  Raises:
    DataError: if there is none.
  """
  found = {name: os.path.join(folder, name)
           for name in (sorted(os.listdir(folder))
                        if os.path.isdir(folder) else ())}
  found = {name: path for name, path in found.items() if is_data_set(path)}
  if not found:
    raise errors.DataError(
        f'{folder}: expected a data set in BEIR layout (corpus.jsonl, '
        'queries.jsonl, qrels/SPLIT.tsv) or a folder of such, found neither.')
  return found


def _files(folder: str, column: str) -> list[str]:
  """Returns the files of 'corpus' or 'queries', compressed or not."""
  return list(lines.named_files(
      folder, rf'(?P<name>{column}\.jsonl{lines.COMPRESSED})').values())


def read_qrels(path: str) -> Iterator[tuple[str, str, int, str]]:
  """Yields (query id, corpus id, grade, 'file:line') of SPLIT.tsv[.gz].

  Raises:
    DataError: with file and line, where a line is malformed.
  """
  for query_id, corpus_id, grade, where in _pairs(path):
    yield query_id, corpus_id, lines.integer(where, grade), where


def read_candidates(
    path: str) -> Iterator[tuple[str, str, float | None, str]]:
  """Yields (query id, corpus id, score or None, 'file:line') of candidates.

  Raises:
    DataError: with file and line, where a line is malformed.
  """
  for query_id, corpus_id, score, where in _pairs(path):
    yield (query_id, corpus_id,
           lines.number(where, score) if score.strip() else None, where)


def _read_answers(path: str) -> Iterator[tuple[str, Sequence[str], str]]:
  for line, record in lines.json_lines(path):
    where = f'{path}:{line}'
    name = lines.identifier(where, record, '_id')
    if record.get('answers') != []:
      yield name, answers_lib.read(where, record), where


def _pairs(path: str) -> Iterator[tuple[str, str, str, str]]:
  """Yields (query id, corpus id, third column, 'file:line'), header skipped."""
  for line, text in lines.read(path):
    fields = text.split('\t')
    if len(fields) != 3:
      raise errors.DataError(_wrong_columns(path, line, text, fields))
    if line > 1 or fields[0].lower() not in _HEADERS:
      yield fields[0], fields[1], fields[2], f'{path}:{line}'


def read_records(path: str, *, titles: bool
                 ) -> Iterator[tuple[str, str, str]]:
  """Yields (id, text, 'file:line') of a file, with titles before the texts."""
  for line, record in lines.json_lines(path):
    where = f'{path}:{line}'
    name, text = _fields(where, record)
    yield name, lines.titled(where, record, text) if titles else text, where


def read_texts(path: str, field: str, known: Set[str]
               ) -> Iterator[tuple[str, str]]:
  """Yields (target id, text) of a JSONL file, several per target allowed.

  Args:
    path: of lines {"_id": target id, field: text}.
    field: the name of the field with the text.
    known: the ids of all targets.

  Raises:
    DataError: with file and line, where a record is malformed or its id is
      not in the corpus.
  """
  for line, record in lines.json_lines(path):
    name, text = _fields(f'{path}:{line}', record, field)
    if name not in known:
      raise errors.DataError(
          f'{path}:{line}: "_id" {lines.shown(name)} is not a target of '
          'the corpus.')
    yield name, text


def _fields(where: str, record: Mapping[str, Any], text_field: str = 'text'
            ) -> tuple[str, str]:
  """Returns (id, text) of a record, checked."""
  return (lines.identifier(where, record, '_id'),
          lines.string(where, record, text_field))


def _wrong_columns(path: str, line: int, text: str, fields: Sequence[str]
                   ) -> str:
  """Says what is wrong with a line that does not have three columns."""
  message = (f'{path}:{line}: expected 3 columns separated by tabs (query-id, '
             f'corpus-id, score), got {len(fields)} in {lines.shown(text)}.')
  if len(fields) == 1:
    for delimiter, name in ((',', 'commas'), (';', 'semicolons'),
                            (None, 'spaces')):
      count = len(text.split(delimiter))
      if count in (3, 4):
        message += f' The line looks separated by {name}; use tabs.'
        break
  elif len(fields) == 4:
    message += (' Four columns are the TREC format (query, iteration, target, '
                'grade): drop the second.')
  return message
