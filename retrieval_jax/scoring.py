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

Rows that are moved by more than a linear map are moved once, in the scan: it
keeps the logits of the best K blocks so far. Others are scored again.

Where the table has coarse copies of its rows and no row has to be moved (the
view folds), the scan reads those, and bounds every block's number. The K blocks
of the largest bounds are opened: scored again in float32, which gives their
numbers. Then so are all whose bound reaches the K-th best number so far, and no
other block can matter. What comes out is what a scan in float32 gives, but for
log Z, whose part of unopened blocks is off by no more than their bounds; what
that comes to is returned, too. Should more blocks have to be opened than there
is room for (a great many rows are nearly equal), everything is scanned in
float32. With a ceiling it always is.

Memory per shard: B * C for the chunk, B * M / (S * g) for the blocks, and four
times that with coarse rows, B * g * D for scoring again. Traffic: [B, S * K]
numbers, twice, or four times.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from retrieval_jax import coarse
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

_ROOM, _SPARE = 4, 64
"""At most 4 k + 64 blocks of a query are opened at a time on each shard; where
more would have to be, all rows are scanned in float32 instead."""

_NEVER = -jnp.inf


class Best(NamedTuple):
  """Rows of largest logit; see `top_k`.

  Attributes:
    logits: [B, k] float32.
    rows: [B, k] int32.
    opened: [B] int32, blocks that were scored in float32: all of them without
      coarse rows.
  """
  logits: jax.Array
  rows: jax.Array
  opened: jax.Array


class Draws(NamedTuple):
  """Rows drawn by their logits; see `gumbel_top_k`.

  Attributes:
    rows: [B, k] int32.
    logits: [B, k] float32.
    log_z: [B] float32.
    opened: [B] int32, as of `Best`.
    log_z_error: [B] float32, what `log_z` is off by at most, because of coarse
      rows; 0 without them.
  """
  rows: jax.Array
  logits: jax.Array
  log_z: jax.Array
  opened: jax.Array
  log_z_error: jax.Array


def uncorrected(rows: TargetTable) -> jax.Array:
  """Returns the embeddings [..., D] of a slice as they are, float32."""
  return rows.embeddings.astype(jnp.float32)


