"""The step against the full softmax, on any device count, from any memory."""


from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from retrieval_jax import correctors
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax.training import state as states
from retrieval_jax.training import step as steps
from tests import helpers

ENCODE = helpers.encode


def full_loss(params, batch):
  """The exact loss of the toy problem, known positives left out of Z."""
  queries = ENCODE(params, batch.query_tokens)
  targets = ENCODE(params, helpers.corpus_tokens())
  logits = 5.0 * queries @ targets.T
  own = np.asarray(batch.target_ids)
  excluded = np.zeros(logits.shape, bool)
  for b, known in enumerate(np.asarray(batch.known_positives)):
    excluded[b, known[known >= 0]] = True
    excluded[b, own[b]] = False
  log_z = jax.nn.logsumexp(jnp.where(excluded, -jnp.inf, logits), axis=1)
  return (log_z - logits[jnp.arange(len(own)), own]).mean()


def parameter_change(method, mesh, seed=0):
  """Returns minus the gradient of the first step: SGD with rate one."""
  state, _ = helpers.train(method, mesh, num_steps=1, seed=seed,
                           optimizer=optax.sgd(1.0))
  return np.asarray(state.params['words'] - helpers.params()['words'])


class GradientTest(parameterized.TestCase):

  def test_full_softmax_takes_the_exact_gradient(self):
    mesh = sharding.make_mesh(1)
    method = helpers.method(
        samplers.Exhaustive(helpers.NUM_TARGETS, helpers.BATCH),
        estimator='full_softmax', columns='draws')
    exact = jax.grad(full_loss)(helpers.params(), helpers.batch(0))['words']
    np.testing.assert_allclose(
        parameter_change(method, mesh), -exact, atol=1e-6)

  @parameterized.parameters((None,), (7,))
  @pytest.mark.slow
  def test_cache_gradient_is_unbiased_exactly_when_the_table_is_fresh(
      self, stale_seed):
    """Chi-square of the mean over 400 keys, 99.9% bound, and not when stale."""
    mesh = sharding.make_mesh(1)
    method = helpers.method(helpers.gumbel(1), estimator='cache_gradient')
    batch = helpers.batch(0)
    exact = jax.grad(full_loss)(helpers.params(), batch)['words']
    stale = None if stale_seed is None else helpers.params(stale_seed)
    table = helpers.table(mesh, stale)
    on_device = sharding.put_batch(batch, mesh)

    # One jitted step serves all seeds: the step number moves the key.
    train_step = steps.make_train_step(
        helpers.ENCODERS, method, optax.sgd(1.0), mesh=mesh, seed=3)
    changes = []
    for step in range(400):
      state = train_step.init_state(helpers.params(), helpers.copy(table))
      state = states.TrainState(
          step=jax.device_put(np.int32(step), state.step.sharding),
          params=state.params, opt_state=state.opt_state, table=state.table,
          corrector=(), sampler=())
      after, _ = helpers.update(
          train_step, state, on_device,
          train_step.propose(state, on_device), mesh)
      changes.append(np.asarray(after.params['words']))
    changes = (np.array(changes) - np.asarray(helpers.params()['words'])
               ).reshape(len(changes), -1)
    error = changes.mean(axis=0) + np.asarray(exact).ravel()
    z = error * np.sqrt(len(changes)) / changes.std(axis=0)
    # The entries are correlated: the mean of z^2 is about chi-square / n, with
    # mean 1 and variance 2 / n, for n = (sum of 1)^2 / sum of correlations^2.
    n = len(z)**2 / np.square(np.corrcoef(changes.T)).sum()
    self.assertBetween(n, 50, 80)  # so that the bound is 1.6 or so
    bound = stats.chi2.ppf(0.999, n) / n
    score = np.mean(np.square(z))
    if stale_seed is None:
      self.assertLess(score, bound)
    else:
      self.assertGreater(score, 10 * bound)


