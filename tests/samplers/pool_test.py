"""The pool's windows by hand, its uniform draws, and what it refuses."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import types

K, QUERIES, EPOCH = 2, 6, 4
POOLS = np.array([
    [10, 11, 12, 13, 14], [20, 21, 22, 23, -1], [30, -1, -1, -1, -1],
    [-1, -1, -1, -1, -1], [40, 40, 41, -1, -1], [50, 51, 52, 53, 54]], np.int32)


def make(**options):
  return samplers.Pool(**({
      'num_negatives': K, 'pool_order': 'rotating', 'pool_capacity': 6,
      'num_queries': QUERIES, 'epoch_size': EPOCH} | options))


def filled(sampler, devices=1):
  mesh = sharding.make_mesh(devices)
  first = jax.eval_shape(lambda: sampler.init(jax.random.key(0), None))
  state = jax.jit(lambda: sampler.init(jax.random.key(0), None),
                  out_shardings=sharding.state_shardings(first, mesh))()
  return sampler.rebuild(state, jax.random.key(1), types.Episode(
      0, None, None, None, None, POOLS))


def draw(sampler, query_ids, step=0, *, seed=0, exclude=None, devices=1):
  """Returns what is drawn for queries, which are a batch of their own."""
  exclude = np.full((len(query_ids), 1), -1) if exclude is None else exclude
  request = types.Request(
      jnp.zeros((len(query_ids), 3)), jnp.asarray(query_ids, jnp.int32),
      jnp.asarray(exclude, jnp.int32), jnp.asarray(exclude, jnp.int32),
      jnp.full(len(query_ids), -1), jnp.int32(step))
  found = jax.jit(lambda state, request: sampler.propose(
      state, jax.random.key(seed), request, None))(
          filled(sampler, devices), request)
  np.testing.assert_array_equal(found.mask, found.ids >= 0)
  return np.asarray(found.ids)


class PoolTest(parameterized.TestCase):

  def test_the_window_moves_with_the_epoch(self):
    # A batch of two, and epochs of four queries: epoch t // 2.
    for step, first, second in (
        (0, [10, 11], [20, 21]), (1, [10, 11], [20, 21]),
        (2, [12, 13], [22, 23]), (4, [14, 10], [20, 21]),
        (6, [11, 12], [22, 23])):
      np.testing.assert_array_equal(
          draw(make(), [0, 1], step), [first, second], f'step {step}')

  def test_an_epoch_may_end_within_a_batch(self):
    np.testing.assert_array_equal(
        draw(make(epoch_size=3), [0, 0, 0, 0], step=0),
        [[10, 11], [10, 11], [10, 11], [12, 13]])

  def test_rotating_takes_each_id_once_where_they_divide(self):
    seen = [draw(make(), [1, 1, 1, 1], step)[0] for step in (0, 1)]
    self.assertCountEqual(np.ravel(seen), [20, 21, 22, 23])

  def test_an_id_counts_as_often_as_it_is_there(self):
    np.testing.assert_array_equal(draw(make(), [4], step=0), [[40, 40]])

  @parameterized.parameters(*samplers.pool.ORDERS)
  def test_a_short_pool_is_drawn_from_again(self, order):
    sampler = make(pool_order=order, num_negatives=4)
    found = draw(sampler, [2, 3, 4])
    np.testing.assert_array_equal(found[:2], [[30] * 4, [-1] * 4])
    self.assertContainsSubset(found[2], [40, 41])
    many = make(pool_order=order, num_negatives=6)
    self.assertGreater(len({tuple(draw(many, [0], seed=seed)[0])
                            for seed in range(4)}), 1)

  def test_uniform_is_so_and_without_replacement(self):
    sampler = make(pool_order='uniform')
    found = np.concatenate([draw(sampler, [0] * 400 + [4] * 200, seed=seed)
                            for seed in range(2)])
    of_first = np.concatenate([found[:400], found[600:1000]])
    self.assertTrue((of_first[:, 0] != of_first[:, 1]).all())
    counts = np.bincount(of_first.ravel(), minlength=15)[10:]
    np.testing.assert_allclose(counts, 320, atol=5 * np.sqrt(320))
    # Of 40, 40 and 41, two of three pairs have a 41.
    share = (found[400:600] == 41).any(axis=1).mean()
    self.assertAlmostEqual(share, 2 / 3, delta=0.15)

  @parameterized.parameters(*samplers.pool.ORDERS)
  def test_excluded_ids_are_masked(self, order):
    found = draw(make(pool_order=order, num_negatives=5), [0],
                 exclude=[[12]])
    self.assertCountEqual(found[0], [10, 11, -1, 13, 14])

  @parameterized.parameters(*samplers.pool.ORDERS)
  def test_the_number_of_devices_does_not_matter(self, order):
    sampler = make(pool_order=order)
    one, eight = (draw(sampler, [5, 0, 4, 1], 3, devices=devices)
                  for devices in (1, 8))
    np.testing.assert_array_equal(one, eight)

  def test_pools_stay_unless_others_were_mined(self):
    sampler = make()
    state = filled(sampler)
    kept = sampler.rebuild(state, jax.random.key(0), types.Episode(
        0, None, None, None, None))
    np.testing.assert_array_equal(kept.ids, state.ids)
    with self.assertRaisesRegex(
        ValueError, r'at most 6 ids .* of 6 queries.*\(6, 7\)'):
      sampler.rebuild(state, jax.random.key(0), types.Episode(
          0, None, None, None, None, np.zeros((QUERIES, 7), np.int32)))

  @parameterized.parameters(
      ({'pool_order': 'sorted'}, 'pool_order.*rotating'),
      ({'num_negatives': 0}, 'num_negatives=0'))
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      make(**options)


if __name__ == '__main__':
  absltest.main()
