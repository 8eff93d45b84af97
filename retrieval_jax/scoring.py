"""Exact selection over a row-sharded table: top-k, Gumbel draws, log-partition.

All of them score every live row, and none ever holds [B, M] numbers. A shard
scans its rows in chunks of C; a chunk's logits are reduced at once to one
number per *block* of g consecutive rows; then the best K blocks of each query
are scored again, and the answer is the best K rows inside them.

  top_k           A block's number is its largest logit. The K blocks with the
                  largest maxima contain the K best rows.
  gumbel_top_k    A block's number is its log-sum-exp plus one Gumbel, which is
                  distributed as the largest perturbed logit of the block.
                  Inside the K winning blocks the rows' Gumbels are drawn given
                  that maximum (Kool et al. 2019, section 4.1). So noise costs
                  M / g numbers per query, not M, and log Z comes for free.
  log_partition   The log-sum-exp pass alone.
  bucket_maxima   As top_k, but the best block of every bucket of blocks.

Two more look at rows that were chosen otherwise: `logits_of` scores listed rows
alone, `map_rows` applies any function to all of them.

Noise is a pure function of (key, query, global block, row in block). Neither
the number of devices nor `chunk_rows` enters, so they do not change a draw (up
to ties within the rounding of a matmul, which may depend on its shape).

Memory per shard: B * C for the chunk, B * M / (S * g) for the blocks, B * g * D
for scoring again. Traffic: [B, S * K] numbers, twice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from retrieval_jax import products
from retrieval_jax import sharding
from retrieval_jax.types import check_shapes, TargetTable, View

BLOCK_ROWS = 64
"""g of the Gumbel draws, and what chunk_rows must be a multiple of.

