"""The marginal against its closed form, and what its variants hold fixed."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import objectives
from retrieval_jax import types
from retrieval_jax.models import chunking
from retrieval_jax.objectives import marginal
from tests import helpers

B, K, D = 3, 4, 5
BETA = 0.5


def inputs(seed=0, dtype=np.float64):
  """Returns (fresh, proposal); query 1 lacks draw 2, query 2 any answer."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(dtype)
  mask = np.ones((B, K), bool)
  mask[1, 2] = False
  everything = normal(B, K)
  answer = everything - np.abs(normal(B, K))
  answer[0, 1] = answer[2] = types.NO_ANSWER  # passages that do not hold it
  ids = np.arange(B * K, dtype=np.int32).reshape(B, K)
  return types.Fresh(
      queries=normal(B, D), positives=np.zeros((0, D)), negatives=normal(
          B, K, D), scale=np.asarray(BETA, dtype),
      read=np.stack([answer, everything], axis=-1)), types.Proposal(
          rows=ids, ids=ids, logits=normal(B, K),
          log_q=-1 - np.abs(normal(B, K)), log_z=np.full(B, np.nan), mask=mask)


def parts(fresh, proposal):
  """Returns prior p, likelihood e^l and posterior r, [B, K] numpy, by hand."""
  scores = BETA * np.einsum('bd,bkd->bk', fresh.queries, fresh.negatives)
  weights = np.where(proposal.mask, np.exp(scores), 0)
  prior = weights / weights.sum(axis=1, keepdims=True)
  likelihood = np.where(
      fresh.read[..., 0] > types.NO_ANSWER / 2,
      np.exp(np.maximum(fresh.read[..., 0], -99) - fresh.read[..., 1]), 0)
  joint = prior * likelihood
  total = joint.sum(axis=1, keepdims=True)
  return prior, likelihood, joint / np.where(total > 0, total, 1)


def loss_of(objective, scores, read, fresh, proposal, fused=None):
  """Returns the loss [B] as a function of the scores beta <x, y>, [B, K]."""
  eye = jnp.eye(K, dtype=scores.dtype)
  fresh = fresh._replace(
      queries=scores, negatives=jnp.broadcast_to(eye, (B, K, K)), read=read,
      scale=jnp.ones((), scores.dtype), fused=fused)
  return objective({}, fresh, None, proposal)[0]


def gradients(objective, fresh, proposal, fused=None):
  """Returns the gradients by the scores and by what was read."""
  scores = BETA * np.einsum('bd,bkd->bk', fresh.queries, fresh.negatives)
  return jax.grad(lambda *args: loss_of(
      objective, *args, fresh, proposal, fused).sum(), argnums=(0, 1))(
          scores, jnp.asarray(fresh.read))


class MarginalTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.enterContext(helpers.float64())
    self.fresh, self.proposal = inputs()

  def test_is_the_sum_over_passages(self):
    loss, info = objectives.Marginal()({}, self.fresh, None, self.proposal)
    prior, likelihood, posterior = parts(self.fresh, self.proposal)
    wanted = -np.log((prior * likelihood).sum(axis=1)[:2])
    np.testing.assert_allclose(loss, [*wanted, 0], rtol=1e-12)
    self.assertAlmostEqual(info['answerable'], 2 / 3)
    self.assertAlmostEqual(info['nll'], wanted.mean())
    ratio = np.log(np.where(posterior > 0, posterior, 1) / np.where(
        posterior > 0, prior, 1))
    self.assertAlmostEqual(
        info['shift'], (posterior * ratio).sum(axis=1)[:2].mean())
    log_l = np.log(np.where(likelihood > 0, likelihood, 1))
    self.assertAlmostEqual(
        info['reader_nll'], -(posterior * log_l).sum(axis=1)[:2].mean())

  @parameterized.parameters('marginal', 'emdr2')
  def test_its_gradient_is_prior_minus_posterior(self, estimate):
    by_scores, by_read = gradients(
        objectives.Marginal(estimate), self.fresh, self.proposal)
    prior, _, posterior = parts(self.fresh, self.proposal)
    wanted = prior - posterior
    wanted[2] = 0  # nothing is learned where no passage holds an answer
    np.testing.assert_allclose(by_scores, wanted, atol=1e-12)
    self.assertGreater(np.abs(wanted[:2]).max(), 0.1)
    if estimate == 'marginal':
      np.testing.assert_allclose(by_read[..., 0], -posterior, atol=1e-12)
      np.testing.assert_allclose(by_read[..., 1], posterior, atol=1e-12)

  @parameterized.parameters(
      objectives.Marginal('marginal'), objectives.Marginal('joint'),
      objectives.Marginal('marginal', importance=True))
  def test_its_gradient_is_that_of_finite_differences(self, objective):
    scores = BETA * np.einsum(
        'bd,bkd->bk', self.fresh.queries, self.fresh.negatives)
    got = gradients(objective, self.fresh, self.proposal)
    loss = jax.jit(lambda scores, read: loss_of(
        objective, scores, read, self.fresh, self.proposal).sum())
    step = 1e-5
    for which, (array, gradient) in enumerate(
        zip((scores, self.fresh.read), got)):
      for place in np.ndindex(array.shape):
        if array[place] == types.NO_ANSWER:
          continue  # a mark, not a number
        moved = [np.array(array), np.array(array)]
        moved[0][place] += step
        moved[1][place] -= step
        ends = [loss(*((m, self.fresh.read) if which == 0 else (scores, m)))
                for m in moved]
        self.assertAlmostEqual(
            (ends[0] - ends[1]) / (2 * step), gradient[place], places=7)

  def test_equal_likelihoods_teach_the_retriever_nothing(self):
    read = np.zeros((B, K, 2))
    read[..., 0] = -1.5
    fresh = self.fresh._replace(read=read)
    for estimate in ('marginal', 'emdr2'):
      by_scores, _ = gradients(
          objectives.Marginal(estimate), fresh, self.proposal)
      np.testing.assert_allclose(by_scores, 0, atol=1e-12)
    by_scores, _ = gradients(
        objectives.Marginal('perplexity'), fresh, self.proposal)
    self.assertGreater(np.abs(by_scores).max(), 0.1)  # it teaches them equal

  def test_joint_is_one_softmax_over_all_passages(self):
    loss = objectives.Marginal('joint')({}, self.fresh, None, self.proposal)[0]
    prior, _, _ = parts(self.fresh, self.proposal)
    answer, everything = np.exp(np.maximum(self.fresh.read, -99)).transpose(
        2, 0, 1)
    answer = np.where(self.fresh.read[..., 0] == types.NO_ANSWER, 0, answer)
    wanted = -np.log((prior * answer).sum(axis=1)[:2] / (
        prior * everything).sum(axis=1)[:2])
    np.testing.assert_allclose(loss, [*wanted, 0], rtol=1e-12)

  @parameterized.parameters('emdr2', 'perplexity')
  def test_the_reader_has_a_loss_of_its_own(self, estimate):
    """Its gradient is that of all passages read together, blind to scores."""
    objective = objectives.Marginal(estimate, temperature=0.5)
    _, by_read = gradients(objective, self.fresh, self.proposal)
    answer, everything = np.exp(np.maximum(self.fresh.read, -99)).transpose(
        2, 0, 1)
    found = (self.fresh.read[..., 0] != types.NO_ANSWER) & self.proposal.mask
    answer, everything = answer * found, everything * self.proposal.mask
    share = lambda x: x[:2] / x[:2].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(by_read[:2, :, 0], -share(answer), atol=1e-12)
    np.testing.assert_allclose(by_read[:2, :, 1], share(everything), atol=1e-12)
    np.testing.assert_array_equal(by_read[2], 0)
    # A reader that fuses passages is told by its own likelihood alone.
    fused = jnp.array([-1.0, -2.0, -3.0])
    _, by_read = gradients(objective, self.fresh, self.proposal, fused)
    np.testing.assert_array_equal(by_read, 0)
    by_fused = jax.grad(lambda fused: loss_of(
        objective, np.zeros((B, K)), self.fresh.read, self.fresh,
        self.proposal, fused).sum())(fused)
    np.testing.assert_array_equal(by_fused, [-1, -1, 0])

  def test_perplexity_pulls_the_prior_to_the_teacher(self):
    by_scores, _ = gradients(
        objectives.Marginal('perplexity', temperature=0.5), self.fresh,
        self.proposal)
    prior, likelihood, _ = parts(self.fresh, self.proposal)
    teacher = likelihood[:2]**2 * self.proposal.mask[:2]  # exp(l / T)
    teacher /= teacher.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(by_scores[:2], prior[:2] - teacher, atol=1e-12)
    np.testing.assert_array_equal(by_scores[2], 0)

  def test_weights_make_a_sum_over_all_of_a_sum_over_draws(self):
    """With draws from q, p_k / q_k estimates both sums: here, all are drawn."""
    log_q = np.log(np.full((B, K), 1 / K))
    skewed = np.log(np.array([[0.7, 0.1, 0.1, 0.1]] * B))
    even, uneven = (objectives.Marginal(importance=True)(
        {}, self.fresh, None, dataclasses.replace(self.proposal, log_q=q))[0]
                    for q in (log_q, skewed))
    plain = objectives.Marginal()({}, self.fresh, None, self.proposal)[0]
    np.testing.assert_allclose(even, plain, rtol=1e-12)
    prior, likelihood, _ = parts(self.fresh, self.proposal)
    weights = prior / np.exp(skewed)
    wanted = -np.log((weights * likelihood).sum(axis=1)[:2]
                     / weights.sum(axis=1)[:2])
    np.testing.assert_allclose(uneven[:2], wanted, rtol=1e-12)

  def test_in_chunks_it_has_the_gradient_of_all_at_once(self):
    """The loss couples passages; the reader goes over them a few at a time."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 9, (B * K, 6)).astype(np.int32)
    rows = np.where(np.arange(6) < rng.integers(1, 7, (B * K, 1)), rows, -1)
    params = {'table': rng.normal(size=(9, 4)), 'out': rng.normal(size=(4, 2))}

    def read(params, rows):
      vectors = jnp.where((rows >= 0)[..., None], params['table'][rows], 0)
      return jnp.tanh(vectors.sum(axis=1)) @ params['out']

    def loss(read, params):
      fresh = self.fresh._replace(read=read(params, rows).reshape(B, K, 2))
      return objectives.Marginal()({}, fresh, None, self.proposal)[0].sum()

    direct = jax.grad(lambda params: loss(read, params))(params)
    chunked = jax.jit(jax.grad(lambda params: loss(
        chunking.chunked(read, chunk_size=5, buckets=(3,)), params)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11),
                 chunked, direct)
    self.assertGreater(np.abs(direct['out']).max(), 1e-2)

  @pytest.mark.slow
  def test_all_of_it_is_finite_where_nothing_was_drawn(self):
    nothing = dataclasses.replace(
        self.proposal, mask=np.zeros((B, K), bool))
    loss, info = objectives.Marginal()({}, self.fresh, None, nothing)
    np.testing.assert_array_equal(loss, 0)
    self.assertEqual(
        jax.device_get(info), dict.fromkeys(info, 0))
    for estimate in marginal.ESTIMATES:
      for gradient in gradients(
          objectives.Marginal(estimate), self.fresh, nothing):
        np.testing.assert_array_equal(gradient, 0)

  def test_means_are_of_the_questions_with_an_answer(self):
    mask = np.array(self.proposal.mask)
    mask[1] = False
    loss, info = objectives.Marginal()(
        {}, self.fresh, None, dataclasses.replace(self.proposal, mask=mask))
    np.testing.assert_array_equal(loss[1:], 0)
    self.assertAlmostEqual(info['answerable'], 1 / 3)
    self.assertAlmostEqual(info['nll'], float(loss[0]))

  def test_the_teacher_is_as_warm_as_the_reader_unless_told(self):
    by_scores = [gradients(objective, self.fresh, self.proposal)[0]
                 for objective in (
                     objectives.Marginal('perplexity'),
                     objectives.Marginal('perplexity', temperature=1.0))]
    np.testing.assert_array_equal(*by_scores)

  def test_says_what_it_needs_and_costs(self):
    for estimate in marginal.ESTIMATES:
      alone = estimate in ('marginal', 'joint')
      self.assertEqual(
          objectives.Marginal(estimate).needs,
          {'negatives', 'answers'} | ({'reads_alone'} if alone else set()))
    self.assertEqual(
        objectives.Marginal('emdr2', importance=True).needs,
        {'negatives', 'answers', 'log_q', 'independent'})
    # A multiplication and an addition for each of B * K * D.
    self.assertEqual(objectives.Marginal().flops(3, 4, 9, 5), 2 * 3 * 4 * 5)

  def test_wrong_options_are_refused(self):
    with self.assertRaisesRegex(ValueError, "estimate='ance' is not one of"):
      objectives.Marginal('ance')
    for temperature in (0, -1):
      with self.assertRaisesRegex(
          ValueError, f'temperature={temperature} must be positive'):
        objectives.Marginal(temperature=temperature)


if __name__ == '__main__':
  absltest.main()
