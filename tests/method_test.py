"""Combinations that cannot work are refused when they are built."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized

from retrieval_jax import memories
from retrieval_jax import method as methods
from retrieval_jax import samplers
from tests import helpers


def build(*, sampler=samplers.Gumbel(1), refresh=methods.Refresh(), **options):
  return helpers.method(sampler, **options, **dataclasses.asdict(refresh))


class MethodTest(parameterized.TestCase):

  def test_equal_choices_are_equal_and_hashable(self):
    one, other = build(), build()
    self.assertEqual(one, other)
    self.assertEqual(hash(one), hash(other))
    self.assertIn("estimator='truncated_softmax'", repr(build()))

  @parameterized.named_parameters(
      ('estimator', dict(estimator='mse'), "estimator.name='mse' is not one"),
      ('columns', dict(columns='both'), "estimator.columns='both' is not one"),
      ('draws_from_nothing', dict(memory='none'), 'nothing to draw from'),
      ('no_negatives', dict(sampler=samplers.NoNegatives()),
       "use columns 'positives'"),
      ('fewer_than_none', dict(num_candidates=-1),
       'data.num_candidates=-1 must be a number'),
      ('candidates_without_a_probability', dict(
          estimator='cache_gradient', num_candidates=1),
       'data.num_candidates changes .* is right for all that'),
      ('ceiling_of_draws', dict(
          estimator='sampled_softmax', ceiling=samplers.Ceiling(0.9, None)),
       'estimator.max_share or min_margin changes the columns'),
      ('teacher_of_nothing', dict(distillation='kl'),
       'distillation.kind .* needs data.num_candidates'),
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
       "columns='own'"),
      ('source', dict(targets=methods.Targets('frozen'), memory='ring',
                      refresh=methods.Refresh(push=True)),
       "targets.source='frozen' .* memory.kind='corpus'"),
      ('moved_source', dict(targets=methods.Targets('rows', 0.1),
                            refresh=methods.Refresh(write_back=True)),
       'all of refresh off'),
      ('full', dict(estimator='full_softmax', columns='draws'),
       "sampler.name='exhaustive'"))
  def test_refuses(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      build(**changes)

  @parameterized.parameters('own', 'draws')
  def test_candidates_are_negatives_enough(self, columns):
    method = build(sampler=samplers.NoNegatives(), memory='none',
                   columns=columns, num_candidates=1)
    self.assertIn('num_candidates=1', repr(method))

  @parameterized.parameters(samplers.ShortlistGumbel, samplers.BucketedGumbel)
  def test_a_shortlist_has_log_z_but_no_log_q_of_every_row(self, kind):
    sampler = kind(3, 8)
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

  def test_a_fraction_is_of_the_rows_that_hold_targets(self):
    self.assertEqual(methods.Refresh(fraction=0.01).num_rows(1049), 10)
    self.assertEqual(methods.Refresh().num_rows(1000), 0)
    with self.assertRaisesRegex(
        ValueError, r'fraction=0.0001 of 1000 .* take at least 0.001'):
      methods.Refresh(fraction=1e-4).num_rows(1000)

  def test_rows_that_are_not_there_are_refused(self):
    with self.assertRaisesRegex(
        ValueError, 'num_anchors=57 exceeds the 56 rows'):
      build(corrector=helpers.linear(num_anchors=57))
    with self.assertRaisesRegex(ValueError, 'less than one row per step'):
      build(refresh=methods.Refresh(fraction=0.001))
    with self.assertRaisesRegex(ValueError, 'capacity=0 must be the number'):
      memories.Ring(0, 'lru', False, 'float32', 64)


if __name__ == '__main__':
  absltest.main()
