"""PEFA agrees with libpecos, the public implementation.

pecos.npz is what libpecos 1.2.8 gives for a small problem that holds targets
with many, few and no queries, queries with several targets and a pair that
stands twice; experiments/dev/make_pecos_fixture.py made it.
"""

import dataclasses
import itertools
import os

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax import adapters
from retrieval_jax import indexes
from retrieval_jax import sharding
from retrieval_jax.adapters import moved

FIXTURE = os.path.join(os.path.dirname(__file__), 'pecos.npz')


class PecosTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    with np.load(FIXTURE) as saved:
      cls.pecos = dict(saved)
    cls.pairs = adapters.Pairs(
        *(cls.pecos[name] for name in ('queries', 'query_rows', 'target_rows')))

  def exact(self, devices):
    return indexes.ExactIndex(sharding.make_mesh(devices), chunk_rows=64)

  @parameterized.parameters(7, moved.CHUNK_ROWS)
  def test_xs_moves_targets_as_pecos(self, chunk_rows):
    for weight, expected in zip(self.pecos['weights'], self.pecos['xs']):
      rows = moved.move_targets(
          adapters.PefaXS(weight), self.pecos['targets'], self.pairs,
          chunk_rows=chunk_rows)
      np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-6)

  @parameterized.parameters(1, 4)
  def test_xs_finds_the_nearest_of_those_rows(self, devices):
    queries, k = self.pecos['test_queries'], int(self.pecos['depth'])
    for weight, rows in zip(self.pecos['weights'], self.pecos['xs']):
      index = adapters.Moved(adapters.PefaXS(weight), self.exact(devices))
      scores, ids = index.search(
          index.build(self.pecos['targets'], self.pairs), queries, k)
      expected = queries @ rows.T
      np.testing.assert_allclose(
          scores, -np.sort(-expected, axis=1)[:, :k], rtol=0, atol=1e-6)
      np.testing.assert_allclose(
          np.take_along_axis(expected, ids, axis=1), scores, rtol=0, atol=1e-6)

  @parameterized.parameters(1, 4)
  def test_xl_ranks_and_scores_as_pecos(self, devices):
    depth, queries = int(self.pecos['depth']), self.pecos['test_queries']
    index = adapters.PefaXL(
        self.exact(devices), self.exact(devices), weight=0.5,
        num_neighbours=int(self.pecos['neighbours'].max()), depth=depth)
    state = index.build(self.pecos['targets'], self.pairs)
    found = index.look_up(state, queries, depth)
    settings = itertools.product(*(
        self.pecos[name] for name in (
            'weights', 'neighbours', 'normalisations')))
    lists = zip(*(self.pecos[name].reshape(-1, *self.pecos[name].shape[-2:])
                  for name in ('xl_scores', 'xl_ids')), strict=True)
    for (weight, num_neighbours, normalisation), expected in zip(
        settings, lists, strict=True):
      with self.subTest(f'{weight} {num_neighbours} {normalisation}'):
        setting = dataclasses.replace(
            index, weight=weight, num_neighbours=num_neighbours,
            normalisation=normalisation)
        scores, ids = setting.merge(state, queries, found, state.num_targets)
        np.testing.assert_array_equal(ids, expected[1])
        np.testing.assert_allclose(scores, expected[0], rtol=1e-6, atol=1e-6)
        if num_neighbours == index.num_neighbours:
          for of_search, of_merge in zip(
              setting.search(state, queries, depth), (scores, ids)):
            np.testing.assert_array_equal(of_search, of_merge[:, :depth])

  def test_xl_computes_missing_scores_where_pecos_leaves_zero(self):
    depth, queries = int(self.pecos['depth']), self.pecos['test_queries']
    labels = np.zeros((len(self.pecos['queries']), len(self.pecos['targets'])))
    np.add.at(labels, (self.pairs.query_rows, self.pairs.target_rows), 1)
    similarities = queries @ self.pairs.queries.T
    far = np.argsort(-similarities, axis=1)[:, 16:]
    np.put_along_axis(similarities, far, 0, axis=1)
    for weight in self.pecos['weights']:
      index = adapters.PefaXL(
          self.exact(1), self.exact(1), weight=weight, num_neighbours=16,
          missing='exact', depth=depth)
      scores, _ = index.search(
          index.build(self.pecos['targets'], self.pairs), queries, depth)
      f = (weight * queries @ self.pecos['targets'].T
           + (1 - weight) * similarities @ labels / 16)
      np.testing.assert_allclose(
          scores, -np.sort(-f, axis=1)[:, :depth], rtol=0, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
