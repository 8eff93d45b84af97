"""Distillation against numbers made by hand in numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import types
from retrieval_jax.objectives import distillation

POSITIVE = np.array([1.0, -0.5, 2.0, 0.3])
LOGITS = np.array([[0.2, 3.0], [1.0, 0.0], [0.5, 0.5], [1.0, 2.0]])
SCORES = np.array([[4.0, -1.0], [2.0, np.nan], [0.0, 1.0], [np.nan, np.nan]])
POSITIVE_SCORES = np.array([6.0, 3.0, np.nan, 5.0])
IDS = np.array([[1, 2], [3, 4], [5, 6], [7, 8]])


def candidates(**changes):
  fields = dict(ids=IDS, scores=SCORES, positive_scores=POSITIVE_SCORES)
  fields |= changes
  return types.Candidates(
      ids=jnp.asarray(fields['ids'], jnp.int32),
      scores=jnp.asarray(fields['scores'], jnp.float32),
      positive_scores=jnp.asarray(fields['positive_scores'], jnp.float32))


def mix(kind, weight=1.0, temperature=1.0, surrogate=np.zeros(4), **changes):
  return distillation.Distillation(kind, weight, temperature).mix(
      jnp.asarray(surrogate), jnp.asarray(POSITIVE), jnp.asarray(LOGITS),
      candidates(**changes))


def softmax(x):
  return np.exp(x) / np.exp(x).sum()


class DistillationTest(parameterized.TestCase):

  @parameterized.parameters(1.0, 2.5)
  def test_kl_is_that_of_two_softmaxes(self, temperature):
    p = softmax(np.array([6.0, 4.0, -1.0]) / temperature)
    q = softmax(np.array([1.0, 0.2, 3.0]))
    first = np.sum(p * np.log(p / q))
    p = softmax(np.array([3.0, 2.0]) / temperature)  # the other has no score
    q = softmax(np.array([-0.5, 1.0]))
    second = np.sum(p * np.log(p / q))
    loss, info = mix('kl', temperature=temperature)
    np.testing.assert_allclose(loss, [first, second, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(info['distilled'], [1, 1, 0, 0])

  @parameterized.parameters(1.0, 2.0)
  def test_margin_mse_is_that_of_the_margins(self, t):
    first = (((1 - 0.2) - (6 - 4) / t)**2 + ((1 - 3) - (6 + 1) / t)**2) / 2
    second = ((-0.5 - 1) - (3 - 2) / t)**2
    loss, info = mix('margin_mse', temperature=t)
    np.testing.assert_allclose(loss, [first, second, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(info['distilled'], [1, 1, 0, 0])

  @parameterized.parameters('kl', 'margin_mse')
  def test_a_student_like_its_teacher_has_no_loss_and_no_gradient(self, kind):
    teacher = candidates(scores=LOGITS + 7, positive_scores=POSITIVE + 7)
    def loss(positive, logits):
      return distillation.Distillation(kind, 1.0).mix(
          jnp.zeros(4), positive, logits, teacher)[0].sum()
    value, gradient = jax.value_and_grad(loss, argnums=(0, 1))(
        jnp.asarray(POSITIVE), jnp.asarray(LOGITS))
    np.testing.assert_allclose(value, 0, atol=1e-6)
    for part in gradient:
      np.testing.assert_allclose(part, np.zeros(part.shape), atol=2e-6)

  def test_the_gradient_of_kl_is_q_minus_p(self):
    gradient = jax.grad(
        lambda positive, logits: distillation.Distillation('kl', 1.0).mix(
            jnp.zeros(4), positive, logits, candidates())[0].sum(),
        argnums=(0, 1))(jnp.asarray(POSITIVE), jnp.asarray(LOGITS))
    first = softmax([1.0, 0.2, 3.0]) - softmax([6.0, 4.0, -1.0])
    second = softmax([-0.5, 1.0]) - softmax([3.0, 2.0])
    np.testing.assert_allclose(
        gradient[0], [first[0], second[0], 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        gradient[1], [first[1:], [second[1], 0], [0, 0], [0, 0]], atol=1e-6)

  @parameterized.parameters('kl', 'margin_mse')
  def test_absent_candidates_count_as_if_they_were_not_there(self, kind):
    absent = IDS.copy()
    absent[0, 1] = -1
    removed = SCORES.copy()
    removed[0, 1] = np.nan
    np.testing.assert_array_equal(
        mix(kind, ids=absent)[0], mix(kind, scores=removed)[0])

  @parameterized.parameters(0.25, 1.0)
  def test_weights_share_the_loss(self, weight):
    surrogate = np.array([3.0, 5.0, 7.0, 9.0])
    term, _ = mix('kl')
    loss, info = mix('kl', weight=weight, surrogate=surrogate)
    np.testing.assert_allclose(
        loss, (1 - weight) * surrogate + weight * term, rtol=1e-6)
    np.testing.assert_allclose(info['distillation'], term)

  def test_none_leaves_the_loss_alone(self):
    surrogate = jnp.arange(4.0)
    loss, info = mix('none', surrogate=surrogate)
    np.testing.assert_array_equal(loss, surrogate)
    self.assertEmpty(info)

  @parameterized.parameters(
      (dict(kind='mse'), "distillation.kind='mse' is not one of"),
      (dict(weight=0.0), r'distillation.weight=0.0 must lie in \(0, 1\]'),
      (dict(weight=1.5), 'distillation.weight=1.5'),
      (dict(temperature=0.0), 'distillation.temperature=0.0 must be positive'))
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      distillation.Distillation(**options)

  def test_names_the_argument_whose_shape_is_wrong(self):
    with self.assertRaisesRegex(ValueError, 'candidates.scores has n=1 .*n=2'):
      mix('kl', scores=SCORES[:, :1])


if __name__ == '__main__':
  absltest.main()
