"""Landmarks predict the drift of all rows.

What it promises as every corrector does: tests/conformance_test.py.
"""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from retrieval_jax import correctors
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax.training import step as steps
from tests import helpers
from tests.correctors import correctors_test

DIM = 16

some_rows = correctors_test.some_rows
unit = correctors_test.unit


def nystrom(**options):
  return correctors.Nystrom(**(dict(
      num_landmarks=20, landmarks='uniform', kernel='rbf', bandwidth=1.0,
      ridge=1e-3, decay=1.0, num_anchors=5, use_after=0, keep_norm=False)
                               | options))


def observation(stale, fresh, rows, mask=None):
  """Returns what is seen of some rows of a table."""
  return correctors_test.observation(
      jax.tree.map(lambda x: x[rows], some_rows(stale)), fresh[rows], mask=mask)


jit = functools.partial(jax.jit, compiler_options={
    'xla_backend_optimization_level': 0})  # quick to compile


@functools.cache
def compiled(corrector):
  return jit(corrector.init), jit(corrector.update), jit(corrector.apply)


def first_state(corrector, stale, seed=0):
  return compiled(corrector)[0](jax.random.key(seed), some_rows(stale))


def fitted(corrector, stale, fresh, seed=0):
  """Returns the state that has seen its landmarks, and nothing else."""
  state = first_state(corrector, stale, seed)
  return compiled(corrector)[1](
      state, observation(stale, fresh, np.asarray(state.ids)))[0]


def corrected(corrector, state, stale):
  found = compiled(corrector)[2](state, some_rows(stale))
  return np.asarray(found, np.float64)


def drifting(num_rows, seed=0, size=0.3, dim=DIM):
  """Returns (stale, fresh) [n, D] of a smooth drift that no matrix makes."""
  rng = np.random.default_rng(seed)
  stale = unit(rng.normal(size=(num_rows, dim)))
  first, second = rng.normal(size=(2, dim, dim))
  return stale, unit(stale + size * np.tanh(2 * np.sin(
      stale @ first) @ second / dim**0.5) / dim**0.5)


def kernel_values(name, vectors, landmarks):
  """Returns k(v, l) [n, m] in float64, one pair at a time for 'rbf'."""
  if name == 'linear':
    return vectors @ landmarks.T + 1
  distances = lambda rows: np.array([
      [np.sum(np.square(row - one)) for one in landmarks] for row in rows])
  return np.exp(-distances(vectors) / (2 * distances(landmarks).mean()))


def error(one, other):
  return np.mean(np.sum(np.square(one - other), axis=1))


KERNELS = ('linear', 'rbf')


