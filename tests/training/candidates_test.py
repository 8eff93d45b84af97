"""Explicit candidates in the step, and gradients cached against uncached."""

import dataclasses
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import optax

from retrieval_jax import method as methods
from retrieval_jax import objectives
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.models import chunking
from retrieval_jax.objectives import columns
from retrieval_jax.objectives import distillation
from retrieval_jax.objectives import estimators
from retrieval_jax.training import step as steps
from tests import helpers

ENCODE = helpers.encode


def explicit_loss(params, batch):
  """Mean softmax loss over each query's own positive and candidates alone."""
  targets = ENCODE(params, helpers.corpus_tokens())
  total = 0.0
  for b, query in enumerate(ENCODE(params, batch.query_tokens)):
    ids = [batch.target_ids[b],
           *(i for i in batch.candidates.ids[b] if i >= 0)]
    logits = 5.0 * targets[np.array(ids)] @ query
    total += jax.nn.logsumexp(logits) - logits[0]
  return total / len(batch.target_ids)


def all_methods():
  """Yields (name, method) of every estimator, columns and teacher that go."""
  exhaustive = samplers.Exhaustive(helpers.NUM_TARGETS, helpers.BATCH)
  for estimator, kind, number, teacher in itertools.product(
      estimators.ESTIMATORS, columns.KINDS, (0, 2),
      (None, *set(distillation.KINDS) - {'none'})):
    sampler = (exhaustive if estimator == 'full_softmax'
               else helpers.gumbel())
    try:
      method = helpers.method(
          sampler, estimator=estimator, columns=kind, num_candidates=number,
          distillation=teacher)
    except ValueError:
      continue  # tests of Method say which are refused
    yield f'{estimator}_{kind}_{number}_{teacher}', method


def drawn(num_draws, num_candidates):
  """Returns (batch, proposal, tokens) of a step with random draws."""
  batch = helpers.batch(14, num_candidates=num_candidates)
  rng = np.random.default_rng(0)
  shape = helpers.BATCH, num_draws
  ids = rng.integers(0, helpers.NUM_TARGETS, shape).astype(np.int32)
  log_q = np.log(rng.uniform(0.01, 0.1, shape))
  proposal = types.Proposal(
      rows=ids, ids=ids, logits=log_q, log_q=log_q,
      log_z=rng.normal(size=helpers.BATCH) + 3, mask=rng.random(shape) < 0.9)
  proposal = steps.with_candidates(
      jax.tree.map(jnp.asarray, proposal), batch.candidates,
      batch.candidates and jnp.asarray(batch.candidates.ids))
  return batch, proposal, np.concatenate(
      [batch.target_tokens, helpers.gather(proposal.ids.reshape(-1))])


class CachedGradientTest(parameterized.TestCase):

  def test_no_combination_is_left_out(self):
    names = [name for name, _ in all_methods()]
    # Four columns of the truncated softmax, without candidates and with them
    # under three kinds of teacher; the others have one each.
    self.assertLen(names, 4 * (1 + 3) + 3)

  @parameterized.parameters((2, 0), (2, 2), (7, 0))
  def test_equals_the_uncached_one_in_float64(self, num_draws, num_candidates):
    """So chunks add nothing to, and take nothing from, a query's negatives."""
    names, chosen = zip(*(
        (name, method) for name, method in all_methods()
        if (method.sampler.num_negatives, method.num_candidates) == (
            num_draws, num_candidates)))
    chunks = chunking.chunked(
        ENCODE, chunk_size=3, buckets=(helpers.LENGTH,))
    with helpers.float64():
      batch, proposal, tokens = drawn(num_draws, num_candidates)

      def losses(words, encode):
        queries = encode({'words': words}, batch.query_tokens)
        targets = encode({'words': words}, tokens)
        fresh = types.Fresh(
            queries, targets[:helpers.BATCH], targets[helpers.BATCH:].reshape(
                helpers.BATCH, num_draws + num_candidates, -1),
            jnp.float64(5.0))
        return jnp.stack([
            method.objective({}, fresh, batch, proposal)[0].mean()
            for method in chosen])

      words = jnp.asarray(np.asarray(helpers.params()['words'], np.float64))
      plain, cached = (
          jax.jit(jax.jacrev(losses), static_argnums=1)(words, encode)
          for encode in (ENCODE, chunks))
    self.assertEqual(cached.dtype, np.float64)
    for name, ours, wanted in zip(names, cached, plain):
      with self.subTest(name):
        self.assertGreater(np.abs(wanted).max(), 1e-3)
        np.testing.assert_allclose(ours, wanted, rtol=1e-11, atol=1e-13)


