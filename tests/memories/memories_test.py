"""What each memory alone does; tests/conformance_test.py has the rest."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax import memories
from retrieval_jax import sharding
from tests import helpers

N = 10


class FirstIdsTest(absltest.TestCase):

  def test_a_corpus_begins_with_all_targets(self):
    np.testing.assert_array_equal(
        memories.Corpus(N, 'float32', 4).first_ids(N, seed=3), np.arange(N))

  def test_nothing_begins_with_none(self):
    self.assertEmpty(memories.Nothing().first_ids(N, seed=3))

  def test_a_ring_begins_with_none_unless_it_is_prefilled(self):
    self.assertEmpty(helpers.ring(4).first_ids(N, seed=3))

  def test_a_prefilled_ring_begins_with_random_targets_in_order(self):
    """By a generator of its own: the seed alone also chooses other things."""
    found = helpers.ring(4, prefill=True).first_ids(N, seed=3)
    np.testing.assert_array_equal(found, np.sort(
        np.random.default_rng([3, 1]).choice(N, 4, replace=False)))


class CreateTest(parameterized.TestCase):

  @parameterized.parameters(
      (memories.Corpus(N, 'float32', 4), range(N)),
      (helpers.ring(N), [3, 1, 8]))
  def test_rows_are_of_step_0_unless_another_is_said(self, memory, ids):
    for options, step in (({}, 0), ({'step': 7}, 7)):
      table = memory.create(
          np.ones((len(ids), 2), np.float32), list(ids), dim=2,
          mesh=sharding.make_mesh(1), **options)
      np.testing.assert_array_equal(
          np.asarray(table.written)[np.asarray(table.ids) >= 0],
          [step] * len(ids))


  @parameterized.parameters(1, 4)
  def test_a_corpus_without_copies_leaves_their_rows_empty(self, devices):
    ids = [0, 1, 4, 5, 9]
    embeddings = np.arange(10, dtype=np.float32).reshape(5, 2)
    table = memories.Corpus(N, 'float32', 4).create(
        embeddings, ids, dim=2, mesh=sharding.make_mesh(devices))
    self.assertTrue(table.rows_are_ids)
    self.assertFalse(table.full)
    np.testing.assert_array_equal(
        table.ids[:N], [0, 1, -1, -1, 4, 5, -1, -1, -1, 9])
    np.testing.assert_array_equal(table.embeddings[np.array(ids)], embeddings)


class NothingTest(parameterized.TestCase):

  @parameterized.parameters(1, 4)
  def test_its_table_is_the_same_on_every_mesh(self, devices):
    table = memories.Nothing().create(
        None, (), dim=7, mesh=sharding.make_mesh(devices))
    self.assertEqual(table.embeddings.shape, (512, 1))
    self.assertEqual(table.num_slots, 0)


if __name__ == '__main__':
  absltest.main()
