"""Encodes a batch in groups of like length: little padding, nothing twice.

Encoded at once, all texts are padded to the length of the longest. How long the
texts of a data set are is known beforehand, so a batch of n is cut into groups
of fixed sizes and lengths that most batches fit, the program is one, and
gradients are those that jax derives. Texts that find no place, in a batch with
more long texts than usual, are encoded in small chunks behind it, which costs
nothing where there are none (`chunking.chunked`). Sizes are ours.
"""

from collections.abc import Sequence
import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.models import chunking
from retrieval_jax.models import embedding

_SMALLEST = 8  # texts per device of a group; smaller ones are not worth a call
_SPILL = 32  # one such part of a batch is a chunk of texts without a place


def grouped(encode: types.Encode, lengths: Sequence[np.ndarray], *,
            buckets: Sequence[int] = embedding.BUCKETS,
            layout: sharding.Layout | None = None) -> types.Encode:
  """Returns an `encode` with the same values and gradients, in groups.

  Padding, -1, must be at the end of each text, and `encode` must not depend on
  it.

  Args:
    encode: (params, tokens [n, L]) -> [n, D] float32; see `chunking.chunked`.
    lengths: of the texts to expect, in tokens, an array [N] for each set of
      which a batch may be; at least one text.
    buckets: ascending lengths that groups are padded to.
    layout: where the parameters live; the texts of each group are spread over
      the devices of its mesh. None leaves both to the compiler.

  Raises:
    ValueError: for buckets that do not ascend.
  """
  embedding.check_buckets(buckets, 1)
  shares = tuple(
      max(float(np.mean(np.asarray(of_set) > bucket)) for of_set in lengths)
      for bucket in buckets)
  return _Grouped(encode, tuple(buckets), shares, layout)


def group_sizes(num_texts: int, shares: Sequence[float], num_devices: int = 1
                ) -> list[int]:
  """Returns how many texts the group of each bucket has room for.

  Of n texts n p are expected to be longer than a bucket, give or take
  sqrt(n p (1 - p)); groups of longer buckets have room for both.

  Args:
    num_texts: n.
    shares: p for each bucket, the share of texts that are longer; 0 for the
      last.
    num_devices: each size is a multiple of it.

  Returns:
    as many sizes, 0 for a group that would be small; their sum is n or, where
    devices do not divide that, a little more.
  """
  up = lambda number: num_devices * math.ceil(number / num_devices)
  longer = [
      up(min(num_texts, math.ceil(
          num_texts * p + math.sqrt(num_texts * p * (1 - p)))))
      for p in shares]
  sizes, taken = [0] * len(longer), 0
  for i in reversed(range(len(longer))):
    above = longer[i - 1] if i else up(num_texts)
    size = max(above - taken, 0)
    is_last = not i
    if size >= _SMALLEST * num_devices or (is_last and size):
      sizes[i], taken = size, taken + size
  return sizes


@dataclasses.dataclass(frozen=True)
class _Grouped:
  """See `grouped`."""
  encode: types.Encode
  buckets: tuple[int, ...]
  shares: tuple[float, ...]  # of texts that are longer, for each bucket
  layout: sharding.Layout | None

  def __call__(self, params, tokens):
    """Returns embeddings [n, D] float32 of tokens [n, L] int32."""
    tokens = jnp.asarray(tokens)
    n, width = tokens.shape
    buckets = embedding.check_buckets(self.buckets, width)
    devices = 1 if self.layout is None else self.layout.mesh.size
    sizes = group_sizes(n, (*self.shares[:len(buckets) - 1], 0.), devices)
    whole = chunking.chunked(self.encode, chunk_size=None, layout=self.layout)
    if not any(sizes[:-1]):
      return whole(params, tokens)
    groups, rows, rest = _placed(tokens, buckets, sizes)
    spilled = chunking.chunked(  # at full length: one program for the few
        self.encode, buckets=(width,), layout=self.layout,
        chunk_size=devices * math.ceil(n / (_SPILL * devices)),
        skips_empty=True)(params, rest)
    return spilled.at[rows].set(
        self._together(params, groups), mode='drop', unique_indices=True)

  def _together(self, params, groups):
    """Returns embeddings [sum of sizes, D] of groups [size, bucket] int32."""
    specs = None if self.layout is None else self.layout.specs(params)

    def encode(params, groups):
      if self.layout is not None:
        params = self.layout.gather(params, specs)
      parts = chunking.parts_of(self.encode, params)
      table, rest = parts.split(params)
      # One look-up: the gradient of the token table is one sum over all texts.
      vectors = parts.look_up(table, jnp.concatenate(
          [group.reshape(1, -1) for group in groups], axis=1))[0]
      ends = np.cumsum([group.size for group in groups])
      return tuple(
          parts.body(rest, of_group.reshape(group.shape + of_group.shape[1:]),
                     group)
          for of_group, group in zip(jnp.split(vectors, ends[:-1]), groups))

    return jnp.concatenate(chunking.on_devices(
        encode, self.layout, (specs, chunking.TEXTS), chunking.TEXTS)(
            params, groups))


def _placed(tokens, buckets, sizes):
  """Returns the groups, longest first, and what has no place in one.

  Returns:
    groups: tuple of [size, bucket] int32, none of size 0.
    rows: [sum of sizes] int32, of `tokens`, for each place of each group; n for
      a place that is empty.
    rest: [n, L] int32, the texts that have no place; all others are empty.
  """
  n = len(tokens)
  lengths = jnp.sum(tokens >= 0, axis=1)
  order = jnp.argsort(-lengths).astype(jnp.int32)
  groups, rows, start = [], [], 0
  for bucket, size in reversed(list(zip(buckets, sizes))):
    if not size:
      continue
    # Those that are too long for this group, and found no place before.
    start = jnp.maximum(start, jnp.sum(lengths > bucket))
    places = order.at[start + jnp.arange(size)].get(mode='fill', fill_value=n)
    groups.append(
        tokens[:, :bucket].at[places].get(mode='fill', fill_value=-1))
    rows.append(places)
    start += size
  rows = jnp.concatenate(rows)
  has_place = jnp.zeros(n, bool).at[rows].set(
      True, mode='drop', unique_indices=True)
  return tuple(groups), rows, jnp.where(has_place[:, None], -1, tokens)
