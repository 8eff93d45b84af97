"""Meshes, shardings of a state, and batches on the mesh."""

from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from retrieval_jax import sharding
from retrieval_jax import table


class ShardingTest(absltest.TestCase):

  def test_mesh_takes_the_first_devices_with_auto_axes(self):
    mesh = sharding.make_mesh(4)
    self.assertEqual(list(mesh.devices), jax.devices()[:4])
    self.assertEqual(mesh.axis_types, (jax.sharding.AxisType.Auto,))
    self.assertEqual(sharding.num_shards(sharding.make_mesh()), 8)

  def test_too_many_devices_is_an_error_that_says_how_to_get_more(self):
    with self.assertRaisesRegex(
        ValueError, 'num_devices is 9, expected 1 to 8.*jax_num_cpu_devices'):
      sharding.make_mesh(9)

  def test_no_process_is_left_without_devices(self):
    with mock.patch.object(jax, 'process_count', return_value=2):
      self.assertEqual(sharding.num_shards(sharding.make_mesh()), 8)
      with self.assertRaisesRegex(
          ValueError, 'num_devices is 4 of the 8 devices of 2 processes'):
        sharding.make_mesh(4)

  def test_capacity_holds_whole_chunks_on_every_shard(self):
    mesh = sharding.make_mesh(4)
    self.assertEqual(sharding.capacity(1, mesh, 10), 40)
    self.assertEqual(sharding.capacity(40, mesh, 10), 40)
    self.assertEqual(sharding.capacity(41, mesh, 10), 80)

  def test_put_batch_shards_examples_and_replicates_scalars(self):
    mesh = sharding.make_mesh(4)
    batch = {'tokens': np.arange(24).reshape(8, 3), 'step': np.int32(7)}
    put = sharding.put_batch(batch, mesh)
    self.assertEqual(put['tokens'].sharding, sharding.batch(mesh))
    self.assertTrue(put['step'].sharding.is_fully_replicated)
    np.testing.assert_array_equal(put['tokens'], batch['tokens'])

  def test_uneven_batch_is_refused(self):
    with self.assertRaisesRegex(ValueError, '6 examples .* over 4 devices'):
      sharding.put_batch(np.zeros((6, 2)), sharding.make_mesh(4))

  def test_state_shardings_shard_tables_and_replicate_the_rest(self):
    mesh = sharding.make_mesh(2)
    state = {'table': table.empty(8, 3, mesh, 4, 'float32'),
             'params': {'w': np.zeros((4, 4))}, 'none': None}
    shardings = sharding.state_shardings(state, mesh)
    self.assertEqual(shardings['table'].embeddings, sharding.rows(mesh))
    self.assertEqual(shardings['table'].written, sharding.rows(mesh))
    self.assertEqual(shardings['params']['w'], sharding.replicated(mesh))
    made = jax.jit(lambda: jax.tree.map(jax.numpy.asarray, state),
                   out_shardings=shardings)()
    self.assertEqual(made['table'].ids.sharding, sharding.rows(mesh))

  def test_layout_cuts_the_largest_dimension_that_divides(self):
    layout = sharding.Layout(sharding.make_mesh(4), min_size=32)
    array = lambda *shape: np.zeros(shape, np.float32)
    params = {
        'kernel': array(8, 24), 'square': array(8, 8), 'tall': array(30, 8),
        'odd': array(9, 7), 'small': array(4, 4), 'scale': array(),
        'token_table': array(40, 8), 'narrow': {'token_table': array(40, 6)}}
    moments = {'count': array(), 'mu': params}
    wanted = {
        'kernel': (None, 'data'), 'square': (None, 'data'),
        'tall': (None, 'data'), 'odd': (), 'small': (), 'scale': (),
        # By columns or not at all, however long it is.
        'token_table': (None, 'data'), 'narrow': {'token_table': ()}}
    tuples = lambda tree: jax.tree.map(
        tuple, layout.specs(tree),
        is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
    self.assertEqual(tuples(params), wanted)
    self.assertEqual(tuples(moments), {'count': (), 'mu': wanted})
    placed = jax.device_put(params, layout.shardings(params))
    self.assertEqual(placed['kernel'].addressable_shards[0].data.shape, (8, 6))

  def test_layout_without_size_or_with_one_device_shards_nothing(self):
    params = {'kernel': np.zeros((64, 64))}
    for layout in (sharding.Layout(sharding.make_mesh(8)),
                   sharding.Layout(sharding.make_mesh(1), min_size=1)):
      self.assertFalse(layout.shards_parameters)
      self.assertEqual(
          layout.shardings(params)['kernel'], sharding.replicated(layout.mesh))

  def test_rules_come_before_size(self):
    layout = sharding.Layout(
        sharding.make_mesh(2), min_size=1,
        rules=(('head/kernel', None), ('kernel', 0)))
    specs = layout.specs({'head': {'kernel': np.zeros((4, 8))},
                          'kernel': np.zeros((4, 8))})
    self.assertEqual(tuple(specs['head']['kernel']), ())
    self.assertEqual(tuple(specs['kernel']), ('data',))
    with self.assertRaisesRegex(ValueError, 'min_size=0 must be at least 1'):
      sharding.Layout(sharding.make_mesh(2), min_size=0)


if __name__ == '__main__':
  absltest.main()
