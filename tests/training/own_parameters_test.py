"""A step trains the objective's own parameters, and hands it tokens."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import optax

from retrieval_jax import keys
from retrieval_jax import method as methods
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax.training import step as steps
from tests import helpers
from tests import made_up_objectives

RATE = 0.5
OBJECTIVE = made_up_objectives.Biased(helpers.VOCABULARY)


def exact_loss(params, own, targets, batch, proposal):
  """Returns the mean loss, written out; `targets` are embeddings [N, D]."""
  queries = helpers.encode(params, batch.query_tokens)
  bias = own['bias'][helpers.corpus_tokens()].mean(axis=1)  # of each target
  logits = lambda ids: bias[ids] + 5 * jnp.einsum(
      'bd,bkd->bk', queries, targets[ids])
  positive = logits(batch.target_ids[:, None])
  others = jnp.where(proposal.mask, logits(proposal.ids), -jnp.inf)
  every = jnp.concatenate([positive, others], axis=1)
  return jnp.mean(jax.nn.logsumexp(every, axis=1) - positive[:, 0])


class OwnParametersTest(parameterized.TestCase):

  @parameterized.parameters(('encoder', 4), ('frozen', 1))
  def test_take_the_gradient_of_the_loss_written_out(self, source, devices):
    seen = []
    method = dataclasses.replace(
        helpers.method(samplers.Uniform(3),
                       targets=methods.Targets(source)), objective=OBJECTIVE)
    state, history = helpers.train(
        method, sharding.make_mesh(devices), num_steps=1,
        optimizer=optax.sgd(RATE), seed=3, each=lambda state, proposal, probes:
        seen.append(jax.device_get(proposal)))
    first, own = helpers.params(), OBJECTIVE.init(keys.of_phase(3, 'objective'))
    table = helpers.encode(first, helpers.corpus_tokens())

    def loss(params, own):
      targets = table
      if source == 'encoder':
        targets = helpers.encode(params, helpers.corpus_tokens())
      return exact_loss(params, own, targets, helpers.batch(0), seen[0])

    value, (gradient, of_own) = jax.value_and_grad(loss, argnums=(0, 1))(
        first, own)
    np.testing.assert_allclose(history[0]['loss'], value, rtol=1e-5)
    self.assertGreater(np.abs(of_own['bias']).max(), 1e-3)
    np.testing.assert_allclose(
        state.params['objective']['bias'], own['bias'] - RATE * of_own['bias'],
        atol=1e-6)
    np.testing.assert_allclose(
        state.params['words'], first['words'] - RATE * gradient['words'],
        atol=1e-6)

  def test_there_are_none_of_an_objective_without_any(self):
    train_step = steps.make_train_step(
        helpers.ENCODERS, helpers.method(helpers.gumbel()), optax.sgd(RATE),
        mesh=sharding.make_mesh(1), seed=0)
    state = train_step.init_state(
        helpers.params(), helpers.table(sharding.make_mesh(1)))
    self.assertEqual(list(state.params), ['words'])


if __name__ == '__main__':
  absltest.main()
