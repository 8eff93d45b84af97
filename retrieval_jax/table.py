"""The table of remembered target embeddings, and its pure functions.

Every function works on a row-sharded table under an ordinary jit: scatters need
no collective, gathers of rows one all-reduce. Nothing but the rows written in a
step is touched, because a row remembers the step of its last write rather than
its age.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from retrieval_jax import coarse
from retrieval_jax import host_table
from retrieval_jax import sharding
from retrieval_jax.types import check_shapes, QueueTable, TargetTable

REPLACEMENTS = ('lru', 'fifo')
"""Which row a new target takes: that written, or that filled, longest ago."""


def create(embeddings: Any, ids: Any, *, mesh: jax.sharding.Mesh,
           chunk_rows: int, dtype: DTypeLike, step: int | np.ndarray = 0,
           rows_are_ids: bool = False, replacement: str = 'lru',
           scan_dtype: str = 'float32') -> TargetTable:
  """Returns a table that holds the given targets in its first rows.

  It never holds more than N: rows that fill up chunks and shards stay empty.

  Args:
    embeddings: [N, D], numpy, memory-mapped or jax; read one shard at a time.
      Or a ShapeDtypeStruct, for zeros that are to be written to.
    ids: [N] int, distinct corpus ids of the rows; -1 makes an empty row, which
      `push` may fill.
    mesh: mesh of the run.
    chunk_rows: rows per scanned chunk; M is rounded up to whole chunks per
      shard, and the rows above N stay empty.
    dtype: float32 or bfloat16, of the remembered embeddings.
    step: step at which the embeddings were computed, of all or of each row.
    rows_are_ids: whether row i holds corpus id i or nothing.
    replacement: one of REPLACEMENTS, see `push`; 'fifo' makes a QueueTable.
    scan_dtype: one of `coarse.DTYPES`; other than 'float32' it adds coarse
      copies of the rows, which follow what is written to them.

  Raises:
    ValueError: if shapes disagree, an id comes twice, `rows_are_ids` is
      claimed wrongly, or there is no such replacement.
  """
  ids = np.asarray(ids, np.int32)
  check_shapes({'embeddings': (embeddings, 'N D'), 'ids': (ids, 'N')})
  num_rows, dim = embeddings.shape
  live = ids[ids >= 0]
  if len(np.unique(live)) != len(live):
    raise ValueError(
        'An id may be in one row only, but ids has duplicates. Remove the '
        'repeated targets before making the table.')
  if rows_are_ids and not np.array_equal(live, np.flatnonzero(ids >= 0)):
    raise ValueError(
        'rows_are_ids=True needs ids equal to 0..N-1 in order, or -1; pass '
        'rows_are_ids=False for any other assignment.')
  if replacement not in REPLACEMENTS:
    raise ValueError(
        f'replacement={replacement!r} is not one of {list(REPLACEMENTS)}.')
  coarse.check(scan_dtype, 'scan_dtype')
  size = sharding.capacity(max(num_rows, 1), mesh, chunk_rows)
  where = sharding.rows(mesh)

  def padded(array, fill, dtype):
    def part(index):
      start, stop, _ = index[0].indices(size)
      values = np.asarray(array[start:min(stop, num_rows)]).astype(dtype)
      out = np.full((stop - start,) + values.shape[1:], fill, dtype)
      out[:len(values)] = values
      return out
    return jax.make_array_from_callback(
        (size,) + array.shape[1:], where, part)

  integers = np.dtype(np.int32)
  if isinstance(embeddings, jax.ShapeDtypeStruct):
    rows = jax.jit(lambda: jnp.zeros((size, dim), dtype), out_shardings=where)()
  else:
    rows = padded(embeddings, 0, jnp.dtype(dtype))
  fields = dict(
      embeddings=rows,
      ids=padded(ids, -1, integers),
      written=padded(np.broadcast_to(step, num_rows), 0 if np.ndim(step)
                     else step, integers),
      rows_are_ids=rows_are_ids, capacity=num_rows,
      # Others may lose no target either, but fill up first.
      full=rows_are_ids and len(live) == num_rows)
  if replacement == 'lru':
    return with_coarse(TargetTable(**fields), scan_dtype)
  # One step back: these targets were there before what `step` pushes.
  inserted = padded(
      np.broadcast_to(step, num_rows) - 1, 0 if np.ndim(step) else step - 1,
      integers)
  return with_coarse(QueueTable(**fields, inserted=inserted), scan_dtype)


@functools.partial(jax.jit, static_argnames='scan_dtype')
def _coarse(rows, scan_dtype):
  # Row by row, so that the results are sharded as the rows are.
  return coarse.of(rows, scan_dtype)


def with_embeddings(table: TargetTable, embeddings: jax.Array) -> TargetTable:
  """Returns the table with all rows replaced, and their coarse copies.

  Args:
    table: any table.
    embeddings: [M@data, D] of its dtype.
  """
  return with_coarse(dataclasses.replace(table, embeddings=embeddings),
                     scan_dtype_of(table))


def with_coarse(table: TargetTable, scan_dtype: str) -> TargetTable:
  """Returns the table with copies of its rows in one of `coarse.DTYPES`."""
  return dataclasses.replace(
      table, coarse=_coarse(table.embeddings, scan_dtype))


def scan_dtype_of(table: TargetTable) -> str:
  """Returns which of `coarse.DTYPES` scans of the table read."""
  if table.coarse is None:
    return 'float32'
  return 'bfloat16' if table.coarse.scale is None else 'int8'


def from_embeddings(embeddings: Any, mesh: jax.sharding.Mesh, chunk_rows: int,
                    dtype: DTypeLike, step: int = 0,
                    scan_dtype: str = 'float32') -> TargetTable:
  """Returns the table of a whole corpus: row i holds corpus id i.

  Args:
    embeddings: [N, D], see `create`.
    mesh: mesh of the run.
    chunk_rows: rows per scanned chunk.
    dtype: float32 or bfloat16.
    step: step at which the embeddings were computed.
    scan_dtype: see `create`.
  """
  return create(
      embeddings, np.arange(embeddings.shape[0]), mesh=mesh,
      chunk_rows=chunk_rows, dtype=dtype, step=step, rows_are_ids=True,
      scan_dtype=scan_dtype)


def of_host(table: host_table.HostTable, mesh: jax.sharding.Mesh,
            chunk_rows: int) -> TargetTable:
  """Returns the rows of a table of the host as one on the devices."""
  return create(
      table.embeddings, table.ids, mesh=mesh, chunk_rows=chunk_rows,
      dtype=table.embeddings.dtype, step=table.written, rows_are_ids=True)


def num_rows(table: TargetTable | host_table.HostTable) -> int:
  """Returns M, padding included."""
  if isinstance(table, host_table.HostTable):
    return table.num_slots
  return table.ids.shape[0]


def empty(capacity: int, dim: int, mesh: jax.sharding.Mesh, chunk_rows: int,
          dtype: DTypeLike, replacement: str = 'lru',
          scan_dtype: str = 'float32') -> TargetTable:
  """Returns a table of `capacity` empty rows, to be filled by `push`."""
  blank = jax.ShapeDtypeStruct((capacity, dim), np.float32)
  return create(blank, np.full(capacity, -1), mesh=mesh,
                chunk_rows=chunk_rows, dtype=dtype, replacement=replacement,
                scan_dtype=scan_dtype)


def write(table: TargetTable, rows: jax.Array, embeddings: jax.Array,
          step: jax.Array | int) -> TargetTable:
  """Overwrites the embeddings of some rows and stamps them with `step`.

  Args:
    table: any table; ids stay as they are.
    rows: [P] int32, -1 entries are ignored. Where a row comes several times the
      last of them wins, on every backend.
    embeddings: [P, D], cast to the table's dtype.
    step: [] int32.
  """
  check_shapes({'table': (table.embeddings, 'M D'), 'rows': (rows, 'P'),
                'embeddings': (embeddings, 'P D')})
  target = _once(rows, table.ids.shape[0])
  return _written(table, target, embeddings, jnp.full(rows.shape, step))


def push(table: TargetTable, ids: jax.Array, embeddings: jax.Array,
         step: jax.Array | int) -> TargetTable:
  """Remembers targets by id: known ids in their row, new ones in the oldest.

  New ids take empty rows first, then the oldest: under replacement 'lru' the
  rows written longest ago, so that what `write` refreshes stays; under 'fifo'
  those filled longest ago, whatever was written since. Ties go to the lowest
  row. A row that this call overwrites for its own id is not given away, and
  under 'fifo' keeps its place in the queue. An id that comes several times
  counts once (the last embedding wins), and -1 is ignored. In a table with
  `rows_are_ids` every id has its row, and ids that are not in the corpus are
  ignored.

  Args:
    table: any table.
    ids: [P] int32 corpus ids, P <= the table's `num_slots`.
    embeddings: [P, D].
    step: [] int32.

  Raises:
    ValueError: if P is larger, for then some pushed target would have no row.

  Source: the update contract of Lindgren et al., NeurIPS 2021 (public code):
  oldest first by last update or by insertion (its `use_lru`), ties by lowest
  index, items already present are not repeated. Deviation: its filter drops
  them; here their embedding, fresh anyway, replaces the remembered one.
  """
  check_shapes({'table': (table.embeddings, 'M D'), 'ids': (ids, 'P'),
                'embeddings': (embeddings, 'P D')})
  known = rows_of(table, ids)  # [P]
  if table.rows_are_ids:
    return write(table, known, embeddings, step)
  num_rows, num_pushed = table.ids.shape[0], ids.shape[0]
  if num_pushed > table.num_slots:
    raise ValueError(
        f'push got {num_pushed} targets for a table of {table.num_slots} rows. '
        'Make the memory at least as large as what is pushed in one step.')
  # Differences rather than steps, so that float32, the only dtype for which
  # top_k is fast on a CPU, holds them exactly.
  since = table.inserted if isinstance(table, QueueTable) else table.written
  age = jnp.where(table.ids < 0, jnp.inf, (step - since).astype(jnp.float32))
  age = age.at[_out_of_range(known, num_rows)].set(-jnp.inf, mode='drop')
  age = age.at[table.num_slots:].set(-jnp.inf)  # padding is never filled
  _, oldest = jax.lax.top_k(age, num_pushed)
  unique = _once(ids, jnp.iinfo(jnp.int32).max - num_pushed)
  new = (unique == ids) & (known < 0)
  rank = jnp.maximum(jnp.cumsum(new) - 1, 0)
  rows = jnp.where(new, oldest[rank].astype(jnp.int32), known)
  target = _once(rows, num_rows)
  stamp = jnp.full(ids.shape, step)
  if isinstance(table, QueueTable):
    table = dataclasses.replace(table, inserted=_scatter(
        table.inserted, _once(jnp.where(new, rows, -1), num_rows), stamp))
  return dataclasses.replace(
      _written(table, target, embeddings, stamp),
      ids=_scatter(table.ids, target, ids))


def rows_of(table: TargetTable, ids: jax.Array) -> jax.Array:
  """Returns the rows [...] int32 that hold corpus ids [...], -1 where none."""
  if table.rows_are_ids and table.full:
    inside = (ids >= 0) & (ids < table.num_slots)
    return jnp.where(inside, ids, -1).astype(jnp.int32)
  num_rows = table.ids.shape[0]
  if table.rows_are_ids:
    inside = (ids >= 0) & (ids < num_rows)
    found = inside & (table.ids[jnp.where(inside, ids, 0)] == ids)
    return jnp.where(found, ids, -1).astype(jnp.int32)
  flat = ids.reshape(1, -1)
  rows = jnp.arange(num_rows, dtype=jnp.int32)[:, None]
  # Fuses into one pass over the rows: [M, P] is never stored.
  match = (table.ids[:, None] == flat) & (flat >= 0)
  return jnp.max(jnp.where(match, rows, -1), axis=0).reshape(ids.shape)


def take(table: TargetTable, rows: jax.Array) -> TargetTable:
  """Returns the slice of the table at rows [...] int32.

  Where a row is -1 the slice has id -1 and the (finite) embedding of row 0.
  """
  if isinstance(table, host_table.HostTable):
    return table.take(rows)
  part = jax.tree.map(lambda array: array[jnp.maximum(rows, 0)], table)
  return dataclasses.replace(part, ids=jnp.where(rows < 0, -1, part.ids))


def after(rows: jax.Array, slices: TargetTable) -> jax.Array:
  """Returns rows, or ids, unchanged, but not before slices have been read.

  To be written to in place, a table must have been read by then. Where reading
  and writing do not depend on each other, XLA (0.10 on a CPU) copies the table,
  twice, rather than choose an order; an optimization barrier is gone by then.

  Args:
    rows: [...] int32, to be written to.
    slices: of the same table, as `take` returns them.
  """
  total = sum(jnp.sum(leaf, dtype=jnp.float32)
              for leaf in jax.tree.leaves(slices))
  never = jnp.isnan(total) & (total == 0)
  return jnp.where(never, -1, rows)


def only(table: TargetTable, start: jax.Array | int, stop: jax.Array | int
         ) -> TargetTable:
  """Returns the table with all rows empty but those of some targets.

  Rows stay where they are; whoever goes over live rows sees these alone.

  Args:
    table: any table.
    start: [] int32, the first corpus id to keep.
    stop: [] int32, the id behind the last.
  """
  kept = (table.ids >= start) & (table.ids < stop)
  return dataclasses.replace(
      table, ids=jnp.where(kept, table.ids, -1), full=False)


def emptied_from(table: TargetTable, first_row: int) -> TargetTable:
  """Returns the table with all rows from `first_row` on empty.

  Arrays keep their shardings.
  """
  def empty(table):
    kept = jnp.arange(table.ids.shape[0]) < first_row
    blank = jax.tree.map(
        lambda array: jnp.where(
            jnp.expand_dims(kept, range(1, array.ndim)), array, 0), table)
    return dataclasses.replace(
        blank, ids=jnp.where(kept, table.ids, -1))

  where = jax.tree.map(lambda array: array.sharding, table)
  return jax.jit(empty, out_shardings=where)(table)


def ids_of(table: TargetTable | host_table.Outline, rows: jax.Array
           ) -> jax.Array:
  """Returns the corpus ids [...] int32 of rows [...], -1 where none."""
  if table.rows_are_ids and table.full:
    return jnp.maximum(rows, -1)
  return jnp.where(rows < 0, -1, table.ids[jnp.maximum(rows, 0)])


def age(table: TargetTable, step: jax.Array | int) -> jax.Array:
  """Returns [...] int32, steps since each row's last write, -1 where empty."""
  return jnp.where(table.ids < 0, -1, step - table.written)


