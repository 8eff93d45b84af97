r"""Negatives mined between episodes that start again: ANCE-Tele.

Sun et al., EMNLP 2022: three episodes, each from the pretrained encoder. What
the encoder of one has found near the queries and near their positives joins the
pool of the next; the first two stop early. No BM25 is needed to begin with: the
first pool is what the raw encoder finds. Everything is one run:

  python -m experiments.train --config=configs/ance_tele.py --workdir=runs/tele
  python -m experiments.train --config=configs/ance_tele.py:links \
      --workdir=runs/tele_links --config.data.path=DIR
  python -m experiments.train --config=configs/ance_tele.py:tiny \
      --workdir=/tmp/tiny

Variants: '' trains the first layer of all-MiniLM-L6-v2 on WordNet, 'scratch' a
new layer, 'links' and 'links_scratch' the same on the Wikipedia links
(configs/links.py says where to get them); their numbers are ours. 'msmarco' and
'nq' have the published constants, for data and an encoder that you bring:

  python -m experiments.train --config=configs/ance_tele.py:msmarco \
      --workdir=runs/tele_msmarco --config.data.path=DIR \
      --config.model.pretrained=CO_CONDENSER_MARCO

On NQ passages that have an answer to the query are no negatives; the data has
answers then. As published, the first two episodes draw fewer negatives than
the last (15 and 3, then 31 and 11), and of several positives MS MARCO takes the
next with each epoch, NQ the first alone, which here is the first in the corpus.

`arms` has the method, what it is made of, and what else trains for as many
steps: ANCE is the same driver by its options. They differ in how often the
corpus is embedded for training, once before the first step and then again:

  passes  when           arms
  3       0, 60, 120     all pools mined by the encoder: 'tele' and what it is
                         made of, 'ance' and its kinds, 'tele_softmax' and
                         'tele_gumbel'; but for 'ance_bm25', which has 2
  3       0, 120, 240    'kept_refreshed', 'corrector_refreshed'
  1       0              'static', 'kept', 'corrector', 'tele_corrected'
  0                      'static_bm25'
  36      every 10       'oracle'

Of these, three have a pool and a memory, to which draws and positives are
written back: 'tele_softmax' draws from the pool by the softmax of remembered
scores, 'tele_gumbel' takes half of its draws from the pool and half from the
memory, and 'tele_corrected' is 'tele_softmax' with a corrected memory, from
which later pools are mined without embedding the corpus again. They go on
training, as 'tele_continued' does: what an episode's encoder has embedded means
little to the encoder that a restart brings back.

  python -m experiments.sweep --config=configs/ance_tele.py --sweep=arms \
      --workdir=runs/ance_tele
  python -m experiments.sweep --config=configs/ance_tele.py:scratch \
      --sweep=arms --workdir=runs/ance_tele_scratch
  python -m experiments.compare --sweep=runs/ance_tele --out=/tmp/compared
"""

from configs import base
from configs.base import seeds

VARIANTS = ('', 'scratch', 'links', 'links_scratch', 'msmarco', 'nq', 'tiny')
EPISODES, EARLY, LAST = 3, 60, 240  # early stop of all but the last; its steps
THIRD = 120  # of all steps: as many passes over the corpus as episodes make


def get_config(variant=''):
  """Returns the configuration; `variant` is one of VARIANTS."""
  base.check_variant(variant, VARIANTS)
  config = base.get_config('tiny' if variant == 'tiny' else '').unlock()
  config.memory.kind = 'none'
  config.sampler.name = 'pool'
  config.sampler.num_negatives = 4
  config.episodes.number = EPISODES
  config.episodes.restart = True
  if variant == 'tiny':
    config.refresh.reencode_every = 1
    config.episodes.depth = 20
    config.episodes.per_list = 4
    config.forgetting.every = 1
  elif variant in ('msmarco', 'nq'):
    _published(config, variant)
  else:
    _ours(config, variant)
  return config.lock()


