"""Combinations that cannot work are refused when they are built."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized

from retrieval_jax import compatibility
from retrieval_jax import correctors
from retrieval_jax import memories
from retrieval_jax import method as methods
from retrieval_jax import objectives
from retrieval_jax import samplers
from tests import helpers
from tests import made_up_readers
from tests import made_up_samplers


def build(*, sampler=samplers.Gumbel(1), refresh=methods.Refresh(), **options):
  return helpers.method(sampler, **options, **dataclasses.asdict(refresh))


NONE = samplers.NoNegatives()
COARSE = memories.Corpus(helpers.NUM_TARGETS, 'float32', helpers.CHUNK_ROWS,
                         scan_dtype='int8')
IDS = made_up_samplers.Pool(2, helpers.NUM_TARGETS, 8)  # needs no memory
BLIND_POOL, SOFTMAX_POOL = (
    samplers.Pool(2, order, 4, 8, 8) for order in ('rotating', 'softmax'))
BESIDE_POOL = samplers.PoolGumbel(2, 1, 'rotating', 4, 8, 8)
EXHAUSTIVE = samplers.Exhaustive(helpers.NUM_TARGETS, helpers.BATCH)
PUSH = methods.Refresh(push=True)
GIST = samplers.Ceiling(None, 0., 'guide')
ALONE = made_up_readers.Bag(helpers.VOCABULARY)
LACKING = {
    'log_z': ("'cache_gradient' needs log Z .* sampler.name='gumbel'", [
        dict(estimator='cache_gradient', sampler=sampler)
        for sampler in (samplers.Uniform(1), samplers.TopK(1), IDS)]),
    'log_q': ("'sampled_softmax' and objective.importance=True need log q of "
              "every column; use sampler.name='uniform' or 'gumbel'", [
        dict(estimator='sampled_softmax', sampler=sampler)
        for sampler in (samplers.ShortlistGumbel(1, 2), samplers.TopK(1),
                        NONE)]),
    'every_row': ("memory.kind='corpus' and sampler.name='exhaustive'", [
        dict(estimator='full_softmax', columns='draws'),
        dict(estimator='full_softmax', columns='draws', sampler=EXHAUSTIVE,
             memory='ring', refresh=PUSH)]),
    'only_draws': ('data.num_candidates changes .* is right for all that', [
        dict(estimator='cache_gradient', num_candidates=1),
        dict(estimator='sampled_softmax', num_candidates=1),
        dict(estimator='full_softmax', columns='draws', sampler=EXHAUSTIVE,
             num_candidates=1),
        dict(estimator='cache_gradient', num_candidates=1,
             distillation='kl')]),
    'negatives': ("sampler.name='none' .* use columns 'positives', or", [
        dict(sampler=NONE, columns='own'),
        dict(sampler=NONE, columns='draws', memory='none')]),
    'teacher': ('distillation.kind .* need data.num_candidates of at least 1',
                [dict(distillation='kl'),
                 dict(distillation='margin_mse', columns='all'),
                 dict(estimator=objectives.Contrastive(
                     'truncated_softmax', 'all', guide=objectives.Guide(
                         'scores', GIST)))]),
    'teacher_vectors': ("guide.by='embeddings' .* set teacher.folder to", [
        dict(estimator=objectives.Contrastive(
            'truncated_softmax', 'own', guide=objectives.Guide(
                'embeddings', GIST, 8))),
        dict(estimator=objectives.EmbeddingDistilled(
            helpers.objective(), 'mse', .5, False, 8))]),
    'answers': ("objective.name='marginal' needs the likelihoods of a reader",
                [dict(estimator=objectives.Marginal())]),
    'independent': ("importance=True .* sampler.name='gumbel' draws without", [
        dict(estimator=objectives.Marginal(importance=True), reader=ALONE,
             sampler=samplers.Gumbel(2))]),
    'positives': ('spread_out keeps the positives .* answers have none', [
        dict(estimator=objectives.SpreadOut(objectives.Marginal(), 1.),
             reader=ALONE, columns='all', sampler=samplers.Gumbel(2)),
        dict(estimator=objectives.EmbeddingDistilled(
            objectives.Marginal(), 'mse', .5, False, 8), teacher_dim=8,
             reader=ALONE, columns='all', sampler=samplers.Gumbel(2))]),
    'reads_alone': ('reader.fused=True .* has it read each alone', [
        dict(estimator=objectives.Marginal(estimate),
             reader=dataclasses.replace(ALONE, together=True))
        for estimate in ('marginal', 'joint')] + [
            dict(estimator=objectives.Matryoshka(
                objectives.Marginal(), (2,), (1.0,), True),
                 reader=dataclasses.replace(ALONE, together=True))])}
"""Need of an objective -> what is said, and methods in which nothing gives it.
"""


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
      ('fewer_than_none', dict(num_candidates=-1),
       'data.num_candidates=-1 must be a number'),
      ('ceiling_of_draws', dict(
          estimator='sampled_softmax', ceiling=samplers.Ceiling(0.9, None)),
       'estimator.max_share or min_margin changes the columns'),
      ('write_back_nothing', dict(
          sampler=samplers.NoNegatives(), columns='positives',
          refresh=methods.Refresh(write_back=True)), 'needs drawn rows'),
      *[(f'pool_{number}',
         dict(memory=memory, sampler=sampler, refresh=refresh),
         'score mined ids by their rows.*corpus.*rotating')
        for number, (memory, sampler, refresh) in enumerate((
            ('none', SOFTMAX_POOL, methods.Refresh()),
            ('ring', SOFTMAX_POOL, PUSH), ('ring', BESIDE_POOL, PUSH)))],
      ('ring_reencode', dict(memory='ring', refresh=methods.Refresh(
          push=True, reencode_every=5)), 'use refresh.fraction'),
      ('ring_without_push', dict(memory='ring'), 'refresh.push=True'),
      ('coarse_few', dict(memory=COARSE, sampler=samplers.Uniform(1)),
       "memory.scan_dtype='int8' is of scans .* the sampler Uniform does none"),
      ('coarse_moved', dict(memory=COARSE, corrector=helpers.linear()),
       "memory.scan_dtype='int8' .* but Linear moves each"),
      ('coarse_ceiling', dict(memory=COARSE, sampler=samplers.Gumbel(
          1, samplers.Ceiling(.9, 0.))), 'does not go with sampler.max_share'),
      ('own_draws', dict(estimator='cache_gradient', columns='all'),
       "columns='own'"),
      ('log_q', dict(estimator='sampled_softmax', columns='all'),
       "columns='own'"))
  def test_refuses(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      build(**changes)

  @parameterized.parameters(BLIND_POOL, SOFTMAX_POOL, BESIDE_POOL)
  def test_pools_are_mined_for_positives(self, sampler):
    with self.assertRaisesRegex(
        ValueError, "without a positive, but sampler.name='pool' or"):
      build(sampler=sampler, estimator=objectives.Marginal('emdr2'),
            reader=ALONE)

  @parameterized.parameters(*compatibility.NEEDS)
  def test_a_need_that_nothing_gives_is_refused(self, need):
    self.assertIn(need, LACKING, f'give an example of {need!r} there')
    message, methods_without = LACKING[need]
    for options in methods_without:
      with self.assertRaisesRegex(ValueError, message):
        build(**options)

  @parameterized.parameters(
      (samplers.Gumbel(1),), (samplers.TopK(1),), (samplers.ShortlistGumbel(
          1, 2),), (samplers.BucketedGumbel(1, 2),),
      (samplers.Gumbel(1), helpers.linear(keep_norm=False)))
  def test_coarse_rows_go_with_what_scans_them(
      self, sampler, corrector=correctors.Identity()):
    build(memory=COARSE, sampler=sampler, corrector=corrector)

  def test_independent_draws_may_be_weighed(self):
    weighed = objectives.Marginal('emdr2', importance=True)
    for sampler in (samplers.Uniform(3), samplers.Gumbel(1)):
      build(estimator=weighed, reader=ALONE, sampler=sampler)
    build(estimator=weighed, sampler=samplers.Uniform(3),
          reader=dataclasses.replace(ALONE, together=True))

  @parameterized.parameters(
      *[dict(estimator='cache_gradient', sampler=sampler) for sampler in (
          samplers.Gumbel(1), samplers.ShortlistGumbel(1, 2),
          samplers.BucketedGumbel(1, 2))],
      *[dict(estimator='sampled_softmax', sampler=sampler) for sampler in (
          samplers.Gumbel(1), samplers.Uniform(1))],
      dict(estimator='full_softmax', columns='draws', sampler=EXHAUSTIVE),
      dict(sampler=EXHAUSTIVE, columns='all', num_candidates=1),
      dict(num_candidates=1),
      dict(num_candidates=1, distillation='kl', columns='all'),
      dict(sampler=NONE, columns='positives', memory='none'),
      dict(sampler=NONE, columns='all', memory='none', num_candidates=2),
      dict(sampler=NONE, columns='positives', memory='ring', refresh=PUSH),
      dict(sampler=NONE, columns='positives', refresh=methods.Refresh(
          push=True, fraction=0.1, reencode_every=3)),
      dict(sampler=IDS, memory='none'),
      dict(sampler=IDS, memory='none', refresh=methods.Refresh(
          reencode_every=2)),
      dict(sampler=IDS, refresh=methods.Refresh(write_back=True)),
      dict(sampler=BLIND_POOL, memory='none'),
      dict(sampler=BLIND_POOL, memory='ring', refresh=PUSH),
      dict(sampler=SOFTMAX_POOL, estimator='cache_gradient'),
      dict(sampler=BESIDE_POOL, refresh=methods.Refresh(True, True, 0.5, 7)),
      dict(memory='ring', refresh=methods.Refresh(
          push=True, write_back=True, fraction=0.1),
           corrector=helpers.linear(num_anchors=64)),
      dict(refresh=methods.Refresh(True, True, 0.5, 7),
           corrector=helpers.linear(num_anchors=56)),
      dict(targets=methods.Targets('frozen'), columns='all'),
      dict(targets=methods.Targets('rows', 0.1), sampler=NONE,
           columns='positives'))
  def test_goes_together(self, **options):
    self.assertIsInstance(build(**options), methods.Method)

  @parameterized.product(
      refresh=({}, dict(write_back=True), dict(push=True), dict(fraction=0.1),
               dict(reencode_every=2)),
      sampler=(NONE, IDS, samplers.Uniform(1)))
  def test_without_a_memory_nothing_is_drawn_or_refreshed(
      self, refresh, sampler):
    """But a sampler that draws from elsewhere may be built anew."""
    options = dict(sampler=sampler, memory='none', columns='positives',
                   refresh=methods.Refresh(**refresh))
    if not sampler.draws_from_memory and not refresh or (
        sampler == IDS and 'reencode_every' in refresh):
      build(**options)
    else:
      with self.assertRaisesRegex(
          ValueError, "memory.kind='none' remembers nothing to draw from or"):
        build(**options)

  @parameterized.product(
      targets=(methods.Targets('frozen'), methods.Targets('rows', 0.1)),
      options=(
          dict(memory='ring', refresh=PUSH), dict(memory='none', sampler=IDS),
          dict(refresh=PUSH), dict(refresh=methods.Refresh(write_back=True)),
          dict(refresh=methods.Refresh(fraction=0.1)),
          dict(refresh=methods.Refresh(reencode_every=2)),
          dict(corrector=helpers.linear())))
  def test_rows_that_are_the_targets_may_not_be_moved(self, targets, options):
    with self.assertRaisesRegex(
        ValueError, f"targets.source='{targets.source}' takes the rows .* "
        "memory.kind='corpus', all of refresh off and corrector.name="):
      build(targets=targets, **options)

  def test_nothing_is_corrected_without_a_memory(self):
    with self.assertRaisesRegex(
        ValueError, "memory.kind='none' remembers nothing to correct"):
      build(sampler=NONE, memory='none', columns='positives',
            corrector=helpers.linear())

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


SETTING = compatibility.Setting(
    batch_size=8, num_devices=2, num_targets=helpers.NUM_TARGETS, tied=True,
    normalize=True, table_dtype='float32', data_name='toy', split='train',
    num_candidates=None, has_answers=False, has_teacher=False)


@dataclasses.dataclass(frozen=True)
class Pool(memories.Nothing):
  """A memory with more room than there are targets, and no word of filling."""
  kind = 'pool'
  num_slots = 10**9


class SettingTest(parameterized.TestCase):

  def check(self, options, **setting):
    compatibility.check_setting(
        build(**options), dataclasses.replace(SETTING, **setting))

  def test_only_a_memory_that_is_filled_at_first_must_find_enough(self):
    self.check(dict(memory=Pool()))

  @parameterized.named_parameters(
      ('batch', {}, dict(batch_size=9),
       'batch_size=9 must be a multiple of the 2 devices'),
      ('keep_norm', dict(corrector=helpers.linear()), dict(normalize=False),
       'keep_norm=True gives a corrected row the length of the stale one'),
      ('frozen_and_tied', dict(targets=methods.Targets('frozen')), {},
       "targets.source='frozen' trains the query tower alone"),
      ('rows_and_tied', dict(targets=methods.Targets('rows', 0.1)), {},
       "targets.source='rows' trains the query tower alone"),
      ('rows_of_half_precision', dict(targets=methods.Targets('rows', 0.1)),
       dict(tied=False, table_dtype='bfloat16'),
       'which bfloat16 rounds away'),
      ('ring_below_a_batch', dict(memory=helpers.ring(7), refresh=PUSH), {},
       'capacity=7 rows must hold at least one batch of 8'),
      ('ring_beyond_the_corpus',
       dict(memory=helpers.ring(57, prefill=True), refresh=PUSH), {},
       'capacity=57 rows cannot be filled with 56 targets'),
      ('no_candidates', dict(num_candidates=2), {},
       "num_candidates=2, but toy has no candidates of split 'train'; add "
       'candidates/train.tsv'),
      ('too_few_candidates', dict(num_candidates=2), dict(num_candidates=1),
       "num_candidates=2, but no query of split 'train' has more than 1 "),
      ('no_scores', dict(num_candidates=2, distillation='kl'),
       dict(num_candidates=2),
       "distillation.kind .* need teacher scores, but no query of split"),
      ('ids_of_a_set', dict(sampler=IDS), dict(negatives='own'),
       "data.negatives='own' hides the rows of other sets .* and .* does not"),
      ('a_pool_of_a_set', dict(sampler=SOFTMAX_POOL), dict(negatives='own'),
       "negatives='own' hides .*, and Pool does not .* or .*negatives='joint'"),
      ('buckets_of_a_set', dict(sampler=samplers.BucketedGumbel(1, 2)),
       dict(negatives='own'), 'and BucketedGumbel does not look at'),
      ('a_set_on_the_host', dict(
          memory=memories.Corpus(
              helpers.NUM_TARGETS, 'float32', 64, 'host', ''),
          sampler=samplers.Uniform(1)), dict(negatives='own'),
       "or they are on the host; use .*memory.place='device'"),
      ('epochs_of_sets', dict(sampler=BLIND_POOL), dict(negatives='joint'),
       "pool_order='rotating' goes on with each epoch"))
  def test_refuses(self, options, setting, message):
    with self.assertRaisesRegex(ValueError, message):
      self.check(options, **setting)

  @parameterized.parameters(
      ({}, {}), ({}, dict(batch_size=6)), ({}, dict(normalize=False)),
      (dict(corrector=helpers.linear(keep_norm=False)), dict(normalize=False)),
      (dict(corrector=helpers.linear()), {}),
      (dict(targets=methods.Targets('frozen')),
       dict(tied=False, table_dtype='bfloat16')),
      (dict(targets=methods.Targets('rows', 0.1)), dict(tied=False)),
      (dict(memory=helpers.ring(8), refresh=PUSH), {}),
      (dict(memory=helpers.ring(57), refresh=PUSH), {}),
      (dict(memory=helpers.ring(56, prefill=True), refresh=PUSH), {}),
      (dict(memory='none', sampler=NONE, columns='positives'), {}),
      (dict(num_candidates=2), dict(num_candidates=2)),
      (dict(sampler=samplers.ShortlistGumbel(1, 2)), dict(negatives='own')),
      (dict(sampler=NONE, columns='positives'), dict(negatives='own')),
      (dict(sampler=IDS), dict(negatives='joint')),
      (dict(sampler=SOFTMAX_POOL), dict(negatives='joint')),
      (dict(num_candidates=2, distillation='kl'),
       dict(num_candidates=3, has_teacher=True)))
  def test_goes_together(self, options, setting):
    self.check(options, **setting)


if __name__ == '__main__':
  absltest.main()
