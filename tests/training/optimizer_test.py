"""Schedules in closed form, and what is decayed."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.training import toy


class OptimizerTest(parameterized.TestCase):

  @parameterized.parameters(
      ('linear', [1/2, 1, 1, 3/4, 2/4, 1/4, 0, 0]),
      ('cosine', [1/2, 1, 1, (1 + np.sqrt(.5)) / 2, 1/2,
                  (1 - np.sqrt(.5)) / 2, 0, 0]),
      ('constant', [1/2, 1, 1, 1, 1, 1, 1, 1]))
  def test_schedule_closed_form(self, schedule, factors):
    _, rate = toy.adam(total_steps=6, warmup_steps=2, schedule=schedule,
                       learning_rate=0.1)
    np.testing.assert_allclose(
        [rate(t) for t in range(8)], 0.1 * np.array(factors), atol=1e-7)

  def test_no_warm_up_starts_at_the_peak(self):
    _, rate = toy.adam(total_steps=4, warmup_steps=0, learning_rate=0.1)
    self.assertAlmostEqual(float(rate(0)), 0.1, places=6)

  def test_first_update_is_the_sign_plus_decay_of_matrices(self):
    """Adam's first update is sign(gradient) wherever |gradient| >> eps."""
    params = {'dense': {'kernel': jnp.full((2, 2), 2.), 'bias': jnp.ones(2)},
              'stacked': {'bias': jnp.ones((4, 2)), 'scale': jnp.ones((4, 2))},
              'log_scale': jnp.ones(())}
    grads = jax.tree.map(jnp.ones_like, params)
    optimizer, _ = toy.adam(
        total_steps=10, warmup_steps=0, learning_rate=0.1, weight_decay=0.5,
        scale_learning_rate=0.001, max_grad_norm=None)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    expected = {
        'dense': {'kernel': -0.1 * (1 + 0.5 * 2), 'bias': -0.1},
        'stacked': {'bias': -0.1, 'scale': -0.1}, 'log_scale': -0.001}
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-5),
                 updates, expected)

  def test_equals_adamw_where_all_is_decayed(self):
    params = {'kernel': jax.random.normal(jax.random.key(0), (3, 2))}
    ours, rate = toy.adam(max_grad_norm=0.5, weight_decay=0.1)
    theirs = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1))
    ours_state, theirs_state = ours.init(params), theirs.init(params)
    theirs_params = params
    for step in range(4):
      grads = {'kernel': jax.random.normal(jax.random.key(step + 1), (3, 2))}
      update, ours_state = ours.update(grads, ours_state, params)
      params = optax.apply_updates(params, update)
      update, theirs_state = theirs.update(grads, theirs_state, theirs_params)
      theirs_params = optax.apply_updates(theirs_params, update)
    np.testing.assert_allclose(
        params['kernel'], theirs_params['kernel'], rtol=1e-6)

  @parameterized.parameters(
      (dict(schedule='poly'), 'must be one of linear, cosine, constant'),
      (dict(warmup_steps=20), 'warmup_steps=20 .* less than total_steps=20'),
      (dict(max_grad_norm=0), 'max_grad_norm=0 must be positive, or None'))
  def test_errors_say_what_to_do(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      toy.adam(**options)


if __name__ == '__main__':
  absltest.main()
