"""Rows too near the positive are left out, and only those."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import ceiling as ceilings
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from tests import helpers

N, D, B, K, SCALE, CHUNK = 200, 4, 6, 20, 5.0, 64


def draw(sampler, devices, seed=0, corrected=lambda rows: rows):
  """Returns (proposal, scores [B, N], positive rows [B], known [B]).

  Args:
    sampler: what draws.
    devices: of the mesh.
    seed: of rows, queries and draws.
    corrected: embeddings [..., D] -> present ones, by which all is scored.
  """
  mesh = sharding.make_mesh(devices)
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(N, D)).astype(np.float32)
  queries = rng.normal(size=(B, D)).astype(np.float32)
  scores = queries @ np.asarray(corrected(rows)).T
  # Positives low, middling and high, s+ < 0 included; the last is not known.
  order = np.argsort(scores, axis=1)
  positives = order[np.arange(B), [N // 3, N - 1, N - 5, N - 60, N - 30, 0]]
  known = np.arange(B) < B - 1
  where = jnp.asarray(np.where(known, positives, -1), jnp.int32)
  table = tables.from_embeddings(
      rows, mesh=mesh, chunk_rows=CHUNK, dtype='float32')
  view = types.View(table, lambda rows: corrected(rows.embeddings),
                    jnp.float32(SCALE), types.Scan(mesh, CHUNK))
  proposal = sampler.propose((), jax.random.key(seed), helpers.request(
      queries, table, exclude=where[:, None], positives=where), view)
  return jax.device_get(proposal), scores, positives, known


def allowed(scores, positives, known, share, margin):
  """Returns [B, N] bool, in plain numpy."""
  free = np.ones(scores.shape, bool)
  for b in np.flatnonzero(known):
    top = scores[b, positives[b]]
    bounds = [np.inf]
    if share is not None:
      bounds.append(share * top if top > 0 else (2 - share) * top)
    if margin is not None:
      bounds.append(top - margin)
    free[b] = scores[b] <= min(bounds)
    free[b, positives[b]] = False
  return free


class CeilingTest(parameterized.TestCase):

  @parameterized.product(
      options=((0.9, None), (None, 0.3), (0.9, 0.3)), devices=(1, 2, 4, 8))
  def test_top_k_are_the_best_of_the_rows_below(self, options, devices):
    proposal, scores, positives, known = draw(
        samplers.TopK(
            K, ceiling=samplers.Ceiling(*options)), devices)
    self.assertTrue((scores[np.arange(B), positives] < 0)[known].any())
    free = np.where(allowed(scores, positives, known, *options), scores,
                    -np.inf)
    wanted = np.argsort(-free, axis=1)[:, :K]
    np.testing.assert_array_equal(proposal.rows, wanted)  # K of them, always

  @parameterized.parameters(1, 2, 4, 8)
  def test_gumbel_sums_over_and_draws_from_the_rows_below(self, devices):
    proposal, scores, positives, known = draw(
        samplers.Gumbel(K, samplers.Ceiling(0.9, None)), devices)
    free = allowed(scores, positives, known, 0.9, None)
    logits = np.where(free, SCALE * scores, -np.inf)
    np.testing.assert_allclose(
        proposal.log_z, np.logaddexp.reduce(logits, axis=1), rtol=1e-5)
    self.assertTrue(proposal.mask.all())
    self.assertTrue(np.take_along_axis(free, proposal.rows, axis=1).all())

  @parameterized.parameters(1, 4)
  def test_simans_has_candidates_below_only(self, devices):
    proposal, scores, positives, known = draw(
        samplers.SimANS(
            K, K, 1.0, 0.0, samplers.Ceiling(None, 0.3)), devices)
    free = np.where(allowed(scores, positives, known, None, 0.3), scores,
                    -np.inf)
    np.testing.assert_array_equal(
        np.sort(proposal.rows, axis=1),
        np.sort(np.argsort(-free, axis=1)[:, :K], axis=1))

  @parameterized.parameters(
      ((0.9, None), 'top_k'), ((None, 0.3), 'top_k'), ((0.9, None), 'gumbel'),
      ((0.9, None), 'simans'))
  def test_ceilings_compare_with_the_corrected_positive(self, options, name):
    """The correction turns every row about: stale scores have other signs."""
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(D, D)))[0].astype(
        np.float32)
    ceiling = samplers.Ceiling(*options)
    sampler = {
        'top_k': samplers.TopK(K, ceiling=ceiling),
        'gumbel': samplers.Gumbel(K, ceiling),
        # As many candidates as draws: all of them come out.
        'simans': samplers.SimANS(K, K, 1.0, 0.0, ceiling)}[name]
    proposal, scores, positives, known = draw(
        sampler, devices=1,
        corrected=lambda rows: -rows @ turn)
    free = np.where(allowed(scores, positives, known, *options), scores,
                    -np.inf)
    np.testing.assert_allclose(
        proposal.logits, SCALE * np.take_along_axis(
            free, proposal.rows, axis=1), rtol=1e-4, atol=1e-5)
    if name == 'gumbel':
      np.testing.assert_allclose(
          proposal.log_z, np.logaddexp.reduce(SCALE * free, axis=1), rtol=1e-5)
    else:
      np.testing.assert_array_equal(
          np.sort(proposal.rows, axis=1),
          np.sort(np.argsort(-free, axis=1)[:, :K], axis=1))

  def test_the_bounds_of_the_options_are_allowed(self):
    """The whole share of the positive, and no margin at all."""
    scores = jnp.array([2.0, -2.0])
    for options, wanted in (((1.0, None), [2.0, -2.0]),
                            ((None, 0.0), [2.0, -2.0]),
                            ((0.9, 0.5), [1.5, -2.5])):
      np.testing.assert_allclose(
          samplers.Ceiling(*options).highest(scores), wanted)
    self.assertEqual(hash(samplers.Ceiling(0.9, None)),
                     hash(samplers.Ceiling(0.9, None)))
    self.assertNotIn('section', repr(samplers.Ceiling(0.9, None)))

  def test_a_positive_that_is_not_remembered_has_score_zero(self):
    mesh = sharding.make_mesh(1)
    table = tables.from_embeddings(
        np.ones((3, D), np.float32), mesh=mesh, chunk_rows=4, dtype='float32')
    view = types.View(table, lambda rows: rows.embeddings, jnp.float32(SCALE),
                      types.Scan(mesh, 4))
    request = helpers.request(
        np.ones((2, D), np.float32), table, positives=np.array([2, -1]))
    scores, known = ceilings.positive_scores(request, view)
    np.testing.assert_array_equal(scores, [D, 0.0])
    np.testing.assert_array_equal(known, [True, False])
    np.testing.assert_allclose(
        samplers.Ceiling(0.5, None).logits(request, view),
        [SCALE * D / 2, np.inf])

  @parameterized.parameters(((0.0, None), r'max_share=0.0 must lie in \(0, 1'),
                            ((1.1, None), r'max_share=1.1 must lie in \(0, 1'),
                            ((None, -0.1), 'min_margin=-0.1 must be at least'))
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      samplers.Ceiling(*options)


if __name__ == '__main__':
  absltest.main()
