"""Search over quantised targets: by hand, by numpy, by faiss."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from retrieval_jax import indexes
from retrieval_jax import quantisation
from retrieval_jax import sharding

N, D, BOTH = 300, 20, (indexes.Int8Index, indexes.BinaryIndex)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make(kind, devices=1, chunk_rows=64, **options):
  return kind(sharding.make_mesh(devices), chunk_rows, **options)


def best(scores, k):
  """Returns the columns of the k largest, equal ones by lowest column."""
  return np.argsort(-scores, axis=1, kind='stable')[:, :k]


def signs(vectors):
  return np.where(vectors > 0, 1., -1.)


def int8_scores(queries, targets):
  """Returns <query, stored> of the formula of int8, written anew."""
  low, high = targets.min(axis=0), targets.max(axis=0)
  width = np.where(high == low, 1, (high - low) / 255).astype(np.float32)
  # float32 throughout: it decides which step a value on an edge is in.
  stored = low + width * np.clip(np.floor((targets - low) / width), 0, 255)
  return queries @ stored.T


class Int8IndexTest(parameterized.TestCase):

  def test_by_hand(self):
    # Steps of 1 in the first dimension and of 2 in the second.
    targets = np.float32([[0., -255.], [255., 255.], [100.9, 0.], [100.2, 0.]])
    index = make(indexes.Int8Index)
    scores, ids = index.search(
        index.build(targets), np.float32([[1., 10.]]), 5)
    np.testing.assert_array_equal(ids, [[1, 2, 3, 0, -1]])
    np.testing.assert_allclose(
        scores, [[255 + 2550, 100 - 10, 100 - 10, 0 - 2550, -np.inf]],
        rtol=1e-6)

  @parameterized.product(devices=(1, 4), chunk_rows=(64, 512))
  def test_it_equals_the_formula_however_it_is_cut(self, devices, chunk_rows):
    targets, queries = normal(0, N, D), normal(1, 11, D)
    targets[:, 5] = -.3
    targets[7] = targets[200]
    index = make(indexes.Int8Index, devices, chunk_rows, batch_size=4)
    scores, ids = index.search(index.build(targets), queries, 30)
    expected = int8_scores(queries, targets)
    np.testing.assert_array_equal(ids, best(expected, 30))
    np.testing.assert_allclose(
        scores, np.take_along_axis(expected, ids, axis=1), rtol=1e-4, atol=1e-5)

  def test_a_row_takes_a_byte_per_dimension(self):
    state = make(indexes.Int8Index).build(normal(0, N, D))
    self.assertEqual(state.table.embeddings.dtype, np.int8)
    self.assertEqual(state.table.embeddings.shape[1], D)

  def test_faiss_finds_the_same(self):
    faiss = pytest.importorskip('faiss')
    targets, queries = normal(0, N, D), normal(1, 11, D)
    # Steps of 1 / 32, so that both round the ends of the ranges alike.
    targets[0], targets[1] = -4, -4 + 255 / 32
    index = make(indexes.Int8Index)
    scores, ids = index.search(index.build(targets), queries, 30)
    theirs = faiss.IndexScalarQuantizer(
        D, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    theirs.train(targets)
    theirs.add(targets)
    found, rows = theirs.search(queries, 30)
    np.testing.assert_array_equal(ids, rows)
    # Its codes stand for the middle of a step, ours for the lower end.
    np.testing.assert_allclose(
        found, scores + queries.sum(axis=1)[:, None] / 64, rtol=1e-4,
        atol=1e-5)


class BinaryIndexTest(parameterized.TestCase):

  def test_by_hand(self):
    targets = np.float32([[1, 1, 1], [-1, -1, -1], [1, -1, 1], [2, 0, 3]])
    index = make(indexes.BinaryIndex)
    state = index.build(targets)
    # A zero counts as negative, in queries too: the signs are + - +.
    query = np.float32([[.1, 0., 7.]])
    scores, ids = index.search(state, query, 5)
    np.testing.assert_array_equal(ids, [[2, 3, 0, 1, -1]])
    np.testing.assert_array_equal(scores, [[0, 0, -1, -2, -np.inf]])
    # <(.1, 0, 7), signs>: the second dimension says nothing.
    scores, ids = index.rescore(state, query, ids, 3)
    np.testing.assert_array_equal(ids, [[0, 2, 3]])
    np.testing.assert_allclose(scores, [[7.1] * 3], rtol=1e-6)

  @parameterized.product(
      devices=(1, 4), chunk_rows=(64, 512), dim=(8, 20, 23))
  def test_it_equals_counted_bits_however_it_is_cut(
      self, devices, chunk_rows, dim):
    targets, queries = normal(0, N, dim), normal(1, 11, dim)
    index = make(indexes.BinaryIndex, devices, chunk_rows, batch_size=4)
    state = index.build(targets)
    self.assertEqual(state.table.embeddings.dtype, np.uint8)
    self.assertEqual(state.table.embeddings.shape[1], -(-dim // 8))
    scores, ids = index.search(state, queries, 30)
    distances = (signs(queries)[:, None] != signs(targets)[None]).sum(axis=2)
    np.testing.assert_array_equal(ids, best(-distances, 30))
    np.testing.assert_array_equal(
        -scores, np.take_along_axis(distances, ids, axis=1))

  def test_faiss_finds_the_same_distances(self):
    faiss = pytest.importorskip('faiss')
    targets, queries = normal(0, N, 24), normal(1, 11, 24)
    index = make(indexes.BinaryIndex)
    scores, _ = index.search(index.build(targets), queries, 30)
    theirs = faiss.IndexBinaryFlat(24)
    theirs.add(quantisation.to_binary(targets))
    found, _ = theirs.search(quantisation.to_binary(queries), 30)
    np.testing.assert_array_equal(-scores, found)


class RescoreTest(parameterized.TestCase):

  @parameterized.product(devices=(1, 4), num=(5, 16, 40))
  def test_candidates_are_ranked_by_the_float_query(self, devices, num):
    targets, queries = normal(0, N, D), normal(1, 11, D)
    expected = {indexes.Int8Index: int8_scores(queries, targets),
                indexes.BinaryIndex: queries @ signs(targets).T}
    ids = np.stack([np.random.default_rng(i).permutation(N)[:num]
                    for i in range(11)]).astype(np.int32)
    for kind in BOTH:
      index = make(kind, devices, batch_size=4)
      scores, found = index.rescore(index.build(targets), queries, ids, 5)
      of_listed = np.take_along_axis(expected[kind], ids, axis=1)
      order = best(of_listed, 5)
      np.testing.assert_array_equal(
          found, np.take_along_axis(ids, order, axis=1))
      np.testing.assert_allclose(
          scores, np.take_along_axis(of_listed, order, axis=1), rtol=1e-4,
          atol=1e-5)

  def test_all_targets_rescored_are_a_search(self):
    targets, queries = normal(0, N, D), normal(1, 3, D)
    index = make(indexes.Int8Index)
    state = index.build(targets)
    everything = np.tile(np.arange(N, dtype=np.int32)[::-1], (3, 1))
    for ours, theirs in zip(index.rescore(state, queries, everything, 30),
                            index.search(state, queries, 30)):
      np.testing.assert_allclose(ours, theirs, rtol=1e-5)

  @parameterized.parameters(*BOTH)
  def test_equal_ones_come_by_lowest_id_and_missing_ones_last(self, kind):
    index = make(kind)
    state = index.build(np.float32([[1, 2], [-1, 1], [1, 2], [1, 2]]))
    scores, ids = index.rescore(
        state, np.float32([[1., 1.]]), [[3, -1, 1, -1, 0]], 4)
    np.testing.assert_array_equal(ids, [[0, 3, 1, -1]])
    self.assertEqual(scores[0, 0], scores[0, 1])
    self.assertEqual(scores[0, 3], -np.inf)

  @parameterized.parameters(*BOTH)
  def test_more_than_there_are_fill_up(self, kind):
    index = make(kind)
    _, ids = index.rescore(
        index.build(np.float32([[1, 2], [-1, 1]])), np.ones((1, 2)), [[1]], 20)
    np.testing.assert_array_equal(ids, [[1] + [-1] * 19])

  @parameterized.parameters(*BOTH)
  def test_errors_say_what_was_expected(self, kind):
    index = make(kind)
    state = index.build(normal(0, 9, 5))
    with self.assertRaisesRegex(ValueError, 'ids has 1 rows.* 2 queries'):
      index.rescore(state, np.zeros((2, 5)), [[0]], 1)
    for search in (index.search, lambda *a: index.rescore(*a[:2], [[0]], a[2])):
      with self.assertRaisesRegex(ValueError, r'\(1, 4\), expected \[n, 5\]'):
        search(state, np.zeros((1, 4)), 1)
      with self.assertRaisesRegex(ValueError, 'k is 0, expected at least 1'):
        search(state, np.zeros((1, 5)), 0)

  @parameterized.parameters(*BOTH)
  def test_what_is_excluded_does_not_come_out(self, kind):
    targets, queries = normal(0, N, D), normal(1, 5, D)
    index = make(kind)
    state = index.build(targets)
    _, ids = index.search(state, queries, 12)
    _, others = index.search(state, queries, 5, ids[:, :7])
    np.testing.assert_array_equal(others, ids[:, 7:])


if __name__ == '__main__':
  absltest.main()
