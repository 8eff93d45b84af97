"""Prepared data that is damaged is made again, or it is said why not."""

import os
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax import data
from retrieval_jax import files
from retrieval_jax.data import dataset
from retrieval_jax.data.readers import beir
from tests import disks
from tests.data import fakes


class CacheTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.source = fakes.write_beir(self.create_tempdir().full_path)
    self.cache = self.create_tempdir().full_path

  def prepare(self):
    """Returns all that the prepared data set and its tokens hold."""
    read = dataset.prepare(
        beir.BeirReader(self.source), self.cache, progress=False)
    tokenizer = data.train_tokenizer(read.corpus_texts, 200)
    tokens = data.tokenize(
        read.corpus_texts, tokenizer, 8, os.path.join(read.folder, 'tokens'),
        f'{read.fingerprint}/corpus', progress=False)
    return [list(read.corpus_ids), list(read.corpus_texts),
            list(read.query_ids), list(read.query_texts),
            {split: (qrels.query_rows.tolist(), qrels.corpus_rows.tolist(),
                     qrels.grades.tolist())
             for split, qrels in read.qrels.items()},
            np.asarray(tokens.tokens).tolist(), tokens.lengths.tolist()]

  @parameterized.parameters('cut', 'empty', 'gone', 'changed')
  def test_every_damaged_file_is_made_again_with_a_warning(self, how):
    whole = self.prepare()
    paths = disks.files_in(self.cache)
    self.assertGreater(len(paths), 12)
    for path in paths:
      with self.subTest(path):
        # Else nothing can be lost, or it may be a checksum that is not used.
        if os.path.getsize(path) and (how, os.path.basename(path)) != (
            'changed', files.SEAL):
          disks.damage(path, how)
          with self.assertWarnsRegex(
              UserWarning, f'{os.path.basename(path)}: .* is made again'):
            again = self.prepare()
          self.assertEqual(again, whole)
        with warnings.catch_warnings():
          warnings.simplefilter('error')
          self.assertEqual(self.prepare(), whole)

  def test_what_is_whole_is_not_made_again(self):
    self.prepare()
    before = {path: os.stat(path).st_ino for path in disks.files_in(self.cache)}
    self.prepare()
    self.assertEqual(before, {
        path: os.stat(path).st_ino for path in disks.files_in(self.cache)})

  def test_what_was_made_without_checksums_is_made_again(self):
    whole = self.prepare()
    for path in disks.files_in(self.cache):
      if path.endswith(files.SEAL):
        os.remove(path)
    with self.assertWarnsRegex(UserWarning, 'files.json: is not there'):
      self.assertEqual(self.prepare(), whole)

  def test_a_folder_that_cannot_be_made_names_the_option(self):
    self.cache = os.path.join(self.source, 'corpus.jsonl', 'cache')
    with self.assertRaisesRegex(
        OSError, 'cannot be written to .*corpus.jsonl/cache.*data.cache'):
      self.prepare()

  def test_a_folder_that_cannot_be_written_names_the_option(self):
    os.chmod(self.cache, 0o500)
    self.addCleanup(os.chmod, self.cache, 0o700)
    if os.access(self.cache, os.W_OK):
      self.skipTest('root may write everywhere')
    with self.assertRaisesRegex(
        OSError, 'Permission denied: prepared data .*--config.data.cache'):
      self.prepare()

  def test_a_full_disk_is_named_and_leaves_nothing(self):
    with disks.files_of_at_most(100):
      with self.assertRaisesRegex(OSError, 'cannot write .*Make room'):
        self.prepare()
    self.assertEqual(os.listdir(self.cache), [])


if __name__ == '__main__':
  absltest.main()
