"""What the tests of the scripts share: a data set, a cache, a trained run."""

import pytest

from retrieval_jax.jobs import train
from tests.experiments import tiny


@pytest.fixture(scope='session')
def beir(tmp_path_factory):
  """Returns the folder of a tiny data set in BEIR layout."""
  return tiny.write_beir(str(tmp_path_factory.mktemp('data') / 'words'))


@pytest.fixture(scope='session')
def cache(tmp_path_factory):
  """Returns a cache folder of this run of the tests."""
  return str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='session')
def make_config(beir, cache):
  """Returns name, **overrides -> tiny config on the data set."""
  return lambda name, **overrides: tiny.config(name, beir, cache, **overrides)


@pytest.fixture(scope='session')
def trained(make_config, tmp_path_factory):
  """Returns (workdir, results) of a finished run with a memory in motion."""
  workdir = str(tmp_path_factory.mktemp('runs') / 'moving')
  config = make_config('stale', **tiny.MOVING)
  return workdir, train.run(config, workdir, num_devices=1)
