"""The tree draws what it says, as near to the softmax as it must be.

References are slow and obvious: every row is scored, every leaf enumerated,
chains are matrices.
"""

import dataclasses
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from retrieval_jax import correctors
from retrieval_jax import method as methods
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import tree as trees
from retrieval_jax import tree_bounds
from retrieval_jax import tree_building
from retrieval_jax import types
from retrieval_jax.samplers import tree as tree_sampler
from retrieval_jax.training import step as training_step
from tests import helpers

N, D, CHUNK = 900, 4, 64  # of leaves of 4 rows: several parents
COPIES = 2048  # of the one query, where draws are counted
OPTIONS = dict(
    num_negatives=2, leaf_size=8, moments=2, beam=0, opened=3, open_until=0.0,
    accept='metropolis', chain_steps=0, step_proposals=1, move_margin=0.1,
    regrow_share=0.1)
EXCLUDED = np.array([3, 40, 41, 3, -1, 7, 899], np.int32)


def make(**options):
  return samplers.Tree(**OPTIONS | options)


@functools.cache
def vectors(count=N):
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(40, D))
  return (centres[rng.integers(0, 40, count)]
          + 0.4 * rng.normal(size=(count, D))).astype(np.float32)


LIVE = np.arange(N) % 10 != 9  # row 899 is not


def view(scale=1.0, devices=1, moved=0.0):
  mesh = sharding.make_mesh(devices)
  shift = moved * np.random.default_rng(9).normal(size=(N, D))
  table = tables.create(
      (vectors() + shift).astype(np.float32),
      np.where(LIVE, np.arange(N), -1), mesh=mesh, chunk_rows=CHUNK,
      dtype='float32')
  return types.View(table, embeddings, jnp.float32(scale),
                    types.Scan(mesh, CHUNK))


def embeddings(rows):
  return rows.embeddings


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def compiled(method, correct, scan, table, scale, *arguments):
  return method(*arguments, types.View(table, correct, scale, scan))


def call(method, *arguments):
  """Returns method(*arguments), the last of which is a View, jitted."""
  view = arguments[-1]
  return jax.device_get(compiled(
      method, view.correct, view.scan, view.table, view.scale,
      *arguments[:-1]))


@functools.cache
def state(sampler, devices=1):
  """Returns the tree of a sampler; which sampler it is matters little."""
  like = make(leaf_size=sampler.leaf_size, moments=sampler.moments)
  if sampler != like:
    return state(like, devices)
  return jax.jit(lambda key: like.init(key, view(devices=devices)))(
      jax.random.key(0))


QUERY = np.array([[0.7, -0.5, 0.3, 0.9]], np.float32)


def request(copies, query=QUERY):
  none = np.full(copies, -1, np.int32)
  excluded = np.tile(EXCLUDED, (copies, 1))
  return types.Request(
      jnp.tile(query, (copies, 1)), none, excluded, excluded, none,
      jnp.int32(0))


@functools.cache
def drawn(sampler, scale=1.0, copies=COPIES, key=0, devices=1):
  return call(sampler.propose, state(sampler, devices), jax.random.key(key),
              request(copies), view(scale, devices))


