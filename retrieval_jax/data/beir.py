"""Reads any dataset in the layout of BEIR.

  DIR/corpus.jsonl[.gz]    {"_id": str, "title": str (optional), "text": str}
  DIR/queries.jsonl[.gz]   {"_id": str, "text": str}
  DIR/qrels/SPLIT.tsv[.gz] query-id <tab> corpus-id <tab> score, with or without
                           a header line; the score is an integer grade

Other fields are ignored, blank lines skipped. The text of a target is
'title text' where the title is not empty, as sentence encoders and BEIR's own
dense baselines join them. Ids are any strings: there is no quoting in the
judgements, so quote marks, commas and any Unicode stand for themselves.
"""

import dataclasses
import functools
import gzip
import io
import json
import os
import re
from collections.abc import Iterator, Sequence, Set
from typing import Any

from retrieval_jax.data import dataset
from retrieval_jax.data import errors

_SPLIT_FILE = re.compile(r'(?P<split>.+)\.tsv(\.gz)?$')
_HEADERS = ('query-id', 'query_id', 'qid', 'q_id')
# A lone surrogate is valid JSON but no Unicode text: it has no utf-8 form.
_SURROGATE = re.compile('[\ud800-\udfff]')


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

  def __post_init__(self):
    if not os.path.isdir(self.path):
      raise errors.DataError(
          f'{self.path}: no such folder; expected one with corpus.jsonl, '
          'queries.jsonl and qrels/SPLIT.tsv (BEIR layout, .gz allowed).')
    self._file('corpus')
    self._file('queries')
    if not self.splits:
      raise errors.DataError(
          f'{os.path.join(self.path, "qrels")}: expected at least one file of '
          'judgements such as train.tsv, found none.')

  @property
  def name(self) -> str:
    return os.path.basename(os.path.abspath(self.path))

  @functools.cached_property
  def splits(self) -> Sequence[str]:
    return tuple(self._qrels_files)

  @functools.cached_property
  def _qrels_files(self) -> dict[str, str]:
    folder = os.path.join(self.path, 'qrels')
    files = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
      match = _SPLIT_FILE.match(name)
      if match and not name.startswith('.'):
        split, path = match['split'], os.path.join(folder, name)
        if split in files:
          raise errors.DataError(
              f'{path}: split {split!r} is also in {files[split]}; remove one.')
        files[split] = path
    return files

  def fingerprint(self) -> str:
    files = [self._file('corpus'), self._file('queries')]
    return dataset.hash_files([*files, *self._qrels_files.values()], 'beir',
                              self.name)

  def corpus(self) -> Iterator[tuple[str, str]]:
    path = self._file('corpus')
    for line, record in _records(path):
      name, text = _fields(path, line, record)
      title = record.get('title') or ''
      if not isinstance(title, str):
        raise errors.DataError(
            f'{path}:{line}: expected "title" to be a string, got '
            f'{_shown(title)}.')
      yield name, f'{title} {text}' if title else text

  def queries(self) -> Iterator[tuple[str, str]]:
    path = self._file('queries')
    for line, record in _records(path):
      yield _fields(path, line, record)

  def qrels(self, split: str) -> Iterator[tuple[str, str, int, str]]:
    if split not in self._qrels_files:
      raise errors.DataError(
          f'{os.path.join(self.path, "qrels")}: no split {split!r}; there are '
          f'{", ".join(self.splits)}.')
    yield from read_qrels(self._qrels_files[split])

  def where(self, column: str, row: int) -> str:
    """Returns 'file:line' of a row; re-reads the file, so only for errors."""
    path = self._file(column)
    for i, (line, _) in enumerate(_lines(path)):
      if i == row:
        return f'{path}:{line}'
    return path

  def _file(self, column: str) -> str:
    names = [f'{column}.jsonl', f'{column}.jsonl.gz']
    paths = [os.path.join(self.path, name) for name in names]
    found = [path for path in paths if os.path.isfile(path)]
    if len(found) != 1:
      count = 'both' if found else 'neither'
      raise errors.DataError(
          f'{self.path}: expected {names[0]} or {names[1]}, found {count}.')
    return found[0]


