r"""Negatives drawn along a tree over all targets: the dynamic index.

Monath, Zaheer, Allen and McCallum, AISTATS 2023, sample negatives from clusters
of a tree that changes with the encoder, and move targets that nothing
re-encodes by a regression from landmarks. Here the clusters' rows are scored
exactly and leaves are k-means', see retrieval_jax/samplers/tree.py. All numbers
are ours. Variants: '' writes back what a step encodes, which the tree follows,
and re-encodes nothing else; 'nystrom' writes nothing, and moves every target by
the regression, or rather the queries, as it is linear; 'static' leaves table
and tree as they are, and makes both anew every R steps; 'host' is '' with the
table in the host's memory, so that devices hold the tree alone.

  python -m experiments.train --config=configs/dynamic_index.py --workdir=runs/t
  python -m experiments.train --config=configs/dynamic_index.py:nystrom \
      --workdir=runs/nystrom
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

VARIANTS = ('', 'nystrom', 'static', 'host', 'tiny', 'nystrom_tiny',
            'static_tiny', 'host_tiny')


def get_config(variant=''):
  """Returns the configuration; `variant` is one of VARIANTS."""
  base.check_variant(variant, VARIANTS)
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
  elif variant.startswith('nystrom'):
    config.corrector.name = 'nystrom'
    config.corrector.kernel = 'linear'
    config.corrector.keep_norm = False
    config.corrector.ridge = 0.1
    config.corrector.num_landmarks = 2048 if not tiny else 64
    config.corrector.num_anchors = 128 if not tiny else 16
  else:
    config.refresh.push = True
    config.refresh.write_back = True
    config.sampler.maintain_every = 50 if not tiny else 2
  return config.lock()
