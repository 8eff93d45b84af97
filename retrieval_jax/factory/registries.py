"""Names of the config -> components; the registries are literal dicts.

A new component is a file, a line here and a default in configs/base.py.
"""

import dataclasses

from retrieval_jax import correctors
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax.data import readers

READERS = {
    'beir': readers.BeirReader,
    'dpr': readers.dpr.make_reader,
    'hf': readers.hugging_face.make_reader,
    'ir_datasets': readers.IrDatasetsReader,
    'msmarco': readers.MsMarcoReader,
    'pairs': readers.pairs.make_reader,
    'tevatron': readers.tevatron.make_reader,
    'tfds': readers.tfds.make_reader,
    'trec': readers.MsMarcoReader,
    'wordnet': readers.WordNetReader,
}
"""Each is called with the path of the data and returns a dataset.Reader."""

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