def unmoved(queries: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns queries [B, D] as they are, and zeros [B]: a fold of nothing."""
  return queries, jnp.zeros(len(queries))


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
  return best(queries, view, k, exclude_rows=exclude_rows, ceiling=ceiling)[:2]


def best(queries: jax.Array, view: View, k: int, *,
         exclude_rows: jax.Array | None = None,
         ceiling: jax.Array | None = None) -> Best:
  """Returns what `top_k` does, and how much it took; arguments as there."""
  def select(shard, key):
    del key
    found = shard.best_blocks(k)
    rows = shard.rows_of(found.blocks)
    _, logits, rows = shard.best_rows(found.logits, found.logits, rows, k)
    return Best(logits, rows, found.opened)

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
    blocks = shard.first_block + jnp.arange(shard.num_blocks, dtype=jnp.int32)
    buckets = blocks // of_bucket

    def largest(numbers):
      found = jax.ops.segment_max(
          numbers.T, buckets, num_buckets, indices_are_sorted=True)
      found = jax.lax.pmax(found, sharding.AXIS)
      return found[jnp.minimum(buckets, num_buckets - 1)].T

    maxima = shard.maxima(largest, num_buckets)
    best, blocks = _best_of_buckets(maxima.T, blocks, buckets, num_buckets)
    best, blocks = jax.lax.all_gather((best, blocks), sharding.AXIS)
    # Of equal ones the first, which holds the lowest rows.
    which = jnp.argmax(best, axis=0)[None]
    blocks = jnp.take_along_axis(blocks, which, axis=0)[0].T  # [B, k]
    found, rows = shard.inside(blocks), shard.rows_of(blocks)
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
      and not above the ceiling; with coarse rows off by at most what
      `gumbel_draws` says.

  Raises:
    ValueError: if shapes disagree or a shard does not hold whole chunks.

  Source: Kool, van Hoof, Welling, ICML 2019, section 4.1 and appendix B.3
  (top-down sampling, a tree of depth two: blocks, then rows).
  """
  return gumbel_draws(key, queries, view, k, exclude_rows=exclude_rows,
                      ceiling=ceiling)[:3]


def gumbel_draws(key: jax.Array, queries: jax.Array, view: View, k: int, *,
                 exclude_rows: jax.Array | None = None,
                 ceiling: jax.Array | None = None) -> Draws:
  """Returns what `gumbel_top_k` does, and how much it took; as there."""
  def select(shard, key):
    block_key, row_key = jax.random.split(key)
    found = shard.best_blocks(k, block_key)
    noise = _row_gumbels(row_key, found.blocks)
    keys = _given_maximum(found.logits + noise, found.numbers)
    _, logits, rows = shard.best_rows(
        keys, found.logits, shard.rows_of(found.blocks), k)
    return Draws(rows, logits, found.log_z, found.opened, found.log_z_error)

  return _on_shards(select, key, queries, view, exclude_rows,
                    ceiling)


def top_k_rows_scored(num_queries: int, capacity: int, k: int
                      ) -> tuple[int, int]:
  """Returns (products <query, row>, rows corrected) that `top_k` takes.

  The scan scores every row, empty ones too, and corrects each once for all
  queries. The rows of each query's best k blocks are scored a second time,
  which is counted, but for rows that are corrected: those are not.
  """
  return _rows_scored(num_queries, capacity, k, _TOP_K_BLOCK_ROWS)[0], capacity


def gumbel_rows_scored(num_queries: int, capacity: int, k: int
                       ) -> tuple[int, int]:
  """Returns the same for `gumbel_top_k`."""
  return _rows_scored(num_queries, capacity, k, BLOCK_ROWS)[0], capacity


def bucket_rows_scored(num_queries: int, capacity: int, num_buckets: int
                       ) -> tuple[int, int]:
  """Returns the same for `bucket_maxima`, if all rows can hold a target.

  There the rows of the best blocks are corrected a second time, too.
  """
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
          lambda a: _rows_from(a, start, chunk_rows), table)
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


class _Blocks(NamedTuple):
  """Chosen blocks of each query, and what a scan found on the way.

  Attributes:
    numbers: [B, k] float32, what they were chosen by.
    blocks: [B, k] int32 global block numbers in rising order, so that among
      equal rows the lowest comes first later on; -1 (first) for none. Of
      another shard's blocks all logits are -inf.
    logits: [B, k, g] float32, of their rows, as `_Shard.inside`.
    opened: [B] int32, blocks of all shards that were scored in float32.
    log_z: [B] float32, of the rows of all shards; nan without noise.
    log_z_error: [B] float32, what that is off by at most.
  """
  numbers: jax.Array
  blocks: jax.Array
  logits: jax.Array
  opened: jax.Array
  log_z: jax.Array
  log_z_error: jax.Array


class _Bounds(NamedTuple):
  """What coarse rows say of the numbers of blocks, all [B, blocks] float32.

  Attributes:
    centers: largest logits, or log-sum-exps where there is noise.
    live: bool, whether any row of a block may come out.
    errors: how far centers may be off because rows are coarse.
    rounding: how far anything may be off because of float32.
    noise: standard exponentials, or None.
    upper: no less than the numbers, -inf where there is no row.
    lower: no more, likewise.
  """
  centers: jax.Array
  live: jax.Array
  errors: jax.Array
  rounding: jax.Array
  noise: jax.Array | None
  upper: jax.Array
  lower: jax.Array


