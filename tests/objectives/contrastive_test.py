"""What the contrastive loss asks for, refuses and costs."""

from absl.testing import absltest
from absl.testing import parameterized

from retrieval_jax import ceiling as ceilings
from retrieval_jax import objectives


class ContrastiveTest(parameterized.TestCase):

  @parameterized.parameters(('own', 4), ('positives', 12), ('all', 33),
                            ('draws', 25))
  def test_flops_are_those_of_products_with_all_that_is_seen(self, kind, seen):
    """B = 8, K = 3, D = 5: the positive and own, others' or all columns."""
    objective = objectives.Contrastive('truncated_softmax', kind)
    self.assertEqual(objective.flops(8, 3, 1, 5), 2 * 8 * seen * 5)

  def test_a_teacher_adds_the_products_with_candidates(self):
    objective = objectives.Distilled(
        objectives.Contrastive('truncated_softmax', 'own'),
        objectives.Distillation('kl'))
    self.assertEqual(objective.flops(8, 3, 2, 5), 2 * 8 * 5 * (4 + 2))

  def test_each_prefix_adds_its_own_products(self):
    objective = objectives.Matryoshka(
        objectives.Contrastive('truncated_softmax', 'own'), (2, 5), (1., 1.),
        normalize=True)
    self.assertEqual(objective.flops(8, 3, 0, 5), 2 * 8 * 4 * (2 + 5))

  def test_reads_no_tokens_and_cuts_are_not_normalised_unless_asked(self):
    """Only an objective that says so is handed the tokens of negatives."""
    objective = objectives.Matryoshka(
        objectives.Contrastive('truncated_softmax', 'own'), (2,))
    self.assertFalse(objective.reads_tokens)
    self.assertFalse(objective.inner.reads_tokens)
    self.assertFalse(objective.normalize)

  @parameterized.parameters(
      (('nce', 'own'), r"estimator.name='nce' is not one of \['truncated"),
      (('truncated_softmax', 'some'), "estimator.columns='some' is not one of"),
      (('cache_gradient', 'all'), "set estimator.columns='own' .*'all'"),
      (('full_softmax', 'own'), "set estimator.columns='draws' .*'own'"))
  def test_refuses(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      objectives.Contrastive(*options)

  @parameterized.parameters(('truncated_softmax', 'all', False),
                            ('cache_gradient', 'own', True))
  def test_a_ceiling_and_distinct_columns_are_for_estimators_of_any_columns(
      self, name, kind, refused):
    ceiling = ceilings.Ceiling(0.9, None, 'estimator')
    if not refused:
      objective = objectives.Contrastive(name, kind, ceiling, distinct=True)
      self.assertEqual(objective.ceiling, ceiling)
      self.assertTrue(objective.distinct)
      return
    with self.assertRaisesRegex(ValueError, 'estimator.distinct=True leaves'):
      objectives.Contrastive(name, kind, distinct=True)
    with self.assertRaisesRegex(ValueError, 'estimator.max_share or min_mar'):
      objectives.Contrastive(name, kind, ceiling)

  @parameterized.parameters(
      ('truncated_softmax', 'all', set()),
      ('truncated_softmax', 'positives', set()),
      ('truncated_softmax', 'own', {'negatives'}),
      ('truncated_softmax', 'draws', {'negatives'}),
      ('cache_gradient', 'own', {'negatives', 'log_z', 'only_draws'}),
      ('sampled_softmax', 'own', {'negatives', 'log_q', 'only_draws'}),
      ('full_softmax', 'draws', {'negatives', 'every_row', 'only_draws'}))
  def test_needs(self, name, kind, needs):
    self.assertEqual(objectives.Contrastive(name, kind).needs, needs)


if __name__ == '__main__':
  absltest.main()
