"""A tree over embeddings: leaves of bounded size under parents, as arrays.

A node is a set of rows with their mean c, a radius r and how they scatter. With
x = beta q, a leaf C of m rows weighs

  Z_C = sum_{y in C} exp(<x, y>) = m e^{<x, c>} E e^t,     t = <x, y - c>,

and as c is the *exact* mean, E t = 0 and |t| <= a = |x| r (Cauchy-Schwarz):

  m e^{<x, c>}  <=  Z_C  <=  m e^{<x, c>} min(cosh a, 1 + v / a^2 (e^a - 1 - a))

by Jensen, by convexity, and by Bennett with v = |x|^2 E|y - c|^2 >= Var t. The
metric is the Euclidean distance of the embeddings themselves. Nothing above
asks for equal norms, so there is no augmentation from inner products to
distances: it would serve to prune by distance, which nothing here does.

Invariants, which `check` asserts:

  permutation  `rows` has every row once; a node's rows are consecutive.
  counts       of live rows; those of the leaves of a parent sum to its own.
  centres      are the means of the live rows below.
  covering     |y - c| <= r for every live row below a node.
  size         a leaf has at most `leaf_size` rows, empty ones included.
  separation   two leaves of a parent have different centres, or equal rows.

What changes the tree keeps them (`rewrite`, `insert`); to build it and to bring
it up to date is `tree_building`'s affair.
"""

import dataclasses

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import products
from retrieval_jax import types

_NEVER = -jnp.inf


@types.register
@dataclasses.dataclass(frozen=True)
class Level:
  """Some nodes, and what is known of the live rows of each.

  Attributes:
    centres: [n, D] float32, their mean, 0 of none.
    radii: [n] float32, at least the largest distance of one from it.
    counts: [n] int32.
    scatter: [n] float32, the mean of |y - c|^2, the trace of the covariance.
    axes: [r, n, D] bfloat16, about its r leading eigenvectors.
    spread: [r, n] float32, the variance along each of them.
  """
  centres: jax.Array
  radii: jax.Array
  counts: jax.Array
  scatter: jax.Array
  axes: jax.Array
  spread: jax.Array


@types.register
@dataclasses.dataclass(frozen=True)
class Tree:
  """All rows of a table that can hold a target, empty ones too, under leaves.

  Leaf i has the rows `rows[start[i]:start[i + 1]]`, parent p the leaves
  `first[p]` to `first[p + 1] - 1`. Leaves that are not in use are the last, and
  have no rows.

  Attributes:
    leaves: Level of K nodes.
    parents: Level of P nodes.
    rows: [M] int32, a permutation; numpy, as `leaf_of`, where they are on the
      host.
    start: [K + 1] int32.
    first: [P + 1] int32.
    leaf_of: [M] int32, the leaf of each row.
    built_scatter: [P] float32, the mean of |y - c|^2 over a parent's live rows,
      c being the centre of the row's leaf, when its leaves were grown.
    leaf_size: static; the most rows of a leaf.
    parent_size: static; the most rows of a parent.
    arity: static; the most leaves of a parent.
  """
  leaves: Level
  parents: Level
  rows: jax.Array
  start: jax.Array
  first: jax.Array
  leaf_of: jax.Array
  built_scatter: jax.Array
  leaf_size: int = dataclasses.field(metadata={'static': True})
  parent_size: int = dataclasses.field(metadata={'static': True})
  arity: int = dataclasses.field(metadata={'static': True})

  @property
  def num_leaves(self) -> int:
    """K."""
    return self.leaves.counts.shape[0]

  @property
  def num_parents(self) -> int:
    """P."""
    return self.parents.counts.shape[0]


# --- Queries.


def parent_of(tree: Tree, leaves: jax.Array) -> jax.Array:
  """Returns the parents [...] int32 of leaves [...]."""
  found = jnp.searchsorted(tree.first, leaves, side='right') - 1
  return jnp.minimum(found, tree.num_parents - 1).astype(jnp.int32)


def rows_of(tree: Tree, leaves: jax.Array) -> jax.Array:
  """Returns the rows [..., leaf_size] int32 of leaves [...], -1 fills up."""
  start = tree.start[leaves][..., None]
  at = start + jnp.arange(tree.leaf_size, dtype=jnp.int32).reshape(
      (1,) * leaves.ndim + (-1,))
  inside = at < tree.start[leaves + 1][..., None]
  return jnp.where(inside, tree.rows[jnp.where(inside, at, 0)], -1)


