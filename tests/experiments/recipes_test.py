"""The components of CONTRIBUTING.md train once the registries name them."""

import pathlib
import re
from unittest import mock

import numpy as np

from retrieval_jax.factory import registries
from retrieval_jax.jobs import train
from tests.experiments import tiny

_CONTRIBUTING = pathlib.Path(__file__).parents[2] / 'CONTRIBUTING.md'


def components():
  """Returns what the Python blocks of CONTRIBUTING.md define."""
  defined = {}
  for block in re.findall(r'^```python\n(.*?)^```', _CONTRIBUTING.read_text(
      encoding='utf-8'), re.DOTALL | re.MULTILINE):
    scope = {'__name__': 'recipe'}
    exec(compile(block, 'recipe', 'exec'), scope)
    defined |= scope
  return defined


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
