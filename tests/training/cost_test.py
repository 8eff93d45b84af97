"""What a step costs, by hand; and what components say, against what they do."""

import dataclasses
import types as namespaces
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import correctors
from retrieval_jax import objectives
from retrieval_jax import samplers
from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import training
from retrieval_jax import types
from retrieval_jax.training import cost as costs
from tests import helpers

B, K, M, D, N = 4, 2, 256, 8, 200
QUERY, TARGET, PASSES = 3., 5., 4  # FLOPs of a text, and passes of its gradient


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Scores 100 rows for each query and corrects 70 for all of them."""
  reads_embeddings: bool = True
  on_host: bool = False
  scored: int = 100

  def rows_scored(self, num_queries, capacity):
    assert capacity == M
    return num_queries * self.scored, 70 if self.scored else 0


class Corrector:
  """Costs 1000 FLOPs a row to apply and 10 a row and query to update."""
  folds = False

  def flops_per_row(self, dim):
    assert dim == D
    return 1000.

  def flops_per_update(self, num_rows, num_queries, dim):
    assert dim == D
    return 10. * num_rows * num_queries


def count(*, sampler=Sampler(), corrector=correctors.Identity(),
          source='encoder', negative_ids=range(B * K), probe_ids=(),
          objective=objectives.Contrastive('truncated_softmax', 'own'),
          num_candidates=0, has_positives=True):
  """Returns the counts of one step."""
  meter = training.Meter()
  method = namespaces.SimpleNamespace(
      sampler=sampler, corrector=corrector, objective=objective,
      num_negatives=K, num_candidates=num_candidates,
      has_positives=has_positives,
      targets=namespaces.SimpleNamespace(source=source))
  cost = costs.Cost(
      meter=meter, method=method, dim=D, batch_size=B, query_flops=QUERY,
      target_flops=TARGET, passes=PASSES)
  cost.step(M, jnp.array(list(negative_ids), jnp.int32),
            jnp.array(probe_ids, jnp.int32))
  return meter.counts()


class CostTest(parameterized.TestCase):

  def test_a_step_with_everything_in_it(self):
    got = count(corrector=Corrector(), probe_ids=(7, 8, 9))
    observed = B * K + 3 + B
    self.assertEqual(got, {
        'query_encoder_calls': B + B,  # to propose, and for the loss
        'target_encoder_calls_in_step': B + B * K,
        'target_encoder_calls_reembedding': 3,
        'flops_in_step': (B * QUERY + PASSES * B * QUERY
                          + PASSES * (B + B * K) * TARGET),
        'flops_reembedding': 3 * TARGET,
        # 100 rows per query; own column and K others, forward and back.
        'flops_scoring': 2 * D * B * 100 + 3 * 2 * D * B * (1 + K),
        'flops_correcting': (70 + observed) * 1000 + 10 * observed * B})

  @parameterized.parameters((False, PASSES), (True, PASSES + 1))
  def test_what_is_read_counts_by_its_length(self, fuses, passes):
    meter = training.Meter()
    method = namespaces.SimpleNamespace(
        reader=namespaces.SimpleNamespace(
            flops=lambda length: 10. * length**2, fuses=fuses))
    costs.Cost(meter, method, D, B, QUERY, TARGET, PASSES).reading(
        np.array([3, 0, 5, 3]))  # 0: nothing was drawn
    got = meter.counts()
    self.assertEqual(got['reader_calls'], 3)
    self.assertEqual(got['flops_reading'], passes * 10 * (9 + 25 + 9))

  def test_what_is_corrected_between_steps_counts_by_the_row(self):
    meter = training.Meter()
    costs.Cost(meter, namespaces.SimpleNamespace(corrector=Corrector()), D, B,
               QUERY, TARGET, PASSES).correcting(7)
    self.assertEqual(meter.counts()['flops_correcting'], 7 * 1000)

  @parameterized.parameters((False, 7), (True, 0))
  def test_what_is_built_to_draw_by(self, folds, corrected):
    meter, corrector = training.Meter(), Corrector()
    corrector.folds = folds
    cost = costs.Cost(
        meter, namespaces.SimpleNamespace(corrector=corrector), D, B, QUERY,
        TARGET, PASSES)
    cost.comparing(0, 0)
    self.assertNotIn('flops_indexing', meter.counts())  # there is no tree
    cost.comparing(50, 7)
    self.assertEqual(meter.counts()['flops_indexing'], 2 * D * 50)
    self.assertEqual(meter.counts()['flops_correcting'], 1000 * corrected)

  def test_questions_without_positives_encode_none(self):
    got = count(has_positives=False, corrector=Corrector())
    self.assertEqual(got['target_encoder_calls_in_step'], B * K)
    self.assertEqual(
        got['flops_correcting'], (70 + B * K) * 1000 + 10 * B * K * B)

  @parameterized.parameters((100, B), (0, 0))
  def test_queries_are_corrected_in_place_of_rows(self, scored, corrected):
    corrector = Corrector()
    corrector.folds = True
    got = count(sampler=Sampler(scored=scored), corrector=corrector)
    observed = B * (1 + K)
    self.assertEqual(
        got['flops_correcting'],
        (corrected + observed) * 1000 + 10 * observed * B)

  def test_padding_is_no_text(self):
    got = count(negative_ids=(3, -1, -1, 5, 6, 7, -1, 8),
                probe_ids=(-1, 2, -1))
    self.assertEqual(got['target_encoder_calls_in_step'], B + 5)
    self.assertEqual(got['target_encoder_calls_reembedding'], 1)
    self.assertEqual(got['flops_reembedding'], TARGET)
    self.assertEqual(
        got['flops_in_step'],
        (1 + PASSES) * B * QUERY + PASSES * (B + 5) * TARGET)

  def test_queries_are_encoded_once_where_nothing_is_scored(self):
    got = count(sampler=Sampler(scored=0))
    self.assertEqual(got['query_encoder_calls'], B)
    self.assertEqual(got['flops_scoring'], 3 * 2 * D * B * (1 + K))
    self.assertEqual(got['flops_correcting'], 0)

  @parameterized.parameters(('frozen', 2), ('rows', 3))
  def test_targets_of_the_table_are_not_encoded(self, source, products):
    got = count(source=source, negative_ids=())
    self.assertEqual(got['target_encoder_calls_in_step'], 0)
    self.assertEqual(got['flops_in_step'], (1 + PASSES) * B * QUERY)
    # Frozen targets have no gradient.
    self.assertEqual(got['flops_scoring'],
                     2 * D * B * (100 + products * (1 + K)))

  @parameterized.parameters(
      ('own', K), ('positives', K + B), ('all', B + B * K), ('draws', B * K))
  def test_columns(self, columns, others):
    got = count(objective=objectives.Contrastive(
        'truncated_softmax', columns))['flops_scoring']
    self.assertEqual(got, 2 * D * B * (100 + 3 * (1 + others)))

  def test_prefixes_and_a_teacher(self):
    taught = objectives.Distilled(
        objectives.Contrastive('truncated_softmax', 'own'),
        objectives.Distillation('kl'))
    got = count(objective=objectives.Matryoshka(taught, (2, 4)),
                num_candidates=1)['flops_scoring']
    self.assertEqual(got, 2 * D * B * 100 + 3 * 2 * (2 + 4) * B * (1 + 1 + K))

  def test_passes_of_a_text_with_a_gradient(self):
    passes = costs.passes_of_gradient
    self.assertEqual(passes(chunked=False, remat=False), 3)
    self.assertEqual(passes(chunked=True, remat=False), 4)
    self.assertEqual(passes(chunked=True, remat=True), 5)

  @parameterized.parameters(
      ('encoder', True, True), ('encoder', False, False),
      ('frozen', False, True), ('rows', False, True))
  def test_who_reads_the_memory(self, source, sampler_reads, reads):
    method = namespaces.SimpleNamespace(
        sampler=Sampler(sampler_reads),
        targets=namespaces.SimpleNamespace(source=source))
    self.assertEqual(costs.Cost(
        training.Meter(), method, D, B, QUERY, TARGET, PASSES).reads_memory,
        reads)


class SamplerCostTest(parameterized.TestCase):

  @parameterized.parameters(
      # M = 256 rows are scanned; then K, a shortlist or a pool of blocks of 16
      # rows (of 64 for Gumbel-top-k) is scored again.
      (samplers.TopK(K), 16 * K, 0),
      (samplers.TopK(K, ceiling=samplers.Ceiling(0.9, None)), 16 * K, B),
      (samplers.TopK(K, 3), 16 * 3, 0),
      (samplers.Gumbel(K), 64 * K, 0),
      (samplers.Gumbel(K, samplers.Ceiling(0.9, None)), 64 * K, B),
      # Not more blocks than there are.
      (samplers.Gumbel(5), 64 * 4, 0),
      (samplers.SimANS(K, 3, 1., 0.), 16 * 3, B),
      (samplers.ShortlistGumbel(K, 3), 16 * 3, 0),
      # 32 buckets of 8 rows, a block each.
      (samplers.BucketedGumbel(K, 32), 8 * 32, 0),
  )
  @pytest.mark.slow
  def test_scans(self, sampler, again, positives):
    # Buckets are of the rows that can hold a target, which may be fewer.
    is_bucketed = isinstance(sampler, samplers.BucketedGumbel)
    corrected_again = B * again if is_bucketed else 0
    products, rows = sampler.rows_scored(B, M)
    self.assertEqual(products, B * M + B * again + positives)
    self.assertEqual(rows, M + corrected_again + positives)
    size = M if is_bucketed else N
    self.assert_true(
        sampler, (products - B * again + corrected_again, rows), size)
    self.assertEqual(
        self.seen(sampler, size, fold=scoring.unmoved)[0], products)

  @parameterized.parameters(
      (samplers.TopK(K, ceiling=samplers.Ceiling(0.9, None)), 16 * K),
      (samplers.Gumbel(K, samplers.Ceiling(0.9, None)), 64 * K),
      (samplers.SimANS(K, 3, 1., 0.), 16 * 3))
  def test_a_ceiling_adds_one_row_per_query(self, sampler, again):
    self.assertEqual(sampler.rows_scored(301, M), (
        301 * M + 301 * again + 301, M + 301))

  @parameterized.parameters(
      (samplers.NoNegatives(), 0, 0), (samplers.Uniform(K), B * K, B * K),
      (samplers.Exhaustive(N, B), N, N),
      (samplers.StochasticNegativeMining(K, 10), B * (10 + K), 10 + B * K))
  @pytest.mark.slow
  def test_without_a_scan(self, sampler, scored, corrected):
    self.assertEqual(sampler.rows_scored(B, M), (scored, corrected))
    self.assert_true(sampler, (scored, corrected))

  def assert_true(self, sampler, claimed, num_targets=N):
    """Compares with the rows that pass the corrector, and their products."""
    self.assertEqual(self.seen(sampler, num_targets), claimed)

  def seen(self, sampler, num_targets, fold=None):
    """Returns (products, rows) that pass the corrector, of a draw."""
    seen = {'products': 0, 'rows': 0}

    def record(rows, per_row):
      seen['products'] += int(rows) * int(per_row)
      seen['rows'] += int(rows)

    def correct(rows):
      # Rows of one query come with it as first axis; others are for all.
      shared = rows.ids.ndim == 1 and rows.ids.shape != (B,)
      jax.debug.callback(record, rows.ids.size, B if shared else 1)
      return rows.embeddings.astype(jnp.float32)

    rng = np.random.default_rng(0)
    table = tables.from_embeddings(
        rng.normal(size=(num_targets, D)).astype(np.float32),
        sharding.make_mesh(1), 64, 'float32')
    self.enter_context(mock.patch.object(scoring, 'uncorrected', correct))
    view = types.View(table, correct, jnp.float32(1),
                      types.Scan(sharding.make_mesh(1), 64), fold)
    queries = rng.normal(size=(B, D)).astype(np.float32)
    jax.block_until_ready(sampler.propose(
        (), jax.random.key(0), helpers.request(
            queries, table, positives=np.arange(B)), view))
    jax.effects_barrier()
    return seen['products'], seen['rows']


class CorrectorCostTest(absltest.TestCase):

  def test_identity_is_free(self):
    corrector = correctors.Identity()
    self.assertEqual(corrector.flops_per_row(D), 0)
    self.assertEqual(corrector.flops_per_update(10, B, D), 0)

  def test_linear(self):
    make = lambda fit: correctors.Linear(fit, 0.01, 0.9, 0, 0, True, True)
    self.assertEqual(make('ridge').flops_per_row(8), 2 * 8 * 8)
    sums = 2 * 10 * 9 * 9 + 2 * 10 * 9 * 8  # x x^T and x (g - v)^T
    self.assertAlmostEqual(
        make('ridge').flops_per_update(10, B, 8),
        sums + 9**3 / 3 + 2 * 9 * 9 * 8)
    self.assertEqual(make('procrustes').flops_per_update(10, B, 8),
                     sums + 22 * 8**3 + 2 * 8**3)

  def test_nystrom(self):
    make = lambda kernel: correctors.Nystrom(
        num_landmarks=12, landmarks='uniform', kernel=kernel, bandwidth=1.,
        ridge=0.01, decay=0.9, num_anchors=3, use_after=0, keep_norm=True)
    self.assertEqual(make('linear').flops_per_row(8), 2 * 8 * 8)
    self.assertEqual(make('rbf').flops_per_row(8), 2 * (2 * 12 * 8))
    for kernel, size, values in (('linear', 9, 0), ('rbf', 12, 2 * 12 * 8)):
      features = 10 * (values + size**2)  # and a triangular solution
      sums = 2 * (10 + 12) * size * (size + 8)  # of rows and landmarks
      solution = size**3 / 3 + 2 * size**2 * 8
      self.assertAlmostEqual(
          make(kernel).flops_per_update(10, B, 8),
          features + sums + solution + size**2 * 8)

  def test_mlp(self):
    make = lambda weight: correctors.MLP(
        hidden=6, learning_rate=1e-3, warmup_steps=0, updates_per_step=3,
        weight_decay=0., distribution_weight=weight, average_decay=0.,
        condition_on_age=False, num_anchors=0, use_after=0, keep_norm=True,
        reset_on_refresh=True)
    self.assertEqual(make(0.).flops_per_row(8), 2 * 8 * 6 + 2 * 6 * 8)
    # Forward W1, W2; back W2, h and W1. Three times over ten rows.
    network = 3 * 10 * 5 * 2 * 8 * 6
    self.assertEqual(make(0.).flops_per_update(10, B, 8), network)
    logits = 2 * B * 10 * 8
    self.assertEqual(make(0.1).flops_per_update(10, B, 8),
                     network + 3 * (logits + 2 * logits))


if __name__ == '__main__':
  absltest.main()
