"""Reads sets of TensorFlow Datasets; needs no TensorFlow.

The path is a folder that a builder wrote ('DIR/name/config/1.0.0'), or a name
that TFDS knows ('name/config', looked up in TFDS_DATA_DIR and prepared there if
it is not, for which tfds 4.9.10 needs the package importlib_resources); and,
after a comma, a second one whose rows are the corpus. Else a split named
'corpus' is the corpus. The fields of a row tell its format: DPR, Tevatron (of
both generations), pairs or questions with answers. Sets must be stored as
array_record: TFRecord, the default, cannot be read without TensorFlow.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import os
from typing import Any

import numpy as np

from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data.readers import examples
from retrieval_jax.data.readers import schemas

_READ = 2048  # records decoded at a time


def make_reader(path: str) -> examples.ExamplesReader:
  """Returns the reader of a path as above."""
  return examples.ExamplesReader(TfdsRows(path), schemas.parse)


@dataclasses.dataclass(frozen=True)
class TfdsRows:
  """Rows of one or two builders; implements `examples.Rows`.

  Attributes:
    path: as above.

  Raises:
    DataError: on construction, if TFDS cannot load it.
  """
  path: str

  def __post_init__(self) -> None:
    self.parts  # noqa: B018 (loads)

  @property
  def name(self) -> str:
    return next(iter(self._sources.values()))[0].name

  @property
  def parts(self) -> Sequence[str]:
    return tuple(self._sources)

  @functools.cached_property
  def _sources(self) -> dict[str, tuple[Any, str]]:
    """Returns {part: (builder, its split)}."""
    return examples.load_parts(self.path, _load)

  def fingerprint(self) -> str:
    files = [str(path) for builder, split in self._sources.values()
             for path in builder.info.splits[split].filepaths]
    return dataset.hash_files(files, 'tfds', self.name, *self.parts)

  def rows(self, part: str) -> Iterator[tuple[str, examples.Row]]:
    builder, split = self._sources[part]
    source = _read(builder, lambda: builder.as_data_source(split=split))
    number = _read(builder, lambda: len(source))
    for start in range(0, number, _READ):
      rows = range(start, min(start + _READ, number))
      records = _read(builder, functools.partial(_records, source, rows))
      for row, record in zip(rows, records):
        yield f'{builder.data_path}:{split}[{row}]', record


def _records(source: Any, rows: Sequence[int]) -> list[Any]:
  return [_plain(record) for record in source.__getitems__(list(rows))]


def _read(builder: Any, read: Callable[[], Any]) -> Any:
  """Returns read(); raises a DataError that names the folder if it cannot."""
  try:
    return read()
  except Exception as error:  # of many kinds: RuntimeErrors of array_record
    raise errors.DataError(
        f'{builder.data_path}: TFDS cannot read it: {error}. Are the files '
        'complete? Prepare or copy them again.') from error


def _load(path: str) -> dict[str, tuple[Any, str]]:
  # Training from arrays must not need tensorflow_datasets.
  import tensorflow_datasets as tfds
  try:
    if os.path.isdir(path):
      builder = tfds.builder_from_directory(path)
    else:
      builder = tfds.builder(path, file_format='array_record')
      builder.download_and_prepare()
    formats = {split.filename_template.filetype_suffix
               for split in builder.info.splits.values()}
  except Exception as error:  # of many kinds: names, files, the network
    raise errors.DataError(
        f'{path}: TFDS cannot load it: {error}') from error
  if formats != {'array_record'}:
    raise errors.DataError(
        f'{path}: expected a set stored as array_record, got '
        f'{", ".join(sorted(formats)) or "no splits"}. Prepare it again with '
        "tfds.builder(NAME, file_format='array_record').")
  return {split: (builder, split) for split in builder.info.splits}


def _plain(value: Any) -> Any:
  """Returns a decoded record as str, numbers, lists and dicts."""
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, dict):
    return {name: _plain(item) for name, item in value.items()}
  if isinstance(value, (np.ndarray, list)):
    return [_plain(item) for item in value]
  return value.item() if isinstance(value, np.generic) else value
