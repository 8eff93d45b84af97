"""Targets read from the table: frozen, or trained row by row."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import optax

from retrieval_jax import method as methods
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.objectives import columns as columns_lib
from retrieval_jax.training import optimizer as optimizers
from retrieval_jax.training import step as steps
from tests import helpers

RATE, SCALE = 2.0, 5.0


def refuse(params, tokens):
  raise AssertionError('the target tower was called')


ENCODERS = steps.Encoders(
    helpers.encode, refuse, lambda params: jnp.float32(SCALE))


def method(source, *, normalize=True, columns='all', num_negatives=3):
  return helpers.method(
      samplers.TopK(num_negatives), columns=columns, targets=methods.Targets(
          source, RATE if source == 'rows' else None, normalize))


def train(method_, mesh, num_steps):
  """Returns (state, tables before each step, proposals) of a few steps."""
  train_step = steps.make_train_step(
      ENCODERS, method_, optax.sgd(0.5), mesh=mesh, seed=0)
  state = train_step.init_state(helpers.params(), helpers.table(mesh))
  before, proposals = [], []
  for step in range(num_steps):
    batch = sharding.put_batch(helpers.batch(step), mesh)
    draws = train_step.propose(state, batch)
    assert draws.negative_ids.shape == (0,)  # nothing to look tokens up for
    before.append(jax.device_get(state.table))
    proposals.append(jax.device_get(draws.proposal))
    state, _ = helpers.update(train_step, state, batch, draws, mesh)
  return state, before, proposals


def expected_rows(table, queries, batch, proposal):
  """Returns the table after one step, every gradient in closed form.

    dL/dg_y = beta / B * sum_b (p_b(y) - [y is b's positive]) q_b

  with p_b the softmax over b's positive and every column of the batch that is
  not a known positive of b, counted as often as it stands there.
  """
  gradient = np.zeros(table.embeddings.shape)
  rows = table.embeddings.astype(np.float64)
  queries = np.asarray(queries, np.float64)
  size = len(queries)
  every = np.concatenate([batch.target_ids, proposal.ids.reshape(-1)])
  for b in range(size):
    known = set(batch.known_positives[b].tolist())
    seen = [batch.target_ids[b]] + [y for y in every if y not in known]
    logits = SCALE * rows[seen] @ queries[b]
    chances = np.exp(logits - np.logaddexp.reduce(logits))
    chances[0] -= 1
    for y, weight in zip(seen, chances):
      gradient[y] += SCALE / size * weight * queries[b]
  used = np.unique(every[every >= 0])
  return rows - RATE * gradient, used


class RowsTest(parameterized.TestCase):

  @parameterized.product(normalize=(False, True), devices=(1, 8))
  def test_rows_take_the_gradient_in_closed_form(self, normalize, devices):
    """Positives drawn by others and rows drawn twice get their sums."""
    mesh = sharding.make_mesh(devices)
    batch = helpers.batch(0)
    state, [before], [proposal] = train(
        method('rows', normalize=normalize), mesh, num_steps=1)
    used = np.concatenate([batch.target_ids, proposal.ids.reshape(-1)])
    self.assertLess(len(np.unique(used)), len(used) - 5)  # many duplicates
    self.assertNotEmpty(set(batch.target_ids) & set(proposal.ids.reshape(-1)))
    queries = helpers.encode(helpers.params(), batch.query_tokens)
    wanted, moved = expected_rows(before, queries, batch, proposal)
    if normalize:
      wanted[moved] /= np.linalg.norm(wanted[moved], axis=1, keepdims=True)
    after = jax.device_get(state.table)
    np.testing.assert_allclose(after.embeddings, wanted, atol=2e-6)
    self.assertGreater(
        np.abs(after.embeddings - before.embeddings)[moved].max(), 0.1)
    others = np.setdiff1d(np.arange(len(wanted)), moved)
    np.testing.assert_array_equal(
        after.embeddings[others], before.embeddings[others])

  def test_written_says_which_rows_moved(self):
    mesh = sharding.make_mesh(2)
    state, before, proposals = train(method('rows'), mesh, num_steps=3)
    used = np.unique(np.concatenate(
        [helpers.batch(2).target_ids, proposals[2].rows.reshape(-1)]))
    np.testing.assert_array_equal(
        np.flatnonzero(np.asarray(state.table.written) == 2), used)
    del before

  def test_devices_do_not_change_the_rows(self):
    states = []
    for devices in (1, 8):
      mesh = sharding.make_mesh(devices)
      state, _, proposals = train(method('rows'), mesh, num_steps=4)
      states.append((state, [p.rows for p in proposals]))
    (one, drawn), (eight, drawn_by_eight) = states
    np.testing.assert_array_equal(drawn, drawn_by_eight)
    np.testing.assert_allclose(
        one.table.embeddings[:helpers.NUM_TARGETS],
        eight.table.embeddings[:helpers.NUM_TARGETS], atol=1e-5)

  def test_rows_alone_learn(self):
    """With the query tower held still the loss falls all the same."""
    mesh = sharding.make_mesh(1)
    train_step = steps.make_train_step(
        ENCODERS, method('rows'), optax.set_to_zero(), mesh=mesh, seed=0)
    state = train_step.init_state(helpers.params(), helpers.table(mesh))
    batch = sharding.put_batch(helpers.batch(0), mesh)
    losses = []
    for _ in range(10):
      state, metrics = helpers.update(
          train_step, state, batch, train_step.propose(state, batch), mesh)
      losses.append(float(metrics['nll']))
    self.assertLess(losses[-1], 0.7 * losses[0])


class FrozenTest(parameterized.TestCase):

  def test_the_table_stays_and_the_queries_learn_the_exact_gradient(self):
    mesh = sharding.make_mesh(2)
    state, [before], [proposal] = train(
        method('frozen'), mesh, num_steps=1)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.table),
                 before)
    batch = helpers.batch(0)
    targets = helpers.encode(helpers.params(), helpers.corpus_tokens())
    np.testing.assert_allclose(
        before.embeddings[:helpers.NUM_TARGETS], targets, atol=1e-6)

    def loss(params):
      queries = helpers.encode(params, batch.query_tokens)
      columns = columns_lib.make(
          'all', types.Fresh(
              queries, targets[batch.target_ids], targets[proposal.ids],
              jnp.float32(SCALE)), batch, proposal)
      positive = SCALE * jnp.sum(queries * targets[batch.target_ids], axis=1)
      every = jnp.concatenate(
          [positive[:, None],
           jnp.where(columns.mask, columns.logits, -jnp.inf)], axis=1)
      return (jax.nn.logsumexp(every, axis=1) - positive).mean()

    gradient = jax.grad(loss)(helpers.params())['words']
    np.testing.assert_allclose(
        state.params['words'], helpers.params()['words'] - 0.5 * gradient,
        atol=1e-6)

  def test_frozen_parameters_keep_every_bit(self):
    """Neither weight decay nor what Adam remembers may move them."""
    options = dict(learning_rate=0.1, warmup_steps=0, total_steps=9,
                   schedule='constant', weight_decay=0.5, b1=0.9, b2=0.999,
                   eps=1e-8, max_grad_norm=1.0, scale_learning_rate=0.01)
    optimizer, _ = optimizers.make_optimizer(**options, frozen=('target',))
    plain, _ = optimizers.make_optimizer(**options)
    tower = {'kernel': jax.random.normal(jax.random.key(0), (3, 3))}
    params = {'query': tower, 'target': tower, 'log_scale': jnp.float32(1)}
    without = {'query': tower, 'log_scale': jnp.float32(1)}
    state, plain_state = optimizer.init(params), plain.init(without)
    moments = [x.shape for x in jax.tree.leaves(state) if x.ndim == 2]
    self.assertLen(moments, 2)  # of the query tower only
    after, after_without = params, without
    for _ in range(3):
      # A gradient of the frozen entry counts neither there nor in the norm.
      updates, state = optimizer.update(
          jax.tree.map(jnp.ones_like, params), state, after)
      after = optax.apply_updates(after, updates)
      updates, plain_state = plain.update(
          jax.tree.map(jnp.ones_like, without), plain_state, after_without)
      after_without = optax.apply_updates(after_without, updates)
    np.testing.assert_array_equal(after.pop('target')['kernel'],
                                  tower['kernel'])
    jax.tree.map(np.testing.assert_array_equal, after, after_without)


if __name__ == '__main__':
  absltest.main()
