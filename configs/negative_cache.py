r"""The negative cache of Lindgren et al., NeurIPS 2021, in both of its modes.

One negative per query, drawn by Gumbel-max from a memory of stale embeddings,
weighs 1 - p+ in the gradient; the memory is kept up by what a step encodes
anyway.
Variants: '' keeps the latest 65,536 targets in a ring, which the batches'
positives enter and drawn rows are written back to (LRU); 'full' remembers the
whole corpus and re-encodes a random fraction of it per step.

  python -m experiments.train --config=configs/negative_cache.py \
      --workdir=runs/cache
  python -m experiments.train --config=configs/negative_cache.py:full \
      --workdir=runs/cache_full
  python -m experiments.train --config=configs/negative_cache.py:tiny \
      --workdir=/tmp/tiny

Published: K = 1, the estimator, LRU, a ring that starts without targets, unit
embeddings with beta = 20; beta is trainable in the paper, a constant in its
public code. [ours]: the capacity (the paper's 131,072 is more than WordNet
has), the fraction (not published), batch size and optimizer, those of the stale
baseline.
Deviation: empty rows are masked, where the public code scores zero vectors.
"""

from configs import base
from configs.base import seeds

VARIANTS = ('', 'full', 'tiny', 'full_tiny')


def get_config(variant=''):
  """Returns the configuration; `variant` is one of VARIANTS."""
  base.check_variant(variant, VARIANTS)
  tiny = variant.endswith('tiny')
  config = base.get_config('tiny' if tiny else '').unlock()
  config.sampler.num_negatives = 1
  config.estimator.name = 'cache_gradient'
  config.estimator.columns = 'own'
  config.model.scale = 20.0
  config.model.learn_scale = True
  config.refresh.push = True
  config.refresh.write_back = True
  if variant.startswith('full'):
    config.refresh.fraction = 0.001 if not tiny else 0.1
  else:
    config.memory.kind = 'ring'
    config.memory.capacity = 65536 if not tiny else 64
    if tiny:
      config.memory.chunk_rows = 64
  return config.lock()
