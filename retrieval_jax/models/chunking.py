"""Encodes a batch in chunks of bounded memory and little padding.

The embeddings of a step's texts are small, what the encoder keeps for their
gradients is not. `chunked` keeps nothing but parameters and tokens: the
backward pass encodes each chunk again and adds up the parameters' gradients
(gradient caching; Gao et al., RepL4NLP 2021). Since it walks over chunks
anyway, texts are sorted by length first and each chunk is padded only to the
smallest bucket that holds its longest text.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.models import embedding
from retrieval_jax import types


def chunked(encode: types.Encode, *, chunk_size: int | None,
            buckets: Sequence[int] = embedding.BUCKETS, pad_id: int = 0,
            mesh=None) -> types.Encode:
  """Returns an `encode` with the same values and gradients, in chunks.

  Memory of a training step is that of `chunk_size` texts, plus the gradient
  of the parameters, whatever the number of texts; the price is one more
  forward pass. Padding must be at the end of each text, and `encode` must not
  depend on it.

  Args:
    encode: (params, tokens [n, L]) -> [n, D] float32. One that can be taken
      apart (`split`, `merge`, `body`, see `dual_encoder.Tower`) costs no
      pass over the token table per chunk.
    chunk_size: texts encoded at a time, over all devices; None or 0 for all,
      without recomputation: `encode` itself.
    buckets: ascending lengths that chunks are padded to; each compiles the
      encoder once.
    pad_id: padding token.
    mesh: mesh with axis 'data' over which the texts of each chunk are spread;
      None leaves it to the compiler. It must divide `chunk_size`.

  Raises:
    ValueError: for a chunk_size that the mesh does not divide.
  """
  if not chunk_size:
    return encode
  if chunk_size < 0 or (mesh is not None and chunk_size % mesh.size):
    raise ValueError(
        f'chunk_size={chunk_size} must be positive and a multiple of the '
        f'{1 if mesh is None else mesh.size} devices of the mesh.')
  embedding.check_buckets(buckets, 1)
  return _Chunked(encode, chunk_size, tuple(buckets), pad_id, mesh)


class _Whole:
  """Gives any `encode` the parts of a Tower, with an empty token table."""

  def __init__(self, encode):
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

  def __init__(self, encode):
    super().__init__(encode)
    self.split, self.merge, self.body = (
        encode.split, encode.merge, encode.body)

  def look_up(self, table, tokens):
    return table.at[tokens].get(mode='clip')

  def add_rows(self, table, tokens, values):
    return table.at[tokens].add(values.astype(table.dtype), mode='drop')


class _Chunked:
  """See `chunked`; equal and hashable by what it was built from."""

  def __init__(self, encode, chunk_size, buckets, pad_id, mesh):
    self._key = (encode, chunk_size, buckets, pad_id, mesh)
    parts = (_Parts if all(hasattr(encode, name) for name in
                           ('split', 'merge', 'body')) else _Whole)
    self._parts = parts(encode)
    self._encode, self._chunk_size, self._buckets, self._pad_id, self._mesh = (
        self._key)
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
    table, rest = self._parts.split(params)
    chunks, choices, order = self._cut(tokens)
    buckets = embedding.check_buckets(self._buckets, tokens.shape[1])

    def encode_at(length, chunk):
      chunk = chunk[:, :length]
      return self._parts.body(rest, self._parts.look_up(table, chunk), chunk)

    def step(carry, xs):
      chunk, choice = xs
      return carry, jax.lax.switch(
          choice, [functools.partial(encode_at, b) for b in buckets], chunk)

    _, embeddings = jax.lax.scan(step, None, (chunks, choices))
    flat = embeddings.reshape(-1, embeddings.shape[-1])
    # Every text stands exactly once in `order`, so this scatter is a
    # permutation; the texts that filled the last chunk fall off its end.
    n = tokens.shape[0]
    return jnp.zeros((n,) + flat.shape[1:], flat.dtype).at[order].set(
        flat, mode='drop', unique_indices=True)

  def _forward_and_save(self, params, tokens):
    return self._forward(params, tokens), (params, tokens)

  def _backward(self, saved, cotangent):
    params, tokens = saved
    table, rest = self._parts.split(params)
    chunks, choices, order = self._cut(tokens)
    width = tokens.shape[1]
    buckets = embedding.check_buckets(self._buckets, width)
    cotangents = cotangent.at[order].get(mode='fill', fill_value=0)
    cotangents = self._spread(cotangents.reshape(
        chunks.shape[:2] + cotangent.shape[1:]))

    def gradient_at(length, chunk, cotangent):
      chunk = chunk[:, :length]
      vectors = self._parts.look_up(table, chunk)
      _, pull = jax.vjp(
          lambda rest, vectors: self._parts.body(rest, vectors, chunk),
          rest, vectors)
      rest_grad, vectors_grad = pull(cotangent)
      return rest_grad, jnp.pad(
          vectors_grad, ((0, 0), (0, width - length), (0, 0)))

    def step(carry, xs):
      table_grad, rest_grad = carry
      chunk, choice, cotangent = xs
      more, vectors_grad = jax.lax.switch(
          choice, [functools.partial(gradient_at, b) for b in buckets],
          chunk, cotangent)
      # Only the rows of the chunk's tokens are touched: the scan updates the
      # table's gradient in place.
      table_grad = self._parts.add_rows(table_grad, chunk, vectors_grad)
      return (table_grad, jax.tree.map(jnp.add, rest_grad, more)), None

    zeros = jax.tree.map(jnp.zeros_like, (table, rest))
    (table_grad, rest_grad), _ = jax.lax.scan(
        step, zeros, (chunks, choices, cotangents))
    no_gradient = np.zeros(tokens.shape, jax.dtypes.float0)
    return self._parts.merge(table_grad, rest_grad), no_gradient

  def _cut(self, tokens):
    """Returns tokens sorted by length, in chunks.

    Returns:
      chunks: [num_chunks, chunk_size, L] int32.
      choices: [num_chunks] int32, index of each chunk's bucket.
      order: [num_chunks * chunk_size] int32, the row of `tokens` that stands
        there; n for the padding at the end.
    """
    n, width = tokens.shape
    size = min(self._chunk_size, n)
    num_chunks = -(-n // size)
    is_token = tokens != self._pad_id
    # The place after the last token: padding inside a text is none.
    lengths = jnp.max(
        jnp.where(is_token, jnp.arange(1, width + 1)[None], 0), axis=1)
    order = jnp.argsort(lengths).astype(jnp.int32)
    # Empty texts in front keep the longest in the fullest chunks.
    order = jnp.concatenate(
        [jnp.full((num_chunks * size - n,), n, jnp.int32), order])
    chunks = tokens.at[order].get(mode='fill', fill_value=self._pad_id)
    chunks = self._spread(chunks.reshape(num_chunks, size, width))
    longest = jnp.max(
        lengths.at[order].get(mode='fill', fill_value=0).reshape(
            num_chunks, size), axis=1)
    buckets = jnp.array(embedding.check_buckets(self._buckets, width))
    return chunks, jnp.searchsorted(buckets, longest), order

  def _spread(self, chunks):
    """Returns chunks with the texts of each one spread over the devices."""
    if self._mesh is None:
      return chunks
    return jax.lax.with_sharding_constraint(
        chunks, jax.sharding.NamedSharding(
            self._mesh, jax.sharding.PartitionSpec(None, 'data')))
