"""Dense retrieval trained with hard negatives from stale target embeddings.

  import retrieval_jax

  config = retrieval_jax.load_config('configs/quickstart.py')
  retrieval_jax.train(config, 'runs/quickstart')
  retriever = retrieval_jax.open_run('runs/quickstart')
  retriever.search(['bank: they pulled the canoe up on the bank'], k=5)

What is listed in `__all__` is imported when it is first used: importing the
package itself is cheap and does not import jax.
"""

import importlib
from typing import Any

__version__ = '0.1.0'

_HOMES = {
    'configure_allocator': ('runtime', 'configure_allocator'),
    'build': ('factory', 'build'),
    'default_config': ('factory.defaults', 'get_config'),
    'load_config': ('factory.defaults', 'load_config'),
    'train': ('jobs.train', 'run'),
    'open_run': ('trained', 'open'),
    'load_state': ('trained', 'load_state'),
    'from_config': ('trained', 'from_config'),
    'TrainedRetriever': ('trained', 'TrainedRetriever'),
    'evaluate': ('jobs.evaluate', 'run'),
    'evaluate_config': ('jobs.evaluate', 'of_config'),
    'MtebSearch': ('jobs.mteb', 'MtebSearch'),
    'embed': ('jobs.embed', 'run'),
    'export': ('jobs.export', 'run'),
    'adapt': ('jobs.adapt', 'run'),
    'AdaptOptions': ('jobs.adapt', 'Options'),
    'mine': ('jobs.mine', 'run'),
    'MineOptions': ('jobs.mine', 'Options'),
    'compare': ('jobs.compare', 'run'),
    'results_table': ('evaluation.report', 'results_table'),
    'meter_table': ('evaluation.report', 'meter_table'),
}
"""Public name -> module of the package and name in it."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, attribute = _HOMES[name]
  return getattr(importlib.import_module(f'{__name__}.{module}'), attribute)


def __dir__() -> list[str]:
  return sorted([*globals(), *_HOMES])
