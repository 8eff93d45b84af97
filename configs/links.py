r"""Entity linking over 188,075 Wikipedia passages, the larger test bed.

A hyperlinked table cell with its context finds the lead passage of the page it
links to (OTT-QA; experiments/results/wiki_links/README.md says where to get
it). Variants: '' trains a 2 x 128 encoder from scratch, re-encoding the table
as it learns; 'minilm' trains the first layer of all-MiniLM-L6-v2 from a table
that is embedded once. Both write back what a step encodes anyway.

  python -m experiments.train --config=configs/links.py --workdir=runs/links \
      --config.data.path=DIR
  python -m experiments.train --config=configs/links.py:minilm \
      --workdir=runs/links_minilm --config.data.path=DIR
  python -m experiments.train --config=configs/links.py:tiny --workdir=/tmp/tiny

All numbers here are ours.
"""

from configs import base
from configs.base import seeds


def get_config(variant=''):
  """Returns the configuration; `variant` is '', 'minilm' or 'tiny'."""
  if variant == 'tiny':
    return base.get_config(variant)
  config = base.get_config().unlock()
  config.data.source = 'beir'
  config.data.train_split = 'links_train'
  config.data.dev_split = 'links_dev'
  config.data.test_split = 'links_test'
  config.data.target_length = 48
  config.encoding.buckets = (12, 16, 24, 32, 48)
  config.log.every = 50
  config.refresh.push = True
  config.refresh.write_back = True
  if variant == 'minilm':
    config.num_steps = 150
    config.model.num_layers = 1
    config.model.scale = 40.0
    config.optimizer.learning_rate = 1e-3
  elif not variant:
    config.model.pretrained = ''
    config.num_steps = 600
    config.batch_size = 256
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.refresh.reencode_every = 250
    config.checkpoint.every = 300
  else:
    raise ValueError(
        f"Unknown config variant {variant!r}; there are ':minilm', ':tiny'.")
  return config.lock()