class Truth:
  """What a proposal is, by looking at everything."""

  def __init__(self, sampler, scale=1.0, rows=None):
    tree = jax.device_get(state(sampler))
    x = scale * QUERY[0].astype(np.float64)
    rows = vectors() if rows is None else rows
    logits = rows.astype(np.float64) @ x
    allowed = LIVE & ~np.isin(np.arange(N), EXCLUDED)
    self.logits = np.where(allowed, logits, -np.inf)
    self.leaf, self.allowed = tree.leaf_of, allowed
    num_leaves = tree.num_leaves
    parent = np.asarray(trees.parent_of(tree, np.arange(num_leaves)))

    def mass(level, groups, count):
      live = np.bincount(groups[allowed], minlength=count)
      mean = level.centres @ x
      if sampler.moments:
        axes = np.asarray(level.axes, np.float64) @ x  # [r, n]
        rest = (level.scatter - level.spread.sum(0)).clip(0) / (
            D - sampler.moments)
        mean += 0.5 * ((axes**2 * level.spread).sum(0)
                       + (x @ x - (axes**2).sum(0)) * rest)
      with np.errstate(divide='ignore'):
        return np.where(live > 0, mean + np.log(live), -np.inf)

    self.mass = mass(tree.leaves, tree.leaf_of, num_leaves)
    can_open = np.ones(num_leaves, bool)
    total = np.logaddexp.reduce(self.mass)
    if sampler.beam:
      tops = mass(tree.parents, parent[tree.leaf_of], tree.num_parents)
      beam = np.argsort(-tops)[:sampler.beam]
      can_open = np.isin(parent, beam)
      for p in np.setdiff1d(np.arange(tree.num_parents), beam):
        below = parent == p
        if tops[p] > -np.inf:
          self.mass[below] += tops[p] - np.logaddexp.reduce(self.mass[below])
      total = np.logaddexp.reduce(self.mass)
    if sampler.accept == 'rejection':
      live = np.bincount(tree.leaf_of[LIVE], minlength=num_leaves)
      reach = np.linalg.norm(x) * tree.leaves.radii
      self.mass = np.where(self.mass > -np.inf, np.log(np.maximum(live, 1))
                           + tree.leaves.centres @ x, -np.inf)
      share = np.minimum(tree.leaves.scatter / np.maximum(
          tree.leaves.radii, 1e-9)**2, 1)
      self.mass += np.log(np.minimum(
          np.cosh(reach), 1 + share * (np.exp(reach) - 1 - reach)))
    self.sums = np.array([np.logaddexp.reduce(
        self.logits[self.leaf == leaf], initial=-np.inf)
                          for leaf in range(num_leaves)])
    order = np.argsort(-np.where(can_open, self.mass, -np.inf))
    self.opened, left = [], 1.0
    for leaf in order[:sampler.opened]:
      if left <= sampler.open_until or self.mass[leaf] == -np.inf:
        break
      self.opened.append(leaf)
      left -= np.exp(self.mass[leaf] - total)
    self.used = self.mass.copy()  # by the proposal
    self.used[self.opened] = self.sums[self.opened]
    self.log_z = np.logaddexp.reduce(self.sums)
    with np.errstate(invalid='ignore'):
      log_q = (self.used - np.logaddexp.reduce(self.used))[self.leaf] + (
          self.logits - self.sums[self.leaf])
    self.log_q = np.where(allowed, log_q, -np.inf)
    self.log_p = self.logits - self.log_z

  def chain(self, num_steps, accept='metropolis', num_proposals=1):
    """Returns P(row) at the end of a chain, by its transition matrix."""
    cell = np.arange(len(self.used))  # opened leaves are one cell
    cell[self.opened] = self.opened[0] if self.opened else 0
    cells = np.unique(cell[self.used > -np.inf])
    add = lambda logs: np.array([np.exp(np.logaddexp.reduce(
        logs[(cell == c)])) for c in cells])
    q, p = add(self.used), add(self.sums)
    q, p = q / q.sum(), p / p.sum()
    w, size = p / q, len(cells)
    kernel = np.zeros((size, size))
    if accept == 'metropolis':
      kernel = q[None] * np.minimum(1, w[None] / w[:, None])
      kernel += np.diag(1 - kernel.sum(axis=1))
    elif num_proposals == 1:
      take = w[None] / (w[None] + w[:, None])
      kernel = q[None] * take
      kernel += np.diag(1 - kernel.sum(axis=1))
    else:
      assert num_proposals == 2
      for now in range(size):
        total = w[now] + w[:, None] + w[None]
        both = q[:, None] * q[None] / total
        kernel[now] += (both * w[:, None]).sum(1) + (both * w[None]).sum(0)
        kernel[now, now] += (both * w[now]).sum()
    np.testing.assert_allclose(p @ kernel, p, atol=1e-12)  # it stays P
    ends = q @ np.linalg.matrix_power(kernel, num_steps)
    of_cell = dict(zip(cells, ends / p))
    factor = np.array([of_cell.get(c, 0) for c in cell])
    return np.exp(self.log_p) * factor[self.leaf]


