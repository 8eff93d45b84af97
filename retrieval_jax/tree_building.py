"""How a tree is built from embeddings, and brought up to date with them.

  build      k-means of a sample gives the parents; every row goes to the
             nearest; then, parent by parent, k-means of a sample of its rows
             gives the leaves. Clusters that are too small are dissolved; those
             that are too large are cut into equal pieces along their leading
             direction, so that sizes are bounded whatever the data.
  maintain   one pass over the rows in the same way: centres, radii, counts and
             second moments anew; rows that left their leaf by a margin move to
             a sibling that has room; a parent whose rows have come to lie much
             further from their leaves' centres is grown anew.

Both hold the rows of one parent at a time, gathered from wherever they are: a
table on the devices (`OnDevice`, inside a jit too) or one of the host
(`OnHost`). What is random is a function of (key, row), so neither the number of
devices nor the place changes a tree, up to ties within the rounding of a
matmul.

K-means leaves are better than balanced ones: on 117,659 embeddings of glosses,
at beta 40 and with 12% of the rows opened, proposals were off by TV .085
against .17.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, NamedTuple, Protocol

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import products
from retrieval_jax import scoring
from retrieval_jax import table as tables
from retrieval_jax import tree as trees
from retrieval_jax import types

_FILL = 0.75  # rows per k-means centre, as a share of the leaf size
_LEAST = 0.25  # smaller clusters, as a share of those rows, are dissolved
_FLAT = 256  # as many centres or fewer have one parent
_SAMPLE = 128  # rows per centre that centres are made from
_ITERATIONS = 8  # of k-means
_POWER = 6  # iterations towards a leading direction
_CHUNK = 4096  # rows compared with centres at a time


class Shape(NamedTuple):
  """Sizes of a tree; they depend on nothing but M and the leaf size.

  Attributes:
    num_parents: P.
    parent_size: the most rows of a parent.
    num_leaves: K; enough, since n rows in k clusters become at most
      k + n / leaf_size leaves.
    arity: the most leaves of a parent.
    mean_size: rows per centre of k-means.
    num_centres: of the parents' k-means.
  """
  num_parents: int
  parent_size: int
  num_leaves: int
  arity: int
  mean_size: int
  num_centres: int


def shape_of(num_rows: int, leaf_size: int) -> Shape:
  """Returns the sizes of a tree over M rows.

  Raises:
    ValueError: for leaves of less than two rows, or no rows.
  """
  if leaf_size < 2 or num_rows < 1:
    raise ValueError(
        f'A tree of {num_rows} rows in leaves of {leaf_size}: expected at '
        'least one row, and sampler.leaf_size of at least 2.')
  mean = max(int(_FILL * leaf_size), 1)
  parents = centres = 1
  parent_size = num_rows
  if num_rows > _FLAT * mean:
    centres = round(math.sqrt(num_rows / mean))
    parent_size = -(-2 * num_rows // centres)
    parents = centres + num_rows // parent_size
  return Shape(
      num_parents=parents, parent_size=parent_size,
      num_leaves=num_rows // mean + parents + num_rows // leaf_size,
      arity=-(-parent_size // mean) + parent_size // leaf_size,
      mean_size=mean, num_centres=centres)


# --- Where rows are.


class Source(Protocol):
  """The rows that a tree is over.

  Attributes:
    num_rows: M.
    dim: D.
  """
  @property
  def num_rows(self) -> int: ...
  @property
  def dim(self) -> int: ...

  def take(self, rows: Any) -> tuple[jax.Array, jax.Array]:
    """Returns (vectors [n, D] float32, live [n]) of rows [n]."""

  def map(self, function: Callable, *operands: jax.Array) -> Any:
    """Returns function(vectors [C, D], *operands) of all rows, [M, ...]."""

  def loop(self, count: int, body: Callable, carry: Any) -> Any:
    """Returns the carry after `body(i, carry)` for i below count."""

  def room(self, number: jax.Array, most: int) -> int:
    """Returns how many rows to make room for where there are `number`."""


@dataclasses.dataclass(frozen=True)
class OnDevice:
  """The corrected rows of a table on the devices; works inside a jit.

  Attributes:
    view: of the table.
  """
  view: types.View

  @property
  def num_rows(self) -> int:
    """M, those that can hold a target."""
    return self.view.table.num_slots

  @property
  def dim(self) -> int:
    """D."""
    return self.view.table.embeddings.shape[1]

  def take(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (vectors [n, D] float32, live [n]) of rows [n]."""
    part = tables.take(self.view.table, rows)
    return self.view.correct(part), part.ids >= 0

  def map(self, function: Callable, *operands: jax.Array) -> Any:
    """Returns function(vectors [C, D], *operands) of all rows, [M, ...]."""
    found = scoring.map_rows(
        lambda vectors, live, *operands: function(vectors, *operands),
        self.view, *operands)
    return jax.tree.map(lambda array: array[:self.num_rows], found)

  def loop(self, count: int, body: Callable, carry: Any) -> Any:
    """Returns the carry after `body(i, carry)` for i below count."""
    return jax.lax.fori_loop(0, count, body, carry)

  def room(self, number: jax.Array, most: int) -> int:
    """Returns `most`: inside a jit the number is not known."""
    del number
    return most


