"""Meshes, shardings of a state, and batches on the mesh."""

from absl.testing import absltest
import jax
import numpy as np

from retrieval_jax import sharding, table


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


if __name__ == '__main__':
  absltest.main()
