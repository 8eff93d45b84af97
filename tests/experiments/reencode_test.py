"""Runs that re-encode the whole table every so many steps."""

import jax
import numpy as np
import pytest

from retrieval_jax.jobs import train
from tests.experiments import tiny
from tests.experiments import train_test

EVERY, STEPS, BATCH, DRAWS = 2, 5, 16, 1


@pytest.fixture(scope='module')
def config(make_config):
  """Returns a config that re-encodes after steps 2 and 4 of 5."""
  return make_config(
      'stale', num_steps=STEPS, refresh__reencode_every=EVERY,
      sampler__num_negatives=DRAWS, corrector__name='linear',
      corrector__reset_on_refresh=True, log__every=1,
      evaluation__baselines=False)


@pytest.fixture(scope='module')
def straight(config, tmp_path_factory):
  """Returns (state, results, workdir) of the run that nothing stopped."""
  workdir = str(tmp_path_factory.mktemp('reencode'))
  results = train.run(config, workdir, num_devices=1)
  return train_test.final_state(workdir), results, workdir


@pytest.mark.slow
def test_re_encoded_rows_say_when_it_was(straight):
  table = straight[0].table
  np.testing.assert_array_equal(
      np.asarray(table.written)[np.asarray(table.ids) >= 0], 4)
  # The draws of step 2 see rows of that very step.
  age = {line['step']: line['train/age']
         for line in tiny.read_metrics(straight[2]) if 'train/age' in line}
  assert age == {1: 0, 2: 1, 3: 0, 4: 1, 5: 0}


@pytest.mark.slow
def test_a_run_stopped_at_a_re_encoding_equals_a_straight_one(
    straight, config, tmp_path):
  """The checkpoint of that step holds the table that was re-encoded."""
  with train_test.stop_after(EVERY):
    assert train.run(config, str(tmp_path), num_devices=1) is None
  stopped = train_test.final_state(str(tmp_path))
  assert int(stopped.step) == EVERY
  np.testing.assert_array_equal(
      np.asarray(stopped.table.written)[:tiny.NUM_TARGETS], EVERY)
  resumed = train.run(config, str(tmp_path), num_devices=1)
  jax.tree.map(np.testing.assert_array_equal,
               train_test.final_state(str(tmp_path)), straight[0])
  assert tiny.losses(str(tmp_path)) == tiny.losses(straight[2])
  assert resumed['measures'] == straight[1]['measures']


@pytest.mark.slow
def test_the_meter_counts_re_encoding(straight):
  """Once to begin with, and after steps 2 and 4."""
  meter = straight[1]['meter']
  assert meter['target_encoder_calls_reembedding'] == 3 * tiny.NUM_TARGETS
  assert meter['target_encoder_calls_in_step'] == STEPS * BATCH * (1 + DRAWS)
  assert meter['query_encoder_calls'] == 2 * STEPS * BATCH  # propose, too
  assert meter['flops_reembedding'] > 0
