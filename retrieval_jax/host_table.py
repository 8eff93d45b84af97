"""The table of a whole corpus whose embeddings lie in the host's memory.

What lies there is never on a device as a whole. Functions of `table` that are
asked for few rows take it as they take a table on the devices, outside of a
jit: rows are gathered by the host and sent. Inside a jit an `Outline` stands
for it, which knows which rows are live and nothing else.
"""

from concurrent import futures
import dataclasses
import functools
import os
from typing import Any

import jax
from jax import numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from retrieval_jax import files
from retrieval_jax import types

_THREADS = min(os.cpu_count() or 1, 16)
_PER_THREAD = 2**12  # fewer rows are not worth a thread of their own


@types.register
@dataclasses.dataclass(frozen=True)
class HostTable:
  """Row i holds target i, or nothing. Arrays are numpy and change in place.

  Attributes:
    embeddings: [N, D] float32, float16 or bfloat16, maybe mapped.
    live: [N] bool, False where the row is empty, which does not change.
    written: [N] int32, step of the last write.
    outline: what stands for it in a jit, on the devices.
  """
  embeddings: np.ndarray
  live: np.ndarray
  written: np.ndarray
  outline: 'Outline'
  rows_are_ids = True

  @property
  def num_slots(self) -> int:
    """N."""
    return len(self.live)

  @property
  def full(self) -> bool:
    """Whether all rows are live."""
    return self.outline.full

  @property
  def ids(self) -> np.ndarray:
    """[N] int32, as those of a table on the devices."""
    return np.where(self.live, np.arange(len(self.live), dtype=np.int32), -1)

  def take(self, rows: Any, place: Any = None) -> types.TargetTable:
    """Returns the slice at rows [...], see `table.take`, on the devices.

    Args:
      rows: [...] int32, numpy or jax.
      place: sharding of its arrays; None for the default device.
    """
    rows = np.asarray(rows)
    at = np.maximum(rows, 0)
    ids = np.where((rows >= 0) & self.live[at], rows, -1).astype(np.int32)
    send = functools.partial(jax.device_put, device=place)
    return types.TargetTable(
        embeddings=send(gathered(self.embeddings, at)), ids=send(ids),
        written=send(self.written[at]), rows_are_ids=False)

  def rows_of(self, ids: Any) -> np.ndarray:
    """Returns the rows [...] of corpus ids [...], -1 where none."""
    ids = np.asarray(ids, np.int32)
    inside = (ids >= 0) & (ids < len(self.live))
    return np.where(inside & self.live[np.where(inside, ids, 0)], ids, -1)

  def write(self, rows: Any, embeddings: Any, step: Any) -> None:
    """Overwrites rows [P] with embeddings [P, D]; the last of equals wins."""
    rows = np.asarray(rows)
    last = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]
    last = last[rows[last] >= 0]
    self.embeddings[rows[last]] = np.asarray(embeddings)[last].astype(
        self.embeddings.dtype)
    self.written[rows[last]] = np.asarray(step)


@types.register
@dataclasses.dataclass(frozen=True)
class Outline:
  """What a compiled part of a step knows of a `HostTable`.

  Attributes:
    live: [N] bool, None where all rows are live.
    num_slots: static; N.
  """
  live: jax.Array | None
  num_slots: int = dataclasses.field(metadata={'static': True})
  rows_are_ids = True

  @property
  def full(self) -> bool:
    """Whether all rows are live."""
    return self.live is None

  @property
  def ids(self) -> jax.Array:
    """[N] int32, as those of a table on the devices."""
    rows = jnp.arange(self.num_slots, dtype=jnp.int32)
    return rows if self.live is None else jnp.where(self.live, rows, -1)


def create(num_rows: int, dim: int, *, live: np.ndarray, dtype: DTypeLike,
           step: int = 0, folder: str = '', place: Any = None) -> HostTable:
  """Returns a table of zeros.

  Args:
    num_rows: N.
    dim: D.
    live: [N] bool, which rows hold a target.
    dtype: of the embeddings.
    step: step at which they were computed.
    folder: where the file is that they are mapped from; it has no name, and is
      gone when the process ends, however it ends. '' keeps them in memory.
    place: sharding of what the devices know of it; None for the default device.

  Raises:
    OSError: naming the folder, its size and the free space, where the disk is
      full.
  """
  shape, dtype = (num_rows, dim), np.dtype(jnp.dtype(dtype))
  live = np.asarray(live, bool)
  return HostTable(
      embeddings=files.scratch_array(os.path.expanduser(folder), dtype, shape)
      if folder else np.zeros(shape, dtype),
      live=live, written=np.full(num_rows, step, np.int32),
      outline=Outline(None if live.all() else jax.device_put(live, place),
                      num_rows))


def gathered(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Returns array[rows] [..., D], by several threads where it is much.

  Args:
    array: [N, D].
    rows: [...] int, none of them negative.
  """
  flat = rows.reshape(-1)
  # numpy gathers numbers of its own without the interpreter's lock.
  plain = np.asarray(array).view(f'u{array.dtype.itemsize}')
  out = np.empty((len(flat), array.shape[1]), plain.dtype)
  parts = max(1, min(_THREADS, len(flat) // _PER_THREAD))
  cuts = [len(flat) * i // parts for i in range(parts + 1)]

  def copy(start, stop):
    np.take(plain, flat[start:stop], axis=0, out=out[start:stop], mode='clip')

  if parts == 1:
    copy(0, len(flat))
  else:
    list(_threads().map(copy, cuts, cuts[1:]))
  return out.view(array.dtype).reshape(*rows.shape, array.shape[1])


@functools.cache
def _threads() -> futures.ThreadPoolExecutor:
  return futures.ThreadPoolExecutor(_THREADS, 'gather')