def tv(p, q):
  return 0.5 * np.abs(p - q).sum()


def p_value(rows, chances):
  """Returns the chi-square p-value of independent draws of rows."""
  chances = chances / chances.sum()
  counts = np.bincount(rows, minlength=N)
  assert not counts[chances == 0].any()
  expected = len(rows) * chances
  often = expected >= 5
  # All rare ones together are one more cell.
  observed = np.append(counts[often], counts[~often].sum())
  expected = np.append(expected[often], expected[~often].sum())
  keep = expected > 0
  return stats.chi2.sf((np.square(observed - expected)[keep] / expected[
      keep]).sum(), keep.sum() - 1)


PROPOSALS = {
    'nothing_opened': dict(opened=0),
    'some_opened': {},
    'first_order': dict(moments=0),
    'until': dict(opened=60, open_until=0.5),
    'beam': dict(leaf_size=4, beam=4),
    'beam_of_one': dict(leaf_size=4, beam=1, opened=0, moments=0)}


class ProposalTest(parameterized.TestCase):

  @parameterized.parameters(*PROPOSALS)
  @pytest.mark.slow
  def test_log_q_is_the_formula(self, case):
    sampler = make(**PROPOSALS[case])
    truth, found = Truth(sampler, 2.0), drawn(sampler, 2.0)
    self.assertTrue(found.mask.all())
    np.testing.assert_allclose(np.exp(truth.log_q).sum(), 1)
    np.testing.assert_allclose(
        found.log_q, truth.log_q[found.rows], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        found.logits, truth.logits[found.rows], rtol=1e-4, atol=1e-5)
    if case == 'until':
      self.assertBetween(len(truth.opened), 3, 59)

  @parameterized.parameters(*PROPOSALS)
  @pytest.mark.slow
  def test_draws_follow_log_q(self, case):
    """Chi-square of 4,096 draws; the softmax itself fails where it differs."""
    sampler = make(**PROPOSALS[case])
    truth = Truth(sampler, 3.0)
    rows = drawn(sampler, 3.0).rows.reshape(-1)
    self.assertGreater(p_value(rows, np.exp(truth.log_q)), 1e-3)
    if case in ('first_order', 'beam_of_one'):
      self.assertLess(p_value(rows, np.exp(truth.log_p)), 1e-3)

  def test_draws_of_a_query_are_independent(self):
    """Pairs of leaves, of two draws of each of 2,048 copies."""
    sampler = make()
    truth = Truth(sampler, 2.0)
    first, second = truth.leaf[drawn(sampler, 2.0).rows].T
    share = np.exp(truth.used - np.logaddexp.reduce(truth.used))
    same = (share**2).sum()
    found = (first == second).mean()
    self.assertLess(abs(found - same), 4 * np.sqrt(same / COPIES))

  @pytest.mark.slow
  def test_with_every_leaf_opened_it_is_the_softmax(self):
    sampler = make(opened=1000, chain_steps=2)
    truth, found = Truth(sampler, 3.0), drawn(sampler, 3.0)
    np.testing.assert_allclose(
        np.exp(truth.log_q), np.exp(truth.log_p), atol=1e-9)
    self.assertGreater(
        p_value(found.rows.reshape(-1), np.exp(truth.log_p)), 1e-3)
    exact = drawn(dataclasses.replace(sampler, chain_steps=0), 3.0)
    np.testing.assert_allclose(
        exact.log_q, truth.log_p[exact.rows], rtol=1e-4, atol=1e-4)

  def test_weights_are_of_the_rows_as_they_are_now(self):
    """The tree is of other vectors; log q is right all the same."""
    sampler = make()
    now = view(2.0, moved=0.3)
    found = call(sampler.propose, state(sampler), jax.random.key(0),
                 request(COPIES), now)
    truth = Truth(sampler, 2.0, np.asarray(now.table.embeddings[:N]))
    np.testing.assert_allclose(
        found.log_q, truth.log_q[found.rows], rtol=1e-4, atol=1e-4)
    self.assertGreater(
        p_value(found.rows.reshape(-1), np.exp(truth.log_q)), 1e-3)

  @pytest.mark.slow
  def test_queries_are_moved_in_place_of_rows_where_a_corrector_folds(self):
    """As if other queries had come, but for a constant in the logits."""
    sampler, asked, plain = make(opened=2), request(64), view(2.0)
    rng = np.random.default_rng(3)
    turn = rng.normal(size=(D, D)).astype(np.float32)
    shift = rng.normal(size=D).astype(np.float32)
    folded = plain._replace(
        correct=None, fold=lambda x: (x @ turn, x @ shift))
    tree = state(sampler)
    found = jax.device_get(jax.jit(lambda tree, key: sampler.propose(
        tree, key, asked, folded))(tree, jax.random.key(0)))
    like = call(sampler.propose, tree, jax.random.key(0), asked._replace(
        queries=asked.queries @ turn), plain)
    np.testing.assert_array_equal(found.rows, like.rows)
    np.testing.assert_allclose(found.log_q, like.log_q, rtol=1e-5, atol=1e-5)
    corrected = vectors() @ turn.T + shift
    np.testing.assert_allclose(
        found.logits, 2 * (corrected @ QUERY[0])[found.rows], rtol=1e-4,
        atol=1e-4)
    opened = make(opened=1000)
    log_z = jax.jit(lambda tree, key: opened.estimate_log_z(
        tree, key, asked, folded))(tree, jax.random.key(0))
    logits = 2 * corrected @ QUERY[0]
    logits[~LIVE], logits[EXCLUDED[EXCLUDED >= 0]] = -np.inf, -np.inf
    np.testing.assert_allclose(
        log_z, np.logaddexp.reduce(logits), rtol=1e-5)

  @parameterized.product(devices=(2, 8), case=('some_opened', 'beam'))
  @pytest.mark.slow
  def test_number_of_devices_does_not_matter(self, devices, case):
    sampler = make(**PROPOSALS[case], chain_steps=2)
    one = drawn(sampler, 2.0, 64)
    other = drawn(sampler, 2.0, 64, devices=devices)
    np.testing.assert_array_equal(one.rows, other.rows)

  @pytest.mark.slow
  def test_masses_without_counts_fail(self):
    """A mutant: leaves weigh alike, however many rows they have."""
    alike = lambda log_mean, counts: jnp.where(counts > 0, log_mean, -jnp.inf)
    sampler = make(opened=0, moments=0)
    with mock.patch.object(tree_sampler, '_times', alike):
      rows = jax.device_get(sampler.propose(
          state(sampler), jax.random.key(0), request(COPIES), view(0.5)).rows)
    self.assertLess(
        p_value(rows.reshape(-1), np.exp(Truth(sampler, 0.5).log_q)), 1e-3)

  def test_estimate_of_z_is_unbiased(self):
    """Each is Z_O + E w of a leaf that is not opened; their mean is Z."""
    sampler = make(num_negatives=1, moments=0)
    truth = Truth(sampler, 2.0)
    found = np.exp(call(
        sampler.estimate_log_z, state(sampler), jax.random.key(1),
        request(4 * COPIES), view(2.0)).astype(np.float64))
    rest = np.ones(len(truth.mass), bool)
    rest[truth.opened] = False
    rest &= truth.mass > -np.inf
    opened = np.exp(np.logaddexp.reduce(truth.sums[truth.opened]))
    total = np.exp(np.logaddexp.reduce(truth.mass[rest]))
    values = opened + total * np.exp(truth.sums - truth.mass)[rest]
    chances = np.exp(truth.mass[rest]) / total
    np.testing.assert_allclose(chances @ values, np.exp(truth.log_z))
    gap = np.abs(found[:200, None] - values[None]) / values[None]
    np.testing.assert_allclose(gap.min(axis=1), 0, atol=1e-4)
    spread = np.sqrt(chances @ values**2 - np.exp(truth.log_z)**2)
    self.assertLess(abs(found.mean() - np.exp(truth.log_z)),
                    4 * spread / np.sqrt(len(found)))
    self.assertGreater(spread, 0)


