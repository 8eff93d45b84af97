"""Each sampler draws what it says; what all promise: tests/conformance_test."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import samplers
from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.objectives import estimators
from retrieval_jax.samplers import proposals
from tests import helpers

SCALE = 5.0


def view(table, mesh, scale=SCALE):
  return types.View(table, lambda rows: rows.embeddings.astype(jnp.float32),
                    jnp.float32(scale), helpers.scan(mesh))


def propose(sampler, mesh, table=None, key=0):
  table = helpers.table(mesh) if table is None else table
  batch = helpers.batch(0)
  request = helpers.request(
      helpers.encode(helpers.params(), batch.query_tokens), table,
      exclude=batch.known_positives, positives=batch.target_ids)
  return jax.jit(lambda key: sampler.propose(
      (), key, request, view(table, mesh)))(jax.random.key(key))


class ProposalTest(absltest.TestCase):

  @pytest.mark.slow
  def test_what_is_masked_has_no_row_no_id_and_no_logit(self):
    """An excluded row, an empty one, none at all, and one that stays."""
    mesh = sharding.make_mesh(1)
    table = tables.create(
        np.eye(3, helpers.DIM), [4, -1, 6], mesh=mesh,
        chunk_rows=helpers.CHUNK_ROWS, dtype='float32')
    request = helpers.request(
        np.eye(3, helpers.DIM, dtype=np.float32)[2:], table, exclude=[[4]])
    rows = jnp.array([[0, 1, -1, 2]])
    proposal = proposals.described(
        rows, jnp.full((1, 4), -2.0), request, view(table, mesh))
    np.testing.assert_array_equal(proposal.mask, [[False, False, False, True]])
    np.testing.assert_array_equal(proposal.rows, [[-1, -1, -1, 2]])
    np.testing.assert_array_equal(proposal.ids, [[-1, -1, -1, 6]])
    np.testing.assert_array_equal(proposal.log_q, [[0, 0, 0, -2]])
    np.testing.assert_array_equal(
        proposal.logits, [[-np.inf, -np.inf, -np.inf, SCALE]])
    np.testing.assert_array_equal(proposal.log_z, [np.nan])
    found = proposals.scored(
        jnp.array([[2, -1]]), jnp.array([[SCALE, -np.inf]]), view(table, mesh),
        jnp.array([7.0]))
    np.testing.assert_array_equal(found.ids, [[6, -1]])
    np.testing.assert_array_equal(found.log_q, [[SCALE - 7, 0]])
    np.testing.assert_array_equal(found.mask, [[True, False]])

  def test_what_samplers_give(self):
    """What the estimators may rely on."""
    for kind, gives in (
        (samplers.NoNegatives, {}), (samplers.Uniform, {'log_q'}),
        (samplers.StochasticNegativeMining, {}), (samplers.TopK, {}),
        (samplers.Exhaustive, {'every_row'}), (samplers.SimANS, {}),
        (samplers.Gumbel, {'log_q', 'log_z'}),
        (samplers.ShortlistGumbel, {'log_z'}),
        (samplers.BucketedGumbel, {'log_z'})):
      self.assertEqual(kind.gives, set(gives), kind)

  def test_which_samplers_need_no_first_pass_over_the_targets(self):
    blind = (samplers.NoNegatives, samplers.Uniform, samplers.Exhaustive)
    for kind in (*blind, samplers.StochasticNegativeMining, samplers.TopK,
                 samplers.Tree,
                 samplers.SimANS, samplers.Gumbel, samplers.ShortlistGumbel,
                 samplers.BucketedGumbel):
      self.assertEqual(kind.reads_embeddings, kind not in blind, kind)


class ShortlistTest(parameterized.TestCase):

  @parameterized.parameters(1, 2)
  @pytest.mark.slow
  def test_reproduces_the_published_bucketed_loss(self, devices):
    """Golden values of the negative cache's public code, its top_k = 2.

    Of {1, -1, 3, 2} the buckets {1, -1} and {3, 2} keep {1, 3} for a positive
    query and {-1, 2} for a negative one, whose two best are -1 and 1.
    """
    mesh = sharding.make_mesh(devices)
    half = 32 * devices  # rows of a bucket
    values, ids = np.zeros((2 * half, 1)), np.full(2 * half, -1)
    rows = [0, 1, half, half + 1]
    values[rows, 0], ids[rows] = [1, -1, 3, 2], range(4)
    table = tables.create(
        values, ids, mesh=mesh, chunk_rows=64, dtype='float32')
    queries = jnp.array([[-1.0], [1.0]])
    proposal = samplers.BucketedGumbel(2, 2).propose(
        (), jax.random.key(0), helpers.request(queries, table),
        view(table, mesh, 1.0))
    np.testing.assert_array_equal(
        np.sort(proposal.rows, axis=1), [[1, half + 1], [0, half]])
    _, info = estimators.cache_gradient(
        2 * queries[:, 0], proposal.logits, proposal.mask, proposal)
    np.testing.assert_allclose(
        info['nll'], [3.0949229, 1.407605964], rtol=1e-6)

  @parameterized.product(
      devices=(1, 2, 4, 8),
      buckets=((8, 64), (32, 16), (7, 80), (300, 2), (600, 1)))
  def test_each_bucket_gives_its_best_row(self, devices, buckets):
    """Of 512 rows, however many devices they are on and pad them."""
    num_buckets, size = buckets
    rng = np.random.default_rng(0)
    mesh = sharding.make_mesh(devices)
    embeddings = rng.normal(size=(512, 4)).astype(np.float32)
    embeddings[300] = embeddings[299]  # the first of equal ones
    queries = rng.normal(size=(3, 4)).astype(np.float32)
    ids = np.where(np.arange(512) % 5, np.arange(512), -1)
    ids[64:128] = -1  # a whole bucket, or four
    logits = 2.0 * queries @ embeddings.T
    logits[:, ids < 0] = -np.inf
    exclude = np.argmax(logits, axis=1)[:, None].astype(np.int32)
    logits[np.arange(3), exclude[:, 0]] = -np.inf
    table = tables.create(
        embeddings, ids, mesh=mesh, chunk_rows=64, dtype='float32')
    found, rows = jax.jit(lambda: scoring.bucket_maxima(
        queries, view(table, mesh, 2.0), num_buckets,
        exclude_rows=jnp.asarray(exclude)))()
    padded = np.full((3, num_buckets * size), -np.inf)
    padded[:, :512] = logits
    wanted = padded.reshape(3, num_buckets, size)
    np.testing.assert_allclose(found, wanted.max(axis=2), rtol=1e-5)
    best = wanted.argmax(axis=2) + np.arange(num_buckets) * size
    np.testing.assert_array_equal(
        rows, np.where(np.isinf(wanted.max(axis=2)), -1, best))

  def test_fewer_rows_than_draws_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'shortlist=2 is smaller than'):
      samplers.ShortlistGumbel(3, 2)

  @pytest.mark.slow
  def test_draws_follow_the_softmax_over_the_best_rows(self):
    """Chi-square of the ordered pairs of 8,192 draws from three of 56 rows."""
    mesh = sharding.make_mesh(1)
    logits = np.linspace(-3, 0, helpers.NUM_TARGETS)
    best = np.array([7, 20, 33])
    logits[best] = [1.0, 2.0, 1.5]
    table = tables.from_embeddings(
        logits[:, None], mesh=mesh, chunk_rows=64, dtype='float32')
    proposal = samplers.ShortlistGumbel(2, 3).propose(
        (), jax.random.key(0), helpers.request(jnp.ones((8192, 1)), table),
        view(table, mesh, 1.0))
    log_z = np.logaddexp.reduce(logits[best])
    np.testing.assert_allclose(proposal.log_z, log_z, rtol=1e-6)
    p = np.exp(logits[best] - log_z)
    expected = 8192 * p[:, None] * p[None] / (1 - p[:, None])
    counts = np.zeros((3, 3))
    np.add.at(counts, tuple(np.searchsorted(best, proposal.rows).T), 1)
    self.assertTrue(np.isin(proposal.rows, best).all())
    cells = ~np.eye(3, dtype=bool)
    chi = ((counts - expected)[cells]**2 / expected[cells]).sum()
    self.assertLess(chi, 20.5)  # 5 degrees of freedom, 99.9%


class DrawTest(absltest.TestCase):

  def test_exhaustive_deals_out_every_row_once(self):
    mesh = sharding.make_mesh(1)
    proposal = propose(samplers.Exhaustive(helpers.NUM_TARGETS, 8), mesh)
    rows = np.asarray(proposal.rows)
    self.assertEqual(sorted(rows[rows >= 0].tolist()),
                     list(range(helpers.NUM_TARGETS)))

  def test_exhaustive_refuses_to_leave_rows_out(self):
    mesh = sharding.make_mesh(1)
    with self.assertRaisesRegex(
        ValueError, 'made for 8 queries and 16 rows, and got 8 and 56'):
      propose(samplers.Exhaustive(16, 8), mesh)

  def test_top_k_takes_the_highest_logits(self):
    mesh = sharding.make_mesh(2)
    batch = helpers.batch(0)
    queries = helpers.encode(helpers.params(), batch.query_tokens)
    logits = np.array(
        SCALE * queries @ helpers.table(mesh).embeddings[
            :helpers.NUM_TARGETS].T)
    for b, known in enumerate(batch.known_positives):
      logits[b, known[known >= 0]] = -np.inf
    np.testing.assert_array_equal(
        propose(samplers.TopK(3), mesh).rows,
        np.argsort(-logits, axis=1)[:, :3])

  @pytest.mark.slow
  def test_top_k_of_a_depth_takes_each_of_its_rows_equally_often(self):
    """ANCE's choice: K of the top rows; chi-square, 99.95% bound."""
    mesh = sharding.make_mesh(1)
    table = helpers.table(mesh)
    batch = helpers.batch(0)
    query = helpers.encode(helpers.params(), batch.query_tokens[:1])
    scores = np.array(table.embeddings[:helpers.NUM_TARGETS] @ query[0])
    scores[batch.target_ids[0]] = -np.inf
    top = np.argsort(-scores)[:8]
    drawn = np.asarray(samplers.TopK(3, 8).propose(
        (), jax.random.key(2), helpers.request(
            np.tile(query, (4000, 1)), table,
            exclude=np.full((4000, 1), batch.target_ids[0])),
        view(table, mesh)).rows)
    self.assertTrue(np.isin(drawn, top).all())
    self.assertTrue(all(len(set(row)) == 3 for row in drawn[:100].tolist()))
    for place in range(3):  # in random order, too
      counts = np.bincount(drawn[:, place], minlength=helpers.NUM_TARGETS)[top]
      self.assertLess(((counts - 500)**2 / 500).sum(), 26.0)
    with self.assertRaisesRegex(ValueError, 'sampler.depth=2 is smaller'):
      samplers.TopK(3, 2)

  def test_uniform_draws_find_rows_between_empty_ones(self):
    mesh = sharding.make_mesh(2)
    ids = np.full(128, -1)
    ids[[3, 70, 71, 127]] = [5, 6, 7, 8]
    table = tables.create(np.ones((128, helpers.DIM)), ids, mesh=mesh,
                          chunk_rows=64, dtype='float32')
    for sampler in (samplers.Uniform(40),
                    samplers.StochasticNegativeMining(4, 200)):
      proposal = propose(sampler, mesh, table)
      found = np.asarray(proposal.ids)[np.asarray(proposal.mask)]
      known = helpers.batch(0).known_positives
      self.assertEqual(set(found), {5, 6, 7, 8})
      self.assertTrue(np.isin([5, 6, 7, 8], known).any() or
                      bool(proposal.mask.all()))

  def test_the_only_remembered_row_is_every_uniform_draw(self):
    mesh = sharding.make_mesh(1)
    other = next(i for i in range(helpers.NUM_TARGETS)
                 if i not in helpers.batch(0).known_positives)
    table = tables.create(np.ones((1, helpers.DIM)), [other], mesh=mesh,
                          chunk_rows=64, dtype='float32')
    proposal = propose(samplers.Uniform(9), mesh, table)
    self.assertTrue(proposal.mask.all())
    np.testing.assert_array_equal(proposal.rows, 0)

  def test_stochastic_takes_the_highest_of_its_pool_without_repeats(self):
    mesh = sharding.make_mesh(1)
    whole = samplers.StochasticNegativeMining(3, 4000)  # covers all 56 rows
    top = propose(samplers.TopK(3), mesh)
    np.testing.assert_array_equal(propose(whole, mesh).rows, top.rows)
    small = propose(samplers.StochasticNegativeMining(3, 8), mesh)
    self.assertLess(float(small.logits[:, 0].mean()),
                    float(top.logits[:, 0].mean()))

  def test_uniform_draws_are_uniform(self):
    """Chi-square over 56 rows minus the excluded ones; 99.9% bound."""
    mesh = sharding.make_mesh(1)
    proposal = propose(samplers.Uniform(20000), mesh)
    known = helpers.batch(0).known_positives
    for b in range(2):
      rows = np.asarray(proposal.rows)[b]
      counts = np.bincount(rows[rows >= 0], minlength=helpers.NUM_TARGETS)
      excluded = set(known[b][known[b] >= 0].tolist())
      allowed = [r for r in range(helpers.NUM_TARGETS) if r not in excluded]
      expected = counts.sum() / len(allowed)
      chi = ((counts[allowed] - expected)**2 / expected).sum()
      self.assertLess(chi, 98.3)  # chi-square, 55 degrees of freedom, 99.95%
      self.assertEqual(counts[list(excluded)].sum(), 0)
      np.testing.assert_allclose(
          proposal.log_q[b][rows >= 0], -np.log(len(allowed)), rtol=1e-6)

  @pytest.mark.slow
  def test_gumbel_log_q_is_the_probability_of_its_first_draw(self):
    """Chi-square of 4,000 single draws per query against exp(log_q)."""
    mesh = sharding.make_mesh(1)
    table = helpers.table(mesh)
    sampler = samplers.Gumbel(1)
    batch = helpers.batch(0)
    queries = helpers.encode(helpers.params(), batch.query_tokens)[:1]
    many = jnp.tile(queries, (4000, 1))
    exclude = jnp.tile(jnp.asarray(batch.known_positives[:1]), (4000, 1))
    proposal = sampler.propose(
        (), jax.random.key(1), helpers.request(many, table, exclude=exclude),
        view(table, mesh))
    rows = np.asarray(proposal.rows)[:, 0]
    logits = np.array(
        SCALE * queries @ table.embeddings[:helpers.NUM_TARGETS].T)[0]
    known = batch.known_positives[0]
    logits[known[known >= 0]] = -np.inf
    chances = np.exp(logits - np.logaddexp.reduce(logits))
    np.testing.assert_allclose(
        np.exp(proposal.log_q[:, 0]), chances[rows], rtol=1e-4)
    expected = 4000 * chances
    often = expected >= 5
    counts = np.bincount(rows, minlength=helpers.NUM_TARGETS)
    chi = ((counts - expected)[often]**2 / expected[often]).sum()
    self.assertLess(chi, often.sum() + 4.5 * np.sqrt(2 * often.sum()))


if __name__ == '__main__':
  absltest.main()
