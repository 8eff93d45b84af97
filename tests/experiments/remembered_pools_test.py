"""Pools that the memory scores, stands beside, or is searched for."""

import jax
import numpy as np
import pytest

from retrieval_jax import factory
from retrieval_jax.jobs import train
from retrieval_jax.mining import episodes
from tests.experiments import episodes_test
from tests.experiments import tiny
from tests.experiments import train_test

pytestmark = pytest.mark.slow  # each trains

KEPT = {'memory__kind': 'corpus', 'episodes__restart': False,
        'refresh__write_back': True, 'refresh__push': True}
BY_MEMORY = KEPT | {'episodes__later': 'memory'}
CORRECTORS = {
    'identity': {},
    'linear': {'corrector__name': 'linear', 'corrector__keep_norm': False},
    'mlp': {'corrector__name': 'mlp', 'corrector__learning_rate': 0.1,
            'corrector__warmup_steps': 0}}
SAMPLERS = {
    'softmax': {'sampler__pool_order': 'softmax'},
    'beside': {'sampler__name': 'pool_gumbel', 'sampler__num_pooled': 2}}


def state_after(step, config, workdir):
  """Returns the state of a run that is stopped after a step, on the host."""
  with train_test.stop_after(step):
    train.run(config, workdir, num_devices=1)
  return jax.device_get(train_test.final_state(workdir))


def passes(workdir):
  """Returns how often the corpus was embedded for training."""
  return episodes_test.counts(workdir)[
      'target_encoder_calls_reembedding'] / tiny.NUM_TARGETS


@pytest.mark.slow
def test_pools_by_the_memory_embed_nothing_more(make_config, tmp_path):
  config = episodes_test.make(make_config, **BY_MEMORY | {
      'refresh__write_back': False, 'refresh__push': False})
  train.run(config, str(tmp_path), num_devices=1)
  assert passes(str(tmp_path)) == 1
  table = train_test.final_state(str(tmp_path)).table
  np.testing.assert_array_equal(table.written, 0)
  counts = episodes_test.counts(str(tmp_path))
  queries = tiny.NUM_QUERIES['train']  # embedded to mine three times
  assert counts['query_encoder_calls'] == 7 * config.batch_size + 3 * queries


@pytest.mark.slow
def test_without_training_they_are_those_of_a_fresh_table(
    make_config, tmp_path):
  found = []
  for later in ('encoder', 'memory'):
    config = episodes_test.make(make_config, **KEPT | {
        'episodes__later': later, 'optimizer__learning_rate': 0.})
    workdir = str(tmp_path / later)
    train.run(config, workdir, num_devices=1)
    found.append(np.asarray(train_test.final_state(workdir).sampler.ids))
    assert passes(workdir) == (3 if later == 'encoder' else 1)
  np.testing.assert_array_equal(*found)


@pytest.mark.parametrize('corrector', CORRECTORS)
@pytest.mark.slow
def test_they_are_the_nearest_of_the_corrected_rows(
    corrector, make_config, tmp_path):
  config = episodes_test.make(
      make_config, **BY_MEMORY | CORRECTORS[corrector])
  experiment = factory.build(config, num_devices=1)
  before = state_after(1, config, str(tmp_path))
  state = state_after(2, config, str(tmp_path))
  qrels = experiment.dataset.qrels['train']
  rows, ids = qrels.queries(), np.arange(tiny.NUM_TARGETS)
  queries = experiment.embed_queries(state.params, rows)

  def pools(embeddings):
    embeddings = np.asarray(embeddings)[:tiny.NUM_TARGETS]
    search = lambda vectors, depth: np.argsort(
        -vectors @ embeddings.T, axis=1)[:, :depth].astype(np.int32)
    lists = episodes.mine(
        experiment.plan, episodes.Corpus(ids, embeddings, search), queries,
        rows, positives=qrels.padded_positives(rows),
        known=qrels.padded_known(rows), seed=config.seed, episode=2)
    return episodes.pool(experiment.plan, lists, before.sampler.ids[rows],
                         rows, seed=config.seed, episode=2)

  stale = pools(state.table.embeddings)
  moved = pools(experiment.method.corrector.apply(
      state.corrector, state.table))
  found = state.sampler.ids[rows]
  np.testing.assert_array_equal(found[:, :moved.shape[1]], moved)
  assert (found[:, moved.shape[1]:] == -1).all()
  assert np.array_equal(moved, stale) == (corrector == 'identity')


def check_resumes(config, tmp_path, *, interruptions):
  """Checks that a run that is interrupted ends as one that is not."""
  straight = str(tmp_path / 'straight')
  train.run(config, straight, num_devices=1)
  for place, interrupted in enumerate(interruptions):
    workdir = str(tmp_path / str(place))
    interrupted(config, workdir)
    train.run(config, workdir, num_devices=1)
    episodes_test.check_same(workdir, straight)
    assert (episodes_test.counts(workdir)
            == episodes_test.counts(straight))
  return straight


def killed(config, workdir):
  with episodes_test.killed_in_mining(2), pytest.raises(KeyboardInterrupt):
    train.run(config, workdir, num_devices=1)


def stopped(config, workdir):
  with train_test.stop_after(3):
    train.run(config, workdir, num_devices=1)


@pytest.mark.slow
def test_a_run_that_mines_in_its_memory_goes_on(make_config, tmp_path):
  check_resumes(
      episodes_test.make(make_config, **BY_MEMORY | CORRECTORS['linear']),
      tmp_path, interruptions=(killed, stopped))


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_draws_that_are_scored_are_trained_on(sampler, make_config, tmp_path):
  """They are written back, and drawn again where a run goes on."""
  options = KEPT | SAMPLERS[sampler] | {'refresh__push': False}
  config = episodes_test.make(make_config, **options)
  straight = check_resumes(config, tmp_path, interruptions=(stopped,))
  table = train_test.final_state(straight).table
  assert np.isin(np.arange(4, 7), table.written).all()
  assert passes(straight) == 3