def num_live(table: TargetTable) -> jax.Array:
  """Returns the number of rows that hold a target, [] int32."""
  if table.full:
    return jnp.int32(table.num_slots)  # the whole corpus, without looking
  return jnp.sum(table.ids >= 0)


def live_rows(table: TargetTable, ranks: jax.Array) -> jax.Array:
  """Returns the rows [...] int32 of the live rows with these ranks.

  Args:
    table: any table; its live rows may lie anywhere.
    ranks: [...] int32; 0 is the lowest live row. Of one that is not below
      `num_live` the result means nothing.
  """
  if table.full:  # live rows come first
    return ranks
  count = jnp.cumsum(table.ids >= 0)
  return jnp.searchsorted(count, ranks, side='right').astype(jnp.int32)


def systematic_rows(key: jax.Array, table: TargetTable, num_rows: int
                    ) -> jax.Array:
  """Returns distinct live rows, each equally likely, [P] int32, P = num_rows.

  The live rows of rank a, a + h, a + 2h, ... modulo their number n, with
  h = floor(n / P) and a uniform: each has probability P / n, independently from
  step to step, without sorting or permuting them (ours). Where n < P all n come
  out, and -1 for the rest.

  Args:
    key: typed PRNG key.
    table: any table. Padding does not enter, so neither does the mesh.
    num_rows: P.
  """
  if not num_rows:
    return jnp.zeros([0], jnp.int32)
  live = num_live(table)
  start = jax.random.randint(key, (), 0, jnp.maximum(live, 1))
  place = jnp.arange(num_rows, dtype=jnp.int32)
  ranks = start + place * jnp.maximum(live // num_rows, 1)
  rows = live_rows(table, ranks % jnp.maximum(live, 1))
  return jnp.where(place < live, rows, -1).astype(jnp.int32)


def drift(stale: jax.Array, fresh: jax.Array) -> jax.Array:
  """Returns the relative squared drift |g' - g|^2 / |g|^2, [...] float32.

  Args:
    stale: [..., D], remembered (or corrected) embeddings g'.
    fresh: [..., D], embeddings g of the same targets now.

  Source: the staleness measure of Lindgren et al., NeurIPS 2021 (public code).
  """
  stale, fresh = stale.astype(jnp.float32), fresh.astype(jnp.float32)
  norm = jnp.sum(jnp.square(fresh), axis=-1)
  return jnp.sum(jnp.square(stale - fresh), axis=-1) / jnp.maximum(norm, 1e-30)


def _written(table: TargetTable, rows: jax.Array, embeddings: jax.Array,
             stamp: jax.Array) -> TargetTable:
  """Writes embeddings and stamps at distinct rows, past the end to nowhere."""
  embeddings = embeddings.astype(table.embeddings.dtype)
  return dataclasses.replace(
      table, embeddings=_scatter(table.embeddings, rows, embeddings),
      written=_scatter(table.written, rows, stamp),
      coarse=jax.tree.map(
          lambda array, values: _scatter(array, rows, values), table.coarse,
          coarse.of(embeddings, scan_dtype_of(table))))


def _scatter(array: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
  """Writes values at distinct rows; rows past the end are dropped."""
  return array.at[rows].set(
      values.astype(array.dtype), mode='drop', unique_indices=True)


def _out_of_range(rows: jax.Array, num_rows: int) -> jax.Array:
  """Moves -1, which would wrap around, past the end."""
  return jnp.where(rows < 0, num_rows, rows)


def _once(values: jax.Array, limit: int) -> jax.Array:
  """Keeps the last of equal values [P]; all others and -1 become >= limit.

  Scatters with repeated indices have no defined order on accelerators; after
  this every index is distinct, those to be dropped included.
  """
  order = jnp.argsort(values, stable=True)
  ordered = values[order]
  last = jnp.append(ordered[1:] != ordered[:-1], True) & (ordered >= 0)
  keep = jnp.zeros(values.shape, bool).at[order].set(last)
  spare = limit + jnp.arange(values.shape[0], dtype=values.dtype)
  return jnp.where(keep, values, spare)
