r"""The comparison: every way to get hard negatives, same encoder, same batches.

A small encoder (one layer of width 128) is trained from scratch, so that it
moves far from the table that its initial parameters made. Every run of a seed
has the same batches; a step encodes 128 queries, their positives and 128
negatives (none in 'in_batch', none but 256 queries and positives in
'in_batch_256'; no targets at all in 'adore' and 'direct_gradient'). Sweeps:

  python -m experiments.sweep --config=configs/stale_negatives.py \
      --sweep=wordnet --workdir=runs/stale_negatives [--parallel=2]
  python -m experiments.sweep --config=configs/stale_negatives.py:links \
      --sweep=links --workdir=runs/stale_negatives_links -- \
      --config.data.path=DIR
  python -m experiments.sweep --config=configs/stale_negatives.py \
      --sweep=trained_start --workdir=runs/stale_negatives_trained -- \
      --config.model.start_from=runs/stale_negatives/000_in_batch-seed0

  python -m experiments.sweep --config=configs/stale_negatives.py:landmarks \
      --sweep=landmarks --workdir=runs/landmarks
  python -m experiments.sweep --config=configs/stale_negatives.py:landmarks \
      --sweep=corrector_claim --workdir=runs/corrector_claim
  python -m experiments.sweep --config=configs/stale_negatives.py \
      --sweep=distinct --workdir=runs/distinct
  python -m experiments.sweep --config=configs/stale_negatives.py \
      --sweep=dynamic_index --workdir=runs/dynamic_index
  python -m experiments.sweep --config=configs/stale_negatives.py \
      --sweep=dynamic_index_trained --workdir=runs/dynamic_index_trained -- \
      --config.model.start_from=runs/stale_negatives/000_in_batch-seed0

The third starts from an encoder that in-batch negatives have trained, whose
table is good at first and moves less: the only start that makes sense for
'adore' and 'direct_gradient', which never train the target tower. The fourth
has the quick start's encoder, the first layer of a pretrained one, and
correctors that learn from landmarks: rows drawn uniformly at each step. The
fifth is longer and at half the inverse temperature, where a stale table loses
two points. The sixth asks how often a target counts that several queries of a
batch have drawn. The last two put the tree beside exact draws, and landmarks
beside a refresh that encodes as many targets: 512 of 4,096 landmarks at each of
240 steps, or all 117,648 targets once; '_rebuilt' has the second and 64
landmarks a step.

experiments/results/stale_negatives/README.md has the results, the command that
draws them, and where to get the Wikipedia data (configs/links.py). All numbers
here are ours.
"""

from configs import base
from configs import quickstart

VARIANTS = ('', 'links', 'landmarks', 'tiny')
SEEDS = (0, 1, 2)

_MLP = {'corrector.name': 'mlp', 'corrector.hidden': 128}
_LINEAR = {'corrector.name': 'linear'}
_KEPT = {'refresh.push': True, 'refresh.write_back': True}
_UNTIED = {'model.tied': False, 'sampler.name': 'top_k',
           'sampler.num_negatives': 32, 'estimator.columns': 'own'}


def get_config(variant=''):
  """Returns the configuration; `variant` is one of VARIANTS."""
  base.check_variant(variant, VARIANTS)
  if variant == 'landmarks':
    return _quick_start()
  config = base.get_config(variant if variant == 'tiny' else '').unlock()
  if variant == 'tiny':
    return config.lock()
  config.model.pretrained = ''
  config.model.num_layers = 1
  config.num_steps = 240
  config.data.query_length = 24
  config.data.target_length = 24
  config.encoding.chunk_size = 0
  config.encoding.buckets = (8, 12, 16, 20, 24)
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 40
  config.evaluation.baselines = False
  config.log.tensorboard = False
  if variant == 'links':
    config.data.source = 'beir'
    config.data.train_split = 'links_train'
    config.data.dev_split = 'links_dev'
    config.data.test_split = 'links_test'
    config.data.target_length = 32
    config.encoding.buckets = (12, 16, 20, 24, 32)
  return config.lock()


