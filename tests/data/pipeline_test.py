"""Tests of the training batches."""

import dataclasses
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data import pipeline
from retrieval_jax.data import tokenization

NUM_QUERIES, NUM_TARGETS = 7, 10
# Query i has positive i; query 3 also 8 and 9; query 2 has 9 masked.
QRELS = dataset.Qrels.from_triples(
    [[i, i, 1] for i in range(NUM_QUERIES)]
    + [[3, 8, 2], [3, 9, 1], [2, 9, -1], [2, 0, 0]])


def store(n, offset):
  """Token stores whose row i holds offset + i."""
  tokens = np.repeat(np.arange(n)[:, None], 3, axis=1)
  return tokenization.TokenStore(
      (tokens + offset).astype(np.uint16), np.full([n], 3, np.int32))


# Query 3: targets 0 to 6 but 3, which is relevant as 8 is; query 2: 9, which is
# junk, 0 and 1; query 5: none.
CANDIDATES = dataset.CandidatePairs(
    np.array([2] * 3 + [3] * 8, np.int32),
    np.array([0, 1, 9, *range(7), 8], np.int32),
    np.array([1, np.nan, 2, *range(10, 17), 30], np.float32))


def make(batch_size=4, seed=0, qrels=QRELS, **kwargs):
  return pipeline.TrainBatches(
      qrels, store(NUM_QUERIES, 100), store(NUM_TARGETS, 200),
      batch_size=batch_size, seed=seed, **kwargs)


def fields(batch):
  values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
  candidates = values.pop('candidates')
  return values | ({} if candidates is None else dataclasses.asdict(candidates))


def assert_equal(a, b):
  for name, value in fields(a).items():
    np.testing.assert_array_equal(value, fields(b)[name], name)


