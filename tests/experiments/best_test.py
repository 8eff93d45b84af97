"""The best checkpoint on dev is kept, evaluated and opened if asked."""

import json
import os
import shutil
from unittest import mock

import jax
import numpy as np
import pytest

import retrieval_jax
from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax import trained
from retrieval_jax.jobs import evaluate
from retrieval_jax.jobs import export
from retrieval_jax.jobs import hooks
from retrieval_jax.jobs import train
from retrieval_jax.training import checkpoint
from tests.experiments import tiny
from tests.experiments.train_test import stop_after

# Step 2 is the best; step 3 is as good, but later.
VALUES = {1: 0.1, 2: 0.5, 3: 0.5, 4: 0.3}
BEST = {'measure': 'dev/nDCG@10', 'step': 2, 'value': 0.5}
OPTIONS = {'checkpoint__best': 'dev/nDCG@10', 'evaluation__every': 1,
           'evaluation__baselines': False, 'checkpoint__every': 3}


def train_on(config, workdir, values=VALUES):
  """Trains with these values of dev/nDCG@10 in place of what is measured."""
  with mock.patch.object(hooks, 'evaluate_dev', lambda experiment, state: {
      'dev/nDCG@10': values[int(state.step)], 'dev/R@1': 0.}):
    return train.run(config, str(workdir), num_devices=1)


def steps(workdir):
  return sorted(int(name) for name in os.listdir(
      os.path.join(workdir, 'checkpoints')) if name.isdigit())


@pytest.fixture(scope='module', name='kept')
def fixture_kept(make_config, tmp_path_factory):
  """Returns (workdir, results) of a run whose table every step changes."""
  workdir = tmp_path_factory.mktemp('runs') / 'best'
  return workdir, train_on(
      make_config('stale', **OPTIONS, **tiny.MOVING), workdir)


@pytest.mark.parametrize('name', ['stale', 'direct_gradient'])
@pytest.mark.slow
def test_the_best_is_kept_evaluated_and_opened(
    name, kept, make_config, tmp_path, capfd):
  options = {} if name == 'direct_gradient' else tiny.MOVING
  workdir, results = kept
  if name == 'direct_gradient':  # whose targets are the rows of the table
    workdir = tmp_path / 'best'
    results = train_on(make_config(name, **OPTIONS), workdir)
    assert 'best by dev/nDCG@10 is step 2: 0.5000' in capfd.readouterr().err
  assert results['best'] == BEST and results['steps'] == 4
  with open(workdir / 'results.json', encoding='utf-8') as f:
    assert json.load(f)['best'] == BEST
  assert steps(workdir) == [2, 4]
  # The same run, stopped there.
  stopped = str(tmp_path / 'stopped')
  plain = make_config(name, evaluation__baselines=False, **options)
  with stop_after(2):
    assert train.run(plain, stopped, num_devices=1) is None
  capfd.readouterr()
  there, found = (trained.open(path, 1) for path in (stopped, str(workdir)))
  assert (there.step, found.step) == (2, 2)
  assert capfd.readouterr().err.count('\n') == 1  # of the one that has a best
  jax.tree.map(np.testing.assert_array_equal, found.params, there.params)
  np.testing.assert_array_equal(found.embed_targets(), there.embed_targets())
  measured = evaluate.of_params(
      there.experiment, there.params, there.table_embeddings, ['dev', 'test'])
  assert results['measures'] == measured
  # It differs from the last, or the test would show nothing.
  last = train.run(plain, stopped, num_devices=1)
  assert last['measures'] != measured and 'best' not in last


@pytest.mark.slow
def test_an_evaluation_of_the_best_updates_the_results(kept, tmp_path, capfd):
  workdir = str(shutil.copytree(kept[0], tmp_path / 'copy'))
  found, step = evaluate.run(workdir, measures=['R@3'])
  assert f'{workdir}: step 2, the best by dev/nDCG@10; the last is 4.\n' in (
      capfd.readouterr().err)
  assert step == 2
  with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as f:
    now = json.load(f)
  assert now['measures']['test'] == {**kept[1]['measures']['test'],
                                     **found['test']}
  assert (now['best'], now['steps']) == (BEST, 4)
  export.run(str(tmp_path / 'model'), workdir)
  card = (tmp_path / 'model' / 'README.md').read_text('utf-8')
  assert 'step 2 of 4' in card and 'Measured at step' not in card


