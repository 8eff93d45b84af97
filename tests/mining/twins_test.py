"""Targets whose texts are the same."""

from absl.testing import absltest
import numpy as np

from retrieval_jax.mining import twins


class SameTextsTest(absltest.TestCase):

  def test_texts_are_compared_by_what_they_say(self):
    # Made one by one, as a file's lines are: no two are the same object.
    texts = [''.join(letters) for letters in (
        ['a', 'b'], ['c'], ['a', 'b'], ['d'], ['a', 'b'], ['c', 'c'])]
    found = twins.same_texts(texts, [4, 1, 0, 4])
    self.assertEqual(sorted(found), [0, 4])
    np.testing.assert_array_equal(found[0], [2, 4])
    np.testing.assert_array_equal(found[4], [0, 2])


if __name__ == '__main__':
  absltest.main()