Part of what a seed means: another value gives other, equally good draws. Noise
costs M / g numbers per query and scoring again K * g rows; 64 balances the two
for a million rows.
"""

_TOP_K_BLOCK_ROWS = 16
"""g of top_k, which has no noise to save on. Results do not depend on it."""

_NEVER = -jnp.inf


def uncorrected(rows: TargetTable) -> jax.Array:
  """Returns the embeddings [..., D] of a slice as they are, float32."""
  return rows.embeddings.astype(jnp.float32)


def inner(subscripts: str, queries: jax.Array, view: View,
          rows: TargetTable) -> jax.Array:
  """Returns <query, corrected row>, unscaled, float32, of any slice.

  Args:
    subscripts: of an einsum of queries and rows, in which b are queries: such
      as 'bd,bkd->bk'.
    queries: [B, D].
    view: its corrector and, if there is one, its fold.
    rows: slice of the table.
  """
  if view.fold is None:
    return products.inner(subscripts, queries, view.correct(rows))
  moved, constants = view.fold(queries)
  axes = [i for i, letter in enumerate(subscripts.partition('->')[2])
          if letter != 'b']
  return products.inner(
      subscripts, moved, uncorrected(rows)
      ) + jnp.expand_dims(constants, axes)


def top_k(queries: jax.Array, view: View, k: int, *,
          exclude_rows: jax.Array | None = None,
          ceiling: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """Returns the k rows of largest logit, exactly; ties go to the lowest row.

  Args:
    queries: [B, D], replicated or sharded over 'data'.
    view: the table, its corrector and beta, logit = beta * <query, corrected>;
      its scan has the mesh and C, rows scored at a time, a multiple of
      `BLOCK_ROWS`.
    k: how many rows per query.
    exclude_rows: [B, E] int32 rows that must not come out, -1 for none.
    ceiling: [B] float32; rows of larger logit must not come out either.

  Returns:
    logits: [B, k] float32, in falling order, -inf where no row is left.
    rows: [B, k] int32, -1 where no row is left.

  Raises:
    ValueError: if shapes disagree or a shard does not hold whole chunks.
  """
  def select(shard, key):
    del key
    _, maxima = shard.scan(
        None, lambda carry, logits, blocks: (carry, jnp.max(logits, axis=1)))
    _, blocks = shard.best_blocks(maxima, k)
    logits, rows = shard.inside(blocks)
    return shard.best_rows(logits, logits, rows, k)[1:]

  return _on_shards(select, None, queries, view, exclude_rows, ceiling,
                    block_rows=_TOP_K_BLOCK_ROWS)


def bucket_maxima(queries: jax.Array, view: View, num_buckets: int, *,
                  exclude_rows: jax.Array | None = None
                  ) -> tuple[jax.Array, jax.Array]:
  """Returns the row of largest logit in each of k equal buckets of rows.

  Bucket i holds the rows i R .. (i + 1) R - 1, with R = N / k of the N rows
  that can hold a target, rounded up, by at most an eighth, to whole blocks; the
  last are then smaller or empty. An approximation to the k best rows that
  always holds the best one; of rows in random order it finds about
  1 - (1 - 1/k)^k, 64% for k = 64. Ties within a bucket go to the lowest row.

  Args:
    queries: [B, D], replicated or sharded over 'data'.
    view: see `top_k`.
    num_buckets: k.
    exclude_rows: [B, E] int32 rows that must not come out, -1 for none.

  Returns:
    logits: [B, k] float32, bucket by bucket, -inf where no row is left.
    rows: [B, k] int32, -1 where no row is left.

  Raises:
    ValueError: if shapes disagree or a shard does not hold whole chunks.

  Source: the public code of Lindgren et al., NeurIPS 2021 (its top_k option,
  k / S buckets on each of S replicas; here S does not enter).
  """
  block_rows, of_bucket = _bucket_shape(view.table.num_slots, num_buckets)

  def select(shard, key):
    del key
    _, maxima = shard.scan(
        None, lambda carry, logits, blocks: (carry, jnp.max(logits, axis=1)))
    blocks = shard.first_block + jnp.arange(shard.num_blocks, dtype=jnp.int32)
    best, blocks = _best_of_buckets(
        maxima.T, blocks, blocks // of_bucket, num_buckets)
    best, blocks = jax.lax.all_gather((best, blocks), sharding.AXIS)
    # Of equal ones the first, which holds the lowest rows.
    which = jnp.argmax(best, axis=0)[None]
    blocks = jnp.take_along_axis(blocks, which, axis=0)[0].T  # [B, k]
    found, rows = shard.inside(blocks)
    place = jnp.argmax(found, axis=2, keepdims=True)
    logits, rows = (jnp.take_along_axis(a, place, axis=2)[:, :, 0]
                    for a in (found, rows))
    rows = jnp.where(logits > _NEVER, rows, -1)  # of other shards too
    return jax.lax.pmax((logits, rows), sharding.AXIS)

  return _on_shards(select, None, queries, view, exclude_rows,
                    block_rows=block_rows)


def _bucket_shape(num_slots, num_buckets):
  """Returns (rows of a block, blocks of a bucket) for so many rows."""
  rows = -(-num_slots // num_buckets)
  block_rows = max(size for size in (1, 2, 4, 8, _TOP_K_BLOCK_ROWS)
                   if 8 * (-rows % size) <= rows)
  return block_rows, -(-rows // block_rows)


def _best_of_buckets(maxima, blocks, buckets, num_buckets):
  """Returns (maximum, its lowest block) [k, B]; -inf and -1 where none is.

  Args:
    maxima: [b, B] float32, of the blocks.
    blocks: [b] int32, their numbers.
    buckets: [b] int32, which bucket each is in; those of k or more are left
      out.
    num_buckets: k.
  """
  best = jax.ops.segment_max(
      maxima, buckets, num_buckets, indices_are_sorted=True)
  last = jnp.iinfo(jnp.int32).max
  at_best = maxima == best[jnp.minimum(buckets, num_buckets - 1)]
  lowest = jax.ops.segment_min(
      jnp.where(at_best, blocks[:, None], last), buckets, num_buckets,
      indices_are_sorted=True)
  return best, jnp.where(best > _NEVER, lowest, -1)


def gumbel_top_k(key: jax.Array, queries: jax.Array, view: View, k: int, *,
                 exclude_rows: jax.Array | None = None,
                 ceiling: jax.Array | None = None
                 ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws k rows without replacement from softmax(logits), and returns log Z.

  Equal in distribution to the k largest of logits + independent Gumbel noise,
  in that order; the first is one draw from the softmax.

  Args:
    key: typed PRNG key.
    queries: [B, D], replicated or sharded over 'data'.
    view: see `top_k`.
    k: how many rows per query.
    exclude_rows: [B, E] int32 rows outside the distribution, -1 for none.
    ceiling: [B] float32; rows of larger logit are outside of it too.

  Returns:
    rows: [B, k] int32 in the order drawn, -1 where no row is left.
    logits: [B, k] float32 without noise, -inf where no row is left.
    log_z: [B] float32, log-sum-exp over live rows that are not excluded
      and not above the ceiling.

  Raises:
    ValueError: if shapes disagree or a shard does not hold whole chunks.

  Source: Kool, van Hoof, Welling, ICML 2019, section 4.1 and appendix B.3
  (top-down sampling, a tree of depth two: blocks, then rows).
  """
  def select(shard, key):
    block_key, row_key = jax.random.split(key)

    def perturb(carry, logits, blocks):
      top, total = _block_sums(logits)
      noise = _exponential(block_key, blocks, logits.shape[-1])
      # top + log(total) + Gumbel, with the Gumbel's outer log merged in.
      return _add_sums(carry, top, total), top + jnp.log(total / noise)

    carry, perturbed = shard.scan(shard.no_sum(), perturb)
    log_z = shard.log_sum(carry)
    maxima, blocks = shard.best_blocks(perturbed, k)
    logits, rows = shard.inside(blocks)
    noise = _row_gumbels(row_key, blocks)
    keys = _given_maximum(logits + noise, maxima)
    _, logits, rows = shard.best_rows(keys, logits, rows, k)
    return rows, logits, log_z

  return _on_shards(select, key, queries, view, exclude_rows,
                    ceiling)


