"""Names of the config -> components; the registries are literal dicts.

A new component is a file, a line here and a default in configs/base.py.
"""

import dataclasses
import os

from retrieval_jax import correctors
from retrieval_jax import data
from retrieval_jax import samplers
from retrieval_jax import sharding

READERS = {
    'beir': lambda path, cache: data.BeirReader(path),
    'dpr': lambda path, cache: data.dpr.make_reader(path),
    'hf': lambda path, cache: data.hugging_face.make_reader(path),
    'ir_datasets': lambda path, cache: data.IrDatasetsReader(path),
    'msmarco': lambda path, cache: data.MsMarcoReader(path),
    'pairs': lambda path, cache: data.pairs.make_reader(path),
    'tevatron': lambda path, cache: data.tevatron.make_reader(path),
    'tfds': lambda path, cache: data.tfds.make_reader(path),
    'trec': lambda path, cache: data.MsMarcoReader(path),
    'wordnet': lambda path, cache: data.WordNetReader(
        os.path.join(cache, 'tfds')),
}

CORRECTORS = {
    'identity': lambda config: correctors.Identity(),
    'linear': lambda config: correctors.Linear(
        **options(config.corrector, correctors.Linear)),
    'mlp': lambda config: correctors.MLP(
        **options(config.corrector, correctors.MLP)),
}

SAMPLERS = {
    'none': lambda config, mesh, num_targets: samplers.NoNegatives(),
    'uniform': lambda config, mesh, num_targets: samplers.Uniform(
        config.sampler.num_negatives),
    'stochastic': lambda config, mesh, num_targets: (
        samplers.StochasticNegativeMining(
            config.sampler.num_negatives, config.sampler.pool_size)),
    'exhaustive': lambda config, mesh, num_targets: samplers.Exhaustive(
        -(-sharding.capacity(num_targets, mesh, config.memory.chunk_rows)
          // config.batch_size)),
    'top_k': lambda config, mesh, num_targets: samplers.TopK(
        config.sampler.num_negatives, config.memory.chunk_rows, mesh,
        ceiling(config)),
    'simans': lambda config, mesh, num_targets: samplers.SimANS(
        config.sampler.num_negatives, config.sampler.pool_size,
        config.sampler.simans_a, config.sampler.simans_b,
        config.memory.chunk_rows, mesh, ceiling(config)),
    'gumbel': lambda config, mesh, num_targets: samplers.Gumbel(
        config.sampler.num_negatives, config.memory.chunk_rows, mesh,
        ceiling(config)),
    'top_k_gumbel': lambda config, mesh, num_targets: samplers.ShortlistGumbel(
        config.sampler.num_negatives, config.sampler.shortlist, False,
        config.memory.chunk_rows, mesh),
    'bucketed': lambda config, mesh, num_targets: samplers.ShortlistGumbel(
        config.sampler.num_negatives, config.sampler.shortlist, True,
        config.memory.chunk_rows, mesh),
}


def ceiling(config, section='sampler'):
  share, margin = config[section].max_share, config[section].min_margin
  if share is None and margin is None:
    return None
  return samplers.Ceiling(share, margin, section)


def options(section, cls):
  """Returns those options of a config section that are fields of `cls`."""
  fields = {field.name for field in dataclasses.fields(cls)}
  return {name: value for name, value in section.items() if name in fields}


def choose(registry, option, name):
  if name not in registry:
    raise ValueError(
        f'--config.{option}={name!r} is not one of {sorted(registry)}.')
  return registry[name]
