r"""Reads the files that MS MARCO and TREC publish.

  DIR/collection.tsv       corpus-id <tab> text, or corpus-id title text, or
                           corpus-id url title text (msmarco-docs.tsv)
  DIR/queries*.tsv         query-id <tab> text; all such files
  DIR/qrels.SPLIT.tsv      query-id 0 corpus-id grade, as TREC's qrels
  DIR/triples.SPLIT*.tsv   query-id positive-id negative-id, or
  DIR/qidpidtriples.SPLIT*.tsv   the same
  DIR/run*.SPLIT*.tsv      a TREC run: query-id Q0 corpus-id rank score tag, or
                           MS MARCO's: query-id corpus-id rank

All may be compressed (.gz, .bz2, .xz, .zst), and those of judgements, triples
and runs may end in .txt instead of .tsv; their columns are separated by tabs or
spaces. The first two may begin with a line of names, such as id, title, text;
the text of a target is 'title text', its url is left out. So 'dev.small' is the
split of qrels.dev.small.tsv; its queries may be in any of the query files, even
in several. In place of the first two, corpus.jsonl and queries.jsonl in BEIR
layout will do.

Triples and runs are optional, and give the candidates of a query: the negatives
of the triples, and everything in the runs, with its score where there is one.
A file belongs to the split with the longest name that continues its own:
triples.train.small.tsv to 'train'. Triples of texts are read by `pairs`.

Source: Bajaj et al., 2016, and trec_eval's description of its formats.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import os
import re

from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data.readers import beir
from retrieval_jax.data.readers import lines
from retrieval_jax.data.readers import located

_Candidate = tuple[str, str, float | None, str]  # the score may be unknown
_ENDING = r'\.(tsv|txt)' + lines.COMPRESSED
_TRIPLES = 'query-id positive-id negative-id'
_LAYOUTS = {'corpus': ('id text', 'id title text', 'id url title text'),
            'queries': ('id text',)}
# How the columns of these are called in files that begin with their names.
_COLUMNS = {
    'id': 'id _id pid did qid docid doc_id passage_id query_id corpus_id '
          'corpus-id query-id doc-id passage-id',
    'text': 'text body passage document contents content query question '
            'document_text',
    'title': 'title', 'url': 'url'}
_RUN = 'query-id Q0 corpus-id rank score tag or query-id corpus-id rank'


@dataclasses.dataclass(frozen=True)
class MsMarcoReader(located.LocatedReader):
  """Streams a folder of such files; implements `dataset.Reader`.

  Attributes:
    path: the folder.

  Raises:
    DataError: on construction where files are missing; while iterating, with
      file and line, where a line is malformed.
  """
  path: str

  def __post_init__(self) -> None:
    for files, wanted in (
        (self._files['corpus'], 'collection.tsv or corpus.jsonl'),
        (self._files['queries'], 'queries.SPLIT.tsv or queries.jsonl'),
        (self._qrels, 'qrels.SPLIT.tsv')):
      if not files:
        raise errors.DataError(
            f'{self.path}: expected a folder with {wanted} (.gz allowed), '
            'found none.')
    if len(self._files['corpus']) > 1:
      raise errors.DataError(
          f'{self.path}: expected one corpus, found '
          f'{" and ".join(self._files["corpus"])}; remove all but one.')
    for split in self._candidates.keys() - self._qrels.keys():
      raise errors.DataError(
          f'{self._candidates[split][0]}: belongs to no split; there are '
          f'{", ".join(self.splits)}. Add qrels.{split}.tsv, or name the file '
          'after a split, such as run.train.tsv.')

  @property
  def name(self) -> str:
    return os.path.basename(os.path.abspath(self.path))

  @property
  def splits(self) -> Sequence[str]:
    return tuple(self._qrels)

  def _matching(self, pattern: str) -> dict[str, str]:
    return lines.named_files(self.path, pattern)

  @functools.cached_property
  def _files(self) -> dict[str, Sequence[str]]:
    """Returns the paths of each column."""
    return {
        column: tuple(self._matching(
            rf'(?P<name>({stem}\.tsv|{column}\.jsonl)'
            rf'{lines.COMPRESSED})').values())
        for column, stem in (('corpus', 'collection'),
                             ('queries', r'queries(\..+)?'))}

  @functools.cached_property
  def _qrels(self) -> dict[str, str]:
    return self._matching(rf'qrels\.(?P<name>.+?){_ENDING}')

  @functools.cached_property
  def _candidates(self) -> dict[str, list[str]]:
    """Returns the triples and runs of each split."""
    files: dict[str, list[str]] = {}
    for rest, path in self._matching(
        rf'(?P<name>((qidpid)?triples|run[^.]*)\..+){_ENDING}').items():
      rest = rest.partition('.')[2]
      split = max((split for split in self._qrels
                   if f'{rest}.'.startswith(f'{split}.')), key=len,
                  default=rest)
      files.setdefault(split, []).append(path)
    return files

  def fingerprint(self) -> str:
    candidates = [path for split in sorted(self._candidates)
                  for path in self._candidates[split]]
    return dataset.hash_files(
        [*self._files['corpus'], *self._files['queries'],
         *self._qrels.values(), *candidates], 'msmarco', self.name)

  def records(self, column: str) -> Iterator[located.Record]:
    found = (record for path in self._files[column]
             for record in _texts(path, column))
    return located.once(found, column) if column == 'queries' else found

  def qrels(self, split: str) -> Iterator[tuple[str, str, int, str]]:
    self._check(split)
    for where, (query_id, _, corpus_id, grade) in lines.table(
        self._qrels[split], 'query-id 0 corpus-id grade', separator=None):
      yield query_id, corpus_id, lines.integer(where, grade), where

  def candidates(self, split: str) -> Iterator[
      tuple[str, str, float | None, str]]:
    """Yields (query id, corpus id, score or None, 'file:line')."""
    self._check(split)
    paths = self._candidates.get(split, ())
    runs = [path for path in paths
            if os.path.basename(path).startswith('run')]
    yield from located.scored_first(
        (record for path in runs for record in _run(path)),
        (record for path in paths if path not in runs
         for record in _negatives(path)))

  def _check(self, split: str) -> None:
    if split not in self._qrels:
      raise errors.DataError(
          f'{self.path}: no file of judgements qrels.{split}.tsv; there are '
          f'those of {", ".join(self.splits)}.')


def _texts(path: str, column: str) -> Iterator[located.Record]:
  """Yields the records of a file of the corpus or of queries."""
  if re.search(rf'\.jsonl{lines.COMPRESSED}$', path):
    yield from beir.read_records(path, titles=column == 'corpus')
    return
  layouts = _LAYOUTS[column]
  names: list[str] = []
  for where, fields in lines.table(path, ' or '.join(layouts)):
    if not names:
      names = _header(where, fields)
      if names:
        continue
      names = next(layout.split() for layout in layouts
                   if len(layout.split()) == len(fields))
    if len(fields) != len(names):
      raise errors.DataError(
          f'{where}: expected columns {" ".join(names)}, as in the first line, '
          f'separated by tabs, got {len(fields)} in '
          f'{lines.shown(" ".join(fields))}.')
    record = dict(zip(names, fields))
    yield (lines.check_id(where, 'id', record['id']),
           lines.titled(where, record, record['text']), where)


def _header(where: str, fields: Sequence[str]) -> list[str]:
  """Returns our names of the columns if a first line names them, else [].

  Raises:
    DataError: where it is no record, but names columns that we do not know.
  """
  ours = {name: column for column, theirs in _COLUMNS.items()
          for name in theirs.split()}
  found = [ours.get(field.strip().lower(), '') for field in fields]
  if 'id' not in found or (found[0] != 'id' and '' in found):
    return []
  if '' in found or 'text' not in found or len(set(found)) < len(found):
    raise errors.DataError(
        f'{where}: expected a record or the names of its columns, got '
        f'{lines.shown(" ".join(fields))}. Name them id, title, text and url, '
        'or remove the line.')
  return found


def _negatives(path: str) -> Iterator[_Candidate]:
  """Yields the negatives of triples; their positives are in the qrels."""
  for number, line in lines.read(path):
    fields = re.split('[ \t]+', line.strip(' \t'))
    if len(fields) != 3:
      raise errors.DataError(
          f'{path}:{number}: expected columns {_TRIPLES}, got '
          f'{len(fields)} in {lines.shown(line)}. Triples of texts are read '
          'by --config.data.source=pairs.')
    yield fields[0], fields[2], None, f'{path}:{number}'


def _run(path: str) -> Iterator[_Candidate]:
  for where, fields in lines.table(path, _RUN, separator=None):
    if len(fields) == 3 and not fields[2].isdigit():
      raise errors.DataError(
          f'{where}: expected a rank in the last column, got '
          f'{lines.shown(fields[2])}. Correct or remove the line.')
    if len(fields) == 6:
      query_id, _, corpus_id, _, score, _ = fields
      yield query_id, corpus_id, lines.number(where, score), where
    else:
      yield fields[0], fields[1], None, where
