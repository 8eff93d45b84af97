"""Fewer rows than targets: the latest ones, which come and go."""

import dataclasses
from typing import Any

import jax
import numpy as np

from retrieval_jax import coarse
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.memories import on_device


@dataclasses.dataclass(frozen=True)
class Ring(on_device.OnDevice):
  """Remembers the targets that were pushed last, at most `capacity` of them.

  Source: the cache of Lindgren et al., NeurIPS 2021.

  Attributes:
    capacity: the most targets that it holds.
    replacement: which row a new target takes, 'lru' (that written longest ago)
      or 'fifo' (that filled longest ago).
    prefill: whether it starts full of random targets instead of empty.
    dtype: of the remembered embeddings, 'float32' or 'bfloat16'.
    chunk_rows: C, rows scored at a time on each device.
    scan_dtype: what scans of all rows read, 'float32', or copies of the rows in
      'bfloat16' or 'int8', see `coarse`: the same draws in less time.
  """
  capacity: int
  replacement: str
  prefill: bool
  dtype: str
  chunk_rows: int
  scan_dtype: str = 'float32'
  kind = 'ring'
  holds_corpus = False

  def __post_init__(self):
    coarse.check(self.scan_dtype, 'memory.scan_dtype')
    if self.replacement not in tables.REPLACEMENTS:
      raise ValueError(
          f'memory.replacement={self.replacement!r} is not one of '
          f'{list(tables.REPLACEMENTS)}.')
    if self.capacity < 1:
      raise ValueError(
          f'memory.capacity={self.capacity} must be the number of targets that '
          'a ring holds, at least 1.')

  @property
  def num_slots(self) -> int:
    """`capacity`."""
    return self.capacity

  def first_ids(self, num_targets: int, seed: int) -> np.ndarray:
    """Returns no ids, or `capacity` random ones in order if it is pre-filled.

    Not the first ones, because a corpus comes in some order (WordNet's by part
    of speech).
    """
    if not self.prefill:
      return np.arange(0)
    # The second number keeps this apart from other uses of the seed.
    return np.sort(np.random.default_rng([seed, 1]).choice(
        num_targets, self.capacity, replace=False))

  def create(self, embeddings: Any, ids: Any, *, dim: int,
             mesh: jax.sharding.Mesh, step: int = 0) -> types.TargetTable:
    """Returns the table that holds `ids` [n], empty for n = 0.

    Embeddings may be None: zeros, which the caller overwrites.
    """
    options: dict[str, Any] = dict(
        mesh=mesh, chunk_rows=self.chunk_rows, dtype=self.dtype,
        replacement=self.replacement, scan_dtype=self.scan_dtype)
    if not len(ids):
      return tables.empty(self.capacity, dim, **options)
    if embeddings is None:
      embeddings = jax.ShapeDtypeStruct((len(ids), dim), np.float32)
    return tables.create(embeddings, ids, step=step, **options)
