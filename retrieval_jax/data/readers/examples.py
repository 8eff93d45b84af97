"""Training sets whose rows hold a query, its positives and hard negatives.

A format of this kind consists of rows (of JSON files, of a Hugging Face or a
TFDS set) and a function that parses a row into an `Example`. `ExamplesReader`
makes a `dataset.Reader` of the two. The corpus consists of the passages of all
rows, unless the source has a part named 'corpus'; then each row of that is a
target: an id ("docid", "doc_id", "_id", "id" or "passage_id"), an optional
"title", and the text ("document_text", "text", "contents" or "passage").
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import os
import re
from typing import Any, NamedTuple, Protocol, TypeVar

from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data.readers import lines
from retrieval_jax.data.readers import located

Row = Mapping[str, Any]
Part = TypeVar('Part')
CORPUS = 'corpus'  # the part of a source that holds the targets
# The split of 'biencoder-nq-train.json' is 'train'.
_FILE = r'(?:.*-)?(?P<name>[^-]+?)\.(?:{endings})' + lines.COMPRESSED


class Passage(NamedTuple):
  """A passage of a row; `text` is None where the row has only its id."""
  id: str
  text: str | None
  score: float | None = None


class Example(NamedTuple):
  """The content of a row."""
  query_id: str
  query: str
  positives: Sequence[Passage]
  negatives: Sequence[Passage]
  answers: Sequence[str] = ()


class Rows(Protocol):
  """Where rows come from.

  Attributes:
    path: of the data, by which errors name it.
    name: short name for reports.
    parts: names of the splits, and CORPUS if there is one.
  """
  @property
  def path(self) -> str:
    ...

  @property
  def name(self) -> str:
    ...

  @property
  def parts(self) -> Sequence[str]:
    ...

  def fingerprint(self) -> str:
    """Returns a hash that changes whenever any row does."""

  def rows(self, part: str) -> Iterator[tuple[str, Row]]:
    """Yields ('file:line', row), afresh each call."""


@dataclasses.dataclass(frozen=True)
class ExamplesReader(located.LocatedReader):
  """Reads rows of examples; a `dataset.Reader` with candidates and answers.

  A query or passage that occurs in several rows with the same id and text is
  one. Iterators stream; they hold the ids of what must not occur twice.

  Attributes:
    source: the rows.
    parse: from ('file:line', row) to an Example; raises DataError.
  """
  source: Rows
  parse: Callable[[str, Row], Example]

  @property
  def path(self) -> str:  # type: ignore[override]
    return self.source.path

  @property
  def name(self) -> str:
    return self.source.name

  @property
  def splits(self) -> Sequence[str]:
    return tuple(part for part in self.source.parts if part != CORPUS)

  def fingerprint(self) -> str:
    return self.source.fingerprint()

  def qrels(self, split: str) -> Iterator[tuple[str, str, int, str]]:
    seen = set()
    for where, example in self._examples(split):
      for positive in example.positives:
        pair = example.query_id, positive.id
        if pair not in seen:
          seen.add(pair)
          yield *pair, 1, where

  def candidates(self, split: str) -> Iterator[
      tuple[str, str, float | None, str]]:
    """Yields (query id, corpus id, score or None, 'file:line').

    The negatives of each row, and those of its positives that have a score.
    """
    for where, example in self._examples(split):
      positives = {passage.id for passage in example.positives}
      for passage in (*(p for p in example.positives if p.score is not None),
                      *(p for p in example.negatives if p.id not in positives)):
        yield example.query_id, passage.id, passage.score, where

  def answers(self, split: str) -> Iterator[tuple[str, Sequence[str], str]]:
    """Yields (query id, answers, 'file:line') of the rows that have any."""
    for where, example in self._examples(split):
      if example.answers:
        yield example.query_id, example.answers, where

  def records(self, column: str) -> Iterator[located.Record]:
    found: Iterator[located.Record]
    if column == 'queries':
      found = ((example.query_id, example.query, where)
               for split in self.splits
               for where, example in self._examples(split))
    elif CORPUS in self.source.parts:
      return (target(where, row) for where, row in self.source.rows(CORPUS))
    else:
      found = self._passages()
    return located.once(found, column)

  def _passages(self) -> Iterator[located.Record]:
    num_rows = num_passages = 0
    for split in self.splits:
      for where, example in self._examples(split):
        num_rows += 1
        for passage in (*example.positives, *example.negatives):
          num_passages += 1
          if passage.text is None:
            raise errors.DataError(
                f'{where}: names its passages by ids only, and '
                f'{self.source.name} has no part {CORPUS!r} with their texts. '
                'Add it, such as a file corpus.jsonl beside this one, or name '
                'it by --config.data.corpus.')
          yield passage.id, passage.text, where
    if num_rows and not num_passages:
      raise errors.DataError(
          f'{self.path}: has no passages, and so no corpus. Name one by '
          '--config.data.corpus=PATH (--corpus of experiments.convert), or add '
          'a file corpus.jsonl.')

  def _examples(self, split: str) -> Iterator[tuple[str, Example]]:
    if split not in self.splits:
      raise errors.DataError(
          f'{self.source.name} has no split {split!r}; there are '
          f'{", ".join(self.splits)}.')
    for where, row in self.source.rows(split):
      yield where, self.parse(where, row)


def target(where: str, row: Row) -> located.Record:
  """Returns (id, text, where) of a row of a corpus."""
  name = lines.identifier(where, row, 'docid', 'doc_id', '_id', 'id',
                          'passage_id')
  body = lines.string(where, row, 'document_text', 'text', 'contents',
                      'passage')
  return name, lines.titled(where, row, body), where


def content_id(text: str) -> str:
  """Returns the id of a text that has none: a hash, so equal texts are one."""
  return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def listed(where: str, row: Row, name: str) -> list[Any]:
  """Returns a list field of a row, [] where it is absent or null.

  A list of records may also come as a record of lists, which is how TFDS and
  Hugging Face's Sequence keep it.
  """
  value = row.get(name)
  if value is None:
    return []
  if isinstance(value, Mapping):
    for column in value.values():
      if not isinstance(column, list):
        raise errors.DataError(
            f'{where}: expected "{name}" to be a list of records, or a record '
            f'of lists, got {lines.shown(value)}.')
    if len({len(column) for column in value.values()}) > 1:
      raise errors.DataError(
          f'{where}: the columns of "{name}" differ in length.')
    return [dict(zip(value, item)) for item in zip(*value.values())]
  if not isinstance(value, list):
    raise errors.DataError(
        f'{where}: expected "{name}" to be a list, got {lines.shown(value)}.')
  return value


def listed_records(where: str, row: Row, name: str) -> list[Row]:
  """Returns a field that is a list of records; [] where it is absent."""
  found = listed(where, row, name)
  for item in found:
    if not isinstance(item, Mapping):
      raise errors.DataError(
          f'{where}: expected "{name}" to be a list of records, got '
          f'{lines.shown(item)} in it.')
  return found


def load_parts(path: str, load: Callable[[str], Mapping[str, Part]]
               ) -> dict[str, Part]:
  """Returns {part: what holds its rows} of 'PATH' or 'PATH,PATH OF CORPUS'.

  Args:
    path: one, or two separated by a comma.
    load: from one path to {split: what holds its rows}.

  Raises:
    DataError: for more paths, or a corpus of several splits.
  """
  main, *others = path.split(',')
  if len(others) > 1:
    raise errors.DataError(
        f'{path}: expected one path, or two separated by a comma, got '
        f'{1 + len(others)}.')
  parts = dict(load(main))
  for other in others:
    splits = load(other)
    if len(splits) > 1 and CORPUS not in splits:
      raise errors.DataError(
          f'{other}: expected one split, or one named {CORPUS!r}, got '
          f'{", ".join(splits)}.')
    parts[CORPUS] = splits.get(CORPUS, next(iter(splits.values())))
  return parts


def _json_rows(path: str, inside: str) -> Iterator[tuple[str, Row]]:
  for line, record in lines.json_records(path, inside):
    yield f'{path}:{line}', record


@dataclasses.dataclass(frozen=True)
class FileRows:
  """Rows of files, one file per split; implements `Rows`.

  The split is the file's name without its ending, or what follows the last
  dash in it: 'train' of train.jsonl and of biencoder-nq-train.json.gz. JSON
  files hold one object per line or one array of objects.

  Attributes:
    path: a folder of such files, or one file.
    format: of the reader, for messages and the fingerprint.
    tsv: reads a .tsv file into rows; None where the format has none.
    corpus_name: the file name, without ending, of the CORPUS.
    inside: first field of a file that is one object, which holds the array;
      '' where the format has no such files.

  Raises:
    DataError: on construction where nothing is there to read.
  """
  path: str
  format: str
  tsv: Callable[[str], Iterator[tuple[str, Row]]] | None = None
  corpus_name: str = CORPUS
  inside: str = ''

  def __post_init__(self) -> None:
    if set(self.parts) <= {CORPUS}:
      raise errors.DataError(
          f'{self.path}: expected a file, or a folder with files, of examples '
          f'in {self.format} format, such as train.{self._endings[0]} '
          f'({", ".join(self._endings)}; .gz and others allowed), found none.')

  @property
  def name(self) -> str:
    return os.path.basename(os.path.abspath(self.path))

  @property
  def parts(self) -> Sequence[str]:
    return tuple(self._files)

  @property
  def _endings(self) -> list[str]:
    return ['jsonl', 'json'] + ['tsv'] * (self.tsv is not None)

  @functools.cached_property
  def _files(self) -> dict[str, str]:
    pattern = _FILE.format(endings='|'.join(self._endings))
    if os.path.isfile(self.path):
      match = re.fullmatch(pattern, os.path.basename(self.path))
      return {match['name']: self.path} if match else {}
    files = lines.named_files(self.path, pattern)
    return {CORPUS if name == self.corpus_name else name: path
            for name, path in files.items()}

  def fingerprint(self) -> str:
    return dataset.hash_files(
        [self._files[part] for part in self.parts], self.format, self.name)

  def rows(self, part: str) -> Iterator[tuple[str, Row]]:
    path = self._files[part]
    if self.tsv and re.search(rf'\.tsv{lines.COMPRESSED}$', path):
      return self.tsv(path)
    return _json_rows(path, self.inside)
