"""The meter: what a run paid for its gradient."""

import collections
import contextlib
import dataclasses
import time

import jax
import jax.numpy as jnp

STEP_PHASES = ('propose', 'gather', 'update')
PHASES = STEP_PHASES + ('refresh', 'evaluate', 'prepare')

_COUNTS = ('target_encoder_calls_in_step', 'target_encoder_calls_reembedding',
           'query_encoder_calls', 'flops_in_step', 'flops_reembedding')


@dataclasses.dataclass
class _Clock:
  """Times of one phase; `first` apart, since it holds the compilation."""
  entered: int = 0
  timed: int = 0
  first: float = 0.0
  seconds: float = 0.0

  @property
  def total(self):
    if not self.timed:
      return self.first
    return self.first + self.seconds / self.timed * (self.entered - 1)


class Meter:
  """Counts encoder calls, FLOPs, bytes and seconds; lives on the host.

  Attributes:
    target_encoder_calls_in_step: targets encoded by training steps.
    target_encoder_calls_reembedding: targets re-encoded outside of them.
    query_encoder_calls: queries encoded by training steps.
    flops_in_step: FLOPs of the first and third.
    flops_reembedding: FLOPs of the second.
    table_bytes: size of the table over all devices.
    index_bytes: size of whatever else is kept to search with.
  """

  def __init__(self, *, sample_every: int | None = None):
    """Starts the total clock.

    Args:
      sample_every: of the entries into one of STEP_PHASES, the first and then
        one in so many wait for the device and are timed; the others stay
        asynchronous and are taken to last as long on average. None: 1 on CPU,
        where the loop waits for every step anyway, else 32.
    """
    if sample_every is None:
      sample_every = 1 if jax.default_backend() == 'cpu' else 32
    self._sample_every = sample_every
    self._clocks = collections.defaultdict(_Clock)
    self._started = time.monotonic()
    self._before = collections.defaultdict(float)  # seconds, before a resume
    for name in _COUNTS:
      setattr(self, name, 0.0 if name.startswith('flops') else 0)
    self.table_bytes = 0
    self.index_bytes = 0

  def count_step(self, *, targets, queries, target_flops=0.0,
                 query_flops=0.0):
    """Counts the texts that one step encodes.

    Args:
      targets: number of targets, over all processes.
      queries: number of queries, over all processes.
      target_flops: FLOPs that one target costs in the step (3 times its
        forward pass where a gradient is taken, 4 where it is recomputed).
      query_flops: the same of one query.
    """
    self.target_encoder_calls_in_step += int(targets)
    self.query_encoder_calls += int(queries)
    self.flops_in_step += targets * target_flops + queries * query_flops

  def count_reembedding(self, *, targets, target_flops=0.0):
    """Counts targets encoded outside of the steps; FLOPs are per target."""
    self.target_encoder_calls_reembedding += int(targets)
    self.flops_reembedding += targets * target_flops

  @property
  def target_encoder_calls(self) -> int:
    """All target-encoder calls of training."""
    return (self.target_encoder_calls_in_step
            + self.target_encoder_calls_reembedding)

  @property
  def seconds(self) -> float:
    """Wall time since the meter started, interruptions left out."""
    return self._before['total'] + time.monotonic() - self._started

  @contextlib.contextmanager
  def phase(self, name: str, *, block: bool | None = None):
    """Times a phase; yields `hold`, to be called with what it computes.

      with meter.phase('propose') as hold:
        proposal = hold(propose(state, batch))

    Args:
      name: one of PHASES or any other.
      block: True to wait for what was held and to time every entry, False to
        time what the host does and never to wait. None: sampled, see above,
        for STEP_PHASES, else True.
    """
    if block is None and name not in STEP_PHASES:
      block = True
    clock = self._clocks[name]
    every = self._sample_every
    sampled = block is None and (
        clock.entered == 0 or clock.entered % every == 1 % every)
    held = []

    def hold(tree):
      if block or sampled:
        held.append(tree)
      return tree

    if sampled and every > 1:
      _drain()
    started = time.monotonic()
    try:
      yield hold
      jax.block_until_ready(held)
    finally:
      elapsed = time.monotonic() - started
      clock.entered += 1
      if clock.entered == 1:
        clock.first = elapsed
      elif sampled or block is not None:
        clock.timed += 1
        clock.seconds += elapsed

  def as_dict(self) -> dict:
    """Returns the 'meter' of results.json."""
    phases = dict.fromkeys([*PHASES, *self._before, *self._clocks])
    seconds = {name: self._before[name] + self._clocks[name].total
               for name in phases if name != 'total'}
    return {name: getattr(self, name) for name in _COUNTS} | {
        'table_bytes': self.table_bytes, 'index_bytes': self.index_bytes,
        'seconds': seconds | {'total': self.seconds}}

  def state_dict(self) -> dict:
    """Returns what a checkpoint keeps, as plain JSON."""
    return {'counts': {name: getattr(self, name) for name in _COUNTS},
            'seconds': self.as_dict()['seconds']}

  def load_state_dict(self, state: dict):
    """Adds the counts and seconds of the run that is resumed."""
    for name, value in state['counts'].items():
      setattr(self, name, getattr(self, name) + value)
    for name, value in state['seconds'].items():
      self._before[name] += value


def num_bytes(tree) -> int:
  """Returns the bytes of all arrays of a pytree, over all devices' shards."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@jax.jit
def _nothing():
  return jnp.zeros(())


def _drain():
  """Waits until the device has done all that was dispatched before.

  Devices run programs in order; the arrays of earlier steps cannot be waited
  for instead, since they may have been donated.
  """
  jax.block_until_ready(_nothing())
