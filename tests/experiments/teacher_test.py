"""Runs under a teacher made by embed: training, resuming, what is refused."""

import os
import shutil

import jax
import numpy as np
import pytest

from retrieval_jax import factory
from retrieval_jax import trained as trained_lib
from retrieval_jax.data import embeddings
from retrieval_jax.jobs import embed
from retrieval_jax.jobs import train
from tests.experiments import tiny
from tests.experiments import train_test

GUIDED = {'guide__by': 'embeddings', 'guide__min_margin': 0.01}
FOLLOWED = {'teacher__loss': 'mse', 'teacher__weight': 0.4,
            'teacher__projection': True}
QUICK = {'evaluation__baselines': False, 'log__every': 1}


@pytest.fixture(scope='module', name='folder')
def make_folder(make_config, tmp_path_factory):
  """Returns the embeddings of another encoder, of 24 dimensions."""
  folder = str(tmp_path_factory.mktemp('teacher') / 'vectors')
  embed.run(folder, config=make_config(
      'in_batch', seed=9, model__projection=24), dtype='float16')
  return folder


def logged(workdir):
  return [line for line in tiny.read_metrics(workdir) if 'train/nll' in line]


@pytest.mark.parametrize('name, devices, options', [
    ('stale', 1, {'sampler__name': 'gumbel', 'sampler__num_negatives': 2}),
    ('stale', 2, {'sampler__name': 'top_k', 'encoding__chunk_size': 8,
                  'estimator__matryoshka_dims': (8, 32)}),
    ('stale', 1, {'sampler__name': 'pool', 'refresh__reencode_every': 2,
                  'episodes__depth': 20, 'episodes__per_list': 4}),
    ('in_batch', 2, {'estimator__pairs': ('query_query', 'target_target')})])
@pytest.mark.slow
def test_trains_with_every_kind_of_negatives(
    name, devices, options, folder, make_config, tmp_path):
  config = make_config(
      name, **QUICK, **GUIDED, **FOLLOWED, teacher__folder=folder,
      teacher__on_device=devices == 2, **options, num_steps=3)
  results = train.run(config, str(tmp_path), num_devices=devices)
  assert "guide=Guide(by='embeddings'" in results['method']
  assert "EmbeddingDistilled(" in results['method']
  assert results['config']['teacher']['dim'] == 24
  lines = logged(str(tmp_path))
  assert len(lines) == 3
  for line in lines:
    assert 0 < line['train/guided'] < 1
    assert line['train/distance_queries'] > 0
    if name == 'in_batch':
      assert line['train/distance_draws'] == 0
      np.testing.assert_allclose(line['train/loss'], 0.6 * line['train/nll'] + (
          0.2 * (line['train/distance_queries']
                 + line['train/distance_positives'])), rtol=1e-5)
  # What the teacher needed is no part of the retriever.
  opened = trained_lib.open(str(tmp_path))
  assert 'objective' not in opened.params


@pytest.mark.slow
def test_follows_the_teacher(folder, make_config, tmp_path):
  config = make_config(
      'in_batch', **QUICK, **FOLLOWED | {
          'teacher__weight': 1.0, 'teacher__loss': 'cosine'},
      teacher__folder=folder, num_steps=30, optimizer__learning_rate=3e-3)
  train.run(config, str(tmp_path), num_devices=1)
  first, *_, last = [line['train/loss'] for line in logged(str(tmp_path))]
  assert last < 0.7 * first


@pytest.mark.slow
def test_the_encoder_itself_leaves_no_distance(make_config, tmp_path):
  """So that vectors, ids and texts belong together all the way."""
  config = make_config('stale', **QUICK, num_steps=1)
  folder = str(tmp_path / 'own')
  embed.run(folder, config=config)
  with config.unlocked():
    config.teacher.folder = folder
    config.teacher.loss = 'mse'
  train.run(config, str(tmp_path / 'run'), num_devices=1)
  [line] = logged(str(tmp_path / 'run'))
  for side in ('queries', 'positives', 'draws'):
    assert line[f'train/distance_{side}'] < 1e-9


@pytest.mark.slow
def test_a_stopped_and_resumed_run_equals_a_straight_one(
    folder, make_config, tmp_path):
  config = make_config(
      'stale', **tiny.MOVING | QUICK, **GUIDED, **FOLLOWED,
      teacher__folder=folder, num_steps=5)
  straight, stopped = str(tmp_path / 'straight'), str(tmp_path / 'stopped')
  train.run(config, straight, num_devices=1)
  with train_test.stop_after(3):
    assert train.run(config, stopped, num_devices=1) is None
  moved = str(tmp_path / 'moved')  # as data may move
  shutil.copytree(folder, moved)
  with config.unlocked():
    config.teacher.folder = moved
    config.teacher.on_device = True
  assert train.run(config, stopped, num_devices=1) is not None
  jax.tree.map(np.testing.assert_array_equal, train_test.final_state(stopped),
               train_test.final_state(straight))


