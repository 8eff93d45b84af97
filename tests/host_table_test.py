"""A table on the host holds, gives and takes what one on the devices does."""

import errno
import os
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import host_table
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax.training import meter

N, D = 12, 3
LIVE = {'full': np.ones(N, bool), 'gaps': np.arange(N) % 4 != 1}
ROWS = np.array([[4, -1, 11], [1, 4, 0]], np.int32)


def both(live, dtype='float32', folder=''):
  """Returns the same rows on the host and on two devices."""
  vectors = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
  host = host_table.create(N, D, live=live, dtype=dtype, step=2, folder=folder)
  host.embeddings[:] = vectors
  device = tables.create(
      vectors, np.where(live, np.arange(N), -1), mesh=sharding.make_mesh(2),
      chunk_rows=4, dtype=dtype, step=2, rows_are_ids=True)
  return host, device


class HostTableTest(parameterized.TestCase):

  @parameterized.parameters('full', 'gaps')
  def test_gives_the_same_slices(self, name):
    host, device = both(LIVE[name])
    found, wanted = tables.take(host, ROWS), tables.take(device, ROWS)
    for field in ('embeddings', 'ids', 'written'):
      np.testing.assert_array_equal(
          getattr(found, field), getattr(wanted, field), err_msg=field)
    np.testing.assert_array_equal(host.ids, device.ids[:N])
    self.assertEqual(host.full, name == 'full')
    self.assertEqual(tables.num_rows(host), N)

  @parameterized.parameters('full', 'gaps')
  def test_finds_the_same_rows(self, name):
    host, device = both(LIVE[name])
    ids = np.array([[0, 1, 11], [N, -1, 5]], np.int32)
    np.testing.assert_array_equal(
        host.rows_of(ids), tables.rows_of(device, ids))

  @parameterized.parameters('float32', 'bfloat16', 'float16')
  def test_writes_the_same(self, dtype):
    host, device = both(LIVE['full'], dtype)
    rows = np.array([3, -1, 7, 3, 0, -1], np.int32)  # the last of equals wins
    fresh = np.random.default_rng(1).normal(size=(6, D)).astype(np.float32)
    host.write(jnp.asarray(rows), jnp.asarray(fresh), jnp.int32(9))
    device = tables.write(device, rows, fresh, 9)
    np.testing.assert_array_equal(host.embeddings, device.embeddings[:N])
    np.testing.assert_array_equal(host.written, device.written[:N])
    host.write(np.full(2, -1), fresh[:2], 10)
    self.assertEqual(host.written.max(), 9)

  @parameterized.parameters('full', 'gaps')
  @pytest.mark.slow
  def test_a_jit_knows_which_rows_are_live(self, name):
    host, device = both(LIVE[name])

    @jax.jit
    def known(table):
      return (tables.ids_of(table, ROWS), tables.rows_of(table, ROWS),
              tables.num_live(table), tables.live_rows(table, jnp.arange(5)),
              tables.systematic_rows(jax.random.key(0), table, 4))

    jax.tree.map(np.testing.assert_array_equal, known(host.outline),
                 known(device))
    self.assertEqual(len(jax.tree.leaves(host.outline)), name != 'full')

  @parameterized.parameters((1,), (8,))
  def test_threads_gather_the_same(self, per_thread):
    array = np.arange(400, dtype=np.float16).reshape(100, 4)
    rows = np.random.default_rng(0).integers(100, size=(7, 9))
    with mock.patch.multiple(host_table, _PER_THREAD=per_thread, _THREADS=3):
      found = host_table.gathered(array, rows)
    np.testing.assert_array_equal(found, array[rows])
    self.assertEqual(found.dtype, array.dtype)

  def test_its_bytes_are_counted(self):
    host, _ = both(LIVE['gaps'], 'float16')
    self.assertEqual(meter.num_host_bytes(host), N * (2 * D + 1 + 4))

  def test_leaves_no_file_behind(self):
    folder = os.path.join(self.create_tempdir().full_path, 'new')
    host, device = both(LIVE['full'], folder=folder)
    self.assertIsInstance(host.embeddings, np.memmap)
    self.assertEqual(os.listdir(folder), [])
    np.testing.assert_array_equal(host.embeddings, device.embeddings[:N])

  def test_a_full_disk_is_named(self):
    folder = self.create_tempdir().full_path
    full = OSError(errno.ENOSPC, 'No space left on device')
    with mock.patch.object(os, 'posix_fallocate', side_effect=full):
      with self.assertRaisesRegex(OSError, f'{folder}.*needs 144 bytes'):
        both(LIVE['full'], folder=folder)
    self.assertEqual(os.listdir(folder), [])


if __name__ == '__main__':
  absltest.main()
