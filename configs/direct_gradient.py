r"""Rows of the table as parameters: direct gradients on cached targets.

AAAI 2026: only the query tower is trained; the rows of the step's positives and
of its hard negatives, shared by the batch, move by SGD and are written back.

  python -m experiments.train --config=configs/direct_gradient.py \
      --workdir=runs/direct_gradient
  python -m experiments.train --config=configs/direct_gradient.py:tiny \
      --workdir=/tmp/tiny
"""

from configs import base
from configs.base import seeds


def get_config(variant=''):
  """Returns the configuration; `variant` is '' or 'tiny'."""
  config = base.get_config(variant).unlock()
  config.model.tied = False
  config.sampler.name = 'top_k'
  # The paper has 500 negatives a query in batches of 32.
  config.sampler.num_negatives = 32 if variant != 'tiny' else 4  # [ours]
  config.targets.source = 'rows'
  # [ours]: 1.0 was worse on dev; the paper has 1e-6 in a setting of its own.
  config.targets.row_learning_rate = 0.1
  return config.lock()