@pytest.mark.parametrize('stop', [1, 3])  # before and after the best
@pytest.mark.slow
def test_a_resumed_run_knows_the_best(stop, kept, make_config, tmp_path):
  config = make_config('stale', **OPTIONS, **tiny.MOVING)
  with stop_after(stop):
    assert train_on(config, tmp_path) is None
  resumed = train_on(config, tmp_path)
  workdir, results = kept
  for part in ('measures', 'best'):
    assert resumed[part] == results[part]
  opened = [trained.open(str(path), 1) for path in (workdir, tmp_path)]
  jax.tree.map(np.testing.assert_array_equal, *(one.params for one in opened))
  for file in ('dev.run', 'test.run'):
    assert (workdir / file).read_bytes() == (tmp_path / file).read_bytes()
  assert steps(tmp_path) == steps(workdir) == [2, 4]


@pytest.mark.slow
def test_a_run_that_is_stopped_on_the_way_opens_its_best_so_far(
    make_config, tmp_path):
  with stop_after(3):
    assert train_on(make_config('stale', **OPTIONS), tmp_path) is None
  assert steps(tmp_path) == [2, 3]
  assert retrieval_jax.open_run(str(tmp_path), 1).step == 2


@pytest.mark.slow
def test_the_last_step_counts_whether_or_not_its_turn_has_come(
    make_config, tmp_path):
  options = OPTIONS | {'evaluation__every': 3}
  results = train_on(make_config('stale', **options), tmp_path,
                     {3: 0.2, 4: 0.7})
  assert results['best'] == {**BEST, 'step': 4, 'value': 0.7}
  assert steps(tmp_path) == [4]
  lines = tiny.read_metrics(tmp_path)
  assert [(line['step'], line['dev/nDCG@10']) for line in lines
          if 'dev/nDCG@10' in line] == [(3, 0.2), (4, 0.7)]
  assert lines[-1]['test/nDCG@10'] == results['measures']['test']['nDCG@10']


@pytest.mark.parametrize('form', ['8', '8/binary_rescored'])
@pytest.mark.slow
def test_what_is_measured_is_what_is_compared(form, make_config, tmp_path):
  """Nothing in place of anything, the measure of a prefix, also quantised."""
  name = f'dev/RR@10/{form}'
  config = make_config(
      'stale', **OPTIONS | {'checkpoint__best': name}, num_steps=6,
      evaluation__dims=(8,), evaluation__precisions=('binary',), **tiny.MOVING)
  results = train.run(config, str(tmp_path), num_devices=1)
  measured = {line['step']: line[name]
              for line in tiny.read_metrics(tmp_path) if name in line}
  assert sorted(measured) == [1, 2, 3, 4, 5, 6]
  best = max(measured, key=measured.get)
  assert results['best'] == {
      'measure': name, 'step': best, 'value': measured[best]}
  assert results['measures']['dev'][f'RR@10/{form}'] == measured[best]


@pytest.mark.parametrize('options, message', [
    ({'evaluation__every': 0}, r"best='dev/nDCG@10' needs .*evaluation.every"),
    ({'checkpoint__best': 'test/nDCG@10'},
     'is not measured during training; name one of dev/RR@10, dev/R@1, '),
    ({'checkpoint__best': 'dev/MRR'}, "best='dev/MRR' is not measured"),
    ({'checkpoint__best': 'dev/RR@10/8'}, "best='dev/RR@10/8' is not measured"),
    ({'checkpoint__best': 'dev/RR@10/int8'},
     "best='dev/RR@10/int8' is not measured"),
])
def test_a_measure_that_there_is_not_is_refused_at_the_start(
    options, message, make_config, tmp_path):
  with mock.patch.object(data, 'prepare', side_effect=AssertionError):
    with pytest.raises(ValueError, match=message):
      train.run(make_config('stale', **OPTIONS | options), str(tmp_path))
  # Whoever does not train does not need it.
  factory.build(make_config('stale', **OPTIONS | options), training=False)


def test_another_choice_of_the_best_is_refused(kept, make_config):
  options = OPTIONS | {'checkpoint__best': 'dev/R@1'}
  with pytest.raises(ValueError, match=(
      "checkpoint.best: saved 'dev/nDCG@10', now 'dev/R@1'")):
    train_on(make_config('stale', **options, **tiny.MOVING), kept[0])


def test_one_checkpoint_is_kept_besides_the_latest(tmp_path):
  state = {'x': np.ones(3, np.float32)}
  with checkpoint.Checkpoints(str(tmp_path / 'c'), keep=2) as kept:
    for step, best in ((1, None), (2, 2), (3, 2), (4, 2), (5, 2), (6, 6)):
      kept.save(step, state, {}, best)
      kept.wait()
      expected = {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [2, 4, 5],
                  6: [5, 6]}[step]
      assert sorted(int(name) for name in os.listdir(
          tmp_path / 'c') if name.isdigit()) == expected
