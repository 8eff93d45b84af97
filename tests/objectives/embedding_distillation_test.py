"""Embeddings follow a teacher's vectors, by a learned matrix where asked."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from retrieval_jax import objectives
from tests import made_up_objectives
from tests.objectives import guide_test

B, K, D, TEACHER_DIM = (guide_test.B, guide_test.K, guide_test.D,
                        guide_test.TEACHER_DIM)
INNER = objectives.Contrastive('truncated_softmax', 'all')


def make(kind='mse', weight=.3, projects=True, inner=INNER, dim=TEACHER_DIM):
  return objectives.EmbeddingDistilled(
      inner, kind, weight, projects, dim).fitted(D)


def setting(projects):
  """Returns guide_test's; without a matrix the teacher has D dimensions.

  The first query has no draws.
  """
  fresh, batch, proposal = guide_test.setting()
  if not projects:
    fresh = fresh._replace(teacher=jax.tree.map(
        lambda x: x[..., :D], fresh.teacher))
  return fresh, batch, dataclasses.replace(
      proposal, mask=proposal.mask.at[0].set(False))


def distance(kind, vector, teacher):
  if kind == 'mse':
    return np.sum((vector - teacher) ** 2)
  return 1 - vector @ teacher / np.sqrt((vector @ vector) * (teacher @ teacher))


def slow(kind, weight, matrix, inner_loss, projects):
  """Returns the loss [B] and the means of the sides, in float64 loops."""
  fresh, _, proposal = setting(projects)
  of = lambda side: np.asarray(getattr(fresh, side), np.float64) @ matrix
  theirs = lambda side: np.asarray(getattr(fresh.teacher, side), np.float64)
  sides = {'queries': [], 'positives': [], 'draws': []}
  terms = []
  for b in range(B):
    parts = []
    for side in ('queries', 'positives'):
      parts.append(distance(kind, of(side)[b], theirs(side)[b]))
      sides[side].append(parts[-1])
    live = [k for k in range(K) if proposal.mask[b, k]]
    if live:
      parts.append(np.mean([distance(
          kind, of('negatives')[b, k], theirs('negatives')[b, k])
                            for k in live]))
      sides['draws'].append(parts[-1])
    terms.append(np.mean(parts))
  return (1 - weight) * np.asarray(inner_loss) + weight * np.array(terms), {
      f'distance_{side}': np.mean(values) for side, values in sides.items()}


class EmbeddingDistilledTest(parameterized.TestCase):

  @parameterized.product(kind=('mse', 'cosine'), projects=(True, False),
                         weight=(.3, 1.))
  def test_equals_the_formula(self, kind, projects, weight):
    dim = TEACHER_DIM if projects else D
    objective = make(kind, weight, projects, dim=dim)
    params = objective.init(jax.random.key(1))
    self.assertEqual(list(params), ['projection'] * projects)
    given = setting(projects)
    loss, info = objective(params, *given)
    matrix = np.asarray(params['projection'] if projects else np.eye(D))
    self.assertEqual(matrix.shape, (D, dim))
    inner, of_inner = INNER({}, *given)
    wanted, means = slow(kind, weight, matrix, inner, projects)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    for name, value in means.items():
      np.testing.assert_allclose(info[name], value, rtol=1e-5)
    self.assertEqual(info['nll'], of_inner['nll'])

  def test_the_gradient_is_that_of_the_formula(self):
    """Of |f W - t|^2, alone: 2 (f W - t) W' for f, 2 f' (f W - t) for W."""
    objective = make('mse', 1.)
    params = objective.init(jax.random.key(1))
    fresh, batch, proposal = setting(True)
    total = lambda *given: objective(*given, batch, proposal)[0].sum()
    of_params, of_fresh = jax.grad(total, argnums=(0, 1))(params, fresh)
    matrix = np.asarray(params['projection'], np.float64)
    shares = np.array([1 / 2] + [1 / 3] * (B - 1))
    of_matrix = 0
    for side in ('queries', 'positives', 'negatives'):
      vectors = np.asarray(getattr(fresh, side), np.float64)
      gap = vectors @ matrix - np.asarray(getattr(fresh.teacher, side))
      scale = shares.reshape(-1, *[1] * (gap.ndim - 1))
      if side == 'negatives':
        mask = np.asarray(proposal.mask)
        scale = scale * (mask / np.maximum(mask.sum(1), 1)[:, None])[..., None]
      np.testing.assert_allclose(
          getattr(of_fresh, side), 2 * scale * gap @ matrix.T, rtol=1e-4,
          atol=1e-5)
      of_matrix += vectors.reshape(-1, D).T @ (
          2 * scale * gap).reshape(-1, TEACHER_DIM)
    np.testing.assert_allclose(of_params['projection'], of_matrix, rtol=1e-4)

  def test_a_matrix_keeps_lengths_at_first(self):
    """E |f W|^2 = |f|^2 where its entries have variance 1 / D'."""
    objective = objectives.EmbeddingDistilled(
        INNER, 'mse', .5, True, 300).fitted(200)
    matrix = objective.init(jax.random.key(0))['projection']
    lengths = np.linalg.norm(matrix, axis=1)
    np.testing.assert_allclose(np.square(lengths).mean(), 1, atol=.02)

  def test_it_gives_the_inner_objective_its_parameters(self):
    inner = made_up_objectives.Biased(40)
    params = make(inner=inner).init(jax.random.key(0))
    self.assertEqual(list(params), ['bias', 'projection'])
    without = make(projects=False, inner=inner, dim=D)
    self.assertEqual(list(without.init(jax.random.key(0))), ['bias'])
    self.assertTrue(without.reads_tokens)

  def test_says_what_it_needs_and_costs(self):
    objective, inner = make(), INNER
    self.assertEqual(
        objective.needs, inner.needs | {'positives', 'teacher_vectors'})
    texts = 8 * (2 + 3)
    more = lambda made: made.flops(8, 3, 0, D) - inner.flops(8, 3, 0, D)
    self.assertEqual(more(objective), 2 * texts * TEACHER_DIM * (1 + D))
    self.assertEqual(more(make(projects=False, dim=D)), 2 * texts * D)

  def test_other_dimensions_need_a_matrix(self):
    with self.assertRaisesRegex(
        ValueError, 'has vectors of 6 dimensions, and the encoder embeds in 4; '
        'set --config.teacher.projection=True'):
      make(projects=False)

  @parameterized.parameters(
      (dict(kind='none'), "teacher.loss='none' is not one of"),
      (dict(kind='l1'), "teacher.loss='l1' is not one of"),
      (dict(weight=0.), r'teacher.weight=0.0 must lie in \(0, 1\]'),
      (dict(weight=1.1), r'teacher.weight=1.1 must lie in \(0, 1\]'))
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      make(**options)


if __name__ == '__main__':
  absltest.main()
