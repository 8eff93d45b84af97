"""The adapters against their formulas, written out with dense matrices."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax import adapters
from retrieval_jax import indexes
from retrieval_jax import sharding
from retrieval_jax.adapters import moved
from retrieval_jax.adapters import nudge
from retrieval_jax.adapters import pairs as pairs_lib

N, M, D = 60, 40, 8


def unit_rows(rng, *shape):
  return pairs_lib.unit(rng.normal(size=shape).astype(np.float32))


def problem(seed=0, uncovered=20):
  """Returns (targets, Pairs, test queries, Y [M, N]).

  The last `uncovered` targets have no training query; some queries have
  several targets and some targets several queries.
  """
  rng = np.random.default_rng(seed)
  targets = unit_rows(rng, N, D)
  query_rows = np.concatenate([np.arange(M), rng.integers(0, M, 15)])
  target_rows = rng.integers(0, N - uncovered, len(query_rows))
  order = rng.permutation(len(query_rows))
  pairs = adapters.Pairs(unit_rows(rng, M, D), query_rows[order],
                         target_rows[order])
  labels = np.zeros((M, N))
  np.add.at(labels, (query_rows, target_rows), 1)
  return targets, pairs, unit_rows(rng, 11, D), labels


def exact_index(devices=1):
  return indexes.ExactIndex(sharding.make_mesh(devices), chunk_rows=64)


def ranked(scores, k):
  """Returns the k best (scores, ids) of dense scores, ties by lowest id."""
  order = np.argsort(-scores, axis=1, kind='stable')[:, :k]
  return np.take_along_axis(scores, order, axis=1), order


class PairsTest(parameterized.TestCase):

  @parameterized.parameters(1, 7, 1000)
  def test_sums_are_the_matrix_product_for_any_chunk(self, chunk_rows):
    _, pairs, _, labels = problem()
    found = np.concatenate([rows for _, rows in pairs.sums(N, chunk_rows)])
    np.testing.assert_allclose(found, labels.T @ pairs.queries, atol=1e-6)

  def test_joined_pairs_keep_their_targets(self):
    _, pairs, _, labels = problem()
    more = adapters.Pairs(pairs.queries[::-1], np.array([0, 2]),
                          np.array([59, 3]))
    both = pairs.join(more)
    expected = labels.T @ pairs.queries
    expected[59] += pairs.queries[-1]
    expected[3] += pairs.queries[-3]
    [(_, found)] = both.sums(N, 1000)
    np.testing.assert_allclose(found, expected, atol=1e-6)

  def test_bad_pairs_are_refused(self):
    queries = np.eye(4, dtype=np.float32)
    rows = np.arange(2)
    for arguments, message in (
        ((queries, rows, np.arange(3)), 'two lists of one length'),
        ((queries, rows[:0], rows[:0]), 'got none'),
        ((queries, np.array([0, 4]), rows), 'from 0 to 4.* the 4 queries'),
        ((queries, rows, np.array([0, -1])), 'target_rows start at -1'),
        ((queries * 2, rows, rows), 'query 0 has norm 2, expected 1.*norm'),
        ((queries * np.nan, rows, rows), 'query 0 has norm nan')):
      with self.assertRaisesRegex(ValueError, message):
        adapters.Pairs(*arguments)

  def test_targets_that_do_not_fit_are_refused(self):
    pairs = adapters.Pairs(np.eye(4), np.arange(4), np.arange(4))
    for targets, message in (
        (np.eye(5), 'targets have 5 dimensions, the training queries 4'),
        (np.eye(4)[:3], 'reach to 3, but there are 3 targets'),
        (np.eye(4) * [[1], [1], [.5], [1]], 'target 2 has norm 0.5')):
      for index in (
          adapters.Moved(adapters.PefaXS(0.5), exact_index()),
          adapters.PefaXL(exact_index(), exact_index(), 0.5, 2)):
        with self.assertRaisesRegex(ValueError, message):
          index.build(targets, pairs)


class PefaXSTest(parameterized.TestCase):

  @parameterized.parameters((0.,), (0.3,), (1.,))
  def test_one_index_scores_the_mixture_of_two_terms(self, weight):
    targets, pairs, queries, labels = problem()
    aggregated = labels.T @ pairs.queries
    norms = np.linalg.norm(aggregated, axis=1, keepdims=True)
    aggregated = np.divide(aggregated, norms, where=norms > 0,
                           out=np.zeros_like(aggregated))
    expected = (weight * queries @ targets.T
                + (1 - weight) * queries @ aggregated.T)
    index = adapters.Moved(adapters.PefaXS(weight), exact_index(2))
    scores, ids = index.search(index.build(targets, pairs), queries, 30)
    np.testing.assert_allclose(
        scores, np.take_along_axis(expected, ids, axis=1), atol=1e-6)
    np.testing.assert_allclose(scores, ranked(expected, 30)[0], atol=1e-6)

  def test_lambda_one_is_the_encoder_bit_for_bit(self):
    targets, pairs, _, _ = problem()
    np.testing.assert_array_equal(
        moved.move_targets(adapters.PefaXS(1.), targets, pairs), targets)

  def test_uncovered_targets_shrink_or_keep_their_row(self):
    targets, pairs, _, _ = problem()
    covered = pairs.covered(N)
    self.assertEqual(covered.sum(), len(set(pairs.target_rows)))
    shrunk, kept = (moved.move_targets(
        adapters.PefaXS(0.4, keep), targets, pairs) for keep in (False, True))
    np.testing.assert_allclose(shrunk[~covered], 0.4 * targets[~covered],
                               rtol=1e-6)
    np.testing.assert_array_equal(kept[~covered], targets[~covered])
    np.testing.assert_array_equal(kept[covered], shrunk[covered])

  def test_rows_are_not_normalised_again(self):
    targets, pairs, _, _ = problem()
    norms = np.linalg.norm(moved.move_targets(
        adapters.PefaXS(0.5), targets, pairs), axis=1)
    self.assertLess(norms.max(), 0.999)

  def test_duplicated_labels_change_nothing(self):
    targets, pairs, _, _ = problem()
    np.testing.assert_allclose(
        moved.move_targets(adapters.PefaXS(0.5), targets,
                              pairs.join(pairs)),
        moved.move_targets(adapters.PefaXS(0.5), targets, pairs), atol=1e-6)

  def test_chunks_and_a_given_array_give_the_same_rows(self):
    targets, pairs, _, _ = problem()
    out = np.zeros((N, D), np.float32)
    found = moved.move_targets(adapters.PefaXS(0.5), targets, pairs,
                                  out=out, chunk_rows=7)
    self.assertIs(found, out)
    np.testing.assert_allclose(
        out, moved.move_targets(adapters.PefaXS(0.5), targets, pairs),
        atol=1e-6)

  @parameterized.parameters(-0.1, 1.1, np.nan)
  def test_a_lambda_out_of_range_is_refused(self, weight):
    with self.assertRaisesRegex(ValueError, r'lambda is .*\[0, 1\]'):
      adapters.PefaXS(weight)
    with self.assertRaisesRegex(ValueError, r'lambda is .*\[0, 1\]'):
      adapters.PefaXL(exact_index(), exact_index(), weight, 1)


def xl(weight, k, devices=1, **options):
  inner = exact_index(devices)
  return adapters.PefaXL(inner, inner, weight, k, **options)


class PefaXLTest(parameterized.TestCase):

  @parameterized.product(weight=(0., 0.3), normalisation=('mean', 'sum'))
  def test_all_neighbours_give_the_matrix_product(self, weight, normalisation):
    targets, pairs, queries, labels = problem()
    votes = queries @ pairs.queries.T @ labels
    expected = weight * queries @ targets.T + (1 - weight) * votes / (
        M if normalisation == 'mean' else 1)
    index = xl(weight, M, normalisation=normalisation, depth=N, batch_size=4,
               missing='exact')
    scores, ids = index.search(index.build(targets, pairs), queries, N)
    np.testing.assert_allclose(
        scores, np.take_along_axis(expected, ids, axis=1), atol=1e-6)
    np.testing.assert_allclose(scores, ranked(expected, N)[0], atol=1e-6)
    self.assertTrue(all(len(set(row)) == N for row in ids.tolist()))

  def expected(self, targets, pairs, queries, labels, k):
    """Returns the encoder's and the votes' dense scores [n, N]."""
    similarity = queries @ pairs.queries.T
    nearest = ranked(similarity, k)[1]
    near = np.zeros_like(similarity)
    np.put_along_axis(near, nearest, 1, axis=1)
    return queries @ targets.T, (similarity * near) @ labels / k

  @parameterized.product(devices=(1, 4), missing=('zero', 'exact'))
  def test_what_only_one_search_finds(self, devices, missing):
    targets, pairs, queries, labels = problem(seed=1)
    k, depth, weight = 3, 5, 0.6
    encoder, votes = self.expected(targets, pairs, queries, labels, k)
    # Other targets are no candidates: by the encoder they are below `depth`.
    first = ranked(encoder, depth)[1]
    found = np.zeros_like(encoder, bool)
    np.put_along_axis(found, first, True, axis=1)
    voted = queries @ pairs.queries.T >= ranked(
        queries @ pairs.queries.T, k)[0][:, -1:]
    voted = (voted @ labels) > 0
    own = encoder if missing == 'exact' else np.where(found, encoder, 0)
    scores = np.where(found | voted,
                      weight * own + (1 - weight) * votes, -np.inf)
    self.assertTrue((voted & ~found).any())
    expected, order = ranked(scores, depth)
    index = xl(weight, k, devices, depth=depth, missing=missing)
    got, ids = index.search(index.build(targets, pairs), queries, depth)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(ids, order)

  def test_exact_scores_of_the_missing_make_the_search_exact(self):
    targets, pairs, queries, labels = problem(seed=2)
    encoder, votes = self.expected(targets, pairs, queries, labels, 4)
    expected, order = ranked(0.2 * encoder + 0.8 * votes, 5)
    index = xl(0.2, 4, depth=5, missing='exact')
    got, ids = index.search(index.build(targets, pairs), queries, 5)
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(got, expected, atol=1e-6)

  @parameterized.parameters('zero', 'exact')
  def test_lambda_one_is_the_encoder_exactly(self, missing):
    targets, pairs, queries, _ = problem()
    index = xl(1., 5, missing=missing, depth=7)
    encoder = exact_index()
    found = index.search(index.build(targets, pairs), queries, 30)
    for got, expected in zip(found, encoder.search(
        encoder.build(targets), queries, 30)):
      np.testing.assert_array_equal(got, expected)

  def test_duplicated_labels_count_twice(self):
    targets, pairs, queries, _ = problem()
    twice = adapters.Pairs(pairs.queries, np.tile(pairs.query_rows, 2),
                           np.tile(pairs.target_rows, 2))
    once, doubled = (xl(0., 5).search(
        xl(0., 5).build(targets, p), queries, 4)[0] for p in (pairs, twice))
    np.testing.assert_allclose(doubled, 2 * once, rtol=1e-5)

  def test_the_mean_is_bounded_by_one_for_one_label_each(self):
    rng = np.random.default_rng(0)
    pairs = adapters.Pairs(unit_rows(rng, M, D), np.arange(M),
                           rng.integers(0, 3, M))
    index = xl(0., 10)
    scores, _ = index.search(
        index.build(unit_rows(rng, N, D), pairs), unit_rows(rng, 50, D), 3)
    self.assertLessEqual(scores.max(), 1)
    self.assertGreater(scores.max(), 0.3)

  def test_excluded_targets_do_not_come_out(self):
    targets, pairs, queries, _ = problem()
    index = xl(0.5, 5)
    state = index.build(targets, pairs)
    _, first = index.search(state, queries, 3)
    _, rest = index.search(state, queries, 10, exclude=first[:, :2])
    for gone, left, kept in zip(first[:, :2], first[:, 2], rest):
      self.assertFalse(set(gone) & set(kept))
      self.assertEqual(kept[0], left)

  def test_short_lists_fill_up(self):
    targets, pairs, queries, _ = problem()
    index = xl(0.5, 5)
    scores, ids = index.search(index.build(targets, pairs), queries, N + 4)
    np.testing.assert_array_equal(ids[:, N:], -1)
    np.testing.assert_array_equal(scores[:, N:], -np.inf)
    self.assertTrue((ids[:, :N] >= 0).all())

  def test_hnsw_finds_most_of_the_neighbours(self):
    targets, pairs, queries, _ = problem()
    exact = xl(0.3, 5)
    graph = adapters.PefaXL(exact_index(), indexes.FaissHNSW(
        ef_construction=500, ef_search=300), 0.3, 5)
    found = [index.search(index.build(targets, pairs), queries, 10)[1]
             for index in (exact, graph)]
    self.assertGreater(np.mean(found[0] == found[1]), 0.95)

  def test_bad_options_are_refused(self):
    targets, pairs, _, _ = problem()
    with self.assertRaisesRegex(ValueError, 'is 41 .*there are 40; lower it'):
      xl(0.5, 41).build(targets, pairs)
    with self.assertRaisesRegex(ValueError, 'is 0, expected at least 1'):
      xl(0.5, 0)
    with self.assertRaisesRegex(ValueError, "normalisation is 'max'"):
      xl(0.5, 1, normalisation='max')
    with self.assertRaisesRegex(ValueError, "missing is 'one'"):
      xl(0.5, 1, missing='one')


class NudgeTest(parameterized.TestCase):

  def test_m_steps_towards_the_queries(self):
    targets, pairs, _, labels = problem()
    sums = labels.T @ pairs.queries
    rows = moved.move_targets(adapters.NudgeM(0.3), targets, pairs)
    covered = pairs.covered(N)
    step = (rows - targets)[covered]
    np.testing.assert_allclose(np.linalg.norm(step, axis=1), 0.3, rtol=1e-5)
    np.testing.assert_allclose(
        step, 0.3 * pairs_lib.unit(sums[covered]), atol=1e-6)
    np.testing.assert_array_equal(rows[~covered], targets[~covered])

  @parameterized.parameters(0.1, 0.48, 1.)
  def test_n_is_the_best_point_of_the_sphere_within_reach(self, gamma):
    targets, pairs, _, labels = problem()
    sums = labels.T @ pairs.queries
    rows = moved.move_targets(adapters.NudgeN(gamma), targets, pairs)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    distance = np.sum((rows - targets)**2, axis=1)
    self.assertLessEqual(distance.max(), gamma + 1e-5)
    ahead = pairs.covered(N) & (np.sum(targets * sums, axis=1) > 0)
    self.assertGreater(ahead.sum(), 10)
    np.testing.assert_array_equal(rows[~ahead], targets[~ahead])
    # No point of the sphere within reach scores higher.
    rng = np.random.default_rng(0)
    for row in np.flatnonzero(ahead):
      near = pairs_lib.unit(rows[row] + 0.02 * rng.normal(size=(500, D)))
      near = near[np.sum((near - targets[row])**2, axis=1) <= gamma]
      self.assertNotEmpty(near)
      self.assertGreaterEqual(
          rows[row] @ sums[row], (near @ sums[row]).max() - 1e-4)

  def test_n_of_zero_is_the_encoder_bit_for_bit(self):
    targets, pairs, _, _ = problem()
    np.testing.assert_array_equal(
        moved.move_targets(adapters.NudgeN(0.), targets, pairs), targets)

  @parameterized.parameters(1, 4)
  def test_intervals_are_where_a_target_is_first(self, devices):
    targets, pairs, queries, _ = problem()
    rng = np.random.default_rng(5)
    query_rows = np.repeat(np.arange(len(queries)), 3)
    judged = rng.integers(0, N, len(query_rows))
    low, high = nudge.intervals(
        queries, query_rows, judged, targets, pairs,
        mesh=sharding.make_mesh(devices), chunk_rows=16, batch_size=8)
    gammas = np.concatenate([np.linspace(0, 3, 400), [50.]])
    hits = 0
    for gamma in gammas:
      rows = moved.move_targets(adapters.NudgeM(gamma), targets, pairs)
      best = np.argmax(queries @ rows.T, axis=1)[query_rows]
      inside = (low <= gamma) & (gamma <= high)
      near = (np.abs(low - gamma) < 1e-3) | (np.abs(high - gamma) < 1e-3)
      np.testing.assert_array_equal(inside[~near], (best == judged)[~near])
      hits += (best == judged).sum()
    self.assertGreater(hits, 50)

  def test_the_best_step_answers_as_many_as_any(self):
    targets, pairs, _, labels = problem()
    rng = np.random.default_rng(1)
    judged = rng.integers(0, N - 20, 30)
    queries = pairs_lib.unit(
        targets[judged] + pairs_lib.unit(labels.T @ pairs.queries)[judged]
        + 0.5 * rng.normal(size=(30, D)))
    def answered(gamma):
      rows = moved.move_targets(adapters.NudgeM(gamma), targets, pairs)
      return np.sum(np.argmax(queries @ rows.T, axis=1) == judged)
    gamma = nudge.best_step(queries, np.arange(30), judged, targets, pairs,
                            mesh=sharding.make_mesh(1))
    best = max(answered(g) for g in np.linspace(0, 3, 300))
    self.assertGreater(best, answered(0.))
    self.assertGreaterEqual(answered(gamma), best)

  def test_the_point_of_most_intervals(self):
    self.assertEqual(nudge.most_crossed(
        np.array([0., 1., 2., 5.]), np.array([3., 6., 4., 7.])), 2.5)
    self.assertEqual(nudge.most_crossed(np.array([3.]), np.array([1.])), 0.)
    above = nudge.most_crossed(np.array([2., 1.]), np.array([np.inf] * 2))
    self.assertGreater(above, 2)
    self.assertLess(above, 2.1)

  def test_gammas_out_of_range_are_refused(self):
    for cls, gamma in ((adapters.NudgeM, -1.), (adapters.NudgeM, np.nan),
                       (adapters.NudgeN, -0.1), (adapters.NudgeN, 2.1)):
      with self.assertRaisesRegex(ValueError, 'gamma is'):
        cls(gamma)


class ScaleTest(absltest.TestCase):

  def test_moving_copies_no_more_than_a_chunk(self):
    """Rows of a memory-mapped-like array are read chunk by chunk."""
    targets, pairs, _, _ = problem()
    reads = []

    class Watched(np.ndarray):

      def __getitem__(self, key):
        rows = super().__getitem__(key)
        if isinstance(key, slice):
          reads.append(len(rows))
        return rows

    moved.move_targets(adapters.PefaXS(0.5), targets.view(Watched), pairs,
                          chunk_rows=16)
    self.assertEqual([r for r in reads if r != N], [16, 16, 16, 12])
    self.assertEqual(moved.CHUNK_ROWS, 16384)


if __name__ == '__main__':
  absltest.main()