def many_methods():
  gumbel = helpers.gumbel()
  return {
      'in_batch': helpers.method(
          samplers.NoNegatives(), memory='none', columns='positives'),
      'stale': helpers.method(gumbel, columns='all'),
      'top_k': helpers.method(
          samplers.TopK(2), columns='positives'),
      'cache': helpers.method(
          helpers.gumbel(1), estimator='cache_gradient',
          write_back=True, push=True),
      'uniform': helpers.method(
          samplers.Uniform(3), estimator='sampled_softmax', fraction=0.2),
      'stochastic': helpers.method(
          samplers.StochasticNegativeMining(2, 16)),
      'shortlist': helpers.method(samplers.ShortlistGumbel(2, 8)),
      'ring': helpers.method(gumbel, memory='ring', push=True,
                             write_back=True, columns='all'),
      'small_ring': helpers.method(
          gumbel, memory=helpers.ring(16), push=True, write_back=True,
          columns='all', fraction=0.2),
      'mlp': helpers.method(
          gumbel, columns='all', push=True, write_back=True, fraction=0.2,
          corrector=correctors.MLP(
              hidden=8, learning_rate=1e-2, warmup_steps=2, updates_per_step=2,
              weight_decay=0.1, distribution_weight=0.1, average_decay=0.5,
              condition_on_age=True, num_anchors=5, use_after=0,
              keep_norm=True, reset_on_refresh=True)),
      'candidates': helpers.method(
          gumbel, columns='all', num_candidates=3, write_back=True,
          ceiling=samplers.Ceiling(None, 0.02), distillation='kl'),
      'candidates_only': helpers.method(
          samplers.NoNegatives(), memory='none', num_candidates=2,
          distillation='margin_mse'),
      'linear': helpers.method(
          gumbel, columns='all', corrector=correctors.Linear(
              fit='ridge', ridge=1e-2, decay=0.9, num_anchors=3, use_after=1,
              keep_norm=True, reset_on_refresh=True)),
      'nystrom': helpers.method(
          gumbel, columns='all', corrector=correctors.Nystrom(
              num_landmarks=24, landmarks='greedy', kernel='rbf',
              bandwidth=1.0, ridge=1e-2, decay=0.9, num_anchors=5, use_after=0,
              keep_norm=True)),
  }


def start_table(name, mesh):
  memory = many_methods()[name].memory
  if memory.kind == 'ring':
    return memory.create(None, (), dim=helpers.DIM, mesh=mesh)
  return helpers.table(mesh, helpers.params(5))


def course(name, devices):
  """Returns what three steps of a method do, without the rows that pad.

  Returns:
    rows: by step, the rows drawn [B, K], the ids of the rows to refresh and of
      the anchors, and those of the memory, all of them integers.
    values: losses, live embeddings and the corrector's state.
  """
  mesh, rows = sharding.make_mesh(devices), []

  def keep(state, proposal, probes):
    # Padding may stand between rows to refresh and anchors, but is no row.
    probed = np.asarray(tables.take(state.table, probes).ids)
    rows.append((np.asarray(proposal.rows), probed[probed >= 0]))

  state, history = helpers.train(
      many_methods()[name], mesh, num_steps=3, each=keep,
      table_=start_table(name, mesh))
  table = jax.device_get(state.table)
  live = table.ids >= 0
  rows.append((np.flatnonzero(live), table.ids[live], table.written[live]))
  return rows, ([m['nll'] for m in history], table.embeddings[live],
                jax.device_get(state.corrector))


