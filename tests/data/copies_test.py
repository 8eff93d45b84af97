"""Tests of finding targets that say the same."""

from absl.testing import absltest
import numpy as np

from retrieval_jax.data import copies

# Made one by one, as a file's lines are: no two are the same object.
TEXTS = [''.join(letters) for letters in (
    ['a', 'b'], ['c'], ['a', 'b'], ['d'], ['a', 'b'], ['c', 'c'], ['c'], [''],
    ['C'], ['c', ' '], [''])]


class CopiesTest(absltest.TestCase):

  def test_texts_are_compared_by_what_they_say(self):
    found = copies.find(TEXTS)
    np.testing.assert_array_equal(found.ids, [2, 4, 6, 10])
    np.testing.assert_array_equal(found.firsts, [0, 0, 1, 7])
    self.assertEqual((found.ids.dtype, found.firsts.dtype),
                     (np.int32, np.int32))
    self.assertEqual(found.num_texts, 3)

  def test_equals_the_obvious_version(self):
    texts = [str(x) for x in np.random.default_rng(0).integers(0, 40, 200)]
    found = copies.find(texts)
    np.testing.assert_array_equal(
        found.firsts_of(np.arange(200)), [texts.index(text) for text in texts])

  def test_ids_become_the_first_of_their_text(self):
    found = copies.find(TEXTS)
    np.testing.assert_array_equal(
        found.firsts_of(np.array([[4, 3, -1], [10, 0, 6]])),
        [[0, 3, -1], [7, 0, 1]])
    np.testing.assert_array_equal(found.distinct(11), [0, 1, 3, 5, 7, 8, 9])

  def test_where_all_texts_differ_ids_are_what_they_are(self):
    ids = np.array([[2, -1]])
    for texts in ([], ['a', 'b', 'c']):
      found = copies.find(texts)
      self.assertEqual(found.num_texts, 0)
      self.assertIs(found.firsts_of(ids), ids)
      self.assertEqual(found.others([0, 2]), {})
      np.testing.assert_array_equal(
          found.distinct(len(texts)), np.arange(len(texts)))

  def test_others_are_all_of_a_text_but_the_one(self):
    found = copies.find(TEXTS).others([4, 1, 0, 4, 3])
    self.assertEqual(sorted(found), [0, 1, 4])
    np.testing.assert_array_equal(found[0], [2, 4])
    np.testing.assert_array_equal(found[4], [0, 2])
    np.testing.assert_array_equal(found[1], [6])
    self.assertEqual(found[1].dtype, np.int32)


if __name__ == '__main__':
  absltest.main()
