r"""Negatives drawn along a tree over all targets: the dynamic index.

Monath, Zaheer, Allen and McCallum, AISTATS 2023, sample negatives from clusters
of a tree that changes with the encoder. Here the clusters' rows are scored
exactly and leaves are k-means', see retrieval_jax/samplers/tree.py; of its
other half, a regression that moves targets which nothing re-encodes, there is
nothing yet. All numbers are ours.
Variants: '' writes back what a step encodes, which the tree follows, and
re-encodes nothing else; 'static' leaves table and tree as they are, and makes
both anew every R steps; 'host' is '' with the table in the host's memory, so
that devices hold no more of a target than their share of the tree.

  python -m experiments.train --config=configs/dynamic_index.py --workdir=runs/t
  python -m experiments.train --config=configs/dynamic_index.py:static \
      --workdir=runs/static
  python -m experiments.train --config=configs/dynamic_index.py:host \
      --workdir=runs/host
  python -m experiments.train --config=configs/dynamic_index.py:tiny \
      --workdir=/tmp/tiny
  python -m experiments.diagnose --workdir=runs/t

The last of these compares the draws with the softmax over the same table, and
with what radii alone can promise.
"""

from configs import base
from configs.base import seeds

VARIANTS = ('', 'static', 'host', 'tiny', 'static_tiny', 'host_tiny')


def get_config(variant=''):
  """Returns the configuration; `variant` is one of VARIANTS."""
  if variant not in VARIANTS:
    raise ValueError(
        f"Unknown config variant {variant!r}; there are ':static', ':host', "
        "':tiny', ':static_tiny' and ':host_tiny'.")
  tiny = variant.endswith('tiny')
  config = base.get_config('tiny' if tiny else '').unlock()
  config.sampler.name = 'tree'
  config.sampler.num_negatives = 4
  if tiny:
    config.sampler.leaf_size = 16
    config.sampler.opened = 4
  if variant.startswith('host'):
    config.memory.place = 'host'
  if variant.startswith('static'):
    config.sampler.regrow_share = 0.0
    config.refresh.reencode_every = 100 if not tiny else 2
  else:
    config.refresh.push = True
    config.refresh.write_back = True
  return config.lock()