class CandidatesTest(parameterized.TestCase):

  @parameterized.parameters('none', 'corpus')
  def test_own_columns_are_explicit_negatives_only(self, memory):
    """No other query's target, and nothing drawn: the exact gradient."""
    mesh = sharding.make_mesh(1)
    method = helpers.method(
        samplers.NoNegatives(), memory=memory, num_candidates=3)
    state, history = helpers.train(
        method, mesh, num_steps=1, optimizer=optax.sgd(1.0))
    value, gradient = jax.value_and_grad(explicit_loss)(
        helpers.params(), helpers.batch(0, num_candidates=3))
    np.testing.assert_allclose(history[0]['nll'], value, rtol=1e-5)
    self.assertEqual(history[0]['columns_in_batch'], 0)
    self.assertEqual(history[0]['columns_drawn'], 0)
    np.testing.assert_allclose(
        state.params['words'], helpers.params()['words'] - gradient['words'],
        atol=1e-6)

  def test_a_query_draws_none_of_its_candidates(self):
    mesh = sharding.make_mesh(1)
    batch = helpers.batch(0, num_candidates=20)
    seen = []
    helpers.train(
        helpers.method(helpers.gumbel(24), num_candidates=20), mesh,
        num_steps=1, each=lambda state, proposal, probes: seen.append(
            np.asarray(proposal.ids)))
    for ids, candidates in zip(seen[0], batch.candidates.ids):
      self.assertTrue((ids[:24] >= 0).all())
      self.assertEmpty(set(ids[:24]) & set(candidates))
      np.testing.assert_array_equal(ids[24:], candidates)

  @parameterized.parameters(1, 4)
  def test_write_back_remembers_candidates(self, devices):
    mesh = sharding.make_mesh(devices)
    state, _ = helpers.train(
        helpers.method(helpers.gumbel(1), num_candidates=3,
                       write_back=True),
        mesh, num_steps=1, stale_params=helpers.params(5))
    ids = helpers.batch(0, num_candidates=3).candidates.ids
    ids = ids[ids >= 0]
    fresh = ENCODE(helpers.params(), helpers.corpus_tokens())
    np.testing.assert_allclose(
        np.asarray(state.table.embeddings)[ids], fresh[ids], atol=1e-6)

  def test_candidates_that_are_not_remembered_are_not_written(self):
    mesh = sharding.make_mesh(2)
    batch = helpers.batch(0, num_candidates=3)
    other = np.setdiff1d(np.arange(helpers.NUM_TARGETS), np.append(
        batch.candidates.ids, batch.target_ids))[:1]
    state, _ = helpers.train(
        helpers.method(samplers.TopK(1),
                       memory='ring', num_candidates=3, push=True,
                       write_back=True),
        mesh, num_steps=1, table_=tables.create(
            np.ones((16, helpers.DIM), np.float32),
            np.append(other, [-1] * 15), mesh=mesh,
            chunk_rows=helpers.CHUNK_ROWS, dtype='float32'))
    remembered = set(np.asarray(state.table.ids).tolist()) - {-1}
    self.assertEqual(remembered, {*other, *batch.target_ids})

  def test_candidates_can_be_rows_of_the_table(self):
    """With 'rows', candidates are trained where they stand."""
    mesh = sharding.make_mesh(1)
    method = dataclasses.replace(
        helpers.method(helpers.gumbel(1), num_candidates=3),
        targets=methods.Targets('rows', 1.0))
    drawn = []
    state, _ = helpers.train(
        method, mesh, num_steps=1, each=lambda state, proposal, probes:
        drawn.append(np.asarray(proposal.ids)))
    batch = helpers.batch(0, num_candidates=3)
    self.assertEqual(drawn[0].shape, (8, 4))
    used = np.zeros(helpers.NUM_TARGETS, bool)
    used[np.concatenate([batch.target_ids, drawn[0][drawn[0] >= 0]])] = True
    moved = np.abs(np.asarray(
        state.table.embeddings - helpers.table(mesh).embeddings)).max(axis=1)
    np.testing.assert_array_equal(moved[:len(used)] > 0, used)

  def test_distillation_alone_ignores_draws(self):
    """With weight 1 the parameters move as the teacher's term says."""
    mesh = sharding.make_mesh(1)
    teacher = distillation.Distillation('kl', 1.0)
    batch = helpers.batch(0, num_candidates=3)

    def loss(params):
      queries, targets = (ENCODE(params, tokens) for tokens in (
          batch.query_tokens, helpers.corpus_tokens()))
      return teacher.mix(
          jnp.zeros(8),
          5.0 * jnp.einsum('bd,bd->b', queries, targets[batch.target_ids]),
          5.0 * jnp.einsum(
              'bd,bnd->bn', queries, targets[batch.candidates.ids]),
          jax.tree.map(jnp.asarray, batch.candidates))[0].mean()

    state, history = helpers.train(
        dataclasses.replace(
            helpers.method(helpers.gumbel(), columns='all', num_candidates=3),
            objective=objectives.Distilled(helpers.objective(), teacher)),
        mesh, num_steps=1, optimizer=optax.sgd(1.0))
    value, gradient = jax.value_and_grad(loss)(helpers.params())
    np.testing.assert_allclose(history[0]['loss'], value, rtol=1e-5)
    np.testing.assert_allclose(history[0]['distillation'], value, rtol=1e-5)
    self.assertEqual(history[0]['distilled'], 7 / 8)
    np.testing.assert_allclose(
        state.params['words'], helpers.params()['words'] - gradient['words'],
        atol=1e-6)


if __name__ == '__main__':
  absltest.main()
