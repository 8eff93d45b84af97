"""Tests of prepared datasets."""

import os

import numpy as np
from absl.testing import absltest

from retrieval_jax.data import beir
from retrieval_jax.data import dataset
from tests.data import fakes


class QrelsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.qrels = dataset.Qrels.from_triples(
        [[5, 1, 1], [2, 9, 3], [2, 0, 1], [2, 4, 0], [2, 3, -1], [7, 7, 0]])

  def test_is_sorted_by_query_then_target(self):
    np.testing.assert_array_equal(self.qrels.query_rows, [2, 2, 2, 2, 5, 7])
    np.testing.assert_array_equal(self.qrels.corpus_rows, [0, 3, 4, 9, 1, 7])
    np.testing.assert_array_equal(self.qrels.grades, [1, -1, 0, 3, 1, 0])

  def test_only_grades_above_zero_are_positive(self):
    np.testing.assert_array_equal(self.qrels.queries(), [2, 5])
    np.testing.assert_array_equal(self.qrels.positives(2), [0, 9])
    np.testing.assert_array_equal(self.qrels.positives(5), [1])
    for absent in (0, 3, 7, 100):
      self.assertEmpty(self.qrels.positives(absent))

  def test_padding_is_as_wide_as_the_split_needs(self):
    np.testing.assert_array_equal(
        self.qrels.padded_positives(np.array([5, 7, 2, 100])),
        [[1, -1], [-1, -1], [0, 9], [-1, -1]])
    self.assertEqual(self.qrels.padded_positives(np.array([5])).shape, (1, 2))
    self.assertEqual(self.qrels.padded_positives(np.array([5])).dtype,
                     np.int32)

  def test_known_adds_negative_grades_but_not_zero(self):
    np.testing.assert_array_equal(
        self.qrels.padded_known(np.array([2, 5])), [[0, 3, 9], [1, -1, -1]])

  def test_no_judgements_at_all_pad_to_one_column(self):
    empty = dataset.Qrels.from_triples([])
    np.testing.assert_array_equal(empty.padded_positives(np.array([0])),
                                  [[-1]])


class PrepareTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.source = fakes.write_beir(self.create_tempdir().full_path)
    self.cache = self.create_tempdir().full_path

  def prepare(self):
    return dataset.prepare(beir.BeirReader(self.source), self.cache,
                           progress=False)

  def test_holds_what_the_reader_yields(self):
    data = self.prepare()
    reader = beir.BeirReader(self.source)
    self.assertEqual(list(zip(data.corpus_ids, data.corpus_texts)),
                     list(reader.corpus()))
    self.assertEqual(list(zip(data.query_ids, data.query_texts)),
                     list(reader.queries()))
    for split in reader.splits:
      qrels = data.qrels[split]
      self.assertCountEqual(
          [(data.query_ids[q], data.corpus_ids[c], g) for q, c, g in zip(
              qrels.query_rows, qrels.corpus_rows, qrels.grades)],
          [line[:3] for line in reader.qrels(split)])

  def test_is_prepared_once(self):
    first = self.prepare()
    mark = os.path.join(first.folder, 'dataset.json')
    before = os.stat(mark).st_mtime_ns
    self.assertEqual(self.prepare().folder, first.folder)
    self.assertEqual(os.stat(mark).st_mtime_ns, before)
    self.assertEqual(os.listdir(self.cache), [first.fingerprint])

  def test_equal_size_and_time_do_not_hide_a_change(self):
    path = os.path.join(self.source, 'corpus.jsonl')
    before, first = os.stat(path), self.prepare()
    with open(path, encoding='utf-8') as file:
      text = file.read()
    fakes.write(path, text.replace('first', 'FIRST'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    self.assertEqual(os.stat(path).st_size, before.st_size)
    second = self.prepare()
    self.assertNotEqual(first.fingerprint, second.fingerprint)
    self.assertEqual(second.corpus_texts[0], 'A title the FIRST text')

  def test_a_new_split_is_a_new_dataset(self):
    first = self.prepare()
    fakes.write(os.path.join(self.source, 'qrels', 'dev.tsv'), 'q1\td1\t1\n')
    self.assertNotEqual(self.prepare().fingerprint, first.fingerprint)

  def test_the_folder_of_a_faster_process_is_kept(self):
    folder = os.path.join(self.cache, 'x')
    with dataset.atomic_folder(folder) as temporary:
      fakes.write(os.path.join(temporary, 'mine'), '')
      fakes.write(os.path.join(folder, 'theirs'), '')
    self.assertEqual(os.listdir(folder), ['theirs'])
    self.assertEqual(os.listdir(self.cache), ['x'])


if __name__ == '__main__':
  absltest.main()
