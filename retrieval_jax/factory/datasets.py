"""The data set, tokenizer and tokens that a config names."""

from collections.abc import Sequence
import dataclasses
import json
import os

from ml_collections import config_dict

from retrieval_jax import data
from retrieval_jax.data import pipeline
from retrieval_jax.evaluation import answers
from retrieval_jax.evaluation import predictions
from retrieval_jax.factory import mixtures
from retrieval_jax.factory import registries
from retrieval_jax.factory import run_folder
from retrieval_jax.models import pretrained

# Folders of the cache where sources keep data that has no path of its own.
_IN_CACHE = {'wordnet': 'tfds'}


def cache(config: config_dict.ConfigDict) -> str:
  """Returns the folder of prepared data that the config names, absolute."""
  return os.path.expanduser(config.data.cache)


def make_reader(source: str, path: str, cache: str, *, corpus: str = '',
                lenient: bool = False) -> data.Reader:
  """Returns the dataset.Reader of a format.

  Args:
    source: name of the format, a key of registries.READERS.
    path: folder, file or name of the data, or several of these separated by
      commas; in each, ~ is the user's home. Of 'wordnet' it is the folder of
      tensorflow_datasets with its copy, by default `cache`/tfds.
    cache: folder of prepared data.
    corpus: file or folder whose passages take the place of the data's own, see
      `data.OverPassages`; '' for none.
    lenient: whether what is wrong with judgements is dropped and counted, see
      `data.Lenient`; else it is refused when it is read.

  Raises:
    ValueError: for an unknown source or an empty path; a DataError for data
      that cannot be read.
  """
  make = registries.choose(registries.READERS, 'data.source', source)
  if not path and source in _IN_CACHE:
    path = os.path.join(cache, _IN_CACHE[source])
  if not path:
    raise ValueError(
        f'--config.data.source={source} needs --config.data.path=DIR '
        '(--path of experiments.convert), or a file or a name; docs/data.md '
        'says which.')
  reader = make(','.join(map(os.path.expanduser, path.split(','))))
  if corpus:
    reader = data.OverPassages(reader, os.path.expanduser(corpus))
  return data.Lenient(reader) if lenient else reader


def make_dataset(config: config_dict.ConfigDict, *, training: bool = True
                 ) -> data.RetrievalDataset:
  """Returns the prepared data set; prepares it on the first call.

  Args:
    config: ConfigDict.
    training: whether it is to be trained on. Else it need not have the splits
      that the config names.

  Raises:
    ValueError: for a split that training needs and that is not there.
  """

  def read(source, path):
    reader = make_reader(source, path, cache(config), corpus=config.data.corpus,
                         lenient=config.data.lenient)
    if config.data.num_targets:
      reader = data.Subset(reader, config.data.num_targets)
    return reader

  sources = mixtures.sources(config)
  reader = data.Mixture({
      name: read(*source) for name, source in sources.items()
  }) if sources else read(config.data.source, config.data.path)
  dataset = data.prepare(reader, cache(config))
  if dataset.sets and config.data.negatives == 'own':
    dataset = dataclasses.replace(dataset, copies=dataset.copies.within(
        dataset.sets.corpus_starts))
  if training:
    _check_splits(config, dataset)
  return dataset


def _check_splits(config: config_dict.ConfigDict,
                  dataset: data.RetrievalDataset) -> None:
  """Raises ValueError where the data lacks a split that a run reads."""
  for option in ('train_split', 'dev_split', 'test_split'):
    split = config.data[option]
    if split and split not in dataset.qrels:
      raise ValueError(
          f'--config.data.{option}={split!r} is not a split of '
          f'{dataset.name}; it has {sorted(dataset.qrels)}.')
  mixtures.check_splits(config, dataset)
  for one in (dataset.parts or {'': dataset}).values():
    _check_judged(config, one)
  _check_best(config, dataset)
  pipeline.check_positive(config.data.positive)
  for option in ('evaluation.every', 'diagnostics.every'):
    if config[option.split('.')[0]].every and not config.data.dev_split:
      raise ValueError(
          f'--config.{option} looks at the dev queries; name a split by '
          '--config.data.dev_split, or set it to 0.')


