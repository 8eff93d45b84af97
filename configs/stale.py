"""The stale baseline: a table of all targets, embedded once, never again.

  python -m experiments.train --config=configs/stale.py --workdir=runs/stale
  python -m experiments.train --config=configs/stale.py:tiny --workdir=/tmp/tiny
"""

from configs import base
from configs.base import seeds


def get_config(variant=''):
  """Returns the configuration; `variant` is '' or 'tiny'."""
  config = base.get_config(variant).unlock()
  config.memory.kind = 'corpus'
  config.sampler.name = 'gumbel'
  return config.lock()
