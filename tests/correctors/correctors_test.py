"""Correctors learn drift, and touch nothing else.

What all of them promise: tests/conformance_test.py.
"""

import dataclasses
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from retrieval_jax import correctors
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.correctors import maps
from retrieval_jax.training import step as steps
from tests import helpers

DIM = 16


def network(**options):
  return correctors.MLP(**(dict(
      hidden=32, learning_rate=3e-3, warmup_steps=0, updates_per_step=4,
      weight_decay=0.0, distribution_weight=0.0, average_decay=0.0,
      condition_on_age=False, num_anchors=0, use_after=0, keep_norm=True,
      reset_on_refresh=True) | options))


linear = helpers.linear


EVERY = {
    'mlp': network(),
    'mlp_age': network(condition_on_age=True),
    'mlp_average': network(average_decay=0.9),
    'ridge': linear(), 'procrustes': linear(fit='procrustes')}


def unit(array):
  return array / np.linalg.norm(array, axis=-1, keepdims=True)


def some_rows(embeddings, written=None):
  embeddings = jnp.asarray(embeddings, jnp.float32)
  ids = jnp.arange(len(embeddings), dtype=jnp.int32)
  return types.TargetTable(
      embeddings, ids, jnp.zeros_like(ids) if written is None
      else jnp.asarray(written, jnp.int32), rows_are_ids=False)


def observation(stale, fresh, *, mask=None, queries=None, step=5):
  dim = np.shape(fresh)[-1]
  rows = stale if isinstance(stale, types.TargetTable) else some_rows(stale)
  return types.Observation(
      rows, jnp.asarray(fresh, jnp.float32),
      jnp.ones(len(fresh), bool) if mask is None else jnp.asarray(mask),
      jnp.ones((3, dim)) if queries is None else jnp.asarray(queries),
      jnp.float32(5.0), jnp.int32(step))


def log_softmax(queries, targets, scale=10.0):
  logits = scale * np.asarray(queries) @ np.asarray(targets).T
  return np.asarray(jax.nn.log_softmax(logits, axis=1), np.float64)


def divergence(queries, fresh, approximate):
  """Returns the mean KL(P || P_hat) over the queries."""
  p, q = log_softmax(queries, fresh), log_softmax(queries, approximate)
  return float(np.mean(np.sum(np.exp(p) * (p - q), axis=1)))


def learn(corrector, stale, drift, num_steps, size=64, seed=0):
  """Returns the state after `num_steps` observations of random rows."""
  rng = np.random.default_rng(seed)
  state = corrector.init(jax.random.key(seed), some_rows(stale))
  update = jax.jit(corrector.update)
  for step in range(num_steps):
    rows = rng.integers(0, len(stale), size)
    state, _ = update(state, observation(
        stale[rows], drift[rows], step=step))
  return state


class DriftTest(parameterized.TestCase):

  @parameterized.parameters(*EVERY)
  @pytest.mark.slow
  def test_reduces_a_drift(self, name):
    rng = np.random.default_rng(1)
    stale = unit(rng.normal(size=(300, DIM)))
    turn = np.linalg.qr(np.eye(DIM) + 0.1 * rng.normal(size=(DIM, DIM)))[0]
    turn *= np.sign(np.diag(turn))
    fresh = stale @ turn
    corrector = EVERY[name]
    state = learn(corrector, stale, fresh, 60)
    rows = some_rows(stale)
    error = lambda x: np.mean(np.sum(np.square(np.asarray(x) - fresh), axis=1))
    self.assertLess(error(corrector.apply(state, rows)), 0.3 * error(stale))

  @parameterized.parameters(
      (network, 'hidden', 0), (network, 'learning_rate', -1.0),
      (network, 'warmup_steps', -1), (network, 'updates_per_step', 0),
      (network, 'weight_decay', -1.0), (network, 'average_decay', 1.0),
      (network, 'distribution_weight', -0.1), (network, 'num_anchors', -1),
      (linear, 'fit', 'cubic'), (linear, 'ridge', 0.0), (linear, 'decay', 0.0),
      (linear, 'num_anchors', -1))
  def test_refuses(self, make, name, value):
    with self.assertRaisesRegex(ValueError, f'corrector.{name}='):
      make(**{name: value})


