"""The exact index: numpy in, numpy out, equal to a full sort."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax import coarse
from retrieval_jax import indexes
from retrieval_jax import sharding


class ExactIndexTest(parameterized.TestCase):

  @parameterized.product(
      devices=(1, 4), num_queries=(1, 11), scan_dtype=coarse.DTYPES)
  def test_search_equals_a_full_sort(self, devices, num_queries, scan_dtype):
    rng = np.random.default_rng(1)
    targets = rng.normal(size=(300, 8)).astype(np.float32)
    queries = rng.normal(size=(num_queries, 8)).astype(np.float32)
    index = indexes.ExactIndex(
        sharding.make_mesh(devices), chunk_rows=64, batch_size=4,
        scan_dtype=scan_dtype)
    scores, ids = index.search(index.build(targets), queries, 20)
    expected = queries @ targets.T
    order = np.argsort(-expected, axis=1)[:, :20]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(
        scores, np.take_along_axis(expected, order, axis=1), rtol=1e-4,
        atol=1e-6)


if __name__ == '__main__':
  absltest.main()
