"""Losses against closed forms, golden values and the full softmax."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import types
from retrieval_jax.objectives import estimators


def proposal(shape, *, log_z=None, log_q=None):
  rows = jnp.zeros(shape, jnp.int32)
  return types.Proposal(
      rows=rows, ids=rows, logits=jnp.zeros(shape),
      log_q=jnp.zeros(shape) if log_q is None else jnp.asarray(log_q),
      log_z=jnp.zeros(shape[0]) if log_z is None else jnp.asarray(log_z),
      mask=jnp.ones(shape, bool))


class TruncatedSoftmaxTest(parameterized.TestCase):

  def test_equals_the_formula(self):
    positive = jnp.array([1.0, -2.0])
    negative = jnp.array([[0.5, 2.0], [0.0, 3.0]])
    nll, info = estimators.truncated_softmax(
        positive, negative, jnp.ones((2, 2), bool), proposal((2, 2)))
    expected = [np.log(np.exp(1) + np.exp(0.5) + np.exp(2)) - 1,
                np.log(np.exp(-2) + 1 + np.exp(3)) + 2]
    np.testing.assert_allclose(nll, expected, rtol=1e-6)
    np.testing.assert_allclose(info['nll'], expected, rtol=1e-6)

  def test_masked_columns_equal_removed_columns(self):
    positive, negative = jnp.array([1.0]), jnp.array([[0.5, 9.0, 2.0]])
    mask = jnp.array([[True, False, True]])
    grad = jax.grad(lambda p, n: estimators.truncated_softmax(
        p, n, mask, proposal((1, 3)))[0].sum(), argnums=(0, 1))
    removed = jax.grad(lambda p, n: estimators.truncated_softmax(
        p, n, jnp.ones((1, 2), bool), proposal((1, 2)))[0].sum(),
                       argnums=(0, 1))
    masked_p, masked_n = grad(positive, negative)
    removed_p, removed_n = removed(positive, negative[:, jnp.array([0, 2])])
    np.testing.assert_allclose(masked_p, removed_p, rtol=1e-6)
    np.testing.assert_allclose(masked_n[:, [0, 2]], removed_n, rtol=1e-6)
    self.assertEqual(masked_n[0, 1], 0.0)

  @parameterized.parameters('truncated_softmax', 'sampled_softmax')
  def test_all_columns_masked_gives_zero_loss_and_finite_gradient(self, name):
    loss = lambda p, n: estimators.ESTIMATORS[name].loss(
        p, n, jnp.zeros((1, 2), bool), proposal((1, 2)))[0].sum()
    value, gradient = jax.value_and_grad(loss, argnums=(0, 1))(
        jnp.array([3.0]), jnp.array([[1.0, 2.0]]))
    self.assertEqual(value, 0.0)
    np.testing.assert_array_equal(gradient[0], [0.0])
    np.testing.assert_array_equal(gradient[1], [[0.0, 0.0]])

  @parameterized.parameters(*estimators.ESTIMATORS)
  def test_it_does_not_matter_what_stands_where_the_mask_is_false(self, name):
    positive, mask = jnp.array([0.7]), jnp.array([[True, True, False]])

    def loss(positive, negative, log_q):
      return estimators.ESTIMATORS[name].loss(
          positive, negative, mask,
          proposal((1, 3), log_z=[1.5], log_q=log_q))[0].sum()

    take = jax.value_and_grad(loss, argnums=(0, 1))
    one = take(positive, jnp.array([[0.5, 1.0, 9.0]]),
               jnp.array([[-1.0, -2.0, -0.1]]))
    other = take(positive, jnp.array([[0.5, 1.0, -3.0]]),
                 jnp.array([[-1.0, -2.0, -7.0]]))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    self.assertEqual(one[1][1][0, 2], 0.0)

  def test_names_the_argument_whose_shape_is_wrong(self):
    message = r'mask has J=3 .* negative has J=2'
    with self.assertRaisesRegex(ValueError, message):
      estimators.truncated_softmax(
          jnp.zeros(1), jnp.zeros((1, 2)), jnp.ones((1, 3), bool),
          proposal((1, 2)))


def exact_loss(query, targets):
  """The full softmax loss; row 0 is the positive."""
  logits = targets @ query
  return jax.nn.logsumexp(logits) - logits[0]


def expected_gradient(query, targets, remembered, k):
  """Returns the mean gradient of cache_gradient over all sequences of draws.

  Args:
    query: [D].
    targets: [N, D], fresh, of which row 0 is the positive.
    remembered: [N, D], from which k draws without replacement are made.
    k: draws; those after the last row are masked.
  """
  logits = np.asarray((remembered @ query)[1:], np.float64)
  log_z = np.logaddexp.reduce(logits)
  log_q = logits - log_z
  draws = np.array(list(itertools.permutations(
      range(len(log_q)), min(k, len(log_q)))))  # [sequences, draws]
  chance = np.exp(log_q[draws])
  left = 1 - (np.cumsum(chance, axis=1) - chance)
  chances = np.prod(chance / left, axis=1)
  np.testing.assert_allclose(chances.sum(), 1)
  pad = ((0, 0), (0, k - draws.shape[1]))
  mask = jnp.asarray(np.pad(np.ones(draws.shape, bool), pad))
  draws = np.pad(draws, pad)

  def loss(query, targets):
    logits = targets @ query
    surrogate, _ = estimators.cache_gradient(
        jnp.full(len(draws), logits[0]), logits[1 + draws], mask,
        proposal(draws.shape, log_z=jnp.full(len(draws), log_z),
                 log_q=jnp.where(mask, log_q[draws], 0.0)))
    return jnp.sum(jnp.asarray(chances, jnp.float32) * surrogate)

  return jax.grad(loss, argnums=(0, 1))(query, targets)


class CacheGradientTest(parameterized.TestCase):
  """Golden values: the tests of the paper's public code (NeurIPS 2021)."""
  cache = np.array([1.0, -1.0])
  queries = np.array([-1.0, 1.0, 3.0])
  targets = np.array([2.0, 2.0, 1.0])
  drawn = np.array([1.0, -1.0, 1.0])  # cache rows 0, 1, 0

  def surrogate(self, query_gain, target_gain):
    queries = query_gain * jnp.asarray(self.queries)
    log_z = jax.nn.logsumexp(
        jnp.asarray(self.queries[:, None] * self.cache), axis=1)
    return estimators.cache_gradient(
        queries * target_gain * self.targets,
        (queries * target_gain * self.drawn)[:, None],
        jnp.ones((3, 1), bool), proposal((3, 1), log_z=log_z))

  def test_reproduces_the_published_interpretable_loss(self):
    _, info = self.surrogate(1.0, 1.0)
    np.testing.assert_allclose(
        info['nll'], [3.169846, 0.349012, 0.694385], atol=1e-6)
    np.testing.assert_allclose(
        info['p'], [0.0420101, 0.705385, 0.499381], atol=1e-6)

  def test_reproduces_the_published_gradients(self):
    gradients = jax.grad(
        lambda a, b: self.surrogate(a, b)[0].mean(), argnums=(0, 1))(1.0, 1.0)
    # Three terms of order one cancel: the tolerance is absolute.
    np.testing.assert_allclose(gradients, [0.024715006] * 2, atol=1e-6)

  @parameterized.parameters(
      (-1.0, 1.0, 4.37452, 0.9874058), (1.0, -2.0, 0.890350, -2.35795),
      (1.0, 1.0, 0.890350, -0.589488), (1.0, -2.0, 0.890350, -2.35795))
  def test_reproduces_the_published_values_of_two_shards(
      self, query, drawn, nll, loss):
    log_z = jax.nn.logsumexp(
        query * jnp.array([[1.0, 2.0, -1.0, -2.0]]), axis=1)
    surrogate, info = estimators.cache_gradient(
        jnp.array([2 * query]), jnp.array([[drawn * query]]),
        jnp.ones((1, 1), bool), proposal((1, 1), log_z=log_z))
    np.testing.assert_allclose(info['nll'], [nll], rtol=1e-5)
    np.testing.assert_allclose(surrogate, [loss], rtol=1e-5)

  @parameterized.parameters(1, 2, 3, 8)
  def test_expected_gradient_over_all_draws_is_the_exact_gradient(self, k):
    """Over every sequence of draws; k = 8 runs out of the six rows."""
    keys = jax.random.split(jax.random.key(0), 2)
    query = jax.random.normal(keys[0], (4,))
    targets = jax.random.normal(keys[1], (7, 4))  # row 0 is the positive
    expected = expected_gradient(query, targets, targets, k)
    wanted = jax.grad(exact_loss, argnums=(0, 1))(query, targets)
    # Sums of up to 720 float32 terms.
    np.testing.assert_allclose(expected[0], wanted[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(expected[1], wanted[1], rtol=1e-5, atol=1e-6)

  @parameterized.product(k=(1, 2), drift=(0.02, 0.3, 2.0), seed=(0, 1, 2))
  @pytest.mark.slow
  def test_bias_of_a_stale_cache_is_within_its_bound(self, k, drift, seed):
    """|bias| <= 2 TV beta max|g| and TV <= tanh(eps / 2), beta = 1.

    P and P' are softmaxes over the positive, always fresh, and all others.
    """
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    query, targets = draw(4), draw(7, 4)
    stale = targets + drift * draw(7, 4).at[0].set(0.0)
    fresh_p, stale_p = (jax.nn.softmax(t @ query) for t in (targets, stale))
    variation = 0.5 * float(jnp.abs(fresh_p - stale_p).sum())
    norms = lambda rows: np.linalg.norm(np.asarray(rows), axis=1)
    epsilon = float(jnp.linalg.norm(query)) * norms(stale - targets).max()
    bias = (expected_gradient(query, targets, stale, k)[0]
            - jax.grad(exact_loss)(query, targets))
    bias = float(jnp.linalg.norm(bias))
    self.assertGreater(bias, 1e-4)
    self.assertLessEqual(bias, 2 * variation * norms(targets).max())
    self.assertLessEqual(variation, np.tanh(epsilon / 2))
    # With a stale cache only the weights are wrong, the drawn rows are fresh:
    # the estimate is that of P' over fresh embeddings.
    np.testing.assert_allclose(
        expected_gradient(query, targets, stale, k)[0],
        stale_p @ targets - targets[0], atol=1e-5)

  def test_a_query_without_a_draw_gives_no_gradient(self):
    gradient = jax.grad(lambda p, n: estimators.cache_gradient(
        p, n, jnp.zeros((1, 1), bool), proposal((1, 1), log_z=[-jnp.inf]))[0]
                        .sum(), argnums=(0, 1))(
                            jnp.array([1.0]), jnp.array([[2.0]]))
    np.testing.assert_array_equal(gradient[0], [0.0])
    np.testing.assert_array_equal(gradient[1], [[0.0]])


class SampledSoftmaxTest(absltest.TestCase):

  def test_partition_estimate_is_unbiased(self):
    """Mean of Z_hat over every pair of independent draws equals Z exactly."""
    positive, others = 0.3, np.array([0.1, -1.0, 1.2])
    q = np.array([0.5, 0.2, 0.3])
    total = 0.0
    for i in range(3):
      for j in range(3):
        rows = [i, j]
        nll, _ = estimators.sampled_softmax(
            jnp.array([positive]), jnp.asarray(others[rows])[None],
            jnp.ones((1, 2), bool),
            proposal((1, 2), log_q=np.log(q[rows])[None]))
        total += q[i] * q[j] * np.exp(float(nll[0]) + positive)
    np.testing.assert_allclose(
        total, np.exp(positive) + np.exp(others).sum(), rtol=1e-5)

  def test_the_mean_is_over_the_columns_that_count(self):
    """K is 2 in the first query, 1 in the second, none in the third."""
    negative = np.array([[0.5, 9.0, 1.0], [9.0, -0.4, 9.0], [9.0, 9.0, 9.0]])
    q = np.array([[0.3, 0.9, 0.2], [0.9, 0.1, 0.9], [0.9, 0.9, 0.9]])
    mask = np.array([[True, False, True], [False, True, False], [False] * 3])
    positive = np.array([0.7, -0.2, 0.4])
    total = np.exp(positive) + [
        (np.exp(0.5) / 0.3 + np.exp(1.0) / 0.2) / 2, np.exp(-0.4) / 0.1, 0.0]
    nll, info = estimators.sampled_softmax(
        jnp.asarray(positive), jnp.asarray(negative), jnp.asarray(mask),
        proposal((3, 3), log_q=np.log(q)))
    np.testing.assert_allclose(nll, np.log(total) - positive, atol=1e-6)
    np.testing.assert_array_equal(nll, info['nll'])

  def test_the_draw_carries_no_gradient(self):
    def loss(log_q):
      return estimators.sampled_softmax(
          jnp.zeros(1), jnp.ones((1, 2)), jnp.ones((1, 2), bool),
          proposal((1, 2), log_q=log_q))[0].sum()
    np.testing.assert_array_equal(
        jax.grad(loss)(jnp.array([[-1.0, -2.0]])), [[0.0, 0.0]])


if __name__ == '__main__':
  absltest.main()
