"""Vectors of a whole corpus lie in files, or never on the host as a whole."""

import json
import os
from unittest import mock

import numpy as np
import pytest

from retrieval_jax import factory
from retrieval_jax import files
from retrieval_jax import trained
from retrieval_jax.factory import experiment as experiments
from retrieval_jax.jobs import embed
from retrieval_jax.jobs import train
from tests.experiments import tiny

NUM_COPIES = 5


@pytest.fixture(scope='module', name='make')
def make_config_with_copies(tmp_path_factory, cache):
  """Returns make(config's name, **overrides) -> config, of data with copies."""
  folder = tiny.write_beir(str(tmp_path_factory.mktemp('copied')))
  path = os.path.join(folder, 'corpus.jsonl')
  with open(path, encoding='utf-8') as f:
    records = [json.loads(line) for line in f]
  with open(path, 'a', encoding='utf-8') as f:
    for record in records[:NUM_COPIES]:
      f.write(json.dumps(record | {'_id': record['_id'] + '-again'}) + '\n')
  return lambda name, **overrides: tiny.config(name, folder, cache, **overrides)


def in_files():
  """Makes any vectors too many for the memory."""
  return mock.patch.object(experiments, '_IN_MEMORY', 0)


def nowhere():
  """Fails where the host is to hold vectors of all targets."""
  return mock.patch.object(
      factory.Experiment, 'room', side_effect=AssertionError)


def test_many_vectors_are_mapped_from_a_file_without_a_name(make, tmp_path):
  config = make('stale').unlock()
  config.data.cache = str(tmp_path)
  experiment = factory.build(config.lock(), num_devices=1)
  there = sorted(os.walk(tmp_path))
  expected = experiment.embed_targets(experiment.params)
  distinct = experiment.embed_targets(
      experiment.params, experiment.dataset.distinct_ids)
  assert not isinstance(expected, np.memmap)
  with in_files():
    found = experiment.embed_targets(experiment.params)
    whole = experiment.of_all_targets(distinct)
  assert isinstance(found, np.memmap) and isinstance(whole, np.memmap)
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_allclose(whole, expected, atol=1e-6)
  assert sorted(os.walk(tmp_path)) == there


def read(workdir, name):
  with open(os.path.join(workdir, f'{name}.json'), encoding='utf-8') as f:
    return json.load(f)


@pytest.mark.slow
@pytest.mark.parametrize('name, options', [
    ('stale', {'diagnostics__every': 2, 'forgetting__every': 2}),
    ('direct_gradient', {'forgetting__every': 2}),
    ('ance_tele', {'forgetting__every': 2}),
    ('ance_tele', {'memory__kind': 'corpus', 'corrector__name': 'linear'})],
                         ids=str)
def test_where_they_lie_changes_no_run(name, options, make, tmp_path):
  config = make(name, evaluation__baselines=True, **options)
  found, scratch = {}, files.scratch_array
  for place in ('memory', 'file'):
    workdir = str(tmp_path / place)
    with mock.patch.object(files, 'scratch_array', side_effect=scratch) as made:
      if place == 'memory':
        train.run(config, workdir, num_devices=1)
      else:
        with in_files():
          train.run(config, workdir, num_devices=1)
    assert bool(made.call_count) == (place == 'file')
    with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as f:
      metrics = [{key: value for key, value in json.loads(line).items()
                  if '/' in key or key == 'nll'} for line in f]
    found[place] = [read(workdir, 'results')['measures'],
                    read(workdir, 'baselines'), metrics]
  assert found['file'] == found['memory']


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize('dim', [None, 8])
def test_embedding_writes_them_as_they_come(dtype, dim, make, tmp_path):
  config = make('in_batch')
  with nowhere():
    targets, queries = embed.run(
        str(tmp_path / 'out'), config=config, dtype=dtype, dim=dim)
  assert isinstance(targets, np.memmap) and targets.dtype == dtype
  assert isinstance(queries, np.memmap) and queries.dtype == dtype
  expected = trained.from_config(config, num_devices=1).embed_targets()[:, :dim]
  expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
  np.testing.assert_allclose(
      targets, expected, atol=1e-3 if dtype == 'float16' else 1e-6)


@pytest.mark.slow
def test_a_run_that_is_opened_maps_them(make, tmp_path):
  workdir = str(tmp_path / 'run')
  train.run(make('stale', num_steps=2), workdir, num_devices=1)
  retriever = trained.open(workdir, num_devices=1)
  with nowhere():
    found = retriever.stored_targets()
  assert isinstance(found, np.memmap)
  np.testing.assert_array_equal(found, retriever.embed_targets())


@pytest.mark.slow
def test_a_full_disk_is_known_before_anything_is_embedded(make, tmp_path):
  workdir = str(tmp_path / 'run')
  train.run(make('stale', num_steps=2), workdir, num_devices=1)
  retriever = trained.open(workdir, num_devices=1)
  calls = []
  of = type(retriever).embed_targets
  with mock.patch.object(
      type(retriever), 'embed_targets',
      lambda self, out=None: calls.append(out) or of(self, out)
  ), mock.patch.object(
      files, 'new_array', side_effect=OSError(28, 'No space left')
  ), pytest.warns(UserWarning, match='cannot keep the embeddings.*No space'):
    found = retriever.stored_targets()
  assert calls == [None]
  assert len(found) == tiny.NUM_TARGETS + NUM_COPIES
  assert not os.path.exists(os.path.join(workdir, 'targets'))