def top_k_rows_scored(num_queries: int, capacity: int, k: int
                      ) -> tuple[int, int]:
  """Returns (products <query, row>, rows corrected) that `top_k` takes.

  The scan scores every row, empty ones too, and corrects each once for all
  queries; the rows of each query's best k blocks are scored a second time.
  """
  return _rows_scored(num_queries, capacity, k, _TOP_K_BLOCK_ROWS)


def gumbel_rows_scored(num_queries: int, capacity: int, k: int
                       ) -> tuple[int, int]:
  """Returns the same for `gumbel_top_k`."""
  return _rows_scored(num_queries, capacity, k, BLOCK_ROWS)


def bucket_rows_scored(num_queries: int, capacity: int, num_buckets: int
                       ) -> tuple[int, int]:
  """Returns the same for `bucket_maxima`, if all rows can hold a target."""
  return _rows_scored(num_queries, capacity, num_buckets,
                      _bucket_shape(capacity, num_buckets)[0])


def _rows_scored(num_queries, capacity, num_blocks, block_rows):
  again = num_queries * block_rows * min(num_blocks, capacity // block_rows)
  return num_queries * capacity + again, capacity + again


def log_partition(queries: jax.Array, view: View, *,
                  exclude_rows: jax.Array | None = None
                  ) -> jax.Array:
  """Returns log of the sum of exp(logit) over live, not excluded rows, [B].

  Arguments and errors as in `top_k`; -inf where no row is left.
  """
  def select(shard, key):
    del key
    carry, _ = shard.scan(
        shard.no_sum(), lambda carry, logits, blocks: (
            _add_sums(carry, *_block_sums(logits)), None))
    return shard.log_sum(carry)

  return _on_shards(select, None, queries, view, exclude_rows)


def logits_of(queries: jax.Array, view: View, rows: jax.Array, *,
              exclude_rows: jax.Array | None = None,
              num_lists: jax.Array | None = None) -> jax.Array:
  """Returns the logits of listed rows, wherever they are.

  Each query's lists are scored one after the other, so that no more than
  [B, g, D] embeddings are gathered at a time; each shard scores those that it
  holds, and logits, not embeddings, go between devices.

  Args:
    queries: [B, D], replicated or sharded over 'data'.
    view: see `top_k`.
    rows: [B, n, g] int32, n lists for each query, -1 for none.
    exclude_rows: [B, E] int32 rows that must not come out, -1 for none.
    num_lists: [] int32, how many of the n are scored; all by default.

  Returns:
    [B, n, g] float32, -inf for rows that are empty or excluded, for -1, and for
    lists that are not scored.

  Raises:
    ValueError: if shapes disagree or a shard does not hold whole chunks.
  """
  check_shapes({'queries': (queries, 'B D'), 'rows': (rows, 'B n g')})
  if num_lists is None:
    num_lists = jnp.int32(rows.shape[1])
  return _on_shards(lambda shard, key: shard.listed(rows, num_lists), None,
                    queries, view, exclude_rows)


def map_rows(function: Callable, view: View, *operands: jax.Array) -> Any:
  """Returns a function of every row, computed chunk by chunk on each shard.

  Args:
    function: (corrected rows [C, D] float32, live [C] bool, *operands) ->
      arrays [C, ...].
    view: see `top_k`.
    *operands: of the function, replicated.

  Returns:
    The same arrays for all rows, [M@data, ...].
  """
  mesh, chunk_rows = view.scan
  _check_place(view.table)

  def on_shard(table, *operands):
    def of_chunk(start):
      piece = jax.tree.map(
          lambda a: jax.lax.dynamic_slice_in_dim(a, start, chunk_rows), table)
      return function(view.correct(piece), piece.ids >= 0, *operands)

    found = jax.lax.map(
        of_chunk, jnp.arange(0, table.ids.shape[0], chunk_rows))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)

  by_row, everywhere = PartitionSpec(sharding.AXIS), PartitionSpec()
  return jax.jit(jax.shard_map(
      on_shard, mesh=mesh, in_specs=(by_row, *[everywhere] * len(operands)),
      out_specs=by_row, check_vma=False))(view.table, *operands)


