"""Draws of a batch of one set come from the targets of that set alone."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import optax
import pytest

from retrieval_jax import data
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax.training import step as steps
from tests import helpers

SETS = data.Sets(('a', 'b', 'c'), [0, 9, 30, helpers.NUM_TARGETS],
                 [0, 8, 16, 24])
SAMPLERS = {
    'uniform': samplers.Uniform(4),
    'stochastic': samplers.StochasticNegativeMining(4, 16),
    'exhaustive': samplers.Exhaustive(helpers.NUM_TARGETS, helpers.BATCH),
    'top_k': samplers.TopK(4), 'top_k of a depth': samplers.TopK(4, 8),
    'simans': samplers.SimANS(4, 8, 1., 0.),
    'gumbel': samplers.Gumbel(4),
    'shortlist': samplers.ShortlistGumbel(4, 8)}


def batch(of_set, step=0):
  """Returns a batch of queries and positives of one set."""
  made, rows = helpers.batch(step), SETS.corpus(of_set)
  target_ids = np.int32(rows.start + made.target_ids % len(rows))
  return dataclasses.replace(
      made, query_ids=np.int32(SETS.queries(of_set)), target_ids=target_ids,
      target_tokens=helpers.corpus_tokens()[target_ids],
      known_positives=np.stack([target_ids, np.full_like(target_ids, -1)], 1))


def proposal(sampler, of_set, num_devices, *, sets=SETS, memory='corpus',
             **refresh):
  mesh = sharding.make_mesh(num_devices)
  train_step = steps.make_train_step(
      helpers.ENCODERS, helpers.method(sampler, memory=memory, **refresh),
      optax.sgd(1.), mesh=mesh, seed=0, sets=sets)
  table = helpers.table(mesh)
  if memory != 'corpus':
    table = tables.create(
        np.asarray(table.embeddings)[::-1][-helpers.NUM_TARGETS:],
        np.arange(helpers.NUM_TARGETS)[::-1], mesh=mesh,
        chunk_rows=helpers.CHUNK_ROWS, dtype='float32')
  state = train_step.init_state(helpers.params(), table)
  return jax.device_get(train_step.propose(
      state, sharding.put_batch(batch(of_set), mesh)).proposal)


class OwnDrawsTest(parameterized.TestCase):

  @parameterized.product(name=tuple(SAMPLERS), of_set=(0, 1, 2))
  @pytest.mark.slow
  def test_draws_are_of_the_set_on_any_number_of_devices(self, name, of_set):
    found = {devices: proposal(SAMPLERS[name], of_set, devices)
             for devices in (1, 2, 4)}
    rows = SETS.corpus(of_set)
    drawn = found[1].ids[found[1].mask]
    self.assertTrue(((drawn >= rows.start) & (drawn < rows.stop)).all())
    self.assertGreater(len(np.unique(drawn)), 3)
    for devices in (2, 4):
      np.testing.assert_array_equal(found[devices].ids, found[1].ids)
      np.testing.assert_allclose(found[devices].logits, found[1].logits,
                                 rtol=1e-5)

  @parameterized.parameters(*SAMPLERS)
  def test_without_sets_they_are_not(self, name):
    found = proposal(SAMPLERS[name], 0, 1, sets=None)
    self.assertTrue((found.ids >= SETS.corpus(0).stop).any())

  def test_of_a_ring_too_whose_rows_lie_anywhere(self):
    found = proposal(samplers.Gumbel(4), 1, 1, memory=helpers.ring(),
                     push=True)
    rows = SETS.corpus(1)
    self.assertTrue(found.mask.all())
    self.assertTrue(((found.ids >= rows.start) & (found.ids < rows.stop)).all())

  def test_probabilities_are_those_of_the_set(self):
    rows, made = SETS.corpus(1), batch(1)
    params, tokens = helpers.params(), helpers.corpus_tokens()
    logits = 5. * np.asarray(
        helpers.encode(params, made.query_tokens)
        @ helpers.encode(params, tokens[rows.start:rows.stop]).T)
    own = made.target_ids - rows.start
    logits[np.arange(len(own)), own] = -np.inf
    np.testing.assert_allclose(
        proposal(samplers.Gumbel(4), 1, 1).log_z,
        np.logaddexp.reduce(logits, axis=1), rtol=1e-5)
    uniform = proposal(samplers.Uniform(4), 1, 1)
    np.testing.assert_allclose(
        uniform.log_q[uniform.mask], -np.log(len(rows) - 1), rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