def _check_judged(config: config_dict.ConfigDict,
                  dataset: data.Collection) -> None:
  """Raises ValueError where a run would read judgements that are not there."""
  of_answers = config.objective.name == 'marginal'
  split = config.data.train_split
  have = sorted(
      name for name, qrels in dataset.qrels.items()
      if (name in dataset.answers if of_answers else len(qrels.grades)))
  if split and split not in have:
    what = 'answers' if of_answers else 'judgements'
    raise ValueError(
        f'--config.data.train_split={split!r} of {dataset.name} has no {what}, '
        f'which --config.objective.name={config.objective.name} learns from; '
        f'those of {have} do.')
  for split in (config.data.train_split, config.data.dev_split):
    if (config.forgetting.every and split
        and not len(dataset.qrels[split].grades)):
      raise ValueError(
          '--config.forgetting.every looks at the positives of queries, and '
          f'{split!r} of {dataset.name} has answers alone; set it to 0.')


def _check_best(config: config_dict.ConfigDict,
                dataset: data.RetrievalDataset) -> None:
  """Raises ValueError where checkpoint.best names what cannot be measured."""
  split, best = config.data.dev_split, config.checkpoint.best
  if not best:
    return
  name, *rest = best.removeprefix(f'{split}/').split('/')
  measured: Sequence[data.Collection] = [dataset]
  parts = dataset.parts
  if parts:  # a mean is over all sets
    measured = [parts[name]] if name in parts else list(parts.values())
    name = rest[0] if name in parts else name
  by_answers = answers.is_measure(name) or name in predictions.MEASURES
  for one in measured:
    if (split not in one.answers if by_answers
        else not len(one.qrels[split].grades)):
      raise ValueError(
          f'--config.checkpoint.best={best!r}: {split!r} of {one.name} has '
          f'no {"answers" if by_answers else "judgements"} to measure it by.')
  if name in predictions.MEASURES and config.reader.name == 'none':
    raise ValueError(
        f'--config.checkpoint.best={best!r} is of a reader, and '
        "--config.reader.name='none'.")


def make_tokenizer(config: config_dict.ConfigDict,
                   dataset: data.RetrievalDataset) -> data.Tokenizer:
  """Returns the tokenizer at tokenizer.path, or one trained on the corpus.

  But the parameters of a run that is started from know its own tokens alone.
  """
  if config.model.start_from:
    return run_folder.read_tokenizer(run_folder.started_from(config))
  given = os.path.expanduser(config.tokenizer.path)
  if os.path.isfile(given):
    return data.load_tokenizer(given)
  if given:
    return pretrained.load_tokenizer(pretrained.tower_folders(given)[0])
  path = os.path.join(
      dataset.folder, f'wordpiece-{config.tokenizer.vocab_size}.json')
  if not os.path.exists(path):
    data.train_tokenizer(
        dataset.corpus_texts, config.tokenizer.vocab_size).save(path)
  return data.load_tokenizer(path)


def make_tokens(config: config_dict.ConfigDict, dataset: data.RetrievalDataset,
                tokenizer: data.Tokenizer
                ) -> tuple[data.TokenStore, data.TokenStore]:
  """Returns the TokenStores of the queries and of the targets.

  Raises:
    ValueError: for prompts of a set that is not there.
  """
  folder, sets = os.path.join(dataset.folder, 'tokens'), dataset.sets

  def tokens_of(texts, kind, column, starts, length):
    prompt = config.model[f'{kind}_prompt']
    option = f'{kind}_prompts'
    if sets is not None and config.data[option]:
      prompts = mixtures.prompts(config, sets, option, prompt)
      texts = data.Prefixed(texts, prompts, starts)
      # The texts are named with what was put before them.
      column, prompt = f'{json.dumps(prompts)}/{column}', ''
    return data.tokenize(texts, dataclasses.replace(tokenizer, prompt=prompt),
                         length, folder, column)

  return (
      tokens_of(dataset.query_texts, 'query', 'queries',
                sets and sets.query_starts, config.data.query_length),
      tokens_of(dataset.corpus_texts, 'target', 'targets',
                sets and sets.corpus_starts, config.data.target_length))