class LinearTest(parameterized.TestCase):

  def test_ridge_recovers_an_affine_drift_from_enough_pairs(self):
    rng = np.random.default_rng(2)
    stale = rng.normal(size=(200, DIM))
    matrix, shift = rng.normal(size=(DIM, DIM)), rng.normal(size=DIM)
    fresh = stale @ matrix + shift
    corrector = linear(keep_norm=False)
    few = learn(corrector, stale, fresh, 1, size=DIM - 4)
    enough = learn(corrector, stale, fresh, 1, size=4 * DIM)
    rows = some_rows(stale)
    np.testing.assert_allclose(
        corrector.apply(enough, rows), fresh, atol=2e-2)
    error = np.abs(corrector.apply(few, rows) - fresh).mean()
    self.assertGreater(error, 0.5)  # 12 pairs cannot determine 17 x 16 numbers

  def fit_with_the_least_ridge(self, dim):
    """Returns errors of a fit to D / 2 pairs: ours, exact, without a fit.

    The rows have a common part, as embeddings do, so that the sums are nearly
    singular: all that holds them up is the penalty.
    """
    rng = np.random.default_rng(13)
    stale = unit(rng.normal(size=(dim // 2, dim)) + 3 * rng.normal(size=dim))
    fresh = stale + 0.1 * unit(rng.normal(size=stale.shape))
    with self.assertRaisesRegex(
        ValueError, f'must be at least .* for embeddings of {dim} dimensions'):
      linear(ridge=0.9e-6 * dim).init(jax.random.key(0), some_rows(stale))
    ridge = 1.01e-6 * dim
    corrector = linear(ridge=ridge, keep_norm=False)
    state = corrector.init(jax.random.key(0), some_rows(stale))
    for step in range(20):
      state, _ = corrector.update(state, observation(stale, fresh, step=step))
    inputs = np.append(stale, np.ones((len(stale), 1)), axis=1)
    moment = inputs.T @ inputs
    matrix = np.linalg.solve(
        moment + ridge * np.trace(moment) / (dim + 1) * np.eye(dim + 1),
        inputs.T @ (fresh - stale))
    return [np.sqrt(np.mean(np.square(x - fresh).sum(axis=1))) for x in (
        np.asarray(corrector.apply(state, some_rows(stale))),
        stale + inputs @ matrix, stale)]

  def check_the_least_ridge(self, dim):
    ours, exact, without = self.fit_with_the_least_ridge(dim)
    self.assertLess(exact, 0.02 * without)  # there is something to find
    self.assertLess(ours, 0.1 * without)  # what float32 leaves of it

  @parameterized.parameters(DIM, 128, 384)
  @pytest.mark.slow
  def test_the_least_ridge_is_enough_at_any_dimension(self, dim):
    self.check_the_least_ridge(dim)

  @parameterized.parameters(128, 384)
  @pytest.mark.slow
  def test_a_ridge_of_a_hundredth_finds_the_drift_at_any_dimension(self, dim):
    """2 D pairs of an affine drift, in float64 and here: the same map."""
    rng = np.random.default_rng(14)
    stale = unit(rng.normal(size=(2 * dim, dim)) + 2 * rng.normal(size=dim))
    fresh = stale + stale @ (rng.normal(size=(dim, dim)) / dim) + 0.01
    corrector = linear(ridge=1e-2, keep_norm=False)
    state, _ = corrector.update(
        corrector.init(jax.random.key(0), some_rows(stale)),
        observation(stale, fresh))
    inputs = np.append(stale, np.ones((len(stale), 1)), axis=1)
    moment = inputs.T @ inputs
    wanted = np.linalg.solve(
        moment + 1e-2 * np.trace(moment) / (dim + 1) * np.eye(dim + 1),
        inputs.T @ (fresh - stale))
    np.testing.assert_allclose(
        corrector.apply(state, some_rows(stale)), stale + inputs @ wanted,
        atol=1e-4)

  def test_procrustes_recovers_a_rotation_and_stays_orthogonal(self):
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    stale = unit(rng.normal(size=(200, DIM)))
    corrector = linear(fit='procrustes', keep_norm=False)
    state = learn(corrector, stale, stale @ turn, 2)
    np.testing.assert_allclose(
        corrector.apply(state, some_rows(stale)), stale @ turn, atol=1e-4)
    # A drift that no rotation makes: the map is orthogonal all the same.
    state = learn(corrector, stale, 3 * stale + 1, 2)
    matrix = np.asarray(state.matrix[:-1]) + np.eye(DIM)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(DIM), atol=1e-5)

  def test_decay_forgets(self):
    rng = np.random.default_rng(4)
    stale = rng.normal(size=(100, DIM))
    corrector = linear(decay=0.5, keep_norm=False)
    state = learn(corrector, stale, 2 * stale, 3)
    for _ in range(20):
      state, _ = corrector.update(state, observation(stale, 3 * stale))
    np.testing.assert_allclose(
        corrector.apply(state, some_rows(stale)), 3 * stale, rtol=1e-2,
        atol=1e-2)

  def test_a_mild_drift_leaves_a_tenth_of_the_divergence(self):
    """Our synthetic trend: KL falls at least tenfold, further with pairs."""
    rng = np.random.default_rng(5)
    stale = unit(rng.normal(size=(2000, DIM)))
    queries = unit(rng.normal(size=(50, DIM)))
    matrix = np.eye(DIM) + 0.08 * rng.normal(size=(DIM, DIM))
    fresh = unit(stale @ matrix + 0.02 * np.sin(5 * stale))
    corrector = linear(ridge=1e-4)
    found = [divergence(queries, fresh, corrector.apply(
        learn(corrector, stale, fresh, 1, size=size), some_rows(stale)))
             for size in (24, 64, 1024)]
    self.assertLess(found[-1], 0.1 * divergence(queries, fresh, stale))
    self.assertLess(found[2], found[1])
    self.assertLess(found[1], found[0])


class MapsTest(absltest.TestCase):

  def test_a_moved_row_keeps_its_length_whatever_the_signs(self):
    stale = jnp.array([[3., 4.], [3., 4.], [3., 4.]])
    residual = jnp.array([[1., 0.], [0., -4.], [0., 0.]])
    np.testing.assert_allclose(
        maps.moved(stale, residual),
        [[5 / 2**0.5, 5 / 2**0.5], [5., 0.], [3., 4.]], rtol=1e-6)
    np.testing.assert_array_equal(maps.moved(stale, residual)[2], stale[2])


class MlpTest(parameterized.TestCase):

  def test_the_rate_rises_with_training_steps(self):
    """Adam moves each number by about the rate: (1 + .. + 4) / 8, not 4."""
    stale = unit(np.random.default_rng(0).normal(size=(20, DIM)))
    moved = {}
    for warmup_steps in (0, 2):
      corrector = network(learning_rate=1e-3, warmup_steps=warmup_steps)
      first = corrector.init(jax.random.key(0), some_rows(stale))
      state, _ = corrector.update(first, observation(stale, np.roll(stale, 1)))
      moved[warmup_steps] = max(
          float(jnp.abs(one - other).max()) for one, other in zip(
              jax.tree.leaves(first.params), jax.tree.leaves(state.params)))
    self.assertBetween(moved[0], 3e-3, 4.1e-3)
    self.assertBetween(moved[2], 0.9e-3, 1.3e-3)

  @pytest.mark.slow
  def test_a_network_beats_the_best_linear_map_on_a_drift_in_regions(self):
    rng = np.random.default_rng(6)
    stale = unit(rng.normal(size=(600, DIM)))
    shift = rng.normal(size=(2, DIM)) * 0.2
    fresh = unit(stale + np.where(
        stale[:, :1] * stale[:, 1:2] > 0, shift[0], shift[1]))
    error = {}
    for name, corrector in (('ridge', linear()), ('mlp', network(hidden=64))):
      state = learn(corrector, stale, fresh, 400)
      error[name] = np.mean(np.sum(np.square(
          corrector.apply(state, some_rows(stale)) - fresh), axis=1))
    self.assertLess(error['mlp'], 0.5 * error['ridge'])

  def test_a_row_of_age_zero_stays_and_older_rows_move_further(self):
    rng = np.random.default_rng(7)
    stale = unit(rng.normal(size=(64, DIM)))
    velocity = 0.02 * rng.normal(size=DIM)
    age = rng.integers(0, 50, 64)
    corrector = network(condition_on_age=True)
    state = corrector.init(jax.random.key(0), some_rows(stale))
    update = jax.jit(corrector.update)
    for _ in range(200):
      state, _ = update(state, observation(
          some_rows(stale, 100 - age), unit(stale + age[:, None] * velocity),
          step=100))
    state = dataclasses.replace(state, step=jnp.int32(100))
    same = np.repeat(stale[:1], 3, axis=0)
    found = np.asarray(corrector.apply(state, some_rows(same, [100, 90, 60])))
    np.testing.assert_array_equal(found[0], same[0].astype(np.float32))
    moved = np.linalg.norm(found - same, axis=1)
    self.assertGreater(moved[2], 1.5 * moved[1])
    self.assertGreater(moved[1], 0.0)
    np.testing.assert_allclose(found[2], unit(same[0] + 40 * velocity),
                               atol=0.15)

  def test_corrects_for_the_parameters_after_the_step_it_learned_from(self):
    """h in plain numpy, with ages as the next step sees them."""
    rng = np.random.default_rng(15)
    stale, fresh = unit(rng.normal(size=(2, 20, DIM)))
    corrector = network(condition_on_age=True, learning_rate=0.1)
    written = rng.integers(-40, 9, 20)
    state, _ = corrector.update(
        corrector.init(jax.random.key(0), some_rows(stale)),
        observation(some_rows(stale, written), fresh, step=8))
    self.assertEqual(state.step, 9)
    age = ((9 - written) / (9 - written + 100))[:, None]
    hidden, output = state.params['hidden'], state.params['output']
    inner = jax.nn.gelu(
        stale @ hidden['kernel'] + hidden['bias'][None]
        + age * hidden['age'][None])
    moved = stale + age * (inner @ output['kernel'] + output['bias'][None])
    self.assertGreater(np.abs(moved - stale).max(), 0.01)
    np.testing.assert_allclose(
        corrector.apply(state, some_rows(stale, written)), unit(moved),
        atol=1e-5)

  def test_loss_is_the_drift_plus_the_weighted_divergence(self):
    rng = np.random.default_rng(8)
    stale, fresh = unit(rng.normal(size=(2, 20, DIM)))
    queries = unit(rng.normal(size=(6, DIM)))
    losses = []
    for weight in (0.0, 0.7):
      corrector = network(distribution_weight=weight)
      _, metrics = corrector.update(
          corrector.init(jax.random.key(0), some_rows(stale)),
          observation(stale, fresh, queries=queries))
      losses.append(float(metrics['corrector_loss']))
    drift = np.mean(np.sum(np.square(stale - fresh), axis=1))
    p, q = (log_softmax(queries, x, 5.0) for x in (fresh, stale))
    kl = np.mean(np.sum(np.exp(p) * (p - q), axis=1))
    np.testing.assert_allclose(losses, [drift, drift + 0.7 * kl], rtol=1e-4)

  def test_rate_rises_over_the_warm_up(self):
    """Adam's first step has the size of the rate."""
    rng = np.random.default_rng(9)
    seen = observation(*unit(rng.normal(size=(2, 20, DIM))))
    change = {}
    for warmup in (0, 10):
      corrector = network(warmup_steps=warmup, updates_per_step=1,
                          learning_rate=0.01)
      state, _ = corrector.update(
          corrector.init(jax.random.key(0), seen.stale), seen)
      change[warmup] = np.abs(state.params['output']['bias']).max()
    np.testing.assert_allclose(change[0], 0.01, rtol=1e-3)
    np.testing.assert_allclose(change[10], 0.001, rtol=1e-3)

  def test_average_corrects_in_place_of_the_parameters(self):
    rng = np.random.default_rng(10)
    seen = observation(*unit(rng.normal(size=(2, 20, DIM))))
    corrector = network(average_decay=0.75)
    first = corrector.init(jax.random.key(0), seen.stale)
    state, _ = corrector.update(first, seen)
    jax.tree.map(
        lambda average, old, new: np.testing.assert_allclose(
            average, 0.75 * old + 0.25 * new, atol=1e-6),
        state.average, first.params, state.params)
    rows = seen.stale
    other = dataclasses.replace(state, average=first.params)
    np.testing.assert_array_equal(
        corrector.apply(other, rows), rows.embeddings)
    self.assertFalse(np.array_equal(
        corrector.apply(state, rows), rows.embeddings))

  def test_norm_is_kept(self):
    rng = np.random.default_rng(11)
    stale, residual = rng.normal(size=(2, 10, DIM)).astype(np.float32)
    found = maps.moved(jnp.asarray(stale), jnp.asarray(residual))
    np.testing.assert_allclose(
        np.linalg.norm(found, axis=1), np.linalg.norm(stale, axis=1), rtol=1e-5)
    cosine = np.sum(unit(found) * unit(stale + residual), axis=1)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-5)


def method(corrector, **refresh):
  return helpers.method(
      helpers.gumbel(), columns='all', corrector=corrector, **refresh)


class InTheStepTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_first_draws_are_those_of_the_stale_baseline(self):
    mesh = sharding.make_mesh(2)
    draws = []
    for corrector in (correctors.Identity(), network(), linear()):
      seen = []
      helpers.train(
          method(corrector), mesh, num_steps=1,
          stale_params=helpers.params(5),
          each=lambda state, proposal, probes, seen=seen: seen.append(
              jax.device_get(proposal)))
      draws.append(seen[0])
    for other in draws[1:]:
      np.testing.assert_array_equal(other.rows, draws[0].rows)
      # Logits of moved rows come from another product, which rounds otherwise.
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
                   other, draws[0])

  @parameterized.parameters(
      helpers.gumbel(), helpers.samplers.TopK(2),
      helpers.samplers.StochasticNegativeMining(2, 32),
      helpers.samplers.TopK(2, ceiling=helpers.samplers.Ceiling(None, 0.1)))
  @pytest.mark.slow
  def test_a_linear_map_of_queries_draws_what_one_of_rows_does(self, sampler):
    """In the third step, after two that move the map."""
    corrector = linear(keep_norm=False, num_anchors=8, ridge=1e-2)
    self.assertTrue(corrector.folds)
    self.assertFalse(linear().folds)
    found = []
    for folds in (True, False):
      draws = []
      with mock.patch.object(correctors.Linear, 'folds', folds):
        helpers.train(
            dataclasses.replace(method(corrector), sampler=sampler),
            sharding.make_mesh(2), num_steps=3, stale_params=helpers.params(5),
            each=lambda state, proposal, probes, draws=draws: draws.append(
                jax.device_get(proposal)))
      found.append(draws[-1])
    np.testing.assert_array_equal(found[0].rows, found[1].rows)
    for name in ('logits', 'log_q', 'log_z'):
      np.testing.assert_allclose(
          getattr(found[0], name), getattr(found[1], name), atol=1e-4)
    self.assertFalse(np.array_equal(found[0].logits, found[1].logits))

  @pytest.mark.slow
  def test_nothing_of_the_corrector_reaches_the_encoder(self):
    """With draws that ignore the view, parameters agree.

    But for the rounding of what the compiler fuses; each update moves Psi by
    0.1 and more.
    """
    mesh = sharding.make_mesh(1)
    params = []
    for corrector in (correctors.Identity(), network(learning_rate=0.1)):
      uniform = dataclasses.replace(
          method(corrector), sampler=helpers.samplers.Uniform(2))
      state, history = helpers.train(
          uniform, mesh, num_steps=4, stale_params=helpers.params(5))
      params.append(jax.device_get(state.params))
    self.assertGreater(history[-1]['corrector_loss'], 0.0)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(
        one, other, rtol=1e-4), *params)

  @parameterized.parameters('mlp', 'ridge')
  @pytest.mark.slow
  def test_follows_the_encoder_while_it_trains(self, name):
    mesh = sharding.make_mesh(1)
    corrector = {'mlp': network(learning_rate=1e-2),
                 'ridge': linear(ridge=1e-3, decay=0.9)}[name]
    state, history = helpers.train(
        method(corrector), mesh, num_steps=60,
        optimizer=optax.adam(0.02))
    last = history[-10:]
    before, after = (np.mean([m[f'drift_{when}'] for m in last])
                     for when in ('before', 'after'))
    self.assertLess(after, 0.7 * before)
    # And where nothing was observed lately: over all rows.
    fresh = np.asarray(helpers.encode(state.params, helpers.corpus_tokens()))
    rows = jax.tree.map(
        lambda x: x[:helpers.NUM_TARGETS], state.table)
    error = lambda x: np.mean(np.sum(np.square(np.asarray(x) - fresh), axis=1))
    self.assertLess(error(corrector.apply(state.corrector, rows)),
                    0.7 * error(rows.embeddings))

  @pytest.mark.slow
  def test_anchors_are_encoded_but_not_written(self):
    mesh = sharding.make_mesh(2)
    corrector = network(num_anchors=5)  # and one -1, to a multiple of devices
    seen = []
    state, _ = helpers.train(
        method(corrector, fraction=0.1), mesh, num_steps=1,
        stale_params=helpers.params(5),
        each=lambda state, proposal, probes: seen.append(np.asarray(probes)))
    refreshed, anchors = seen[0][:6], seen[0][6:]  # 0.1 * 56 -> 6
    self.assertLen(set(refreshed), 6)
    self.assertLen(set(anchors[:5]), 5)
    np.testing.assert_array_equal(anchors[5:], [-1])
    live = lambda rows: rows[rows >= 0]
    written = np.asarray(helpers.encode(
        helpers.params(), helpers.corpus_tokens()))
    stale = np.asarray(helpers.table(mesh, helpers.params(5)).embeddings)
    now = np.asarray(state.table.embeddings)
    np.testing.assert_allclose(
        now[live(refreshed)], written[live(refreshed)], atol=1e-6)
    kept = live(np.setdiff1d(anchors, refreshed))
    self.assertNotEmpty(kept)
    np.testing.assert_array_equal(now[kept], stale[kept])

  def test_a_corrector_without_memory_is_refused(self):
    with self.assertRaisesRegex(ValueError, "corrector.name='identity'"):
      helpers.method(helpers.samplers.NoNegatives(), memory='none',
                     columns='positives', corrector=network())

  @pytest.mark.slow
  def test_positives_are_learned_from(self):
    """Without draws or probes the positives are all that is observed."""
    mesh = sharding.make_mesh(1)
    only_positives = helpers.method(
        helpers.samplers.NoNegatives(), columns='positives',
        corrector=network())
    _, history = helpers.train(
        only_positives, mesh, num_steps=1, stale_params=helpers.params(5))
    ids = helpers.batch(0).target_ids
    tokens = helpers.corpus_tokens()[ids]
    wanted = np.mean(np.sum(np.square(
        helpers.encode(helpers.params(5), tokens)
        - helpers.encode(helpers.params(), tokens)), axis=1))
    np.testing.assert_allclose(
        history[0]['corrector_loss'], wanted, rtol=1e-5)

  @parameterized.parameters(True, False)
  @pytest.mark.slow
  def test_starts_anew_after_a_refresh_if_asked_to(self, reset):
    mesh = sharding.make_mesh(2)
    corrector = network(reset_on_refresh=reset)
    train_step = steps.make_train_step(
        helpers.ENCODERS, method(corrector), optax.sgd(0.1), mesh=mesh,
        seed=0)
    first = train_step.init_state(helpers.params(), helpers.table(mesh))
    start = jax.device_get(first.corrector)
    state, _ = helpers.train(
        method(corrector), mesh, num_steps=3,
        stale_params=helpers.params(5))
    refreshed = train_step.refreshed(state, helpers.table(mesh, state.params))
    wanted = start if reset else jax.device_get(state.corrector)
    jax.tree.map(np.testing.assert_array_equal, refreshed.corrector, wanted)
    np.testing.assert_allclose(
        refreshed.table.embeddings[:helpers.NUM_TARGETS],
        helpers.encode(state.params, helpers.corpus_tokens()), atol=1e-6)


if __name__ == '__main__':
  absltest.main()
