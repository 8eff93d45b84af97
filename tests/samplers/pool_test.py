"""The pool's windows by hand, its random draws, and what it refuses."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from tests import helpers

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


IDS = np.array([*range(10, 15), *range(20, 24), 30, 40, 41, *range(50, 54)])
BLIND = ('rotating', 'uniform')


def remembered(devices=1, fold=None):
  """Returns a View whose rows, of IDS in another order, score about -2 to 2.

  Id 53 is not remembered.
  """
  mesh, rng = sharding.make_mesh(devices), np.random.default_rng(0)
  ids = rng.permutation(np.r_[IDS[:-1], np.arange(100, 400), [-1] * 9])
  table = tables.create(
      rng.uniform(-1, 1, (len(ids), 3)), ids, mesh=mesh,
      chunk_rows=512 // devices, dtype='float32')
  return types.View(table, lambda rows: 2 * rows.embeddings, jnp.float32(0.5),
                    types.Scan(mesh, 512 // devices), fold)


def draw_softmax(query_ids, *, seed=0, exclude=None, devices=1, fold=None,
                 **options):
  """Returns the Proposal of queries (1, 1, 1) by what is remembered."""
  sampler, view = make(pool_order='softmax', **options), remembered(
      devices, fold)
  request = helpers.request(
      np.ones((len(query_ids), 3), np.float32), view.table, exclude=exclude)
  request = request._replace(query_ids=jnp.asarray(query_ids))
  return jax.device_get(jax.jit(
      lambda state, table, request: sampler.propose(
          state, jax.random.key(seed), request, view._replace(table=table)))(
              filled(sampler, devices), view.table, request))


def logits_of(ids):
  """Returns what (1, 1, 1) scores, -inf where it is not remembered."""
  table = remembered().table
  found = dict(zip(table.ids.tolist(), np.asarray(table.embeddings).sum(1)))
  return np.array([found.get(i, -np.inf) for i in ids])


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

  @parameterized.parameters(*BLIND)
  @pytest.mark.slow
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

  @parameterized.parameters(*BLIND)
  def test_excluded_ids_are_masked(self, order):
    found = draw(make(pool_order=order, num_negatives=5), [0],
                 exclude=[[12]])
    self.assertCountEqual(found[0], [10, 11, -1, 13, 14])

  @parameterized.parameters(*BLIND)
  def test_the_number_of_devices_does_not_matter(self, order):
    sampler = make(pool_order=order)
    one, eight = (draw(sampler, [5, 0, 4, 1], 3, devices=devices)
                  for devices in (1, 8))
    np.testing.assert_array_equal(one, eight)

  @parameterized.parameters(
      (0, (), [10, 11, 12, 13, 14]), (0, (11, 14), [10, 12, 13]),
      (4, (), [40, 41]), (5, (50,), [51, 52]))
  def test_softmax_is_over_what_is_left_of_the_pool(self, query, known, left):
    """Chi-square of ordered pairs against the closed form, 99.9% bound.

    An id that is there twice counts once.
    """
    size = 8192
    found = draw_softmax([query] * size, exclude=np.tile(
        np.array([*known, -1]), (size, 1)))
    logits = logits_of(left)
    log_z = np.logaddexp.reduce(logits)
    np.testing.assert_allclose(found.log_z, log_z, rtol=1e-6)
    self.assertTrue(np.isin(found.ids, left).all())
    p = np.exp(logits - log_z)
    counts = np.zeros((len(left),) * 2)
    np.add.at(counts, tuple(np.searchsorted(left, found.ids).T), 1)
    cells = ~np.eye(len(left), dtype=bool)
    chi = lambda p: ((counts - (expected := size * p[:, None] * p[None] / (
        1 - p[:, None])))[cells]**2 / expected[cells]).sum()
    bound = {2: 10.9, 3: 20.6, 5: 43.9}[len(left)]  # 1, 5, 19 degrees
    self.assertLess(chi(p), bound)
    self.assertGreater(chi(p[::-1]), bound)
    where = np.searchsorted(left, found.ids)
    np.testing.assert_allclose(found.logits, logits[where], rtol=1e-5)
    np.testing.assert_allclose(found.log_q, np.log(p)[where], rtol=1e-5)
    table = remembered().table
    np.testing.assert_array_equal(table.ids[found.rows], found.ids)

  def test_softmax_masks_what_a_pool_lacks(self):
    found = draw_softmax(range(QUERIES), num_negatives=8,
                         exclude=[[12], [-1], [-1], [-1], [-1], [-1]])
    for ids, wanted in zip(found.ids, (
        [10, 11, 13, 14], [20, 21, 22, 23], [30], [], [40, 41],
        [50, 51, 52])):  # 53 is not remembered
      self.assertCountEqual(ids, wanted + [-1] * (8 - len(wanted)))
    np.testing.assert_array_equal(found.mask, found.ids >= 0)
    np.testing.assert_array_equal(found.mask, found.rows >= 0)
    np.testing.assert_array_equal(found.log_z[3], -np.inf)
    self.assertFalse(np.isnan(found.log_z).any())

  @parameterized.parameters(2, 4, 8)
  @pytest.mark.slow
  def test_softmax_draws_the_same_on_more_devices(self, devices):
    one, other = (draw_softmax([5, 0, 4, 1, 2, 0, 3, 5], devices=devices)
                  for devices in (1, devices))
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-6)

  def test_softmax_moves_queries_where_the_corrector_folds(self):
    plain = draw_softmax([0, 1, 5], seed=1)
    folded = draw_softmax([0, 1, 5], seed=1, fold=lambda x: (
        2 * x, 0.25 + jnp.zeros(len(x))))
    np.testing.assert_array_equal(folded.rows, plain.rows)
    np.testing.assert_allclose(folded.logits, plain.logits + 0.25, rtol=1e-5)

  @parameterized.parameters(*samplers.pool.ORDERS)
  def test_says_what_it_needs_and_costs(self, order):
    sampler, by_softmax = make(pool_order=order), order == 'softmax'
    self.assertEqual(sampler.gives, {'log_z'} if by_softmax else set())
    self.assertEqual(sampler.draws_from_memory, by_softmax)
    self.assertEqual(sampler.reads_embeddings, by_softmax)
    self.assertEqual(sampler.rows_scored(4, 512), (24, 24) if by_softmax
                     else (0, 0))
    self.assertEqual(make(pool_order=order, num_negatives=9).rows_scored(
        4, 512), (36, 36) if by_softmax else (0, 0))

  def test_draws_without_scores_are_as_they_were(self):
    for order, wanted in (
        ('rotating', [[12, 13], [20, 21], [30, 30], [52, 53]]),
        ('uniform', [[10, 14], [20, 21], [30, 30], [50, 52]])):
      np.testing.assert_array_equal(
          draw(make(pool_order=order), [0, 1, 2, 5], 6, seed=3), wanted)

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