def _quick_start():
  """Returns the quick start's config, shorter, with a table left to age."""
  config = quickstart.get_config().unlock()
  config.num_steps = 120
  config.refresh.push = False
  config.refresh.write_back = False
  config.evaluation.baselines = False
  config.log.tensorboard = False
  return config.lock()


def frozen_arms():
  """Returns name -> overrides of arms that never train the target tower."""
  return {'adore': _UNTIED | {'targets.source': 'frozen'},
          'direct_gradient': _UNTIED | {
              'targets.source': 'rows', 'targets.row_learning_rate': 0.1}}


def memory_arms(steps, num_targets):
  """Returns name -> overrides of every arm of a memory that is scanned.

  Args:
    steps: of a run.
    num_targets: of the corpus.
  """
  half = num_targets // 2
  aged = {'corrector.condition_on_age': True}
  published = {'estimator.name': 'cache_gradient', 'estimator.columns': 'own'}
  return {
      'in_batch': {'memory.kind': 'none', 'sampler.name': 'none',
                   'estimator.columns': 'positives'},
      'in_batch_256': {'memory.kind': 'none', 'sampler.name': 'none',
                       'estimator.columns': 'positives', 'batch_size': 256},
      'uniform': {'sampler.name': 'uniform'},
      'stale': {},
      'kept': _KEPT,
      'corrector': _MLP,
      'corrector_refreshed': _MLP | {'refresh.reencode_every': steps // 2},
      'corrector_kept': _MLP | _KEPT | aged,
      'linear': _LINEAR,
      'linear_kept': _LINEAR | _KEPT,
      'ring': _KEPT | {'memory.kind': 'ring', 'memory.capacity': half},
      'cache_ring': _KEPT | published | {
          'memory.kind': 'ring', 'memory.capacity': half},
      'ring_small': _KEPT | {'memory.kind': 'ring', 'memory.capacity': 4096},
      'cache_ring_small': _KEPT | published | {
          'memory.kind': 'ring', 'memory.capacity': 8192},
      'cache_full': _KEPT | published | {'refresh.fraction': 0.001},
      'reencode_2': {'refresh.reencode_every': steps // 2},
      'reencode_4': {'refresh.reencode_every': steps // 4},
      'reencode_8': {'refresh.reencode_every': steps // 8},
      'oracle': {'refresh.reencode_every': 10},
  }


def wordnet():
  """Yields every arm with every seed, on WordNet."""
  yield from _runs(memory_arms(240, 117_659))


def links():
  """Yields every arm with every seed, on the Wikipedia links."""
  yield from _runs(memory_arms(240, 188_075))


def trained_start():
  """Yields those arms that a good start makes sense for, on WordNet."""
  arms = memory_arms(240, 117_659)
  names = ('in_batch', 'stale', 'kept', 'corrector', 'corrector_kept',
           'linear', 'oracle')
  yield from _runs({name: arms[name] for name in names} | frozen_arms())


def landmarks():
  """Yields a table that ages, corrected or not, on the quick start's encoder.

  A decay of 0.98 lets 50 steps count: 6,400 landmarks, beside the 12,800
  positives and draws that a corrector sees anyway.
  """
  linear = _LINEAR | {'corrector.decay': 0.98}
  anchors = {'corrector.num_anchors': 128}
  arms = {
      'stale': {},
      'linear_landmarks': linear | anchors,
      'linear': linear,
      'mlp_landmarks': _MLP | {'corrector.hidden': 384} | anchors,
      'reencode_2': {'refresh.reencode_every': 61},
      'kept': _KEPT,
  }
  yield from base.with_seeds(arms)


def corrector_claim():
  """Yields a table as it ages, moved by a corrector, and made anew.

  The map may change lengths, so that it folds into the queries and costs
  nothing for each row.
  """
  ridge = _LINEAR | {'corrector.decay': 0.98, 'corrector.keep_norm': False,
                     'corrector.num_anchors': 128}
  arms = {
      'stale': {},
      'linear_landmarks': ridge,
      'linear_landmarks_kept': ridge | _KEPT,
      'kept': _KEPT,
      'oracle': {'refresh.reencode_every': 10},
  }
  longer = {'num_steps': 230, 'model.scale': 20.0}
  yield from base.with_seeds(
      {name: longer | overrides for name, overrides in arms.items()})


def distinct():
  """Yields a target that several queries drew, counted often or once."""
  for seed in SEEDS:
    for name, once in (('repeated', False), ('once', True)):
      yield {'name': f'{name}-seed{seed}', 'seed': seed, **_KEPT,
             'sampler.num_negatives': 4, 'estimator.distinct': once,
             'data.num_targets': 10_000, 'num_steps': 160}


def tree_arms():
  """Returns name -> overrides: each of tree and regression made exact, too."""
  tree = {'sampler.name': 'tree'}
  followed = {'sampler.maintain_every': 30}
  rebuilt = {'sampler.regrow_share': 0.0}
  nystrom = {'corrector.name': 'nystrom', 'corrector.num_landmarks': 4096,
             'corrector.num_anchors': 512, 'corrector.kernel': 'linear',
             'corrector.ridge': 0.1, 'corrector.keep_norm': False}  # to fold
  # Its features cost m, not D: fewer landmarks, each encoded at every step.
  kernel = nystrom | {'corrector.kernel': 'rbf', 'corrector.keep_norm': True,
                      'corrector.num_landmarks': 512}
  few = {'corrector.num_anchors': 64}
  arms = memory_arms(240, 117_659)
  ridge = _LINEAR | {'corrector.num_anchors': 512}
  return {
      'uniform': arms['uniform'],
      'stochastic': {'sampler.name': 'stochastic'},
      'stale': {},
      'reencode_2': arms['reencode_2'],
      'tree_static': tree | rebuilt | arms['reencode_2'],
      'tree_kept': tree | _KEPT | followed,
      'tree_nystrom': tree | nystrom,
      'tree_nystrom_rbf': tree | kernel | followed,
      'gumbel_nystrom': nystrom,
      'gumbel_nystrom_rbf': kernel,
      'linear': ridge,
      'cache_ring': arms['cache_ring'],
      'tree_oracle': tree | rebuilt | arms['oracle'],
      'oracle': arms['oracle'],
      # What the regression adds between two times that all is made anew.
      'tree_nystrom_rebuilt': tree | nystrom | few | arms['reencode_2'],
      'gumbel_nystrom_rebuilt': nystrom | few | arms['reencode_2'],
      # What it costs a tree to be left as it was built.
      'tree_kept_unfollowed': tree | _KEPT,
      'gumbel_kept': _KEPT,
  }


def dynamic_index():
  """Yields the tree's arms with every seed, on WordNet."""
  yield from _compared(tree_arms())


def dynamic_index_trained():
  """Yields those of them that a good start makes sense for, on WordNet."""
  arms = tree_arms()
  names = ('stale', 'tree_static', 'tree_nystrom', 'gumbel_nystrom',
           'tree_nystrom_rbf', 'tree_kept', 'oracle', 'tree_nystrom_rebuilt',
           'gumbel_nystrom_rebuilt', 'uniform', 'stochastic', 'linear',
           'cache_ring')
  yield from _compared({name: arms[name] for name in names})


def _compared(arms):
  """Yields runs of every seed, each compared with brute force on the way."""
  yield from base.with_seeds({
      name: {'diagnostics.every': 60, **overrides}
      for name, overrides in arms.items()})


def _runs(arms):
  """Yields runs of every seed.

  Those of the first seed that have a memory are compared with brute force, and
  of the others those that the corrector is about.
  """
  looked_at = {'stale', 'kept', 'corrector', 'corrector_kept', 'linear'}
  for seed in SEEDS:
    for name, overrides in arms.items():
      run = {'name': f'{name}-seed{seed}', 'seed': seed, **overrides}
      if not name.startswith('in_batch') and (not seed or name in looked_at):
        run['diagnostics.every'] = 60 if not seed else 120
      yield run
