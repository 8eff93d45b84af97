"""Encodes a batch in chunks of bounded memory and little padding.

The embeddings of a step's texts are small, what the encoder keeps for their
gradients is not. `chunked` keeps nothing but parameters and tokens: the
backward pass encodes each chunk again and adds up the parameters' gradients
(gradient caching; Gao et al., RepL4NLP 2021). Since it walks over chunks
anyway, texts are sorted by length first and each chunk is padded only to the
smallest bucket that holds its longest text.

Over several devices each walks over its part of every chunk. Replicated
parameters are then used without communication, and their gradients are summed
once, after the last chunk. Sharded ones are gathered before the first chunk of
a pass, and the gradient of each chunk is summed into shards, so that no device
adds up a whole one.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from retrieval_jax import base_params
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.models import embedding
from retrieval_jax.models import transformer

TEXTS = PartitionSpec(sharding.AXIS)
_CHUNKS = PartitionSpec(None, sharding.AXIS)  # texts of each chunk
_WHOLE = PartitionSpec()


def chunked(encode: types.Encode, *, chunk_size: int | None,
            buckets: Sequence[int] = embedding.BUCKETS,
            layout: sharding.Layout | None = None,
            skips_empty: bool = False) -> types.Encode:
  """Returns an `encode` with the same values and gradients, in chunks.

  Memory of a training step is that of `chunk_size` texts, plus the gradient
  of the parameters, whatever the number of texts; the price is one more
  forward pass. Padding, -1, must be at the end of each text, and `encode` must
  not depend on it.

  Args:
    encode: (params, tokens [n, L]) -> [n, D] float32. One that can be taken
      apart (`split`, `merge`, `body`, see `dual_encoder.Tower`) costs no
      pass over the token table per chunk; where what it reads is more than
      tokens, its `ids` says which these are, padding below 0. There is no
      gradient of `base_params`, nor of a token table of which its
      `trains_table` says that it is among them.
    chunk_size: texts encoded at a time, over all devices; None or 0 for all,
      without recomputation: `encode` itself, or, with sharded parameters,
      `encode` of gathered ones.
    buckets: ascending lengths that chunks are padded to; each compiles the
      encoder once.
    layout: where the parameters live; the texts of each chunk are spread over
      the devices of its mesh, which must divide `chunk_size`. None leaves both
      to the compiler.
    skips_empty: chunks of empty texts alone cost nothing and give zeros.

  Raises:
    ValueError: for a chunk_size that the mesh does not divide, or a token
      table that is sharded by rows.
  """
  if not chunk_size:
    if layout is not None and layout.shards_parameters:
      return _Gathered(encode, layout)
    return encode
  devices = 1 if layout is None else layout.mesh.size
  if chunk_size < 0 or chunk_size % devices:
    raise ValueError(
        f'chunk_size={chunk_size} must be positive and a multiple of the '
        f'{devices} devices of the mesh.')
  embedding.check_buckets(buckets, 1)
  return _Chunked(encode, chunk_size, tuple(buckets), layout, skips_empty)


def on_devices(function: Callable, layout: sharding.Layout | None, in_specs,
               out_specs) -> Callable:
  """Returns `function` as each device runs it on its shards, by shard_map.

  `function` itself without a layout.
  """
  if layout is None:
    return function
  # Unchecked, gradients of replicated arrays stay each device's own until they
  # are summed; checked, jax (0.10) would sum them at every use.
  return jax.shard_map(function, mesh=layout.mesh, in_specs=in_specs,
                       out_specs=out_specs, check_vma=False)


@dataclasses.dataclass(frozen=True)
class _Gathered:
  """`encode` of all texts at once, with parameters in shards."""
  encode: types.Encode
  layout: sharding.Layout

  def __call__(self, params, tokens):
    """Returns embeddings [n, D] float32 of tokens [n, L] int32."""
    specs = self.layout.specs(params)
    return on_devices(
        lambda params, tokens: self.encode(
            self.layout.gather(params, specs), tokens),
        self.layout, (specs, TEXTS), TEXTS)(params, tokens)


def _scan(step, carry, xs, first):
  """Returns jax.lax.scan(step, carry, xs) from `first` on, zeros before it.

  `first` is [] int32, or None for all.
  """
  if first is None:
    return jax.lax.scan(step, carry, xs)
  at = lambda i: jax.tree.map(lambda x: x[i], xs)
  outputs = jax.tree.map(
      lambda one: jnp.zeros((len(xs[0]),) + one.shape, one.dtype),
      jax.eval_shape(step, carry, at(0))[1])

  def add(i, state):
    carry, one = step(state[0], at(i))
    return carry, jax.tree.map(
        lambda outputs, one: outputs.at[i].set(one), state[1], one)

  return jax.lax.fori_loop(first, len(xs[0]), add, (carry, outputs))


def _unless_empty(run, first, chunks, *arguments):
  """Returns run(chunks, *arguments), zeros where `first` skips all chunks.

  Then nothing is gathered or summed over devices either.
  """
  if first is None:
    return run(chunks, *arguments)
  zeros = lambda *arguments: jax.tree.map(
      lambda one: jnp.zeros(one.shape, one.dtype),
      jax.eval_shape(run, *arguments))
  return jax.lax.cond(first < len(chunks), run, zeros, chunks, *arguments)


class _Whole:
  """Gives any `encode` the parts of a Tower, with an empty token table."""

  trains_table = True

  def __init__(self, encode, params):
    del params
    self._encode = encode

  def split(self, params):
    return None, params

  def merge(self, table, rest):
    del table
    return rest

  def look_up(self, table, tokens):
    # Cotangents of nothing: a last axis of size zero.
    return jnp.zeros(tokens.shape + (0,), jnp.float32)

  def add_rows(self, table, tokens, values):
    return table

  def body(self, rest, token_vectors, tokens):
    del token_vectors
    return self._encode(rest, tokens)


class _Parts(_Whole):
  """A Tower, with the two operations on its token table."""

  def __init__(self, encode, params):
    super().__init__(encode, params)
    self.split, self.merge, self.body = (
        encode.split, encode.merge, encode.body)
    if hasattr(encode, 'trains_table'):
      self.trains_table = encode.trains_table(params)
    self._ids = getattr(encode, 'ids', lambda tokens: tokens)

  def look_up(self, table, tokens):
    return transformer.look_up(table, self._ids(tokens))

  def add_rows(self, table, tokens, values):
    # Padding, of which nothing depends, adds zeros to the first row.
    return table.at[jnp.maximum(self._ids(tokens), 0)].add(
        values.astype(table.dtype), mode='drop')


def parts_of(encode: types.Encode, params: types.Params) -> _Whole:
  """Returns the parts of an `encode`: split, merge, look_up, add_rows, body.

  Those of one that cannot be taken apart have an empty token table.
  """
  has_parts = all(hasattr(encode, name) for name in ('split', 'merge', 'body'))
  return (_Parts if has_parts else _Whole)(encode, params)


class _Columns(_Parts):
  """A Tower whose token table lies in blocks of columns; in shard_map only.

  Each device reads its columns for the texts of all, then all exchange blocks;
  and back for the gradient, which then needs no sum over devices.
  """

  def look_up(self, table, tokens):
    vectors = super().look_up(table, self._of_all(tokens))  # [S n, L, H / S]
    return jax.lax.all_to_all(
        vectors, sharding.AXIS, split_axis=0, concat_axis=2, tiled=True)

  def add_rows(self, table, tokens, values):
    values = jax.lax.all_to_all(
        values, sharding.AXIS, split_axis=2, concat_axis=0, tiled=True)
    return super().add_rows(table, self._of_all(tokens), values)

  def _of_all(self, tokens):
    return jax.lax.all_gather(tokens, sharding.AXIS, tiled=True)


class _Chunked:
  """See `chunked`; equal and hashable by what it was built from."""

  def __init__(self, encode, chunk_size, buckets, layout, skips_empty):
    self._key = (encode, chunk_size, buckets, layout, skips_empty)
    (self._encode, self._chunk_size, self._buckets, self._layout,
     self._skips_empty) = self._key
    self._run = jax.custom_vjp(self._forward)
    self._run.defvjp(self._forward_and_save, self._backward)

  def __eq__(self, other):
    return isinstance(other, _Chunked) and self._key == other._key

  def __hash__(self):
    return hash(self._key)

  def __call__(self, params, tokens):
    """Returns embeddings [n, D] float32 of tokens [n, L] int32."""
    return self._run(params, jnp.asarray(tokens))

  def _forward(self, params, tokens):
    parts, specs = self._take_apart(params)
    chunks, choices, order, first = self._cut(tokens)
    buckets = embedding.check_buckets(self._buckets, tokens.shape[1])

    def encode(shards, first, chunks, choices):
      table, rest = shards[0], self._gather(shards[1], specs[1])

      def encode_at(length, chunk):
        chunk = chunk[:, :length]
        return parts.body(rest, parts.look_up(table, chunk), chunk)

      def step(carry, xs):
        chunk, choice = xs
        return carry, jax.lax.switch(
            choice, [functools.partial(encode_at, b) for b in buckets], chunk)

      return _scan(step, None, (chunks, choices), first)[1]

    embeddings = on_devices(
        lambda shards, first, *xs: _unless_empty(
            functools.partial(encode, shards, first), first, *xs),
        self._layout, (specs, _WHOLE, _CHUNKS, _WHOLE), _CHUNKS)(
            parts.split(params), first, chunks, choices)
    flat = embeddings.reshape(-1, embeddings.shape[-1])
    # Every text occurs exactly once in `order`, so this scatter is a
    # permutation; the texts that filled the last chunk fall off its end.
    n = tokens.shape[0]
    return jnp.zeros((n,) + flat.shape[1:], flat.dtype).at[order].set(
        flat, mode='drop', unique_indices=True)

  def _forward_and_save(self, params, tokens):
    return self._forward(params, tokens), (params, tokens)

  def _backward(self, saved, cotangent):
    params, tokens = saved
    parts, specs = self._take_apart(params)
    chunks, choices, order, first = self._cut(tokens)
    width = tokens.shape[1]
    buckets = embedding.check_buckets(self._buckets, width)
    cotangents = cotangent.at[order].get(mode='fill', fill_value=0)
    cotangents = cotangents.reshape(chunks.shape[:2] + cotangent.shape[1:])

    learned_specs, _ = base_params.split(specs[1])
    out_specs = specs[0] if parts.trains_table else None, learned_specs

    def pull_back(shards, first, chunks, choices, cotangents):
      table = shards[0]
      learned, base = base_params.split(self._gather(shards[1], specs[1]))

      def gradient_at(length, chunk, cotangent):
        chunk = chunk[:, :length]
        vectors = parts.look_up(table, chunk)
        _, pull = jax.vjp(
            lambda learned, vectors: parts.body(
                base_params.join(learned, base), vectors, chunk),
            learned, vectors)
        learned_grad, vectors_grad = pull(cotangent)
        if not parts.trains_table:
          return learned_grad, None
        return learned_grad, jnp.pad(
            vectors_grad, ((0, 0), (0, width - length), (0, 0)))

      def step(carry, xs):
        table_grad, total = carry
        chunk, choice, cotangent = xs
        more, vectors_grad = jax.lax.switch(
            choice, [functools.partial(gradient_at, b) for b in buckets],
            chunk, cotangent)
        if self._layout is not None:
          more = sharding.scatter(more, learned_specs)
        if parts.trains_table:
          # Only the rows of the chunk's tokens are touched: the scan updates
          # the table's gradient in place.
          table_grad = parts.add_rows(table_grad, chunk, vectors_grad)
        return (table_grad, jax.tree.map(jnp.add, total, more)), None

      zeros = jax.tree.map(jnp.zeros_like, (
          table if parts.trains_table else None,
          base_params.split(shards[1])[0]))
      gradient, _ = _scan(step, zeros, (chunks, choices, cotangents), first)
      return (gradient if self._layout is None
              else sharding.sum_replicated(gradient, out_specs))

    table, learned = on_devices(
        lambda shards, first, *xs: _unless_empty(
            functools.partial(pull_back, shards, first), first, *xs),
        self._layout, (specs, _WHOLE, _CHUNKS, _WHOLE, _CHUNKS), out_specs)(
            parts.split(params), first, chunks, choices, cotangents)
    gradient = parts.merge(table, learned) if parts.trains_table else learned
    no_gradient = dict.fromkeys(base_params.split(params)[1])
    return (base_params.join(gradient, no_gradient),
            np.zeros(tokens.shape, jax.dtypes.float0))

  def _take_apart(self, params):
    """Returns the encoder's parts and the specs of its (table, rest)."""
    parts = parts_of(self._encode, params)
    if self._layout is None:
      return parts, (None, None)
    specs = parts.split(self._layout.specs(params))
    dimension = (
        None if specs[0] is None else sharding.dimension_of(specs[0]))
    if dimension == 0:
      raise ValueError(
          f'The token table of {self._encode} is sharded by rows; name its '
          f'columns by a rule such as {sharding.RULES[0]}.')
    if dimension is not None:
      parts = _Columns(self._encode, params)
    return parts, specs

  def _gather(self, shards, specs):
    if self._layout is None:
      return shards
    return self._layout.gather(shards, specs)

  def _cut(self, tokens):
    """Returns tokens sorted by length, in chunks.

    Returns:
      chunks: [num_chunks, chunk_size, L] int32.
      choices: [num_chunks] int32, index of each chunk's bucket.
      order: [num_chunks * chunk_size] int32, the row of `tokens` at each place;
        n for the padding at the end.
      first: [] int32, the first chunk that is not to be skipped; None for 0.
    """
    n, width = tokens.shape
    devices = 1 if self._layout is None else self._layout.mesh.size
    size = min(self._chunk_size, -(-n // devices) * devices)
    num_chunks = -(-n // size)
    lengths = jnp.sum(tokens >= 0, axis=1)
    order = jnp.argsort(lengths).astype(jnp.int32)
    # Empty texts in front keep the longest in the fullest chunks.
    order = jnp.concatenate(
        [jnp.full((num_chunks * size - n,), n, jnp.int32), order])
    chunks = tokens.at[order].get(mode='fill', fill_value=-1)
    longest = jnp.max(
        lengths.at[order].get(mode='fill', fill_value=0).reshape(
            num_chunks, size), axis=1)
    buckets = jnp.array(embedding.check_buckets(self._buckets, width))
    first = jnp.sum(longest == 0) if self._skips_empty else None
    return (chunks.reshape(num_chunks, size, width),
            jnp.searchsorted(buckets, longest), order, first)
