r"""The in-batch softmax baseline: no memory, no drawn negatives.

  python -m experiments.train --config=configs/in_batch.py \
      --workdir=runs/in_batch
  python -m experiments.train --config=configs/in_batch.py:tiny \
      --workdir=/tmp/tiny
"""

from configs import base
from configs.base import seeds


def get_config(variant=''):
  """Returns the configuration; `variant` is '' or 'tiny'."""
  config = base.get_config(variant).unlock()
  config.memory.kind = 'none'
  config.sampler.name = 'none'
  config.estimator.columns = 'positives'
  return config.lock()
