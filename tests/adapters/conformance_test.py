"""What every registered adapter promises: a new one is tested by its line."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax import adapters
from retrieval_jax import files
from retrieval_jax import indexes
from retrieval_jax import sharding
from retrieval_jax.adapters import methods
from retrieval_jax.adapters import pairs
from retrieval_jax.adapters import store
from tests import disks

N, M, D, K = 60, 70, 8, 12


def make(name, setting=3, devices=1):
  """Returns the index of an adapter.

  Args:
    name: of the adapter.
    setting: of its grid; not the first, which may be the encoder itself.
    devices: how many share the targets.
  """
  adapter = adapters.ADAPTERS[name]
  index = indexes.ExactIndex(sharding.make_mesh(devices), chunk_rows=64)
  if hasattr(adapter, 'fitted'):
    _, dev = fit_to(seed=2)
    constants = dataclasses.asdict(adapter.fitted(
        dev.queries, dev.query_rows, dev.target_rows, *fit_to(),
        mesh=index.mesh))
  else:
    constants = dict(zip(adapter.GRID, list(
        itertools.product(*adapter.GRID.values()))[setting]))
  return adapters.make(name, index, index, **constants)


def world():
  """Returns targets, test queries and the targets of training queries."""
  rng = np.random.default_rng(0)
  unit = lambda n: pairs.unit(rng.normal(size=(n, D)).astype(np.float32))
  return unit(N), unit(11), rng.integers(0, N - 20, M)


def fit_to(seed=1):
  """Returns targets and Pairs whose queries are near their targets."""
  targets, _, rows = world()
  noise = np.random.default_rng(seed).normal(size=(M, D)).astype(np.float32)
  return targets, adapters.Pairs(
      pairs.unit(targets[rows] + 0.3 * noise), np.arange(M), rows)


@parameterized.parameters(*adapters.ADAPTERS)
class ConformanceTest(parameterized.TestCase):

  def test_it_searches_like_an_index(self, name):
    _, queries, _ = world()
    index = make(name)
    state = index.build(*fit_to())
    scores, ids = index.search(state, queries, K)
    self.assertEqual(scores.shape, (11, K))
    self.assertEqual((scores.dtype, ids.dtype), (np.float32, np.int32))
    self.assertTrue((np.diff(scores) <= 0).all())
    self.assertTrue(((ids >= 0) & (ids < N)).all())
    self.assertTrue(all(len(set(row)) == K for row in ids.tolist()))
    _, rest = index.search(state, queries, K, exclude=ids[:, :2])
    for gone, kept, left in zip(ids[:, :2], ids[:, 2], rest):
      self.assertFalse(set(gone) & set(left))
      self.assertEqual(kept, left[0])
    scores, ids = index.search(state, queries, N + 3)
    np.testing.assert_array_equal(ids[:, N:], -1)
    np.testing.assert_array_equal(scores[:, N:], -np.inf)
    _, ids = index.search(state, queries[:0], K)
    self.assertEqual(ids.shape, (0, K))

  def test_a_damaged_folder_is_named(self, name):
    folder = os.path.join(self.create_tempdir().full_path, 'index')
    whole = os.path.join(self.create_tempdir().full_path, 'whole')
    store.save(whole, make(name), *fit_to(), [f'd{i}' for i in range(N)], {})
    for path in disks.files_in(whole):
      for how in ('cut', 'empty', 'gone', 'changed'):
        for sealed in (True, False):
          if not sealed and how == 'changed':
            continue  # nothing tells
          shutil.rmtree(folder, ignore_errors=True)
          shutil.copytree(whole, folder)
          disks.damage(os.path.join(folder, os.path.basename(path)), how)
          if not sealed:
            pathlib.Path(folder, files.SEAL).unlink(missing_ok=True)
          with self.subTest(f'{path} {how} {sealed}'):
            if os.path.basename(path) == files.SEAL and (
                how == 'gone' or not sealed):
              store.load(folder, sharding.make_mesh(1), 64)
              continue
            with self.assertRaisesRegex(ValueError, folder):
              store.load(folder, sharding.make_mesh(1), 64)

  def test_it_changes_what_is_found(self, name):
    targets, queries, _ = world()
    index = make(name)
    _, ids = index.search(index.build(*fit_to()), queries, K)
    plain = indexes.ExactIndex(sharding.make_mesh(1), chunk_rows=64)
    _, before = plain.search(plain.build(targets), queries, K)
    self.assertTrue((ids != before).any())

  def test_devices_change_nothing(self, name):
    _, queries, _ = world()
    found = []
    for devices in (1, 4):
      index = make(name, devices=devices)
      found.append(index.search(index.build(*fit_to()), queries, K))
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-6)

  def test_it_is_read_back_as_it_was_written(self, name):
    targets, fitted = fit_to()
    _, queries, _ = world()
    index = make(name)
    folder = os.path.join(self.create_tempdir().full_path, 'index')
    store.save(folder, index, targets, fitted, [f'd{i}' for i in range(N)],
               {'method': name})
    loaded, state, ids = store.load(folder, sharding.make_mesh(1), 64)
    self.assertEqual(list(ids), [f'd{i}' for i in range(N)])
    for got, expected in zip(
        loaded.search(state, queries, K),
        index.search(index.build(targets, fitted), queries, K)):
      np.testing.assert_array_equal(got, expected)

  def test_its_constants_make_it_again(self, name):
    index = make(name)
    adapter = getattr(index, 'move', index)
    # Not the defaults, which would come back by themselves.
    options = {field.name: getattr(adapter, field.name)
               for field in dataclasses.fields(adapter)
               if field.name != 'batch_size'}
    adapter = dataclasses.replace(adapter, **{
        option: not value if isinstance(value, bool) else value + 1
        for option, value in options.items() if isinstance(value, int)})
    if hasattr(index, 'move'):
      adapter = adapters.Moved(adapter, index.index)
    constants = json.loads(json.dumps(methods.constants(adapter)))
    inner = indexes.ExactIndex(sharding.make_mesh(1), chunk_rows=64)
    self.assertEqual(adapters.make(name, inner, inner, **constants), adapter)

  def test_its_grid_is_of_its_fields(self, name):
    adapter = adapters.ADAPTERS[name]
    fields = {field.name for field in dataclasses.fields(adapter)}
    self.assertLessEqual(set(adapter.GRID), fields)
    self.assertNotEqual(bool(adapter.GRID), hasattr(adapter, 'fitted'))
    settings = list(itertools.product(*adapter.GRID.values()))
    if adapter.GRID:
      self.assertLen({make(name, i) for i in range(len(settings))},
                     len(settings))

  def test_targets_that_do_not_fit_are_refused(self, name):
    targets, fitted = fit_to()
    for wrong, message in ((targets[:, :4], '4 dimensions, the training q'),
                           (targets[:9], 'there are 9 targets'),
                           (targets * 2, 'target 0 has norm 2')):
      with self.assertRaisesRegex(ValueError, message):
        make(name).build(wrong, fitted)


if __name__ == '__main__':
  absltest.main()
