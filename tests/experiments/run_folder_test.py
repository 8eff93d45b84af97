"""A run owns what it was trained with, whatever becomes of its data."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax import mining
from retrieval_jax import trained
from retrieval_jax.factory import run_folder
from retrieval_jax.jobs import adapt
from retrieval_jax.jobs import embed
from retrieval_jax.jobs import evaluate
from retrieval_jax.jobs import export
from retrieval_jax.jobs import mine
from retrieval_jax.jobs import train
from tests.experiments import tiny
from tests.experiments import train_test

_FEW = {'num_steps': 2, 'evaluation__baselines': False, 'log__every': 1,
        'tokenizer__vocab_size': 120}


@pytest.fixture(name='folder')
def _folder(tmp_path):
  """Returns a folder with data of its own and a run of it."""
  tiny.write_beir(str(tmp_path / 'data'))
  train.run(_config(tmp_path), str(tmp_path / 'run'), num_devices=1)
  return tmp_path


def _config(folder, name='in_batch', **options):
  return tiny.config(name, folder / 'data', folder / 'cache',
                     **{**_FEW, **options})


def _records(folder):
  path = folder / 'data' / 'corpus.jsonl'
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def _write(folder, records):
  (folder / 'data' / 'corpus.jsonl').write_text(
      ''.join(json.dumps(record) + '\n' for record in records), 'utf-8')


_NEW = [{'_id': f'new{i}', 'title': '', 'text': f'quartz vexing wizard {i}'}
        for i in range(30)]


def _by_id(retriever):
  return dict(zip(retriever.dataset.corpus_ids, retriever.stored_targets()))


@pytest.mark.slow
def test_documents_in_another_order_keep_their_vectors(folder):
  before = _by_id(trained.open(str(folder / 'run')))
  _write(folder, _records(folder)[::-1])
  with pytest.warns(UserWarning, match='has changed since the run was trained'):
    retriever = trained.open(str(folder / 'run'))
  after = _by_id(retriever)
  assert list(after) == list(before)[::-1]
  for name, vector in before.items():
    np.testing.assert_allclose(after[name], vector, atol=1e-6)


@pytest.mark.slow
def test_a_corpus_that_grew_is_cut_by_the_tokenizer_of_the_run(folder):
  before = _by_id(trained.open(str(folder / 'run')))
  ours = run_folder.read_tokenizer(str(folder / 'run'))
  _write(folder, _NEW + _records(folder))
  with pytest.warns(UserWarning, match='now 150 targets'):
    retriever = trained.open(str(folder / 'run'))
  made_anew = factory.make_tokenizer(
      factory.settled(_config(folder)), retriever.dataset)
  assert made_anew.fingerprint != ours.fingerprint  # or this shows nothing
  assert retriever.experiment.tokenizer.fingerprint == ours.fingerprint
  after = _by_id(retriever)
  for name, vector in before.items():
    np.testing.assert_allclose(after[name], vector, atol=1e-6)
  [ids], *_ = retriever.search(['quartz vexing wizard 3'], 1)
  assert ids[0].startswith('new')


@pytest.mark.filterwarnings('ignore:.*has changed since')
@pytest.mark.slow
def test_mining_and_evaluation_follow_the_data(folder, tmp_path):
  run = str(folder / 'run')
  _write(folder, _NEW + _records(folder))
  mine.run(mine.Options(out=str(tmp_path / 'more'), workdir=run,
                        rules=mining.Rules(num_negatives=140),
                        index_options={'chunk_rows': 64}))
  assert 'new29' in (tmp_path / 'more/candidates/train.tsv').read_text('utf-8')
  first = json.loads((folder / 'run/results.json').read_text('utf-8'))
  evaluate.run(run, names=['test'])
  second = json.loads((folder / 'run/results.json').read_text('utf-8'))
  assert sorted(first['measures']) == ['dev', 'test']
  assert sorted(second['measures']) == ['test']  # dev's is of other data


@pytest.mark.slow
def test_texts_that_changed_are_embedded_again(folder):
  before = _by_id(trained.open(str(folder / 'run')))
  records = _records(folder)
  records[5]['text'] = records[6]['text']
  _write(folder, records)
  with pytest.warns(UserWarning, match='has changed'):
    after = _by_id(trained.open(str(folder / 'run')))
  np.testing.assert_array_equal(after['d5'], after['d6'])
  assert np.abs(after['d5'] - before['d5']).max() > 1e-3


@pytest.mark.slow
def test_a_run_trained_anew_in_its_folder_has_new_vectors(folder):
  run = folder / 'run'
  before = trained.open(str(run)).stored_targets()
  shutil.rmtree(run / 'checkpoints')
  train.run(_config(folder, seed=1), str(run), num_devices=1)
  retriever = trained.open(str(run))
  np.testing.assert_array_equal(
      retriever.stored_targets(), retriever.embed_targets())
  assert np.abs(retriever.stored_targets() - before).max() > 1e-3


@pytest.mark.slow
def test_results_of_a_run_that_is_gone_are_removed(folder, capsys):
  run = folder / 'run'
  shutil.rmtree(run / 'checkpoints')
  with train_test.stop_after(1):
    assert train.run(_config(folder), str(run), num_devices=1) is None
  said = capsys.readouterr().err
  for name in ('results.json', 'dev.run', 'test.run'):
    assert f'{name} is of an earlier run' in said
    assert not (run / name).exists()


@pytest.mark.slow
def test_a_moved_run_needs_no_cache_and_not_the_encoder_it_started_from(
    folder):
  export.run(str(folder / 'encoder'), str(folder / 'run'))
  shutil.rmtree(folder / 'run')
  train.run(_config(folder, model__pretrained=str(folder / 'encoder'),
                    model__num_layers=0), str(folder / 'run'), num_devices=1)
  retriever = trained.open(str(folder / 'run'))
  expected = retriever.embed_targets()
  for gone in ('cache', 'encoder'):
    shutil.rmtree(folder / gone)
  (folder / 'run').rename(folder / 'elsewhere')
  moved = trained.open(str(folder / 'elsewhere'))
  np.testing.assert_array_equal(moved.embed_targets(), expected)


@pytest.mark.slow
def test_vectors_are_found_again_and_damaged_ones_made_again(folder):
  run = str(folder / 'run')
  expected = np.array(trained.open(run).stored_targets())
  path = folder / 'run' / 'targets' / 'vectors.npy'
  written = path.stat().st_mtime_ns
  np.testing.assert_array_equal(trained.open(run).stored_targets(), expected)
  assert path.stat().st_mtime_ns == written
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.warns(UserWarning, match='vectors.npy: has 1000 bytes'):
    again = trained.open(run).stored_targets()
  np.testing.assert_array_equal(again, expected)
  assert sorted(os.listdir(folder / 'run' / 'targets')) == [
      'files.json', 'origin.json', 'vectors.npy']


def test_a_folder_that_cannot_be_written_to_is_searched_all_the_same(
    folder, monkeypatch):
  def refuse(path):
    raise PermissionError(f'{path}: not allowed')

  monkeypatch.setattr(trained.files, 'new_folder', refuse)
  retriever = trained.open(str(folder / 'run'))
  with pytest.warns(UserWarning, match='cannot keep the embeddings'):
    found = retriever.stored_targets()
  np.testing.assert_array_equal(found, retriever.embed_targets())


@pytest.mark.slow
def test_a_run_starts_from_the_tokenizer_of_another(folder, tmp_path):
  ours = run_folder.read_tokenizer(str(folder / 'run'))
  _write(folder, _NEW + _records(folder))
  config = _config(folder, model__start_from=str(folder / 'run'))
  experiment = factory.build(config, num_devices=1)
  assert experiment.tokenizer.fingerprint == ours.fingerprint
  train.run(config, str(tmp_path / 'on'), num_devices=1)
  on = run_folder.read_tokenizer(str(tmp_path / 'on'))
  assert on.fingerprint == ours.fingerprint
  with pytest.raises(ValueError, match=r'target_length=500 exceeds the \d+ '
                     r'positions .*start_from'):
    factory.build(_config(folder, data__target_length=500,
                          model__start_from=str(folder / 'run')))


@pytest.mark.slow
def test_a_memory_whose_rows_moved_is_refused(folder):
  run = folder / 'rows'
  train.run(_config(folder, 'direct_gradient', num_steps=2), str(run),
            num_devices=1)
  _write(folder, _records(folder)[::-1])
  with pytest.raises(ValueError, match='rows of its memory are no longer'):
    trained.open(str(run))
  with pytest.raises(ValueError, match='rows of its memory are no longer'):
    trained.load_state(str(run), num_devices=1)


@pytest.mark.slow
def test_an_index_of_other_vectors_is_refused(folder):
  run, out = str(folder / 'run'), str(folder / 'vectors')
  embed.run(out, workdir=run)
  adapt.run(adapt.Options(
      embeddings=out, out=str(folder / 'adapted'), method=['xs'],
      dev_share=0., max_dev_queries=10), say=lambda line: None)
  index = str(folder / 'adapted' / 'xs')
  trained.open(run).index(index)
  evaluate.of_index(index, ['test'], ['RR@10'], embeddings=out)
  shutil.rmtree(folder / 'run' / 'checkpoints')
  train.run(_config(folder, seed=1), run, num_devices=1)
  with pytest.raises(ValueError, match='do not belong .*differ in parameters'):
    trained.open(run).index(index)
  embed.run(str(folder / 'other'), workdir=run)
  with pytest.raises(ValueError, match='do not belong .*differ in parameters'):
    evaluate.of_index(index, ['test'], ['RR@10'],
                      embeddings=str(folder / 'other'))
  records = _records(folder)
  records[0]['text'] = 'kabel'
  _write(folder, records)
  with pytest.raises(ValueError, match='made of other texts'):
    mine.run(mine.Options(
        out=str(folder / 'mined'), rules=mining.Rules(num_negatives=2),
        embeddings=out, config=_config(folder)))


@pytest.mark.parametrize('name', ['tokenizer.json', 'encoder.json'])
def test_a_missing_or_damaged_file_is_named(folder, name):
  path = pathlib.Path(folder / 'run' / name)
  path.write_text(path.read_text('utf-8')[:-40], 'utf-8')
  with pytest.raises(ValueError, match=name):
    trained.open(str(folder / 'run'))
  path.write_text('{"config": {}, "architecture": "T5Config"}', 'utf-8')
  with pytest.raises(ValueError, match=name):
    trained.open(str(folder / 'run'))
  path.unlink()
  with pytest.raises(FileNotFoundError, match=f'{name}: no such file'):
    trained.open(str(folder / 'run'))


def test_a_tokenizer_comes_back_as_it_was(tmp_path):
  tokenizer = data.train_tokenizer(['one two', 'three two'], 60)
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  assert run_folder.read_tokenizer(
      str(tmp_path)).fingerprint == tokenizer.fingerprint
