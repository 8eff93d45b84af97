"""Names of the config -> components; the registries are literal dicts.

A new component is a file, a line here and its options in defaults.py. Each is
a dataclass, whose fields are filled by name: from its section of the config,
and from what the run knows (`make`).
"""

from collections.abc import Mapping
import dataclasses
from typing import Any
import warnings

from retrieval_jax import correctors
from retrieval_jax import memories
from retrieval_jax import objectives
from retrieval_jax import samplers
from retrieval_jax.data import readers
from retrieval_jax.factory import defaults

READERS = {
    'beir': readers.BeirReader,
    'dpr': readers.dpr.make_reader,
    'hf': readers.hugging_face.make_reader,
    'ir_datasets': readers.IrDatasetsReader,
    'msmarco': readers.MsMarcoReader,
    'pairs': readers.pairs.make_reader,
    'questions': readers.questions.make_reader,
    'tevatron': readers.tevatron.make_reader,
    'tfds': readers.tfds.make_reader,
    'trec': readers.MsMarcoReader,
    'wordnet': readers.WordNetReader,
}
"""Each is called with the path of the data and returns a dataset.Reader."""

MEMORIES = {
    'none': memories.Nothing,
    'ring': memories.Ring,
    'corpus': memories.Corpus,
}

CORRECTORS = {
    'identity': correctors.Identity,
    'linear': correctors.Linear,
    'mlp': correctors.MLP,
    'nystrom': correctors.Nystrom,
}

SAMPLERS = {
    'none': samplers.NoNegatives,
    'uniform': samplers.Uniform,
    'stochastic': samplers.StochasticNegativeMining,
    'exhaustive': samplers.Exhaustive,
    'top_k': samplers.TopK,
    'simans': samplers.SimANS,
    'gumbel': samplers.Gumbel,
    'top_k_gumbel': samplers.ShortlistGumbel,
    'bucketed': samplers.BucketedGumbel,
    'tree': samplers.Tree,
    'pool': samplers.Pool,
    'pool_gumbel': samplers.PoolGumbel,
}

OBJECTIVES = {
    'contrastive': objectives.Contrastive,
    'marginal': objectives.Marginal,
}
"""Losses of their own; the options of `estimator` are those of Contrastive."""


def choose(registry: Mapping[str, Any], option: str, name: str) -> Any:
  """Returns the entry of a registry that --config.OPTION names.

  Raises:
    ValueError: if there is none, naming those that there are.
  """
  if name not in registry:
    raise ValueError(
        f'--config.{option}={name!r} is not one of {sorted(registry)}.')
  return registry[name]


def make(registry: Mapping[str, Any], option: str, section: Mapping[str, Any],
         **known: Any) -> Any:
  """Returns the component that a section of the config names.

  Args:
    registry: name -> dataclass.
    option: the option that holds the name, such as 'sampler.name'.
    section: its section. An option that the component does not have is left
      out, with a warning if it was set.
    **known: what the run knows; a field that no option has is filled from here.

  Raises:
    ValueError: for an unknown name, or by the component for a bad option.
  """
  part, _, key = option.partition('.')
  cls = choose(registry, option, section[key])
  fields = {field.name for field in dataclasses.fields(cls)}
  warn_unread(part, section, f'{option}={section[key]!r}', {key, *fields})
  values = {**known, **section}
  return cls(**{name: values[name] for name in fields & values.keys()})


def warn_unread(part: str, section: Mapping[str, Any], by: str,
                read: set[str]) -> None:
  """Warns of options of a section that were set and that nothing reads.

  Args:
    part: name of the section.
    section: its options; one is set if it is not the default.
    by: what does not read them, for the message.
    read: names of the options that are read; 'ceiling' stands for its two.
  """
  if 'ceiling' in read:
    read = read | {'max_share', 'min_margin'}
  usual = defaults.get_config()[part]
  for name, value in section.items():
    if name not in read | {'chunk_rows'} and value != usual.get(name):
      warnings.warn(
          f'--config.{part}.{name}={value} is not read with '
          f'--config.{by}; leave it out.', stacklevel=3)