def _on_shards(select: Callable, key, queries, view, exclude_rows,
               ceiling=None, *, block_rows=BLOCK_ROWS):
  """Runs `select(shard, key)` on every shard; its results are replicated."""
  mesh, chunk_rows = view.scan
  _check_place(view.table)
  # What is scored may be wider than what is stored, such as packed bits.
  rows = (view.table.embeddings if view.fold is not None
          else jax.eval_shape(view.correct, view.table))
  sizes = check_shapes({
      'queries': (queries, 'B D'), 'table.embeddings': (rows, 'M D'),
      'table.ids': (view.table.ids, 'M')})
  if exclude_rows is None:
    exclude_rows = jnp.full((sizes['B'], 0), -1, jnp.int32)
  check_shapes({'queries': (queries, 'B D'),
                'exclude_rows': (exclude_rows, 'B E')}
               | ({} if ceiling is None else {'ceiling': (ceiling, 'B')}))
  if chunk_rows % BLOCK_ROWS:
    raise ValueError(
        f'chunk_rows is {chunk_rows}, expected a multiple of {BLOCK_ROWS} '
        '(scoring.BLOCK_ROWS). Choose for instance 4096.')
  multiple = sharding.num_shards(mesh) * chunk_rows
  if sizes['M'] % multiple:
    raise ValueError(
        f'The table has {sizes["M"]} rows, expected a multiple of {multiple} '
        f'({sharding.num_shards(mesh)} shards of whole chunks of {chunk_rows} '
        'rows). Make it with table.create or table.empty and the same mesh '
        'and chunk_rows, which pad it.')

  def on_shard(key, queries, table, scale, exclude_rows, ceiling):
    scaled = queries.astype(jnp.float32) * scale  # cheaper than scaling [B, C]
    correct, constants = view.correct, None
    if view.fold is not None:
      scaled, constants = view.fold(scaled)
      correct = uncorrected
    return select(_Shard(scaled, constants, table, correct, exclude_rows,
                         ceiling, chunk_rows, block_rows), key)

  everywhere, by_row = PartitionSpec(), PartitionSpec(sharding.AXIS)
  run = jax.shard_map(
      on_shard, mesh=mesh,
      in_specs=(everywhere, everywhere, by_row, everywhere, everywhere,
                everywhere),
      out_specs=everywhere,
      # Results are equal on all shards, being computed from all-gathered
      # candidates, but the type system cannot prove that.
      check_vma=False)
  # jit: outside of one, shard_map would run primitive by primitive.
  return jax.jit(run)(
      key, queries, view.table, jnp.asarray(view.scale, jnp.float32),
      exclude_rows, ceiling)


def _check_place(table):
  """Raises a ValueError unless the rows are on the devices."""
  if not isinstance(table, TargetTable):
    raise ValueError(
        f'A scan of all rows got a {type(table).__name__}, whose rows are on '
        "the host; set memory.place='device', or ask for few rows by "
        'table.take.')


