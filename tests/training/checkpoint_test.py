"""Checkpoints: exact round trips, donation, and refusals."""

import os
import shutil
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import files
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import training
from tests import disks
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

  @parameterized.product(
      sizes=((1, 4), (4, 1), (2, 2)), replacement=('lru', 'fifo'))
  def test_the_padding_of_a_table_is_no_part_of_it(self, sizes, replacement):
    def state(num_devices):
      mesh = sharding.make_mesh(num_devices)
      return training.TrainState(
          step=jnp.int32(3), params={'w': jnp.ones(2)}, opt_state=(),
          table=tables.create(
              rng.normal(size=(100, 3)), rng.permutation(100), mesh=mesh,
              chunk_rows=64, dtype='bfloat16', step=rng.permutation(100) - 100,
              replacement=replacement), corrector=(), sampler=())

    rng = np.random.default_rng(0)
    saved, other = map(state, sizes)
    self.checkpoints.save(3, saved, {})
    self.checkpoints.wait()
    restored, _ = self.checkpoints.restore(training.abstract(other))
    for name in ('embeddings', 'ids', 'written'):
      found, wanted, like = (
          getattr(one.table, name) for one in (restored, saved, other))
      self.assertEqual(found.sharding, like.sharding)
      self.assertEqual((found.shape, found.dtype), (like.shape, like.dtype))
      np.testing.assert_array_equal(found[:100], wanted[:100])
    np.testing.assert_array_equal(restored.table.ids[100:], -1)
    self.assertIs(type(restored.table), type(saved.table))

  @parameterized.product(
      first=('float32', 'int8'), then=('bfloat16', 'int8', 'float32'),
      num_devices=(1, 4))
  def test_coarse_copies_are_made_again(self, first, then, num_devices):
    def state(num_devices, scan_dtype):
      return training.TrainState(
          step=jnp.int32(3), params={'w': jnp.ones(2)}, opt_state=(),
          table=tables.from_embeddings(
              rows, sharding.make_mesh(num_devices), 64, 'float32',
              scan_dtype=scan_dtype), corrector=(), sampler=())

    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    self.checkpoints.save(3, state(1, first), {})
    self.checkpoints.wait()
    like = state(num_devices, then)
    restored, _ = self.checkpoints.restore(training.abstract(like))
    self.assertEqual(tables.scan_dtype_of(restored.table), then)
    jax.tree.map(np.testing.assert_array_equal, restored.table, like.table)

  def test_a_table_of_fewer_rows_is_refused(self):
    state = lambda size: training.TrainState(
        step=jnp.int32(3), params={'w': jnp.ones(2)}, opt_state=(),
        table=tables.empty(size, 3, sharding.make_mesh(1), 64, 'float32'),
        corrector=(), sampler=())
    self.checkpoints.save(3, state(64), {})
    self.checkpoints.wait()
    with self.assertRaisesRegex(
        ValueError, r'table\.ids: saved \(64,\), expected \(128,\)'):
      self.checkpoints.restore(training.abstract(state(100)))

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

  def three(self):
    """Saves steps 1 to 3, of which the last two are kept."""
    rng = np.random.default_rng(0)
    states = [{'x': jnp.asarray(rng.standard_normal((50, 50)), jnp.float32)}
              for _ in range(4)]
    for step in (1, 2, 3):
      self.checkpoints.save(step, states[step], {'step': step})
    self.checkpoints.wait()
    return states

  @parameterized.product(
      how=('cut', 'empty', 'gone', 'changed'), sealed=(True, False))
  def test_the_one_before_a_damaged_checkpoint_is_used(self, how, sealed):
    if how == 'changed' and not sealed:
      self.skipTest('nothing tells')
    states = self.three()
    folder = os.path.join(self.folder, 'ckpt', '3')
    if not sealed:  # as one of an earlier version
      os.remove(os.path.join(folder, files.SEAL))
    largest = max(disks.files_in(folder), key=os.path.getsize)
    disks.damage(largest, how)
    abstract = training.abstract(states[0])
    with training.Checkpoints(self.folder + '/ckpt') as again:
      with self.assertWarnsRegex(UserWarning, 'ckpt/3.*the checkpoint before'):
        state, meta = again.restore(abstract)
      self.assertEqual(meta, {'step': 2})
      np.testing.assert_array_equal(state['x'], states[2]['x'])
      with self.assertRaisesRegex(training.DamagedError, 'ckpt/3'):
        again.restore(abstract, 3)
      again.save(3, states[3], {'step': 3})  # where the run comes by again
    with training.Checkpoints(self.folder + '/ckpt', read_only=True) as last:
      state, meta = last.restore(abstract)
      self.assertEqual(meta, {'step': 3})
      np.testing.assert_array_equal(state['x'], states[3]['x'])

  @parameterized.parameters('state', 'meta', 'state/d', 'state/_METADATA', '.')
  def test_a_checkpoint_that_is_half_there_is_damaged(self, part):
    states = self.three()
    folder = os.path.join(self.folder, 'ckpt', '3')
    for name in disks.files_in(folder):  # with and without a seal
      if part == '.' and name.endswith(files.SEAL) or (
          part != '.' and name.startswith(os.path.join(folder, part))):
        os.remove(name)
    if part == '.':
      shutil.rmtree(os.path.join(folder, 'state'))
    with training.Checkpoints(self.folder + '/ckpt') as again:
      with self.assertWarnsRegex(UserWarning, 'ckpt/3'):
        _, meta = again.restore(training.abstract(states[0]))
    self.assertEqual(meta, {'step': 2})

  def test_all_are_named_where_none_can_be_read(self):
    states = self.three()
    for step in '23':
      for path in disks.files_in(os.path.join(self.folder, 'ckpt', step)):
        if not path.endswith(files.SEAL):
          disks.damage(path, 'empty')
    with training.Checkpoints(self.folder + '/ckpt') as again:
      with self.assertRaisesRegex(
          training.DamagedError, 'No checkpoint in .*ckpt can be read: '
          '.*ckpt/3.*; .*ckpt/2.*has 0 bytes.* train again'):
        again.restore(training.abstract(states[0]))
      with self.assertRaisesRegex(training.DamagedError, 'No checkpoint in'):
        again.restore_meta()

  def test_a_full_disk_is_named_and_the_last_whole_one_stays(self):
    states = self.three()
    big = {'x': jnp.asarray(np.random.default_rng(0).standard_normal(10**5))}
    with training.Checkpoints(self.folder + '/ckpt') as again:
      with disks.files_of_at_most(10**4), self.assertNoLogs('absl', 'ERROR'):
        with self.assertRaisesRegex(
            OSError, 'could not be written to .*ckpt.*same command goes on'):
          again.save(4, big, {})
          again.wait()
    with training.Checkpoints(self.folder + '/ckpt') as again:
      self.assertEqual(again.latest_step(), 3)
      state, _ = again.restore(training.abstract(states[0]))
      np.testing.assert_array_equal(state['x'], states[3]['x'])

  def test_only_what_tensorstore_leaves_behind_is_not_shown(self):
    shown = mock.Mock()
    self.enter_context(mock.patch.object(sys, 'unraisablehook', shown))
    training.Checkpoints(self.folder + '/hook').close()
    for text in ('Event loop is closed', 'another'):
      sys.unraisablehook(mock.Mock(exc_value=RuntimeError(text)))
    [call] = shown.call_args_list
    self.assertEqual(str(call.args[0].exc_value), 'another')

  def test_an_error_is_not_hidden_by_what_closing_finds(self):
    with self.assertRaisesRegex(KeyError, 'first'):
      with training.Checkpoints(self.folder + '/other') as other:
        with disks.files_of_at_most(10**4):
          other.save(1, {'x': jnp.asarray(
              np.random.default_rng(0).standard_normal(10**5))}, {})
          raise KeyError('first')

  def test_a_reader_leaves_what_a_living_run_is_writing(self):
    self.three()
    unfinished = self.folder + '/ckpt/4.orbax-checkpoint-tmp'
    os.makedirs(unfinished)
    with training.Checkpoints(self.folder + '/ckpt', read_only=True) as reader:
      self.assertEqual(reader.latest_step(), 3)
    self.assertTrue(os.path.exists(unfinished))

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