@dataclasses.dataclass(frozen=True, eq=False)
class OnHost:
  """The corrected rows of a table of the host, some of which go to the device.

  Attributes:
    view: of a HostTable.
    chunk_rows: rows that go to the device at a time where all do; those of one
      parent do otherwise.
  """
  view: types.View
  chunk_rows: int = 16384

  @property
  def num_rows(self) -> int:
    """M."""
    return self.view.table.num_slots

  @property
  def dim(self) -> int:
    """D."""
    return self.view.table.embeddings.shape[1]

  def take(self, rows: Any) -> tuple[jax.Array, jax.Array]:
    """Returns (vectors [n, D] float32, live [n]) of rows [n]."""
    part = tables.take(self.view.table, rows)
    return self.view.correct(part), part.ids >= 0

  def map(self, function: Callable, *operands: jax.Array) -> Any:
    """Returns function(vectors [C, D], *operands) of all rows, [M, ...]."""
    found = []
    apply = jax.jit(function)
    for start in range(0, self.num_rows, self.chunk_rows):
      rows = np.arange(start, start + self.chunk_rows)  # one shape, one program
      vectors, _ = self.take(np.where(rows < self.num_rows, rows, -1))
      found.append(apply(vectors, *operands))
      jax.block_until_ready(found[-2:-1])  # few chunks wait at a time
    return jax.tree.map(
        lambda *parts: jnp.concatenate(parts)[:self.num_rows], *found)

  def loop(self, count: int, body: Callable, carry: Any) -> Any:
    """Returns the carry after `body(i, carry)` for i below count."""
    for i in range(count):
      carry = body(jnp.int32(i), carry)
    return carry

  def room(self, number: jax.Array, most: int) -> int:
    """Returns the number, up to whole quarters of `most`: a program each."""
    quarter = -(-most // 4)
    return min(most, quarter * max(1, -(-int(number) // quarter)))


# --- Trees.


def build(key: jax.Array, source: Source, *, leaf_size: int, rank: int
          ) -> trees.Tree:
  """Returns a tree over all rows of a source.

  Args:
    key: typed PRNG key.
    source: of the rows.
    leaf_size: the most rows of a leaf.
    rank: r, axes of second moments.
  """
  shape = shape_of(source.num_rows, leaf_size)
  parent = jnp.zeros(source.num_rows, jnp.int32)
  if shape.num_parents > 1:
    size = min(source.num_rows, _SAMPLE * shape.num_centres)
    # Evenly spaced: a corpus is often sorted by kind.
    sample = (np.arange(size, dtype=np.int64) * source.num_rows // size
              ).astype(np.int32)
    vectors, live = source.take(sample)
    centres, active, axes = _parents(
        key, sample, vectors, live, shape.num_centres)

    parent, place = source.map(_place, centres, active, axes)
    parent, _ = _cut(parent, place, shape.num_centres, shape.parent_size)
  sizes = jax.ops.segment_sum(jnp.ones_like(parent), parent, shape.num_parents)
  rows = jnp.argsort(parent, stable=True).astype(jnp.int32)

  def grown(p, block, vectors, live):
    del p
    return _grow(key, block, vectors, live, shape, leaf_size)

  return _over_parents(source, rows, sizes, grown, shape, leaf_size, rank,
                       None)[0]


def maintain(key: jax.Array, tree: trees.Tree, source: Source, *,
             margin: float, degraded: float
             ) -> tuple[trees.Tree, dict[str, jax.Array]]:
  """Returns the tree brought up to date with the rows, and what that took.

  Args:
    key: typed PRNG key, of what is grown anew.
    tree: over the same rows, whatever they held.
    source: of the rows.
    margin: a live row moves to the leaf of a sibling's centre that is nearer
      than its own by this share of the distance, if there is room.
    degraded: a parent is grown anew if the mean of |y - c|^2 has risen by more
      than this share since it was last grown; of -1 all are.

  Returns:
    tree: of the same shape.
    info: 'moved' and 'grown', the shares of rows that moved and of parents
      that were grown anew, [] float32.
  """
  leaf_size, rank = tree.leaf_size, tree.leaves.axes.shape[0]
  shape = shape_of(source.num_rows, leaf_size)
  sizes = jnp.diff(tree.start[tree.first])

  @jax.jit
  def settle(p, block, vectors, live, leaf_of, first, built):
    placed = block >= 0
    leaf = jnp.where(placed, leaf_of[jnp.maximum(block, 0)] - first[p],
                     shape.arity)
    used = first[p + 1] - first[p]
    leaf, moved = _move(leaf, vectors, live, used, shape.arity, leaf_size,
                        margin)
    far = _scatter_within(leaf, vectors, live, shape.arity)
    # Rows may have left since: fewer leaves may do, and all must fit.
    most = -(-placed.sum() // shape.mean_size) + placed.sum() // leaf_size
    bad = (far > (1 + degraded) * built[p]) | (degraded < 0) | (used > most)
    leaf, used, moved, built = jax.lax.cond(
        bad, lambda: (*_grow(key, block, vectors, live, shape, leaf_size)[:2],
                      jnp.zeros_like(moved), jnp.float32(jnp.nan)),
        lambda: (leaf, used, moved, built[p]))
    return leaf, used, built, moved, bad

  def settled(p, block, vectors, live):
    leaf, used, built, moved, bad = settle(
        p, block, vectors, live, tree.leaf_of, tree.first, tree.built_scatter)
    return leaf, used, built, (moved, bad.astype(jnp.int32))

  new, (moved, grown) = _over_parents(
      source, tree.rows, sizes, settled, shape, leaf_size, rank,
      (jnp.int32(0), jnp.int32(0)))
  return new, {'moved': moved / source.num_rows,
               'grown': grown / shape.num_parents}


def cost_of_build(num_rows: int, leaf_size: int, rank: int
                  ) -> tuple[int, int]:
  """Returns what `build` of rows on the devices takes; on the host no more.

  Args:
    num_rows: M.
    leaf_size: of the tree.
    rank: r.

  Returns:
    The products of two vectors [D], of rows with centres or axes, those of
    k-means and of leading directions included; and the rows that are taken
    from the source, each time that one is.
  """
  shape = shape_of(num_rows, leaf_size)
  products_taken, taken = _cost_of_measures(shape, leaf_size, rank)
  products_taken += shape.num_parents * _cost_of_growing(shape)
  if shape.num_parents > 1:
    size = min(num_rows, _SAMPLE * shape.num_centres)
    per_centre = (2 * _ITERATIONS + 1 + _POWER) * size + num_rows
    products_taken += shape.num_centres * per_centre
    taken += size + num_rows
  return products_taken, taken


def cost_of_maintenance(num_rows: int, leaf_size: int, rank: int,
                        num_grown: int) -> tuple[int, int]:
  """Returns the same of `maintain`, where so many parents were grown anew."""
  shape = shape_of(num_rows, leaf_size)
  measures, taken = _cost_of_measures(shape, leaf_size, rank)
  moves = shape.num_parents * shape.parent_size * shape.arity
  return measures + moves + num_grown * _cost_of_growing(shape), taken


def _cost_of_measures(shape, leaf_size, rank):
  """Returns products and rows of `_over_parents`, but for those of `settle`."""
  rows = shape.arity * leaf_size + shape.parent_size  # of leaves, and again
  return (shape.num_parents * rows * rank * (2 * _POWER + 1),
          shape.num_parents * shape.parent_size)


def _cost_of_growing(shape):
  """Returns products of `_grow`: a row's nearest centre, and to the sums.

  Both for a sample in each iteration of k-means and in the two that dissolve
  small clusters; of those towards the leading directions one more, and the
  sums of each; then the nearest of every row.
  """
  centres = -(-shape.parent_size // shape.mean_size)
  sample = min(shape.parent_size, _SAMPLE * centres)
  return centres * (
      (2 * (_ITERATIONS + 2) + 1 + _POWER) * sample + shape.parent_size)


def _over_parents(source, rows, sizes, settle, shape, leaf_size, rank, counts):
  """Builds a tree parent by parent, from rows that are sorted by parent.

  Leaves in use are written one parent after the other, `arity` at a time: what
  a parent does not use is overwritten by the next.

  Args:
    source: of the rows.
    rows: [M] int32, sorted by parent.
    sizes: [P] int32, rows of each parent.
    settle: (p, block [n] int32 rising, -1 last, vectors, live), n <=
      parent_size -> (leaf within the parent [n], arity for none; leaves used;
      built_scatter or nan for that of now; numbers to add to `counts`).
    shape: of the tree.
    leaf_size: of the tree.
    rank: of the tree.
    counts: pytree of zeros, or None.

  Returns:
    The tree, and the counts.
  """
  num_rows = source.num_rows
  begins = jnp.cumsum(sizes) - sizes
  leaves = _nothing(shape.num_leaves + shape.arity, source.dim, rank)
  parents = _nothing(shape.num_parents, source.dim, rank)
  padded = jnp.append(
      rows, jnp.full(shape.parent_size, num_rows, jnp.int32))
  order = jnp.zeros(num_rows + shape.parent_size, jnp.int32)
  start = jnp.full(shape.num_leaves + shape.arity, num_rows, jnp.int32)
  first = jnp.zeros(shape.num_parents + 1, jnp.int32)
  built = jnp.zeros(shape.num_parents)

  @functools.partial(jax.jit, static_argnums=4)
  def block_of(padded, begins, sizes, p, size):
    block = jax.lax.dynamic_slice_in_dim(padded, begins[p], size)
    inside = jnp.arange(size) < sizes[p]
    block = jnp.sort(jnp.where(inside, block, num_rows))
    return jnp.where(block < num_rows, block, -1).astype(jnp.int32)

  @functools.partial(jax.jit, donate_argnums=0)
  def written(carry, p, begin, block, vectors, live, leaf, used, was_built):
    leaves, parents, order, start, first, built = carry
    within = jnp.argsort(leaf, stable=True)
    ends = jnp.searchsorted(leaf[within], jnp.arange(shape.arity + 1))
    slots = ends[:-1, None] + jnp.arange(leaf_size)[None]
    inside = slots < ends[1:, None]
    members = within[jnp.where(inside, slots, 0)]
    level = _measure(vectors[members], live[members] & inside, rank)
    top = _measure(vectors[None], live[None], rank)
    scatter = jnp.sum(level.scatter * level.counts) / jnp.maximum(
        level.counts.sum(), 1)
    at = first[p]
    leaves = _write(leaves, level, at)
    parents = _write(parents, top, p)
    order = jax.lax.dynamic_update_slice_in_dim(order, block[within], begin, 0)
    start = jax.lax.dynamic_update_slice_in_dim(
        start, (begin + ends[:-1]).astype(jnp.int32), at, 0)
    first = first.at[p + 1].set(at + used)
    built = built.at[p].set(jnp.where(jnp.isnan(was_built), scatter, was_built))
    return leaves, parents, order, start, first, built

  def body(p, state):
    carry, counts = state
    block = block_of(padded, begins, sizes, p, source.room(
        sizes[p], shape.parent_size))
    vectors, live = source.take(block)
    live = live & (block >= 0)
    leaf, used, was_built, *numbers = settle(p, block, vectors, live)
    carry = written(
        carry, p, begins[p], block, vectors, live, leaf, used, was_built)
    if counts is not None:
      counts = jax.tree.map(jnp.add, counts, numbers[0])
    return carry, counts

  (leaves, parents, order, start, first, built), counts = source.loop(
      shape.num_parents, body,
      ((leaves, parents, order, start, first, built), counts))
  num_leaves, order = shape.num_leaves, order[:num_rows]
  unused = jnp.arange(num_leaves + 1) >= first[-1]
  start = jnp.where(unused, num_rows, start[:num_leaves + 1])
  leaf_of = jnp.zeros(num_rows, jnp.int32).at[order].set(
      jnp.searchsorted(start, jnp.arange(num_rows), side='right'
                       ).astype(jnp.int32) - 1, unique_indices=True)
  cut = lambda array, axis: jax.lax.slice_in_dim(array, 0, num_leaves,
                                                 axis=axis)
  leaves = trees.Level(**{
      field.name: cut(getattr(leaves, field.name),
                      int(field.name in ('axes', 'spread')))
      for field in dataclasses.fields(leaves)})
  leaves = dataclasses.replace(
      leaves, counts=jnp.where(unused[:-1], 0, leaves.counts))
  return trees.Tree(
      leaves=leaves, parents=parents, rows=order, start=start, first=first,
      leaf_of=leaf_of, built_scatter=built, leaf_size=leaf_size,
      parent_size=shape.parent_size, arity=shape.arity), counts


def _nothing(count, dim, rank):
  return trees.Level(
      jnp.zeros((count, dim)), jnp.zeros(count), jnp.zeros(count, jnp.int32),
      jnp.zeros(count), jnp.zeros((rank, count, dim), jnp.bfloat16),
      jnp.zeros((rank, count)))


def _write(level, part, at):
  """Returns a Level with the nodes of another written from node `at` on."""
  return trees.Level(**{
      field.name: jax.lax.dynamic_update_slice_in_dim(
          getattr(level, field.name), getattr(part, field.name), at,
          axis=int(field.name in ('axes', 'spread')))
      for field in dataclasses.fields(level)})


def _measure(vectors, live, rank):
  """Returns the Level of nodes with vectors [n, c, D], live [n, c]."""
  dim = vectors.shape[2]
  counts = live.sum(axis=1).astype(jnp.int32)
  number = jnp.maximum(counts, 1).astype(jnp.float32)
  weight = live[:, :, None].astype(jnp.float32)
  centres = jnp.sum(vectors * weight, axis=1) / number[:, None]
  away = (vectors - centres[:, None]) * weight
  squares = jnp.sum(jnp.square(away), axis=2)
  start = jax.random.normal(jax.random.key(0), (max(rank, 1), dim))
  axes, spread = [], []
  for first in start[:rank]:
    axis = _leading(away, jnp.broadcast_to(first, centres.shape)).astype(
        jnp.bfloat16)
    wide = axis.astype(jnp.float32)
    along = products.inner('ncd,nd->nc', away, wide)
    axes.append(axis)
    spread.append(jnp.sum(jnp.square(along), axis=1) / number)
    away -= along[:, :, None] * wide[:, None]
  stacked = lambda parts, shape, dtype: (
      jnp.stack(parts) if parts else jnp.zeros((0, *shape), dtype))
  return trees.Level(
      centres, jnp.sqrt(squares.max(axis=1)), counts,
      squares.sum(axis=1) / number,
      stacked(axes, centres.shape, jnp.bfloat16),
      stacked(spread, counts.shape, jnp.float32))


def _leading(away, axis):
  """Returns about the leading direction [n, D] of rows [n, c, D]."""
  def towards(_, axis):
    along = products.inner('ncd,nd->nc', away, axis)
    axis = products.inner('nc,ncd->nd', along, away)
    return axis / jnp.maximum(
        jnp.linalg.norm(axis, axis=1, keepdims=True), 1e-20)
  return jax.lax.fori_loop(0, _POWER, towards, axis)


# --- Clusters.


@functools.partial(jax.jit, static_argnames='num_centres')
def _parents(key, rows, vectors, live, num_centres):
  """Returns centres [k, D], which are in use [k], and directions [k, D]."""
  active, centres = _k_means(
      key, rows, vectors, live, num_centres, jnp.int32(num_centres))
  return centres, active, _directions(vectors, live, centres, active)


@functools.partial(jax.jit, static_argnames=('shape', 'leaf_size'))
def _grow(key, block, vectors, live, shape, leaf_size):
  """Returns the leaf of each row of a parent, how many there are, and nan.

  Args:
    key: typed PRNG key.
    block: [n] int32, the parent's rows, -1 fills up.
    vectors: [n, D] float32.
    live: [n] bool.
    shape: of the tree.
    leaf_size: of the tree.
  """
  placed = block >= 0
  count = placed.sum().astype(jnp.int32)
  most = -(-len(block) // shape.mean_size)
  num_centres = -(-count // shape.mean_size)
  # Evenly spaced; `block` rises, so those of no row are the last.
  size = min(len(block), _SAMPLE * most)
  at = jnp.arange(size) * -(-count // size)
  some = jnp.minimum(at, len(block) - 1)
  # An empty row is there to be filled; it has a place, but no say.
  sample, heard = vectors[some], live[some] & (at < count)
  active, centres = _k_means(
      key, block[some], sample, heard, most, num_centres)
  counts = _sums(sample, heard, centres, active)[1]
  share = heard.sum() / jnp.maximum(live.sum(), 1)
  active &= counts >= jnp.minimum(
      _LEAST * shape.mean_size * share, counts.max())
  centres = _improved(sample, heard, centres, active)
  cluster, place = _place(
      vectors, centres, active, _directions(sample, heard, centres, active))
  leaf, used = _cut(
      jnp.where(placed, cluster, most), place, most, leaf_size)
  return jnp.where(placed, leaf, shape.arity), used, jnp.float32(jnp.nan)


def _k_means(key, rows, vectors, live, most, count):
  """Returns which centres are in use [k], and the centres [k, D], k = most."""
  noise = jax.vmap(lambda row: jax.random.uniform(
      jax.random.fold_in(key, row)))(rows)
  chosen, seeds = jax.lax.top_k(
      jnp.where(live, noise, -1.), min(most, len(rows)))
  missing = most - len(seeds)
  active = jnp.pad(chosen >= 0, (0, missing)) & (jnp.arange(most) < count)
  active = active.at[0].set(True)
  centres = jnp.pad(vectors[seeds], ((0, missing), (0, 0)))
  centres = jax.lax.fori_loop(
      0, _ITERATIONS, lambda _, centres: _improved(
          vectors, live, centres, active), centres)
  return active, centres


def _improved(vectors, live, centres, active):
  """Returns the means of the rows nearest to each centre."""
  sums, counts = _sums(vectors, live, centres, active)
  return jnp.where(counts[:, None] > 0, sums / jnp.maximum(
      counts, 1.)[:, None], centres)


def _sums(vectors, live, centres, active):
  """Returns sums [k, D] and counts [k] of the live rows nearest to each."""
  def add(carry, chunk):
    vectors, live = chunk
    near = _one_hot(
        _closest(vectors, centres, active), live, len(centres))
    return (carry[0] + products.inner('ck,cd->kd', near, vectors),
            carry[1] + near.sum(axis=0)), None
  return jax.lax.scan(
      add, (jnp.zeros_like(centres), jnp.zeros(len(centres))),
      _chunks(vectors, live))[0]


def _directions(vectors, live, centres, active):
  """Returns about the leading direction [k, D] of the rows of each centre."""
  chunks = _chunks(vectors, live, _nearest(vectors, centres, active))
  def towards(_, axes):
    def add(sums, chunk):
      vectors, live, at = chunk
      away = vectors - centres[at]
      along = jnp.sum(away * axes[at], axis=1, keepdims=True)
      near = _one_hot(at, live, len(centres))
      return sums + products.inner('ck,cd->kd', near, along * away), None
    sums, _ = jax.lax.scan(add, jnp.zeros_like(centres), chunks)
    return sums / jnp.maximum(
        jnp.linalg.norm(sums, axis=1, keepdims=True), 1e-20)
  start = jax.random.normal(jax.random.key(0), centres.shape[1:])
  return jax.lax.fori_loop(
      0, _POWER, towards, jnp.broadcast_to(start, centres.shape))


def _one_hot(at, live, num_centres):
  """Returns [C, k] float32, 1 at the centre of each live row."""
  near = (at[:, None] == jnp.arange(num_centres)[None]) & live[:, None]
  return near.astype(jnp.float32)


def _closest(vectors, centres, active):
  square = jnp.where(active, jnp.sum(jnp.square(centres), axis=1), jnp.inf)
  return jnp.argmin(square[None] - 2. * products.inner(
      'cd,kd->ck', vectors, centres), axis=1).astype(jnp.int32)


def _place(vectors, centres, active, axes):
  """Returns the nearest centre in use, and the place along its axis, [n]."""
  at = _nearest(vectors, centres, active)
  return at, jnp.sum((vectors - centres[at]) * axes[at], axis=1)


def _nearest(vectors, centres, active):
  """Returns the nearest centre in use of each row, [n] int32."""
  found = jax.lax.map(
      lambda chunk: _closest(chunk[0], centres, active), _chunks(vectors))
  return found.reshape(-1)[:len(vectors)]


def _chunks(*arrays):
  """Returns arrays [n, ...] as [chunks, C, ...]; zeros (not live) fill up."""
  size = min(_CHUNK, len(arrays[0]))
  missing = -len(arrays[0]) % size
  return tuple(
      jnp.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1))).reshape(
          -1, size, *array.shape[1:]) for array in arrays)


def _cut(group, place, num_groups, size):
  """Cuts groups of rows that are larger than `size` into equal pieces.

  Args:
    group: [n] int32; num_groups for rows of none.
    place: [n] float32, along which a group is cut.
    num_groups: G.
    size: the most rows of a piece.

  Returns:
    piece: [n] int32, numbered group by group, from 0.
    count: [] int32, of pieces.
  """
  counts = jax.ops.segment_sum(jnp.ones_like(group), group, num_groups + 1)
  pieces = -(-counts // size)
  each = -(-counts // jnp.maximum(pieces, 1))  # rows of a piece
  pieces = -(-counts // jnp.maximum(each, 1))
  begin, before = jnp.cumsum(counts) - counts, jnp.cumsum(pieces) - pieces
  order = jnp.lexsort((place, group))
  ordered = group[order]
  rank = jnp.arange(len(group)) - begin[ordered]
  piece = before[ordered] + rank // jnp.maximum(each, 1)[ordered]
  return jnp.zeros_like(group).at[order].set(
      piece.astype(jnp.int32), unique_indices=True), before[num_groups]


def _move(leaf, vectors, live, used, arity, leaf_size, margin):
  """Returns the leaves of a parent's rows after strays moved, and how many.

  A row moves if a sibling's centre is nearer than its own by a share `margin`
  of the distance; those with the most to gain first, while there is room. What
  leaves a leaf in this pass does not yet make room.
  """
  sums = jax.ops.segment_sum(
      jnp.where(live[:, None], vectors, 0.), leaf, arity + 1)
  counts = jax.ops.segment_sum(live.astype(jnp.float32), leaf, arity + 1)
  sizes = jax.ops.segment_sum(jnp.ones_like(leaf), leaf, arity + 1)[:arity]
  centres = (sums / jnp.maximum(counts, 1.)[:, None])[:arity]
  active = (jnp.arange(arity) < used) & (counts[:arity] > 0)
  near = _nearest(vectors, centres, active)
  distance = lambda at: jnp.linalg.norm(
      vectors - centres[jnp.minimum(at, arity - 1)], axis=1)
  own, other = distance(leaf), distance(near)
  wishes = live & (leaf < arity) & (near != leaf) & (
      other < (1 - margin) * own)
  order = jnp.lexsort((other - own, jnp.where(wishes, near, arity)))
  wanted = jnp.where(wishes, near, arity)[order]
  begin = jnp.searchsorted(wanted, wanted)
  rank = jnp.arange(len(leaf)) - begin
  room = jnp.append(leaf_size - sizes, 0)[wanted]
  moved = jnp.zeros(len(leaf), bool).at[order].set(
      rank < room, unique_indices=True)
  return jnp.where(moved, near, leaf), moved.sum().astype(jnp.int32)


def _scatter_within(leaf, vectors, live, arity):
  """Returns the mean of |y - c|^2 over live rows, c of the row's leaf."""
  weight = live.astype(jnp.float32)
  count = jax.ops.segment_sum(weight, leaf, arity + 1)
  centres = jax.ops.segment_sum(
      jnp.where(live[:, None], vectors, 0.), leaf, arity + 1) / jnp.maximum(
          count, 1.)[:, None]
  far = jnp.sum(jnp.square(vectors - centres[leaf]), axis=1)
  return jnp.sum(far * weight) / jnp.maximum(weight.sum(), 1.)