class InvarianceTest(parameterized.TestCase):

  def compare_one_and_eight_devices(self, name):
    (rows, values), (wanted_rows, wanted) = course(name, 8), course(name, 1)
    jax.tree.map(np.testing.assert_array_equal, rows, wanted_rows)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(
        x, y, rtol=1e-5, atol=1e-5), values, wanted)

  @parameterized.parameters(
      'in_batch', 'stale', 'top_k', 'cache', 'uniform', 'mlp', 'stochastic',
      'shortlist', 'ring', 'small_ring', 'linear', 'nystrom', 'candidates',
      'candidates_only')
  @pytest.mark.slow
  def test_nothing_depends_on_the_device_count(self, name):
    """Draws, rows encoded besides, losses, memory and corrector."""
    self.compare_one_and_eight_devices(name)

  def test_a_ring_never_holds_more_than_its_capacity(self):
    rows, _ = course('small_ring', 1)
    self.assertLen(rows[-1][0], 16)

  @parameterized.parameters(
      'in_batch', 'stale', 'cache', 'uniform', 'ring', 'mlp', 'linear',
      'nystrom', 'candidates')
  @pytest.mark.slow
  def test_nothing_is_compiled_after_the_first_step(self, name):
    mesh = sharding.make_mesh(2)
    method = many_methods()[name]
    train_step = steps.make_train_step(
        helpers.ENCODERS, method, optax.adam(0.05), mesh=mesh, seed=0)
    state = train_step.init_state(helpers.params(), start_table(name, mesh))

    def one(state, step):
      batch = sharding.put_batch(
          helpers.batch(step, num_candidates=method.num_candidates), mesh)
      return helpers.update(
          train_step, state, batch, train_step.propose(state, batch), mesh)[0]

    # The key-reuse checker traces on every call; it is not what is tested here.
    with jax.debug_key_reuse(False):
      state = one(state, 0)
      with jax.no_tracing():
        state = one(state, 1)
    self.assertEqual(int(state.step), 2)

  @parameterized.parameters(
      'in_batch', 'stale', 'cache', 'uniform', 'ring', 'mlp', 'linear')
  @pytest.mark.slow
  def test_stopping_between_two_steps_changes_no_bit(self, name):
    mesh = sharding.make_mesh(2)
    method = many_methods()[name]
    start = start_table(name, mesh)
    straight, _ = helpers.train(method, mesh, num_steps=4, table_=start)
    half, _ = helpers.train(method, mesh, num_steps=2, table_=start)
    copied = jax.tree.map(
        lambda x: jax.device_put(np.asarray(x), x.sharding), half)
    resumed, _ = helpers.train(
        method, mesh, num_steps=4, start=copied, start_step=2)
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)

  @pytest.mark.slow
  def test_loss_falls(self):
    mesh = sharding.make_mesh(1)
    for name, method in many_methods().items():
      if name == 'cache':
        continue  # its nll is under the remembered table, not comparable
      _, history = helpers.train(
          method, mesh, num_steps=40, table_=start_table(name, mesh))
      loss = [m['loss'] for m in history]
      self.assertLess(np.mean(loss[-8:]), 0.9 * np.mean(loss[4:12]), name)