def leaves_of(tree: Tree, parents: jax.Array) -> jax.Array:
  """Returns the leaves [..., arity] int32 of parents [...], -1 fills up."""
  at = tree.first[parents][..., None] + jnp.arange(
      tree.arity, dtype=jnp.int32).reshape((1,) * parents.ndim + (-1,))
  return jnp.where(at < tree.first[parents + 1][..., None], at, -1)


def take(level: Level, nodes: jax.Array) -> Level:
  """Returns the Level of nodes [...], with arrays [..., D] and [r, ..., D]."""
  nodes = jnp.maximum(nodes, 0)
  return Level(
      level.centres[nodes], level.radii[nodes], level.counts[nodes],
      level.scatter[nodes], level.axes[:, nodes], level.spread[:, nodes])


def log_mass(level: Level, queries: jax.Array) -> jax.Array:
  """Returns log of the estimated mean of exp(<x, y>) over each node, [B, n].

    <x, c> + 1/2 Var <x, y>,   the variance along `axes` as measured, and in
                               every other direction their mean

  to second order in t, exact for a Gaussian node; without axes <x, c> alone,
  the lower bound. Times the count it is the estimated mass.

  Args:
    level: n nodes, [n] for all queries or [B, n] of their own (`take`).
    queries: [B, D] float32, x = beta q.
  """
  dots = lambda vectors: products.inner(
      'bd,nd->bn' if level.counts.ndim == 1 else 'bd,bnd->bn',
      queries, vectors.astype(jnp.float32))
  of_all = lambda array: array[None] if level.counts.ndim == 1 else array
  found = dots(level.centres)
  rank, dim = level.axes.shape[0], queries.shape[1]
  if not rank:
    return found
  rest = jnp.maximum(level.scatter - level.spread.sum(axis=0), 0.) / max(
      dim - rank, 1)
  square = jnp.sum(jnp.square(queries), axis=1, keepdims=True)
  variance = square * of_all(rest)
  for axes, spread in zip(level.axes, level.spread):
    variance += jnp.square(dots(axes)) * of_all(spread - rest)
  return found + 0.5 * jnp.maximum(variance, 0.)


def log_mass_bounds(level: Level, queries: jax.Array
                    ) -> tuple[jax.Array, jax.Array]:
  """Returns logs of a lower and an upper bound of the mean of exp(<x, y>).

  Args:
    level: n nodes, [n] for all queries or [B, n] of their own.
    queries: [B, D] float32, x = beta q.

  Returns:
    [B, n] float32 each; see the formulas above. They hold for the rows from
    which the tree was measured, whatever they are called now.
  """
  low = log_mass(dataclasses.replace(
      level, axes=level.axes[:0], spread=level.spread[:0]), queries)
  of_all = lambda array: array[None] if level.counts.ndim == 1 else array
  norm = jnp.linalg.norm(queries, axis=1, keepdims=True)
  reach = norm * of_all(level.radii)  # a
  # log(1 - share + share e^a - share a) without overflow; its first two terms
  # are at least 1.
  share = of_all(level.scatter / jnp.maximum(jnp.square(level.radii), 1e-30))
  share = jnp.clip(share, 1e-30, 1.)
  most = jnp.logaddexp(jnp.log(share) + reach, jnp.log1p(-share))
  bennett = most + jnp.log1p(-share * reach * jnp.exp(-most))
  return low, low + jnp.minimum(log_cosh(reach), jnp.maximum(bennett, 0.))


def log_cosh(reach: jax.Array) -> jax.Array:
  """Returns log cosh of numbers that are not negative, without overflow."""
  return reach + jnp.log1p(jnp.exp(-2. * reach)) - jnp.log(2.)


# --- Changes.


