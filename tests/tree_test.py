"""A tree is what it says after it was built, changed and brought up to date."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import host_table
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import tree as trees
from retrieval_jax import tree_building
from retrieval_jax import types

N, D, LEAF, RANK = 900, 5, 4, 2  # has several parents
CHUNK = 64


def clustered(seed, count=N):
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(30, D))
  return (centres[rng.integers(0, 30, count)]
          + 0.3 * rng.normal(size=(count, D))).astype(np.float32)


def scene(name):
  """Returns vectors [N, D] and which rows are live [N]."""
  vectors, live = clustered(0), np.ones(N, bool)
  if name == 'gaps':
    live = np.random.default_rng(1).random(N) < 0.6
    live[300:420] = False  # whole leaves
    vectors = np.where(live[:, None], vectors, 0)
  if name == 'equal':
    vectors[100:700] = vectors[100]
  if name == 'spread':
    vectors = np.random.default_rng(2).normal(size=(N, D)).astype(np.float32)
    vectors[::50] *= 40  # of very different norms
  if name == 'drifted':
    vectors += 0.2 * np.random.default_rng(3).normal(
        size=(N, D)).astype(np.float32)
  return vectors, live


SCENES = ('clustered', 'gaps', 'equal', 'spread')


def view(vectors, live, devices=1):
  mesh = sharding.make_mesh(devices)
  table = tables.create(
      vectors, np.where(live, np.arange(len(vectors)), -1), mesh=mesh,
      chunk_rows=CHUNK, dtype='float32')
  return types.View(table, lambda rows: rows.embeddings.astype(jnp.float32),
                    jnp.float32(1), types.Scan(mesh, CHUNK))


def on_host(vectors, live, chunk_rows):
  """Returns the source of vectors that stay on the host."""
  table = dataclasses.replace(host_table.create(
      *vectors.shape, live=live, dtype=vectors.dtype), embeddings=vectors)
  return tree_building.OnHost(types.View(
      table, lambda rows: rows.embeddings.astype(jnp.float32), jnp.float32(1),
      types.Scan(sharding.make_mesh(1), CHUNK)), chunk_rows)


def source(name, devices=1):
  return tree_building.OnDevice(view(*scene(name), devices))


@functools.cache
def built(name, devices=1):
  return jax.block_until_ready(tree_building.build(
      jax.random.key(0), source(name, devices), leaf_size=LEAF, rank=RANK))


def maintained(tree, name, margin=0.1, degraded=0.1, devices=1):
  return tree_building.maintain(
      jax.random.key(0), tree, source(name, devices), margin=margin,
      degraded=degraded)


def leaves(tree):
  """Returns the leaves in use as sets of rows."""
  return {frozenset(tree.rows[a:b].tolist())
          for a, b in zip(tree.start, tree.start[1:]) if b > a}


class BuildTest(parameterized.TestCase):

  @parameterized.parameters(*SCENES)
  def test_is_a_tree(self, name):
    trees.check(built(name), *scene(name))

  def test_has_two_levels_here(self):
    tree = built('clustered')
    self.assertGreater(tree.num_parents, 10)
    self.assertGreater(int((np.diff(tree.first) > 1).sum()), 10)

  @parameterized.parameters(2, 8)
  @pytest.mark.slow
  def test_is_the_same_on_any_number_of_devices(self, devices):
    one, other = built('gaps'), built('gaps', devices)
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.start, other.start)
    jax.tree.map(functools.partial(
        np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
                 *[jax.device_get((t.leaves.centres, t.leaves.radii,
                                   t.leaves.spread)) for t in (one, other)])

  @pytest.mark.slow
  def test_is_the_same_from_an_array_of_the_host(self):
    path = self.create_tempfile().full_path
    vectors, live = scene('gaps')
    np.save(path + '.npy', vectors)
    mapped = np.load(path + '.npy', mmap_mode='r')
    host = tree_building.build(
        jax.random.key(0), on_host(mapped, live, chunk_rows=256),
        leaf_size=LEAF, rank=RANK)
    jax.tree.map(functools.partial(
        np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
                 *jax.device_get((built('gaps'), host)))

  def test_the_host_makes_room_for_the_rows_that_there_are(self):
    vectors, live = scene('clustered')
    host = on_host(vectors, live, 256)
    self.assertEqual([host.room(jnp.int32(number), 10)
                      for number in (0, 3, 4, 7, 10)], [3, 3, 6, 9, 10])
    self.assertEqual(source('clustered').room(jnp.int32(3), 10), 10)

  def test_leaves_are_tighter_than_chance(self):
    tree = built('clustered')
    within = float(jnp.sum(tree.leaves.scatter * tree.leaves.counts)) / N
    self.assertLess(within, 0.15 * float(
        np.square(scene('clustered')[0] - scene('clustered')[0].mean(0)
                  ).sum(axis=1).mean()))

  def test_second_moments_are_those_of_the_rows(self):
    vectors, _ = scene('clustered')
    tree = built('clustered')
    for level, starts in ((tree.leaves, tree.start),
                          (tree.parents, tree.start[tree.first])):
      for node in np.argsort(-level.counts)[:3]:
        rows = vectors[tree.rows[starts[node]:starts[node + 1]]]
        covariance = np.cov(rows.T, bias=True)
        np.testing.assert_allclose(
            level.scatter[node], np.trace(covariance), rtol=1e-4)
        values = np.linalg.eigvalsh(covariance)[::-1]
        axis = np.asarray(level.axes[0, node], np.float64)
        np.testing.assert_allclose(
            level.spread[0, node], axis @ covariance @ axis, rtol=1e-3)
        self.assertGreater(level.spread[0, node], 0.8 * values[0])

  @parameterized.parameters((1, 2), (3, 2), (10, 4), (40, 64), (257, 2))
  @pytest.mark.slow
  def test_takes_any_size(self, count, leaf_size):
    vectors, live = clustered(1, count), np.ones(count, bool)
    tree = tree_building.build(
        jax.random.key(0), on_host(vectors, live, 64),
        leaf_size=leaf_size, rank=1)
    trees.check(tree, vectors, live)
    if count == 40:
      self.assertEqual(int(tree.first[-1]), 1)

  def test_cuts_into_pieces_that_fit(self):
    rng = np.random.default_rng(0)
    for size in (1, 2, 7):
      group = rng.integers(0, 5, 60)
      place = rng.normal(size=60)
      piece, count = map(np.asarray, tree_building._cut(
          jnp.asarray(group), jnp.asarray(place), 5, size))
      self.assertLessEqual(np.bincount(piece).max(), size)
      self.assertEqual(count, sum(
          -(-n // -(-n // -(-n // size))) for n in np.bincount(group)))
      for number in range(count):
        self.assertLen(set(group[piece == number]), 1)
      for one in range(5):  # pieces of a group do not overlap
        mine = np.argsort(place[group == one])
        self.assertTrue((np.diff(piece[group == one][mine]) >= 0).all())

  def test_no_rows_and_tiny_leaves_are_refused(self):
    for arguments in ((0, 4), (10, 1)):
      with self.assertRaisesRegex(ValueError, 'sampler.leaf_size of at least'):
        tree_building.shape_of(*arguments)


def multiplied(jaxpr, branch):
  """Returns the multiplications of all matrix products of a program.

  Args:
    jaxpr: of the program.
    branch: max or min, which branch of a conditional is taken.
  """
  total = 0
  for equation in jaxpr.eqns:
    inner = [multiplied(getattr(part, 'jaxpr', part), branch)
             for value in equation.params.values()
             for part in (value if isinstance(value, tuple) else (value,))
             if hasattr(part, 'eqns') or hasattr(part, 'jaxpr')]
    match equation.primitive.name:
      case 'dot_general':
        ((summed, _), _) = equation.params['dimension_numbers']
        shape = equation.invars[0].aval.shape
        total += (np.prod([shape[axis] for axis in summed], dtype=int)
                  * equation.outvars[0].aval.size)
      case 'scan':
        total += equation.params['length'] * sum(inner)
      case 'while':
        assert not sum(inner), 'of a number of turns that is not known'
      case 'cond':
        total += branch(inner)
      case _:
        total += sum(inner)
  return total


class CostTest(parameterized.TestCase):
  """What is said to be multiplied, against what the programs multiply."""

  # Of several parents; of one; in which the last chunk of rows is full.
  @parameterized.parameters((960, 4, 2), (128, 4, 1), (960, 8, 0))
  def test_of_building(self, num_rows, leaf_size, rank):
    rows = source_of(num_rows)
    program = jax.make_jaxpr(lambda: tree_building.build(
        jax.random.key(0), rows, leaf_size=leaf_size, rank=rank))().jaxpr
    found, taken = tree_building.cost_of_build(num_rows, leaf_size, rank)
    self.assertEqual(multiplied(program, max), D * found)
    self.assertEqual(taken, sum(rows.taken))

  @parameterized.parameters((max, True), (min, False))
  @pytest.mark.slow
  def test_of_bringing_up_to_date(self, branch, all_grown):
    num_rows, rank = 960, 2
    tree = tree_building.build(
        jax.random.key(0), source_of(num_rows), leaf_size=LEAF, rank=rank)
    rows = source_of(num_rows)
    program = jax.make_jaxpr(lambda: tree_building.maintain(
        jax.random.key(0), tree, rows, margin=0.1, degraded=0.1))().jaxpr
    found, taken = tree_building.cost_of_maintenance(
        num_rows, LEAF, rank, all_grown * tree.num_parents)
    self.assertEqual(multiplied(program, branch), D * found)
    self.assertEqual(taken, sum(rows.taken))

  @parameterized.parameters(0.1, -1.0)
  @pytest.mark.slow
  def test_the_host_takes_no_more(self, degraded):
    vectors, live = clustered(0, 960), np.ones(960, bool)
    taken = []

    class Counted(tree_building.OnHost):

      def take(self, rows):
        taken.append(len(rows))
        return super().take(rows)

    host = Counted(on_host(vectors, live, 96).view, 96)
    tree = tree_building.build(
        jax.random.key(0), host, leaf_size=LEAF, rank=RANK)
    most = tree_building.cost_of_build(960, LEAF, RANK)[1]
    self.assertBetween(sum(taken), most / 2, most)
    taken.clear()
    tree_building.maintain(
        jax.random.key(0), tree, host, margin=0.1, degraded=degraded)
    most = tree_building.cost_of_maintenance(960, LEAF, RANK, 0)[1]
    self.assertBetween(sum(taken), most / 2, most)


def source_of(num_rows):
  """Returns a source that writes down how many rows it gives, in `taken`."""
  taken = []

  class Counted(tree_building.OnDevice):

    def take(self, rows):
      taken.append(len(rows))
      return super().take(rows)

    def map(self, function, *operands):
      taken.append(self.num_rows)
      return super().map(function, *operands)

    def loop(self, count, body, carry):
      before = len(taken)
      carry = super().loop(count, body, carry)
      taken[before:] = [count * number for number in taken[before:before + 1]]
      return carry

  rows = Counted(view(clustered(0, num_rows), np.ones(num_rows, bool)))
  object.__setattr__(rows, 'taken', taken)
  return rows


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      'rows', 'start', 'counts', 'centres', 'radii', 'leaf_of', 'parents',
      'leaf_size', 'arity')
  def test_finds_what_is_broken(self, what):
    tree, (vectors, live) = built('clustered'), scene('clustered')
    node = int(jnp.argmax(tree.leaves.counts))
    change = lambda **fields: dataclasses.replace(
        tree, leaves=dataclasses.replace(tree.leaves, **fields))
    broken = {
        'rows': lambda: dataclasses.replace(
            tree, rows=tree.rows.at[0].set(tree.rows[1])),
        'start': lambda: dataclasses.replace(
            tree, start=tree.start.at[1].add(1)),
        'counts': lambda: change(counts=tree.leaves.counts.at[node].add(1)),
        'centres': lambda: change(
            centres=tree.leaves.centres.at[node, 0].add(0.01)),
        'radii': lambda: change(radii=tree.leaves.radii.at[node].mul(0.98)),
        'leaf_of': lambda: dataclasses.replace(
            tree, leaf_of=tree.leaf_of.at[3].add(1)),
        'parents': lambda: dataclasses.replace(
            tree, parents=dataclasses.replace(
                tree.parents, radii=0.9 * tree.parents.radii)),
        'leaf_size': lambda: dataclasses.replace(tree, leaf_size=LEAF - 1),
        'arity': lambda: dataclasses.replace(tree, arity=2)}[what]()
    with self.assertRaises(AssertionError):
      trees.check(broken, vectors, live)

  def test_equal_centres_are_of_equal_rows_alone(self):
    vectors = np.array([[0.], [2.], [1.], [1.]], np.float32)
    level = lambda count: trees.Level(
        jnp.ones((count, 1)), jnp.ones(count),
        jnp.full(count, 4 // count, jnp.int32), jnp.ones(count),
        jnp.zeros((0, count, 1), jnp.bfloat16), jnp.zeros((0, count)))
    tree = trees.Tree(
        level(2), level(1), jnp.arange(4), jnp.array([0, 2, 4]),
        jnp.array([0, 2]), jnp.array([0, 0, 1, 1]), jnp.zeros(1), 2, 4, 2)
    with self.assertRaises(AssertionError):
      trees.check(tree, vectors, np.ones(4, bool))
    equal = np.ones((4, 1), np.float32)
    trees.check(tree, equal, np.ones(4, bool))


class ChangeTest(parameterized.TestCase):

  def test_rewritten_rows_move_their_centres(self):
    """Rows of the same leaf, one that comes twice, and none."""
    tree, (vectors, live) = built('gaps'), scene('gaps')
    rows = np.flatnonzero(live)[[0, 1, 2, 90, 0, 200]]
    mates = tree.rows[tree.start[tree.leaf_of[rows[3]]]:][:2]
    rows = np.concatenate([rows, mates[live[mates]], [-1, rows[0]]])
    fresh = clustered(7, len(rows))
    new = jax.jit(trees.rewrite)(tree, rows, vectors[rows], fresh)
    after = vectors.copy()
    for row, vector in zip(rows, fresh):
      if row >= 0:
        after[row] = vector
    trees.check(new, after, live)
    for level, groups in ((new.leaves, new.leaf_of),
                          (new.parents, trees.parent_of(new, new.leaf_of))):
      for node in np.unique(np.asarray(groups)[rows[rows >= 0]]):
        held = after[(np.asarray(groups) == node) & live]
        np.testing.assert_allclose(
            level.scatter[node], held.var(axis=0).sum(), rtol=1e-3, atol=1e-5)
    with self.assertRaises(AssertionError):
      trees.check(tree, after, live)

  def test_nothing_rewritten_changes_nothing(self):
    tree = built('clustered')
    new = trees.rewrite(tree, jnp.full(3, -1), jnp.ones((3, D)),
                        jnp.zeros((3, D)))
    jax.tree.map(np.testing.assert_array_equal, new, tree)

  def test_inserted_rows_go_to_the_nearest_leaf_with_room(self):
    tree, (vectors, live) = built('gaps'), scene('gaps')
    rows = np.append(np.flatnonzero(~live)[:40], -1).astype(np.int32)
    fresh = clustered(8, len(rows))
    new = jax.jit(trees.insert)(tree, rows, fresh)
    after, there = vectors.copy(), live.copy()
    after[rows[:-1]], there[rows[:-1]] = fresh[:-1], True
    trees.check(new, after, there)
    with self.assertRaises(AssertionError):
      trees.check(tree, after, there)
    first = trees.insert(tree, rows[:1], fresh[:1])
    size = np.diff(tree.start)
    of_parent = np.diff(tree.start[tree.first])
    parent = np.asarray(trees.parent_of(tree, jnp.arange(tree.num_leaves)))
    far = np.linalg.norm(tree.leaves.centres - fresh[:1], axis=1)
    own = int(tree.leaf_of[rows[0]])
    room = (np.arange(tree.num_leaves) < tree.first[-1]) & (
        (size < LEAF) & ((of_parent < tree.parent_size)[parent]
                         | (parent == parent[own]))
        | (np.arange(tree.num_leaves) == own))
    self.assertEqual(int(first.leaf_of[rows[0]]),
                     int(np.argmin(np.where(room, far, np.inf))))

  def test_one_target_after_the_other_makes_a_tree(self):
    """From an empty table to a full one."""
    count = 24
    vectors, live = clustered(3, count), np.zeros(count, bool)
    tree = tree_building.build(
        jax.random.key(0), on_host(0 * vectors, live, 32),
        leaf_size=LEAF, rank=0)
    tree = trees.insert(
        tree, np.arange(count, dtype=np.int32), jnp.asarray(vectors))
    trees.check(tree, vectors, ~live)
    self.assertEqual(int(tree.leaves.counts.sum()), count)


class MaintainTest(parameterized.TestCase):

  @parameterized.parameters(0.05, 100.0)
  @pytest.mark.slow
  def test_is_a_tree_of_the_rows_as_they_are_now(self, degraded):
    tree, (vectors, live) = built('clustered'), scene('drifted')
    with self.assertRaises(AssertionError):
      trees.check(tree, vectors, live)
    new, info = maintained(tree, 'drifted', degraded=degraded)
    trees.check(new, vectors, live)
    if degraded == 100.0:
      self.assertGreater(info['moved'], 0.02)
      self.assertEqual(info['grown'], 0.0)
      np.testing.assert_array_equal(new.first, tree.first)
    else:
      self.assertGreater(info['grown'], 0.5)

  @pytest.mark.slow
  def test_what_has_not_moved_stays(self):
    new, info = maintained(built('gaps'), 'gaps', margin=0.9)
    self.assertEqual((float(info['moved']), float(info['grown'])), (0., 0.))
    jax.tree.map(functools.partial(
        np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
                 *jax.device_get((new, built('gaps'))))

  @parameterized.parameters(1, 8)
  @pytest.mark.slow
  def test_grown_anew_it_equals_a_fresh_one(self, devices):
    """Also after rows were inserted and moved in between, up to order."""
    tree = built('clustered')
    moved, _ = maintained(tree, 'drifted', degraded=100.0)
    self.assertNotEqual(leaves(moved), leaves(tree))
    moved = jax.device_put(
        moved, sharding.replicated(sharding.make_mesh(devices)))
    new, info = maintained(moved, 'clustered', degraded=-1, devices=devices)
    self.assertEqual(float(info['grown']), 1.0)
    self.assertEqual(leaves(new), leaves(tree))

  @pytest.mark.slow
  def test_a_parent_that_has_degraded_is_grown_anew_alone(self):
    tree, (vectors, live) = built('clustered'), scene('clustered')
    rows = tree.rows[tree.start[tree.first[4]]:tree.start[tree.first[5]]]
    vectors = vectors.copy()
    vectors[rows] += np.random.default_rng(5).normal(
        size=(len(rows), D)).astype(np.float32)
    new, info = tree_building.maintain(
        jax.random.key(0), tree, tree_building.OnDevice(view(vectors, live)),
        margin=0.9, degraded=0.1)
    trees.check(new, vectors, live)
    np.testing.assert_allclose(info['grown'], 1 / tree.num_parents)
    changed = leaves(tree) ^ leaves(new)
    self.assertTrue(changed)
    self.assertContainsSubset(frozenset.union(*changed), rows.tolist())
    self.assertGreater(new.built_scatter[4], tree.built_scatter[4])

  @pytest.mark.slow
  def test_a_row_that_left_its_leaf_moves_to_the_other(self):
    """Two leaves of one parent, at 0 and at 10; a row of one jumps."""
    vectors = np.array([0, .1, .2, 10, 10.1, 10.2], np.float32)[:, None]
    live = np.ones(6, bool)
    make = lambda vectors: on_host(vectors, live, 8)
    tree = tree_building.build(
        jax.random.key(3), make(vectors), leaf_size=4, rank=0)
    self.assertEqual(leaves(tree), {frozenset({0, 1, 2}),
                                    frozenset({3, 4, 5})})
    vectors[2] = 9.0
    for margin, where in ((0.1, {2, 3, 4, 5}), (0.9, {0, 1, 2})):
      new, info = tree_building.maintain(
          jax.random.key(0), tree, make(vectors), margin=margin, degraded=1e9)
      trees.check(new, vectors, live)
      self.assertIn(frozenset(where), leaves(new))
      np.testing.assert_allclose(info['moved'], (margin < 0.5) / 6)

  @pytest.mark.slow
  def test_no_more_rows_move_than_there_is_room_for(self):
    """Those with the most to gain; five want to go where one more fits."""
    vectors = np.array([0, 0, 0, 0, 10, 10, 10], np.float32)[:, None]
    leaf = jnp.array([0, 0, 0, 0, 1, 1, 1])
    vectors[1:4, 0] = [9.5, 9.9, 9.7]
    moved, count = tree_building._move(
        leaf, jnp.asarray(vectors), jnp.ones(7, bool), 2, 2, 4, 0.1)
    np.testing.assert_array_equal(moved, [0, 0, 1, 0, 1, 1, 1])
    self.assertEqual(count, 1)


class MassTest(parameterized.TestCase):

  @parameterized.product(name=SCENES, norm=(0.1, 1.0, 10.0))
  @pytest.mark.slow
  def test_bounds_hold(self, name, norm):
    """Of both levels; random directions, and those of rows."""
    vectors, live = scene(name)
    tree = built(name)
    rng = np.random.default_rng(0)
    queries = np.concatenate([rng.normal(size=(8, D)), vectors[live][:8]])
    queries = norm * queries / np.linalg.norm(queries, axis=1, keepdims=True)
    scores = np.where(live, queries @ vectors.T.astype(np.float64), -np.inf)
    for level, group in (
        (tree.leaves, tree.leaf_of),
        (tree.parents, trees.parent_of(tree, tree.leaf_of))):
      low, high = map(np.asarray, trees.log_mass_bounds(
          level, jnp.asarray(queries, jnp.float32)))
      for node in np.flatnonzero(level.counts):
        held = scores[:, np.asarray(group) == node]
        true = np.logaddexp.reduce(held, axis=1) - np.log(level.counts[node])
        slack = 1e-4 * (1 + np.abs(true))
        self.assertTrue((low[:, node] <= true + slack).all())
        self.assertTrue((true <= high[:, node] + slack).all())

  def test_the_upper_bound_is_the_lesser_of_two(self):
    """cosh a, and Bennett's where most rows are near the centre."""
    level = lambda scatter: trees.Level(
        jnp.zeros((1, 2)), jnp.array([2.]), jnp.array([3]),
        jnp.array([scatter]), jnp.zeros((0, 1, 2), jnp.bfloat16),
        jnp.zeros((0, 1)))
    query = jnp.array([[0., 1.5]])
    a = 3.0
    for scatter in (4.0, 0.4, 0.0):
      share = scatter / 4
      _, high = trees.log_mass_bounds(level(scatter), query)
      np.testing.assert_allclose(high[0, 0], np.log(min(
          np.cosh(a), 1 + share * (np.exp(a) - 1 - a))), rtol=1e-5, atol=1e-6)
    _, high = trees.log_mass_bounds(level(4.0), 1e4 * query)
    np.testing.assert_allclose(high[0, 0], 3e4 - np.log(2), rtol=1e-5)

  @pytest.mark.slow
  def test_masses_are_to_second_order(self):
    """With as many axes as dimensions the variance is exact."""
    vectors, live = np.random.default_rng(0).normal(size=(60, D)), np.ones(
        60, bool)
    vectors = (vectors * [2, 1, 0.5, 0.25, 0.1]).astype(np.float32)
    tree = tree_building.build(
        jax.random.key(0), on_host(vectors, live, 64),
        leaf_size=64, rank=D)
    queries = np.random.default_rng(0).normal(size=(6, D)).astype(np.float32)
    scores = queries @ vectors.T
    np.testing.assert_allclose(
        trees.log_mass(tree.parents, jnp.asarray(queries))[:, 0],
        scores.mean(axis=1) + scores.var(axis=1) / 2, rtol=2e-2)
    own = trees.take(tree.leaves, jnp.zeros((6, 1), jnp.int32))
    np.testing.assert_allclose(
        trees.log_mass(own, jnp.asarray(queries)),
        trees.log_mass(tree.leaves, jnp.asarray(queries))[:, :1], rtol=1e-5)

  @pytest.mark.slow
  def test_more_moments_are_nearer(self):
    vectors, live = clustered(4, 300), np.ones(300, bool)
    queries = np.random.default_rng(0).normal(size=(50, D)).astype(np.float32)
    scores = queries @ vectors.T
    errors = []
    for rank in (0, 1, D - 1):
      tree = tree_building.build(
          jax.random.key(0), on_host(vectors, live, 512),
          leaf_size=32, rank=rank)
      mean = np.asarray(trees.log_mass(tree.leaves, jnp.asarray(queries)))
      error = [
          np.abs(mean[:, leaf] - np.log(np.exp(scores[
              :, np.asarray(tree.leaf_of) == leaf]).mean(axis=1))).mean()
          for leaf in range(int(tree.first[-1]))]
      errors.append(np.mean(error))
    self.assertLess(errors[1], 0.6 * errors[0])
    self.assertLess(errors[2], errors[1])


if __name__ == '__main__':
  absltest.main()
