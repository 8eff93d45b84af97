"""Runs on candidates that come with the data, and what they refuse."""

import os
import shutil
import threading
from unittest import mock

import numpy as np
import pytest

from retrieval_jax import factory
from retrieval_jax.jobs import train
from tests.experiments import tiny


@pytest.fixture(scope='module', name='folder')
def make_folder(beir, tmp_path_factory):
  """Returns the tiny data set with three scored candidates per train query."""
  folder = str(tmp_path_factory.mktemp('data') / 'taught')
  shutil.copytree(beir, folder)
  with open(os.path.join(folder, 'qrels', 'train.tsv'), encoding='utf-8') as f:
    lines = [line.split() for line in f.readlines()[1:]]
  write(folder, ['query-id\tcorpus-id\tscore', *(
      f'{query}\td{(int(target[1:]) + i) % tiny.NUM_TARGETS}\t{5 - i}'
      for query, target, _ in lines for i in range(4))])
  return folder


def write(folder, lines):
  os.makedirs(os.path.join(folder, 'candidates'), exist_ok=True)
  with open(os.path.join(folder, 'candidates', 'train.tsv'), 'w',
            encoding='utf-8') as f:
    f.writelines(line + '\n' for line in lines)


@pytest.mark.slow
def test_trains_on_candidates_and_teacher(folder, cache, tmp_path):
  config = tiny.config(
      'stale', folder, cache, data__num_candidates=2, log__every=1, num_steps=3,
      estimator__max_share=0.95, distillation__kind='kl',
      distillation__weight=0.3, evaluation__baselines=False)
  results = train.run(config, str(tmp_path), num_devices=1)
  calls = results['meter']['target_encoder_calls_in_step']
  assert calls == 3 * config.batch_size * (
      1 + config.sampler.num_negatives + 2)
  assert "distillation=Distillation(kind='kl', weight=0.3" in results['method']
  logged = [line for line in tiny.read_metrics(str(tmp_path))
            if 'train/nll' in line]
  assert len(logged) == 3
  for line in logged:
    assert line['train/distilled'] == 1
    np.testing.assert_allclose(
        line['train/loss'],
        0.7 * line['train/nll'] + 0.3 * line['train/distillation'], rtol=1e-5)
    np.testing.assert_allclose(line['train/columns'], sum(
        line[f'train/columns_{name}']
        for name in ('in_batch', 'drawn', 'candidates')), rtol=1e-5)
    assert line['train/columns_candidates'] > 0
    assert line['train/columns_masked'] > 0


@pytest.mark.parametrize('number', [0, 2])
def test_says_when_candidates_are_there_and_unused(
    number, folder, cache, tmp_path, monkeypatch, capsys):
  class EnoughError(Exception):
    pass

  monkeypatch.setattr(train, 'start_state', mock.Mock(side_effect=EnoughError))
  with pytest.raises(EnoughError):
    train.run(tiny.config('stale', folder, cache, data__num_candidates=number),
              str(tmp_path), num_devices=1)
  said = capsys.readouterr().err
  assert ("candidates of split 'train', which are not used: "
          '--config.data.num_candidates=0' in said) == (not number)


def test_an_error_ends_the_threads_that_make_batches(
    beir, cache, tmp_path, monkeypatch):
  before, during = set(threading.enumerate()), set()

  def fail(state, batches, *_, **__):
    next(batches)
    during.update(set(threading.enumerate()) - before)
    raise FloatingPointError('the first step')

  monkeypatch.setattr(train.loop, 'train', fail)
  with pytest.raises(FloatingPointError) as held:  # with the frames of run
    train.run(tiny.config('stale', beir, cache, evaluation__baselines=False),
              str(tmp_path), num_devices=1)
  making = [thread for thread in during if 'grain' in thread.name]
  assert making
  for thread in making:
    thread.join(timeout=20)
    assert not thread.is_alive(), (thread, held)


@pytest.mark.parametrize('lines, options, message', [
    (None, {}, "num_candidates=2, but .* has no candidates of split 'train'"),
    (['q0\td0\t1', 'q0\td1\t1', 'q1\td5\t'], {'data__num_candidates': 3},
     "no query of split 'train' has more than [12] candidates"),
    (['q0\td1\t', 'q0\td2\t3', 'q0\td3\t'], {'distillation__kind': 'kl'},
     'no query of split .* has both a positive and another candidate'),
    (['q0\td1\t', 'q0\td2\t3', 'q0\td3\t'], {'distillation__weight': 2.0},
     r'distillation.weight=2.0 must lie in \(0, 1\]'),
    (['q0\td1\t'], {'estimator__max_share': 1.5},
     r'estimator.max_share=1.5 must lie in \(0, 1\]')])
def test_refuses(lines, options, message, beir, cache, tmp_path):
  folder = str(tmp_path / 'data')
  shutil.copytree(beir, folder)
  if lines:
    write(folder, lines)
  config = tiny.config(
      'stale', folder, cache, **{'data__num_candidates': 2, **options})
  with pytest.raises(ValueError, match=message):
    factory.build(config, num_devices=1)