def rewrite(tree: Tree, rows: jax.Array, before: jax.Array, after: jax.Array,
            leaves: jax.Array | None = None) -> Tree:
  """Returns the tree after live rows were overwritten; each stays in its leaf.

    c += sum (y' - y) / m,    r = max(r + |dc|, |y' - c|)

  Centres stay exact means, scatter exact too and radii bounds, at the cost of
  the rows alone; axes and the spread along them are as they were.

  Args:
    tree: of `before`.
    rows: [P] int32, -1 for none. Of a row that comes several times the last
      counts, as in `table.write`.
    before: [P, D] float32, what the row held in the tree, the same each time
      it comes.
    after: [P, D] float32, what it holds now.
    leaves: [P] int32, the leaf of each row; None looks it up in `leaf_of`.
  """
  if leaves is None:
    leaves = tree.leaf_of[jnp.maximum(rows, 0)]
  order = jnp.argsort(rows, stable=True)
  last = jnp.append(rows[order][1:] != rows[order][:-1], True)
  counts = last & (rows[order] >= 0)
  before, after = before[order], after[order]
  leaf = jnp.where(counts, leaves[order], tree.num_leaves)
  parent = jnp.where(counts, parent_of(tree, leaf), tree.num_parents)
  before, after = before.astype(jnp.float32), after.astype(jnp.float32)
  return dataclasses.replace(
      tree, leaves=_shifted(tree.leaves, leaf, before, after),
      parents=_shifted(tree.parents, parent, before, after))


def _shifted(level, node, before, after):
  """Returns a Level after rows of nodes [P] changed; n stands for no node."""
  count = level.counts.shape[0]
  live = jnp.maximum(level.counts, 1)
  moved = jax.ops.segment_sum(after - before, node, count) / live[:, None]
  centres = level.centres + moved
  reach = jnp.linalg.norm(
      after - centres.at[node].get(mode='fill', fill_value=0.), axis=1)
  radii = jnp.maximum(
      level.radii + jnp.linalg.norm(moved, axis=1),
      jax.ops.segment_max(reach, node, count))
  # E|y - c'|^2 = E|y - c|^2 + (sum of |y' - c|^2 - |y - c|^2) / m - |dc|^2
  old = level.centres.at[node].get(mode='fill', fill_value=0.)
  square = lambda vectors: jnp.sum(jnp.square(vectors - old), axis=1)
  scatter = level.scatter + jax.ops.segment_sum(
      square(after) - square(before), node, count) / live - jnp.sum(
          jnp.square(moved), axis=1)
  touched = jax.ops.segment_max(jnp.ones(node.shape), node, count) > 0
  return dataclasses.replace(
      level, centres=jnp.where(touched[:, None], centres, level.centres),
      radii=jnp.where(touched, radii, level.radii),
      scatter=jnp.where(touched, jnp.maximum(scatter, 0.), level.scatter))


def insert(tree: Tree, rows: jax.Array, vectors: jax.Array) -> Tree:
  """Returns the tree after empty rows were filled, in one pass over them.

  Each goes, in turn, to the leaf of the nearest centre that has room, and moves
  its centre and its parent's.

  Args:
    tree: in which these rows are empty, so that no centre knows them.
    rows: [P] int32, distinct; -1 for none.
    vectors: [P, D] float32, what they hold now.
  """
  num_leaves, num_parents = tree.num_leaves, tree.num_parents
  leaf_index = jnp.arange(num_leaves, dtype=jnp.int32)
  parents = parent_of(tree, leaf_index)
  in_use = leaf_index < tree.first[-1]

  def place(carry, new):
    leaf_of, sizes, leaves, tops = carry
    row, vector = new
    is_row = row >= 0
    old = leaf_of[jnp.maximum(row, 0)]
    filled = jax.ops.segment_sum(sizes, parents, num_parents)
    room = in_use & ((leaf_index == old) | (sizes < tree.leaf_size) & (
        (parents == parents[old]) | (filled < tree.parent_size)[parents]))
    far = jnp.sum(jnp.square(leaves.centres - vector[None]), axis=1)
    leaf = jnp.argmin(jnp.where(room, far, jnp.inf)).astype(jnp.int32)
    leaf_of = jnp.where(
        is_row, leaf_of.at[jnp.maximum(row, 0)].set(leaf), leaf_of)
    step = is_row.astype(jnp.int32)
    sizes = sizes.at[old].add(-step).at[leaf].add(step)
    return (leaf_of, sizes, _joined(leaves, leaf, vector, is_row),
            _joined(tops, parents[leaf], vector, is_row)), None

  (leaf_of, _, leaves, tops), _ = jax.lax.scan(
      place, (tree.leaf_of, jnp.diff(tree.start), tree.leaves, tree.parents),
      (rows, vectors.astype(jnp.float32)))
  return arranged(dataclasses.replace(tree, leaves=leaves, parents=tops),
                  leaf_of)


