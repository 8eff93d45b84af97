"""Columns that a teacher takes for positives leave the loss, and only these."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import ceiling as ceilings
from retrieval_jax import objectives
from retrieval_jax import types
from retrieval_jax.objectives import columns

B, K, D, TEACHER_DIM, BETA = 5, 3, 4, 6, 3.
GIST = ceilings.Ceiling(None, 0., 'guide')
CEILINGS = {'gist': GIST, 'absolute': ceilings.Ceiling(None, .3, 'guide'),
            'relative': ceilings.Ceiling(.6, 0., 'guide'),
            'above_all': ceilings.Ceiling(None, 9., 'guide')}


@functools.cache
def setting():
  """Returns (fresh, batch, proposal); the teacher's vectors are of any length.

  Its score of some positives is below zero, some draws are known positives or
  masked, the last draw of each query is a candidate, and 3 is a candidate of
  one query and drawn for another.
  """
  random = np.random.default_rng(4)
  vectors = lambda *shape: random.normal(size=shape).astype(np.float32)
  ids = np.array([10, 11, 12, 10, 14])
  known = np.full((B, 2), -1)
  known[:, 0], known[1, 1] = ids, 14
  drawn = np.array([[1, 2, 3], [14, 4, 5], [3, 6, -1], [7, 8, 9], [15, 16, 17]])
  scores = np.array([[5.], [4.], [9.], [np.nan], [6.]], np.float32)
  positive_scores = np.array([2., 7., 3., 1., np.nan], np.float32)
  batch = types.Batch(
      query_tokens=np.zeros((B, 1), np.int32),
      target_tokens=np.zeros((B, 1), np.int32), query_ids=np.arange(B),
      target_ids=jnp.asarray(ids), known_positives=jnp.asarray(known),
      candidates=types.Candidates(
          jnp.asarray(drawn[:, -1:]), jnp.asarray(scores),
          jnp.asarray(positive_scores)))
  proposal = types.Proposal(
      rows=drawn, ids=jnp.asarray(drawn), logits=np.zeros((B, K)),
      mask=jnp.asarray(drawn >= 0), log_q=np.zeros((B, K)), log_z=np.zeros(B))
  of = lambda dim: tuple(map(jnp.asarray, (
      vectors(B, dim), vectors(B, dim), vectors(B, K, dim))))
  return types.Fresh(*of(D), jnp.float32(BETA), teacher=types.TeacherVectors(
      *of(TEACHER_DIM))), batch, proposal


@functools.cache
def on_host():
  return jax.device_get(setting())


def columns_of(i, kind, pairs):
  """Yields (corpus id, pair of vectors) of what i's loss could see.

  A vector is (side, place), such as ('negatives', (2, 0)).
  """
  _, batch, proposal = on_host()
  known = set(batch.known_positives[i].tolist()) - {-1}
  targets = [int(j) for j in batch.target_ids]
  own = [(i, k) for k in range(K)]
  every = [(j, k) for j in range(B) for k in range(K)]
  for place in {'own': own, 'positives': own}.get(kind, every):
    yield int(proposal.ids[place]), ('queries', i), ('negatives', place), known
  if kind in ('positives', 'all'):
    for j in range(B):
      yield targets[j], ('queries', i), ('positives', j), known
  for j in range(B):
    theirs = set(batch.known_positives[j].tolist()) - {-1}
    both = known | ({targets[j]} if targets[i] in theirs else set())
    sides = {'query_query': ('queries', 'queries'),
             'query_target': ('positives', 'queries'),
             'target_target': ('positives', 'positives')}
    for pair in pairs:
      one, other = sides[pair]
      yield targets[j], (one, i), (other, j), both


def product(vectors, one, other):
  """Returns the inner product of two vectors of a record, in float64."""
  return float(np.dot(*(getattr(vectors, side)[place].astype(np.float64)
                        for side, place in (one, other))))


def highest(ceiling, score):
  bounds = [score - ceiling.min_margin]
  if ceiling.max_share is not None:
    bounds.append(score - (1 - ceiling.max_share) * abs(score))
  return min(bounds)


def slow(by, ceiling, kind, pairs=()):
  """Returns (nll [B], share left out) by plain loops, in float64."""
  fresh, batch, _ = on_host()
  losses, seen, out = [], 0, 0
  given = {}
  for b in range(B):
    place = int(batch.candidates.ids[b, 0])
    given[b, place] = float(batch.candidates.scores[b, 0])
  for i in range(B):
    positive = BETA * product(fresh, ('queries', i), ('positives', i))
    limit = highest(ceiling, product(
        fresh.teacher, ('queries', i), ('positives', i)) if (
            by == 'embeddings') else float(batch.candidates.positive_scores[i]))
    total = np.exp(positive)
    for name, one, other, known in columns_of(i, kind, pairs):
      if name < 0 or name in known:
        continue
      seen += 1
      score = (product(fresh.teacher, one, other) if by == 'embeddings'
               else given.get((i, name), np.nan))
      if score > limit:
        out += 1
      else:
        total += np.exp(BETA * product(fresh, one, other))
    losses.append(np.log(total) - positive)
  return np.array(losses), out / seen


def objective(by, ceiling, kind, pairs=()):
  return objectives.Contrastive(
      'truncated_softmax', kind, pairs=pairs,
      guide=objectives.Guide(by, ceiling, TEACHER_DIM))


class GuideTest(parameterized.TestCase):

  @parameterized.product(
      by=('embeddings', 'scores'), kind=columns.KINDS, ceiling=list(CEILINGS),
      pairs=((), columns.PAIRS, ('query_target',)))
  def test_equals_the_formula(self, by, kind, ceiling, pairs):
    ceiling = CEILINGS[ceiling]
    loss, info = objective(by, ceiling, kind, pairs)({}, *setting())
    wanted, share = slow(by, ceiling, kind, pairs)
    np.testing.assert_allclose(loss, wanted, rtol=1e-4, atol=1e-5)
    self.assertAlmostEqual(float(info['guided']), share, places=6)

  def test_each_rule_leaves_out_something_else(self):
    """So that the formula is put to the test where they differ."""
    shares = [slow('embeddings', ceiling, 'all')[1]
              for ceiling in CEILINGS.values()]
    self.assertLen(set(shares), 4)
    self.assertBetween(shares[0], .1, .9)
    # 3 is above the ceiling for query 0 as its candidate, and drawn by query 2.
    self.assertEqual(slow('scores', GIST, 'own')[1], 1 / 13)
    self.assertEqual(slow('scores', GIST, 'all')[1], 2 / 85)
    fresh, *_ = setting()
    positive = np.einsum('bd,bd->b', *fresh.teacher[:2])
    self.assertTrue((positive < 0).any() and (positive > 0).any())

  def test_what_is_left_out_has_no_gradient_and_the_rest_has_its_own(self):
    fresh, batch, proposal = setting()
    positive = np.einsum('bd,bd->b', *fresh.teacher[:2])
    scores = np.einsum('bd,bkd->bk', fresh.teacher.queries,
                       fresh.teacher.negatives)
    out = scores > positive[:, None]
    self.assertTrue(out.any() and not out.all())

    def gradient(made, proposal):
      return jax.grad(lambda fresh: made({}, fresh, batch, proposal)[0].sum())(
          fresh)

    guided = gradient(objective('embeddings', GIST, 'own'), proposal)
    without = gradient(
        objectives.Contrastive('truncated_softmax', 'own'),
        dataclasses.replace(proposal, mask=proposal.mask & ~out))
    for side in ('queries', 'positives', 'negatives'):
      np.testing.assert_allclose(
          getattr(guided, side), getattr(without, side), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(guided.negatives[out], 0)
    self.assertTrue(guided.negatives.any())
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), guided.teacher)

  @parameterized.parameters(True, False)
  def test_a_tie_stays(self, tie):
    """As published: only what the teacher scores above its positive goes."""
    fresh, batch, proposal = setting()
    positives = jnp.ones_like(fresh.teacher.positives)
    fresh = fresh._replace(teacher=types.TeacherVectors(
        positives, positives, jnp.full_like(
            fresh.teacher.negatives, 1. if tie else 1.01)))
    _, info = objective('embeddings', GIST, 'own')({}, fresh, batch, proposal)
    self.assertEqual(float(info['guided']), 0. if tie else 1.)

  def test_needs_what_it_reads(self):
    plain = objectives.Contrastive('truncated_softmax', 'own')
    for by, need in (('embeddings', 'teacher_vectors'), ('scores', 'teacher')):
      self.assertEqual(
          objective(by, GIST, 'own').needs, plain.needs | {need})

  def test_flops_count_the_products_of_the_teacher(self):
    plain = objectives.Contrastive('truncated_softmax', 'positives')
    cost = lambda made: made.flops(8, 3, 0, 5)
    self.assertEqual(
        cost(objective('embeddings', GIST, 'positives')) - cost(plain),
        2 * 8 * (1 + 3 + 8) * TEACHER_DIM)
    self.assertEqual(cost(objective('scores', GIST, 'positives')), cost(plain))

  @parameterized.parameters('cache_gradient', 'sampled_softmax')
  def test_is_not_for_estimators_of_draws_as_they_are(self, estimator):
    with self.assertRaisesRegex(
        ValueError, f"guide.by='embeddings' leaves .*'{estimator}' is right"):
      objectives.Contrastive(
          estimator, 'own', guide=objectives.Guide('embeddings', GIST, 3))

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, "guide.by='vectors' is not one of"):
      objectives.Guide('vectors', GIST)


if __name__ == '__main__':
  absltest.main()
