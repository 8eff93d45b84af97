"""What a run's steps cost, told to the meter."""

import numpy as np


class Cost:
  """Tells the meter what encoding costs; FLOPs are at mean text length."""

  def __init__(self, experiment, meter):
    """Takes text lengths from the experiment's token stores."""
    self._meter, config = meter, experiment.config
    flops = lambda store: experiment.model.flops(float(np.mean(store.lengths)))
    self._target_flops = flops(experiment.target_tokens)
    self._query_flops = flops(experiment.query_tokens)
    # Forward and backward are three passes; gradient caching adds a forward.
    self._passes = 4 if config.encoding.chunk_size else 3
    self._targets = 0
    if experiment.method.targets.source == 'encoder':
      self._targets = config.batch_size * (
          1 + experiment.method.sampler.num_negatives
          + experiment.method.num_candidates)
    self._queries = config.batch_size

  @property
  def phase(self):
    """The meter's `phase`."""
    return self._meter.phase

  def step(self, num_probes):
    """Counts one training step that re-encodes `num_probes` rows on top."""
    self._meter.count_step(
        targets=self._targets, queries=self._queries,
        target_flops=self._passes * self._target_flops,
        query_flops=self._passes * self._query_flops)
    self.reembedding(num_probes)

  def reembedding(self, num_targets):
    """Counts targets encoded for the memory alone."""
    self._meter.count_reembedding(
        targets=num_targets, target_flops=self._target_flops)
