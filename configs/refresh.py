"""All targets re-encoded every R steps, negatives from the top: ANCE.

Xiong et al., ICLR 2021, take each negative at random from the 200 targets that
an index of an earlier checkpoint ranks highest; so does this, from a table that
is re-encoded between steps instead of in parallel with them. R is ours.

  python -m experiments.train --config=configs/refresh.py --workdir=runs/refresh
  python -m experiments.train --config=configs/refresh.py:tiny --workdir=/tmp/t
"""

from configs import base
from configs.base import seeds


def get_config(variant=''):
  """Returns the configuration; `variant` is '' or 'tiny'."""
  config = base.get_config(variant).unlock()
  config.sampler.name = 'top_k'
  config.sampler.depth = 200 if variant != 'tiny' else 20
  config.refresh.reencode_every = 100 if variant != 'tiny' else 2
  return config.lock()
