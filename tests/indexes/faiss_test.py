"""The faiss index: the exact one's results, on the host."""

import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from retrieval_jax import indexes
from retrieval_jax import sharding

_HNSW = dict(links=32, ef_construction=500, ef_search=300)


def _unit(seed, *shape):
  vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


class FaissTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    pytest.importorskip('faiss')

  @parameterized.parameters(0, 1, 7)
  def test_flat_equals_the_exact_index(self, num_excluded):
    targets, queries = _unit(0, 300, 8), _unit(1, 11, 8)
    # The best ones, so that each of them would otherwise come out.
    exclude = np.argsort(-queries @ targets.T, axis=1)[:, :num_excluded]
    exclude[::2, 3:] = -1
    exact = indexes.ExactIndex(sharding.make_mesh(4), chunk_rows=64)
    flat = indexes.FaissFlat(batch_size=4)
    expected, found = (
        index.search(index.build(targets), queries, 20, exclude)
        for index in (exact, flat))
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)

  def test_hnsw_finds_nearly_all_and_looks_at_as_many_as_it_is_told(self):
    targets, queries = _unit(0, 3000, 16), _unit(1, 50, 16)
    best = np.argsort(-queries @ targets.T, axis=1)[:, :10]
    def recall(**options):
      index = indexes.FaissHNSW(**options)
      _, ids = index.search(index.build(targets), queries, 10)
      return np.mean([np.isin(a, b).mean() for a, b in zip(best, ids)])
    self.assertGreater(recall(**_HNSW), 0.99)
    self.assertLess(recall(**_HNSW | dict(ef_search=10)), 0.95)
    self.assertLess(recall(**_HNSW | dict(links=2, ef_construction=4)), 0.9)


class WithoutFaissTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(links=1), 'links is 1, expected at least 2'),
      (dict(ef_search=0), 'ef_search is 0, expected at least 1'))
  def test_bad_options_are_refused(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      indexes.FaissHNSW(**options)

  def test_a_missing_package_names_the_extra(self):
    with mock.patch.dict(sys.modules, faiss=None):
      with self.assertRaisesRegex(ModuleNotFoundError, r"jax\[faiss\]'"):
        indexes.FaissFlat().build(np.eye(4))


if __name__ == '__main__':
  absltest.main()