class PredictionTest(parameterized.TestCase):

  @parameterized.product(kernel=KERNELS, landmarks=('uniform', 'greedy'))
  @pytest.mark.slow
  def test_without_drift_rows_stay_bit_for_bit(self, kernel, landmarks):
    stale, _ = drifting(120)
    stale = stale.astype(np.float32)
    corrector = nystrom(kernel=kernel, landmarks=landmarks)
    state = first_state(corrector, stale)
    for rows in (np.arange(0, 60), np.asarray(state.ids), np.arange(50, 120)):
      state, _ = corrector.update(state, observation(stale, stale, rows))
      np.testing.assert_array_equal(state.weights, 0)
      np.testing.assert_array_equal(
          corrector.apply(state, some_rows(stale)), stale)

  @parameterized.parameters('uniform', 'greedy')
  @pytest.mark.slow
  def test_every_row_a_landmark_gives_fresh_rows_as_the_penalty_goes(
      self, landmarks):
    stale, fresh = drifting(60)
    found = []
    for ridge in (1e-1, 1e-3, 6.1e-5):
      corrector = nystrom(num_landmarks=60, ridge=ridge, landmarks=landmarks)
      state = fitted(corrector, stale, fresh)
      np.testing.assert_array_equal(np.sort(state.ids), np.arange(60))
      found.append(np.abs(corrected(corrector, state, stale) - fresh).max())
    self.assertLess(found[2], 2e-3 * np.abs(stale - fresh).max())
    # With the jitter the penalties are 1e-1, 1.06e-3 and 1.2e-4.
    self.assertLess(found[2], 0.12 * found[1])
    self.assertLess(found[1], 0.1 * found[0])

  @parameterized.parameters('uniform', 'greedy')
  @pytest.mark.slow
  def test_the_error_falls_with_the_number_of_landmarks(self, landmarks):
    stale, fresh = drifting(400)
    found = []
    for number in (8, 40, 200):
      corrector = nystrom(num_landmarks=number, landmarks=landmarks,
                          ridge=1e-2)
      found.append([error(corrected(
          corrector, fitted(corrector, stale, fresh, seed), stale), fresh)
                    for seed in range(3)])
    for fewer, more in zip(found, found[1:]):
      self.assertLess(max(more), min(fewer))
    self.assertLess(max(found[-1]), 0.3 * error(stale, fresh))

  @parameterized.parameters(*KERNELS)
  def test_is_kernel_regression_on_landmarks(self, kernel):
    """v + k(v, L) (K_LL + penalty)^-1 (g(L) - g_0(L)), in float64."""
    stale, fresh = drifting(90)
    corrector = nystrom(kernel=kernel, ridge=1e-2, num_landmarks=30)
    state = fitted(corrector, stale, fresh)
    chosen = np.asarray(state.ids)
    matrix = kernel_values(kernel, stale[chosen], stale[chosen])
    if kernel == 'linear':  # a mean over the D + 1 features (v, 1)
      penalty = 1e-2 * np.trace(matrix) / (DIM + 1)
    else:
      jitter = 1e-6 * np.trace(matrix)
      penalty = jitter + 1e-2 * (np.trace(matrix) / 30 + jitter)
    wanted = stale + kernel_values(kernel, stale, stale[chosen]) @ (
        np.linalg.solve(matrix + penalty * np.eye(30),
                        fresh[chosen] - stale[chosen]))
    self.assertGreater(np.abs(wanted - stale).max(), 0.05)
    np.testing.assert_allclose(
        corrected(corrector, state, stale), wanted, atol=2e-5)

  def test_the_linear_kernel_is_ridge_regression_on_the_same_pairs(self):
    stale, fresh = drifting(90)
    corrector = nystrom(kernel='linear', ridge=1e-2, decay=0.5)
    linear = helpers.linear(ridge=1e-2, keep_norm=False)
    state = first_state(corrector, stale)
    chosen = np.asarray(state.ids)
    others = np.setdiff1d(np.arange(90), chosen)[:25]
    state, _ = corrector.update(
        state, observation(stale, fresh, np.append(others, chosen)))
    wanted, _ = linear.update(
        first_state(linear, stale),
        observation(stale, fresh, np.append(chosen, others)))
    np.testing.assert_allclose(
        corrected(corrector, state, stale), corrected(linear, wanted, stale),
        atol=1e-5)

  @pytest.mark.slow
  def test_other_rows_count_and_fade(self):
    """The weighted least squares over phi = C^-1 k(L, v), in float64."""
    stale, fresh = drifting(90)
    drifted = stale + 2 * (fresh - stale)
    corrector = nystrom(ridge=1e-2, decay=0.5)
    state = fitted(corrector, stale, fresh)
    chosen = np.asarray(state.ids)
    early, late = np.setdiff1d(np.arange(90), chosen)[:40].reshape(2, 20)
    state, _ = corrector.update(state, observation(stale, fresh, early))
    state, _ = corrector.update(state, observation(stale, drifted, late))
    matrix = kernel_values('rbf', stale[chosen], stale[chosen])
    factor = np.linalg.cholesky(
        matrix + 1e-6 * np.trace(matrix) * np.eye(20))
    features = lambda rows: np.linalg.solve(
        factor, kernel_values('rbf', stale[rows], stale[chosen]).T).T
    inputs = np.concatenate([factor, features(early), features(late)])
    outputs = np.concatenate([(fresh - stale)[np.append(chosen, early)],
                              (drifted - stale)[late]])
    weights = np.repeat([1, 0.5, 1], 20)[:, None]
    moment = inputs.T @ (weights * inputs)
    wanted = stale + features(np.arange(90)) @ np.linalg.solve(
        moment + 1e-2 * np.trace(moment) / 20 * np.eye(20),
        inputs.T @ (weights * outputs))
    np.testing.assert_allclose(
        corrected(corrector, state, stale), wanted, atol=5e-5)
    self.assertGreater(np.abs(corrected(corrector, fitted(
        corrector, stale, fresh), stale) - wanted).max(), 0.01)

  @parameterized.parameters(*KERNELS)
  @pytest.mark.slow
  def test_of_a_landmark_the_latest_encoding_counts_once(self, kernel):
    stale, fresh = drifting(90)
    corrector = nystrom(kernel=kernel, decay=1.0)
    state = fitted(corrector, stale, stale - 3 * (fresh - stale))
    chosen = np.asarray(state.ids)
    twice = np.repeat(chosen, 2)
    state, _ = corrector.update(state, observation(stale, fresh, twice))
    # What is masked is not seen.
    state, _ = corrector.update(state, observation(
        stale, stale, chosen, mask=np.zeros(20, bool)))
    wanted = fitted(corrector, stale, fresh)
    self.assertEqual(state.num_updates, 2)
    np.testing.assert_array_equal(state.present, wanted.present)
    np.testing.assert_array_equal(state.inputs, 0)
    np.testing.assert_allclose(
        corrected(corrector, state, stale), corrected(corrector, wanted, stale),
        atol=1e-5)

  @pytest.mark.slow
  def test_rbf_beats_linear_on_a_drift_in_regions(self):
    rng = np.random.default_rng(6)
    stale = unit(rng.normal(size=(600, DIM)))
    stale[:, 0] = np.sign(stale[:, 0]) * np.abs(stale[:, 0])**0.5
    stale = unit(stale)
    shift = rng.normal(size=(2, DIM)) * 0.2
    fresh = unit(stale + np.where(
        stale[:, :1] * stale[:, 1:2] > 0, shift[0], shift[1]))
    found = {}
    for kernel in KERNELS:
      corrector = nystrom(
          kernel=kernel, num_landmarks=300, ridge=1e-2, keep_norm=True)
      found[kernel] = error(corrected(
          corrector, fitted(corrector, stale, fresh), stale), fresh)
    self.assertLess(found['rbf'], 0.6 * found['linear'])

  @pytest.mark.slow
  def test_tv_of_the_softmax_is_bounded_by_the_largest_error(self):
    """TV <= tanh(beta max |h(v) - g| / 2) for |q| = 1, and it can be that."""
    def softmax(logits):
      weights = np.exp(logits - logits.max(axis=1, keepdims=True))
      return weights / weights.sum(axis=1, keepdims=True)

    def divergence(one, other):
      return 0.5 * np.abs(softmax(one) - softmax(other)).sum(axis=1).max()

    stale, fresh = drifting(300, size=0.5)
    queries, beta = unit(np.random.default_rng(1).normal(size=(40, DIM))), 5.0
    ratios = []
    for number in (8, 64, 256):
      corrector = nystrom(num_landmarks=number, keep_norm=True)
      found = corrected(corrector, fitted(corrector, stale, fresh), stale)
      bound = np.tanh(
          beta * np.linalg.norm(found - fresh, axis=1).max() / 2)
      ratios.append(divergence(
          beta * queries @ found.T, beta * queries @ fresh.T) / bound)
      self.assertLess(bound, 0.9)
    self.assertLess(max(ratios), 1)
    # Of two targets each moves by |dg| along the query, from -x to x.
    x = 0.7
    self.assertAlmostEqual(divergence(
        np.array([[-x / 2, x / 2]]), np.array([[x / 2, -x / 2]])),
                           np.tanh(x / 2))