class TrainBatchesTest(parameterized.TestCase):

  def test_fields_belong_together(self):
    for step in range(10):
      batch = make().batch(step)
      for name, value in fields(batch).items():
        self.assertEqual(value.dtype, np.int32, name)
      np.testing.assert_array_equal(batch.query_tokens[:, 0],
                                    100 + batch.query_ids)
      np.testing.assert_array_equal(batch.target_tokens[:, 0],
                                    200 + batch.target_ids)
      np.testing.assert_array_equal(batch.known_positives,
                                    QRELS.padded_known(batch.query_ids))
      for query, target in zip(batch.query_ids, batch.target_ids):
        self.assertIn(target, QRELS.positives(query))

  def test_every_epoch_has_each_query_once_in_its_own_order(self):
    ids = np.concatenate([make().batch(t).query_ids for t in range(7)])
    epochs = ids.reshape(-1, NUM_QUERIES)
    for epoch in epochs:
      self.assertCountEqual(epoch, range(NUM_QUERIES))
    self.assertLen({tuple(epoch) for epoch in epochs}, 4)

  def test_the_stream_does_not_depend_on_the_batch_size(self):
    streams = [np.concatenate([make(b).batch(t).target_ids
                               for t in range(36 // b)]) for b in (1, 4, 36)]
    np.testing.assert_array_equal(streams[0], streams[1])
    np.testing.assert_array_equal(streams[0], streams[2])

  @parameterized.product(num_shards=(1, 2, 4), num_candidates=(0, 3))
  def test_processes_share_the_same_global_batch(
      self, num_shards, num_candidates):
    options = dict(candidates=CANDIDATES, num_candidates=num_candidates)
    for step in range(5):
      shards = [make(num_shards=num_shards, shard_index=p, **options)
                .batch(step) for p in range(num_shards)]
      whole = fields(make(**options).batch(step))
      for name, value in whole.items():
        np.testing.assert_array_equal(value, np.concatenate(
            [fields(shard)[name] for shard in shards]))

  def test_the_seed_changes_order_and_picks(self):
    self.assertFalse(np.array_equal(make(28).batch(0).query_ids,
                                    make(28, seed=1).batch(0).query_ids))
    assert_equal(make(28, seed=-1).batch(3), make(28, seed=-1).batch(3))

  def test_picks_are_uniform_over_positives(self):
    batch = make(7 * 3000).batch(0)
    counts = np.bincount(batch.target_ids[batch.query_ids == 3],
                         minlength=NUM_TARGETS)
    self.assertEqual(counts.sum(), 3000)
    # Chi-square with 2 degrees of freedom, 99.9%: 13.8. Picking by the
    # epoch's parity, say, would give thousands.
    expected = 1000
    self.assertLess(((counts[[3, 8, 9]] - expected)**2 / expected).sum(), 13.8)

  def test_the_first_positive_alone(self):
    batch = make(7 * 20, positive='first').batch(0)
    for query, target in zip(batch.query_ids, batch.target_ids):
      self.assertEqual(target, QRELS.positives(query)[0])

  def test_positives_take_turns(self):
    """Whatever the seed begins with, and each once before any again."""
    firsts = set()
    for seed in range(8):
      batch = make(7 * 6, seed=seed, positive='rotating').batch(0)
      picked = batch.target_ids[batch.query_ids == 3]  # of six epochs
      place = [3, 8, 9].index(picked[0])
      np.testing.assert_array_equal(
          picked, np.roll([3, 8, 9] * 2, -place))
      firsts.add(picked[0])
    self.assertGreater(len(firsts), 1)

  def test_candidates_are_distinct_negatives_with_their_scores(self):
    batches = make(28, candidates=CANDIDATES, num_candidates=4)
    seen = set()
    for step in range(10):
      batch = batches.batch(step)
      candidates = batch.candidates
      self.assertEqual(candidates.ids.dtype, np.int32)
      self.assertEqual(candidates.scores.dtype, np.float32)
      self.assertEqual(candidates.positive_scores.dtype, np.float32)
      for query, target, ids, scores, of_target in zip(
          batch.query_ids, batch.target_ids, candidates.ids,
          candidates.scores, candidates.positive_scores):
        listed = ids[ids >= 0]
        self.assertLen(set(listed), len(listed))
        if query == 3:
          self.assertLen(listed, 4)
          self.assertContainsSubset(listed, [0, 1, 2, 4, 5, 6])
          np.testing.assert_array_equal(scores, 10 + ids)
          self.assertEqual(repr(float(of_target)),
                           {3: '13.0', 8: '30.0', 9: 'nan'}[target])
          seen.add(tuple(ids))
        elif query == 2:
          self.assertEqual(set(listed), {0, 1})
          self.assertCountEqual(scores.astype(str), ['1.0', *['nan'] * 3])
          self.assertTrue(np.isnan(of_target))
        else:
          self.assertEmpty(listed)
          self.assertTrue(np.isnan(scores).all() and np.isnan(of_target))
    self.assertGreater(len(seen), 20)  # of 40 visits

  def test_candidates_are_picked_uniformly_and_by_seed(self):
    make_one = lambda seed: make(
        7 * 3000, seed, candidates=CANDIDATES, num_candidates=2).batch(0)
    batch = make_one(0)
    ids = batch.candidates.ids[batch.query_ids == 3]
    counts = np.bincount(ids.ravel(), minlength=7)
    # A count is binomial, 3000 visits at 2 / 6; 4.5 standard deviations.
    bound = 4.5 * np.sqrt(3000 * (1 / 3) * (2 / 3))
    self.assertLess(np.abs(counts[[0, 1, 2, 4, 5, 6]] - 1000).max(), bound)
    other = make_one(1)
    self.assertFalse(np.array_equal(
        ids, other.candidates.ids[other.query_ids == 3]))

  def test_candidates_leave_the_rest_of_the_stream_alone(self):
    plain, other = make(), make(candidates=CANDIDATES, num_candidates=2)
    self.assertIsNone(plain.batch(3).candidates)
    assert_equal(plain.batch(3), dataclasses.replace(
        other.batch(3), candidates=None))

  def test_first_places_are_uniform_over_queries(self):
    first = make(1)
    counts = np.bincount([first.batch(7 * epoch).query_ids[0]
                          for epoch in range(2100)], minlength=7)
    # Chi-square with 6 degrees of freedom, 99.9%: 22.5.
    self.assertLess(((counts - 300)**2 / 300).sum(), 22.5)

  @parameterized.parameters(0, 5)
  def test_iterating_equals_random_access(self, start):
    batches = make(candidates=CANDIDATES, num_candidates=2)
    for step, batch in zip(range(start, start + 12), batches.iterate(start)):
      assert_equal(batch, batches.batch(step))

  def test_iterating_passes_the_end_of_epochs_for_long(self):
    for batch in itertools.islice(make(32).iterate(0), 40):
      self.assertLen(batch.query_ids, 32)

  def test_query_without_positive_is_an_error_at_construction(self):
    qrels = dataset.Qrels.from_triples([[0, 0, 1], [1, 2, 0], [4, 2, -1]])
    with self.assertRaisesRegex(errors.DataError,
                                r'2 queries .* no positive.* are 1, 4'):
      make(qrels=qrels)
    with self.assertRaisesRegex(errors.DataError, 'got none'):
      make(qrels=dataset.Qrels.from_triples([]))

  def test_sizes_that_do_not_fit_are_errors(self):
    with self.assertRaisesRegex(ValueError, 'batch_size=4 .* 3 processes'):
      make(num_shards=3)
    with self.assertRaisesRegex(
        ValueError, r"data\.positive='last' is not one of .*'rotating'"):
      make(positive='last')
    with self.assertRaisesRegex(ValueError, r'shard_index=2 must be in \[0, 2'):
      make(num_shards=2, shard_index=2)
    with self.assertRaisesRegex(ValueError, 'target_tokens has 10 rows'):
      make(qrels=dataset.Qrels.from_triples([[0, 10, 1]]))
    for options in (dict(num_candidates=1), dict(
        candidates=CANDIDATES, num_candidates=-1)):
      with self.assertRaisesRegex(ValueError, 'num_candidates=-?1 must be 0'):
        make(**options)
    with self.assertRaisesRegex(ValueError, 'step=-1'):
      make().batch(-1)


if __name__ == '__main__':
  absltest.main()
