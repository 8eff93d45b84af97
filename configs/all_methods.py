r"""Every system beside every other: one encoder, the same batches, one command.

The setting is that of configs/stale_negatives.py: a small encoder from scratch,
240 steps of 128 queries, their positives and one draw each. What differs is
where the draws come from and what is done about stale rows. Sweeps:

  python -m experiments.sweep --config=configs/all_methods.py --sweep=wordnet \
      --workdir=runs/all_wordnet
  python -m experiments.sweep --config=configs/all_methods.py:links \
      --sweep=links --workdir=runs/all_links -- --config.data.path=DIR
  python -m experiments.sweep --config=configs/all_methods.py \
      --sweep=trained_start --workdir=runs/all_trained -- \
      --config.model.start_from=runs/all_wordnet/000_in_batch-seed0
  python -m experiments.sweep --config=configs/all_methods.py --sweep=cells \
      --workdir=runs/all_cells
  python -m experiments.compare --sweep=runs/all_wordnet --split=test --out=DIR

'cells' has combinations that no paper has. The last one draws the table and the
Pareto front of quality and encoder calls.

By how often the corpus is embedded for training:

  passes  arms
  0       'in_batch', 'static_bm25', 'uniform', 'cache_ring'
  1       'stochastic', 'stale', 'kept', 'simans', 'corrector',
          'corrector_kept', 'linear', 'linear_kept', 'cache_full',
          'mined_filtered' (after a quarter, by the encoder as it is then)
  2       'corrector_refreshed', 'linear_refreshed', 'reencode_2',
          'tree_static', 'dynamic_index' and 'gumbel_nystrom' (and 64 landmarks
          a step)
  3, 4    'ance_tele', 'ance'
  24      'oracle'

'adore' and 'direct_gradient', which never train the target tower, are part of
'trained_start' alone. All numbers are ours.
"""

from configs import base
from configs import stale_negatives

VARIANTS = ('', 'links', 'tiny')
STEPS = 240


def get_config(variant=''):
  """Returns the configuration; `variant` is one of VARIANTS."""
  base.check_variant(variant, VARIANTS)
  return stale_negatives.get_config(variant)


def arms(num_targets, *, trained=False):
  """Returns name -> overrides of every arm.

  Args:
    num_targets: of the corpus; a ring holds half of them.
    trained: whether the encoder has been trained before.
  """
  memory = stale_negatives.memory_arms(STEPS, num_targets)
  tree = stale_negatives.tree_arms()
  plain = {'episodes.lookahead': False, 'episodes.momentum': False,
           'episodes.restart': False}
  pool = {'memory.kind': 'none', 'sampler.name': 'pool'}
  often = {'refresh.reencode_every': STEPS // 4}
  found = {name: memory[name] for name in ('in_batch', 'uniform')} | {
      'static_bm25': pool | plain | {
          'episodes.number': 1, 'episodes.first': 'bm25'},
      # In the first quarter BM25's, which are not filtered.
      'mined_filtered': pool | plain | often | {
          'episodes.number': 2, 'episodes.first': 'bm25',
          'episodes.relative_margin': .05},
      'stochastic': tree['stochastic']} | {
          name: memory[name] for name in (
              'stale', 'kept', 'corrector', 'corrector_refreshed',
              'corrector_kept', 'linear')} | {
      'linear_refreshed': memory['linear'] | memory['reencode_2'],
      'linear_kept': memory['linear_kept'],
      'cache_ring': memory['cache_ring'], 'cache_full': memory['cache_full'],
      'reencode_2': memory['reencode_2'],
      'tree_static': tree['tree_static'],
      'dynamic_index': tree['tree_nystrom_rebuilt'],
      'gumbel_nystrom': tree['gumbel_nystrom_rebuilt'],
      'ance': pool | plain | often | {'episodes.number': 4},
      'ance_tele': pool | often | {
          'episodes.number': 3, 'episodes.restart': True},
      'simans': memory['kept'] | {
          'sampler.name': 'simans', 'sampler.pool_size': 200},
      'oracle': memory['oracle']}
  if trained:
    found |= stale_negatives.frozen_arms()
  return found


def wordnet():
  """Yields every arm with every seed, on WordNet."""
  yield from base.with_seeds(arms(117_659))


def links():
  """Yields every arm with every seed, on the Wikipedia links."""
  yield from base.with_seeds(arms(188_075))


def trained_start():
  """Yields them, and two more, from an encoder that has been trained."""
  yield from base.with_seeds(arms(117_659, trained=True))


def cells():
  """Yields combinations of what the rows of `arms` do, on WordNet."""
  memory = stale_negatives.memory_arms(STEPS, 117_659)
  found = arms(117_659)
  half = found['reencode_2']
  # An episode's pool, drawn from by the softmax of what the memory has of it.
  pooled = memory['kept'] | half | {
      'sampler.name': 'pool', 'sampler.pool_order': 'softmax',
      'episodes.number': 2, 'episodes.restart': False}
  yield from base.with_seeds({
      'ring': memory['ring'],
      'ring_corrected': memory['ring'] | memory['corrector_kept'],
      'ring_linear': memory['ring'] | memory['linear'],
      'cache_ring_linear': memory['cache_ring'] | memory['linear'],
      'cache_full_linear': memory['cache_full'] | memory['linear'],
      'kept_refreshed': memory['kept'] | half,
      'cache_full_refreshed': memory['cache_full'] | half,
      'ance_softmax': pooled | {
          'episodes.lookahead': False, 'episodes.momentum': False},
      'tele_softmax': pooled,
      'simans_refreshed': found['simans'] | half,
  })