class MemoryTest(parameterized.TestCase):

  def test_without_refresh_the_memory_never_changes(self):
    mesh = sharding.make_mesh(2)
    method = helpers.method(helpers.gumbel())
    state, _ = helpers.train(method, mesh, num_steps=3)
    jax.tree.map(np.testing.assert_array_equal, state.table,
                 helpers.table(mesh))

  def test_write_back_remembers_what_the_step_encoded(self):
    mesh = sharding.make_mesh(2)
    method = helpers.method(helpers.gumbel(), write_back=True)
    seen = []
    state, _ = helpers.train(
        method, mesh, num_steps=1, stale_params=helpers.params(5),
        each=lambda state, proposal, probes: seen.append(
            np.unique(proposal.rows)))
    rows = seen[0]
    fresh = ENCODE(helpers.params(), helpers.corpus_tokens())
    stale = helpers.table(mesh, helpers.params(5)).embeddings
    np.testing.assert_allclose(
        state.table.embeddings[rows], fresh[rows], atol=1e-6)
    others = np.setdiff1d(np.arange(helpers.NUM_TARGETS), rows)
    np.testing.assert_array_equal(state.table.embeddings[others], stale[others])

  @parameterized.parameters(1, 2, 4, 8)
  def test_write_back_reaches_the_shard_that_owns_the_row(self, devices):
    """Which the sharded cache of the public code does not do."""
    mesh = sharding.make_mesh(devices)
    size = devices * helpers.CHUNK_ROWS
    # Targets lie scattered over all shards.
    ids = np.full(size, -1)
    ids[np.random.default_rng(0).permutation(size)[:helpers.NUM_TARGETS]] = (
        np.arange(helpers.NUM_TARGETS))
    fresh = np.asarray(ENCODE(helpers.params(), helpers.corpus_tokens()))
    stale = np.asarray(ENCODE(helpers.params(5), helpers.corpus_tokens()))
    of_row = lambda embeddings: np.where(
        ids[:, None] >= 0, embeddings[ids], 0)
    drawn = []
    state, _ = helpers.train(
        helpers.method(
            helpers.gumbel(4), memory=helpers.ring(size), push=True,
            write_back=True, estimator='cache_gradient'),
        mesh, num_steps=1, table_=tables.create(
            of_row(stale), ids, mesh=mesh, chunk_rows=helpers.CHUNK_ROWS,
            dtype='float32'),
        each=lambda state, proposal, probes: drawn.extend(
            np.unique(proposal.rows)))
    written = np.zeros(size, bool)
    written[drawn] = True
    written |= np.isin(ids, helpers.batch(0).target_ids)  # pushed
    for shard in state.table.embeddings.addressable_shards:
      self.assertTrue(written[shard.index[0]].any())
      np.testing.assert_allclose(
          shard.data, np.where(written[:, None], of_row(fresh), of_row(stale))[
              shard.index[0]], atol=1e-6)

  def test_push_remembers_the_positives_in_a_ring(self):
    mesh = sharding.make_mesh(2)
    state, _ = helpers.train(
        many_methods()['ring'], mesh, num_steps=1,
        table_=start_table('ring', mesh))
    remembered = set(np.asarray(state.table.ids).tolist()) - {-1}
    self.assertEqual(remembered, set(helpers.batch(0).target_ids.tolist()))

  def test_staleness_is_that_of_the_drawn_rows(self):
    mesh = sharding.make_mesh(1)
    stale = helpers.params(5)
    seen = []
    _, history = helpers.train(
        helpers.method(helpers.gumbel()), mesh, num_steps=1,
        stale_params=stale,
        each=lambda state, proposal, probes: seen.append(
            np.asarray(proposal.rows).ravel()))
    tokens = helpers.corpus_tokens()[seen[0]]
    wanted = np.mean(np.sum(np.square(
        ENCODE(stale, tokens) - ENCODE(helpers.params(), tokens)), axis=1))
    np.testing.assert_allclose(history[0]['drift_before'], wanted, rtol=1e-5)

  def test_mean_age_under_a_random_fraction_is_as_derived(self):
    """(1 - rho) / rho, for a refresh of a random fraction rho per step."""
    capacity, num_rows, num_steps = 64, 8, 4000
    rho = num_rows / capacity
    keys = jax.random.split(jax.random.key(0), num_steps)
    table = tables.from_embeddings(
        np.ones((capacity, 1)), sharding.make_mesh(1), 64, 'float32')
    rows = np.asarray(jax.vmap(
        lambda key: tables.systematic_rows(key, table, num_rows))(keys))
    self.assertTrue(all(len(set(r)) == num_rows for r in rows[:100].tolist()))
    counts = np.bincount(rows.ravel(), minlength=capacity)
    expected = num_steps * rho
    # Variance of a binomial count; 4.5 sigma over 64 rows.
    bound = 4.5 * np.sqrt(expected * (1 - rho))
    self.assertLess(np.abs(counts - expected).max(), bound)
    written, ages = np.zeros(capacity), []
    for step, chosen in enumerate(rows):
      written[chosen] = step
      if step > 200:
        ages.append(np.mean(step - written))
    np.testing.assert_allclose(np.mean(ages), (1 - rho) / rho, rtol=0.03)


if __name__ == '__main__':
  absltest.main()
