"""Reads sets of ir_datasets; needs `pip install 'retrieval_jax[ir_datasets]'`.

The path is one id or several, separated by commas, that share their documents,
each with the name of its split in front, or named by its last part:

  beir/nfcorpus/train,beir/nfcorpus/dev,beir/nfcorpus/test
  train=msmarco-passage/train/judged,dev=msmarco-passage/dev/small

A document's text is what ir_datasets calls its default text. Candidates are the
scored documents of a set (with their scores) and the second documents of its
pairs, where it has any.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import hashlib
import json
from typing import Any

from retrieval_jax.data import errors
from retrieval_jax.data.readers import lines
from retrieval_jax.data.readers import located


@dataclasses.dataclass(frozen=True)
class IrDatasetsReader(located.LocatedReader):
  """Streams such sets; implements `dataset.Reader`.

  Attributes:
    path: as above.

  Raises:
    DataError: on construction, for ids that are unknown, that lack documents,
      queries or judgements, or whose documents differ.
    ModuleNotFoundError: likewise, without the package ir_datasets.
  """
  path: str

  def __post_init__(self) -> None:
    for name, split in self._sets.items():
      for kind in ('docs', 'queries', 'qrels'):
        if not getattr(split, f'has_{kind}')():
          raise errors.DataError(
              f'{self._ids[name]}: this set of ir_datasets has no {kind}; name '
              'one that has documents, queries and judgements.')
    first, *others = self._sets
    for name in others:
      if (self._sets[name].docs_handler()
          != self._sets[first].docs_handler()):
        raise errors.DataError(
            f'{self.path}: expected sets over the same documents, but '
            f'{self._ids[first]} and {self._ids[name]} have others.')

  @property
  def name(self) -> str:
    return self.path

  @property
  def splits(self) -> Sequence[str]:
    return tuple(self._ids)

  @functools.cached_property
  def _ids(self) -> dict[str, str]:
    ids = {}
    for item in self.path.split(','):
      split, _, name = item.rpartition('=')
      split = split or name.rsplit('/', 1)[-1]
      if split in ids:
        raise errors.DataError(
            f'{self.path}: split {split!r} is named twice; put other names in '
            'front, such as dev_small=msmarco-passage/dev/small.')
      ids[split] = name
    return ids

  @functools.cached_property
  def _sets(self) -> dict[str, Any]:
    sets = {}
    for split, name in self._ids.items():
      try:
        sets[split] = _package().load(name)
      except KeyError:
        raise errors.DataError(
            f'{name}: ir_datasets knows no such id; '
            'https://ir-datasets.com lists them.') from None
    return sets

  def fingerprint(self) -> str:
    """Returns a hash of all records: a pass over them, as nothing says less.

    Of a large set write a copy once, with experiments.convert.
    """
    digest = hashlib.blake2b(
        json.dumps(['ir_datasets', self._ids]).encode(), digest_size=12)
    for records in (self.corpus(), self.queries(), *(
        column(split) for split in self.splits
        for column in (self.qrels, self.candidates))):
      for record in records:
        digest.update(json.dumps(record).encode())
      digest.update(b'\n')
    return digest.hexdigest()

  def records(self, column: str) -> Iterator[located.Record]:
    if column == 'corpus':
      first = next(iter(self._sets))
      return self._texts(first, 'docs', 'doc_id')
    found = (record for split in self.splits
             for record in self._texts(split, 'queries', 'query_id'))
    return located.once(found, column)

  def _texts(self, split: str, kind: str, field: str
             ) -> Iterator[located.Record]:
    for where, record in self._rows(split, kind):
      name = lines.check_id(where, field, getattr(record, field))
      yield name, lines.text(where, 'text', record.default_text()), where

  def _rows(self, split: str, kind: str) -> Iterator[tuple[str, Any]]:
    """Yields ('id:kind[row]', record); nothing where the set has no such."""
    if split not in self._sets:
      raise errors.DataError(
          f'{self.path}: no split {split!r}; there are '
          f'{", ".join(self.splits)}.')
    if not getattr(self._sets[split], f'has_{kind}')():
      return
    records = getattr(self._sets[split], f'{kind}_iter')()
    for row, record in enumerate(records):
      yield f'{self._ids[split]}:{kind}[{row}]', record

  def qrels(self, split: str) -> Iterator[tuple[str, str, int, str]]:
    for where, judged in self._rows(split, 'qrels'):
      yield (judged.query_id, judged.doc_id,
             lines.integer(where, judged.relevance), where)

  def candidates(self, split: str) -> Iterator[
      tuple[str, str, float | None, str]]:
    """Yields (query id, corpus id, score or None, 'id:kind[row]')."""
    yield from located.scored_first(
        ((scored.query_id, scored.doc_id, lines.number(where, scored.score),
          where) for where, scored in self._rows(split, 'scoreddocs')),
        ((pair.query_id, pair.doc_id_b, None, where)
         for where, pair in self._rows(split, 'docpairs')))


def _package() -> Any:
  return errors.import_extra('ir_datasets', 'ir_datasets')
