"""Reads the passages of one data set for the questions of another.

The path is a file, or a folder with one, of

  corpus.jsonl[.gz]      rows as `examples` has them: BEIR's, Tevatron's
  psgs_w100.tsv[.gz]     DPR's: id <tab> text <tab> title
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import os
import re

from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data.readers import dpr
from retrieval_jax.data.readers import examples
from retrieval_jax.data.readers import lines
from retrieval_jax.data.readers import located

_FILE = rf'.*\.(?P<kind>jsonl|tsv){lines.COMPRESSED}'
_IN_FOLDER = rf'(?P<name>corpus\.jsonl|psgs_w100\.tsv){lines.COMPRESSED}'


@dataclasses.dataclass(frozen=True)
class OverPassages(located.LocatedReader):
  """A reader's queries over the passages of a path; a `dataset.Reader`.

  Judgements and candidates are the reader's, and name these passages.

  Attributes:
    reader: whose corpus is not read.
    corpus_path: as above.

  Raises:
    DataError: on construction, where there are no passages.
  """
  reader: dataset.Reader
  corpus_path: str

  def __post_init__(self) -> None:
    self._file  # noqa: B018 (looks for it)

  @property
  def name(self) -> str:
    return self.reader.name

  @property
  def path(self) -> str:  # type: ignore[override]
    return getattr(self.reader, 'path', self.name)

  @property
  def splits(self) -> Sequence[str]:
    return self.reader.splits

  @property
  def dropped(self) -> Mapping[str, dict[str, int]]:
    """What the reader left out."""
    return getattr(self.reader, 'dropped', {})

  @functools.cached_property
  def _file(self) -> str:
    found = [self.corpus_path]
    if not os.path.isfile(self.corpus_path):
      found = list(lines.named_files(self.corpus_path, _IN_FOLDER).values())
    if len(found) != 1 or not re.fullmatch(_FILE, found[0]):
      raise errors.DataError(
          f'--config.data.corpus={self.corpus_path}: expected a file of '
          'passages, .jsonl or DPR\'s .tsv, or a folder with one corpus.jsonl '
          f'or psgs_w100.tsv, found {" and ".join(found) or "none"}.')
    return found[0]

  def fingerprint(self) -> str:
    corpus = dataset.hash_files([self._file], 'passages')
    text = f'{self.reader.fingerprint()} over {corpus}'
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def records(self, column: str) -> Iterator[located.Record]:
    """Yields the passages of the file, or the reader's queries."""
    if column == 'queries':
      return ((name, text, self.reader.where(column, row))
              for row, (name, text) in enumerate(self.reader.queries()))
    match = re.fullmatch(_FILE, self._file)
    assert match
    rows = (dpr.read_passages(self._file) if match['kind'] == 'tsv' else
            ((f'{self._file}:{number}', row)
             for number, row in lines.json_lines(self._file)))
    return (examples.target(where, row) for where, row in rows)

  def queries(self) -> Iterator[tuple[str, str]]:
    return self.reader.queries()

  def where(self, column: str, row: int) -> str:
    return (self.reader.where(column, row) if column == 'queries'
            else super().where(column, row))

  def qrels(self, split: str) -> Iterator[tuple[str, str, int, str]]:
    return self.reader.qrels(split)

  def candidates(self, split: str) -> Iterator[
      tuple[str, str, float | None, str]]:
    """Yields the reader's candidates, if it has any."""
    read = getattr(self.reader, 'candidates', None)
    return read(split) if read else iter(())

  def answers(self, split: str) -> Iterator[tuple[str, Sequence[str], str]]:
    """Yields the reader's answers, if it has any."""
    read = getattr(self.reader, 'answers', None)
    return read(split) if read else iter(())
