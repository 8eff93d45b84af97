"""Exact selection: as brute force, on any device count, in distribution."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import table
from retrieval_jax.types import Scan, View

NUM_TARGETS, DIM, NUM_QUERIES, BETA = 700, 8, 6, 3.


@functools.cache
def _data():
  """Returns targets [N, D], queries [B, D], exclude [B, E], weight [D, D]."""
  rng = np.random.default_rng(0)
  targets = rng.normal(size=(NUM_TARGETS, DIM)).astype(np.float32)
  queries = rng.normal(size=(NUM_QUERIES, DIM)).astype(np.float32)
  weight = np.eye(DIM) + .1 * rng.normal(size=(DIM, DIM))
  weight = weight.astype(np.float32)
  best = np.argsort(-queries @ (targets @ weight).T, axis=1)
  exclude = np.stack([
      best[:, 1], np.full(NUM_QUERIES, -1), best[:, 0], best[:, 300]], axis=1)
  exclude[0] = -1
  return targets, queries, exclude.astype(np.int32), weight


def plain_view(rows, mesh, *, chunk_rows=64, scale=1.0):
  """Returns the View of a table as it is."""
  return View(rows, lambda rows: rows.embeddings, jnp.float32(scale),
              Scan(mesh, chunk_rows))


def _logits(dtype='float32', exclude=True, gaps=True):
  """Returns all logits [B, N] the slow and obvious way."""
  targets, queries, rows, weight = _data()
  stale = np.asarray(jnp.asarray(targets).astype(dtype), np.float64)
  logits = BETA * queries.astype(np.float64) @ (stale @ weight).T
  if exclude:
    for query, row in zip(*np.nonzero(rows >= 0)):
      logits[query, rows[query, row]] = -np.inf
  if gaps:
    logits[:, ::7] = -np.inf
  return logits


@functools.cache
def _kernels(devices, chunk_rows, dtype='float32', k=9, shard_queries=False):
  """Returns what all three kernels find, by one jit, as numpy arrays."""
  targets, queries, exclude, weight = _data()
  mesh = sharding.make_mesh(devices)
  ids = np.where(np.arange(NUM_TARGETS) % 7, np.arange(NUM_TARGETS), -1)
  rows = table.create(
      targets, ids, mesh=mesh, chunk_rows=chunk_rows, dtype=dtype)

  @jax.jit
  def run(key, queries, rows, weight, scale, exclude):
    correct = lambda rows: rows.embeddings.astype(jnp.float32) @ weight
    view = View(rows, correct, scale, Scan(mesh, chunk_rows))
    options = dict(exclude_rows=exclude)
    return (scoring.top_k(queries, view, k, **options),
            scoring.gumbel_top_k(key, queries, view, k, **options),
            scoring.log_partition(queries, view, **options))

  where = sharding.batch if shard_queries else sharding.replicated
  queries = jax.device_put(queries, where(mesh))
  return jax.tree.map(np.asarray, run(
      jax.random.key(5), queries, rows, weight, jnp.float32(BETA), exclude))


class BruteForceTest(parameterized.TestCase):

  @parameterized.parameters((1, 'float32'), (4, 'float32'), (4, 'bfloat16'))
  def test_top_k_equals_a_full_sort(self, devices, dtype):
    (logits, rows), _, _ = _kernels(devices, 64, dtype)
    expected = _logits(dtype)
    order = np.argsort(-expected, axis=1, kind='stable')[:, :9]
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(
        logits, np.take_along_axis(expected, order, axis=1), rtol=1e-5)
    self.assertEqual(rows.dtype, np.int32)

  @parameterized.parameters((1, 'float32'), (4, 'float32'), (4, 'bfloat16'))
  def test_log_partition_equals_the_full_log_sum_exp(self, devices, dtype):
    _, (_, _, log_z), alone = _kernels(devices, 64, dtype)
    expected = np.logaddexp.reduce(_logits(dtype), axis=1)
    np.testing.assert_allclose(log_z, expected, rtol=2e-6)
    np.testing.assert_allclose(alone, expected, rtol=2e-6)

  @parameterized.parameters(1, 4)
  @pytest.mark.slow
  def test_moved_queries_find_what_moved_rows_do(self, devices):
    """Of an affine map, with -1 and gaps as elsewhere; by all kernels."""
    targets, queries, exclude, weight = _data()
    bias = np.random.default_rng(9).normal(size=weight.shape[1])
    mesh = sharding.make_mesh(devices)
    rows = table.from_embeddings(targets, mesh, 64, 'float32')
    correct = lambda rows: rows.embeddings @ weight + jnp.broadcast_to(
        bias, rows.embeddings.shape)
    fold = lambda queries: (queries @ weight.T, queries @ bias)
    found = []
    for folded in (False, True):
      view = View(rows, correct, jnp.float32(BETA), Scan(mesh, 64),
                  fold if folded else None)
      ceiling = jnp.full(len(queries), BETA / 2)
      found.append(jax.device_get((
          scoring.top_k(queries, view, 9, exclude_rows=exclude,
                        ceiling=ceiling),
          scoring.gumbel_top_k(jax.random.key(5), queries, view, 9,
                               exclude_rows=exclude),
          scoring.bucket_maxima(queries, view, 8, exclude_rows=exclude),
          scoring.log_partition(queries, view, exclude_rows=exclude))))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(
        one, other, rtol=1e-4, atol=1e-4), *found)

  @parameterized.parameters('bd,ud->bu', 'bd,ud->ub', 'bd,bd->b')
  def test_scores_of_a_slice_are_those_of_corrected_rows(self, subscripts):
    targets, queries, _, weight = _data()
    bias = np.random.default_rng(9).normal(size=weight.shape[1])
    mesh = sharding.make_mesh(1)
    rows = table.take(table.from_embeddings(targets, mesh, 64, 'float32'),
                      np.arange(len(queries)) + 3)
    view = plain_view(rows, mesh)._replace(
        correct=lambda rows: rows.embeddings @ weight + bias[None])
    folded = view._replace(
        correct=None, fold=lambda x: (x @ weight.T, x @ bias))
    wanted = np.einsum(
        subscripts, queries, np.asarray(rows.embeddings) @ weight + bias)
    for seen in (view, folded):
      np.testing.assert_allclose(
          scoring.inner(subscripts, queries, seen, rows), wanted, rtol=1e-4,
          atol=1e-4)

  def test_gumbel_returns_logits_without_noise(self):
    _, (rows, logits, _), _ = _kernels(4, 64)
    np.testing.assert_allclose(
        logits, np.take_along_axis(_logits(), rows, axis=1), rtol=1e-5)
    for row in rows:
      self.assertLen(set(row), 9)

  def test_ties_go_to_the_lowest_row(self):
    mesh = sharding.make_mesh(2)
    rows = table.from_embeddings(np.ones((256, 4)), mesh, 64, 'float32')
    view = plain_view(rows, mesh)
    _, found = scoring.top_k(
        jnp.ones((2, 4)), view, 5,
        exclude_rows=jnp.asarray([[1, 3], [-1, -1]], jnp.int32))
    np.testing.assert_array_equal(found, [[0, 2, 4, 5, 6], [0, 1, 2, 3, 4]])

  @parameterized.parameters(1, 2)
  def test_fewer_live_rows_than_k_fill_up_with_minus_one(self, devices):
    mesh = sharding.make_mesh(devices)
    rows = table.create(
        np.eye(3), [4, -1, 6], mesh=mesh, chunk_rows=64, dtype='float32')

    @jax.jit
    def run(key, queries, exclude):
      view = plain_view(rows, mesh)
      options = dict(exclude_rows=exclude)
      return (scoring.top_k(queries, view, 150, **options),
              scoring.gumbel_top_k(key, queries, view, 150, **options))

    exclude = jnp.asarray([[-1, -1], [0, 2]], jnp.int32)
    (logits, top), (drawn, drawn_logits, log_z) = run(
        jax.random.key(0), jnp.ones((2, 3)), exclude)
    np.testing.assert_array_equal(top[0, :3], [0, 2, -1])
    self.assertCountEqual(drawn[0, :2].tolist(), [0, 2])
    for rows_found, found in ((top, logits), (drawn, drawn_logits)):
      self.assertEqual(rows_found.shape, (2, 150))
      np.testing.assert_array_equal(rows_found[0, 2:], -1)
      np.testing.assert_array_equal(rows_found[1], -1)
      np.testing.assert_array_equal(found[0, :2], 1.)
      np.testing.assert_array_equal(found[0, 2:], -np.inf)
    np.testing.assert_allclose(log_z, [1. + np.log(2.), -np.inf])

  def test_huge_logits_stay_finite(self):
    mesh = sharding.make_mesh(1)
    rows = table.from_embeddings(
        np.linspace(-1, 1, 64)[:, None], mesh, 64, 'float32')
    view = plain_view(rows, mesh, scale=1e4)
    drawn, logits, log_z = scoring.gumbel_top_k(
        jax.random.key(0), jnp.ones((3, 1)), view, 4)
    np.testing.assert_array_equal(drawn, [[63, 62, 61, 60]] * 3)
    np.testing.assert_allclose(log_z, 1e4, rtol=1e-6)
    self.assertTrue(np.all(np.isfinite(logits)))


class ListedTest(parameterized.TestCase):

  @parameterized.product(devices=(1, 2, 8), num_lists=(None, 2))
  def test_logits_of_listed_rows_equal_the_full_ones(self, devices, num_lists):
    """Lists of any rows: twice the same, excluded and empty ones, and none."""
    targets, queries, exclude, weight = _data()
    mesh = sharding.make_mesh(devices)
    ids = np.where(np.arange(NUM_TARGETS) % 7, np.arange(NUM_TARGETS), -1)
    rows = table.create(
        targets, ids, mesh=mesh, chunk_rows=64, dtype='float32')
    listed = np.random.default_rng(1).integers(
        -1, NUM_TARGETS, (NUM_QUERIES, 3, 50)).astype(np.int32)
    listed[:, 0, :4], listed[:, 1, :2] = exclude, -1
    bias = np.random.default_rng(9).normal(size=weight.shape[1])
    wanted = np.where(listed >= 0, np.take_along_axis(
        _logits()[:, None], np.maximum(listed, 0), axis=2), -np.inf)
    wanted[:, 3 if num_lists is None else num_lists:] = -np.inf
    for seen, added in (
        (dict(correct=lambda rows: rows.embeddings @ weight), 0.),
        (dict(correct=None, fold=lambda x: (x @ weight.T, x @ bias)),
         BETA * queries @ bias)):
      found = jax.jit(lambda rows, seen=seen: scoring.logits_of(
          queries, plain_view(rows, mesh, scale=BETA)._replace(**seen), listed,
          exclude_rows=exclude,
          num_lists=None if num_lists is None else jnp.int32(num_lists)))(rows)
      np.testing.assert_allclose(
          found, wanted + np.reshape(added, (-1, 1, 1)), rtol=1e-4, atol=1e-4)

  @parameterized.parameters(1, 8)
  def test_a_function_of_every_row_is_of_its_own_vector(self, devices):
    targets, queries, _, weight = _data()
    mesh = sharding.make_mesh(devices)
    ids = np.where(np.arange(NUM_TARGETS) % 7, np.arange(NUM_TARGETS), -1)
    rows = table.create(
        targets, ids, mesh=mesh, chunk_rows=64, dtype='float32')
    view = plain_view(rows, mesh)._replace(
        correct=lambda rows: rows.embeddings @ weight)
    scores, live = scoring.map_rows(
        lambda vectors, live, queries: (vectors @ queries.T, live), view,
        queries)
    np.testing.assert_allclose(
        scores[:NUM_TARGETS], targets @ weight @ queries.T, rtol=1e-5,
        atol=1e-5)
    np.testing.assert_array_equal(live[:NUM_TARGETS], ids >= 0)
    self.assertFalse(live[NUM_TARGETS:].any())


class InvarianceTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, 128, False), (2, 256, True), (4, 64, False), (8, 64, False))
  def test_draws_do_not_depend_on_devices_chunks_or_sharding_of_queries(
      self, devices, chunk_rows, shard_queries):
    (_, top), (drawn, _, log_z), _ = _kernels(
        devices, chunk_rows, shard_queries=shard_queries)
    (_, expected_top), (expected, _, expected_z), _ = _kernels(1, 64)
    np.testing.assert_array_equal(top, expected_top)
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_allclose(log_z, expected_z, rtol=1e-6)

  def test_scores_of_all_rows_are_never_stored(self):
    mesh = sharding.make_mesh(1)
    num_rows, num_queries = 2**16, 64
    rows = jax.eval_shape(
        lambda: table.TargetTable(
            jnp.zeros((num_rows, 4)), jnp.zeros(num_rows, jnp.int32),
            jnp.zeros(num_rows, jnp.int32), True))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def run(key, queries, rows):
      view = plain_view(rows, mesh, chunk_rows=256)
      return (scoring.top_k(queries, view, 8),
              scoring.gumbel_top_k(key, queries, view, 8))

    memory = jax.jit(run).lower(
        key, jax.ShapeDtypeStruct((num_queries, 4), jnp.float32), rows
    ).compile().memory_analysis()
    self.assertLess(
        memory.temp_size_in_bytes, 4 * num_queries * num_rows / 10)


def _tail_p_value(draw, key, num_blocks=1024, num_queries=2**15):
  """Returns the p-value of a chi-square test of the largest Gumbels."""
  # Between the values that 23 random bits can give near their cap of 15.94.
  edges = np.asarray([11., 12., 13., 14., 14.35, 14.55, 14.60, 14.82, 14.86,
                      15.22, 15.28, 15.90, 15.96, 30.])

  @jax.jit
  def count(key):
    exponentials = draw(key, jnp.arange(num_blocks), num_queries)
    return jnp.stack([
        jnp.sum(exponentials < limit) for limit in np.exp(-edges)])

  survival = -np.expm1(-np.exp(-edges))
  expected = -np.diff(survival) * num_blocks * num_queries
  seen = -np.diff(np.asarray(count(key)))
  return stats.chi2.sf(np.sum((seen - expected)**2 / expected), len(seen))


def _capped_exponential(key, blocks, num_queries):
  return jnp.exp(-jax.random.gumbel(key, (len(blocks), num_queries)))


class NoiseTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_tail_of_the_noise_is_right_and_23_bits_fail(self):
    p_value = {
        name: _tail_p_value(draw, jax.random.key(1)) for name, draw in (
            ('ours', scoring._exponential),
            ('jax.random.gumbel', _capped_exponential))}
    self.assertGreater(p_value['ours'], 1e-3)
    self.assertLess(p_value['jax.random.gumbel'], 1e-6)

  def test_smallest_exponentials_are_the_random_bits_themselves(self):
    bits = np.asarray([1, 2, 3, 1000, 2**20], np.uint32)
    np.testing.assert_allclose(
        scoring._bits_to_exponential(jnp.asarray(bits)),
        -np.log1p(-(bits / 2.**32)), rtol=1e-6)
    extremes = scoring._bits_to_exponential(
        jnp.asarray([0, 2**32 - 1], jnp.uint32))
    self.assertTrue(np.all(np.isfinite(extremes) & (extremes > 0)))

  def test_noise_of_a_block_does_not_depend_on_its_company(self):
    key = jax.random.key(2)
    together = scoring._exponential(key, jnp.arange(6), 5)
    apart = scoring._exponential(key, jnp.asarray([4]), 3)
    np.testing.assert_array_equal(together[4, :3], apart[0])


def _pair_p_value(devices, num_draws=8192):
  """Returns the p-value of ordered pairs drawn, against the closed form."""
  rng = np.random.default_rng(3)
  logits = np.full(256, -30.)
  chosen = np.asarray([0, 1, 2, 63, 64, 65, 130, 200, 255])
  logits[chosen] = rng.normal(size=len(chosen))
  mesh = sharding.make_mesh(devices)
  rows = table.from_embeddings(logits[:, None], mesh, 64, 'float32')
  view = plain_view(rows, mesh)
  drawn, _, _ = jax.jit(lambda key: scoring.gumbel_top_k(
      key, jnp.ones((num_draws, 1)), view, 2))(jax.random.key(4))
  p = np.exp(logits[chosen]) / np.sum(np.exp(logits[chosen]))
  expected = p[:, None] * p[None] / (1 - p[:, None])
  expected = num_draws * expected * (1 - np.eye(len(p)))
  seen = np.zeros_like(expected)
  np.add.at(seen, tuple(np.searchsorted(chosen, np.asarray(drawn).T)), 1)
  cells = expected > 0
  return stats.chisquare(
      seen[cells], expected[cells] * seen.sum() / expected.sum()).pvalue


class DistributionTest(parameterized.TestCase):

  @parameterized.parameters(1, 4)
  def test_pairs_follow_the_law_of_draws_without_replacement(self, devices):
    self.assertGreater(_pair_p_value(devices), 1e-3)

  def test_rows_not_conditioned_on_their_block_fail(self):
    with mock.patch.object(
        scoring, '_given_maximum', lambda perturbed, maxima: perturbed):
      self.assertLess(_pair_p_value(1), 1e-6)

  def test_one_noise_per_block_instead_of_rows_fails(self):
    greedy = lambda perturbed, maxima: (
        perturbed - jnp.max(perturbed, axis=2, keepdims=True)
        + maxima[:, :, None])
    with mock.patch.object(scoring, '_given_maximum', greedy):
      self.assertLess(_pair_p_value(1), 1e-6)

  def test_conditioned_noise_keeps_the_maximum_and_its_place(self):
    rng = np.random.default_rng(0)
    perturbed = rng.gumbel(size=(3, 4, 5)).astype(np.float32)
    perturbed[0, 0] = -np.inf
    perturbed[1, 1, 1:] = -np.inf
    maxima = np.linspace(-5, 30, 12, dtype=np.float32).reshape(3, 4)
    moved = np.asarray(scoring._given_maximum(
        jnp.asarray(perturbed), jnp.asarray(maxima)))
    np.testing.assert_array_equal(moved[0, 0], -np.inf)
    live = np.ones((3, 4), bool)
    live[0, 0] = False
    np.testing.assert_allclose(moved.max(2)[live], maxima[live], rtol=1e-5)
    np.testing.assert_array_equal(
        moved.argmax(2)[live], perturbed.argmax(2)[live])
    self.assertFalse(np.any(np.isnan(moved)))


class ErrorTest(absltest.TestCase):

  def _top_k(self, queries, mesh_of_table=1, chunk_rows=64):
    rows = table.from_embeddings(
        np.zeros((64, 4)), sharding.make_mesh(mesh_of_table), 64, 'float32')
    return scoring.top_k(queries, plain_view(
        rows, sharding.make_mesh(2), chunk_rows=chunk_rows), 2)

  def test_part_chunks_name_both_numbers_and_what_to_do(self):
    with self.assertRaisesRegex(
        ValueError, '64 rows, expected a multiple of 128.*table.create'):
      self._top_k(jnp.ones((2, 4)))

  def test_chunk_rows_must_hold_whole_blocks(self):
    with self.assertRaisesRegex(ValueError, 'chunk_rows is 100, .*of 64'):
      self._top_k(jnp.ones((2, 4)), chunk_rows=100)

  def test_dimension_mismatch_names_the_argument(self):
    with self.assertRaisesRegex(ValueError, 'table.embeddings has D=4.*D=3'):
      self._top_k(jnp.ones((2, 3)))


if __name__ == '__main__':
  absltest.main()
