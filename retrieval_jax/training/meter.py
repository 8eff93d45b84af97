"""The meter: what a run paid for its gradient."""

import collections
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import gc
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STEP_PHASES = ('propose', 'gather', 'rows', 'update')
PHASES = STEP_PHASES + ('refresh', 'evaluate', 'prepare')

FLOPS = ('flops_in_step', 'flops_reembedding', 'flops_scoring',
         'flops_correcting', 'flops_indexing', 'flops_reading')
"""The parts of what training computes; their sum is all of it."""

_CALLS = ('target_encoder_calls_in_step', 'target_encoder_calls_reembedding',
          'query_encoder_calls', 'reader_calls')

# Absent until counted: most methods have neither a tree nor a reader.
_OF_SOME = ('flops_indexing', 'reader_calls', 'flops_reading')


@dataclasses.dataclass
class _Clock:
  """Times of one phase; `first` is kept apart, for it includes compilation."""
  entered: int = 0
  timed: int = 0
  first: float = 0.0
  seconds: float = 0.0

  @property
  def total(self) -> float:
    if not self.timed:
      return self.first
    return self.first + self.seconds / self.timed * (self.entered - 1)


class Meter:
  """Counts encoder calls, FLOPs, bytes and seconds; lives on the host.

  FLOPs are those of matrix products, two for a multiplication and an addition.
  Encoder calls are counted in texts, padding left out. What is counted may
  still be on its way from the device; it is fetched when a count is read.

  Attributes:
    table_bytes: size of the table, over all devices or on the host.
    index_bytes: size of whatever else is kept to search with.
    device_bytes: of what is alive on the devices between two steps, measured.
    host_bytes: of what a run's state keeps on the host.

  The other counts are read by `as_dict`:
    target_encoder_calls_in_step: targets encoded for the loss.
    target_encoder_calls_reembedding: targets encoded for the memory alone.
    query_encoder_calls: queries encoded, to propose, for the loss, to mine by.
    flops_in_step: of the first and third, but for queries to mine by.
    flops_reembedding: of the second and of these.
    flops_scoring: of products between queries and targets, to choose negatives
      and for the loss.
    flops_correcting: of the corrector, applied and updated.
    flops_indexing: of building what a sampler draws by, a tree, and of keeping
      it up to date; only where there is such a thing.
    reader_calls: pairs of a question and a passage that were read; this and
      the next only where there is a reader.
    flops_reading: of these.
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
    self._clocks: dict[str, _Clock] = collections.defaultdict(_Clock)
    self._started = time.monotonic()
    # Seconds before a resume.
    self._before: dict[str, float] = collections.defaultdict(float)
    self._counts: dict[str, Any] = (
        dict.fromkeys(_CALLS, 0) | dict.fromkeys(FLOPS, 0.0))
    for name in _OF_SOME:
      del self._counts[name]
    self._pending: list[tuple[str, Any, float]] = []
    self.table_bytes = 0
    self.index_bytes = 0
    self.device_bytes = 0
    self.host_bytes = 0

  def count(self, name: str, number: int | float | jax.Array,
            each: float = 1) -> None:
    """Adds `number * each` to a count.

    Args:
      name: one of the counts that `as_dict` returns.
      number: of things, over all processes; a Python number, or [] int32 on
        the device, which is not waited for.
      each: of what is counted, such as the FLOPs of one thing.
    """
    if name not in _CALLS + FLOPS:
      raise ValueError(
          f'name={name!r} is not one of {list(_CALLS + FLOPS)}.')
    self._pending.append((name, number, each))

  def count_step(self, *, targets: int | jax.Array, queries: int,
                 target_flops: float = 0.0, query_flops: float = 0.0) -> None:
    """Counts the texts that one step encodes for its loss.

    Args:
      targets: number of targets, as of `count`.
      queries: number of queries.
      target_flops: FLOPs that one target costs in the step (3 times its
        forward pass where a gradient is taken, 4 where it is recomputed).
      query_flops: the same of one query.
    """
    self.count('target_encoder_calls_in_step', targets)
    self.count('query_encoder_calls', queries)
    self.count('flops_in_step', targets, target_flops)
    self.count('flops_in_step', queries, query_flops)

  def count_reembedding(self, *, targets: int | jax.Array,
                        target_flops: float = 0.0) -> None:
    """Counts targets encoded for the memory; FLOPs are per target."""
    self.count('target_encoder_calls_reembedding', targets)
    self.count('flops_reembedding', targets, target_flops)

  def counts(self) -> dict[str, Any]:
    """Returns all counts, with what had been left on the device."""
    # In the order in which they came: sums of floats then do not depend on
    # when they are read.
    for (name, _, each), number in zip(
        self._pending, jax.device_get([n for _, n, _ in self._pending])):
      kind = int if name in _CALLS else float
      self._counts[name] = self._counts.get(name, 0) + kind(number * each)
    self._pending.clear()
    return dict(self._counts)

  @property
  def target_encoder_calls(self) -> int:
    """All target-encoder calls of training."""
    counts = self.counts()
    return (counts['target_encoder_calls_in_step']
            + counts['target_encoder_calls_reembedding'])

  @property
  def flops(self) -> float:
    """All FLOPs of training."""
    counts = self.counts()
    return sum(counts.get(part, 0.0) for part in FLOPS)

  @property
  def seconds(self) -> float:
    """Wall time since the meter started, interruptions left out."""
    return self._before['total'] + time.monotonic() - self._started

  @contextlib.contextmanager
  def phase(self, name: str, *, block: bool | None = None
            ) -> Iterator[Callable[[Any], Any]]:
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
    return self.counts() | {
        'table_bytes': self.table_bytes, 'index_bytes': self.index_bytes,
        'device_bytes': self.device_bytes, 'host_bytes': self.host_bytes,
        'seconds': seconds | {'total': self.seconds}}

  def state_dict(self) -> dict:
    """Returns what a checkpoint keeps, as plain JSON."""
    return {'counts': self.counts(),
            'seconds': self.as_dict()['seconds']}

  def load_state_dict(self, state: dict) -> None:
    """Adds the counts and seconds of the run that is resumed."""
    for name, value in state['counts'].items():
      self._counts[name] = self._counts.get(name, 0) + value
    for name, value in state['seconds'].items():
      self._before[name] += value


def num_bytes(tree: Any) -> int:
  """Returns the bytes of all arrays of a pytree, over all devices' shards."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def num_host_bytes(tree: Any) -> int:
  """Returns the bytes of the numpy arrays of a pytree."""
  return sum(x.nbytes for x in jax.tree.leaves(tree)
             if isinstance(x, np.ndarray))


@jax.jit
def _nothing():
  return jnp.zeros(())


def _drain():
  """Waits until the device has done all that was dispatched before.

  Devices run programs in order; the arrays of earlier steps cannot be waited
  for instead, since they may have been donated.
  """
  jax.block_until_ready(_nothing())


def live_bytes() -> int:
  """Returns the bytes of all arrays that are alive on devices of this process.

  Of the buffers as they are, each once: copies and leftovers count, but not
  those that nothing but a reference to each other keeps.
  """
  gc.collect()
  buffers = {}
  for array in jax.live_arrays():
    if not array.is_deleted():
      for shard in array.addressable_shards:
        buffers[shard.device, shard.data.unsafe_buffer_pointer()] = (
            shard.data.nbytes)
  return sum(buffers.values())
