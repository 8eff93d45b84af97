"""The components of CONTRIBUTING.md train once the registries name them."""

from unittest import mock

import numpy as np
import pytest

from retrieval_jax.factory import registries
from retrieval_jax.jobs import train
from tests import docs_test
from tests.experiments import tiny


def components():
  """Returns what the Python blocks of CONTRIBUTING.md define."""
  defined = {}
  for block in docs_test.PYTHON.findall(
      docs_test.read(docs_test.ROOT / 'CONTRIBUTING.md')):
    scope = {'__name__': 'recipe'}
    exec(compile(block, 'recipe', 'exec'), scope)
    defined |= scope
  return defined


@pytest.mark.slow
def test_a_file_a_line_and_a_config_are_enough(make_config, tmp_path):
  defined = components()
  config = make_config(
      'stale', sampler__name='newest', corrector__name='shift',
      objective__name='triplet', evaluation__baselines=False, **tiny.MOVING)
  with config.unlocked():
    config.objective.margin = 0.1
  with (mock.patch.dict(registries.SAMPLERS, newest=defined['Newest']),
        mock.patch.dict(registries.CORRECTORS, shift=defined['Shift']),
        mock.patch.dict(registries.OBJECTIVES, triplet=defined['Triplet'])):
    results = train.run(config, str(tmp_path), num_devices=1)
  for name in ('Newest', 'Shift', 'Triplet'):
    assert f'={name}(' in results['method']
  assert np.isfinite(list(tiny.losses(str(tmp_path)).values())).all()
  last = tiny.read_metrics(str(tmp_path))
  assert any(line.get('train/active', 0) > 0 for line in last)
  assert any(line.get('train/offset', 0) > 0 for line in last)
