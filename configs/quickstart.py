r"""The main job, on real data, in minutes on two CPU cores.

Finds the WordNet synset that a word in its sentence means, among all 117,659
synsets: the first layer of all-MiniLM-L6-v2, trained with one hard negative per
query drawn by Gumbel-max from a table of all targets. The table is embedded
once; rows that a step encodes anyway (draws, positives) are written back.

  python -m experiments.train --config=configs/quickstart.py \
      --workdir=runs/quickstart
  python -m experiments.train --config=configs/quickstart.py:tiny \
      --workdir=/tmp/tiny

All numbers here are ours, chosen on the dev split.
"""

from configs import base
from configs.base import seeds


def get_config(variant=''):
  """Returns the configuration; `variant` is '' or 'tiny'."""
  config = base.get_config(variant).unlock()
  config.refresh.push = True
  config.refresh.write_back = True
  if variant != 'tiny':
    config.num_steps = 190
    config.data.target_length = 32
    config.model.num_layers = 1
    config.model.scale = 40.0
    config.optimizer.learning_rate = 1e-3
    config.encoding.buckets = (12, 16, 20, 24, 32)
    config.encoding.batch_tokens = 4096
  return config.lock()
