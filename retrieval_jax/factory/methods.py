"""The point of the design space that a config names, and its checks."""

import dataclasses
from typing import Any

from ml_collections import config_dict
import numpy as np

from retrieval_jax import ceiling as ceilings
from retrieval_jax import compatibility
from retrieval_jax import data
from retrieval_jax import method as methods
from retrieval_jax import objectives
from retrieval_jax import types
from retrieval_jax.factory import registries
from retrieval_jax.mining import episodes


def make_method(config: config_dict.ConfigDict, num_targets: int,
                num_queries: int, epoch_size: int | None = None,
                reader: types.Reader | None = None
                ) -> methods.Method:
  """Returns the point of the design space that the config names.

  Args:
    config: as `settled` returns it.
    num_targets: N.
    num_queries: number of queries of all splits, which query ids index.
    epoch_size: queries of an epoch of training; None for all.
    reader: of a method whose questions have answers.

  Raises:
    ValueError: for options that cannot work, alone or together.
  """
  memory = registries.make(
      registries.MEMORIES, 'memory.kind', config.memory,
      num_targets=num_targets)
  plan = make_plan(config)
  ceiling = _ceiling(config, 'sampler')
  have_ceiling = [
      name for name, cls in registries.SAMPLERS.items()
      if 'ceiling' in {field.name for field in dataclasses.fields(cls)}]
  if ceiling and config.sampler.name not in have_ceiling:
    raise ValueError(
        '--config.sampler.max_share and min_margin are of the samplers '
        f'{sorted(have_ceiling)}, which score the whole table; leave them out '
        f'with {config.sampler.name!r}.')
  sampler = registries.make(
      registries.SAMPLERS, 'sampler.name', config.sampler,
      ceiling=ceiling, num_slots=memory.num_slots,
      batch_size=config.batch_size, num_targets=num_targets,
      num_queries=num_queries, epoch_size=epoch_size or num_queries,
      pool_capacity=plan.capacity(plan.num_episodes(
          config.num_steps, config.refresh.reencode_every)))
  _warn_of_episodes(config, sampler)
  method = methods.Method(
      memory=memory,
      corrector=registries.make(
          registries.CORRECTORS, 'corrector.name', config.corrector),
      sampler=sampler, objective=_make_objective(config),
      refresh=methods.Refresh(**config.refresh),
      targets=methods.Targets(
          **config.targets, normalize=config.model.normalize),
      num_candidates=config.data.num_candidates, reader=reader,
      teacher_dim=config.teacher.dim)
  if not method.has_positives:
    registries.warn_unread(
        'data', config.data, f'objective.name={config.objective.name!r}',
        set(config.data) - {'positive'})
  return method


def make_early_method(method: methods.Method, plan: episodes.Plan
                      ) -> methods.Method:
  """Returns the method of all episodes but the last.

  Args:
    method: of the last. Both have the same state, since pools are as large
      whatever is drawn from them.
    plan: of the run, which may ask for another number of draws.

  Raises:
    ValueError: if the method cannot work with that number.
  """
  number = plan.early_negatives
  if not number or not method.sampler.draws_from_pools:
    return method
  sampler: Any = method.sampler  # a dataclass, as all components are
  try:
    return dataclasses.replace(method, sampler=dataclasses.replace(
        sampler, num_negatives=number))
  except ValueError as error:
    raise ValueError(
        f'--config.episodes.early_negatives={number} takes the place of '
        'sampler.num_negatives in all episodes but the last, which then cannot '
        f'work: {error}') from error


def make_plan(config: config_dict.ConfigDict) -> episodes.Plan:
  """Returns which episodes the config asks for, and what each mines.

  Raises:
    ValueError: for options that cannot work, alone or together.
  """
  return episodes.Plan(**config.episodes)


def _warn_of_episodes(config: config_dict.ConfigDict, sampler: types.Sampler
                      ) -> None:
  """Warns of options of the episodes that were set and that nothing reads."""
  if not sampler.draws_from_pools:
    registries.warn_unread(
        'episodes', config.episodes, f'sampler.name={config.sampler.name!r}',
        {'number', 'restart'})
  elif config.episodes.combine == 'concatenated':
    registries.warn_unread(
        'episodes', config.episodes, "episodes.combine='concatenated'",
        set(config.episodes) - {'alpha', 'beta'})


