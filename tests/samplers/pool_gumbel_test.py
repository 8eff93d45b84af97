"""Pools and Gumbel draws side by side are those of both, and none twice."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import samplers
from retrieval_jax import types
from tests import helpers
from tests.samplers import pool_test

K, POOLED = 6, 2
ORDERS = samplers.pool.ORDERS


def make(**options):
  return samplers.PoolGumbel(**({
      'num_negatives': K, 'num_pooled': POOLED, 'pool_order': 'rotating',
      'pool_capacity': 6, 'num_queries': pool_test.QUERIES,
      'epoch_size': pool_test.EPOCH} | options))


def asked(query_ids, view, *, exclude=None, step=0):
  return helpers.request(
      np.ones((len(query_ids), 3), np.float32), view.table, exclude=exclude,
      step=step)._replace(query_ids=jnp.asarray(query_ids))


def draw(sampler, query_ids, *, seed=0, devices=1, **asking):
  view = pool_test.remembered(devices)
  return jax.device_get(jax.jit(
      lambda state, table, request: sampler.propose(
          state, jax.random.key(seed), request, view._replace(table=table)))(
              pool_test.filled(sampler, devices), view.table,
              asked(query_ids, view, **asking)))


class PoolGumbelTest(parameterized.TestCase):

  @parameterized.parameters(*ORDERS)
  @pytest.mark.slow
  def test_draws_are_those_of_both(self, order):
    sampler, queries = make(pool_order=order), [0, 1, 4, 5, 2, 3]
    exclude = [[11], [-1], [-1], [50], [-1], [-1]]
    found = draw(sampler, queries, seed=4, exclude=exclude, step=3)
    view = pool_test.remembered()
    request = asked(queries, view, exclude=exclude, step=3)
    keys = jax.random.split(jax.random.key(4))
    pooled = pool_test.make(pool_order=order).propose(
        pool_test.filled(sampler), keys[0], request, view)
    drawn = samplers.Gumbel(K - POOLED).propose((), keys[1], request, view)
    for ids, *both in zip(found.ids, pooled.ids, drawn.ids):
      wanted = []
      for i in np.concatenate(both).tolist():
        lacks = i in wanted or i == 53  # which is not remembered
        wanted.append(-1 if lacks else i)
      np.testing.assert_array_equal(ids, wanted)
    self.assertTrue((found.ids[:3, :POOLED] >= 0).any(axis=1).all())
    np.testing.assert_array_equal(found.mask, found.ids >= 0)
    np.testing.assert_array_equal(found.mask, found.rows >= 0)
    np.testing.assert_allclose(
        found.logits[found.mask], pool_test.logits_of(found.ids[found.mask]),
        rtol=1e-5)
    np.testing.assert_array_equal(found.logits[~found.mask], -np.inf)
    np.testing.assert_array_equal(
        view.table.ids[found.rows][found.mask], found.ids[found.mask])
    np.testing.assert_array_equal(found.log_z, np.nan)

  @parameterized.parameters(*ORDERS)
  @pytest.mark.slow
  def test_an_id_drawn_twice_is_there_once(self, order):
    """Nearly all of 13 ids: pools of them are drawn by both."""
    found = draw(make(pool_order=order, num_negatives=200, num_pooled=2),
                 [4] * 50)
    for ids in found.ids:
      ids = ids[ids >= 0].tolist()
      self.assertLen(set(ids), len(ids))
    self.assertTrue((found.ids[:, 0] >= 40).all())  # of the pool, the first
    self.assertTrue((found.ids[:, 2:] == -1).any())
    first = draw(make(num_negatives=3), [4]).ids[0]
    np.testing.assert_array_equal(first[:2], [40, -1])  # 40, 40

  @pytest.mark.slow
  def test_what_is_not_of_the_pool_follows_the_softmax(self):
    """Counts of the first Gumbel draw against the closed form."""
    size = 20_000
    found = draw(make(num_negatives=3), [3] * size)  # whose pool is empty
    self.assertFalse(found.mask[:, :2].any())
    ids = pool_test.remembered().table.ids
    ids = np.sort(np.asarray(ids[ids >= 0]))
    p = np.exp(pool_test.logits_of(ids))
    p /= p.sum()
    counts = np.bincount(np.searchsorted(ids, found.ids[:, 2]),
                         minlength=len(ids))
    chi = lambda p: ((counts - size * p)**2 / (size * p)).sum()
    bound = len(ids) + 3.3 * np.sqrt(2 * len(ids))  # 99.9%
    self.assertLess(chi(p), bound)
    self.assertGreater(chi(np.full(len(ids), 1 / len(ids))), bound)

  @parameterized.parameters(
      ('softmax', 2), ('softmax', 4), ('softmax', 8), ('rotating', 8))
  @pytest.mark.slow
  def test_the_number_of_devices_does_not_matter(self, order, devices):
    one, other = (draw(make(pool_order=order), [5, 0, 4, 1, 2, 0, 3, 5],
                       step=3, devices=number) for number in (1, devices))
    np.testing.assert_array_equal(one.rows, other.rows)

  def test_costs_both(self):
    gumbel = np.array(samplers.Gumbel(K - POOLED).rows_scored(4, 512))
    for order, pooled in (
        ('rotating', 4 * 2), ('uniform', 4 * 2), ('softmax', 4 * 6)):
      np.testing.assert_array_equal(
          make(pool_order=order).rows_scored(4, 512), gumbel + pooled)

  def test_pools_are_rebuilt_as_those_of_a_pool(self):
    sampler = make()
    state = pool_test.filled(sampler)
    np.testing.assert_array_equal(
        state.ids, pool_test.filled(pool_test.make()).ids)
    kept = sampler.rebuild(state, jax.random.key(0), types.Episode(
        0, None, None, None, None))
    np.testing.assert_array_equal(kept.ids, state.ids)

  @parameterized.parameters(
      ({'num_pooled': 0}, 'num_pooled=0'), ({'num_pooled': K}, 'num_pooled=6'),
      ({'pool_order': 'sorted'}, 'pool_order.*softmax'))
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      make(**options)


if __name__ == '__main__':
  absltest.main()