class _Shard:
  """One shard's rows, and what all kernels do with them; lives inside a trace.

  Row and block numbers are global wherever they leave this class.
  """

  def __init__(self, queries: jax.Array, constants: jax.Array | None,
               table: TargetTable,
               correct: Callable[[TargetTable], jax.Array],
               exclude_rows: jax.Array, ceiling: jax.Array | None,
               chunk_rows: int, block_rows: int):
    self.queries, self.constants = queries, constants
    self.table, self.correct = table, correct
    self.exclude_rows, self.ceiling = exclude_rows, ceiling
    self.chunk_rows, self.num_rows = chunk_rows, table.ids.shape[0]
    self.block_rows = block_rows
    self.num_blocks = self.num_rows // block_rows
    index = jax.lax.axis_index(sharding.AXIS)
    self.first_row = index * self.num_rows
    self.first_block = index * self.num_blocks

  def scan(self, carry: Any, step: Callable) -> tuple[Any, jax.Array]:
    """Scans chunks with `step(carry, logits [c, g, B], blocks [c])`.

    `logits` are -inf for empty and excluded rows and those above the ceiling.
    Blocks come first and queries last, so that reductions over a block run
    along whole vectors.

    Returns:
      The last carry, and the numbers [B, blocks of the shard] float32 that
      `step` gave, chunk by chunk as [c, B]; it may give None instead.
    """
    num_chunks = self.num_rows // self.chunk_rows
    chunk_blocks = self.chunk_rows // self.block_rows
    num_queries = self.queries.shape[0]
    query = jnp.broadcast_to(
        jnp.arange(num_queries)[:, None], self.exclude_rows.shape)

    def body(state, chunk):
      carry, numbers = state
      start = chunk * self.chunk_rows
      piece = jax.tree.map(
          lambda a: jax.lax.dynamic_slice_in_dim(a, start, self.chunk_rows),
          self.table)
      logits = products.inner(
          'cd,bd->cb', self.correct(piece), self.queries)
      if self.constants is not None:
        logits += self.constants[None]
      # Rows of other chunks, and -1, become negative or too large; negative
      # indices would wrap around, so both go past the end and are dropped.
      inside = self.exclude_rows - (self.first_row + start)
      inside = jnp.where(inside < 0, self.chunk_rows, inside)
      logits = logits.at[inside, query].set(_NEVER, mode='drop')
      logits = jnp.where((piece.ids >= 0)[:, None], logits, _NEVER)
      if self.ceiling is not None:
        logits = jnp.where(logits > self.ceiling[None], _NEVER, logits)
      blocks = self.first_block + chunk * chunk_blocks + jnp.arange(
          chunk_blocks)
      logits = logits.reshape(chunk_blocks, self.block_rows, num_queries)
      carry, found = step(carry, logits, blocks)
      if found is not None:
        # Written in place, queries first: stacking them as scan outputs and
        # transposing would hold them twice.
        numbers = jax.lax.dynamic_update_slice_in_dim(
            numbers, found.T, chunk * chunk_blocks, axis=1)
      return (carry, numbers), None

    numbers = jnp.full((num_queries, self.num_blocks), _NEVER)
    state, _ = jax.lax.scan(body, (carry, numbers), jnp.arange(num_chunks))
    return state

  def best_blocks(self, numbers: jax.Array, k: int
                  ) -> tuple[jax.Array, jax.Array]:
    """Returns the k best of all blocks, for every query, by block number.

    Args:
      numbers: [B, blocks of the shard] float32, -inf for blocks without rows.
      k: at most k blocks come out; all of them if there are fewer.

    Returns:
      numbers: [B, <=k] float32.
      blocks: [B, <=k] int32 in rising order, so that among equal rows the
        lowest comes first later on; -1 (first) for blocks without rows.
    """
    best, blocks = jax.lax.top_k(numbers, min(k, self.num_blocks))
    best, blocks = _gather_shards(best, self.first_block + blocks)
    best, which = jax.lax.top_k(best, min(k, best.shape[1]))
    blocks = jnp.take_along_axis(blocks, which, axis=1)
    blocks = jnp.where(best > _NEVER, blocks, -1).astype(jnp.int32)
    blocks, best = jax.lax.sort((blocks, best), num_keys=1)
    return best, blocks

  def inside(self, blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scores the rows of given blocks, as far as this shard holds them.

    Args:
      blocks: [B, k] int32 global block numbers.

    Returns:
      logits: [B, k, g] float32, -inf for rows that are elsewhere, empty,
        excluded or above the ceiling.
      rows: [B, k, g] int32.
    """
    rows = blocks[:, :, None] * self.block_rows + jnp.arange(
        self.block_rows, dtype=jnp.int32)[None, None]
    local = blocks - self.first_block
    mine = (blocks >= 0) & (local >= 0) & (local < self.num_blocks)
    # Own blocks first: the loop then ends after the longest list of them, so
    # that S shards together do not score S * k blocks a query.
    order = jnp.argsort(~mine, axis=1, stable=True)
    count = jnp.max(jnp.sum(mine, axis=1))
    table = jax.tree.map(
        lambda a: a.reshape((self.num_blocks, self.block_rows) + a.shape[1:]),
        self.table)

    def body(slot, logits):
      which = jax.lax.dynamic_slice_in_dim(order, slot, 1, axis=1)  # [B, 1]
      block = jnp.take_along_axis(local, which, axis=1)[:, 0]
      valid = jnp.take_along_axis(mine, which, axis=1)  # [B, 1]
      piece = jax.tree.map(
          lambda a: a[jnp.clip(block, 0, self.num_blocks - 1)], table)
      found = products.inner(
          'bgd,bd->bg', self.correct(piece), self.queries)
      if self.constants is not None:
        found += self.constants[:, None]
      row = jnp.take_along_axis(rows, which[:, :, None], axis=1)  # [B, 1, g]
      excluded = jnp.any(
          row == self.exclude_rows[:, :, None], axis=1)  # [B, g]
      found = jnp.where(
          valid & (piece.ids >= 0) & ~excluded, found, _NEVER)
      if self.ceiling is not None:
        found = jnp.where(found > self.ceiling[:, None], _NEVER, found)
      return logits.at[jnp.arange(len(block)), which[:, 0]].set(found)

    logits = jnp.full(rows.shape, _NEVER)
    return jax.lax.fori_loop(0, count, body, logits), rows

  def listed(self, rows: jax.Array, num_lists: jax.Array) -> jax.Array:
    """Returns the logits [B, n, g] of listed rows; arguments as `logits_of`."""
    local = rows - self.first_row
    mine = (rows >= 0) & (local >= 0) & (local < self.num_rows)

    def body(slot, logits):
      row, at, here = (
          jax.lax.dynamic_index_in_dim(a, slot, 1, keepdims=False)
          for a in (rows, local, mine))  # [B, g]
      piece = jax.tree.map(lambda a: a[jnp.where(here, at, 0)], self.table)
      found = products.inner(
          'bgd,bd->bg', self.correct(piece), self.queries)
      if self.constants is not None:
        found += self.constants[:, None]
      excluded = jnp.any(
          row[:, None, :] == self.exclude_rows[:, :, None], axis=1)
      found = jnp.where(here & (piece.ids >= 0) & ~excluded, found, _NEVER)
      return logits.at[:, slot].set(found)

    found = jax.lax.fori_loop(
        0, num_lists, body, jnp.full(rows.shape, _NEVER))
    return jax.lax.pmax(found, sharding.AXIS)

  def best_rows(self, keys: jax.Array, logits: jax.Array, rows: jax.Array,
                k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (keys, logits, rows) [B, k] of the k largest keys of all shards.

    Args:
      keys: [B, k', g], by which this shard's finds are chosen; -inf where
        there is nothing to choose.
      logits: [B, k', g], of the same.
      rows: [B, k', g], of the same.
      k: how many; -inf and -1 fill up where there are fewer rows.
    """
    flat = lambda a: a.reshape(a.shape[0], -1)
    keys, logits, rows = flat(keys), flat(logits), flat(rows)
    for gathered in (False, True):
      if gathered:
        keys, logits, rows = _gather_shards(keys, logits, rows)
      keys, which = jax.lax.top_k(keys, min(k, keys.shape[1]))
      logits = jnp.take_along_axis(logits, which, axis=1)
      rows = jnp.take_along_axis(rows, which, axis=1)
    found = keys > _NEVER
    pad = lambda a, fill: jnp.pad(
        jnp.where(found, a, fill), ((0, 0), (0, k - a.shape[1])),
        constant_values=fill)
    return pad(keys, _NEVER), pad(logits, _NEVER), pad(rows, -1)

  def no_sum(self) -> tuple[jax.Array, jax.Array]:
    """Returns the (largest logit, scaled sum) [B] of nothing."""
    zero = jnp.zeros(self.queries.shape[0])
    return zero + _NEVER, zero

  def log_sum(self, carry: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns the log of the sum over all shards, [B], of one carry each."""
    tops, totals = jax.lax.all_gather(carry, sharding.AXIS)  # [S, B]
    top, total = _add_sums(self.no_sum(), tops, totals)
    return top + jnp.log(total)


def _gather_shards(*arrays):
  """Puts the [B, k] of all shards side by side: [B, S * k], shard by shard."""
  return jax.tree.map(
      lambda a: jax.lax.all_gather(a, sharding.AXIS, axis=1, tiled=True),
      arrays)


def _block_sums(logits):
  """Returns each block's largest logit m and its sum of exp(logit - m)."""
  top = jnp.max(logits, axis=1)  # [c, g, B] -> [c, B]
  # A block without rows has m = -inf, and inf - inf must not become nan.
  safe = jnp.where(top > _NEVER, top, 0.)
  return top, jnp.sum(jnp.exp(logits - safe[:, None]), axis=1)


def _add_sums(carry, tops, totals):
  """Adds sums scaled by exp(-top), [c, B], to the running one, [B]."""
  top, total = carry
  new = jnp.maximum(top, jnp.max(tops, axis=0))
  safe = jnp.where(new > _NEVER, new, 0.)
  return new, total * jnp.exp(top - safe) + jnp.sum(
      totals * jnp.exp(tops - safe[None]), axis=0)


def _bits_to_exponential(bits):
  """Turns 32 random bits into a standard exponential, accurate near zero.

  A small exponential is a large Gumbel, -log of it. `jax.random.gumbel` has 23
  random bits and so cannot exceed 15.9, which biases the maximum over a million
  rows; here the cap is 22.9.
  """
  uniform = bits.astype(jnp.float32) * 2.**-32
  return -jnp.log1p(-jnp.clip(uniform, 2.**-33, 1 - 2.**-24))


def _exponential(key, blocks, num_queries):
  """Returns exponentials [c, B], functions of (key, global block, query)."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, blocks)
  return _bits_to_exponential(jax.vmap(
      lambda key: jax.random.bits(key, (num_queries,), jnp.uint32))(keys))


def _row_gumbels(key, blocks):
  """Returns Gumbels [B, k, g], functions of (key, query, block, row in it)."""
  def draw(query, block):
    key_of_block = jax.random.fold_in(jax.random.fold_in(key, block), query)
    return jax.random.bits(key_of_block, (BLOCK_ROWS,), jnp.uint32)
  bits = jax.vmap(jax.vmap(draw, (None, 0)))(
      jnp.arange(blocks.shape[0]), blocks)
  return -jnp.log(_bits_to_exponential(bits))


def _given_maximum(perturbed, maxima):
  """Moves independent perturbed logits so that their maximum is the given one.

    v = T - G + log(1 - exp(G - Z)),   Z = max G,
    G' = T - max(0, v) - log(1 + exp(-|v|))

  Args:
    perturbed: [B, k, g], G, logits plus independent Gumbels, -inf if excluded.
    maxima: [B, k], T, the blocks' perturbed maxima.

  Source: Kool et al. 2019, appendix B.3 (numerically stable form).
  """
  top = jnp.max(perturbed, axis=2, keepdims=True)
  live = perturbed > _NEVER
  below = jnp.where(live, perturbed - jnp.where(live, top, 0.), -1.)
  maxima = jnp.broadcast_to(maxima[:, :, None], perturbed.shape)
  gap = jnp.where(live, maxima - perturbed, 0.)
  v = gap + jnp.log(-jnp.expm1(below))
  return jnp.where(
      live, maxima - jnp.maximum(v, 0.) - jnp.log1p(jnp.exp(-jnp.abs(v))),
      _NEVER)
