"""Search along a tree: exact without limits, near with them."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from retrieval_jax import indexes
from retrieval_jax import sharding

N, D = 900, 8


def data():
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(40, D))
  targets = (centres[rng.integers(0, 40, N)]
             + 0.3 * rng.normal(size=(N, D))).astype(np.float32)
  return targets, rng.normal(size=(20, D)).astype(np.float32)


def make(devices=1, **options):
  """Returns an index whose trees have several parents here."""
  return indexes.TreeIndex(
      sharding.make_mesh(devices), chunk_rows=64, **dict(
          batch_size=8, leaf_size=4, opened=0) | options)


def recall(found, k):
  targets, queries = data()
  best = np.argsort(-queries @ targets.T, axis=1)[:, :k]
  return np.mean([np.isin(a, b).mean() for a, b in zip(best, found)])


class TreeIndexTest(parameterized.TestCase):

  @parameterized.parameters(1, 4)
  @pytest.mark.slow
  def test_without_limits_it_equals_brute_force(self, devices):
    targets, queries = data()
    for beam in (0, 1000):
      index = make(devices, beam=beam)
      state = index.build(targets)
      self.assertGreater(state.tree.num_parents, 10)
      scores, ids = index.search(state, queries, 30)
      order = np.argsort(-queries @ targets.T, axis=1)[:, :30]
      np.testing.assert_array_equal(ids, order)
      np.testing.assert_allclose(scores, np.take_along_axis(
          queries @ targets.T, order, axis=1), rtol=1e-4, atol=1e-6)

  @pytest.mark.slow
  def test_a_wider_search_finds_more(self):
    targets, queries = data()
    found = {}
    for options in (dict(opened=2), dict(opened=20), dict(opened=100),
                    dict(opened=20, beam=1), dict(opened=20, beam=6)):
      index = make(**options)
      scores, ids = index.search(index.build(targets), queries, 10)
      found[tuple(options.values())] = recall(ids, 10)
      kept = ids >= 0
      np.testing.assert_allclose(scores[kept], np.take_along_axis(
          queries @ targets.T, ids, axis=1)[kept], rtol=1e-4, atol=1e-6)
    self.assertLess(found[2,], found[20,])
    self.assertLess(found[20,], found[100,])
    self.assertGreater(found[100,], 0.9)
    self.assertLess(found[20, 1], found[20, 6])
    self.assertLessEqual(found[20, 6], found[20,] + 0.05)

  def test_what_cannot_work_is_refused(self):
    for options in (dict(leaf_size=1), dict(opened=-1), dict(beam=-1)):
      [(name, value)] = options.items()
      with self.assertRaisesRegex(
          ValueError, f'{name} is {value}, expected at least'):
        make(**options)


if __name__ == '__main__':
  absltest.main()
