"""Batches of one set at a time: how often, and which of its queries."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import stats

from retrieval_jax.data import dataset
from retrieval_jax.data import pipeline
from retrieval_jax.data import tokenization
from retrieval_jax.data import turns

STARTS = np.array([0, 5, 25, 33])  # of query rows; some are of another split
QUERIES = np.array([0, 1, 3, 4, *range(6, 25), *range(25, 30)])
SIZES = {'a': 4, 'b': 19, 'c': 5}
CHANCES = np.array([0.5, 0.2, 0.3])


def make_turns(chances=CHANCES, seed=0):
  return turns.Turns(STARTS, chances, seed)


def make_batches(batch_size=4, **options):
  """Returns TrainBatches in which the positive of query i is target i."""
  store = tokenization.TokenStore(
      np.arange(STARTS[-1])[:, None].astype(np.uint16),
      np.ones([STARTS[-1]], np.int32))
  qrels = dataset.Qrels.from_triples(
      [[query, query, 1] for query in QUERIES])
  return pipeline.TrainBatches(qrels, store, store, **(dict(
      batch_size=batch_size, seed=0, turns=make_turns()) | options))


def sets_of(queries):
  return np.unique(np.searchsorted(STARTS, queries, side='right') - 1)


class ChancesTest(parameterized.TestCase):

  @parameterized.parameters(
      (1., [4 / 28, 19 / 28, 5 / 28]),
      (2., np.sqrt([4, 19, 5]) / np.sqrt([4, 19, 5]).sum()),
      (1e9, [1 / 3] * 3), (1e-3, [0, 1, 0]))
  def test_a_temperature_evens_out_sizes(self, temperature, expected):
    np.testing.assert_allclose(
        turns.chances(SIZES, temperature=temperature), expected, atol=1e-8)

  def test_weights_are_relative(self):
    np.testing.assert_allclose(
        turns.chances(SIZES, (5, 2, 3.)), CHANCES, rtol=1e-12)

  @parameterized.parameters(
      ({'weights': (1, 2)}, r'weights=\(1, 2\).*each of the 3 sets.*a.*b.*c'),
      ({'weights': (1, 2, 0)}, r'weights=\(1, 2, 0\) must be a positive'),
      ({'weights': (1, 2, float('nan'))}, r'weights=.*nan.* must be a pos'),
      ({'temperature': 0}, 'temperature=0 must be positive'),
      ({'weights': (1, 2, 3), 'temperature': 2.}, 'leave one of them out'))
  def test_what_does_not_fit_is_refused(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      turns.chances(SIZES, **options)


class TurnsTest(parameterized.TestCase):

  def draws(self, made, num_steps=20_000):
    return np.array([made.at(step)[0] for step in range(num_steps)])

  def test_proportions_are_the_chances(self):
    """Chi-square at 99.9%; chances that are off by 0.02 fail it."""
    draws = self.draws(make_turns())
    counts = np.bincount(draws, minlength=3)
    self.assertGreater(stats.chisquare(
        counts, CHANCES * len(draws)).pvalue, 0.001)
    self.assertLess(stats.chisquare(
        counts, (CHANCES + [0.02, -0.02, 0]) * len(draws)).pvalue, 0.001)
    # Successive steps are independent of each other.
    pairs = np.histogram2d(draws[:-1], draws[1:], bins=3)[0]
    self.assertGreater(stats.chi2_contingency(pairs).pvalue, 0.001)

  def test_a_turn_counts_the_steps_of_the_set_before(self):
    made = make_turns()
    draws = self.draws(made, 9000)  # over the ends of two blocks
    for step in (0, 1, 17, 4095, 4096, 4097, 8191, 8192, 8999):
      expected = draws[step], (draws[:step] == draws[step]).sum()
      self.assertEqual(made.at(step), expected)
      self.assertEqual(make_turns().at(step), expected)  # asked for first

  def test_the_seed_decides(self):
    draws = [self.draws(make_turns(seed=seed), 100) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    self.assertFalse(np.array_equal(draws[0], draws[2]))


class BatchesTest(parameterized.TestCase):

  def test_a_batch_is_of_one_set(self):
    batches, made, seen = make_batches(), make_turns(), set()
    for step in range(60):
      batch = batches.batch(step)
      self.assertLen(sets_of(batch.query_ids), 1)
      self.assertEqual(sets_of(batch.query_ids)[0], made.at(step)[0])
      np.testing.assert_array_equal(batch.target_ids, batch.query_ids)
      seen.add(made.at(step)[0])
    self.assertLen(seen, 3)
    # Without turns they are not: the test would show nothing.
    mixed = make_batches(turns=None)
    self.assertTrue(any(len(sets_of(mixed.batch(step).query_ids)) > 1
                        for step in range(5)))

  def test_every_set_has_epochs_of_its_own(self):
    batches, made = make_batches(), make_turns()
    visits = {0: [], 1: [], 2: []}
    for step in range(120):
      visits[made.at(step)[0]].extend(batches.batch(step).query_ids)
    for i, size in enumerate(SIZES.values()):
      expected = QUERIES[(STARTS[i] <= QUERIES) & (STARTS[i + 1] > QUERIES)]
      epochs = np.array(visits[i][:len(visits[i]) // size * size]).reshape(
          -1, size)
      self.assertGreater(len(epochs), 2)
      np.testing.assert_array_equal(
          np.sort(epochs, axis=1), np.tile(expected, (len(epochs), 1)))
      self.assertGreater(len({tuple(epoch) for epoch in epochs}), 1)

  @parameterized.parameters(1, 2, 4)
  def test_processes_share_the_batch_of_a_set(self, num_shards):
    whole = make_batches()
    for step in range(20):
      np.testing.assert_array_equal(
          whole.batch(step).query_ids, np.concatenate([
              make_batches(num_shards=num_shards, shard_index=i).batch(
                  step).query_ids for i in range(num_shards)]))

  def test_one_set_alone_trains_as_no_set(self):
    alone = turns.Turns(np.array([0, STARTS[-1]]), np.ones(1), 0)
    for step in range(20):
      np.testing.assert_array_equal(
          make_batches(turns=alone).batch(step).query_ids,
          make_batches(turns=None).batch(step).query_ids)

  def test_questions_take_turns_too(self):
    store = tokenization.TokenStore(
        np.zeros((STARTS[-1], 1), np.uint16), np.ones([STARTS[-1]], np.int32))
    questions = pipeline.QuestionBatches(
        QUERIES, store, batch_size=4, seed=0, turns=make_turns())
    for step in range(20):
      np.testing.assert_array_equal(questions.batch(step).query_ids,
                                    make_batches().batch(step).query_ids)


if __name__ == '__main__':
  absltest.main()
