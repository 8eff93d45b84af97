"""Tests of grouping near-duplicate sentences."""

import itertools
import random

from absl.testing import absltest
from absl.testing import parameterized

from retrieval_jax.data.readers import near_duplicates


class NearDuplicatesTest(parameterized.TestCase):

  @parameterized.parameters(
      ('The contract was broken!', 'a broken contract'),
      ('he bet on ponies', 'He bets on the ponie'),
      ("can't stop", 'cant stop, stop'),
      ('Straße', 'STRASSE'.lower().replace('ss', 'ß')))
  def test_case_order_stop_words_and_endings_do_not_count(self, a, b):
    self.assertTrue(near_duplicates.jaccard(
        near_duplicates.stems(a), near_duplicates.stems(b)) >= 0.5)

  def test_stop_words_count_where_there_is_nothing_else(self):
    self.assertEqual(near_duplicates.stems('to be'), {'to', 'be'})
    self.assertEqual(near_duplicates.stems('?!'), frozenset())

  def test_groups_equal_those_of_comparing_all_pairs(self):
    source = random.Random(0)
    for _ in range(20):
      sets = [frozenset(source.choices('abcdefghijklmno',
                                       k=source.randint(0, 6)))
              for _ in range(60)]
      labels = list(range(len(sets)))
      for _ in sets:  # Spreads the smallest label until nothing changes.
        for i, j in itertools.combinations(range(len(sets)), 2):
          if near_duplicates.jaccard(sets[i], sets[j]) >= 0.5:
            labels[i] = labels[j] = min(labels[i], labels[j])
      self.assertEqual(near_duplicates.group(sets), labels)

  def test_split_keeps_near_duplicates_together_in_any_order(self):
    source = random.Random(1)
    words = [''.join(source.choices('abcdefgh', k=5)) for _ in range(400)]
    sentences = [' '.join(source.choices(words, k=source.randint(1, 8)))
                 for _ in range(1000)]
    shares = {'train': 0.8, 'dev': 0.1, 'test': 0.1}
    splits = near_duplicates.split(sentences, shares)
    sets = list(map(near_duplicates.stems, sentences))
    for i, j in itertools.combinations(range(1000), 2):
      if splits[i] != splits[j]:
        self.assertLess(near_duplicates.jaccard(sets[i], sets[j]), 0.5)
    self.assertEqual(near_duplicates.split(sentences[::-1], shares)[::-1],
                     splits)
    self.assertBetween(splits.count('test'), 40, 180)
    self.assertBetween(splits.count('dev'), 40, 180)


if __name__ == '__main__':
  absltest.main()