CHAINS = {
    'one_step': dict(chain_steps=1),
    'three_steps': dict(chain_steps=3),
    'resampling': dict(chain_steps=1, accept='resampling'),
    'resampling_of_two': dict(
        chain_steps=2, accept='resampling', step_proposals=2)}


class ChainTest(parameterized.TestCase):

  @parameterized.parameters(*CHAINS)
  @pytest.mark.slow
  def test_ends_are_where_the_transition_matrix_says(self, case):
    """Chi-square of 16,384 ends; those of a chain that never moves fail."""
    sampler = make(moments=0, opened=2, **CHAINS[case])
    truth, scale, copies = Truth(sampler, 4.0), 4.0, 4 * COPIES
    ends = truth.chain(
        sampler.chain_steps, sampler.accept, sampler.step_proposals)
    rows = drawn(sampler, scale, copies).rows.reshape(-1)
    self.assertGreater(p_value(rows, ends), 1e-3)
    self.assertLess(p_value(rows, np.exp(truth.log_q)), 1e-3)
    still = drawn(dataclasses.replace(sampler, chain_steps=0), scale, copies)
    self.assertLess(p_value(still.rows.reshape(-1), ends), 1e-3)
    self.assertLess(tv(ends, np.exp(truth.log_p)),
                    tv(np.exp(truth.log_q), np.exp(truth.log_p)))

  @pytest.mark.slow
  def test_log_q_is_given_of_proposals_alone(self):
    self.assertEqual(make().gives, {'log_q'})
    for options in (dict(chain_steps=1), dict(
        accept='rejection', moments=0)):
      sampler = make(**options)
      self.assertEqual(sampler.gives, set())
      np.testing.assert_array_equal(drawn(sampler, 2.0, 8).log_q, 0)

  def test_rejection_draws_from_the_softmax(self):
    """A draw fails as often as its bound is too high; accepting all fails."""
    sampler = make(accept='rejection', moments=0, opened=0, chain_steps=2,
                   num_negatives=4)
    truth, found = Truth(sampler, 2.0), drawn(sampler, 2.0)
    rate = np.exp(truth.log_z - np.logaddexp.reduce(truth.mass))
    failed = (1 - rate)**3
    count = found.mask.size
    self.assertBetween(rate, 0.2, 0.8)
    self.assertLess(abs((~found.mask).mean() - failed),
                    4 * np.sqrt(failed * (1 - failed) / count))
    self.assertGreater(
        p_value(found.rows[found.mask], np.exp(truth.log_p)), 1e-3)
    self.assertLess(
        p_value(found.rows[found.mask], np.exp(truth.log_q)), 1e-3)

  @pytest.mark.slow
  def test_rejection_of_opened_leaves_is_exact_too(self):
    sampler = make(accept='rejection', moments=0, opened=20)
    truth, found = Truth(sampler, 2.0), drawn(sampler, 2.0)
    self.assertGreater(
        p_value(found.rows[found.mask], np.exp(truth.log_p)), 1e-3)
    self.assertGreater(found.mask.mean(), drawn(dataclasses.replace(
        sampler, opened=0), 2.0).mask.mean() + 0.05)