class LandmarksTest(parameterized.TestCase):

  @parameterized.parameters('uniform', 'greedy')
  def test_are_distinct_rows_that_the_key_chooses(self, landmarks):
    stale, _ = drifting(300)
    stale[100:] = stale[100]  # equal texts have equal rows
    corrector = nystrom(num_landmarks=250, landmarks=landmarks, ridge=1e-2)
    states = [first_state(corrector, stale, seed) for seed in (0, 0, 1)]
    for state in states:
      self.assertLen(set(np.asarray(state.ids).tolist()), 250)
      np.testing.assert_array_equal(
          state.first, stale[np.asarray(state.ids)].astype(np.float32))
      self.assertTrue(np.isfinite(state.factor).all())
    np.testing.assert_array_equal(states[0].ids, states[1].ids)
    self.assertFalse(np.array_equal(states[0].ids, states[2].ids))

  def test_greedy_ones_are_each_the_farthest_from_those_before(self):
    stale, _ = drifting(100)
    chosen = np.asarray(first_state(
        nystrom(num_landmarks=30, landmarks='greedy'), stale).ids)
    distances = np.linalg.norm(stale[:, None] - stale[None], axis=2)
    for place in range(1, 30):
      nearest = distances[:, chosen[:place]].min(axis=1)
      self.assertEqual(nearest.argmax(), chosen[place])

  def test_uniform_ones_hit_every_row_equally_often(self):
    stale, _ = drifting(40)
    corrector = nystrom(num_landmarks=10, num_anchors=1)
    ids = jax.vmap(lambda key: corrector.init(
        key, some_rows(stale)).ids)(jax.random.split(jax.random.key(0), 2000))
    count = np.bincount(np.asarray(ids).ravel(), minlength=40)
    self.assertLess(np.abs(count - 500).max(), 5 * np.sqrt(2000 * 0.25 * 0.75))
    # In any order: two that follow each other may lie anywhere in the corpus.
    between = np.diff(np.asarray(ids)[:, :2], axis=1).ravel() % 40
    self.assertLen(set(between.tolist()), 9)

  @parameterized.parameters((5, 4), (7, 3), (20, 1), (1, 20))
  def test_take_turns(self, num_anchors, rounds):
    stale, _ = drifting(120)
    corrector = nystrom(num_anchors=num_anchors)
    table = some_rows(stale)
    state = first_state(corrector, stale)
    turns = [np.asarray(corrector.anchor_rows(
        state, jax.random.key(0), table, jnp.int32(step)))
             for step in range(3, 3 + 20)]
    for turn in turns:
      self.assertLen(set(turn.tolist()), num_anchors)
    for start in range(20 - rounds):
      np.testing.assert_array_equal(
          np.unique(turns[start:start + rounds]), np.sort(state.ids))
    count = np.bincount(np.concatenate(turns), minlength=120)
    np.testing.assert_array_equal(count[np.asarray(state.ids)], num_anchors)

  def test_are_found_by_id_wherever_their_row_is(self):
    stale, _ = drifting(120)
    table = dataclasses.replace(
        some_rows(stale), ids=jnp.arange(120, dtype=jnp.int32)[::-1])
    corrector = nystrom()
    state = corrector.init(jax.random.key(0), table)
    rows = corrector.anchor_rows(
        state, jax.random.key(0), table, jnp.int32(0))
    np.testing.assert_array_equal(table.embeddings[rows], state.first[:5])

  @parameterized.parameters(
      ('kernel', 'cubic'), ('landmarks', 'best'), ('num_landmarks', 0),
      ('num_anchors', 0), ('num_anchors', 21), ('bandwidth', 0.0),
      ('ridge', 0.0), ('decay', -0.1), ('decay', 1.1), ('use_after', -1))
  def test_refuses(self, name, value):
    with self.assertRaisesRegex(ValueError, f'corrector.{name}='):
      nystrom(**{name: value})

  def test_only_an_affine_map_folds(self):
    folds = lambda **options: nystrom(**options).folds
    self.assertTrue(folds(kernel='linear', keep_norm=False))
    self.assertFalse(folds(kernel='linear', keep_norm=True))
    self.assertFalse(folds(kernel='rbf', keep_norm=False))

  @parameterized.parameters(('linear', 17), ('rbf', 20))
  def test_refuses_a_penalty_that_is_lost_in_rounding(self, kernel, size):
    stale, _ = drifting(120)
    with self.assertRaisesRegex(
        ValueError, f'must be at least .* for {size} features'):
      first_state(nystrom(kernel=kernel, ridge=0.9e-6 * size), stale)
    first_state(nystrom(kernel=kernel, ridge=1.1e-6 * size), stale)