def read_qrels(path: str) -> Iterator[tuple[str, str, int, str]]:
  """Yields (query id, corpus id, grade, 'file:line') of SPLIT.tsv[.gz].

  Raises:
    DataError: with file and line, where a line is malformed.
  """
  for line, text in _lines(path):
    fields = text.split('\t')
    if len(fields) != 3:
      raise errors.DataError(_wrong_columns(path, line, text, fields))
    query_id, corpus_id, grade = fields
    if line == 1 and query_id.lower() in _HEADERS:
      continue
    try:
      grade = int(grade)
    except ValueError:
      raise errors.DataError(
          f'{path}:{line}: expected an integer score in the third column, '
          f'got {_shown(grade)}. Round or scale the scores to integer '
          'grades, 0 for not relevant.') from None
    if not -2**31 <= grade < 2**31:
      raise errors.DataError(
          f'{path}:{line}: expected a score that fits 32 bits, got {grade}.')
    yield query_id, corpus_id, grade, f'{path}:{line}'


def read_texts(path: str, field: str, known: Set[str]
               ) -> Iterator[tuple[str, str]]:
  """Yields (target id, text) of a JSONL file, several per target allowed.

  Args:
    path: of lines {"_id": target id, field: text}.
    field: where the text stands.
    known: the ids of all targets.

  Raises:
    DataError: with file and line, where a record is malformed or names no
      target.
  """
  for line, record in _records(path):
    name, text = _fields(path, line, record, field)
    if name not in known:
      raise errors.DataError(
          f'{path}:{line}: "_id" {_shown(name)} is no target of the corpus.')
    yield name, text


def _lines(path: str) -> Iterator[tuple[int, str]]:
  """Yields (line number from 1, line without its end), blank ones skipped."""
  opener = gzip.open if path.endswith('.gz') else open
  number = 0
  try:
    with opener(path, 'rb') as raw:
      # utf-8-sig: spreadsheets put a byte order mark in front. newline='\n':
      # other line ends, such as U+2028, may stand inside a text.
      with io.TextIOWrapper(raw, 'utf-8-sig', newline='\n') as file:
        for number, line in enumerate(file, 1):
          line = line.rstrip('\r\n')
          if line and not line.isspace():
            yield number, line
  except UnicodeDecodeError as error:
    raise errors.DataError(
        f'{path}:{number + 1}: expected utf-8 text at or soon after this '
        f'line, got {error}. Convert the file to utf-8.') from error
  except (EOFError, OSError) as error:
    # gzip tells of a cut or broken file by either.
    raise errors.DataError(
        f'{path}:{number + 1}: cannot read on: {error}. Is the file '
        'complete?') from error


def _records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (line number, JSON object)."""
  for number, line in _lines(path):
    try:
      record = json.loads(line)
    except json.JSONDecodeError as error:
      raise errors.DataError(
          f'{path}:{number}: expected one JSON object per line, got '
          f'{_shown(line)} ({error.msg} at column {error.colno}). Mend or '
          'remove the line.') from None
    if not isinstance(record, dict):
      raise errors.DataError(
          f'{path}:{number}: expected a JSON object with "_id" and "text", '
          f'got {_shown(record)}.')
    yield number, record


def _fields(path: str, line: int, record, text_field: str = 'text'
            ) -> tuple[str, str]:
  """Returns (id, text) of a record, checked."""
  for field in ('_id', text_field):
    if field not in record:
      raise errors.DataError(
          f'{path}:{line}: field "{field}" is missing; the record has '
          f'{", ".join(sorted(record)) or "no fields"}. Add it.')
    value = record[field]
    if not isinstance(value, str):
      raise errors.DataError(
          f'{path}:{line}: expected "{field}" to be a string, got '
          f'{_shown(value)}. Put it in double quotes.')
    if not value.isascii() and _SURROGATE.search(value):
      raise errors.DataError(
          f'{path}:{line}: "{field}" holds a lone surrogate (\\ud800 to '
          '\\udfff), which is no Unicode text. Remove it.')
  name, text = record['_id'], record[text_field]
  if not name or '\t' in name or '\n' in name or '\r' in name:
    raise errors.DataError(
        f'{path}:{line}: expected an "_id" that is not empty and has no tab '
        f'or line end, got {_shown(name)}; judgements could not name it.')
  return name, text


def _wrong_columns(path: str, line: int, text: str, fields) -> str:
  """Says what is wrong with a line that has not three columns."""
  message = (f'{path}:{line}: expected 3 columns separated by tabs (query-id, '
             f'corpus-id, score), got {len(fields)} in {_shown(text)}.')
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


def _shown(value) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'
