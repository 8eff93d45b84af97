"""The choice of negatives: against a slow version, and rule by rule."""

import hashlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax import mining

_NONE = np.float32(-np.inf)


def _choose(ids, scores, rules, *, positives=(), positive_scores=(1.,),
            query_id='q', **barred):
  """Returns (ids, scores, removed) of one query."""
  found = mining.choose(
      np.asarray([ids]), np.asarray([scores], np.float32),
      barred={'positive': np.asarray([[*positives, -1]]),
              **{why: np.asarray([x]) for why, x in barred.items()}},
      positive_scores=np.asarray([positive_scores], np.float32),
      query_ids=[query_id], rules=rules)
  return found.ids[0].tolist(), found.scores[0].tolist(), found.removed


def _slowly(ids, scores, barred, positive_scores, query_id, rules):
  """Returns the negatives of one query, rule by rule, one at a time."""
  best = [(i, s) for i, s in zip(ids, scores) if i >= 0 and i not in barred]
  best = best[rules.range_min:rules.end]
  known = [s for s in positive_scores if not np.isnan(s)]
  positive = float(min(known) if rules.margin_to == 'lowest' else max(known))
  if rules.absolute_margin is not None:
    best = [x for x in best if x[1] <= positive - rules.absolute_margin]
  if rules.relative_margin is not None:
    best = [x for x in best
            if x[1] <= positive - rules.relative_margin * abs(positive)]
  if rules.max_score is not None:
    best = [x for x in best if x[1] <= np.float32(rules.max_score)]
  if rules.min_score is not None:
    best = [x for x in best if x[1] >= np.float32(rules.min_score)]
  if rules.sampling == 'random':
    digest = hashlib.blake2b(query_id.encode(), digest_size=8).digest()
    rng = np.random.default_rng([rules.seed, int.from_bytes(digest, 'big')])
    # Places matter to the draw by their number alone.
    best = [best[i] for i in sorted(
        rng.permutation(len(best))[:rules.num_negatives])]
  return [i for i, _ in best[:rules.num_negatives]]


