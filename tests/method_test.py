"""Combinations that cannot work are refused when they are built."""

from absl.testing import absltest
from absl.testing import parameterized

from retrieval_jax import correctors
from retrieval_jax import distillation
from retrieval_jax import method as methods
from retrieval_jax import samplers
from retrieval_jax import sharding


def build(**changes):
  gumbel = samplers.Gumbel(1, 8, sharding.make_mesh(1))
  options = dict(
      memory='corpus', corrector=correctors.Identity(), sampler=gumbel,
      estimator='truncated_softmax', columns='own', refresh=methods.Refresh())
  return methods.Method(**(options | changes))


class MethodTest(parameterized.TestCase):

  def test_equal_choices_are_equal_and_hashable(self):
    # Both are kept: jax interns meshes, whose hash lives as long as they do.
    one, other = build(), build()
    self.assertEqual(one, other)
    self.assertEqual(hash(one), hash(other))
    self.assertIn("estimator='truncated_softmax'", repr(build()))

  @parameterized.named_parameters(
      ('memory', dict(memory='disk'), "memory.kind='disk' is not one of"),
      ('estimator', dict(estimator='mse'), "estimator.name='mse' is not one"),
      ('columns', dict(columns='both'), "estimator.columns='both' is not one"),
      ('draws_from_nothing', dict(memory='none'), 'nothing to draw from'),
      ('no_negatives', dict(sampler=samplers.NoNegatives()),
       "use columns 'positives'"),
      ('fewer_than_none', dict(num_candidates=-1),
       'data.num_candidates=-1 must be a number'),
      ('candidates_without_a_probability', dict(
          estimator='cache_gradient', num_candidates=1),
       "data.num_candidates changes .*'cache_gradient' is right for all that"),
      ('ceiling_of_draws', dict(
          estimator='sampled_softmax', ceiling=samplers.Ceiling(0.9, None)),
       'estimator.max_share or min_margin changes the columns'),
      ('teacher_of_nothing', dict(
          distillation=distillation.Distillation('kl')),
       "distillation.kind='kl' .* needs data.num_candidates"),
      ('write_back_nothing', dict(
          sampler=samplers.NoNegatives(), columns='positives',
          refresh=methods.Refresh(write_back=True)), 'needs drawn rows'),
      ('ring_reencode', dict(memory='ring', refresh=methods.Refresh(
          push=True, reencode_every=5)), 'use refresh.fraction'),
      ('ring_without_push', dict(memory='ring'), 'refresh.push=True'),
      ('log_z', dict(estimator='cache_gradient', sampler=samplers.Uniform(1)),
       "sampler.name='gumbel'"),
      ('own_draws', dict(estimator='cache_gradient', columns='all'),
       "columns='own'"),
      ('log_q', dict(estimator='sampled_softmax', columns='all'),
       'log q of every column'),
      ('source', dict(targets=methods.Targets('frozen'), memory='ring',
                      refresh=methods.Refresh(push=True)),
       "targets.source='frozen' .* memory.kind='corpus'"),
      ('moved_source', dict(targets=methods.Targets('rows', 0.1),
                            refresh=methods.Refresh(write_back=True)),
       'all of refresh off'),
      ('full', dict(estimator='full_softmax'), "sampler.name='exhaustive'"))
  def test_refuses(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      build(**changes)

  @parameterized.parameters('own', 'draws')
  def test_candidates_are_negatives_enough(self, columns):
    method = build(sampler=samplers.NoNegatives(), memory='none',
                   columns=columns, num_candidates=1)
    self.assertIn('num_candidates=1', repr(method))

  @parameterized.parameters(False, True)
  def test_a_shortlist_has_log_z_but_no_log_q_of_every_row(self, bucketed):
    sampler = samplers.ShortlistGumbel(3, 8, bucketed, 64,
                                       sharding.make_mesh(1))
    build(sampler=sampler, estimator='cache_gradient')
    with self.assertRaisesRegex(ValueError, 'log q of every column'):
      build(sampler=sampler, estimator='sampled_softmax')

  @parameterized.parameters((dict(fraction=1.0), 'must lie in'),
                            (dict(reencode_every=-1), '0 for never'))
  def test_refuses_refresh(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      methods.Refresh(**options)

  @parameterized.parameters(
      (('tower',), "targets.source='tower' is not one of"),
      (('rows',), "'rows' needs a positive rate"),
      (('rows', 0.0), "'rows' needs a positive rate"),
      (('frozen', 0.1), 'others train no rows'))
  def test_refuses_targets(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      methods.Targets(*options)

  def test_number_of_probes_is_a_multiple_of_the_shards(self):
    refresh = methods.Refresh(fraction=0.01)
    self.assertEqual(refresh.num_probes(1000, 8), 16)
    self.assertEqual(methods.Refresh().num_probes(1000, 8), 0)


if __name__ == '__main__':
  absltest.main()
