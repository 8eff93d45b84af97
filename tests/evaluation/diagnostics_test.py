"""The diagnostics equal their definitions, and obey the bounds."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import correctors
from retrieval_jax import types
from retrieval_jax.evaluation import diagnostics

_SCALE = 3.0


def identity(rows):
  return rows.embeddings.astype(jnp.float32)


def make_view(embeddings, ids=None, correct=identity, scale=_SCALE):
  embeddings = jnp.asarray(embeddings)
  ids = np.arange(len(embeddings)) if ids is None else ids
  table = types.TargetTable(
      embeddings=embeddings, ids=jnp.asarray(ids, jnp.int32),
      written=jnp.zeros(len(embeddings), jnp.int32),
      rows_are_ids=False)
  return types.View(table, correct, jnp.float32(scale), scan=None)


def unit(rng, *shape):
  x = rng.normal(size=shape)
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def softmax(logits):
  weights = np.exp(logits - logits.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


class DiagnosticsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.queries = unit(rng, 5, 6)
    self.fresh = unit(rng, 37, 6)
    self.stale = (self.fresh + 0.2 * rng.normal(size=(37, 6))).astype('f4')
    self.positive_ids = np.array([3, 0, 36, 7, 7], np.int32)
    self.known = np.stack(
        [self.positive_ids, [5, -1, -1, 36, -1]], axis=1).astype(np.int32)

  def slow(self, moved, remembered, known):
    """The definitions, term by term, in float64 numpy."""
    s = _SCALE * self.queries.astype('f8') @ self.fresh.T.astype('f8')
    t = _SCALE * self.queries.astype('f8') @ np.asarray(moved, 'f8').T
    for b, row in enumerate(known):
      s[b, row[row >= 0]] = t[b, row[row >= 0]] = -np.inf
    live = np.zeros(37, bool)
    live[remembered] = True
    t[:, ~live] = -np.inf
    p, p_hat = softmax(s), softmax(t)
    p_live = softmax(np.where(live, s, -np.inf))
    with np.errstate(all='ignore'):
      kl = np.nansum(
          np.where(p_live > 0, p_live * np.log(p_live / p_hat), 0), axis=1)
    log_z, log_z_hat = (np.log(np.exp(x).sum(axis=1)) for x in (s, t))
    g = self.fresh.astype('f8')
    positive = g[self.positive_ids]
    own = _SCALE * np.sum(self.queries * positive, axis=1)
    exact, estimate = (
        _SCALE * (1 - np.exp(own) / (np.exp(own) + np.exp(z)))[:, None]
        * (weights @ g - positive)
        for weights, z in ((p, log_z), (p_hat, log_z_hat)))
    cosine = np.sum(exact * estimate, axis=1) / (
        np.linalg.norm(exact, axis=1) * np.linalg.norm(estimate, axis=1))
    top = lambda x: np.argsort(-x, axis=1)[:, :10]
    overlap = [len(set(a) & set(b)) / 10 for a, b in zip(top(s), top(t))]
    bias = np.linalg.norm(exact - estimate, axis=1)
    return {
        'tv': 0.5 * np.abs(p - p_hat).sum(axis=1).mean(), 'kl': kl.mean(),
        'coverage': p[:, live].sum(axis=1).mean(),
        'top_k_overlap': np.mean(overlap),
        'log_z_error': np.abs(log_z - log_z_hat).mean(),
        'gradient_cosine': cosine.mean(), 'gradient_bias': bias.mean(),
        'gradient_bias_relative':
            bias.mean() / np.linalg.norm(exact, axis=1).mean()}

  def assert_close(self, values, expected):
    for name, value in expected.items():
      np.testing.assert_allclose(
          values[name], value, rtol=1e-4, atol=2e-6, err_msg=name)

  @parameterized.parameters(5, 16, 37, 1000)
  def test_a_fresh_table_is_perfect(self, chunk_rows):
    values = diagnostics.approximation(
        self.queries, self.fresh, make_view(self.fresh),
        known_positives=self.known, positive_ids=self.positive_ids, k=10,
        chunk_rows=chunk_rows)
    self.assert_close(values, {
        'tv': 0, 'kl': 0, 'coverage': 1, 'top_k_overlap': 1, 'log_z_error': 0,
        'gradient_cosine': 1, 'gradient_bias': 0, 'gradient_bias_relative': 0,
        'drift_before': 0, 'drift_after': 0})

  @parameterized.parameters(False, True)
  def test_copies_count_for_nothing_remembered_or_not(self, remembered):
    copies = np.array([2, 11, 30])
    ids = np.arange(37)
    if not remembered:
      ids[copies] = -1
    values = diagnostics.approximation(
        self.queries, self.fresh, make_view(self.stale, ids), copies=copies,
        known_positives=self.known, positive_ids=self.positive_ids, k=10,
        chunk_rows=16)
    self.assert_close(values, self.slow(
        self.stale, np.arange(37),
        np.concatenate([self.known, np.tile(copies, (5, 1))], axis=1)))

  def test_two_targets_by_hand(self):
    # Logits 0 and ln 3 when fresh, 0 and 0 when remembered.
    fresh = np.array([[0, 1], [1, 0]], np.float32)
    stale = np.array([[0, 1], [0, 2]], np.float32)
    values = diagnostics.approximation(
        np.array([[1, 0]], np.float32), fresh,
        make_view(stale, scale=np.log(3)), k=1)
    self.assert_close(values, {
        'tv': 1 / 4, 'kl': np.log(1 / 2) / 4 + np.log(3 / 2) * 3 / 4,
        'log_z_error': np.log(4 / 2),
        'gradient_bias': np.log(3) * np.sqrt(2) / 4,
        'drift_before': (0 + 5) / 2, 'drift_after': (0 + 5) / 2})

  @parameterized.parameters(8, 37)
  def test_every_number_is_its_definition(self, chunk_rows):
    values = diagnostics.approximation(
        self.queries, self.fresh, make_view(self.stale),
        known_positives=self.known, positive_ids=self.positive_ids, k=10,
        chunk_rows=chunk_rows)
    self.assert_close(
        values, self.slow(self.stale, np.arange(37), self.known))
    drift = np.sum((self.stale - self.fresh)**2, axis=1)  # fresh has length 1
    self.assert_close(
        values, {'drift_before': drift.mean(), 'drift_after': drift.mean()})

  def test_a_ring_that_remembers_a_few_targets_in_any_order(self):
    ids = np.array([30, -1, 2, 11, 3, -1, 36, 8, 9, 10, 12, 13, 14, 15])
    ring = np.where(ids[:, None] >= 0, self.stale[ids], 1e3).astype('f4')
    values = diagnostics.approximation(
        self.queries, self.fresh, make_view(ring, ids),
        known_positives=self.known, positive_ids=self.positive_ids, k=10,
        chunk_rows=9)
    self.assertLess(values['coverage'], 0.6)
    self.assert_close(
        values, self.slow(self.stale, ids[ids >= 0], self.known))

  def test_a_perfect_corrector_takes_the_drift_away(self):
    turn = np.linalg.qr(
        np.random.default_rng(1).normal(size=(6, 6)))[0].astype('f4')
    stale = self.fresh @ turn
    view = make_view(stale, correct=lambda rows: rows.embeddings @ turn.T)
    values = diagnostics.approximation(
        self.queries, self.fresh, view, known_positives=self.known, k=10,
        chunk_rows=10)
    self.assertGreater(values['drift_before'], 0.1)
    self.assert_close(values, {
        'drift_after': 0, 'tv': 0, 'kl': 0, 'gradient_cosine': 1,
        'top_k_overlap': 1})

  @parameterized.product(noise=(0.01, 0.1, 0.5), scale=(1., 5., 20.))
  def test_the_bounds_hold(self, noise, scale):
    rng = np.random.default_rng(2)
    stale = (self.fresh + noise * rng.normal(size=(37, 6))).astype('f4')
    view = make_view(stale, scale=scale)
    epsilon = scale * np.abs(self.queries @ (stale - self.fresh).T).max()
    values = diagnostics.approximation(
        self.queries, self.fresh, view, known_positives=self.known)
    slack = 1 + 1e-5
    self.assertGreaterEqual(values['kl'], 0)
    self.assertLessEqual(values['tv'], np.tanh(epsilon / 2) * slack)
    self.assertLessEqual(values['kl'], epsilon**2 / 2 * slack)
    self.assertLessEqual(
        values['gradient_bias'], 2 * values['tv'] * scale * slack)
    with_positive = diagnostics.approximation(
        self.queries, self.fresh, view, known_positives=self.known,
        positive_ids=self.positive_ids)
    self.assertLessEqual(
        with_positive['gradient_bias'],
        2 * np.tanh(epsilon / 2) * scale * slack)

  def test_the_exact_gradient_is_that_of_the_full_softmax(self):
    # The same number through automatic differentiation of the loss itself.
    def loss(query, row, known):
      logits = _SCALE * self.fresh @ query
      others = jnp.zeros(37, bool).at[known].set(True, mode='drop')
      others = others.at[row].set(False)
      return jax.nn.logsumexp(
          jnp.where(others, -jnp.inf, logits)) - logits[row]
    known = np.where(self.known < 0, 37, self.known)
    exact = np.stack([
        jax.grad(loss)(q, r, k)
        for q, r, k in zip(self.queries, self.positive_ids, known)])
    values = diagnostics.approximation(
        self.queries, self.fresh, make_view(self.stale),
        known_positives=self.known, positive_ids=self.positive_ids)
    self.assertAlmostEqual(
        values['gradient_bias'] / values['gradient_bias_relative'],
        np.linalg.norm(exact, axis=1).mean(), places=5)

  def test_device_count_does_not_change_the_numbers(self):
    arguments = dict(
        known_positives=self.known, positive_ids=self.positive_ids, k=10,
        chunk_rows=16)
    single = diagnostics.approximation(
        self.queries, self.fresh, make_view(self.stale), **arguments)
    mesh = jax.make_mesh(
        (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(
        make_view(np.pad(self.stale, ((0, 3), (0, 0))),
                  np.pad(np.arange(37), (0, 3), constant_values=-1)).table,
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data')))
    view = types.View(spread, identity, jnp.float32(_SCALE), scan=None)
    with jax.transfer_guard('disallow'):
      many = diagnostics.approximation(
          self.queries, self.fresh, view, mesh=mesh, **arguments)
    self.assert_close(many, single)

  def test_a_bfloat16_table_is_compared_in_float32(self):
    view = make_view(jnp.asarray(self.fresh, jnp.bfloat16))
    values = diagnostics.approximation(self.queries, self.fresh, view)
    self.assertBetween(values['drift_before'], 1e-7, 1e-4)
    self.assertLess(values['tv'], 0.01)

  def test_a_draw_of_everything_has_the_exact_gradient(self):
    ids = np.tile(np.arange(37), (5, 1)).astype(np.int32)
    mask = ~np.any(ids[:, :, None] == self.known[:, None, :], axis=2)
    logits = _SCALE * self.queries @ self.fresh.T
    log_z = np.log(np.sum(np.where(mask, np.exp(logits), 0), axis=1))
    proposal = types.Proposal(
        rows=ids, ids=np.where(mask, ids, -1), logits=logits, log_q=logits,
        log_z=log_z, mask=mask)
    values = diagnostics.approximation(
        self.queries, self.fresh, make_view(self.stale), proposal=proposal,
        known_positives=self.known, positive_ids=self.positive_ids, k=37)
    self.assert_close(values, {
        'draw_mass': 1, 'draw_overlap': 1, 'draw_log_z_error': 0,
        'draw_gradient_cosine': 1})

  def test_repeated_draws_count_their_mass_once(self):
    proposal = types.Proposal(
        rows=np.zeros((5, 2), np.int32), ids=np.full((5, 2), 4, np.int32),
        logits=np.zeros((5, 2)), log_q=np.zeros((5, 2)),
        log_z=np.full(5, np.nan), mask=np.ones((5, 2), bool))
    values = diagnostics.approximation(
        self.queries, self.fresh, make_view(self.stale), proposal=proposal)
    self.assertAlmostEqual(
        values['draw_mass'],
        softmax(_SCALE * self.queries @ self.fresh.T)[:, 4].mean(), places=6)
    self.assertTrue(np.isnan(values['draw_log_z_error']))

  def test_a_second_call_compiles_nothing(self):
    arguments = dict(known_positives=self.known, k=10, chunk_rows=16)
    views = make_view(self.stale), make_view(self.fresh)
    # With the key-reuse checker on, every call of a jitted function retraces.
    with jax.debug_key_reuse(False):
      diagnostics.approximation(
          self.queries, self.fresh, views[0], **arguments)
      with jax.no_tracing():
        diagnostics.approximation(
            self.queries, self.fresh, views[1], **arguments)

  def test_errors_say_what_to_do(self):
    with self.assertRaisesRegex(ValueError, 'after the first push'):
      diagnostics.approximation(
          self.queries, self.fresh,
          make_view(self.stale, np.full(37, -1)))
    with self.assertRaisesRegex(ValueError, 'N=30.*remembers id 36'):
      diagnostics.approximation(
          self.queries, self.fresh[:30], make_view(self.stale))
    with self.assertRaisesRegex(ValueError, 'fresh has D=5.*queries has D=6'):
      diagnostics.approximation(
          self.queries, self.fresh[:, :5], make_view(self.stale))
    mesh = jax.make_mesh(
        (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    with self.assertRaisesRegex(ValueError, '8 devices.*got 12; try 16'):
      diagnostics.approximation(
          self.queries, self.fresh, make_view(self.stale), mesh=mesh,
          chunk_rows=12)


class SampleQueriesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    # As WordNet's: all nouns come first.
    self.ids = np.array([f'n{i}' for i in range(800)]
                        + [f'v{i}' for i in range(200)])

  def chosen(self, ids, num_queries=100):
    return set(ids[diagnostics.sample_queries(ids, num_queries)])

  def test_is_a_sample_whatever_the_order_of_the_queries(self):
    chosen = self.chosen(self.ids)
    self.assertLen(chosen, 100)
    self.assertEqual(chosen, self.chosen(self.ids[::-1]))
    # 20 of 100 are expected to be verbs, with a standard deviation below 4.
    self.assertBetween(sum(name[0] == 'v' for name in chosen), 8, 32)

  def test_rows_ascend_and_more_queries_keep_the_first(self):
    rows = diagnostics.sample_queries(self.ids, 100)
    self.assertTrue((np.diff(rows) > 0).all())
    self.assertLess(self.chosen(self.ids, 20), self.chosen(self.ids))

  def test_few_queries_are_all_taken(self):
    np.testing.assert_array_equal(
        diagnostics.sample_queries(['b', 'a'], 64), [0, 1])
    self.assertEmpty(diagnostics.sample_queries([], 64))


class FitToAllTest(absltest.TestCase):

  def test_finds_the_map_from_rows_to_the_targets_of_their_ids(self):
    rng = np.random.default_rng(1)
    fresh = unit(rng, 200, 6)
    ids = np.concatenate([rng.permutation(200)[:90], np.full(10, -1)])
    matrix = rng.normal(size=(6, 6))
    # Empty rows hold nonsense, which must not be fitted.
    stale = np.where(
        ids[:, None] >= 0, fresh[ids] @ np.linalg.inv(matrix), 50.0)
    table = make_view(stale, ids).table
    corrector = correctors.Linear(
        fit='ridge', ridge=1e-5, decay=1.0, num_anchors=0, use_after=0,
        keep_norm=False, reset_on_refresh=False)
    state = diagnostics.fit_to_all(
        corrector, table, fresh, num_steps=5, num_rows=64)
    np.testing.assert_allclose(
        corrector.apply(state, table)[:90], fresh[ids[:90]], atol=2e-2)


if __name__ == '__main__':
  absltest.main()
