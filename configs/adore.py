r"""Frozen targets, the query tower trained on real-time top-k: ADORE.

Zhan et al., SIGIR 2021: the target tower is never trained, so that the table,
embedded once, stays exact. Here it starts from the pretrained encoder, not from
the paper's STAR.

  python -m experiments.train --config=configs/adore.py --workdir=runs/adore
  python -m experiments.train --config=configs/adore.py:tiny --workdir=/tmp/tiny
"""

from configs import base
from configs.base import seeds


def get_config(variant=''):
  """Returns the configuration; `variant` is '' or 'tiny'."""
  config = base.get_config(variant).unlock()
  config.model.tied = False
  config.sampler.name = 'top_k'
  config.sampler.num_negatives = 32 if variant != 'tiny' else 4  # [ours]
  config.estimator.columns = 'own'
  config.targets.source = 'frozen'
  return config.lock()
