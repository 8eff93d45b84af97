"""Pairs of the batch, weights of hard columns, and what keeps vectors apart."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import objectives
from retrieval_jax import types

B, K, D, BETA = 5, 2, 4, 3.


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def setting():
  """Returns (fresh, batch, proposal); some queries share or know targets."""
  random = np.random.default_rng(0)
  vectors = lambda *shape: jnp.asarray(unit(random.normal(size=(*shape, D))))
  # 0 and 3 have the same target; that of 4 is known for 1, not vice versa.
  ids = np.array([10, 11, 12, 10, 14])
  known = np.full((B, 2), -1)
  known[:, 0], known[1, 1] = ids, 14
  batch = types.Batch(
      query_tokens=np.zeros((B, 1), np.int32),
      target_tokens=np.zeros((B, 1), np.int32), query_ids=np.arange(B),
      target_ids=jnp.asarray(ids), known_positives=jnp.asarray(known))
  drawn = np.array([[1, 2], [14, 3], [4, 5], [6, 7], [8, 9]])
  proposal = types.Proposal(
      rows=drawn, ids=jnp.asarray(drawn), logits=np.zeros((B, K)),
      mask=np.ones((B, K), bool), log_q=np.zeros((B, K)), log_z=np.zeros(B))
  return types.Fresh(
      vectors(B), vectors(B), vectors(B, K), jnp.float32(BETA)), batch, proposal


def related(i, j):
  return i == j or {i, j} in ({0, 3}, {1, 4})


def slow(pairs=(), hardness=0.):
  """Returns nll [B] of own draws and pairs, by plain loops."""
  fresh, _, proposal = setting()
  queries, positives, negatives = map(np.asarray, fresh[:3])
  losses = []
  for i in range(B):
    total = np.exp(BETA * queries[i] @ positives[i])
    for k in range(K):
      if not (i == 1 and proposal.ids[i, k] == 14):
        cosine = queries[i] @ negatives[i, k]
        total += np.exp(hardness * cosine) * np.exp(BETA * cosine)
    for j in range(B):
      if not related(i, j):
        if 'query_query' in pairs:
          total += np.exp(BETA * queries[i] @ queries[j])
        if 'query_target' in pairs:
          total += np.exp(BETA * queries[j] @ positives[i])
        if 'target_target' in pairs:
          total += np.exp(BETA * positives[i] @ positives[j])
    losses.append(np.log(total) - BETA * queries[i] @ positives[i])
  return np.array(losses)


class PairsTest(parameterized.TestCase):

  @parameterized.parameters(
      ((), 0.), (('query_query',), 0.), (('query_target',), 0.),
      (('target_target',), 0.), ((), 5.),
      (('target_target', 'query_query', 'query_target'), 2.))
  def test_equals_the_formula(self, pairs, hardness):
    loss, info = objectives.Contrastive(
        'truncated_softmax', 'own', pairs=pairs, hardness=hardness)(
            {}, *setting())
    np.testing.assert_allclose(loss, slow(pairs, hardness), rtol=1e-5)
    self.assertAlmostEqual(float(info['columns_drawn']), 9 / 5, places=5)
    # Of 25 pairs five are oneself, and four related.
    self.assertAlmostEqual(
        float(info['columns_in_batch']), len(pairs) * 16 / 5, places=5)

  def test_each_pair_and_hardness_change_the_loss(self):
    found = [slow(), *(slow((kind,)) for kind in (
        'query_query', 'query_target', 'target_target')), slow((), 5.)]
    for i, one in enumerate(found):
      for other in found[:i]:
        self.assertGreater(np.abs(one - other).max(), .01)

  def test_weights_have_no_gradient(self):
    fresh, batch, proposal = setting()

    def gradient(hardness, weights=None):
      def total(negatives):
        objective = objectives.Contrastive(
            'truncated_softmax', 'own', hardness=hardness)
        if weights is None:
          return objective({}, fresh._replace(negatives=negatives), batch,
                           proposal)[0].sum()
        cosines = jnp.einsum('bd,bkd->bk', fresh.queries, negatives)
        positive = BETA * jnp.sum(fresh.queries * fresh.positives, -1)
        terms = jnp.where(proposal.ids == 14, 0,
                          weights * jnp.exp(BETA * cosines))
        return (jnp.log(jnp.exp(positive) + terms.sum(1)) - positive).sum()
      return jax.grad(total)(fresh.negatives)

    cosines = np.einsum('bd,bkd->bk', fresh.queries, fresh.negatives)
    np.testing.assert_allclose(
        gradient(5.), gradient(5., np.exp(5. * cosines)), rtol=1e-4, atol=1e-6)

  def test_flops_count_pairs(self):
    objective = objectives.Contrastive(
        'truncated_softmax', 'own', pairs=('query_query', 'query_target'))
    self.assertEqual(objective.flops(8, 3, 0, 5), 2 * 8 * (4 + 16) * 5)

  @parameterized.parameters(
      (dict(pairs=('target_query',)), 'estimator.pairs=.* must be some of'),
      (dict(pairs=('query_query',) * 2), 'each once'),
      (dict(hardness=-1.), 'estimator.hardness=-1.0 must be at least'),
      (dict(hardness=np.inf), 'estimator.hardness=inf must be'))
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      objectives.Contrastive('truncated_softmax', 'own', **options)

  @parameterized.parameters(
      dict(pairs=('query_query',)), dict(hardness=1.))
  def test_is_not_for_estimators_of_draws_as_they_are(self, **options):
    with self.assertRaisesRegex(ValueError, 'is right for draws as they are'):
      objectives.Contrastive('cache_gradient', 'own', **options)


class SpreadOutTest(parameterized.TestCase):

  def test_equals_the_formula(self):
    inner = objectives.Contrastive('truncated_softmax', 'own')
    objective = objectives.SpreadOut(inner, .7)
    fresh, batch, proposal = setting()
    loss, info = objective({}, fresh, batch, proposal)
    means = []
    for vectors, skipped in ((fresh.queries, lambda i, j: i == j),
                             (fresh.positives, lambda i, j: i == j
                              or {i, j} == {0, 3})):
      squares = [float(vectors[i] @ vectors[j]) ** 2
                 for i in range(B) for j in range(B) if not skipped(i, j)]
      means.append(np.mean(squares))
    np.testing.assert_allclose(
        [info['spread_queries'], info['spread_targets']], means, rtol=1e-5)
    np.testing.assert_allclose(
        loss, inner({}, fresh, batch, proposal)[0] + .7 * sum(means), rtol=1e-5)
    self.assertIn('nll', info)
    self.assertEqual(objective.needs, inner.needs | {'positives'})
    self.assertFalse(objective.reads_tokens)
    self.assertEqual(objective.init(jax.random.key(0)), {})
    self.assertEqual(
        objective.flops(8, 3, 0, 5), inner.flops(8, 3, 0, 5) + 4 * 8 * 8 * 5)

  @pytest.mark.slow
  def test_vectors_of_a_sphere_have_one_over_their_dimension(self):
    vectors = jnp.asarray(unit(np.random.default_rng(1).normal(
        size=(400, 16))), jnp.float32)
    fresh, batch, proposal = setting()
    del batch, proposal
    objective = objectives.SpreadOut(
        objectives.Contrastive('truncated_softmax', 'positives'), 1.)
    size = len(vectors)
    batch = types.Batch(
        query_tokens=None, target_tokens=None, query_ids=None,
        target_ids=jnp.arange(size), known_positives=jnp.arange(size)[:, None])
    nothing = np.zeros((size, 0))
    _, info = objective({}, fresh._replace(
        queries=vectors, positives=vectors,
        negatives=jnp.zeros((size, 0, 16))), batch, types.Proposal(
            rows=nothing, ids=nothing.astype(int), logits=nothing,
            mask=nothing.astype(bool), log_q=nothing, log_z=np.zeros(size)))
    self.assertAlmostEqual(float(info['spread_queries']), 1 / 16, delta=.004)

  @parameterized.parameters(0., -1., np.inf, np.nan)
  def test_refuses(self, weight):
    with self.assertRaisesRegex(ValueError, 'estimator.spread_out=.* must be'):
      objectives.SpreadOut(
          objectives.Contrastive('truncated_softmax', 'own'), weight)


if __name__ == '__main__':
  absltest.main()
