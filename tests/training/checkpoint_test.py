"""Checkpoints: exact round trips, donation, and refusals."""

import os

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import training
from tests.training import toy


class CheckpointsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path
    self.checkpoints = self.enter_context(
        training.Checkpoints(self.folder + '/ckpt', keep=2))

  def test_state_survives_donation_right_after_save(self):
    """The write goes on in the background while the next step runs."""
    make = jax.jit(lambda: jnp.arange(2.**20))
    state = {'x': make()}
    wanted = training.abstract(state)
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s),
                   donate_argnums=0)
    self.checkpoints.save(1, state, {})
    for _ in range(5):
      state = bump(state)
    self.checkpoints.wait()
    restored, _ = self.checkpoints.restore(wanted)
    np.testing.assert_array_equal(restored['x'], np.arange(2.**20))

  def test_keeps_keys_bfloat16_empty_parts_and_meta(self):
    state = training.TrainState(
        step=jnp.int32(3), params={'w': jnp.ones((2, 2), jnp.bfloat16)},
        opt_state=toy.adam()[0].init({'w': jnp.ones((2, 2))}), table=None,
        corrector={'key': jax.random.key(5)}, sampler=())
    self.checkpoints.save(3, state, {'config': {'k': [1, None, 'x']}})
    self.checkpoints.wait()
    restored, meta = self.checkpoints.restore(training.abstract(state))
    self.assertEqual(jax.tree.structure(restored), jax.tree.structure(state))
    self.assertEqual(restored.params['w'].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(
        jax.random.key_data(restored.corrector['key']),
        jax.random.key_data(jax.random.key(5)))
    self.assertEqual(meta, {'config': {'k': [1, None, 'x']}})
    self.assertEqual(self.checkpoints.restore_meta(), meta)

  @parameterized.parameters(np.nan, np.inf)
  def test_params_that_are_not_finite_are_refused(self, value):
    params = {'a': jnp.ones(3), 'w': {'b': jnp.ones(3).at[1].set(value)}}
    self.checkpoints.save(3, training.TrainState(
        step=jnp.int32(3), params=params, opt_state=(), table=None,
        corrector=(), sampler=()), {})
    self.checkpoints.wait()
    with self.assertRaisesRegex(
        ValueError, 'of step 3 in .*nan or inf in 1 arrays .* first .w.b.'):
      self.checkpoints.restore_params(training.abstract(params))

  def test_params_come_back_whatever_the_table_is_padded_to(self):
    state = training.TrainState(
        step=jnp.int32(3), params={'w': jnp.arange(3.)}, opt_state=(),
        table={'rows': jnp.ones((16, 2))}, corrector=(), sampler=())
    self.checkpoints.save(3, state, {})
    self.checkpoints.wait()
    restored = self.checkpoints.restore_params(
        training.abstract(state.params))
    np.testing.assert_array_equal(restored['w'], np.arange(3.))
    with self.assertRaisesRegex(
        ValueError, r'params\.w: saved \(3,\), expected \(4,\)'):
      self.checkpoints.restore_params(
          training.abstract({'w': jnp.zeros(4)}))
    with self.assertRaisesRegex(FileNotFoundError, 'No checkpoint of step 2'):
      self.checkpoints.restore_params(training.abstract(state.params), 2)

  def test_keeps_the_last_two_and_restores_either(self):
    for step in (1, 2, 3, 3):  # saving a saved step again is no error
      self.checkpoints.save(step, {'x': jnp.float32(step)}, {})
    self.checkpoints.wait()
    wanted = training.abstract({'x': jnp.float32(0)})
    self.assertEqual(self.checkpoints.latest_step(), 3)
    self.assertEqual(float(self.checkpoints.restore(wanted, 2)[0]['x']), 2)
    with self.assertRaisesRegex(
        FileNotFoundError, r'No checkpoint of step 1 .*are steps \[2, 3\]'):
      self.checkpoints.restore(wanted, 1)

  def test_half_written_checkpoint_is_not_seen(self):
    self.checkpoints.save(1, {'x': jnp.float32(1)}, {})
    self.checkpoints.wait()
    os.makedirs(self.folder + '/ckpt/2.orbax-checkpoint-tmp')
    with training.Checkpoints(self.folder + '/ckpt') as again:
      self.assertEqual(again.latest_step(), 1)
      self.assertEqual(
          float(again.restore(training.abstract({'x': jnp.float32(0)}))[0][
              'x']), 1)

  def test_empty_folder_says_so(self):
    self.assertIsNone(self.checkpoints.latest_step())
    with self.assertRaisesRegex(FileNotFoundError, 'there is none at all'):
      self.checkpoints.restore({})
    with self.assertRaisesRegex(FileNotFoundError, 'No checkpoint in'):
      self.checkpoints.restore_meta()

  def test_other_shapes_are_refused_by_name(self):
    self.checkpoints.save(
        1, {'table': {'ids': jnp.zeros(8)}, 'old': jnp.zeros(2)}, {})
    self.checkpoints.wait()
    with self.assertRaisesRegex(
        ValueError, r'(?s)does not fit.*new: saved nothing, expected \(3,\)'
        r'.*old: saved \(2,\), expected nothing'
        r'.*table.ids: saved \(8,\), expected \(6,\)'):
      self.checkpoints.restore(training.abstract(
          {'table': {'ids': jnp.zeros(6)}, 'new': jnp.zeros(3)}))

  def test_other_config_is_refused_by_name(self):
    saved = {'sampler': {'k': 16, 'name': 'gumbel'}, 'num_steps': 100,
             'log': {'every': 5}, 'shape': [1, 2], 'old': 1}
    current = {'sampler': {'k': 4, 'name': 'gumbel'}, 'num_steps': 200,
               'log': {'every': 9}, 'shape': (1, 2)}
    with self.assertRaisesRegex(
        ValueError, r"(?s)another configuration.*another --workdir.*"
        r"\n  old: saved 1, now '\(absent\)'"
        r"\n  sampler.k: saved 16, now 4$"):
      training.check_same_config(saved, current, ignore=('num_steps', 'log'))
    training.check_same_config(
        saved, current, ignore=('num_steps', 'log', 'old', 'sampler.k'))

  def test_ignored_name_is_no_prefix_of_other_names(self):
    with self.assertRaisesRegex(ValueError, 'logs: saved 1, now 2'):
      training.check_same_config({'logs': 1}, {'logs': 2}, ignore=('log',))


if __name__ == '__main__':
  absltest.main()