def _make_objective(config: config_dict.ConfigDict) -> types.Objective:
  """Returns the loss, with teachers and over prefixes where asked."""
  options, guide = config.estimator, _guide(config)
  objective: types.Objective = registries.make(
      registries.OBJECTIVES, 'objective.name', config.objective,
      estimator=options.name, columns=options.columns,
      ceiling=_ceiling(config, 'estimator'), distinct=options.distinct,
      pairs=tuple(options.pairs), hardness=options.hardness, guide=guide)
  read = {'matryoshka_dims', 'matryoshka_weights', 'spread_out'}
  if isinstance(objective, objectives.Contrastive):
    read |= {'name', 'columns', 'ceiling', 'distinct', 'pairs', 'hardness'}
  elif guide:
    registries.warn_unread('guide', config.guide,
                           f'objective.name={config.objective.name!r}', set())
  registries.warn_unread('estimator', options,
                         f'objective.name={config.objective.name!r}', read)
  if options.spread_out:
    objective = objectives.SpreadOut(objective, options.spread_out)
  teacher = objectives.Distillation(**config.distillation)
  if teacher.kind == 'none':
    registries.warn_unread('distillation', config.distillation,
                           "distillation.kind='none'", {'kind'})
  else:
    objective = objectives.Distilled(objective, teacher)
  if options.matryoshka_dims or options.matryoshka_weights:
    objective = objectives.Matryoshka(
        objective, tuple(options.matryoshka_dims),
        tuple(options.matryoshka_weights), config.model.normalize)
  options = config.teacher
  if options.loss == 'none':
    read = {'loss', 'dim'}  # which is as the folder has it
    if guide and guide.by == 'embeddings':
      read |= {'folder', 'on_device'}
    registries.warn_unread('teacher', options, "teacher.loss='none'", read)
  else:  # of whole embeddings, so around what is over prefixes
    objective = objectives.EmbeddingDistilled(
        objective, options.loss, options.weight, options.projection,
        options.dim)
  return objective


def fitted(method: methods.Method, dim: int) -> methods.Method:
  """Returns the method for embeddings of `dim` dimensions.

  Raises:
    ValueError: if a teacher's vectors have others and are to be compared.
  """
  objective = method.objective
  if not isinstance(objective, objectives.EmbeddingDistilled):
    return method
  return dataclasses.replace(method, objective=objective.fitted(dim))


def _guide(config: config_dict.ConfigDict) -> objectives.Guide | None:
  """Returns what leaves out columns as a teacher sees them, or None.

  Raises:
    ValueError: for options that cannot work.
  """
  options = config.guide
  if options.by == 'none':
    registries.warn_unread('guide', options, "guide.by='none'", {'by'})
    return None
  ceiling = _ceiling(config, 'guide')
  if ceiling is None:
    raise ValueError(
        f'--config.guide.by={options.by!r} needs guide.max_share or '
        'guide.min_margin; min_margin=0.0 leaves out what scores above the '
        'positive.')
  return objectives.Guide(options.by, ceiling, config.teacher.dim)


def _ceiling(config: config_dict.ConfigDict, section: str
             ) -> ceilings.Ceiling | None:
  share, margin = config[section].max_share, config[section].min_margin
  if share is None and margin is None:
    return None
  return ceilings.Ceiling(share, margin, section)


def make_setting(config: config_dict.ConfigDict, num_devices: int,
                 dataset: data.RetrievalDataset) -> compatibility.Setting:
  """Returns what the config's method meets: model, devices and data.

  Args:
    config: as `settled` returns it.
    num_devices: S.
    dataset: of the run.
  """
  split, num_distinct = config.data.train_split, len(dataset.distinct_ids)
  dataset = dataset.by_text
  most, has_teacher = None, False
  if config.data.num_candidates and split in dataset.candidates:
    candidates, qrels = dataset.candidates[split], dataset.qrels[split]
    negatives = candidates.negatives(qrels)
    most = int(np.unique(negatives.query_rows, return_counts=True)[1].max(
        initial=0))
    scored = lambda part: part.query_rows[np.isfinite(part.scores)]
    has_teacher = bool(np.isin(
        scored(negatives), scored(candidates.positives(qrels))).any())
  return compatibility.Setting(
      batch_size=config.batch_size, num_devices=num_devices,
      num_targets=num_distinct,
      tied=config.model.tied and not config.reader.alone,
      normalize=config.model.normalize, table_dtype=config.memory.dtype,
      data_name=dataset.name, split=split, num_candidates=most,
      has_answers=split in dataset.answers, has_teacher=has_teacher,
      negatives=config.data.negatives if dataset.sets else None)
