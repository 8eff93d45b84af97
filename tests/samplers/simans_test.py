"""SimANS draws by its formula, on any number of devices."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from tests import helpers

POOL, A, B, SCALE, NUM_DRAWS = 6, 20.0, -0.1, 5.0, 6000


def draw(mesh, num_queries, positive_row, num_negatives=2, a=A):
  """Returns rows [n, K] for one query asked many times, and its scores [N]."""
  table = helpers.table(mesh)
  batch = helpers.batch(0)
  query = helpers.encode(helpers.params(), batch.query_tokens[:1])
  scores = np.asarray(table.embeddings[:helpers.NUM_TARGETS] @ query[0])
  sampler = samplers.SimANS(num_negatives, POOL, a, B)
  proposal = sampler.propose(
      (), jax.random.key(3), helpers.request(
          jnp.tile(query, (num_queries, 1)), table,
          exclude=np.full((num_queries, 1), batch.target_ids[0]),
          positives=np.full(num_queries, positive_row)),
      types.View(table, lambda rows: rows.embeddings, jnp.float32(SCALE),
                 helpers.scan(mesh)))
  return np.asarray(proposal.rows), scores


def chances_of_pairs(scores, positive, a):
  """Returns {(first, second): chance} by the formula, without replacement."""
  free = scores.copy()
  free[positive] = -np.inf
  pool = np.argsort(-free)[:POOL]
  weights = np.exp(-a * (scores[pool] - scores[positive] - B)**2)
  weights /= weights.sum()
  return {(pool[i], pool[j]): weights[i] * weights[j] / (1 - weights[i])
          for i, j in itertools.permutations(range(POOL), 2)}


def chi_square(rows, chances):
  """Returns the statistic over pairs, and their number."""
  counts = dict.fromkeys(chances, 0)
  for pair in map(tuple, rows.tolist()):
    counts[pair] += 1  # KeyError: a row outside the candidates
  expected = {pair: len(rows) * p for pair, p in chances.items()}
  often = [pair for pair in chances if expected[pair] >= 5]
  return sum((counts[pair] - expected[pair])**2 / expected[pair]
             for pair in often), len(often)


class SimANSTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_of_fewer_rows_than_the_pool_holds_all_may_be_drawn(self):
    """What fills up the pool is never drawn in a row's place."""
    mesh = sharding.make_mesh(1)
    table = tables.create(
        np.eye(5, helpers.DIM, dtype=np.float32), [4, 8, 1, 3, 9], mesh=mesh,
        chunk_rows=64, dtype='float32')
    proposal = samplers.SimANS(5, 16, A, B).propose(
        (), jax.random.key(0), helpers.request(
            jnp.ones((4, helpers.DIM)), table,
            exclude=np.full((4, 1), -1), positives=np.zeros(4, int)),
        types.View(table, lambda rows: rows.embeddings, jnp.float32(SCALE),
                   helpers.scan(mesh)))
    np.testing.assert_array_equal(
        np.sort(proposal.rows, axis=1), np.tile(np.arange(5), (4, 1)))

  @pytest.mark.slow
  def test_pairs_come_with_the_chances_of_the_formula(self):
    positive = int(helpers.batch(0).target_ids[0])
    rows, scores = draw(sharding.make_mesh(1), NUM_DRAWS, positive)
    found, number = chi_square(rows, chances_of_pairs(scores, positive, A))
    self.assertLess(found, number + 4.5 * np.sqrt(2 * number))
    wrong, number = chi_square(rows, chances_of_pairs(scores, positive, A / 2))
    self.assertGreater(wrong, number + 9 * np.sqrt(2 * number))

  @pytest.mark.slow
  def test_without_a_remembered_positive_candidates_are_equal(self):
    positive = int(helpers.batch(0).target_ids[0])
    rows, scores = draw(sharding.make_mesh(1), NUM_DRAWS, -1)
    found, number = chi_square(rows, chances_of_pairs(scores, positive, 0.0))
    self.assertLess(found, number + 4.5 * np.sqrt(2 * number))

  @parameterized.parameters(2, 4, 8)
  @pytest.mark.slow
  def test_devices_do_not_change_a_draw(self, devices):
    positive = int(helpers.batch(0).target_ids[0])
    one, _ = draw(sharding.make_mesh(1), 16, positive)
    many, _ = draw(sharding.make_mesh(devices), 16, positive)
    np.testing.assert_array_equal(one, many)

  def test_needs_candidates_and_a_sharpness(self):
    with self.assertRaisesRegex(ValueError, 'raise pool_size'):
      samplers.SimANS(3, 2, A, B)
    with self.assertRaisesRegex(ValueError, 'simans_a=-1.0 must be at least 0'):
      samplers.SimANS(1, 2, -1.0, B)


if __name__ == '__main__':
  absltest.main()
