"""The table of remembered embeddings: what each function does to each row."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax import sharding
from retrieval_jax import table


def _rows(*values, dim=2):
  return jnp.tile(jnp.asarray(values, jnp.float32)[:, None], (1, dim))


def _ids(*values):
  return jnp.asarray(values, jnp.int32)


class CreateTest(parameterized.TestCase):

  @parameterized.product(devices=(1, 4), dtype=('float32', 'bfloat16'))
  def test_corpus_table_is_padded_with_empty_rows(self, devices, dtype):
    mesh = sharding.make_mesh(devices)
    targets = np.arange(10., dtype=np.float32).reshape(5, 2)
    made = table.from_embeddings(targets, mesh, 4, dtype, step=3)
    size = sharding.capacity(5, mesh, 4)
    self.assertEqual(made.embeddings.shape, (size, 2))
    self.assertEqual(made.embeddings.dtype, dtype)
    self.assertEqual(made.embeddings.sharding, sharding.rows(mesh))
    np.testing.assert_array_equal(
        made.ids, list(range(5)) + [-1] * (size - 5))
    np.testing.assert_array_equal(
        made.embeddings[:5].astype(jnp.float32), targets)
    np.testing.assert_array_equal(made.embeddings[5:], 0.)
    self.assertTrue(made.rows_are_ids)
    self.assertEqual(table.num_live(made), 5)
    np.testing.assert_array_equal(
        table.age(made, 10), [7] * 5 + [-1] * (size - 5))

  def test_duplicate_ids_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'ids has duplicates'):
      table.create(np.zeros((2, 3)), [4, 4], mesh=sharding.make_mesh(1),
                   chunk_rows=2, dtype='float32')

  @pytest.mark.slow
  def test_rows_that_are_ids_may_stay_empty(self):
    made = table.create(
        np.eye(5), [0, -1, 2, 3, -1], mesh=sharding.make_mesh(2), chunk_rows=4,
        dtype='float32', rows_are_ids=True)
    self.assertEqual((made.full, table.num_live(made)), (False, 3))
    np.testing.assert_array_equal(
        table.live_rows(made, jnp.arange(3)), [0, 2, 3])
    np.testing.assert_array_equal(
        table.rows_of(made, jnp.array([1, 2, 4, -1])), [-1, 2, -1, -1])
    rows = table.systematic_rows(jax.random.key(0), made, 4)
    np.testing.assert_array_equal(np.sort(rows), [-1, 0, 2, 3])
    pushed = table.push(made, jnp.array([1, 3]), jnp.ones((2, 5)), 7)
    np.testing.assert_array_equal(pushed.ids, made.ids)  # 1 is unknown to it
    np.testing.assert_array_equal(pushed.written[:5], [0, 0, 0, 7, 0])

  def test_false_claim_that_rows_are_ids_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'rows_are_ids=True needs'):
      table.create(np.zeros((2, 3)), [1, 0], mesh=sharding.make_mesh(1),
                   chunk_rows=2, dtype='float32', rows_are_ids=True)


class LiveRowsTest(parameterized.TestCase):

  def gappy(self, mesh):
    """Returns a table whose live rows are 0, 2, 3, 5 and 9 of 64."""
    ids = np.full(12, -1)
    ids[[0, 2, 3, 5, 9]] = [7, 1, 8, 2, 4]
    return table.create(np.ones((12, 2)), ids, mesh=mesh, chunk_rows=16,
                        dtype='float32')

  @parameterized.parameters(1, 4)
  def test_ranks_count_live_rows_wherever_they_are(self, devices):
    made = self.gappy(sharding.make_mesh(devices))
    self.assertEqual(table.num_live(made), 5)
    np.testing.assert_array_equal(
        table.live_rows(made, jnp.array([[0, 4], [1, 3]])), [[0, 9], [2, 5]])

  def test_a_ring_counts_what_it_holds_not_what_it_could(self):
    ring = table.empty(6, 2, mesh=sharding.make_mesh(1), chunk_rows=4,
                       dtype='float32', replacement='lru')
    self.assertEqual(table.num_live(ring), 0)

  @parameterized.product(corpus=(True, False), devices=(1, 4))
  def test_systematic_rows_are_distinct_and_equally_likely(
      self, corpus, devices):
    """2 of 5 live rows, 500 times: 200 each, with a deviation below 12."""
    mesh = sharding.make_mesh(devices)
    live = range(5) if corpus else (0, 2, 3, 5, 9)
    made = table.from_embeddings(
        np.ones((5, 2), np.float32), mesh, 16, 'float32') if corpus else (
            self.gappy(mesh))
    keys = jax.random.split(jax.random.key(0), 500)
    rows = np.asarray(jax.vmap(
        lambda key: table.systematic_rows(key, made, 2))(keys))
    self.assertTrue((rows[:, 0] != rows[:, 1]).all())
    found, counts = np.unique(rows, return_counts=True)
    self.assertEqual(found.tolist(), list(live))
    self.assertLess(np.abs(counts - 200).max(), 48)  # four deviations

  def test_of_fewer_live_rows_than_asked_for_all_come_out(self):
    rows = table.systematic_rows(
        jax.random.key(1), self.gappy(sharding.make_mesh(1)), 8)
    self.assertEqual(sorted(rows.tolist()), [-1, -1, -1, 0, 2, 3, 5, 9])


@functools.cache
def _jitted(name):
  return jax.jit(getattr(table, name))


class WriteTest(parameterized.TestCase):

  @parameterized.parameters(1, 4)
  def test_write_drops_minus_one_and_lets_the_last_duplicate_win(self, devices):
    mesh = sharding.make_mesh(devices)
    before = table.from_embeddings(np.zeros((8, 2)), mesh, 2, 'float32')
    after = _jitted('write')(
        before, _ids(6, -1, 2, 6, -1), _rows(1, 2, 3, 4, 5), 9)
    np.testing.assert_array_equal(
        after.embeddings[:, 0], [0, 0, 3, 0, 0, 0, 4, 0])
    np.testing.assert_array_equal(after.written, [0, 0, 9, 0, 0, 0, 9, 0])
    np.testing.assert_array_equal(after.ids, before.ids)
    self.assertEqual(after.embeddings.sharding, sharding.rows(mesh))

  def test_mismatched_embeddings_name_the_argument(self):
    before = table.from_embeddings(
        np.zeros((8, 2)), sharding.make_mesh(1), 2, 'float32')
    with self.assertRaisesRegex(ValueError, 'embeddings has D=3.*D=2'):
      table.write(before, _ids(1), _rows(1, dim=3), 0)


class PushTest(parameterized.TestCase):

  def _push_all(self, devices, *pushes):
    mesh = sharding.make_mesh(devices)
    ring = table.empty(4, 2, mesh, 1, 'float32')
    for step, (ids, values) in enumerate(pushes):
      ring = _jitted('push')(ring, _ids(*ids), _rows(*values), step)
    return ring

  @parameterized.parameters(1, 4)
  def test_empty_rows_then_oldest_rows_lowest_first(self, devices):
    ring = self._push_all(
        devices, ((10, 11), (1, 2)), ((12,), (3,)), ((13, 14), (4, 5)))
    np.testing.assert_array_equal(ring.ids, [14, 11, 12, 13])
    np.testing.assert_array_equal(ring.embeddings[:, 0], [5, 2, 3, 4])
    np.testing.assert_array_equal(ring.written, [2, 0, 1, 2])

  def test_known_id_is_overwritten_in_its_row_and_not_given_away(self):
    ring = self._push_all(
        1, ((10, 11), (1, 2)), ((12, 13), (3, 4)), ((20, 10, 21), (5, 6, 7)))
    np.testing.assert_array_equal(ring.ids, [10, 20, 21, 13])
    np.testing.assert_array_equal(ring.embeddings[:, 0], [6, 5, 7, 4])

  def test_repeated_id_counts_once_and_minus_one_is_ignored(self):
    ring = self._push_all(1, ((10, -1, 10, 11), (1, 2, 3, 4)))
    np.testing.assert_array_equal(ring.ids, [10, 11, -1, -1])
    np.testing.assert_array_equal(ring.embeddings[:2, 0], [3, 4])

  @parameterized.product(replacement=('lru', 'fifo'), prefilled=(False, True))
  def test_random_writes_and_pushes_equal_a_slow_reference(
      self, replacement, prefilled):
    rng = np.random.default_rng(0)
    mesh = sharding.make_mesh(2)
    ids, values = [-1] * 8, [0.] * 8
    # Under 'fifo' what was there before step 0 leaves before what came in it.
    written, inserted = [0] * 8, [-1] * 8
    clock = written if replacement == 'lru' else inserted
    ring = table.empty(8, 2, mesh, 2, 'float32', replacement)
    if prefilled:
      ids = list(range(20, 28))
      ring = table.create(np.zeros((8, 2)), ids, mesh=mesh, chunk_rows=2,
                          dtype='float32', replacement=replacement)
    for step in range(30):
      drawn = rng.integers(-1, 8, 3)
      drawn = np.where(np.asarray(ids)[drawn] >= 0, drawn, -1)
      fresh = rng.normal(size=3).astype(np.float32)
      ring = _jitted('write')(ring, _ids(*drawn), _rows(*fresh), step)
      for row, value in zip(drawn, fresh):
        if row >= 0:
          values[row], written[row] = value, step
      pushed = rng.integers(-1, 14, 5)
      fresh = rng.normal(size=5).astype(np.float32)
      ring = _jitted('push')(ring, _ids(*pushed), _rows(*fresh), step)
      last = {i: v for i, v in zip(pushed, fresh) if i >= 0}
      order = [i for n, i in enumerate(pushed)
               if i >= 0 and i not in pushed[n + 1:]]
      taken = [ids.index(i) for i in order if i in ids]
      free = sorted((r for r in range(8) if r not in taken),
                    key=lambda r: (ids[r] >= 0, clock[r], r))
      rows = [ids.index(i) if i in ids else None for i in order]
      for i, row in zip(order, rows):
        if row is None:
          row = free.pop(0)
          inserted[row] = step
        ids[row], values[row], written[row] = i, last[i], step
      np.testing.assert_array_equal(ring.ids, ids)
      np.testing.assert_array_equal(ring.written, written)
      if replacement == 'fifo':
        np.testing.assert_array_equal(ring.inserted, inserted)
      np.testing.assert_allclose(ring.embeddings[:, 0], values)
      self.assertEqual(len(set(ids) - {-1}), sum(i >= 0 for i in ids))

  @parameterized.parameters(('lru', [10, 11, 20]), ('fifo', [20, 11, 12]))
  def test_a_row_written_again_is_young_for_lru_alone(
      self, replacement, expected):
    ring = table.empty(3, 2, sharding.make_mesh(1), 1, 'float32', replacement)
    for step, i in enumerate((10, 11, 12)):
      ring = _jitted('push')(ring, _ids(i), _rows(1), step)
    ring = _jitted('write')(ring, _ids(0), _rows(2), 3)  # row 0 holds id 10
    ring = _jitted('push')(ring, _ids(11), _rows(3), 4)  # is there already
    np.testing.assert_array_equal(ring.written, [3, 4, 2])
    ring = _jitted('push')(ring, _ids(20), _rows(4), 5)
    np.testing.assert_array_equal(ring.ids, expected)

  def test_an_unknown_replacement_is_refused(self):
    with self.assertRaisesRegex(ValueError, "'lifo' is not one of"):
      table.empty(4, 2, sharding.make_mesh(1), 1, 'float32', 'lifo')

  def test_corpus_table_keeps_every_id_in_its_row(self):
    before = table.from_embeddings(
        np.zeros((3, 2)), sharding.make_mesh(1), 4, 'float32')
    after = _jitted('push')(before, _ids(2, 3, 99, -1), _rows(1, 2, 3, 4), 5)
    np.testing.assert_array_equal(after.embeddings[:, 0], [0, 0, 1, 0])
    np.testing.assert_array_equal(after.ids, before.ids)

  def test_pushing_more_than_the_ring_holds_is_refused(self):
    with self.assertRaisesRegex(ValueError, '5 targets .* 4 rows'):
      self._push_all(1, ((1, 2, 3, 4, 5), (1, 2, 3, 4, 5)))


class LookUpTest(absltest.TestCase):

  def test_rows_of_finds_rows_in_both_memories(self):
    mesh = sharding.make_mesh(2)
    ring = table.create(np.zeros((3, 2)), [7, -1, 5], mesh=mesh, chunk_rows=2,
                        dtype='float32')
    corpus = table.from_embeddings(np.zeros((3, 2)), mesh, 2, 'float32')
    wanted = jnp.asarray([[5, 7], [-1, 6]], jnp.int32)
    np.testing.assert_array_equal(
        _jitted('rows_of')(ring, wanted), [[2, 0], [-1, -1]])
    np.testing.assert_array_equal(
        _jitted('rows_of')(corpus, _ids(2, 3, -1, 9, 0)), [2, -1, -1, -1, 0])

  def test_only_some_targets_are_left(self):
    mesh = sharding.make_mesh(2)
    ring = table.create(np.zeros((3, 2)), [7, -1, 5], mesh=mesh, chunk_rows=2,
                        dtype='float32')
    corpus = table.from_embeddings(np.zeros((3, 2)), mesh, 2, 'float32')
    np.testing.assert_array_equal(
        _jitted('only')(ring, 5, 7).ids, [-1, -1, 5, -1])
    part = _jitted('only')(corpus, 1, 3)
    np.testing.assert_array_equal(part.ids, [-1, 1, 2, -1])
    self.assertEqual(table.num_live(part), 2)
    np.testing.assert_array_equal(table.live_rows(part, _ids(0, 1)), [1, 2])
    np.testing.assert_array_equal(
        table.rows_of(part, _ids(0, 1, 2)), [-1, 1, 2])

  def test_take_marks_missing_rows(self):
    ring = table.create(np.eye(3), [7, 8, 5], mesh=sharding.make_mesh(1),
                        chunk_rows=4, dtype='float32', step=2)
    part = _jitted('take')(ring, jnp.asarray([[2], [-1]], jnp.int32))
    np.testing.assert_array_equal(part.ids, [[5], [-1]])
    np.testing.assert_array_equal(part.embeddings[0, 0], [0, 0, 1])
    self.assertTrue(np.all(np.isfinite(part.embeddings)))

  def test_drift_is_relative_to_the_fresh_embedding(self):
    np.testing.assert_allclose(
        table.drift(jnp.asarray([[0., 3.], [1., 1.]]),
                    jnp.asarray([[0., 2.], [1., 1.]])), [0.25, 0.])

  def test_drift_reproduces_the_published_staleness(self):
    """Values of the tests of the negative cache's public code."""
    np.testing.assert_allclose(
        table.drift(jnp.asarray([[1.], [-1.]]), jnp.asarray([[2.], [-3.]])),
        [1 / 4, 4 / 9], rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