def _ours(config, variant):
  """Sets the scale of our data sets."""
  config.refresh.reencode_every = EARLY
  config.num_steps = (EPISODES - 1) * EARLY + LAST
  config.optimizer.learning_rate = 1e-3
  config.data.target_length = 32
  config.sampler.num_negatives = 2
  config.model.num_layers = 1
  config.model.scale = 40.0
  config.encoding.buckets = (12, 16, 20, 24, 32)
  config.encoding.chunk_size = 0
  config.evaluation.every = EARLY
  config.forgetting.every = EARLY
  config.evaluation.baselines = False
  config.log.tensorboard = False
  if variant.endswith('scratch'):
    config.model.pretrained = ''
    config.model.scale = 20.0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 40
  if variant.startswith('links'):
    config.data.source = 'beir'
    config.data.train_split = 'links_train'
    config.data.dev_split = 'links_dev'
    config.data.test_split = 'links_test'


def _published(config, variant):
  """Sets the published constants; as of one query batch on all devices."""
  config.model.num_layers = 0  # all
  config.model.pooling = 'cls'
  config.model.normalize = False
  config.model.scale = 1.0
  config.data.query_length = 32
  config.data.test_split = ''
  config.encoding.buckets = (32, 64, 96, 128, 160)
  config.optimizer.learning_rate = 5e-6
  config.optimizer.weight_decay = 0.0
  if variant == 'msmarco':
    config.data.source = 'msmarco'
    config.data.target_length = 128
    config.data.positive = 'rotating'
    config.batch_size = 8
    config.sampler.num_negatives = 31
    config.episodes.early_negatives = 15
    config.episodes.per_list = 30
    early, last = 20_000, 188_600  # 3 epochs of 502,939 queries
  else:
    config.data.source = 'dpr'
    config.data.target_length = 156
    config.model.tied = False
    config.data.positive = 'first'
    config.batch_size = 128
    config.sampler.num_negatives = 11
    config.episodes.early_negatives = 3
    config.episodes.per_list = 80
    config.episodes.bar_answers = True
    early, last = 2_000, 18_400  # 40 epochs of 58,880 queries
  config.refresh.reencode_every = early
  config.num_steps = (EPISODES - 1) * early + last
  config.optimizer.warmup_steps = last // 10
  config.checkpoint.every = 1000
  config.log.every = 100


def arms():
  """Yields every arm with every seed: equal steps, and equal draws a step."""
  continued = {'episodes.restart': False}
  plain = {'episodes.lookahead': False, 'episodes.momentum': False}
  ance = continued | plain
  static = ance | {'episodes.number': 1, 'refresh.reencode_every': 0}
  memory = {'memory.kind': 'corpus', 'sampler.name': 'gumbel',
            'refresh.reencode_every': 0, 'episodes.number': 0} | continued
  writes = {'refresh.push': True, 'refresh.write_back': True}
  moved = {'corrector.name': 'mlp', 'corrector.hidden': 128}
  kept, corrector = memory | writes, memory | moved
  scored = continued | writes | {'memory.kind': 'corpus'}
  arms = {
      'tele': {},
      'tele_weighted': {'episodes.combine': 'weighted'},
      'tele_without_momentum': {'episodes.momentum': False},
      'tele_without_lookahead': {'episodes.lookahead': False},
      'tele_continued': continued,
      'ance': ance,
      'ance_bm25': ance | {'episodes.first': 'bm25'},
      'ance_restarted': plain,
      'ance_filtered': ance | {'episodes.relative_margin': 0.05},
      'static': static,
      'static_bm25': static | {'episodes.first': 'bm25'},
      'kept': kept,
      'corrector': corrector,
      'kept_refreshed': kept | {'refresh.reencode_every': THIRD},
      'corrector_refreshed': corrector | {'refresh.reencode_every': THIRD},
      'tele_softmax': scored | {'sampler.pool_order': 'softmax'},
      'tele_gumbel': scored | {
          'sampler.name': 'pool_gumbel', 'sampler.num_pooled': 1},
      'tele_corrected': scored | moved | {
          'corrector.condition_on_age': True, 'episodes.later': 'memory',
          'sampler.pool_order': 'softmax'},
      'oracle': memory | {'refresh.reencode_every': 10},
  }
  yield from base.with_seeds(arms)
