"""The point of the design space that a config names, and its checks."""

import numpy as np

from retrieval_jax import distillation
from retrieval_jax import matryoshka
from retrieval_jax import method as methods
from retrieval_jax import table as tables
from retrieval_jax.factory import registries

def make_method(config, mesh, num_targets) -> methods.Method:
  """Returns the point of the design space that the config names.

  Args:
    config: ConfigDict.
    mesh: mesh with axis 'data'.
    num_targets: N; sampler 'exhaustive' derives its num_negatives from it.

  Raises:
    ValueError: for options that cannot work, alone or together.
  """
  if (config.corrector.name != 'identity' and config.corrector.keep_norm
      and not config.model.normalize):
    raise ValueError(
        '--config.corrector.keep_norm=True gives a corrected row the length of '
        'the stale one, which is right for embeddings of length one only; with '
        '--config.model.normalize=False set --config.corrector.keep_norm=False.')
  if registries.ceiling(config) and config.sampler.name not in (
      'top_k', 'gumbel', 'simans'):
    raise ValueError(
        '--config.sampler.max_share and min_margin are of the samplers '
        "'top_k', 'gumbel' and 'simans', which score the whole table; leave "
        f'them out with {config.sampler.name!r}.')
  source = config.targets.source
  if source != 'encoder' and config.model.tied:
    raise ValueError(
        f'--config.targets.source={source!r} trains the query tower alone, '
        'which must not be the target tower too; set '
        '--config.model.tied=False.')
  if source == 'rows' and config.memory.dtype != 'float32':
    raise ValueError(
        "--config.targets.source='rows' trains the rows of the table by small "
        f'steps, which {config.memory.dtype} rounds away; set '
        '--config.memory.dtype=float32.')
  return methods.Method(
      memory=config.memory.kind,
      corrector=registries.choose(
          registries.CORRECTORS, 'corrector.name', config.corrector.name)(config),
      sampler=registries.choose(
          registries.SAMPLERS, 'sampler.name', config.sampler.name)(
              config, mesh, num_targets),
      estimator=config.estimator.name,
      columns=config.estimator.columns,
      refresh=methods.Refresh(**config.refresh),
      targets=methods.Targets(
          **config.targets, normalize=config.model.normalize),
      num_candidates=config.data.num_candidates,
      ceiling=registries.ceiling(config, 'estimator'),
      distillation=distillation.Distillation(**config.distillation),
      matryoshka=matryoshka.Matryoshka(
          tuple(config.estimator.matryoshka_dims),
          tuple(config.estimator.matryoshka_weights),
          config.model.normalize))


def check_ring(config, num_targets):
  memory = config.memory
  if memory.capacity < config.batch_size:
    raise ValueError(
        f'--config.memory.capacity={memory.capacity} rows must hold at least '
        f'one batch of {config.batch_size} (--config.batch_size).')
  if memory.prefill and memory.capacity > num_targets:
    raise ValueError(
        f'--config.memory.capacity={memory.capacity} rows cannot be filled '
        f'with {num_targets} targets; lower it, or take '
        "--config.memory.kind=corpus, which holds them all.")
  if memory.replacement not in tables.REPLACEMENTS:
    raise ValueError(
        f'--config.memory.replacement={memory.replacement!r} is not one of '
        f'{list(tables.REPLACEMENTS)}.')


def check_candidates(method, dataset, split):
  """Raises where the data has not the candidates or scores that a method asks.

  Single queries may have fewer, or no scores: they are masked.
  """
  if not method.num_candidates:
    return
  if split not in dataset.candidates:
    raise ValueError(
        f'--config.data.num_candidates={method.num_candidates}, but '
        f'{dataset.name} has no candidates of split {split!r}; add '
        f'candidates/{split}.tsv to its folder, or set the option to 0.')
  candidates, qrels = dataset.candidates[split], dataset.qrels[split]
  negatives = candidates.negatives(qrels)
  most = np.unique(negatives.query_rows, return_counts=True)[1].max(initial=0)
  if most < method.num_candidates:
    raise ValueError(
        f'--config.data.num_candidates={method.num_candidates}, but no query '
        f'of split {split!r} has more than {most} candidates that are not '
        'known positives; lower the option.')
  kind = method.distillation.kind
  scored = lambda part: part.query_rows[np.isfinite(part.scores)]
  if kind != 'none' and not np.isin(
      scored(negatives), scored(candidates.positives(qrels))).any():
    raise ValueError(
        f'--config.distillation.kind={kind} needs teacher scores, but no query '
        f'of split {split!r} has both a positive and another candidate with a '
        f"score; give them in the third column of candidates/{split}.tsv, the "
        'positives among them.')
