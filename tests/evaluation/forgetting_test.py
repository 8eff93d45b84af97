"""What is learned and forgotten, by hand."""

from absl.testing import absltest
import numpy as np

from retrieval_jax.evaluation import forgetting


def look(step, nearest, group, *right):
  return forgetting.Look(
      step, np.array(nearest), np.array(group), np.array(right, bool))


LOOKS = [
    look(0, [[1, 2], [5, 6]], [[1, 2], [5, -1]],
         [[0, 0], [1, 0]]),
    look(10, [[1, 3], [5, 6]], [[3, 7], [5, 6]],
         [[1, 0], [1, 1]], [[0, 0], [0, 1]]),
    look(20, [[2, 3], [7, -1]], [[3, 2], [7, -1]],
         [[0, 1], [1, 1]], [[1, 1], [1, 0]], [[1, 1], [0, 0]])]


class ForgettingTest(absltest.TestCase):

  def test_right_is_above(self):
    queries = np.array([[1., 0.], [0., 2.]])
    positives = np.array([[.5, 9.], [9., .1]])
    negatives = np.array([[[.4, 99.], [.5, 0.]], [[0., .2], [-9., .05]]])
    np.testing.assert_array_equal(
        forgetting.are_right(queries, positives, negatives),
        [[True, False], [False, True]])

  def test_shares_by_hand(self):
    found = forgetting.summary(LOOKS)
    self.assertEqual(found['steps'], [0, 10, 20])
    self.assertEqual(found['accuracy'], [
        [1 / 3, 2 / 3, 2 / 3], [None, 1 / 4, 3 / 4], [None, None, 2 / 3]])
    # Of two wrong pairs one is right at the next look; of three, three.
    self.assertEqual(found['learned'], [1 / 2, 1, None])
    # Of the two that were right at the second look, one is wrong at the third.
    self.assertEqual(found['forgotten'], [
        [None, None, 1 / 2], [None] * 3, [None] * 3])
    # Jaccard: 1/3 and 1, then 1/3 and 0.
    np.testing.assert_allclose(found['swap'][1:], [1 / 3, 5 / 6])
    # Of the three nearest, target 2 was so before the last.
    self.assertEqual(found['return'], [None, None, 1 / 3])
    self.assertEqual(forgetting.scalars(found), {
        'forgetting/accuracy': 2 / 3, 'forgetting/learned': 1,
        'forgetting/swap': found['swap'][2], 'forgetting/return': 1 / 3,
        'forgetting/forgotten': 1 / 2})

  def test_one_look_has_little_to_say(self):
    found = forgetting.summary(LOOKS[:1])
    self.assertEqual(found, {
        'steps': [0], 'accuracy': [[1 / 3]], 'learned': [None],
        'forgotten': [[None]], 'swap': [None], 'return': [None]})
    self.assertEqual(
        forgetting.scalars(found), {'forgetting/accuracy': 1 / 3})


if __name__ == '__main__':
  absltest.main()
