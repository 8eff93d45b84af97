r"""Negatives about as similar as the positive: SimANS on a stale table.

Zhou et al., EMNLP 2022, with candidates from the table rather than from a dump.

  python -m experiments.train --config=configs/simans.py --workdir=runs/simans
  python -m experiments.train --config=configs/simans.py:tiny --workdir=/tmp/t
"""

from configs import base
from configs.base import seeds


def get_config(variant=''):
  """Returns the configuration; `variant` is '' or 'tiny'."""
  config = base.get_config(variant).unlock()
  config.sampler.name = 'simans'
  config.sampler.pool_size = 200 if variant != 'tiny' else 20  # [ours]
  return config.lock()