def method(corrector, **refresh):
  return helpers.method(
      helpers.gumbel(), columns='all', corrector=corrector, **refresh)


class InTheStepTest(parameterized.TestCase):

  def test_a_round_of_landmarks_finds_an_encoder_that_stands_still(self):
    """All rows are landmarks: after R steps they are what it makes of them."""
    mesh = sharding.make_mesh(2)
    corrector = nystrom(
        num_landmarks=helpers.NUM_TARGETS, num_anchors=14, ridge=6e-5)
    probed = []
    state, _ = helpers.train(
        method(corrector), mesh, num_steps=4, optimizer=optax.sgd(0.0),
        stale_params=helpers.params(5),
        each=lambda state, proposal, probes: probed.append(np.asarray(probes)))
    rows = jax.tree.map(lambda x: x[:helpers.NUM_TARGETS], state.table)
    fresh = helpers.encode(helpers.params(), helpers.corpus_tokens())
    drifts = [error(np.asarray(x), np.asarray(fresh)) for x in (
        rows.embeddings, corrector.apply(state.corrector, rows))]
    self.assertLess(drifts[1], 1e-4 * drifts[0])
    np.testing.assert_array_equal(
        np.sort(np.concatenate(probed)), np.arange(helpers.NUM_TARGETS))
    np.testing.assert_array_equal(
        rows.embeddings, helpers.table(mesh, helpers.params(5)).embeddings[
            :helpers.NUM_TARGETS])

  @pytest.mark.slow
  def test_devices_do_not_matter(self):
    corrector = nystrom(num_anchors=6, ridge=1e-2)
    found = []
    for devices in (1, 2, 4, 8):
      probed = []
      def keep(state, proposal, probes, probed=probed):
        ids = np.asarray(tables.take(state.table, probes).ids)
        probed.append((np.asarray(proposal.rows), ids[ids >= 0]))
      state, _ = helpers.train(
          method(corrector), sharding.make_mesh(devices), num_steps=3,
          stale_params=helpers.params(5), each=keep)
      found.append((probed, jax.device_get(state.corrector)))
    for probed, state in found[1:]:
      jax.tree.map(np.testing.assert_array_equal, probed, found[0][0])
      np.testing.assert_array_equal(state.ids, found[0][1].ids)
      for name in ('first', 'present', 'weights'):
        np.testing.assert_allclose(
            getattr(state, name), getattr(found[0][1], name), atol=1e-4)

  def test_starts_anew_from_a_table_that_was_re_encoded(self):
    mesh = sharding.make_mesh(2)
    made = method(nystrom(), reencode_every=3)
    train_step = steps.make_train_step(
        helpers.ENCODERS, made, optax.sgd(0.1), mesh=mesh, seed=0)
    state, _ = helpers.train(
        made, mesh, num_steps=3, stale_params=helpers.params(5))
    self.assertTrue(np.any(state.corrector.weights))
    table = helpers.table(mesh, state.params)
    state = train_step.refreshed(state, table)
    np.testing.assert_array_equal(state.corrector.weights, 0)
    np.testing.assert_array_equal(
        state.corrector.first, state.table.embeddings[state.corrector.ids])
    np.testing.assert_array_equal(
        state.corrector.first, state.corrector.present)


class CompatibilityTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(write_back=True), 'refresh.write_back=True overwrites rows'),
      (dict(push=True), 'refresh.push=True overwrites rows'),
      (dict(fraction=0.1), 'refresh.fraction=0.1 overwrites rows'),
      (dict(memory='ring', push=True), "set memory.kind='corpus'"))
  def test_refuses_what_changes_the_table(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      method(nystrom(), **options)

  def test_refuses_more_landmarks_than_rows(self):
    with self.assertRaisesRegex(
        ValueError, 'num_landmarks=57 exceeds the 56 rows'):
      method(nystrom(num_landmarks=57))
    method(nystrom(num_landmarks=56), reencode_every=5)


if __name__ == '__main__':
  absltest.main()
