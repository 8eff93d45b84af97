"""Every run of every sweep goes together, and sets nothing that is not read."""

import importlib
import inspect
import pathlib
import warnings

import pytest

from retrieval_jax.factory import methods
from tests import helpers
from tests import made_up_readers

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'


def sweeps():
  """Yields (module, function) of all functions of configs that yield runs."""
  for path in sorted(CONFIGS.glob('*.py')):
    module = importlib.import_module(f'configs.{path.stem}')
    for name, function in inspect.getmembers(module, inspect.isfunction):
      if (function.__module__ == module.__name__
          and inspect.isgeneratorfunction(function)
          and not name.startswith('_')):
        yield path.stem, name


@pytest.mark.parametrize('config,sweep', list(sweeps()))
def test_every_run_can_be_made(config, sweep):
  module = importlib.import_module(f'configs.{config}')
  runs = list(getattr(module, sweep)())
  names = [run.get('name', run) for run in runs]
  assert len({str(name) for name in names}) == len(runs)
  for run in runs:
    variant = sweep if sweep in getattr(module, 'VARIANTS', ()) else ''
    made = module.get_config(variant).unlock()
    made.update_from_flattened_dict(
        {key: value for key, value in run.items() if key != 'name'})
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      methods.make_method(
          made, num_targets=200_000, num_queries=30_000,
          reader=None if made.reader.name == 'none' else made_up_readers.Bag(
              helpers.VOCABULARY))


def test_there_are_sweeps():
  assert ('all_methods', 'wordnet') in list(sweeps())