class BoundTest(parameterized.TestCase):

  def test_chain_of_cells_equals_its_matrix(self):
    rng = np.random.default_rng(0)
    log_q, log_p = rng.normal(size=(2, 5, 40))
    log_q[:, ::9] = log_p[:, ::9] = -np.inf
    for steps in (0, 1, 4):
      found = tree_bounds.after_metropolis(
          jnp.asarray(log_q), jnp.asarray(log_p), steps)
      for b in range(5):
        there = log_q[b] > -np.inf
        q, p = (np.exp(a[b][there]) / np.exp(a[b][there]).sum()
                for a in (log_q, log_p))
        w = p / q
        kernel = q[None] * np.minimum(1, w[None] / w[:, None])
        kernel += np.diag(1 - kernel.sum(axis=1))
        np.testing.assert_allclose(p @ kernel, p, atol=1e-12)
        np.testing.assert_allclose(
            found[b, there], q @ np.linalg.matrix_power(kernel, steps),
            rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(found[b, ~there], 0)

  @parameterized.parameters(0.5, 1.0, 2.0)
  def test_of_equal_radii_they_are_the_formulas(self, a):
    log_mass = jnp.array([[0., 1., 2., -jnp.inf]])
    found = tree_bounds.bounds(
        log_mass, log_mass, log_mass + jnp.log(jnp.cosh(a)))
    np.testing.assert_allclose(
        found.tv, np.tanh(np.log(np.cosh(a)) / 4), rtol=1e-5)
    np.testing.assert_allclose(found.log_ratio, np.log(np.cosh(a)), rtol=1e-5)
    np.testing.assert_allclose(
        found.tv_after(7), np.minimum(
            (1 - 1 / np.cosh(a))**7, found.tv), rtol=1e-5)
    np.testing.assert_allclose(
        found.log_z_high - found.log_z_low, np.log(np.cosh(a)), rtol=1e-5)

  @pytest.mark.slow
  def test_hold_for_any_cells(self):
    """2,000 times random masses within random bounds; without q they fail."""
    rng = np.random.default_rng(0)
    shape, spread = (2000, 6), rng.uniform(0, 3, (2000, 1))
    low = rng.normal(size=shape)
    high = low + spread * rng.uniform(size=shape)
    side = rng.integers(0, 2, shape)  # extremes, where bounds are tight
    true = np.where(side, low, high)
    log_q = low + rng.normal(size=shape) * rng.integers(0, 2, (2000, 1))
    found = tree_bounds.bounds(*map(jnp.asarray, (log_q, low, high)))
    p, q = (np.exp(a) / np.exp(a).sum(1, keepdims=True) for a in (true, log_q))
    far = 0.5 * np.abs(p - q).sum(axis=1)
    self.assertTrue((far <= found.tv + 1e-5).all())
    self.assertGreater((far / np.maximum(found.tv, 1e-9)).max(), 0.7)
    self.assertTrue((np.log(p / q).max(axis=1) <= found.log_ratio + 1e-5).all())
    log_z = np.logaddexp.reduce(true, axis=1)
    self.assertTrue((found.log_z_low <= log_z + 1e-5).all())
    self.assertTrue((log_z <= found.log_z_high + 1e-5).all())
    for steps in (1, 2, 5):
      ends = np.asarray(tree_bounds.after_metropolis(
          jnp.asarray(log_q), jnp.asarray(true), steps))
      self.assertTrue((0.5 * np.abs(ends - p).sum(axis=1)
                       <= (-np.expm1(-np.asarray(found.log_ratio)))**steps
                       + 1e-5).all())

  @parameterized.product(a=(0.5, 1.0, 2.0), case=(
      'nothing_opened', 'first_order', 'some_opened', 'beam'))
  @pytest.mark.slow
  def test_hold_for_draws_where_they_bite(self, a, case):
    """By enumeration of every row, with excluded ones; and they are not void.
    """
    sampler = make(**PROPOSALS[case] | dict(chain_steps=2))
    tree = state(sampler)
    scale = a / float(np.linalg.norm(QUERY) * tree.leaves.radii.max())
    truth = Truth(sampler, scale)
    found = call(sampler.diagnose, tree, request(1), view(scale))
    p, q = np.exp(truth.log_p), np.exp(truth.log_q)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-6)
    close(found['tree_tv'], tv(p, q))
    close(found['tree_tv_chain'], tv(p, truth.chain(2)))
    close(found['tree_log_ratio'], np.log(p[truth.allowed] / q[
        truth.allowed]).max())
    for name in ('tree_tv', 'tree_tv_chain', 'tree_log_ratio'):
      self.assertLessEqual(found[name], found[name + '_bound'] + 1e-6, name)
    for name in ('tree_log_z_low', 'tree_log_z_high'):
      self.assertGreaterEqual(found[name], -1e-5)
      self.assertLess(found[name], a)
    # A leaf with an excluded row is known less well, but no worse than this.
    self.assertLess(found['tree_tv_bound'], np.tanh(a))
    close(found['tree_opened'], np.isin(
        truth.leaf[truth.allowed], truth.opened).mean())

  @pytest.mark.slow
  def test_masses_without_counts_break_them(self):
    """A mutant, by the numbers of `diagnose`: Q is too far from P."""
    sampler = make(moments=0, opened=0)
    scale = 0.3 / float(
        np.linalg.norm(QUERY) * state(sampler).leaves.radii.max())
    look = lambda: sampler.diagnose(state(sampler), request(1), view(scale))
    bound = float(look()['tree_tv_bound'])
    with mock.patch.object(tree_sampler, '_times', lambda mean, counts:
                           jnp.where(counts > 0, mean, -jnp.inf)):
      self.assertGreater(float(look()['tree_tv']), bound)


class StateTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_follows_what_a_step_writes(self):
    """Draws, a share of the rows and positives, over three steps.

    Not the rows that are encoded for a corrector alone.
    """
    sampler = make(leaf_size=4, chain_steps=1)
    seen = []
    mesh = sharding.make_mesh(2)
    live = np.ones(helpers.NUM_TARGETS, bool)

    def look(state, proposal, probes):
      rows = np.asarray(state.table.embeddings)[:helpers.NUM_TARGETS]
      trees.check(state.sampler, rows, live)
      seen.append((rows, jax.device_get(state.sampler)))

    helpers.train(
        helpers.method(sampler, corrector=helpers.linear(num_anchors=6),
                       write_back=True, push=True, fraction=0.1),
        mesh, num_steps=4, each=look, stale_params=helpers.params(1))
    (first, tree), (last, _) = seen[0], seen[-1]
    self.assertGreater((first != last).any(axis=1).sum(), 10)
    with self.assertRaises(AssertionError):
      trees.check(tree, last, live)

  @parameterized.parameters(False, True)
  @pytest.mark.slow
  def test_follows_the_memory_as_it_is(self, moved):
    """Of rows that steps have written, or that a corrector has moved."""
    corrector = helpers.linear() if moved else correctors.Identity()
    method = helpers.method(
        make(leaf_size=4, regrow_share=0.01), corrector=corrector, push=True,
        write_back=not moved)
    mesh = sharding.make_mesh(2)
    left, _ = helpers.train(
        method, mesh, num_steps=4, stale_params=helpers.params(1))
    train_step = training_step.make_train_step(
        helpers.ENCODERS, method, optax.sgd(0.1), mesh=mesh, seed=0)
    new = train_step.refreshed(left, None)
    rows = np.asarray(corrector.apply(new.corrector, new.table))[
        :helpers.NUM_TARGETS]
    trees.check(new.sampler, rows, np.ones(helpers.NUM_TARGETS, bool))

    def scatter(tree):
      leaf = np.asarray(tree.leaf_of)
      means = [rows[leaf == at].mean(axis=0) for at in leaf]
      return np.square(rows - means).sum(axis=1).mean()

    self.assertLess(scatter(new.sampler), 0.9 * scatter(left.sampler))
    for name in ('table', 'params', 'corrector', 'opt_state', 'step'):
      jax.tree.map(np.testing.assert_array_equal, getattr(new, name),
                   getattr(left, name))

  def test_stays_where_a_step_writes_nothing(self):
    trees_seen = []
    helpers.train(
        helpers.method(make(leaf_size=4)), sharding.make_mesh(1), num_steps=3,
        each=lambda state, *_: trees_seen.append(
            jax.device_get(state.sampler)))
    jax.tree.map(np.testing.assert_array_equal, trees_seen[0], trees_seen[-1])

  @parameterized.product(share=(0.0, 100.0), folds=(False, True))
  @pytest.mark.slow
  def test_is_made_of_rows_as_they_are_corrected(self, share, folds):
    """Or, where queries can be moved in their place, as remembered."""
    method = helpers.method(
        make(leaf_size=4, regrow_share=share), push=True,
        corrector=helpers.linear(reset_on_refresh=False, keep_norm=not folds))
    mesh = sharding.make_mesh(2)
    learned, _ = helpers.train(
        method, mesh, num_steps=3, stale_params=helpers.params(1))
    train_step = training_step.make_train_step(
        helpers.ENCODERS, method, optax.sgd(0.1), mesh=mesh, seed=0)
    now = helpers.table(mesh, helpers.params(2))
    new = train_step.refreshed(learned, now)
    corrected = np.asarray(method.corrector.apply(new.corrector, now))
    self.assertGreater(np.abs(corrected - now.embeddings).max(), 0.01)
    trees.check(
        new.sampler, np.asarray(now.embeddings if folds else corrected)[
            :helpers.NUM_TARGETS], np.ones(helpers.NUM_TARGETS, bool))

  @parameterized.parameters(0.0, 0.1, 100.0)
  @pytest.mark.slow
  def test_is_brought_up_to_date_with_a_new_memory(self, share):
    sampler = make(leaf_size=4, regrow_share=share)
    before, now, told = state(sampler), view(moved=0.2), []
    new = sampler.rebuild(before, jax.random.key(5), types.Episode(
        7, now, compared=lambda *counts: told.append(counts)))
    trees.check(new, np.asarray(now.table.embeddings[:N]), LIVE)
    fresh = sampler.init(jax.random.key(5), now)
    same = np.array_equal(new.rows, fresh.rows)
    self.assertEqual(same, share != 100.0)  # most parents have degraded
    self.assertEqual(np.array_equal(new.first, before.first), share == 100.0)
    self.assertEqual(told, costs_of_rebuilding(sampler, before, now, share))

  def test_costs_what_it_scores(self):
    """M = 900 in leaves of 4: 3 rows a centre, 17 centres, 25 parents."""
    self.assertEqual(make(leaf_size=4, moments=0).rows_scored(5, 900), (
        5 * (300 + 25 + 225) + 5 * (2 + 3) * 4, 5 * (2 + 3) * 4))
    asked = make(leaf_size=4, beam=2, moments=1, chain_steps=3, opened=1000,
                 accept='resampling', step_proposals=2)
    lists = 2 * 7 + 550
    self.assertEqual(asked.rows_scored(1, 900), (
        2 * (25 + 2 * (36 + 26)) + lists * 4, lists * 4))