class ChooseTest(parameterized.TestCase):

  @parameterized.parameters(
      dict(), dict(range_min=3), dict(range_min=2, range_max=9),
      dict(absolute_margin=0.1), dict(absolute_margin=0., margin_to='highest'),
      dict(relative_margin=0.05), dict(relative_margin=0.3, range_min=4),
      dict(max_score=0.5, min_score=-0.2), dict(sampling='random'),
      dict(sampling='random', seed=3, relative_margin=0.5, margin_to='highest'))
  def test_equals_the_slow_version_query_by_query(self, **options):
    rules = mining.Rules(num_negatives=4, **options)
    rng = np.random.default_rng(0)
    n, k = 200, 60
    ids = np.stack([rng.permutation(80)[:k] for _ in range(n)])
    ids[:, 50:] = np.where(np.arange(n)[:, None] % 3, ids[:, 50:], -1)
    scores = -np.sort(-rng.uniform(-1, 1, (n, k)).astype(np.float32), axis=1)
    positives = rng.integers(-1, 80, (n, 3))
    twins = rng.integers(-1, 80, (n, 2))
    positive_scores = rng.uniform(-1, 1, (n, 3)).astype(np.float32)
    positive_scores[::2, 1:] = np.nan
    names = [f'q{i}' for i in range(n)]
    found = mining.choose(
        ids, scores, barred={'positive': positives, 'same text': twins},
        positive_scores=positive_scores, query_ids=names, rules=rules)
    for i in range(n):
      slow = _slowly(ids[i], scores[i], {*positives[i], *twins[i]},
                     positive_scores[i], names[i], rules)
      self.assertEqual(found.ids[i].tolist(), slow + [-1] * (4 - len(slow)))
      place = dict(zip(ids[i], scores[i]))
      self.assertEqual(found.scores[i].tolist(), [
          place[one] for one in slow] + [_NONE] * (4 - len(slow)))

  def test_the_margin_is_to_the_lowest_positive_or_to_the_highest(self):
    options = dict(positive_scores=(0.9, np.nan, 0.5))
    ids, scores = [1, 2, 3, 4], [0.85, 0.7, 0.48, 0.3]
    for margin_to, expected in (('lowest', [4, -1]), ('highest', [2, 3])):
      rules = mining.Rules(2, absolute_margin=0.1, margin_to=margin_to)
      self.assertEqual(_choose(ids, scores, rules, **options)[0], expected)

  def test_a_relative_margin_is_below_a_negative_positive_score(self):
    rules = mining.Rules(1, relative_margin=0.5)
    # (1 - 0.5) * -0.4 = -0.2 would let -0.3 pass, which is above the positive.
    found = _choose([1, 2], [-0.3, -0.7], rules, positive_scores=(-0.4,))
    self.assertEqual(found[0], [2])

  def test_bounds_are_inclusive(self):
    found = _choose([1, 2, 3, 4], [0.75, 0.5, 0.25, 0.125], mining.Rules(
        4, absolute_margin=0.25, max_score=0.5, min_score=0.25, range_max=4),
                    positive_scores=(0.75,))
    self.assertEqual(found[0], [2, 3, -1, -1])

  def test_a_positive_that_was_not_found_leaves_nothing_to_a_margin(self):
    for margins in (dict(relative_margin=0.), dict(relative_margin=0.1),
                    dict(absolute_margin=0.)):
      found = _choose([1, 2], [0.5, 0.1], mining.Rules(1, **margins),
                      positive_scores=(-np.inf, 0.9))
      self.assertEqual(found[0], [-1])
    self.assertEqual(_choose([1, 2], [0.5, 0.1], mining.Rules(1),
                             positive_scores=(-np.inf,))[0], [1])

  def test_the_window_is_of_ranks_among_what_is_not_barred(self):
    ids, scores = [7, 1, 8, 2, 3, 4, 5], np.linspace(.9, .3, 7)
    ids_, scores_, removed = _choose(
        ids, scores, mining.Rules(2, range_min=1, range_max=4),
        positives=[7, 5], **{'same text': [8, 7]})
    self.assertEqual(ids_, [2, 3])
    np.testing.assert_allclose(scores_, scores[[3, 4]])
    # 7 is counted once, as the first that bars it; 5 stands behind the window.
    self.assertEqual(removed, {'positive': 1, 'same text': 1, 'range_min': 1})

  def test_each_filter_counts_what_it_removed_first(self):
    rules = mining.Rules(1, range_max=5, absolute_margin=0.1, max_score=0.5,
                         min_score=0.2, relative_margin=0.2)
    _, _, removed = _choose([0, 1, 2, 3, 4, 5], [.95, .85, .6, .4, .1, .05],
                            rules)
    self.assertEqual(removed, {
        'positive': 0, 'range_min': 0, 'absolute_margin': 1,
        'relative_margin': 1, 'max_score': 1, 'min_score': 1})

  def test_more_results_and_other_queries_change_nothing(self):
    rules = mining.Rules(3, relative_margin=0.1, sampling='random')
    rng = np.random.default_rng(0)
    n, k = 20, rules.end + 4
    ids = np.stack([rng.permutation(100) for _ in range(n)])
    scores = -np.sort(-rng.uniform(0, 1, (n, 100)).astype(np.float32), axis=1)
    def chosen(rows, depth):
      return mining.choose(
          ids[rows, :depth], scores[rows, :depth],
          barred={'positive': ids[rows, :4]},
          positive_scores=np.ones((len(rows), 1)),
          query_ids=[f'q{i}' for i in rows], rules=rules)
    whole = chosen(np.arange(n), k)
    again = chosen(np.arange(n)[::-1], 100)
    np.testing.assert_array_equal(again.ids[::-1], whole.ids)
    self.assertEqual(again.removed, whole.removed)
    np.testing.assert_array_equal(chosen(np.arange(3, 5), k).ids,
                                  whole.ids[3:5])

  def test_random_ones_are_uniform_and_change_with_seed_and_query(self):
    n = 3000
    ids = np.tile(np.arange(6), (n, 1))
    def chosen(prefix, seed):
      return mining.choose(
          ids, -ids.astype(np.float32), barred={},
          positive_scores=np.ones((n, 1)),
          query_ids=[f'{prefix}{i}' for i in range(n)],
          rules=mining.Rules(2, range_max=6, sampling='random', seed=seed)).ids
    found = chosen('q', 0)
    self.assertTrue((found[:, 0] < found[:, 1]).all())  # best first
    counts = np.bincount(found.ravel(), minlength=6)
    # Each is in a third of the choices; 4.5 standard deviations.
    np.testing.assert_allclose(
        counts / n, 1 / 3, atol=4.5 * np.sqrt(2 / 9 / n))
    for other in (chosen('q', 1), chosen('r', 0)):
      self.assertLess((other == found).all(axis=1).mean(), 0.2)

  @parameterized.parameters(
      (dict(num_negatives=0), '--num_negatives=0, expected at least 1'),
      (dict(range_min=-1), '--range_min=-1, expected at least 0'),
      (dict(relative_margin=-0.1), '--relative_margin=-0.1, expected at'),
      (dict(absolute_margin=float('nan')), '--absolute_margin=nan, expected'),
      (dict(range_min=4, range_max=6), 'leaves 2 results after --range_min=4'),
      (dict(margin_to='first'), "--margin_to='first' is not one of .'lowest'"),
      (dict(sampling='best'), r"--sampling='best' is not one of \['top'"),
      (dict(max_score=0.1, min_score=0.2), '--min_score=0.2 is above'))
  def test_bad_options_are_refused(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      mining.Rules(**{'num_negatives': 3} | options)

  @parameterized.parameters(
      (dict(), 3), (dict(range_min=5), 8), (dict(sampling='random'), 30),
      (dict(min_score=0., range_min=5), 35), (dict(range_max=7), 7))
  def test_the_window_is_wider_where_candidates_may_be_dropped(
      self, options, end):
    self.assertEqual(mining.Rules(3, **options).end, end)


if __name__ == '__main__':
  absltest.main()
