r"""The main job on embedded real data, in minutes on two CPU cores.

Finds the WordNet synset that a word in its sentence means, among all 117,659
synsets: the first two layers of all-MiniLM-L6-v2, trained with hard negatives
drawn by Gumbel-max from a table of all targets that is embedded once.

  python -m experiments.train --config=configs/quickstart.py \
      --workdir=runs/quickstart
  python -m experiments.train --config=configs/quickstart.py:tiny \
      --workdir=/tmp/tiny

All numbers here are ours, chosen on the dev split.
"""

from configs import base
from configs.base import seeds  # pylint: disable=unused-import


def get_config(variant=''):
  """Returns the configuration; `variant` is '' or 'tiny'."""
  config = base.get_config(variant).unlock()
  if variant != 'tiny':
    config.num_steps = 300
    config.optimizer.learning_rate = 3e-4
  config.diagnostics.every = 0
  return config.lock()