def _joined(level, node, vector, is_row):
  """Returns a Level after a live row came to a node."""
  count, centre = level.counts[node], level.centres[node]
  moved = (vector - centre) / (count + 1)
  reach = jnp.linalg.norm(vector - centre - moved)
  # With m rows of scatter s, one at distance d of the old mean makes it
  # m / (m + 1) (s + d^2 / (m + 1)).
  square = jnp.sum(jnp.square(vector - centre))
  scatter = count / (count + 1) * (level.scatter[node] + square / (count + 1))
  radius = jnp.where(count > 0, jnp.maximum(
      level.radii[node] + jnp.linalg.norm(moved), reach), 0.)
  put = lambda array, value: array.at[node].set(
      jnp.where(is_row, value, array[node]))
  return dataclasses.replace(
      level, centres=put(level.centres, centre + moved),
      radii=put(level.radii, radius), scatter=put(level.scatter, scatter),
      counts=put(level.counts, count + 1))


def arranged(tree: Tree, leaf_of: jax.Array) -> Tree:
  """Returns the tree with every row in the leaf that is named, [M] int32."""
  rows = jnp.argsort(leaf_of, stable=True).astype(jnp.int32)
  start = jnp.searchsorted(leaf_of[rows], jnp.arange(tree.num_leaves + 1))
  return dataclasses.replace(
      tree, rows=rows, start=start.astype(jnp.int32), leaf_of=leaf_of)


# --- Invariants.


def check(tree: Tree, vectors: np.ndarray, live: np.ndarray, *,
          tolerance: float = 1e-4) -> None:
  """Raises an AssertionError unless the tree is one of these vectors.

  Slow and obvious; for tests.

  Args:
    tree: any.
    vectors: [M, D] float32, what its rows hold.
    live: [M] bool, which of them hold anything.
    tolerance: of centres and radii, in units of the largest norm.
  """
  tree, vectors = jax.device_get(tree), np.asarray(vectors, np.float64)
  num_rows, slack = len(vectors), tolerance * max(
      np.linalg.norm(vectors[live], axis=1).max(initial=1e-30), 1e-30)
  np.testing.assert_array_equal(np.sort(tree.rows), np.arange(num_rows))
  for bounds, last in ((tree.start, num_rows), (tree.first, None)):
    assert bounds[0] == 0 and np.all(np.diff(bounds) >= 0), bounds
    assert last is None or bounds[-1] == last, (bounds[-1], last)
  used = int(tree.first[-1])
  assert used <= tree.num_leaves and np.all(tree.start[used:] == num_rows)
  assert np.all(np.diff(tree.first) <= tree.arity), np.diff(tree.first)
  parent_starts = tree.start[tree.first]
  for level, starts, size in (
      (tree.leaves, tree.start, tree.leaf_size),
      (tree.parents, parent_starts, tree.parent_size)):
    assert np.all(np.diff(starts) <= size), np.diff(starts).max()
    for node, (start, stop) in enumerate(zip(starts, starts[1:])):
      below = tree.rows[start:stop]
      if level is tree.leaves:
        np.testing.assert_array_equal(tree.leaf_of[below], node)
      held = vectors[below[live[below]]]
      assert level.counts[node] == len(held), (node, level.counts[node])
      if len(held):
        centre = held.mean(axis=0)
        np.testing.assert_allclose(
            level.centres[node], centre, rtol=0, atol=slack)
        reach = np.linalg.norm(held - centre, axis=1).max()
        assert reach <= level.radii[node] + slack, (node, reach)
  for p, (low, high) in enumerate(zip(tree.first, tree.first[1:])):
    assert tree.leaves.counts[low:high].sum() == tree.parents.counts[p], p
    for one in range(low, high):
      for other in range(one + 1, high):
        if min(tree.leaves.counts[[one, other]]):
          _check_apart(tree, vectors, live, one, other)


def _check_apart(tree, vectors, live, one, other):
  if np.any(tree.leaves.centres[one] != tree.leaves.centres[other]):
    return
  both = tree.rows[np.isin(tree.leaf_of[tree.rows], (one, other))]
  assert not np.ptp(vectors[both[live[both]]], axis=0).any(), (one, other)
