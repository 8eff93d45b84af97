r"""All six layers of all-MiniLM-L6-v2, to embed with or to train further.

  python -m experiments.embed --config=configs/minilm.py --out=embeddings/minilm
  python -m experiments.train --config=configs/minilm.py --workdir=runs/minilm

The second fine-tunes it with the stale table of configs/base.py and is meant
for an accelerator. Texts are cut at 128 tokens, as in the encoder's own
training; the numbers of ours are our choice.
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
