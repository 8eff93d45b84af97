"""Runs whose targets are the rows of the table, from training to search."""

import os
import shutil

import jax
import numpy as np
import pytest

from retrieval_jax import factory
from retrieval_jax import trained
from retrieval_jax.jobs import embed
from retrieval_jax.jobs import evaluate
from retrieval_jax.jobs import train
from tests.experiments import train_test

pytestmark = pytest.mark.slow  # each trains


@pytest.fixture(name='runs', scope='module')
def fixture_runs(make_config, tmp_path_factory):
  """Returns name -> (workdir, results) of finished runs on one device."""
  made = {}
  for name in ('adore', 'direct_gradient'):
    workdir = str(tmp_path_factory.mktemp('runs') / name)
    made[name] = workdir, train.run(
        options(make_config, name), workdir, num_devices=1)
  return made


def options(make_config, name):
  return make_config(name, log__every=1, diagnostics__every=4)


@pytest.mark.parametrize('name', ['adore', 'direct_gradient'])
def test_only_the_query_tower_and_rows_are_trained(name, runs, make_config):
  workdir, results = runs[name]
  state = train_test.final_state(workdir)
  experiment = factory.build(options(make_config, name), num_devices=1)
  jax.tree.map(np.testing.assert_array_equal, state.params['target_tower'],
               experiment.params['target_tower'])
  moved = jax.tree.map(lambda a, b: bool((a != b).any()),
                       state.params['query_tower'],
                       experiment.params['query_tower'])
  assert all(jax.tree.leaves(moved))
  initial = experiment.embed_targets(experiment.params)
  rows = np.asarray(state.table.embeddings)[:len(initial)]
  if name == 'adore':
    np.testing.assert_array_equal(rows, initial)
  else:
    assert np.abs(rows - initial).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
  meter = results['meter']
  assert meter['target_encoder_calls_in_step'] == 0
  assert meter['target_encoder_calls_reembedding'] == len(initial)


@pytest.mark.parametrize('name', ['adore', 'direct_gradient'])
def test_a_resumed_run_equals_a_straight_one(
    name, runs, make_config, tmp_path):
  straight, results = runs[name]
  config, workdir = options(make_config, name), str(tmp_path)
  with train_test.stop_after(3):
    assert train.run(config, workdir, num_devices=1) is None
  resumed = train.run(config, workdir, num_devices=1)
  jax.tree.map(np.testing.assert_array_equal,
               train_test.final_state(workdir),
               train_test.final_state(straight))
  assert resumed['measures'] == results['measures']


def test_a_run_is_searched_by_its_trained_rows(runs, tmp_path):
  """On eight devices here, whose table would be padded to other sizes."""
  workdir, results = runs['direct_gradient']
  rows = np.asarray(train_test.final_state(workdir).table.embeddings)
  retriever = trained.open(workdir)
  experiment, params = retriever.experiment, retriever.params
  np.testing.assert_array_equal(retriever.table_embeddings, rows)
  targets = retriever.embed_targets()
  np.testing.assert_array_equal(targets, rows[:len(targets)])
  assert np.abs(targets - experiment.embed_targets(params)).max() > 1e-3

  found = evaluate.of_params(
      experiment, params, retriever.table_embeddings, ['dev', 'test'])
  for split in ('dev', 'test'):
    assert found[split] == pytest.approx(results['measures'][split])
  embed.run(str(tmp_path / 'out'), workdir=workdir)
  np.testing.assert_array_equal(
      np.load(tmp_path / 'out' / 'targets.npy'), targets)

  [ids], [scores], [texts] = retriever.search(
      [experiment.dataset.query_texts[0]], 5)
  [vector] = experiment.embed_queries(params, np.array([0]))
  best = np.argsort(-(targets @ vector))[:5]
  assert ids == [experiment.dataset.corpus_ids[int(row)] for row in best]
  assert texts == [experiment.dataset.corpus_texts[int(row)] for row in best]
  np.testing.assert_allclose(scores, targets[best] @ vector, atol=1e-5)
  shutil.rmtree(os.path.join(workdir, 'targets'))


@pytest.mark.parametrize('name', ['adore', 'direct_gradient'])
def test_diagnostics_find_no_drift(name, runs):
  [found] = [line for line in train_test.tiny.read_metrics(runs[name][0])
             if 'diagnostics/tv' in line]
  assert found['diagnostics/drift_before'] == 0
  assert found['diagnostics/tv'] < 1e-5
