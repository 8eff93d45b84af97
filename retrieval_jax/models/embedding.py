"""Embeds many texts: sorted by length, in few static shapes, without waiting.

Padding every text of a corpus to one length wastes most of the work, since
most texts are far shorter than the longest. Sorted by length and cut into
batches of about `batch_tokens` tokens, nearly nothing is wasted, at the price
of one compiled program per bucket. Programs are kept per `encode`, so a
second call compiles nothing.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import sharding
from retrieval_jax import types

BUCKETS = (8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

# Batches whose results are not fetched yet: one computes, one waits.
_IN_FLIGHT = 2


class Tokens(Protocol):
  """Tokenised texts; arrays in memory or memory-mapped.

  Attributes:
    tokens: [n, L] integers.
    lengths: [n] integers, of each text; what follows means nothing.
  """
  @property
  def tokens(self) -> Any: ...
  @property
  def lengths(self) -> Any: ...


def embed(encode: types.Encode, params: types.Params, tokens: Tokens, *,
          rows: Sequence[int] | np.ndarray | None = None, mesh=None,
          layout: sharding.Layout | None = None, batch_tokens: int = 16384,
          buckets: Sequence[int] = BUCKETS, dtype=np.float32, out: Any = None,
          room: Callable[[tuple[int, int], Any], np.ndarray] = np.empty,
          progress: Callable[[int], Any] | None = None) -> Any:
  """Returns embeddings [n, D] of all texts, or of `rows`, on the host.

  Args:
    encode: (params, tokens [n, L], -1 for padding) -> [n, D] float32;
      hashable, and the same object (or an equal one) in every call, since
      programs are kept by it.
    params: of `encode`, arrays on device or host.
    tokens: the texts; anything with `tokens` and `lengths`.
    rows: [n] rows of `tokens` to embed, in the order of the result, repeats
      allowed; None for all.
    mesh: mesh with axis 'data' whose devices share each batch; None for the
      default device.
    layout: where `params` are meanwhile, for an `encode` that asks for it; None
      for everywhere.
    batch_tokens: tokens per batch, padding included; a multiple of the number
      of devices is rounded to.
    buckets: ascending lengths that texts are padded to; those beyond the width
      of `tokens` count as that width.
    dtype: of the result, e.g. np.float16 to halve it.
    out: takes the embeddings [m, D] of texts i [m] by `out[i] = embeddings`,
      such as an array [N, D], maybe mapped, and is returned in place of a
      result of its own.
    room: (shape, dtype) -> array, where a result of its own goes.
    progress: called with the number of texts done since the last call.

  Raises:
    ValueError: for buckets that do not ascend or a batch_tokens below one
      text per device.
  """
  if rows is None:
    rows = np.arange(tokens.tokens.shape[0])
  rows = np.asarray(rows)
  if not rows.size:
    dim = jax.eval_shape(encode, params, jax.ShapeDtypeStruct(
        (1, tokens.tokens.shape[1]), jnp.int32)).shape[1]
    return np.zeros((0, dim), dtype)
  result = out
  for places, embeddings in _batches(
      encode, params, tokens, rows, mesh, layout, batch_tokens, buckets):
    found = sharding.fetch(embeddings)[:len(places)]
    if result is None:
      result = room((len(rows), found.shape[1]), dtype)
    result[places if out is None else rows[places]] = found
    if progress is not None:
      progress(len(places))
  assert result is not None  # there is at least one text
  return result


def embed_onto(array: jax.Array, encode: types.Encode, params: types.Params,
               tokens: Tokens, *, texts: np.ndarray, rows: np.ndarray, mesh,
               layout: sharding.Layout | None = None,
               batch_tokens: int = 16384, buckets: Sequence[int] = BUCKETS,
               progress: Callable[[int], Any] | None = None) -> jax.Array:
  """Returns the array with embeddings of texts in some of its rows.

  They go from device to device; the host holds no more than batches of tokens.

  Args:
    array: [M@data, D], donated.
    encode: as of `embed`.
    params: likewise.
    tokens: likewise.
    texts: [n] int, rows of `tokens` to embed, each once.
    rows: [n] int, the rows of `array` that they go to, each once.
    mesh: as of `embed`.
    layout: likewise.
    batch_tokens: likewise.
    buckets: likewise.
    progress: likewise.
  """
  size = array.shape[0]
  for places, embeddings in _batches(
      encode, params, tokens, np.asarray(texts), mesh, layout, batch_tokens,
      buckets):
    # What fills up the batch goes past the end, to be dropped there.
    at = size + np.arange(embeddings.shape[0], dtype=np.int32)
    at[:len(places)] = rows[places]
    array = _write(array, at, embeddings)
    if progress is not None:
      progress(len(places))
  return array


@functools.partial(jax.jit, donate_argnums=0)
def _write(array, rows, embeddings):
  return array.at[rows].set(
      embeddings.astype(array.dtype), mode='drop', unique_indices=True)


def _batches(encode, params, tokens, rows, mesh, layout, batch_tokens, buckets
             ) -> Iterator[tuple[np.ndarray, jax.Array]]:
  """Yields (places [m] among `rows`, embeddings [b >= m, D]) of all of them.

  Those of the first m are theirs; some batches ahead are under way.
  """
  width = tokens.tokens.shape[1]
  buckets = check_buckets(buckets, width)
  num_devices = 1 if mesh is None else mesh.size
  where, everywhere = _shardings(mesh)
  put = jax.device_put if mesh is None else sharding.put
  params = put(
      params, everywhere if layout is None else layout.shardings(params))
  run = _program(encode)

  lengths = np.asarray(tokens.lengths)[rows]
  order = np.argsort(lengths, kind='stable')
  fits = np.searchsorted(buckets, lengths[order])
  waiting: list[tuple[np.ndarray, jax.Array]] = []
  for i, length in enumerate(buckets):
    places_of_bucket = order[fits == i]
    size = _batch_size(
        batch_tokens, length, num_devices, len(places_of_bucket))
    for start in range(0, len(places_of_bucket), size):
      places = places_of_bucket[start:start + size]
      batch = np.full((size, length), -1, np.int32)
      # Ascending rows keep reads of a memory-mapped array local.
      places = places[np.argsort(rows[places], kind='stable')]
      inside = np.arange(length) < lengths[places][:, None]
      np.copyto(batch[:len(places)], tokens.tokens[rows[places], :length],
                where=inside)
      waiting.append((places, run(params, put(batch, where))))
      if len(waiting) > _IN_FLIGHT:
        yield waiting.pop(0)
  yield from waiting


def check_buckets(buckets: Sequence[int], width: int) -> tuple[int, ...]:
  """Returns the buckets below `width`, and `width` as the last one."""
  buckets = tuple(int(b) for b in buckets)
  if any(a >= b for a, b in zip((0,) + buckets, buckets)):
    raise ValueError(f'buckets={buckets} must be positive and ascending.')
  return tuple(b for b in buckets if b < width) + (width,)


def _batch_size(batch_tokens, length, num_devices, num_texts):
  """Returns the texts per batch of a bucket, a multiple of the devices.

  Fewer texts than one batch of `batch_tokens` are filled up to a power of two
  per device: one program all the same, and less padding.
  """
  per_device = batch_tokens // (length * num_devices)
  if per_device < 1:
    raise ValueError(
        f'batch_tokens={batch_tokens} must be at least one text of {length} '
        f'tokens on each of {num_devices} devices: '
        f'{length * num_devices}.')
  wanted = -(-num_texts // num_devices)
  return num_devices * min(per_device, 1 << max(wanted - 1, 0).bit_length())


def _shardings(mesh):
  if mesh is None:
    return None, None
  spec = jax.sharding.PartitionSpec
  return (jax.sharding.NamedSharding(mesh, spec('data')),
          jax.sharding.NamedSharding(mesh, spec()))


@functools.lru_cache(maxsize=16)
def _program(encode):
  return jax.jit(encode)
