r"""All of all-MiniLM-L6-v2, six layers, as a start: to embed with, to train on.

  python -m experiments.embed --config=configs/minilm.py --out=embeddings/minilm
  python -m experiments.train --config=configs/minilm.py --workdir=runs/minilm

The second fine-tunes it with the stale table of configs/base.py and wants an
accelerator. Texts are read up to 128 tokens, as the encoder was trained on;
numbers of the training are ours.
"""

from configs import base
from configs.base import seeds


def get_config(variant=''):
  """Returns the configuration; `variant` is '' or 'tiny'."""
  config = base.get_config(variant).unlock()
  config.refresh.push = True
  config.refresh.write_back = True
  if variant != 'tiny':
    config.model.num_layers = 6
    config.data.query_length = 64
    config.data.target_length = 128
    config.encoding.buckets = (12, 16, 20, 24, 32, 48, 64, 96, 128)
    config.optimizer.learning_rate = 5e-5
  return config.lock()
