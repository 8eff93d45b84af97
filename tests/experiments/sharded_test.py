"""A run whose parameters lie in shards is a run like any other."""

import json
import os
from unittest import mock

import jax
import numpy as np
import pytest

from experiments import embed
from experiments import evaluate
from retrieval_jax import factory
from retrieval_jax import trained
from retrieval_jax.jobs import train
from retrieval_jax.training import signals
from tests.experiments import scripts_test
from tests.experiments import tiny

pytestmark = pytest.mark.slow  # each trains

PREFIXES = {'estimator__matryoshka_dims': (8, 32), 'evaluation__dims': (8,),
            'encoding__buckets': (24,), 'log__every': 1}


@pytest.mark.parametrize('parameters', ['sharded', 'by_layer'])
def test_a_sharded_run_stops_goes_on_whole_and_is_started_from(
    parameters, make_config, tmp_path):
  """On two devices, over prefixes, in chunks; whole again from step 2 on."""
  layout = {'sharding__parameters': parameters, 'sharding__min_size': 256}
  workdir = str(tmp_path / 'run')
  sharded = make_config('stale', **layout, **PREFIXES)
  with mock.patch.object(
      signals.StopSignal, '__call__', lambda self, now: now >= 2):
    assert train.run(sharded, workdir, num_devices=2) is None
  _, state = trained.load_state(workdir, num_devices=2)
  opened = trained.open(workdir, num_devices=2)
  for params in (state.params, opened.params):
    table = params['tower']['transformer']['token_table']
    assert tuple(table.sharding.spec) == (None, 'data')
  assert opened.origin['parameters'] == (
      trained.open(workdir, num_devices=1).origin['parameters'])
  whole = make_config('stale', **PREFIXES)
  results = train.run(whole, workdir, num_devices=2)

  straight = str(tmp_path / 'straight')
  train.run(whole, straight, num_devices=2)
  assert tiny.losses(workdir) == pytest.approx(
      tiny.losses(straight), rel=1e-4)
  of_test = results['measures']['test']
  assert 0 < of_test['RR@10/8'] != of_test['RR@10']
  assert results['untrained']['test']['R@100/8'] > 0

  scripts_test.call(evaluate, f'--workdir={workdir}', '--dims=4,8',
                    '--splits=test', '--measures=RR@10')
  with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as f:
    again = json.load(f)['measures']['test']
  assert again['RR@10/8'] == pytest.approx(of_test['RR@10/8'])
  assert again['RR@10/4'] > 0
  with pytest.raises(SystemExit, match='--dims=.* beyond the 32 dimensions'):
    scripts_test.call(evaluate, f'--workdir={workdir}', '--dims=64')

  for options in ('', '--dim=8'):
    scripts_test.call(embed, f'--workdir={workdir}',
                      f'--out={tmp_path}/embedded{options}', *options.split())
  full, cut = (np.load(f'{tmp_path}/embedded{options}/targets.npy')
               for options in ('', '--dim=8'))
  assert full.shape[1] == 32
  prefix = full[:, :8]
  np.testing.assert_allclose(
      cut, prefix / np.linalg.norm(prefix, axis=1, keepdims=True), rtol=1e-5)

  started = factory.build(
      make_config('stale', model__start_from=workdir, **layout), num_devices=2)
  start = started.make_step()[0].init_state(
      started.params, started.make_table(started.embed_targets(started.params)))
  jax.tree.map(
      np.testing.assert_array_equal, jax.device_get(start.params),
      jax.device_get(trained.open(workdir, num_devices=2).params))


@pytest.mark.parametrize('options, message', [
    ({'sharding__parameters': 'split'},
     "--config.sharding.parameters='split' is not one of"),
    ({'sharding__min_size': 0, 'sharding__parameters': 'sharded'},
     'sharding.min_size=0 must be at least 1'),
    ({'estimator__matryoshka_dims': (8, 64)},
     r'--config.estimator.matryoshka_dims=\(8, 64\) goes beyond the 32'),
    ({'evaluation__dims': (8, 4)},
     r'--config.evaluation.dims=\(8, 4\) must be ascending'),
    ({'evaluation__precisions': ('int8', 'int4')},
     r"--config.evaluation.precisions=\('int8', 'int4'\): expected names"),
    ({'evaluation__rescore_multiplier': -1},
     '--config.evaluation.rescore_multiplier=-1 must be at least 1')])
def test_wrong_options_are_refused(make_config, options, message):
  with pytest.raises(ValueError, match=message):
    factory.build(make_config('in_batch', **options), num_devices=1)
