"""Losses over prefixes: sums of those of each, the encoder run once."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from retrieval_jax import matryoshka
from retrieval_jax import objectives
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.models import chunking
from retrieval_jax.training import step as steps
from tests import helpers


def method(dims, weights=(), estimator='truncated_softmax'):
  made = helpers.method(
      helpers.gumbel(1) if estimator == 'cache_gradient'
      else samplers.Uniform(3), estimator=estimator)
  if not dims:
    return made
  return dataclasses.replace(made, objective=objectives.Matryoshka(
      made.objective, dims, weights, normalize=True))


def norm_of(dim=2, normalize=True):
  """Returns (loss [B], info) of prefixes; the loss is all inner products."""
  def inner(params, fresh, batch, proposal):
    del params, batch, proposal
    logits = fresh.queries @ fresh.positives.T
    return logits.sum(axis=1), {'dim': fresh.negatives.shape[-1]}
  queries, targets = np.random.default_rng(0).normal(size=(2, 4, 6))
  fresh = types.Fresh(queries, targets, targets[:, None], jnp.float32(1))
  return (*objectives.Matryoshka(inner, (dim,), normalize=normalize)(
      {}, fresh, None, None), queries, targets)


class MatryoshkaTest(parameterized.TestCase):

  @parameterized.parameters(
      'truncated_softmax', 'cache_gradient', 'sampled_softmax')
  def test_equals_the_sum_of_one_dimension_at_a_time(self, estimator):
    """In value and in gradient, which is linear in the losses."""
    size = helpers.BATCH
    random = np.random.default_rng(0)
    num_draws = method((2,), estimator=estimator).sampler.num_negatives
    shape = (size, num_draws)
    proposal = types.Proposal(
        rows=np.ones(shape, np.int32), ids=np.full(shape, 50, np.int32),
        logits=np.zeros(shape, np.float32), mask=np.ones(shape, bool),
        log_q=np.float32(-random.uniform(1, 3, shape)),
        log_z=np.float32(random.uniform(2, 3, size)))
    embeddings = (random.normal(size=(size, 8)).astype(np.float32),
                  random.normal(size=(size + size * num_draws, 8)).astype(
                      np.float32))

    def value_and_grad(dims, weights=()):
      made = method(dims, weights, estimator)
      def loss(queries, targets):
        value, info = made.objective({}, types.Fresh(
            queries, targets[:size], targets[size:].reshape(
                size, num_draws, -1), jnp.float32(5.0)),
            helpers.batch(0), proposal)
        return value.mean(), info
      (total, metrics), gradient = jax.jit(jax.value_and_grad(
          loss, argnums=(0, 1), has_aux=True))(*embeddings)
      return {**metrics, 'loss': total}, gradient

    weights = (1.0, 0.5, 2.0)
    metrics, together = value_and_grad((2, 5, 8), weights)
    alone = [value_and_grad((dim,)) for dim in (2, 5, 8)]
    np.testing.assert_allclose(metrics['loss'], sum(
        weight * one['loss'] for weight, (one, _) in zip(weights, alone)),
        rtol=1e-6)
    for i in range(2):
      np.testing.assert_allclose(together[i], sum(
          weight * one[i] for weight, (_, one) in zip(weights, alone)),
          atol=1e-6)
    for dim, (one, _) in zip((2, 5, 8), alone):
      np.testing.assert_allclose(
          metrics[f'loss_{dim}'], one['loss'], rtol=1e-6)
    # Prefixes differ, or there would be nothing to sum.
    self.assertGreater(np.abs(alone[0][1][0] - alone[2][1][0]).max(), 1e-3)

  def test_a_prefix_is_normalised_and_scored_as_an_embedding(self):
    made, info, queries, targets = norm_of()
    unit = lambda x: x[:, :2] / np.linalg.norm(x[:, :2], axis=1, keepdims=True)
    np.testing.assert_allclose(
        made, (unit(queries) @ unit(targets).T).sum(axis=1), rtol=1e-5)
    self.assertEqual(info['dim'], 2)
    raw, *_ = norm_of(normalize=False)
    np.testing.assert_allclose(
        raw, (queries[:, :2] @ targets[:, :2].T).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(info['loss_2'], made.mean(), rtol=1e-6)

  @pytest.mark.slow
  def test_the_encoder_runs_once_and_draws_see_all_dimensions(self):
    mesh = sharding.make_mesh(1)
    lengths = []

    def counted(params, tokens):
      lengths.append(len(tokens))
      return helpers.encode(params, tokens)

    def trace(dims):
      encode = chunking.chunked(counted, chunk_size=4,
                                buckets=(helpers.LENGTH,))
      train_step = steps.make_train_step(
          steps.Encoders(encode, encode, lambda params: jnp.float32(5.0)),
          dataclasses.replace(method(dims), sampler=helpers.gumbel(3)),
          optax.sgd(1.0), mesh=mesh, seed=0)
      state = train_step.init_state(helpers.params(), helpers.table(mesh))
      batch = sharding.put_batch(helpers.batch(0), mesh)
      draws = train_step.propose(state, batch)
      lengths.clear()
      train_step.update.lower(state, batch, draws, *map(
          helpers.gather, (draws.negative_ids, draws.probe_ids)))
      return list(lengths), np.asarray(draws.proposal.rows)

    (plain, rows), (nested, same_rows) = trace(()), trace((2, 5, 8))
    self.assertEqual(nested, plain)
    self.assertNotEmpty(plain)
    np.testing.assert_array_equal(same_rows, rows)

  def test_truncated_on_the_host_as_on_the_device(self):
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    x[2, :4] = 0
    cut = matryoshka.truncate(x, 4, normalize=True)
    np.testing.assert_allclose(
        np.linalg.norm(cut, axis=1), [1, 1, 0, 1, 1], rtol=1e-6)
    self.assertEqual(cut.dtype, np.float32)
    np.testing.assert_array_equal(
        matryoshka.truncate(x, 4, normalize=False), x[:, :4])

  def test_wrong_dims_and_weights_are_refused(self):
    for dims in ((4, 2), (2, 2), (0, 4)):
      with self.assertRaisesRegex(
          ValueError, r'estimator.matryoshka_dims=\(.* ascending'):
        method(dims)
    for weights in ((1.0,), (1.0, 0.0)):
      with self.assertRaisesRegex(
          ValueError, 'matryoshka_weights=.*one positive number for each'):
        method((2, 4), weights)
    with self.assertRaisesRegex(
        ValueError, r'\(9,\) goes beyond the 6 dimensions'):
      norm_of(dim=9)


if __name__ == '__main__':
  absltest.main()
