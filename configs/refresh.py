"""All targets re-encoded every R steps, hardest negatives: the ANCE regime.

  python -m experiments.train --config=configs/refresh.py --workdir=runs/refresh
  python -m experiments.train --config=configs/refresh.py:tiny --workdir=/tmp/t
"""

from configs import base
from configs.base import seeds  # pylint: disable=unused-import


def get_config(variant=''):
  """Returns the configuration; `variant` is '' or 'tiny'."""
  config = base.get_config(variant).unlock()
  config.sampler.name = 'top_k'
  config.refresh.reencode_every = 100 if variant != 'tiny' else 2
  return config.lock()
