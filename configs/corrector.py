r"""Target corrector networks: a table of all targets, corrected, not refreshed.

Monath et al., ICML 2024: a small network moves every remembered embedding to
the present inside the scoring pass; it learns from the targets that a step
encodes anyway. Variants:

  ''           the table is embedded once and never again
  refreshed    everything is re-encoded every R steps, the network starts anew
  write_back   never refreshed, but what a step encodes overwrites its row, and
               the network knows how old a row is [ours]
  ring         a ring of recent targets in place of the corpus, likewise [ours]
  linear       the best linear map in closed form in place of the network
  nystrom      kernel regression from 2,048 landmarks, each encoded every 16
               steps (the update of Monath et al., AISTATS 2023; numbers [ours])
  tiny, and every other name with _tiny

  python -m experiments.train --config=configs/corrector.py \
      --workdir=runs/corrector
  python -m experiments.train --config=configs/corrector.py:refreshed \
      --workdir=runs/corrector_refreshed
  python -m experiments.train --config=configs/corrector.py:tiny \
      --workdir=/tmp/tiny

The paper's width, rates, warm-up and K are not known to us: those in
retrieval_jax/factory/defaults.py are ours.
"""

from configs import base
from configs.base import seeds

VARIANTS = ('', 'refreshed', 'write_back', 'ring', 'linear', 'nystrom')


def get_config(variant=''):
  """Returns the configuration; `variant` is one of VARIANTS, or its _tiny."""
  tiny = variant == 'tiny' or variant.endswith('_tiny')
  kind = variant.removesuffix('tiny').removesuffix('_')
  if kind not in VARIANTS:
    raise ValueError(
        f"Unknown config variant {variant!r}; there are {VARIANTS[1:]}, "
        "'tiny', and each with _tiny.")
  config = base.get_config('tiny' if tiny else '').unlock()
  config.corrector.name = kind if kind in ('linear', 'nystrom') else 'mlp'
  if kind == 'nystrom':
    config.corrector.num_landmarks = 2048 if not tiny else 64
    config.corrector.num_anchors = 128 if not tiny else 16
    config.corrector.ridge = 0.1
  if kind == 'refreshed':
    config.refresh.reencode_every = 150 if not tiny else 2
  if kind in ('write_back', 'ring'):
    config.corrector.condition_on_age = True
    config.refresh.push = True
    config.refresh.write_back = True
  if kind == 'ring':
    config.memory.kind = 'ring'
    config.memory.capacity = 65536 if not tiny else 64
    config.memory.prefill = True
    if tiny:
      config.memory.chunk_rows = 64
  return config.lock()
