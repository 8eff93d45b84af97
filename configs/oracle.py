"""Negatives from a memory that is (almost) never stale: the upper bound.

  python -m experiments.train --config=configs/oracle.py --workdir=runs/oracle
  python -m experiments.train --config=configs/oracle.py:tiny --workdir=/tmp/t
"""

from configs import base
from configs.base import seeds


def get_config(variant=''):
  """Returns the configuration; `variant` is '' or 'tiny'."""
  config = base.get_config(variant).unlock()
  config.sampler.name = 'gumbel'
  config.refresh.reencode_every = 10 if variant != 'tiny' else 1
  return config.lock()
