"""Several data sets in one run, as a config names them."""

from collections.abc import Sequence
import re
from typing import NamedTuple

from ml_collections import config_dict
import numpy as np

from retrieval_jax import data
from retrieval_jax.data import turns
from retrieval_jax.factory import defaults
from retrieval_jax.factory import registries

NEGATIVES = ('own', 'joint')
_OF_SEVERAL = ('weights', 'temperature', 'negatives', 'query_prompts',
               'target_prompts')
_SET = re.compile(r'([\w.-]+)=(\w+)(?::(.*))?')


class Source(NamedTuple):
  """Where a set comes from, as data.source and data.path of one alone."""
  source: str
  path: str


def sources(config: config_dict.ConfigDict) -> dict[str, Source]:
  """Returns set name -> its source, in the order of data.sets.

  {} where the config has one data set, of data.source and data.path.

  Raises:
    ValueError: for what is no 'NAME=SOURCE:PATH', a name that comes twice, or
      options that cannot go with it.
  """
  options = config.data
  if not options.sets:
    registries.warn_unread('data', options, 'data.sets=()',
                           set(options) - set(_OF_SEVERAL))
    return {}
  found: dict[str, Source] = {}
  for one in _listed(options.sets, 'sets'):
    match = _SET.fullmatch(one)
    if not match:
      raise ValueError(
          f'--config.data.sets={tuple(options.sets)}: expected '
          'NAME=SOURCE:PATH of each, the name of letters, digits and any of '
          f'_.-, got {one!r}.')
    name, source, path = match.groups()
    if name in found:
      raise ValueError(
          f'--config.data.sets={tuple(options.sets)} names two sets {name!r}; '
          'rename one of them.')
    found[name] = Source(source, path or '')
  for option in ('path', 'corpus'):
    if options[option]:
      raise ValueError(
          f'--config.data.{option}={options[option]!r} is of one data set, and '
          f'--config.data.sets names {list(found)}; leave one of them out.')
  if options.negatives not in NEGATIVES:
    raise ValueError(
        f'--config.data.negatives={options.negatives!r} is not one of '
        f'{list(NEGATIVES)}.')
  return found


def leave_out(config: config_dict.ConfigDict) -> None:
  """Makes a config, in place, one of data.source and data.path."""
  usual = defaults.get_config().data
  for option in ('sets', *_OF_SEVERAL):
    config.data[option] = usual[option]


def _listed(value: Sequence[str], option: str) -> Sequence[str]:
  """Returns the strings of an option; one alone is easily given without ()."""
  if isinstance(value, str):
    raise ValueError(
        f'--config.data.{option}={value!r} must be a tuple of strings: '
        f'--config.data.{option}="({value!r},)".')
  return value


def prompts(config: config_dict.ConfigDict, sets: data.Sets, option: str,
            default: str) -> list[str]:
  """Returns what goes before the texts of each set.

  Args:
    config: ConfigDict.
    sets: of the data.
    option: 'query_prompts' or 'target_prompts', with 'NAME=PROMPT' of sets.
    default: of all sets that it does not name.

  Raises:
    ValueError: for a set that is not there.
  """
  of_set = dict.fromkeys(sets.names, default)
  for one in _listed(config.data[option], option):
    name, equals, prompt = one.partition('=')
    if not equals or name not in of_set:
      raise ValueError(
          f'--config.data.{option}={tuple(config.data[option])}: expected '
          f'NAME=PROMPT with one of the sets {list(of_set)}, got {one!r}.')
    of_set[name] = prompt
  return list(of_set.values())


def check_splits(config: config_dict.ConfigDict,
                 dataset: data.RetrievalDataset) -> None:
  """Raises ValueError where a set lacks a split that a run reads.

  Or where the sets cannot take turns as the config says.
  """
  for name, part in dataset.parts.items():
    for option in ('train_split', 'dev_split', 'test_split'):
      split = config.data[option]
      if split and not len(part.qrels[split].grades) and (
          split not in part.answers):
        raise ValueError(
            f'--config.data.{option}={split!r} is not a split of the set '
            f'{name!r}, which has {sorted(_splits(part))}; every set needs it. '
            f'Leave the set out of --config.data.sets, or take the option away '
            f'(--config.data.{option}=) where it is not that of training.')
  if dataset.sets is not None:
    chances(config, dataset)


def _splits(part: data.Collection) -> set[str]:
  return {split for split, qrels in part.qrels.items()
          if len(qrels.grades)} | set(part.answers)


def chances(config: config_dict.ConfigDict, dataset: data.RetrievalDataset
            ) -> np.ndarray:
  """Returns the chance [S] of each set to give a step its batch.

  Raises:
    ValueError: for weights or a temperature that do not fit.
  """
  split = config.data.train_split
  return turns.chances(
      {name: len(part.queries_of(split))
       for name, part in dataset.parts.items()},
      tuple(config.data.weights), config.data.temperature)
