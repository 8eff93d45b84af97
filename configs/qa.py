r"""Questions with answers and without passages: the passage is not known.

A retriever and a reader are trained together on -log sum_k P(y_k | x)
P(a | x, y_k) over K passages, those that the corrected memory scores highest
(Monath et al., ICML 2024, after REALM and EMDR2). They are not drawn by Gumbel:
of many passages so few have an answer then that the first steps are noise
(experiments/results/qa). The retriever starts from the first two layers of
all-MiniLM-L6-v2, the reader from all of it; it points at the answer. Variants:

  ''           a corrector, and a table that is embedded once and never again
  corrector    the same
  frozen       the retriever stays as it is, the reader learns
  stale        no corrector: the table as it was embedded
  write_back   a corrector, and what a step encodes overwrites its row
  refreshed    no corrector; everything is re-encoded every R steps
  seq2seq      a T5 that writes the answer, one passage at a time
  fused        a T5 that reads all passages together (FiD), by EMDR2
  emdr2        as '', with the retriever's and the reader's losses apart (EMDR2)
  small        as '', from scratch and small: minutes without an accelerator
  tiny, and every other name with _tiny

The data is a folder with answers/SPLIT.jsonl, or questions over the passages of
another one (docs/data.md):

  python -m experiments.train --config=configs/qa.py --workdir=runs/qa \
      --config.data.path=DIR
  python -m experiments.train --config=configs/qa.py:frozen \
      --workdir=runs/qa_frozen --config.data.path=DIR
  python -m experiments.train --config=configs/qa.py \
      --workdir=runs/qa_entities --config.data.source=questions \
      --config.data.path=QUESTIONS --config.data.corpus=DIR
  python -m experiments.train --config=configs/qa.py:tiny --workdir=/tmp/tiny \
      --config.data.path=DIR

`arms` has frozen, stale, corrector, write_back, refreshed and emdr2 with three
seeds, of '' or of small:

  python -m experiments.sweep --config=configs/qa.py:small --sweep=arms \
      --workdir=runs/qa_arms -- --config.data.path=DIR

The paper's reader, estimator and numbers are not known to us; all are ours.
"""

from configs import base
from configs.base import seeds

_NO_CORRECTOR = {'corrector.name': 'identity'}
_WRITES = {'reader.name': 'seq2seq', 'reader.pretrained': 'google-t5/t5-small'}

ARMS = {
    'frozen': _NO_CORRECTOR | {
        'reader.alone': True,
        'targets.source': 'frozen'},  # the table stays right, and is read
    'stale': _NO_CORRECTOR,
    'corrector': {},
    'write_back': {'corrector.condition_on_age': True,
                   'refresh.write_back': True},
    'refreshed': _NO_CORRECTOR | {'refresh.reencode_every': 100},
    'emdr2': {'objective.estimate': 'emdr2'},
}
"""What keeps the memory right, or does not -> what it changes in ''."""

READERS = {
    'seq2seq': _WRITES,
    'fused': _WRITES | {'reader.fused': True, 'objective.estimate': 'emdr2'},
}
"""Other readers -> the same."""

KINDS = ('', *ARMS, *READERS)
VARIANTS = (*KINDS, 'small', 'tiny',
            *(f'{kind}_tiny' for kind in KINDS if kind))
SEEDS = (0, 1, 2)


def get_config(variant=''):
  """Returns the configuration; `variant` is one of VARIANTS."""
  base.check_variant(variant, VARIANTS)
  tiny = variant.endswith('tiny')
  kind = variant.removesuffix('tiny').removesuffix('small').removesuffix('_')
  config = base.get_config('tiny' if tiny else '').unlock()
  config.data.source = 'beir'
  config.data.test_split = ''
  config.objective.name = 'marginal'
  config.reader.name = 'extractive'
  config.corrector.name = 'mlp'
  config.sampler.name = 'top_k'
  config.sampler.num_negatives = 8 if not tiny else 3  # K
  config.reader.row_length = 160
  config.update_from_flattened_dict((ARMS | READERS).get(kind, {}))
  if tiny:
    config.refresh.reencode_every = min(config.refresh.reencode_every, 2)
    config.reader.pretrained = ''
    config.reader.num_layers = 1
    config.reader.row_length = 48
  else:
    config.num_steps = 500
    config.batch_size = 16
    config.data.train_split, config.data.dev_split = 'train', 'dev'
    config.data.target_length = 128
    config.encoding.buckets = (12, 16, 24, 32, 48, 64, 96, 128, 160)
    config.evaluation.every = 250
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 50
  if variant == 'small':
    _two_cores(config)
  return config.lock()


def _two_cores(config):
  """Makes a run one of minutes without an accelerator."""
  config.num_steps = 300
  config.model.pretrained = ''
  config.model.num_layers = 1
  config.data.query_length = 32
  config.data.target_length = 48
  config.reader.num_layers = 2
  config.reader.row_length = 64
  config.encoding.chunk_size = 0
  config.encoding.buckets = (12, 16, 24, 32, 48, 64)
  config.optimizer.learning_rate = 3e-4
  config.evaluation.every = 0
  config.evaluation.baselines = False
  config.evaluation.num_read = 10
  config.log.tensorboard = False


def arms():
  """Yields ARMS with every seed: equal steps, and all readers learn."""
  for seed in SEEDS:
    for name, overrides in ARMS.items():
      yield {'name': f'{name}-seed{seed}', 'seed': seed, **overrides}
