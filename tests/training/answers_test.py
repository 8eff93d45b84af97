"""A step learns from answers: retriever and reader, against it written out."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from retrieval_jax import correctors
from retrieval_jax import method as methods
from retrieval_jax import objectives
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.models import chunking
from retrieval_jax.training import step as steps
from tests import helpers
from tests import made_up_readers

RATE = 0.5
READER = made_up_readers.Bag(helpers.VOCABULARY)


def method(sampler, *, objective=objectives.Marginal(), reader=READER,
           source='encoder', corrector=correctors.Identity(), **refresh):
  return methods.Method(
      memory=helpers.MEMORIES['corpus'], corrector=corrector, sampler=sampler,
      objective=objective, refresh=methods.Refresh(**refresh),
      targets=methods.Targets(source), reader=reader)


def params():
  return {**helpers.params(), 'reader': READER.init(jax.random.key(7))}


def encoders(reader=READER):
  read = chunking.chunked(reader.read, chunk_size=8)
  return helpers.ENCODERS._replace(
      read=lambda params, rows: read(params['reader'], rows),
      read_fused=(lambda params, rows: reader.read_fused(
          params['reader'], rows)) if reader.fuses else None)


def questions(step=0):
  """Returns a Batch without a positive in it."""
  batch = helpers.batch(step)
  nothing = lambda array: np.full_like(array, -1)
  return dataclasses.replace(
      batch, target_ids=nothing(batch.target_ids),
      target_tokens=nothing(batch.target_tokens),
      known_positives=nothing(batch.known_positives[:, :1]))


def take_step(method_, num_devices=1, optimizer=optax.sgd(RATE), table=None):
  """Returns (state, metrics, ids [B, K] and mask of the draws) of one step."""
  mesh = sharding.make_mesh(num_devices)
  train_step = steps.make_train_step(
      encoders(method_.reader), method_, optimizer, mesh=mesh, seed=3)
  state = train_step.init_state(
      params(), table or helpers.table(mesh, helpers.params(seed=1)))
  batch = sharding.put_batch(questions(), mesh)
  draws = train_step.propose(state, batch)
  np.testing.assert_array_equal(draws.query_ids, batch.query_ids)
  tokens = helpers.gather(draws.negative_ids)
  put = lambda array: sharding.put_batch(array, mesh)
  state, metrics = train_step.update(
      state, batch, draws, put(tokens), put(helpers.gather(draws.probe_ids)),
      put(READER.rows(batch.query_tokens, tokens)))
  return state, jax.device_get(metrics), jax.device_get(draws.proposal)


def exact_loss(params, ids, mask, targets=None, fused=None):
  """Returns the mean loss over draws [B, K], written out."""
  queries = helpers.encode(params, questions().query_tokens)
  if targets is None:
    targets = helpers.encode(params, helpers.corpus_tokens())
  scores = 5 * jnp.einsum('bd,bkd->bk', queries, targets[ids])
  passages = helpers.corpus_tokens()[ids.reshape(-1)]
  both = READER.read(params['reader'], READER.rows(
      questions().query_tokens, passages)).reshape(*ids.shape, 2)
  prior = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
  has = mask & (passages[:, 0] % 2 == 0).reshape(ids.shape)
  likelihood = jnp.where(has, jnp.exp(both[..., 0] - both[..., 1]), 0)
  total = (prior * likelihood).sum(axis=1)
  return -jnp.mean(jnp.where(
      has.any(axis=1), jnp.log(jnp.where(total > 0, total, 1)), 0))


class AnswersTest(parameterized.TestCase):

  @parameterized.parameters(('encoder', 1), ('encoder', 4), ('frozen', 1))
  @pytest.mark.slow
  def test_the_gradient_is_that_of_the_loss_written_out(self, source, devices):
    state, metrics, proposal = take_step(
        method(samplers.Gumbel(3), source=source), devices)
    first, targets = params(), None
    if source == 'frozen':
      targets = helpers.encode(helpers.params(seed=1), helpers.corpus_tokens())
    value, gradient = jax.value_and_grad(exact_loss)(
        first, proposal.ids, proposal.mask, targets)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
    for part, name in ((first, 'words'), (first['reader'], 'words')):
      of = gradient if part is first else gradient['reader']
      after = state.params if part is first else state.params['reader']
      self.assertGreater(np.abs(of[name]).max(), 1e-3)
      np.testing.assert_allclose(
          after[name], part[name] - RATE * of[name], atol=1e-6)

  @pytest.mark.slow
  def test_of_all_targets_it_is_the_exact_marginal(self):
    """K = N and a fresh table: nothing is left out of the sum."""
    mesh = sharding.make_mesh(1)
    _, metrics, proposal = take_step(
        method(samplers.TopK(helpers.NUM_TARGETS)),
        table=helpers.table(mesh, helpers.params()))
    self.assertTrue(proposal.mask.all())
    every = np.tile(np.arange(helpers.NUM_TARGETS), (helpers.BATCH, 1))
    np.testing.assert_allclose(metrics['loss'], exact_loss(
        params(), every, np.ones(every.shape, bool)), rtol=1e-5)

  @pytest.mark.slow
  def test_a_reader_that_fuses_is_given_all_rows_of_a_question(self):
    reader = dataclasses.replace(READER, together=True)
    objective = objectives.Marginal('emdr2')
    state, _, proposal = take_step(method(
        samplers.Gumbel(3), reader=reader, objective=objective))
    tokens = helpers.gather(proposal.ids.reshape(-1))
    rows = READER.rows(questions().query_tokens, tokens).reshape(
        helpers.BATCH, -1)
    answerable = (tokens[:, 0].reshape(proposal.ids.shape) % 2 == 0).any(axis=1)

    def own_loss(of_reader):
      log_p = reader.read_fused(of_reader, rows)[:, 0]
      return -jnp.mean(jnp.where(answerable, log_p, 0))

    first = params()['reader']
    gradient = jax.grad(own_loss)(first)
    np.testing.assert_allclose(
        state.params['reader']['words'],
        first['words'] - RATE * gradient['words'], atol=1e-6)

  @pytest.mark.slow
  def test_the_corrector_learns_from_the_draws(self):
    """Drift is that of the draws alone, of all of them, and it shrinks."""
    _, metrics, proposal = take_step(method(
        samplers.Gumbel(3), corrector=helpers.linear()))
    rows = proposal.rows[proposal.mask]
    stale, fresh = (np.asarray(helpers.encode(p, helpers.corpus_tokens()))[rows]
                    for p in (helpers.params(seed=1), helpers.params()))
    np.testing.assert_allclose(
        metrics['drift_before'], np.mean(
            np.square(fresh - stale).sum(axis=1)), rtol=1e-5)

  def test_written_back_are_the_draws(self):
    state, _, proposal = take_step(method(samplers.Gumbel(3), write_back=True))
    written = np.unique(proposal.rows[proposal.mask])
    before = np.asarray(helpers.encode(
        helpers.params(seed=1), helpers.corpus_tokens()))
    after = np.asarray(state.table.embeddings)[:helpers.NUM_TARGETS]
    moved = np.flatnonzero(np.abs(after - before).max(axis=1) > 1e-6)
    np.testing.assert_array_equal(moved, written)
    np.testing.assert_allclose(after[written], np.asarray(helpers.encode(
        helpers.params(), helpers.corpus_tokens()))[written], atol=1e-6)

  def test_what_needs_a_positive_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'needs the likelihoods of a reade'):
      method(helpers.gumbel(), reader=None)
    with self.assertRaisesRegex(ValueError, 'this objective reads no answers'):
      method(helpers.gumbel(), objective=helpers.objective())
    for options in (dict(push=True), dict(
        sampler=samplers.SimANS(2, 16, 1.0, 0.0, None)), dict(
            sampler=samplers.Pool(2, 'rotating', 4, 8, 8))):
      sampler = options.pop('sampler', helpers.gumbel())
      with self.assertRaisesRegex(ValueError, 'questions without a positive'):
        method(sampler, **options)
    with self.assertRaisesRegex(ValueError, 'log q of every column'):
      method(samplers.TopK(3), objective=objectives.Marginal(importance=True))

  def test_a_reader_is_a_value(self):
    self.assertIsInstance(hash(method(helpers.gumbel())), int)
    self.assertIn('reader=Bag(', repr(method(helpers.gumbel())))
    self.assertFalse(method(helpers.gumbel()).has_positives)
    self.assertTrue(helpers.method(helpers.gumbel()).has_positives)
    self.assertEqual(types.NO_ANSWER, -1e30)


if __name__ == '__main__':
  absltest.main()