@pytest.mark.slow
def test_another_teacher_does_not_go_on(folder, make_config, tmp_path):
  config = make_config('in_batch', **QUICK, **FOLLOWED, teacher__folder=folder)
  workdir, other = str(tmp_path / 'run'), str(tmp_path / 'other')
  with train_test.stop_after(2):
    assert train.run(config, workdir, num_devices=1) is None
  embed.run(other, config=make_config(
      'in_batch', seed=8, model__projection=24), dtype='float16')
  with config.unlocked():
    config.teacher.folder = other
  with pytest.raises(ValueError, match='teacher_fingerprint: saved'):
    train.run(config, workdir, num_devices=1)
  shutil.rmtree(other)
  embed.run(other, config=make_config('in_batch', model__projection=16))
  with pytest.raises(ValueError, match='teacher.dim: saved 24, now 16'):
    train.run(config, workdir, num_devices=1)


@pytest.mark.slow
def test_a_run_is_opened_without_its_teacher(folder, make_config, tmp_path):
  gone = str(tmp_path / 'gone')
  shutil.copytree(folder, gone)
  workdir = str(tmp_path / 'run')
  train.run(make_config('in_batch', **QUICK, **GUIDED, **FOLLOWED, num_steps=1,
                        teacher__folder=gone), workdir, num_devices=1)
  shutil.rmtree(gone)
  assert trained_lib.open(workdir).embed_targets().shape == (
      tiny.NUM_TARGETS, 32)
  assert int(train_test.final_state(workdir).step) == 1


def refuse_ids(folder):
  with open(os.path.join(folder, 'target_ids.txt'), 'r+',
            encoding='utf-8') as f:
    names = f.read().replace('d7\n', 'e7\n', 1)
    f.seek(0)
    f.write(names)


def refuse_file(folder):
  os.remove(os.path.join(folder, 'queries.npy'))


def refuse_dimension(folder):
  vectors = embeddings.read(folder, 'queries').vectors
  np.save(os.path.join(folder, 'queries.npy'), np.array(vectors[:, 1:]))


@pytest.mark.parametrize('damage, options, message', [
    (refuse_ids, GUIDED, "folder=.* has no vector of 1 of 120 targets .*'d7'"),
    (refuse_file, GUIDED, 'folder=.* must be a folder that .* queries.npy'),
    (refuse_dimension, GUIDED, 'has 24 dimensions, .* 23'),
    (shutil.rmtree, GUIDED, 'teacher.folder=.* must be a folder that'),
    (None, {'teacher__loss': 'mse'},
     'of 24 dimensions, and the encoder embeds in 32; set --config.teacher.pr'),
    (None, {**GUIDED, 'guide__max_share': 1.5}, 'guide.max_share=1.5 must lie'),
    (None, {**GUIDED, 'guide__min_margin': None},
     "guide.by='embeddings' needs guide.max_share or guide.min_margin"),
    (None, {'guide__by': 'nobody'}, "guide.by='nobody' is not one of"),
    (None, {**FOLLOWED, 'teacher__loss': 'l1'}, "teacher.loss='l1' is not one"),
    (None, {**GUIDED, 'teacher__folder': ''}, 'set teacher.folder to what'),
    (None, {**FOLLOWED, 'teacher__folder': ''}, 'set teacher.folder to what'),
    (None, {'guide__by': 'scores'}, "guide.by='scores' compare"),
    (None, {**GUIDED, 'estimator__name': 'cache_gradient',
            'estimator__columns': 'own'}, "guide.by='embeddings' leaves out")])
def test_refuses(damage, options, message, folder, make_config, tmp_path):
  copy = str(tmp_path / 'vectors')
  shutil.copytree(folder, copy)
  if damage:
    damage(copy)
  config = make_config(
      'stale', **{'teacher__folder': copy, **QUICK, **options})
  with pytest.raises(ValueError, match=message):
    train.run(config, str(tmp_path / 'run'), num_devices=1)


@pytest.mark.parametrize('options, message', [
    ({'guide__max_share': 0.9}, 'guide.max_share=0.9 is not read with .*guide'),
    ({'teacher__weight': 0.9}, 'teacher.weight=0.9 is not read with .*loss'),
    ({'teacher__folder': True}, 'teacher.folder=.* is not read with .*loss')])
def test_warns_of_what_is_not_read(options, message, folder, make_config):
  options = {name: folder if value is True else value
             for name, value in options.items()}
  with pytest.warns(UserWarning, match=message):
    factory.build(make_config('stale', **options), num_devices=1)


@pytest.mark.slow
def test_scores_of_the_data_guide(beir, cache, tmp_path):
  folder = str(tmp_path / 'scored')
  shutil.copytree(beir, folder)
  with open(os.path.join(folder, 'qrels', 'train.tsv'), encoding='utf-8') as f:
    judged = [line.split() for line in f.readlines()[1:]]
  os.makedirs(os.path.join(folder, 'candidates'))
  with open(os.path.join(folder, 'candidates', 'train.tsv'), 'w',
            encoding='utf-8') as f:
    f.write('query-id\tcorpus-id\tscore\n')
    for query, target, _ in judged:  # of three candidates two are above
      for i, score in enumerate((5, 7, 6, 4)):
        other = (int(target[1:]) + i) % tiny.NUM_TARGETS
        f.write(f'{query}\td{other}\t{score}\n')
  config = tiny.config(
      'in_batch', folder, cache, data__num_candidates=3, guide__by='scores',
      estimator__columns='own', num_steps=2, **QUICK)
  train.run(config, str(tmp_path / 'run'), num_devices=1)
  for line in logged(str(tmp_path / 'run')):
    np.testing.assert_allclose(line['train/guided'], 2 / 3, rtol=1e-6)
    assert line['train/columns'] == 1