def costs_of_rebuilding(sampler, before, now, share):
  """Returns what a rebuild has to tell, from what it must have done."""
  built = tree_building.cost_of_build(N, sampler.leaf_size, sampler.moments)
  if not share:
    return [built]
  _, info = tree_building.maintain(
      jax.random.key(5), before, tree_building.OnDevice(now),
      margin=sampler.move_margin, degraded=share)
  grown = round(float(info['grown']) * before.num_parents)
  maintained = tree_building.cost_of_maintenance(
      N, sampler.leaf_size, sampler.moments, grown)
  return [maintained, built] if grown > before.num_parents / 2 else [maintained]


class OptionTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(leaf_size=1), 'leaf_size=1 must be at least 2'),
      (dict(opened=-1), 'opened=-1 must be at least 0'),
      (dict(open_until=1.0), r'open_until=1.0 must lie in \[0, 1\)'),
      (dict(move_margin=-0.1), 'move_margin=-0.1 must lie'),
      (dict(accept='always'), "accept='always' is not one of"),
      (dict(step_proposals=2), 'step_proposals=2 with .*metropolis'),
      (dict(accept='rejection'), 'moments=2 with .*rejection'),
      (dict(accept='rejection', moments=0, beam=3), 'beam=3 and .*rejection'),
      (dict(open_until=0.1, opened=0), 'opened=0 opens nothing'))
  def test_what_cannot_work_is_refused(self, options, message):
    with self.assertRaisesRegex(ValueError, f'sampler.{message}'):
      make(**options)

  def test_a_memory_whose_rows_change_hands_is_refused(self):
    with self.assertRaisesRegex(ValueError, "tree.*memory.kind='corpus'"):
      helpers.method(make(), memory='ring', push=True)
    self.assertIsInstance(helpers.method(make()), methods.Method)


if __name__ == '__main__':
  absltest.main()
