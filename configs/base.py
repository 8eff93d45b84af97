r"""The defaults of every option; all other configs start from here.

retrieval_jax/factory/defaults.py lists them. By themselves they are the stale
baseline on WordNet: negatives drawn by Gumbel-top-k from a table of all targets
that is embedded once and never again.

  python -m experiments.train --config=configs/base.py --workdir=runs/base
  python -m experiments.train --config=configs/base.py:tiny --workdir=/tmp/tiny

Any leaf can be set on the command line: --config.sampler.num_negatives=4.
Every config has `seeds`, the sweep of three runs that differ in the seed:

  python -m experiments.sweep --config=configs/stale.py --sweep=seeds \
      --workdir=runs/stale_seeds
"""

from retrieval_jax.factory import defaults


def get_config(variant=''):
  """Returns the configuration; `variant` is '' or 'tiny'."""
  config = defaults.get_config().unlock()
  if variant == 'tiny':
    make_tiny(config)
  elif variant:
    raise ValueError(f"Unknown config variant {variant!r}; there is ':tiny'.")
  return config.lock()


def check_variant(variant, variants):
  """Raises ValueError, which lists them, unless it is one of the variants."""
  if variant not in variants:
    *names, last = (repr(f':{name}') for name in variants if name)
    raise ValueError(f'Unknown config variant {variant!r}; there are '
                     f"{', '.join(names)} and {last}.")


def seeds():
  """Yields the overrides of three runs, for experiments.sweep."""
  for seed in range(3):
    yield {'seed': seed}


def with_seeds(arms):
  """Returns the runs of a sweep: arms, name -> overrides, with each seed."""
  return [{'name': f'{name}-seed{seed}', 'seed': seed, **overrides}
          for seed in range(3) for name, overrides in arms.items()]


def make_tiny(config):
  """Shrinks a config, in place, to a run of seconds on a laptop."""
  config.num_steps = 4
  config.batch_size = 16
  config.data.num_targets = 2000
  config.data.query_length = 24
  config.data.target_length = 24
  config.tokenizer.vocab_size = 1000
  config.model.pretrained = ''
  config.model.hidden_size = 32
  config.model.num_heads = 2
  config.model.intermediate_size = 64
  config.model.dtype = 'float32'  # the same digits on every machine
  config.encoding.chunk_size = 16
  config.encoding.buckets = (12, 24)
  config.encoding.batch_tokens = 2400
  config.memory.chunk_rows = 256
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 0
  config.log.every = 2
  config.checkpoint.every = 2
