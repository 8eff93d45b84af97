"""Several data sets joined into one, and what of it belongs to which."""

import os

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax import data
from retrieval_jax.data import copies
from tests.data import fakes

NAMES = ('one', 'two')


class MixtureTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = self.create_tempdir().full_path
    one = os.path.join(folder, 'one')
    fakes.write_candidates(fakes.write_beir(one))
    two = os.path.join(folder, 'two')
    for path, text in (
        ('corpus.jsonl', fakes.jsonl(
            [{'_id': 'd1', 'text': next(data.BeirReader(one).corpus())[1]},
             {'_id': 'x', 'text': 'of two alone'}])),
        ('queries.jsonl', fakes.jsonl([{'_id': 'q1', 'text': 'why?'},
                                       {'_id': 'q2', 'text': 'who?'}])),
        ('qrels/train.tsv', 'query-id\tcorpus-id\tscore\nq2\tx\t1'),
        ('qrels/dev.tsv', 'query-id\tcorpus-id\tscore\nq1\td1\t1'),
        ('answers/train.jsonl', fakes.jsonl(
            [{'_id': 'q2', 'answers': ['a', 'b']}]))):
      fakes.write(os.path.join(two, path), text)
    self.cache = os.path.join(folder, 'cache')
    self.readers = {'one': data.BeirReader(one), 'two': data.BeirReader(two)}
    self.alone = {name: data.prepare(reader, self.cache, progress=False)
                  for name, reader in self.readers.items()}
    self.both = data.prepare(
        data.Mixture(self.readers), self.cache, progress=False)

  def test_rows_of_the_sets_follow_one_another(self):
    sets = self.both.sets
    self.assertSequenceEqual(sets.names, NAMES)
    for i, (name, alone) in enumerate(self.alone.items()):
      for part, rows in (('corpus', sets.corpus(i)),
                         ('query', sets.queries(i))):
        texts, ids = f'{part}_texts', f'{part}_ids'
        self.assertSequenceEqual(
            getattr(self.both, texts)[rows.start:rows.stop],
            list(getattr(alone, texts)))
        self.assertSequenceEqual(
            getattr(self.both, ids)[rows.start:rows.stop],
            [f'{name}/{one}' for one in getattr(alone, ids)])
    self.assertEqual(sets.corpus(1).stop, len(self.both.corpus_ids))
    self.assertEqual(sets.queries(1).stop, len(self.both.query_ids))
    np.testing.assert_array_equal(
        sets.of_queries(np.arange(5)), [0, 0, 0, 1, 1])

  def test_parts_have_what_the_sets_have_alone(self):
    self.assertEqual(set(self.both.qrels), {'train', 'test', 'dev'})
    parts = self.both.parts
    self.assertSequenceEqual(list(parts), NAMES)
    for i, (name, alone) in enumerate(self.alone.items()):
      self.assertEqual(parts[name].parts, {})
      for split, found in parts[name].qrels.items():
        if split not in alone.qrels:
          self.assertEmpty(found.grades)
          continue
        expected = alone.qrels[split]
        np.testing.assert_array_equal(found.grades, expected.grades)
        np.testing.assert_array_equal(
            found.query_rows,
            expected.query_rows + self.both.sets.queries(i).start)
        np.testing.assert_array_equal(
            found.corpus_rows,
            expected.corpus_rows + self.both.sets.corpus(i).start)
      for split in self.both.qrels:
        self.assertEqual(parts[name].answers_of(split), {
            f'{name}/{query}': texts
            for query, texts in alone.answers_of(split).items()})
    self.assertEqual(self.alone['one'].parts, {})

  def test_candidates_and_answers_are_those_of_the_sets(self):
    self.assertSequenceEqual(
        [row[:3] for row in data.Mixture(self.readers).candidates('train')],
        [(f'one/{query}', f'one/{target}', score)
         for query, target, score in fakes.CANDIDATES])
    self.assertEqual(self.both.answers_of('train'), {'two/q2': ['a', 'b']})

  def test_a_text_of_both_sets_is_a_copy_of_the_joint_corpus_alone(self):
    second = self.both.sets.corpus(1).start
    np.testing.assert_array_equal(self.both.copies.ids, [second])
    np.testing.assert_array_equal(self.both.copies.firsts, [0])
    own = self.both.copies.within(self.both.sets.corpus_starts)
    self.assertEmpty(own.ids)

  def test_errors_name_the_place_in_the_set(self):
    reader = data.Mixture(self.readers)
    size = len(self.alone['one'].corpus_ids)
    for row, expected in ((0, self.readers['one'].where('corpus', 0)),
                          (size + 1, self.readers['two'].where('corpus', 1))):
      self.assertEqual(reader.where('corpus', row), expected)
    path = os.path.join(self.readers['two'].path, 'corpus.jsonl')
    fakes.write(path, '')
    with self.assertRaisesRegex(
        data.DataError, "two.corpus.jsonl.*in the corpus of the set 'two'"):
      data.prepare(reader, self.cache, progress=False)

  def test_the_fingerprint_knows_names_order_and_contents(self):
    prints = [data.Mixture(readers).fingerprint() for readers in (
        self.readers, dict(reversed(self.readers.items())),
        {'one': self.readers['one'], 'three': self.readers['two']},
        {'one': self.readers['one']}, {'one': self.readers['two']})]
    self.assertLen(set(prints), 5)

  def test_what_was_dropped_is_added_up(self):
    for reader in self.readers.values():
      with open(os.path.join(reader.path, 'qrels', 'train.tsv'), 'a',
                encoding='utf-8') as f:
        f.write('\nnobody\td1\t1')
    with self.assertWarnsRegex(UserWarning, 'one.two, split .train.*2 judge'):
      found = data.prepare(data.Mixture({
          name: data.Lenient(reader) for name, reader in self.readers.items()
      }), self.cache, progress=False)
    self.assertEqual(found.dropped['train']['unknown_queries'], 2)


class CopiesWithinTest(absltest.TestCase):

  def test_equals_finding_them_in_each_set(self):
    texts = [str(x) for x in np.random.default_rng(0).integers(0, 40, 200)]
    starts = np.array([0, 50, 51, 120, 200])
    found = copies.find(texts).within(starts)
    expected = np.arange(200)
    for start, stop in zip(starts, starts[1:]):
      expected[start:stop] = start + copies.find(texts[start:stop]).firsts_of(
          np.arange(stop - start))
    np.testing.assert_array_equal(found.firsts_of(np.arange(200)), expected)
    np.testing.assert_array_equal(found.ids, np.sort(found.ids))
    self.assertEmpty(copies.NONE.within(starts).ids)


class PartsOfStringsTest(absltest.TestCase):

  def test_a_part_is_a_slice(self):
    texts = list('abcdefgh')
    part = data.Part(texts, range(2, 7))
    self.assertSequenceEqual(list(part), texts[2:7])
    self.assertSequenceEqual(part[1:9], texts[3:7])
    self.assertEqual((part[-1], len(part)), ('g', 5))
    with self.assertRaises(IndexError):
      _ = part[5]

  def test_prefixes_are_those_of_the_group(self):
    texts, starts = list('abcde'), np.array([0, 2, 2, 5])
    found = data.Prefixed(texts, ['1 ', 'none ', '3 '], starts)
    expected = ['1 a', '1 b', '3 c', '3 d', '3 e']
    self.assertSequenceEqual(list(found), expected)
    self.assertSequenceEqual(found[1:4], expected[1:4])
    self.assertEqual((found[-1], len(found)), ('3 e', 5))


if __name__ == '__main__':
  absltest.main()
