"""What every registered index promises: a new one is tested by its line."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from retrieval_jax import indexes
from retrieval_jax import sharding

N, D = 90, 8  # so few that an approximate search sees them all


def unit(seed, *shape):
  vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make(name, **options):
  """Returns the index of a name on two devices."""
  if name.startswith('faiss'):
    pytest.importorskip('faiss')
  if 'chunk_rows' in fields(name):
    options['chunk_rows'] = 64
  return indexes.make(name, sharding.make_mesh(2), **options)


def fields(name):
  return {field.name for field in dataclasses.fields(indexes.INDEXES[name])}


@parameterized.parameters(*indexes.INDEXES)
class ConformanceTest(parameterized.TestCase):

  def test_search_equals_a_full_sort(self, name):
    targets, queries = unit(0, N, D), unit(1, 11, D)
    index = make(name)
    scores, ids = index.search(index.build(targets), queries, 20)
    order = np.argsort(-queries @ targets.T, axis=1)[:, :20]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(
        scores, np.take_along_axis(queries @ targets.T, order, axis=1),
        rtol=1e-4, atol=1e-6)
    self.assertEqual((scores.dtype, ids.dtype), (np.float32, np.int32))

  def test_excluded_ids_do_not_come_out_and_short_corpora_fill_up(self, name):
    index = make(name)
    scores, ids = index.search(
        index.build(np.eye(4, dtype=np.float32)),
        np.asarray([[4., 3., 2., 1.]] * 2), 6, exclude=[[1, -1], [-1, -1]])
    np.testing.assert_array_equal(
        ids, [[0, 2, 3, -1, -1, -1], [0, 1, 2, 3, -1, -1]])
    np.testing.assert_array_equal(
        scores[0], [4., 2., 1., -np.inf, -np.inf, -np.inf])

  def test_the_best_may_be_excluded(self, name):
    targets, queries = unit(0, N, D), unit(1, 5, D)
    best = np.argsort(-queries @ targets.T, axis=1)
    index = make(name)
    _, ids = index.search(index.build(targets), queries, 10, best[:, :7])
    np.testing.assert_array_equal(ids, best[:, 7:17])

  def test_equal_scores_come_by_lowest_id(self, name):
    index = make(name)
    _, ids = index.search(
        index.build(np.ones((9, 2), np.float32)), np.ones((1, 2)), 9,
        exclude=[[4]])
    np.testing.assert_array_equal(ids, [[0, 1, 2, 3, 5, 6, 7, 8, -1]])

  def test_batches_change_nothing(self, name):
    self.assertIn('batch_size', fields(name))
    targets, queries = unit(0, N, D), unit(1, 11, D)
    exclude = np.arange(22).reshape(11, 2)
    found = []
    for batch_size in (3, 256):
      index = make(name, batch_size=batch_size)
      found.append(index.search(index.build(targets), queries, 9, exclude))
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)

  def test_mapped_half_precision_targets_are_taken(self, name):
    path = self.create_tempfile().full_path
    np.save(path + '.npy', unit(0, N, D).astype(np.float16))
    targets = np.load(path + '.npy', mmap_mode='r')
    index = make(name)
    scores, ids = index.search(
        index.build(targets), targets[:3].astype(np.float32), 1)
    np.testing.assert_array_equal(ids[:, 0], [0, 1, 2])
    np.testing.assert_allclose(scores, 1, atol=2e-3)

  def test_no_queries_give_no_results(self, name):
    index = make(name)
    scores, ids = index.search(
        index.build(np.eye(4, dtype=np.float32)), np.zeros((0, 4)), 3)
    self.assertEqual(scores.shape, (0, 3))
    self.assertEqual(ids.shape, (0, 3))

  def test_errors_say_what_was_expected(self, name):
    index = make(name)
    state = index.build(np.eye(4, dtype=np.float32))
    with self.assertRaisesRegex(ValueError, 'exclude has 1 rows.* 2 queries'):
      index.search(state, np.zeros((2, 4)), 3, exclude=[[0]])
    with self.assertRaisesRegex(ValueError, 'k is 0, expected at least 1'):
      index.search(state, np.zeros((2, 4)), 0)
    with self.assertRaisesRegex(ValueError, r'\(2, 3\), expected \[n, 4\]'):
      index.search(state, np.zeros((2, 3)), 1)
    with self.assertRaisesRegex(ValueError, 'expected at least 1'):
      make(name, batch_size=0)

  def test_it_is_a_value(self, name):
    self.assertEqual(make(name), make(name))
    self.assertEqual(hash(make(name)), hash(make(name)))
    self.assertNotEqual(make(name), make(name, batch_size=7))


class MakeTest(absltest.TestCase):

  def test_what_is_not_there_is_refused(self):
    mesh = sharding.make_mesh(1)
    with self.assertRaisesRegex(ValueError, r"'grove' is not one of \['exact'"):
      indexes.make('grove', mesh)
    with self.assertRaisesRegex(
        ValueError, "links is not an option of the index 'exact', which has "
        'batch'):
      indexes.make('exact', mesh, chunk_rows=64, links=3)


if __name__ == '__main__':
  absltest.main()
