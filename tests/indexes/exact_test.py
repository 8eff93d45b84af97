"""The exact index: numpy in, numpy out, equal to a full sort."""

from absl.testing import absltest, parameterized
import numpy as np

from retrieval_jax import indexes, sharding


class ExactIndexTest(parameterized.TestCase):

  @parameterized.product(devices=(1, 4), num_queries=(1, 11))
  def test_search_equals_a_full_sort(self, devices, num_queries):
    rng = np.random.default_rng(1)
    targets = rng.normal(size=(300, 8)).astype(np.float32)
    queries = rng.normal(size=(num_queries, 8)).astype(np.float32)
    index = indexes.ExactIndex(
        sharding.make_mesh(devices), chunk_rows=64, batch_size=4)
    scores, ids = index.search(index.build(targets), queries, 20)
    expected = queries @ targets.T
    order = np.argsort(-expected, axis=1)[:, :20]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(
        scores, np.take_along_axis(expected, order, axis=1), rtol=1e-4,
        atol=1e-6)

  def test_excluded_ids_do_not_come_out_and_short_corpora_fill_up(self):
    index = indexes.ExactIndex(sharding.make_mesh(2), chunk_rows=64)
    state = index.build(np.eye(4, dtype=np.float32))
    scores, ids = index.search(
        state, np.asarray([[4., 3., 2., 1.]] * 2), 6,
        exclude=[[1, -1], [-1, -1]])
    np.testing.assert_array_equal(
        ids, [[0, 2, 3, -1, -1, -1], [0, 1, 2, 3, -1, -1]])
    np.testing.assert_array_equal(
        scores[0], [4., 2., 1., -np.inf, -np.inf, -np.inf])

  def test_no_queries_give_no_results(self):
    index = indexes.ExactIndex(sharding.make_mesh(1), chunk_rows=64)
    scores, ids = index.search(
        index.build(np.eye(4)), np.zeros((0, 4)), 3)
    self.assertEqual(scores.shape, (0, 3))
    self.assertEqual(ids.shape, (0, 3))

  def test_errors_say_what_was_expected(self):
    index = indexes.ExactIndex(sharding.make_mesh(1), chunk_rows=64)
    state = index.build(np.eye(4))
    with self.assertRaisesRegex(ValueError, 'exclude has 1 rows.* 2 queries'):
      index.search(state, np.zeros((2, 4)), 3, exclude=[[0]])
    with self.assertRaisesRegex(ValueError, 'k is 0, expected at least 1'):
      index.search(state, np.zeros((2, 4)), 0)


if __name__ == '__main__':
  absltest.main()
