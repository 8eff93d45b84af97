"""What is mined, against the obvious; the algebra of pools by hand."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax.mining import episodes

N, D, QUERIES, DEPTH = 60, 4, 12, 10


def plan(**options):
  return episodes.Plan(**({
      'number': 3, 'restart': True, 'early_negatives': 0, 'first': 'encoder',
      'later': 'encoder', 'depth': DEPTH, 'per_list': 3, 'lookahead': True,
      'positives': 'first', 'momentum': True,
      'combine': 'concatenated', 'alpha': 0.5, 'beta': 0.5,
      'relative_margin': None, 'bar_answers': False} | options))


RNG = np.random.default_rng(0)
# Every third target is a copy of another: it is in no corpus.
IDS = np.flatnonzero(np.arange(N) % 3 != 2)
VECTORS = RNG.normal(size=(len(IDS), D)).astype(np.float32)
QUERIES_OF = RNG.normal(size=(QUERIES, D)).astype(np.float32)
ROWS = np.arange(QUERIES) * 2 + 5
POSITIVES = np.stack([RNG.choice(IDS, 2, replace=False)
                      for _ in range(QUERIES)]).astype(np.int32)
POSITIVES[::2, 1] = -1
KNOWN = np.concatenate(
    [POSITIVES, RNG.choice(IDS, (QUERIES, 1))], axis=1).astype(np.int32)


def search(vectors, depth):
  return IDS[np.argsort(-vectors @ VECTORS.T, axis=1)[:, :depth]]


CORPUS = episodes.Corpus(IDS, VECTORS, search)


def nearest(vector, depth=DEPTH):
  return search(vector[None], depth)[0].tolist()


def vector_of(target):
  return VECTORS[IDS.tolist().index(target)]


def mine(made, **options):
  return episodes.mine(
      made, CORPUS, QUERIES_OF, ROWS, **({
          'positives': POSITIVES, 'known': KNOWN, 'seed': 1, 'episode': 1}
                                        | options))


def listed(row):
  return [i for i in row.tolist() if i >= 0]


class MineTest(parameterized.TestCase):

  @parameterized.parameters('first', 'all')
  def test_lists_are_of_the_nearest_without_what_is_known(self, positives):
    # As many as there are: then the lists are all of the neighbours.
    lists = mine(plan(depth=DEPTH, per_list=DEPTH, positives=positives))
    for place in range(QUERIES):
      known = KNOWN[place].tolist()
      self.assertCountEqual(listed(lists.neighbours[place]), [
          i for i in nearest(QUERIES_OF[place]) if i not in known])
      ahead = listed(POSITIVES[place])
      ahead = ahead[:1] if positives == 'first' else ahead
      wanted = [i for p in ahead for i in nearest(vector_of(p))
                if i not in known]
      self.assertContainsSubset(listed(lists.lookahead[place]), wanted)
      self.assertLen(listed(lists.lookahead[place]), min(DEPTH, len(wanted)))
      self.assertNotIn(ahead[0], lists.lookahead[place])

  def test_some_are_chosen_at_random(self):
    lists = mine(plan())
    self.assertEqual(lists.neighbours.shape, (QUERIES, 3))
    again = mine(plan())
    np.testing.assert_array_equal(again.neighbours, lists.neighbours)
    for options in ({'seed': 2}, {'episode': 2}):
      other = mine(plan(), **options)
      self.assertFalse(np.array_equal(other.neighbours, lists.neighbours))
      self.assertFalse(np.array_equal(other.lookahead, lists.lookahead))
    # Not the nearest ones, and neither list is drawn like the other.
    same = episodes.mine(
        plan(), CORPUS, np.stack([vector_of(p) for p in POSITIVES[:, 0]]),
        ROWS, positives=POSITIVES, known=KNOWN, seed=1, episode=1)
    self.assertFalse(np.array_equal(same.neighbours, same.lookahead))
    self.assertFalse(all(
        set(row) <= set(nearest(query, 5)) for row, query in zip(
            lists.neighbours.tolist(), QUERIES_OF)))

  def test_a_query_comes_by_itself(self):
    lists, some = mine(plan(), batch_size=5), slice(3, 9)
    part = episodes.mine(
        plan(), CORPUS, QUERIES_OF[some], ROWS[some],
        positives=POSITIVES[some], known=KNOWN[some], seed=1, episode=1)
    for whole, found in zip(lists, part):
      np.testing.assert_array_equal(found, whole[some])

  def test_a_margin_and_what_is_unfit_are_left_out(self):
    made = plan(per_list=DEPTH, relative_margin=0.1)
    odd = lambda rows, ids: ids % 2 == 1
    lists = mine(made, unfit=odd)
    some = 0
    for place, query in enumerate(QUERIES_OF):
      lowest = min(query @ vector_of(p) for p in listed(POSITIVES[place]))
      for found, vector in (
          (lists.neighbours, query),
          (lists.lookahead, vector_of(POSITIVES[place, 0]))):
        wanted = [i for i in nearest(vector) if (
            i not in KNOWN[place] and i % 2 == 0
            and query @ vector_of(i) <= lowest - 0.1 * abs(lowest))]
        self.assertCountEqual(listed(found[place]), wanted)
        some += len(wanted)
    self.assertGreater(some, 10)

  def test_no_lookahead_without_it(self):
    self.assertIsNone(mine(plan(lookahead=False)).lookahead)

  def test_first_results_are_chosen_from_once_each(self):
    ids = np.array([[5, 9, 5, 7, -1], [1, 2, 3, -1, -1]], np.int32)
    found = episodes.choose(
        plan(per_list=4), ids, np.arange(2), known=np.array([[9], [-1]]),
        seed=0)
    self.assertCountEqual(found.neighbours[0].tolist(), [5, 7, -1, -1])
    self.assertCountEqual(found.neighbours[1].tolist(), [1, 2, 3, -1])
    self.assertIsNone(found.lookahead)
    unfit = lambda rows, ids: (ids % 2 == 1) & (rows == 0)[:, None]
    found = episodes.choose(
        plan(per_list=4), ids, np.arange(2), known=np.array([[9], [-1]]),
        seed=0, unfit=unfit)
    self.assertEqual(found.neighbours[0].tolist(), [-1] * 4)
    self.assertCountEqual(found.neighbours[1].tolist(), [1, 2, 3, -1])


class PoolTest(parameterized.TestCase):

  def test_pools_are_multiset_unions_that_grow(self):
    made, previous = plan(), None
    for episode, size in ((1, 6), (2, 12), (3, 18)):
      lists = mine(made, episode=episode)
      pools = episodes.pool(
          made, lists, previous, ROWS, seed=1, episode=episode)
      self.assertEqual(pools.shape[1], size)
      self.assertLessEqual(size, made.capacity(3))
      parts = [*lists, *([] if previous is None else [previous])]
      for place in range(QUERIES):
        self.assertEqual(
            collections.Counter(listed(pools[place])),
            sum((collections.Counter(listed(part[place])) for part in parts),
                collections.Counter()))
        known = set(KNOWN[place].tolist())
        self.assertEmpty(known & set(listed(pools[place])))
        places = np.flatnonzero(pools[place] < 0)
        self.assertTrue((np.diff(places) == 1).all())
        self.assertFalse(len(places) and places[-1] != size - 1)
      previous = pools
    self.assertEqual(made.capacity(3), 18)

  def test_pools_are_shuffled_by_query_and_seed(self):
    made, lists = plan(), mine(plan())
    pool = lambda seed: episodes.pool(
        made, lists, None, ROWS, seed=seed, episode=1)
    np.testing.assert_array_equal(pool(1), pool(1))
    self.assertFalse(np.array_equal(pool(1), pool(2)))
    together = np.concatenate(lists, axis=1)
    self.assertFalse(np.array_equal(pool(1), together))

  def test_without_momentum_and_lookahead_it_is_ance(self):
    for options in ({}, {'combine': 'weighted', 'alpha': 0., 'beta': 0.}):
      made = plan(momentum=False, lookahead=False, **options)
      lists = mine(made)
      pools = episodes.pool(made, lists, np.full((QUERIES, 4), 99), ROWS,
                            seed=1, episode=2)
      np.testing.assert_array_equal(
          np.sort(pools, axis=1), np.sort(lists.neighbours, axis=1))
      self.assertEqual(made.capacity(3), made.list_size)

  @parameterized.parameters(
      (.5, .5, (2, 2, 4)), (1., .5, (0, 0, 8)), (.25, 1., (0, 6, 2)))
  def test_weights_are_shares(self, alpha, beta, wanted):
    made = plan(combine='weighted', per_list=4, alpha=alpha, beta=beta)
    kinds = (100, 200, 300)
    of = lambda kind, width: np.tile(kind + np.arange(width), (QUERIES, 1))
    lists = episodes.Lists(of(100, 8), of(200, 8))
    count = lambda pools: [tuple(
        ((row >= kind) & (row < kind + 100)).sum() for kind in kinds)
                           for row in pools]
    pools = episodes.pool(made, lists, of(300, 9), ROWS, seed=0, episode=2)
    self.assertEqual(count(pools), [wanted] * QUERIES)
    self.assertEqual(made.capacity(3), 8)
    first = episodes.pool(made, lists, None, ROWS, seed=0, episode=1)
    ahead = round(beta * 8)
    self.assertEqual(count(first), [(8 - ahead, ahead, 0)] * QUERIES)

  def test_episodes_and_their_steps(self):
    for number, num_steps, every, episodes_, longest in (
        (3, 100, 20, 3, 60), (3, 50, 20, 3, 20), (0, 100, 20, 5, 20),
        (0, 90, 20, 5, 20), (0, 90, 0, 1, 90), (1, 90, 20, 1, 90)):
      made = plan(number=number)
      self.assertEqual(made.num_episodes(num_steps, every), episodes_)
      self.assertEqual(made.longest(num_steps, every), longest)

  @parameterized.parameters(
      ({'first': 'tfidf'}, "first='tfidf'"),
      ({'positives': 'last'}, 'positives'), ({'combine': 'sum'}, 'combine'),
      ({'per_list': 0}, 'per_list=0'), ({'number': -1}, 'number=-1'),
      ({'alpha': 1.5}, 'alpha=1.5'), ({'depth': 2}, 'depth=2.* 3 that'),
      ({'depth': 4, 'combine': 'weighted'}, 'depth=4.* 6 that'),
      ({'relative_margin': -.1}, 'relative_margin'),
      ({'combine': 'weighted', 'momentum': False}, 'momentum=False'),
      ({'combine': 'weighted', 'beta': 0.}, 'beta=0'))
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      plan(**options)


if __name__ == '__main__':
  absltest.main()