class _Listed(NamedTuple):
  """Blocks of each query that are opened one after the other.

  Attributes:
    places: [B, n] int32, their numbers within the shard.
    noise: [B, n] float32, standard exponentials, or None.
    masses: [B, n] float32, log-sum-exps of their logits; of blocks that are not
      open, and without noise, their centers.
    numbers: [B, n] float32, -inf of blocks that are not open.
    logits: [B, n, g] float32, likewise.
  """
  places: jax.Array
  noise: jax.Array | None
  masses: jax.Array
  numbers: jax.Array
  logits: jax.Array


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

  def scan(self, carry: Any, step: Callable, *, coarsely: bool = False
           ) -> tuple[Any, jax.Array]:
    """Scans chunks with `step(carry, logits [c, g, B], blocks [c])`.

    `logits` are -inf for empty and excluded rows and those above the ceiling.
    Blocks come first and queries last, so that reductions over a block run
    along whole vectors. `coarsely`: by the coarse copies of the rows.

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
          lambda a: _rows_from(a, start, self.chunk_rows), self.table)
      if coarsely:
        logits = coarse.products(self.queries, piece)
      else:
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

  def best_blocks(self, k: int, key: jax.Array | None = None) -> _Blocks:
    """Returns the blocks with the k largest numbers, and what is inside.

    Args:
      k: how many of all blocks, at most; all of them if there are fewer.
      key: None where a block's number is its largest logit; otherwise it is the
        log-sum-exp of its logits and a Gumbel, which is drawn by this key.
    """
    if self.constants is None:
      return self._best_on_the_way(k, key)
    if not self._scans_coarsely:
      return self._best_of_all(k, key)
    certain, found = self._best_by_bounds(k, key)
    return jax.lax.cond(
        certain, lambda: found, lambda: self._best_of_all(k, key))

  def maxima(self, rivals: Callable[[jax.Array], jax.Array], room: int
             ) -> jax.Array:
    """Returns the largest logits of blocks, [B, blocks of the shard].

    Args:
      rivals: from numbers of blocks, like the result, to what those of each
        must reach to be looked at, likewise. All shards call it together.
      room: about how many blocks of a query reach it; others may be -inf.
    """
    if not self._scans_coarsely:
      return self._numbers_of_all(None)[0]
    bounds = self._bounds(None)
    room = self._room(room)
    gaps = bounds.upper - jnp.where(
        bounds.live, rivals(bounds.lower), -_NEVER)
    gaps, places = jax.lax.top_k(gaps, room)
    listed = self._opened(
        self._listed(bounds, places), jnp.zeros(len(gaps), jnp.int32),
        jnp.sum(gaps >= 0, axis=1))
    certain = self._everywhere((gaps[:, -1] < 0) | (room == self.num_blocks))
    maxima = _put(jnp.full_like(bounds.upper, _NEVER), places, listed.numbers)
    return jax.lax.cond(
        certain, lambda: maxima, lambda: self._numbers_of_all(None)[0])

  @property
  def _scans_coarsely(self) -> bool:
    """Whether coarse rows say enough to leave others unopened."""
    return (self.table.coarse is not None and self.constants is not None
            and self.ceiling is None)

  def _numbers_of_all(self, key):
    """Returns (numbers [B, blocks of the shard], log Z [B] or nan)."""
    sums, numbers = self.scan(
        self.no_sum(), lambda sums, logits, blocks: self._reduced(
            sums, logits, blocks, key))
    return numbers, self._log_z(sums, key)

  def _reduced(self, sums, logits, blocks, key):
    """Returns (sums with these logits, numbers [c, B] of their blocks)."""
    if key is None:
      return sums, jnp.max(logits, axis=1)
    top, total = _block_sums(logits)
    noise = _exponential(key, blocks, logits.shape[-1])
    # top + log(total) + Gumbel, with the Gumbel's outer log merged in.
    return _add_sums(sums, top, total), top + jnp.log(total / noise)

  def _log_z(self, sums, key):
    """Returns log Z [B] of the sums of all shards; nan without a key."""
    return self.log_sum(sums) if key is not None else jnp.full(
        self.queries.shape[0], jnp.nan)

  def _every_block(self):
    """Returns the number of blocks of all shards, for each query, [B]."""
    return jnp.full(
        self.queries.shape[0],
        jax.lax.axis_size(sharding.AXIS) * self.num_blocks, jnp.int32)

  def _in_order(self, numbers, blocks, logits):
    """Returns blocks [B, k] with their logits [B, k, g] as _Blocks has them."""
    blocks = jnp.where(numbers > _NEVER, blocks, -1).astype(jnp.int32)
    blocks, numbers, slots = jax.lax.sort(
        (blocks, numbers, jnp.broadcast_to(
            jnp.arange(blocks.shape[1]), blocks.shape)), num_keys=1)
    logits = jnp.take_along_axis(logits, slots[:, :, None], axis=1)
    return numbers, blocks, jnp.where((blocks >= 0)[:, :, None], logits, _NEVER)

  def _best_on_the_way(self, k, key):
    """Returns what `best_blocks` does, by a scan that keeps their logits.

    Rows that are moved by a network cost too much to be moved again. The blocks
    are the best of this shard's own.
    """
    most, num_queries = min(k, self.num_blocks), self.queries.shape[0]

    def step(carry, logits, blocks):
      sums, best = carry
      sums, numbers = self._reduced(sums, logits, blocks, key)
      new = (numbers.T, jnp.broadcast_to(blocks, numbers.T.shape),
             logits.transpose(2, 0, 1))
      numbers, blocks, logits = (
          jnp.concatenate(pair, axis=1) for pair in zip(best, new))
      numbers, which = jax.lax.top_k(numbers, most)  # the lowest of equal ones
      return (sums, (numbers, jnp.take_along_axis(blocks, which, axis=1),
                     jnp.take_along_axis(
                         logits, which[:, :, None], axis=1))), None

    shape = (num_queries, most)
    nothing = (jnp.full(shape, _NEVER), jnp.full(shape, -1, jnp.int32),
               jnp.full((*shape, self.block_rows), _NEVER))
    (sums, best), _ = self.scan((self.no_sum(), nothing), step)
    return _Blocks(*self._in_order(*best), self._every_block(),
                   self._log_z(sums, key), jnp.zeros(num_queries))

  def _best_of_all(self, k, key):
    """Returns what `best_blocks` does, by a scan in float32."""
    numbers, log_z = self._numbers_of_all(key)
    best, blocks = jax.lax.top_k(numbers, min(k, self.num_blocks))
    best, blocks = _gather_shards(best, self.first_block + blocks)
    best, which = jax.lax.top_k(best, min(k, best.shape[1]))
    blocks = jnp.take_along_axis(blocks, which, axis=1)
    blocks = jnp.where(best > _NEVER, blocks, -1).astype(jnp.int32)
    blocks, best = jax.lax.sort((blocks, best), num_keys=1)
    return _Blocks(best, blocks, self.inside(blocks), self._every_block(),
                   log_z, jnp.zeros(len(best)))

  def _best_by_bounds(self, k, key):
    """Returns (whether it is certain, what `best_blocks` does).

    It is not where more blocks might be among the best than there is room for.
    The blocks are the best of this shard's own.
    """
    bounds = self._bounds(key)
    room = self._room(k)
    upper, places = jax.lax.top_k(bounds.upper, room)
    # First the k of the largest bounds, then what may be better than one.
    count = self._reaching(upper, upper, k)
    listed = self._opened(self._listed(bounds, places),
                          jnp.zeros_like(count), count)
    more = self._reaching(upper, listed.numbers, k)
    listed = self._opened(listed, count, more)
    certain = self._everywhere((more < room) | (room == self.num_blocks))

    error = jnp.zeros(len(upper))
    log_z = error + jnp.nan
    if key is not None:
      masses = _put(bounds.centers, places, listed.masses)
      is_open = _put(
          jnp.zeros_like(bounds.live), places, listed.numbers > _NEVER)
      log_z = self._log_sum_of(masses)
      above = self._log_sum_of(
          masses + bounds.rounding + jnp.where(is_open, 0., bounds.errors))
      error = jnp.where(log_z > _NEVER, above - log_z, 0.)

    most = min(k, room)
    numbers, blocks, logits = self._in_order(
        listed.numbers, self.first_block + places, listed.logits)
    numbers, which = jax.lax.top_k(numbers, most)  # the lowest of equal ones
    numbers, blocks, logits = self._in_order(
        numbers, jnp.take_along_axis(blocks, which, axis=1),
        jnp.take_along_axis(logits, which[:, :, None], axis=1))
    # In front, where `_best_of_all` has those without rows, too.
    short = min(k, jax.lax.axis_size(sharding.AXIS) * self.num_blocks) - most
    pad = lambda a, fill: jnp.pad(
        a, ((0, 0), (short, 0), (0, 0))[:a.ndim], constant_values=fill)
    opened = jax.lax.psum(more.astype(jnp.int32), sharding.AXIS)
    return certain, _Blocks(
        pad(numbers, _NEVER), pad(blocks, -1), pad(logits, _NEVER), opened,
        log_z, error)

  def _room(self, k):
    return min(_ROOM * k + _SPARE, self.num_blocks)

  def _everywhere(self, flags):
    """Returns whether all flags of all shards are set."""
    return jax.lax.pmin(
        jnp.all(flags).astype(jnp.int32), sharding.AXIS) == 1

  def _bounds(self, key):
    """Returns the _Bounds of the numbers of blocks, by coarse rows."""
    def step(carry, logits, blocks):
      del blocks
      if key is None:
        return carry, jnp.max(logits, axis=1)
      top, total = _block_sums(logits)
      return carry, top + jnp.log(total)

    _, centers = self.scan(None, step, coarsely=True)
    live = centers > _NEVER
    errors, rounding = coarse.errors(
        self.queries, self.table.coarse, self.block_rows, self.constants)
    noise, moved = None, centers
    if key is not None:
      noise = _exponential(key, self.first_block + jnp.arange(self.num_blocks),
                           len(centers)).T
      moved = centers - jnp.log(noise)
      # Sums and logarithms of float32; that of noise lies in -23 .. 3.
      rounding += 8 * coarse.UNIT * (
          jnp.abs(jnp.where(live, centers, 0.)) + 32)
    return _Bounds(
        centers, live, errors, rounding, noise,
        upper=jnp.where(live, moved + errors + rounding, _NEVER),
        lower=jnp.where(live, moved - errors - rounding, _NEVER))

  def _reaching(self, upper, numbers, k):
    """Returns how many of the upper bounds reach the k-th of all numbers, [B].

    Args:
      upper: [B, n] float32, of live blocks first.
      numbers: [B, n] float32, of this shard; those of other shards count, too.
      k: as of `best_blocks`.
    """
    found, _ = jax.lax.top_k(numbers, min(k, numbers.shape[1]))
    found, = _gather_shards(found)
    least = jnp.full((len(found), 1), _NEVER)
    if found.shape[1] >= k:
      least = jax.lax.top_k(found, k)[0][:, -1:]
    return jnp.sum((upper >= least) & (upper > _NEVER), axis=1)

  def _listed(self, bounds, places):
    """Returns the _Listed of blocks [B, n] of which none is open yet."""
    at = lambda a: jnp.take_along_axis(a, places, axis=1)
    return _Listed(
        places, None if bounds.noise is None else at(bounds.noise),
        masses=at(bounds.centers), numbers=jnp.full(places.shape, _NEVER),
        logits=jnp.full((*places.shape, self.block_rows), _NEVER))

  def _opened(self, listed, start, stop):
    """Returns the list with blocks start .. stop - 1 [B] scored in float32."""
    query = jnp.arange(len(start))

    def body(i, parts):
      masses, numbers, logits = parts
      slot = start + i
      block = jnp.take_along_axis(
          listed.places, slot[:, None], axis=1, mode='clip')[:, 0]
      found = self._in_block(block, slot < stop)
      slot = jnp.where(slot < stop, slot, listed.places.shape[1])
      if listed.noise is None:
        number = jnp.max(found, axis=1)
      else:
        top, total = (a[:, 0] for a in _block_sums(found[:, :, None]))
        noise = jnp.take_along_axis(
            listed.noise, slot[:, None], axis=1, mode='clip')[:, 0]
        number = top + jnp.log(total / noise)
        masses = masses.at[query, slot].set(top + jnp.log(total), mode='drop')
      return (masses, numbers.at[query, slot].set(number, mode='drop'),
              logits.at[query, slot].set(found, mode='drop'))

    masses, numbers, logits = jax.lax.fori_loop(
        0, jnp.max(stop - start), body,
        (listed.masses, listed.numbers, listed.logits))
    return listed._replace(masses=masses, numbers=numbers, logits=logits)

  def rows_of(self, blocks: jax.Array) -> jax.Array:
    """Returns the rows [B, k, g] int32 of global block numbers [B, k]."""
    return blocks[:, :, None] * self.block_rows + jnp.arange(
        self.block_rows, dtype=jnp.int32)[None, None]

  def inside(self, blocks: jax.Array) -> jax.Array:
    """Scores the rows of given blocks, as far as this shard holds them.

    Args:
      blocks: [B, k] int32 global block numbers.

    Returns:
      [B, k, g] float32, -inf for rows that are elsewhere, empty, excluded or
      above the ceiling.
    """
    local = blocks - self.first_block
    mine = (blocks >= 0) & (local >= 0) & (local < self.num_blocks)
    # Own blocks first: the loop then ends after the longest list of them, so
    # that S shards together do not score S * k blocks a query.
    order = jnp.argsort(~mine, axis=1, stable=True)
    count = jnp.max(jnp.sum(mine, axis=1))

    def body(slot, logits):
      which = jax.lax.dynamic_slice_in_dim(order, slot, 1, axis=1)  # [B, 1]
      found = self._in_block(
          jnp.take_along_axis(local, which, axis=1)[:, 0],
          jnp.take_along_axis(mine, which, axis=1)[:, 0])
      return logits.at[jnp.arange(len(local)), which[:, 0]].set(found)

    return jax.lax.fori_loop(
        0, count, body, jnp.full((*blocks.shape, self.block_rows), _NEVER))

  def _in_block(self, block: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the logits [B, g] of the rows of one block for each query.

    Args:
      block: [B] int32, number within the shard.
      valid: [B] bool; the logits of others are -inf.
    """
    table = jax.tree.map(
        lambda a: a.reshape((self.num_blocks, self.block_rows) + a.shape[1:]),
        self.table)
    block = jnp.clip(block, 0, self.num_blocks - 1)
    piece = jax.tree.map(lambda a: a[block], table)
    found = products.inner('bgd,bd->bg', self.correct(piece), self.queries)
    if self.constants is not None:
      found += self.constants[:, None]
    row = (self.first_row + block * self.block_rows)[:, None] + jnp.arange(
        self.block_rows, dtype=jnp.int32)[None]  # [B, g]
    excluded = jnp.any(
        row[:, None] == self.exclude_rows[:, :, None], axis=1)
    found = jnp.where(
        valid[:, None] & (piece.ids >= 0) & ~excluded, found, _NEVER)
    if self.ceiling is not None:
      found = jnp.where(found > self.ceiling[:, None], _NEVER, found)
    return found

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

  def _log_sum_of(self, numbers: jax.Array) -> jax.Array:
    """Returns log sum exp [B] of the [B, n] of all shards."""
    return self.log_sum(_add_sums(
        self.no_sum(), numbers.T, jnp.ones_like(numbers.T)))

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


def _rows_from(array, start, size):
  """Returns rows start .. start + size - 1 of an array.

  XLA for CPUs slices bfloat16 as float32, and converts the whole array for it
  before a loop over slices; bits are sliced as they are.
  """
  if array.dtype != jnp.bfloat16:
    return jax.lax.dynamic_slice_in_dim(array, start, size)
  bits = jax.lax.bitcast_convert_type(array, jnp.uint16)
  return jax.lax.bitcast_convert_type(
      jax.lax.dynamic_slice_in_dim(bits, start, size), jnp.bfloat16)


def _put(array, places, values):
  """Returns an array [B, n] with values [B, m] at distinct places [B, m]."""
  return array.at[jnp.arange(len(places))[:, None], places].set(values)


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
