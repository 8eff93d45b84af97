"""Reads Hugging Face `datasets`; needs `pip install 'retrieval_jax[hf]'`.

The path is one of

  a folder that `save_to_disk` wrote,
  a folder of SPLIT.parquet, SPLIT.jsonl or SPLIT.csv files, a split in one or
      several (train-00000-of-00002.parquet); JSON lines and CSV are read as
      they stand, for `datasets` would take 007 for a number and null for
      nothing,
  the name of a set on the hub, with the configuration after a colon if it has
      several: 'sentence-transformers/natural-questions:pair'

and, after a comma, a second such path whose rows are the corpus, where the rows
of the first name their passages by ids only. Without one, a split named
'corpus' is the corpus. The fields of a row tell its format: DPR, Tevatron (of
both generations), pairs or questions with answers.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import os
import re
from typing import Any

from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data.readers import examples
from retrieval_jax.data.readers import lines
from retrieval_jax.data.readers import schemas

_SHARD = re.compile(
    r'(?P<split>.+?)(-\d+-of-\d+)?\.(?P<format>parquet(?!\.)|jsonl|csv)'
    + lines.COMPRESSED)
_RECORDS = {'jsonl': lines.json_lines, 'csv': lines.csv_records}


def make_reader(path: str) -> examples.ExamplesReader:
  """Returns the reader of a path as above."""
  return examples.ExamplesReader(HuggingFaceRows(path), schemas.parse)


@dataclasses.dataclass(frozen=True)
class HuggingFaceRows:
  """Rows of one or two sets; implements `examples.Rows`.

  Attributes:
    path: as above.

  Raises:
    DataError: on construction, if it cannot be loaded.
    ModuleNotFoundError: likewise, without the package datasets.
  """
  path: str

  def __post_init__(self) -> None:
    self.parts  # noqa: B018 (loads)

  @property
  def name(self) -> str:
    return os.path.basename(self.path.split(',')[0].rstrip('/'))

  @property
  def parts(self) -> Sequence[str]:
    return tuple(self._sets)

  @functools.cached_property
  def _sets(self) -> dict[str, Any]:
    """Returns {part: datasets.Dataset, memory-mapped, or _TextFiles}."""
    return examples.load_parts(self.path, _load)

  def fingerprint(self) -> str:
    # Not `Dataset._fingerprint`: that of a folder is whatever was saved there.
    files = [file['filename'] for part in self.parts
             for file in self._sets[part].cache_files]
    return dataset.hash_files(files, 'hf', self.name, *self.parts)

  def rows(self, part: str) -> Iterator[tuple[str, examples.Row]]:
    held = self._sets[part]
    if isinstance(held, _TextFiles):
      yield from held.rows()
      return
    for row, record in enumerate(held):
      yield f'{self.path}:{part}[{row}]', record


@dataclasses.dataclass(frozen=True)
class _TextFiles:
  """The files of a split in a format of `_RECORDS`.

  Attributes:
    paths: of the files.
    format: a key of _RECORDS.
  """
  paths: Sequence[str]
  format: str

  @property
  def cache_files(self) -> list[dict[str, str]]:
    """The files, as `datasets.Dataset` names its own."""
    return [{'filename': path} for path in self.paths]

  def rows(self) -> Iterator[tuple[str, examples.Row]]:
    for path in self.paths:
      for line, record in _RECORDS[self.format](path):
        yield f'{path}:{line}', record


def _load(path: str) -> Mapping[str, Any]:
  datasets = errors.import_extra('datasets', 'hf')
  on_disk = {'keep_in_memory': False}  # whose files `fingerprint` hashes
  try:
    if not os.path.isdir(path):
      name, _, config = path.partition(':')
      loaded = datasets.load_dataset(name, config or None, **on_disk)
      if any(part.info.builder_name == 'csv' for part in loaded.values()):
        raise errors.DataError(
            f'{path}: is made of CSV files, of which `datasets` reads 007 as 7 '
            'and the text null as nothing. Download the files and give their '
            'folder.')
      return loaded
    if any(os.path.exists(os.path.join(path, file))
           for file in ('dataset_dict.json', 'state.json')):
      loaded = datasets.load_from_disk(path, **on_disk)
      return loaded if isinstance(loaded, Mapping) else {'train': loaded}
    return {
        split: _TextFiles(files, form) if form in _RECORDS
        else datasets.load_dataset(
            form, data_files=files, split='train', **on_disk)
        for (split, form), files in _shards(path).items()}
  except errors.DataError:
    raise
  except Exception as error:  # of many kinds: files, formats, the network
    raise errors.DataError(
        f'{path}: `datasets` cannot load it: {error}') from error


def _shards(folder: str) -> dict[tuple[str, str], list[str]]:
  """Returns the files of each (split, format)."""
  shards: dict[tuple[str, str], list[str]] = {}
  for file in sorted(os.listdir(folder)):
    match = _SHARD.fullmatch(file)
    if match:
      shards.setdefault((match['split'], match['format']), []).append(
          os.path.join(folder, file))
  if not shards:
    raise errors.DataError(
        f'{folder}: expected what `save_to_disk` writes, or files such as '
        'train.parquet, train.jsonl or train.csv, found none.')
  for split, form in shards:
    others = [f for s, f in shards if s == split and f != form]
    if others:
      raise errors.DataError(
          f'{folder}: split {split!r} is there as {form} and as {others[0]}; '
          'remove one.')
  return shards
