"""What every registered part promises: a new one is tested by its line.

Each is made from its default options and SIZES, as a run makes it.
"""

import contextlib
import dataclasses
import functools
from typing import NamedTuple
from unittest import mock
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import ceiling as ceilings
from retrieval_jax import compatibility
from retrieval_jax import objectives
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.factory import defaults
from retrieval_jax.factory import methods
from retrieval_jax.factory import registries
from retrieval_jax.objectives import columns
from retrieval_jax.objectives import distillation
from retrieval_jax.objectives import embedding_distillation
from retrieval_jax.objectives import estimators
from retrieval_jax.objectives import guide
from retrieval_jax.objectives import marginal
from tests import helpers
from tests import made_up_objectives
from tests import made_up_readers
from tests import made_up_samplers

N, D, B, K = 200, 6, 8, 3  # targets, dimensions, queries, draws
ROWS = 512  # of a table that a sampler scans, on any number of devices
SCALE, STEP = 5.0, 4

SIZES = {
    'batch_size': B,
    'memory.capacity': 20, 'memory.chunk_rows': 64,
    'corrector.hidden': 8, 'corrector.updates_per_step': 2,
    'corrector.num_anchors': 2, 'corrector.learning_rate': 1e-2,
    'corrector.num_landmarks': 24,
    'sampler.num_negatives': K, 'sampler.shortlist': 8,
    'sampler.pool_size': 16}
"""Small values of options, good for every entry at once. An entry that cannot
be made from these and the defaults needs another default, or a line here."""

MEMORIES = {name: {'kind': name} for name in registries.MEMORIES} | {
    'fifo': {'kind': 'ring', 'replacement': 'fifo'},
    'prefilled': {'kind': 'ring', 'prefill': True},
    'unpadded': {'kind': 'ring', 'capacity': 16, 'chunk_rows': 2},
    'half_precision': {'kind': 'ring', 'dtype': 'bfloat16'}}
MADE_UP = {'made_up_on_device': made_up_samplers.Rare,
           'made_up_on_host': made_up_samplers.OnHost,
           'made_up_of_ids': made_up_samplers.Pool}
SAMPLERS = {name: {'name': name} for name in (*registries.SAMPLERS, *MADE_UP)
            } | {'top_k_of_a_depth': {'name': 'top_k', 'depth': 8}} | {
                f'{name}_by_{order}': {'name': name, 'pool_order': order}
                for name in ('pool', 'pool_gumbel')
                for order in ('uniform', 'softmax')} | {
                name: {'name': 'tree', 'leaf_size': 8, 'opened': 2} | options
                for name, options in (
                    ('tree_of_proposals', {'chain_steps': 0}),
                    ('tree_along_a_beam', {
                        'leaf_size': 4, 'beam': 3, 'chain_steps': 0}),
                    ('tree_resampling', {
                        'accept': 'resampling', 'step_proposals': 2}),
                    ('tree_rejection', {
                        'accept': 'rejection', 'moments': 0, 'opened': 0}))}
CORRECTORS = {name: {'name': name} for name in registries.CORRECTORS} | {
    'procrustes': {'name': 'linear', 'fit': 'procrustes'},
    'mlp_of_age': {'name': 'mlp', 'condition_on_age': True},
    'mlp_average': {'name': 'mlp', 'average_decay': 0.9},
    'nystrom_linear': {'name': 'nystrom', 'kernel': 'linear'},
    'nystrom_greedy': {'name': 'nystrom', 'landmarks': 'greedy'}}
"""Case -> options of its section: every entry as it is, then the kinds of one
entry that options make, and samplers of the kinds that none here is of."""


def config(**sections):
  """Returns the defaults with SIZES and the options of some sections."""
  made = defaults.get_config()
  made.update_from_flattened_dict(SIZES)
  for section, options in sections.items():
    made[section].update(options)
  return made


@contextlib.contextmanager
def from_defaults():
  """Has the made-up samplers registered; says what an entry must have."""
  with warnings.catch_warnings(), mock.patch.dict(
      registries.SAMPLERS, MADE_UP):
    warnings.simplefilter('ignore')  # options that another entry reads
    try:
      yield
    except (TypeError, ValueError) as error:
      error.add_note(
          'A registered entry is made from its options in factory/defaults.py '
          'and from SIZES of tests/conformance_test.py; add there what it '
          'lacks.')
      raise


def make_memory(case):
  with from_defaults():
    return registries.make(
        registries.MEMORIES, 'memory.kind',
        config(memory=MEMORIES[case]).memory, num_targets=N)


def make_method(reader=None, **sections):
  with from_defaults():
    return methods.make_method(
        config(**sections), N, num_queries=2 * B, reader=reader)


def make_sampler(case):
  return make_method(sampler=SAMPLERS[case]).sampler


def make_corrector(case, **options):
  return make_method(corrector=CORRECTORS[case] | options).corrector


jit = functools.partial(jax.jit, compiler_options={
    'xla_backend_optimization_level': 0})  # quick to compile


def vectors(seed, *shape):
  made = np.random.default_rng(seed).normal(size=(*shape, D))
  return (made / np.linalg.norm(made, axis=-1, keepdims=True)).astype(
      np.float32)


def looks(tree):
  """Returns structure, shapes and dtypes: what a step is compiled for."""
  leaves, structure = jax.tree.flatten(tree)
  return structure, [(x.shape, x.dtype) for x in leaves]


def places(tree):
  """Returns the sharding of each array, None for one on the host."""
  return [getattr(x, 'sharding', None) for x in jax.tree.leaves(tree)]


class ValueTest(parameterized.TestCase):

  @parameterized.parameters(
      *[(make_memory, case) for case in MEMORIES],
      *[(make_sampler, case) for case in SAMPLERS],
      *[(make_corrector, case) for case in CORRECTORS])
  def test_is_a_value(self, make, case):
    """It is part of what a step is compiled for, and printed as a config."""
    part, again = make(case), make(case)
    self.assertEqual(part, again)
    self.assertEqual(hash(part), hash(again))
    self.assertIn(type(part).__name__, repr(part))
    with self.assertRaises(dataclasses.FrozenInstanceError):
      part.anything = 1


# --- Memories.

EVENTS = (
    ('push', (5, 90, -1, 7, 7, 199, 0, 31, 8, 9)),
    ('write', (90, 8, -1, 150, 8, 31, -1, 2, 3, 0)),
    ('push', (7, 40, 41, 42, 43, 44, 45, 46, 47, 48)),
    ('push', (0, 60, 61, 62, 63, -1, 64, 90, 65, 66)),
    ('write', (48, 66, 7, 5, 64, 60, 61, -1, -1, 44)))
"""What happens to a memory, at the steps after STEP, and to which targets. More
of them come in than a ring holds."""

ASKED = np.array([*range(N), -1, N, N + 400], np.int32)


class Life(NamedTuple):
  """Tables before and after each of EVENTS; what is read from each; numpy."""
  tables: list
  rows: list  # of ASKED
  taken: list  # at the rows of ASKED, [3, -1]
  ages: list


@functools.cache
def life(case, devices):
  memory, mesh = make_memory(case), sharding.make_mesh(devices)
  ids = memory.first_ids(N, seed=3)
  first = memory.create(vectors(STEP, N)[ids], ids, dim=D, mesh=mesh, step=STEP)

  def change(kind, table, ids, fresh, step):
    if kind == 'push':
      table = memory.push(table, ids, fresh, step)
    else:
      table = memory.write(table, memory.rows_of(table, ids), fresh, step)
    return jax.lax.with_sharding_constraint(
        table, sharding.state_shardings(table, mesh))

  def read(table, step):
    rows = memory.rows_of(table, ASKED)
    taken = memory.take(table, rows.reshape(7, -1))
    return rows, taken, tables.age(taken, step)

  change, read, lived = jit(change, static_argnums=0), jit(read), [first]
  for step, (kind, ids) in enumerate(EVENTS, STEP + 1):
    lived.append(change(kind, lived[-1], np.array(ids, np.int32),
                        vectors(step, N)[np.array(ids)], step))
  seen = [read(table, step) for step, table in enumerate(lived, STEP)]
  return Life(*jax.device_get((lived, *map(list, zip(*seen)))))


def remembered(case, devices):
  """Yields (table, {id: (embedding, step)}) as the events would have it.

  Of the targets that a table holds: which of them stay is the memory's affair.
  """
  story = life(case, devices)
  held = {}
  for step, (kind, ids) in enumerate([('push', story.tables[0].ids), *EVENTS],
                                     STEP):
    before = set(held)
    for target in ids:
      if target >= 0 and (kind == 'push' or target in before):
        held[int(target)] = vectors(step, N)[target], step
    table = story.tables[step - STEP]
    held = {i: held.get(i) for i in table.ids.tolist() if i >= 0}
    yield table, held


@parameterized.product(case=tuple(MEMORIES), devices=(1, 8))
class MemoryTest(parameterized.TestCase):

  def test_holds_what_came_last_of_each_target(self, case, devices):
    for table, held in remembered(case, devices):
      for row in np.flatnonzero(table.ids >= 0):
        embedding, step = held[int(table.ids[row])]
        np.testing.assert_allclose(
            table.embeddings[row].astype(np.float32), embedding,
            rtol=2e-7 if table.embeddings.dtype == np.float32 else 2**-8)
        self.assertEqual(table.written[row], step)

  def test_begins_with_its_first_ids(self, case, devices):
    memory, first = make_memory(case), life(case, devices).tables[0]
    ids = memory.first_ids(N, seed=3)
    np.testing.assert_array_equal(ids, memory.first_ids(N, seed=3))
    self.assertTrue(np.issubdtype(ids.dtype, np.integer))
    self.assertLessEqual(len(ids), memory.num_slots)
    self.assertTrue(np.isin(ids, np.arange(N)).all())
    np.testing.assert_array_equal(first.ids[:len(ids)], ids)
    np.testing.assert_array_equal(first.ids[len(ids):], -1)
    self.assertEqual(memory.holds_corpus, first.rows_are_ids)
    if memory.holds_corpus:
      np.testing.assert_array_equal(ids, np.arange(N))

  def test_holds_each_target_once_and_none_beyond_its_slots(
      self, case, devices):
    memory, seen = make_memory(case), set()
    self.assertEqual(memory.kind, MEMORIES[case]['kind'])
    for table, (kind, ids) in zip(
        life(case, devices).tables,
        [('push', life(case, devices).tables[0].ids), *EVENTS]):
      self.assertEqual(table.num_slots, memory.num_slots)
      self.assertEqual(len(table.ids) % (devices * memory.chunk_rows), 0)
      np.testing.assert_array_equal(table.ids[memory.num_slots:], -1)
      live = table.ids[table.ids >= 0]
      self.assertLen(set(live), len(live))
      if kind == 'push':
        seen |= set(ids) - {-1}
        if memory.num_slots:
          self.assertContainsSubset(set(ids) - {-1}, set(live))
      self.assertLen(live, min(len(seen), memory.num_slots))

  def test_finds_and_takes_the_row_of_each_target(self, case, devices):
    story = life(case, devices)
    for step, (table, rows, taken, ages) in enumerate(zip(*story), STEP):
      where = {int(i): row for row, i in enumerate(table.ids) if i >= 0}
      np.testing.assert_array_equal(rows, [where.get(i, -1) for i in ASKED])
      rows = rows.reshape(7, -1)
      np.testing.assert_array_equal(
          taken.ids, np.where(rows >= 0, ASKED.reshape(7, -1), -1))
      np.testing.assert_array_equal(
          taken.embeddings[rows >= 0], table.embeddings[rows[rows >= 0]])
      self.assertTrue(np.isfinite(taken.embeddings.astype(np.float32)).all())
      np.testing.assert_array_equal(
          ages, np.where(rows >= 0, step - table.written[rows], -1))

  def test_a_write_moves_nothing(self, case, devices):
    story = life(case, devices).tables
    for table in story:
      self.assertEqual(looks(table), looks(story[0]))
    for before, after, (kind, _) in zip(story, story[1:], EVENTS):
      if kind == 'write':
        same = dataclasses.replace(
            after, embeddings=before.embeddings, written=before.written)
        jax.tree.map(np.testing.assert_array_equal, same, before)


class MemoryOnDevicesTest(parameterized.TestCase):

  @parameterized.parameters(*MEMORIES)
  def test_its_number_of_devices_does_not_matter(self, case):
    slots = make_memory(case).num_slots
    for one, eight in zip(life(case, 1).tables, life(case, 8).tables):
      jax.tree.map(np.testing.assert_array_equal,
                   *[jax.tree.map(lambda x: x[:slots], table)
                     for table in (one, eight)])

  @parameterized.parameters(*MEMORIES)
  def test_its_rows_are_shared_out(self, case):
    mesh, memory = sharding.make_mesh(8), make_memory(case)
    ids = memory.first_ids(N, seed=0)
    table = memory.create(vectors(0, N)[ids], ids, dim=D, mesh=mesh)
    for leaf in jax.tree.leaves(table):
      self.assertEqual(leaf.sharding, sharding.rows(mesh))


# --- Samplers.

KNOWN = 7  # a known positive of every query
EXCLUDED = np.random.default_rng(0).integers(0, N, (B, K)).astype(np.int32)
EXCLUDED[:, 0], EXCLUDED[1, 1] = KNOWN, -1
POSITIVES = EXCLUDED[:, 1]
OTHER = int(np.setdiff1d(np.arange(N), EXCLUDED)[0])  # is no query's
POOLS = np.random.default_rng(2).integers(0, N, (2 * B, 40)).astype(np.int32)
POOLS[:, 1], POOLS[:, 2], POOLS[1, 3:] = OTHER, KNOWN, -1


def remembered_ids(scene):
  """Returns the ids [N] of a table's rows, -1 where a row is empty."""
  ids = np.random.default_rng(1).permutation(N)
  if scene in ('gaps', 'moved'):
    return np.where(np.arange(N) % 3 == 1, -1, ids)
  ids[:] = -1
  if scene == 'two':
    ids[:2] = KNOWN, OTHER
  return ids


def doubled(table):
  """Returns what a corrector makes of a slice; exactly, on any device."""
  return 2 * table.embeddings[..., ::-1]


def view_of(table, mesh, correct=doubled):
  return types.View(table, correct, jnp.float32(SCALE), types.Scan(
      mesh, ROWS // sharding.num_shards(mesh)))


@functools.cache
def table_of(scene, mesh):
  return tables.create(
      vectors(3 if scene == 'moved' else 2, N), remembered_ids(scene),
      mesh=mesh, chunk_rows=ROWS // sharding.num_shards(mesh), dtype='float32')


@functools.cache
def request_of(scene):
  mesh = sharding.make_mesh(1)
  return jax.device_get(helpers.request(
      vectors(4, B), table_of(scene, mesh), exclude=EXCLUDED,
      positives=POSITIVES))


class Played(NamedTuple):
  """What a sampler did."""
  proposals: dict  # by scene, numpy
  states: list  # looks and places, after `init`, `update` and `rebuild`
  info: dict
  corrected: bool  # whether `propose` did


@functools.cache
def play(case, devices):
  sampler, mesh = make_sampler(case), sharding.make_mesh(devices)
  asked = []

  def correct(table):
    asked.append(table)
    return doubled(table)

  compiled = (lambda function: function) if sampler.on_host else jit
  table = table_of('gaps', mesh)
  # As a step makes and keeps states, see `training.step`.
  init = lambda table: sampler.init(
      jax.random.key(1), view_of(table, mesh, correct))
  where = None
  if not sampler.on_host:
    where = sharding.state_shardings(jax.eval_shape(init, table), mesh)
    init = jax.jit(init, out_shardings=where)
  first = init(table)
  if sampler.draws_from_pools:
    first = sampler.rebuild(first, jax.random.key(3), types.Episode(
        0, view_of(table, mesh), None, None, None, POOLS))
  asked.clear()  # `rows_scored` is what a proposal costs

  @compiled
  def draw(state, table, request):
    return sampler.propose(
        state, jax.random.key(0), request, view_of(table, mesh, correct))

  proposals = {scene: draw(first, table_of(scene, mesh), request_of(scene))
               for scene in ('gaps', 'moved', 'two', 'empty')}

  def update(state, table):
    rows = jnp.array([0, 4, -1, 6, 0, 9, 10, -1])
    stale = tables.take(table, rows)
    state, info = sampler.update(state, types.Observation(
        stale, vectors(5, len(rows)), stale.ids >= 0, vectors(6, B),
        jnp.float32(SCALE), jnp.int32(3), rows))
    if where is not None:
      state = jax.lax.with_sharding_constraint(state, where)
    return state, info

  updated, info = compiled(update)(first, table)
  rebuilt = sampler.rebuild(updated, jax.random.key(2), types.Episode(
      5, view_of(table, mesh), lambda ids: vectors(4, 2 * B)[ids],
      lambda ids: vectors(2, N)[ids],
      lambda ids: EXCLUDED[np.asarray(ids) % B]))
  return Played(
      jax.device_get(proposals),
      [(looks(state), places(state)) for state in (first, updated, rebuilt)],
      jax.device_get(info), bool(asked))


def logits_of(scene):
  """Returns corrected logits [B, N] of the rows, -inf where they are empty."""
  rows = 2 * vectors(3 if scene == 'moved' else 2, N)[:, ::-1]
  logits = SCALE * vectors(4, B) @ rows.T
  return np.where(remembered_ids(scene)[None] >= 0, logits, -np.inf)


def allowed(scene):
  """Returns [B, N] bool, the rows that may be drawn for a query."""
  ids = remembered_ids(scene)
  return (ids >= 0)[None] & ~(
      ids[None, :, None] == EXCLUDED[:, None, :]).any(axis=2)


@parameterized.product(case=tuple(SAMPLERS), devices=(1, 8))
class SamplerTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_a_proposal_is_consistent(self, case, devices):
    sampler = make_sampler(case)
    for scene, proposal in play(case, devices).proposals.items():
      shape, mask = (B, sampler.num_negatives), proposal.mask
      for field, dtype in (('rows', np.int32), ('ids', np.int32),
                           ('logits', np.float32), ('log_q', np.float32),
                           ('mask', np.bool_)):
        array = getattr(proposal, field)
        self.assertEqual((array.shape, array.dtype), (shape, dtype), field)
      self.assertEqual(proposal.log_z.shape, (B,))
      self.assertEqual(proposal.log_z.dtype, np.float32)
      np.testing.assert_array_equal(mask, proposal.ids >= 0)
      np.testing.assert_array_equal(proposal.ids[~mask], -1)
      self.assertFalse(np.isnan(proposal.logits).any())
      if not sampler.draws_from_memory:
        np.testing.assert_array_equal(proposal.rows, -1)
        continue
      np.testing.assert_array_equal(mask, proposal.rows >= 0)
      np.testing.assert_array_equal(proposal.rows[~mask], -1)
      np.testing.assert_array_equal(
          proposal.ids[mask], remembered_ids(scene)[proposal.rows[mask]])
      np.testing.assert_allclose(
          proposal.logits[mask], np.take_along_axis(
              logits_of(scene), proposal.rows, axis=1)[mask], rtol=1e-5,
          atol=1e-5)

  def test_no_positive_and_no_empty_row_is_drawn(self, case, devices):
    """All rows together are for the batch: the loss masks known positives."""
    sampler = make_sampler(case)
    for scene, proposal in play(case, devices).proposals.items():
      drawn = proposal.ids[proposal.mask]
      if 'every_row' in sampler.gives:
        live = remembered_ids(scene)
        np.testing.assert_array_equal(np.sort(drawn), np.sort(live[live >= 0]))
        continue
      hit = proposal.ids[:, :, None] == EXCLUDED[:, None, :]
      self.assertFalse((hit.any(axis=2) & proposal.mask).any())
      if sampler.draws_from_memory:
        self.assertTrue(np.isin(drawn, remembered_ids(scene)).all())
        if scene == 'gaps':
          self.assertEqual(len(drawn) > 0, sampler.num_negatives > 0)
        if scene == 'empty':
          self.assertEmpty(drawn)

  def test_of_two_targets_only_the_negative_is_drawn(self, case, devices):
    sampler = make_sampler(case)
    if not sampler.draws_from_memory or 'every_row' in sampler.gives:
      return  # it does not draw these, or both of them
    proposal = play(case, devices).proposals['two']
    self.assertContainsSubset(proposal.ids[proposal.mask].tolist(), [OTHER])
    if 'log_z' in sampler.gives:  # without replacement
      np.testing.assert_array_equal(proposal.mask.sum(axis=1), 1)
      np.testing.assert_allclose(
          proposal.log_z, proposal.logits[proposal.mask], rtol=1e-6,
          atol=1e-6)
    if sampler.gives & {'log_q', 'log_z'}:
      self.assertTrue(proposal.mask.any())
      np.testing.assert_allclose(
          proposal.log_q[proposal.mask], 0.0, atol=1e-6)

  @pytest.mark.slow
  def test_gives_what_it_says(self, case, devices):
    sampler = make_sampler(case)
    self.assertContainsSubset(sampler.gives, {'log_q', 'log_z', 'every_row'})
    proposal = play(case, devices).proposals['gaps']
    mask, log_q = proposal.mask, proposal.log_q[proposal.mask]
    self.assertTrue(np.isfinite(proposal.log_q).all())
    if 'log_z' not in sampler.gives:
      self.assertTrue(np.isnan(proposal.log_z).all())
    else:
      np.testing.assert_allclose(
          log_q, (proposal.logits - proposal.log_z[:, None])[mask], rtol=1e-5,
          atol=1e-6)
      for rows in proposal.rows:  # one after the other, without replacement
        self.assertLen(set(rows[rows >= 0]), (rows >= 0).sum())
    log_z = np.logaddexp.reduce(
        np.where(allowed('gaps'), logits_of('gaps'), -np.inf), axis=1)
    if sampler.gives >= {'log_q', 'log_z'}:  # any row may be drawn
      np.testing.assert_allclose(proposal.log_z, log_z, rtol=1e-5)
    elif 'log_z' in sampler.gives:
      self.assertTrue((proposal.log_z < log_z + 1e-5).all())
    if 'log_q' in sampler.gives:
      self.assertTrue((log_q < 0).all())
      self.assertTrue((log_q > -np.inf).all())

  def test_reads_and_scores_what_it_says(self, case, devices):
    sampler = make_sampler(case)
    played = play(case, devices)
    scored, corrected = sampler.rows_scored(B, ROWS)
    self.assertEqual(played.corrected, corrected > 0)
    self.assertGreaterEqual(scored, corrected // B)
    if sampler.reads_embeddings:
      self.assertGreaterEqual(scored, B * sampler.num_negatives)
    else:
      jax.tree.map(
          np.testing.assert_array_equal,
          *[(proposal.rows, proposal.ids, proposal.mask) for proposal in (
              played.proposals['gaps'], played.proposals['moved'])])

  def test_its_state_keeps_its_looks(self, case, devices):
    """Else a step would be compiled anew, or not be restored."""
    sampler, played = make_sampler(case), play(case, devices)
    first, updated, rebuilt = played.states
    self.assertEqual(updated, first)
    self.assertEqual(rebuilt, first)
    for place in first[1]:
      self.assertEqual(place is None, sampler.on_host)
    for name, value in played.info.items():
      self.assertEqual(np.shape(value), (), name)
      self.assertTrue(np.isfinite(value), name)


class SamplerOnDevicesTest(parameterized.TestCase):

  @parameterized.parameters(*SAMPLERS)
  def test_its_number_of_devices_does_not_matter(self, case):
    one, eight = (play(case, devices).proposals for devices in (1, 8))
    for scene in one:
      for field in ('rows', 'ids', 'mask'):
        np.testing.assert_array_equal(
            getattr(one[scene], field), getattr(eight[scene], field), scene)
      for field in ('logits', 'log_q', 'log_z'):
        np.testing.assert_allclose(
            getattr(one[scene], field), getattr(eight[scene], field),
            rtol=1e-5, atol=1e-5, err_msg=scene)


# --- Correctors.

STALE = vectors(0, 48)
FRESH = vectors(1, 48) * 0.3 + STALE


def slice_of(embeddings, dtype=jnp.float32):
  """Returns a slice of a table: rows of different ages."""
  shape = embeddings.shape[:-1]
  number = jnp.arange(np.prod(shape, dtype=int), dtype=jnp.int32)
  return types.TargetTable(
      jnp.asarray(embeddings, dtype), number.reshape(shape),
      (-number).reshape(shape), rows_are_ids=False)


def observation(*, mask=None, stale=STALE, fresh=FRESH, step=5):
  mask = np.ones(len(stale), bool) if mask is None else mask
  return types.Observation(
      slice_of(stale), jnp.asarray(fresh), jnp.asarray(mask),
      jnp.asarray(vectors(2, B)), jnp.float32(SCALE), jnp.int32(step))


@functools.cache
def updater(corrector):
  return jit(corrector.update)


@functools.cache
def applier(corrector):
  return jit(corrector.apply)


def learned(corrector, *observations):
  """Returns the state after observations, and what was logged of the last."""
  state, info = corrector.init(jax.random.key(0), slice_of(STALE)), {}
  for step, seen in enumerate(observations):
    state, info = updater(corrector)(
        state, seen._replace(step=jnp.int32(step)))
  return state, info


SOME = np.arange(48) < 30
NOTHING = np.zeros(48, bool)


@parameterized.parameters(*CORRECTORS)
class CorrectorTest(parameterized.TestCase):

  def test_is_the_identity_bit_for_bit_before_it_has_seen_anything(self, case):
    corrector = make_corrector(case)
    # What is masked may hold anything.
    nothing = observation(mask=NOTHING, fresh=STALE[::-1])
    for state in (learned(corrector)[0],
                  learned(corrector, nothing, nothing)[0]):
      for leaf in jax.tree.leaves(state):
        self.assertTrue(np.isfinite(leaf).all())
      for dtype in (jnp.float32, jnp.bfloat16):
        rows = slice_of(STALE, dtype)
        found = applier(corrector)(state, rows)
        self.assertEqual(found.dtype, jnp.float32)
        np.testing.assert_array_equal(
            found, rows.embeddings.astype(jnp.float32))

  @pytest.mark.slow
  def test_corrects_slices_of_any_shape_alike(self, case):
    corrector = make_corrector(case)
    state, _ = learned(corrector, observation(), observation())
    rows = slice_of(STALE)
    blocks = [slice_of(STALE.reshape(*shape, D))
              for shape in ((4, 12), (2, 3, 8))]
    flat, one, *found = jit(lambda state, *slices: [
        corrector.apply(state, rows) for rows in slices])(
            state, rows, jax.tree.map(lambda x: x[3], rows), *blocks)
    self.assertEqual(flat.shape, STALE.shape)
    np.testing.assert_allclose(one, flat[3], rtol=1e-5, atol=1e-6)
    for block, moved in zip(blocks, found):
      self.assertEqual(moved.shape, block.embeddings.shape)
      np.testing.assert_allclose(
          moved.reshape(flat.shape), flat, rtol=1e-5, atol=1e-6)

  def test_learns_from_what_is_not_masked_alone(self, case):
    corrector = make_corrector(case)
    told = lambda fresh, stale=STALE, mask=SOME: learned(corrector, *[
        observation(mask=mask, stale=stale, fresh=fresh)] * 3)[0]
    noise = lambda x: np.where(SOME[:, None], x, 7.0).astype(np.float32)
    one = told(FRESH)
    jax.tree.map(np.testing.assert_array_equal, one,
                 told(noise(FRESH), noise(STALE)))
    moved = np.asarray(applier(corrector)(one, slice_of(STALE)))
    self.assertTrue(np.isfinite(moved).all())
    if np.array_equal(moved, STALE):
      return  # it does not learn
    error = lambda x: np.square(x - FRESH)[SOME].sum()
    self.assertLess(error(moved), error(STALE))
    everything = told(noise(FRESH), mask=~NOTHING)
    self.assertFalse(np.array_equal(
        applier(corrector)(everything, slice_of(STALE)), moved))

  def test_costs_something_where_it_does_something(self, case):
    corrector = make_corrector(case)
    first, _ = learned(corrector)
    state, info = learned(corrector, observation())
    moves = not np.array_equal(
        applier(corrector)(state, slice_of(STALE)), STALE)
    self.assertEqual(corrector.flops_per_row(D) > 0, moves)
    self.assertEqual(corrector.flops_per_update(48, B, D) > 0, moves)
    self.assertEqual(bool(jax.tree.leaves(state)), moves)
    self.assertEqual(looks(state), looks(first))
    for name, value in info.items():
      self.assertEqual((value.shape, value.dtype), ((), jnp.float32), name)
      self.assertTrue(np.isfinite(value), name)

  def test_options_of_all_are_heeded(self, case):
    corrector = make_corrector(case)
    options = {field.name for field in dataclasses.fields(corrector)}
    self.assertEqual(
        corrector.num_anchors,
        SIZES['corrector.num_anchors'] if 'num_anchors' in options else 0)
    state, _ = learned(corrector, observation())
    rows = slice_of(STALE)
    if 'use_after' in options:
      late = make_corrector(case, use_after=3)
      seen = [observation(), observation(mask=NOTHING), observation()]
      self.assertFalse(np.array_equal(applier(corrector)(state, rows), STALE))
      np.testing.assert_array_equal(
          applier(late)(learned(late, *seen)[0], rows), STALE)
      for more in (1, 2):  # and it stays in use
        state, _ = learned(late, *seen, *[observation()] * more)
        np.testing.assert_array_equal(
            applier(late)(state, rows), applier(corrector)(state, rows))
        self.assertFalse(np.array_equal(applier(late)(state, rows), STALE))

  def test_queries_may_be_moved_in_place_of_rows_where_it_folds(self, case):
    for keep_norm in (True, False):
      corrector = make_corrector(case, keep_norm=keep_norm, use_after=2)
      queries = jnp.asarray(vectors(3, B))
      self.assertIsInstance(corrector.folds, bool)
      if not corrector.folds:
        continue
      for times in range(4):
        state, _ = learned(corrector, *[observation()] * times)
        moved, constants = corrector.fold(state, queries)
        self.assertEqual((moved.shape, constants.shape), ((B, D), (B,)))
        np.testing.assert_allclose(
            moved @ STALE.T + constants[:, None],
            queries @ applier(corrector)(state, slice_of(STALE)).T,
            rtol=1e-5, atol=1e-5)

  def test_goes_on_after_a_refresh_or_starts_anew(self, case):
    for reset in (True, False):
      corrector = make_corrector(case, reset_on_refresh=reset)
      state, _ = learned(corrector, observation())
      key = jax.random.key(0)
      # One that holds what the table was cannot go on with another.
      wanted = learned(corrector)[0] if reset or not hasattr(
          corrector, 'reset_on_refresh') else state
      rebuilt = corrector.rebuild(state, key, slice_of(STALE))
      self.assertEqual(looks(rebuilt), looks(state))
      jax.tree.map(np.testing.assert_array_equal, rebuilt, wanted)


# --- Objectives.


OF_ANSWERS = {'marginal': marginal.ESTIMATES}
"""Objective that needs answers -> its kinds, each of which is tested."""
TEACHER_DIM = 6


def every_objective():
  """Yields (name, Objective): estimators, then what goes around one."""
  contrastive = [
      objectives.Contrastive(name, kind)
      for name, estimator in estimators.ESTIMATORS.items()
      for kind in columns.KINDS if estimator.columns in (None, kind)]
  for made in contrastive:
    yield f'{made.estimator}_{made.columns}', made
  for kind in sorted(set(distillation.KINDS) - {'none'}):
    made = objectives.Distilled(
        contrastive[0], objectives.Distillation(kind))
    yield kind, made
  for by in sorted(set(guide.KINDS) - {'none'}):
    guided = objectives.Contrastive(
        'truncated_softmax', 'all', guide=objectives.Guide(
            by, ceilings.Ceiling(0.9, 0.0), TEACHER_DIM))
    yield f'guided_by_{by}', guided
  for kind in sorted(set(embedding_distillation.KINDS) - {'none'}):
    yield f'embedding_{kind}', objectives.EmbeddingDistilled(
        guided, kind, 0.5, True, TEACHER_DIM, D)
  yield 'matryoshka', objectives.Matryoshka(
      made, (2, D), (1.0, 0.5), normalize=True)
  for name in registries.OBJECTIVES:
    for estimate in OF_ANSWERS.get(name, ('',)):
      options = {'name': name} | ({'estimate': estimate} if estimate else {})
      yield f'{name}_{estimate}'.strip('_'), make_method(
          reader=made_up_readers.Bag(40) if estimate else None,
          objective=options).objective
  yield 'made_up', made_up_objectives.Biased(40)


OBJECTIVES = dict(every_objective())
NUM_CANDIDATES = 2


class Given(NamedTuple):
  """What an objective is called with."""
  fresh: types.Fresh
  batch: types.Batch
  proposal: types.Proposal


def given(objective, num_draws=K):
  """Returns a batch, with candidates where the objective goes with them."""
  rng = np.random.default_rng(0)
  answers = 'answers' in objective.needs
  n = 0 if answers or 'only_draws' in objective.needs else NUM_CANDIDATES
  columns_ = num_draws + n
  ids = rng.integers(0, N, (B, columns_)).astype(np.int32)
  target_ids = np.arange(B, dtype=np.int32)
  ids[0, :1] = target_ids[0]  # a known positive among the columns
  mask = rng.random((B, columns_)) < 0.7
  if columns_:
    mask[1], mask[2, 0], mask[3, -1] = False, False, False
  ids = np.where(mask, ids, -1)
  numbers = lambda *shape: rng.normal(size=shape).astype(np.float32)
  candidates = None
  if n:
    scores = numbers(B, n)
    scores[4, 0] = np.nan
    positive_scores = numbers(B)
    positive_scores[5] = np.nan
    candidates = types.Candidates(ids[:, num_draws:], scores, positive_scores)
  tokens = rng.integers(0, 40, (B, columns_, 2)).astype(np.int32)
  read = numbers(B, columns_, 2)
  read[..., 0] -= 3
  read[0, 1:, 0] = types.NO_ANSWER
  teacher = None
  if 'teacher_vectors' in objective.needs:
    teacher = types.TeacherVectors(
        numbers(B, TEACHER_DIM), numbers(B, TEACHER_DIM),
        numbers(B, columns_, TEACHER_DIM))
  given_ = Given(
      types.Fresh(vectors(1, B), vectors(2, 0 if answers else B),
                  vectors(3, B, columns_), np.float32(SCALE),
                  tokens if objective.reads_tokens else None,
                  read if answers else None, teacher=teacher),
      types.Batch(
          query_tokens=tokens[:, 0], target_tokens=tokens[:, -1],
          query_ids=target_ids, target_ids=target_ids, known_positives=np.stack(
              [target_ids, np.full(B, -1, np.int32)], axis=1),
          candidates=candidates),
      types.Proposal(
          rows=ids, ids=ids, logits=numbers(B, columns_),
          log_q=-1 - np.abs(numbers(B, columns_)),
          log_z=4 + numbers(B), mask=mask))
  return jax.tree.map(jnp.asarray, given_)


@functools.cache
def compiled(objective):
  """Returns Given -> (loss [B], info, gradients).

  These are of its own parameters, of `fresh` and of the proposal.
  """

  def total(own, fresh, constants, given):
    log_q, log_z, logits = constants
    fresh = fresh._replace(negative_tokens=given.fresh.negative_tokens)
    loss, info = objective(
        own, fresh, given.batch,
        dataclasses.replace(
            given.proposal, log_q=log_q, log_z=log_z, logits=logits))
    return loss.sum(), (loss, info)

  @jit
  def run(given):
    proposal = given.proposal
    (_, (loss, info)), gradients = jax.value_and_grad(
        total, argnums=(0, 1, 2), has_aux=True)(
            objective.init(jax.random.key(0)),
            given.fresh._replace(negative_tokens=None),
            (proposal.log_q, proposal.log_z, proposal.logits), given)
    return loss, info, gradients

  return run


def run(objective, given_):
  return jax.device_get(compiled(objective)(given_))


def changed(given_, *, where, draw=7.0):
  """Returns the same with other embeddings, and numbers of the draw."""
  proposal = given_.proposal
  put = lambda array, value: jnp.where(where, value, array)
  fresh = given_.fresh._replace(negatives=jnp.where(
      where[..., None], draw, given_.fresh.negatives))
  if fresh.teacher is not None:
    fresh = fresh._replace(teacher=fresh.teacher._replace(negatives=jnp.where(
        where[..., None], 2 * draw, fresh.teacher.negatives)))
  if fresh.read is not None:
    fresh = fresh._replace(read=jnp.where(where[..., None], draw, fresh.read))
  if fresh.negative_tokens is not None:
    fresh = fresh._replace(negative_tokens=jnp.where(
        where[..., None], 0, fresh.negative_tokens))
  return given_._replace(
      fresh=fresh,
      proposal=dataclasses.replace(
          proposal, logits=put(proposal.logits, draw),
          log_q=put(proposal.log_q, -draw)))


def reordered(given_, order):
  """Returns the same with the columns [B, K + n] of each query reordered."""
  def moved(array):
    index = order.reshape(order.shape + (1,) * (array.ndim - 2))
    return jnp.take_along_axis(array, jnp.asarray(index), axis=1)
  proposal, candidates = given_.proposal, given_.batch.candidates
  if candidates is not None:
    num_draws = order.shape[1] - candidates.ids.shape[1]
    of_candidates = jnp.asarray(order[:, num_draws:] - num_draws)
    take = lambda array: jnp.take_along_axis(array, of_candidates, axis=1)
    candidates = dataclasses.replace(
        candidates, ids=take(candidates.ids), scores=take(candidates.scores))
  tokens, teacher = given_.fresh.negative_tokens, given_.fresh.teacher
  return Given(
      given_.fresh._replace(
          negatives=moved(given_.fresh.negatives),
          negative_tokens=None if tokens is None else moved(tokens),
          read=(None if given_.fresh.read is None
                else moved(given_.fresh.read)),
          teacher=teacher and teacher._replace(
              negatives=moved(teacher.negatives))),
      dataclasses.replace(given_.batch, candidates=candidates),
      dataclasses.replace(proposal, **{
          name: moved(getattr(proposal, name))
          for name in ('rows', 'ids', 'logits', 'log_q', 'mask')}))


@parameterized.parameters(*OBJECTIVES)
class ObjectiveTest(parameterized.TestCase):

  def test_its_loss_is_finite_and_so_is_its_gradient(self, case):
    objective = OBJECTIVES[case]
    loss, info, (of_own, of_fresh, of_proposal) = run(
        objective, given(objective))
    self.assertEqual((loss.shape, loss.dtype), ((B,), np.float32))
    self.assertTrue(np.isfinite(loss).all())
    for name, value in info.items():
      self.assertEqual((value.shape, value.dtype), ((), np.float32), name)
      self.assertTrue(np.isfinite(value), name)
    for name in ('queries', 'positives', 'negatives', 'scale', 'read'):
      gradient = getattr(of_fresh, name)
      if gradient is not None and gradient.size:
        self.assertTrue(np.isfinite(gradient).all(), name)
        self.assertTrue(gradient.any(), name)
    for gradient in jax.tree.leaves(of_own):
      self.assertTrue(np.isfinite(gradient).all())
      self.assertTrue(gradient.any())
    for gradient in of_proposal:  # nothing of the draw carries gradient
      np.testing.assert_array_equal(gradient, 0)

  def test_what_is_masked_does_not_matter(self, case):
    objective = OBJECTIVES[case]
    first = given(objective)
    away = ~first.proposal.mask
    one = run(objective, first)
    jax.tree.map(np.testing.assert_array_equal, one,
                 run(objective, changed(first, where=away)))
    np.testing.assert_array_equal(one[2][1].negatives[away], 0)
    # What is not masked does.
    other = run(objective, changed(first, where=~away, draw=0.1))
    self.assertFalse(np.array_equal(one[0], other[0]))

  def test_the_order_of_columns_does_not_matter(self, case):
    """Unless they were drawn one after the other, without replacement."""
    objective = OBJECTIVES[case]
    if 'log_z' in objective.needs:
      return
    first, rng = given(objective), np.random.default_rng(5)
    n = first.batch.num_candidates
    order = np.concatenate([
        rng.permuted(np.tile(np.arange(K), (B, 1)), axis=1),
        K + rng.permuted(np.tile(np.arange(n), (B, 1)), axis=1)], axis=1)
    one, other = run(objective, first), run(objective, reordered(first, order))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.take_along_axis(one[2][1].negatives, order[..., None], axis=1),
        other[2][1].negatives, rtol=1e-4, atol=1e-5)

  def test_reads_nothing_that_it_does_not_need(self, case):
    objective = OBJECTIVES[case]
    self.assertContainsSubset(objective.needs, compatibility.NEEDS)
    first = given(objective)
    proposal, batch = first.proposal, first.batch
    nan = lambda array: jnp.full_like(array, jnp.nan)
    if 'log_z' not in objective.needs:
      proposal = dataclasses.replace(proposal, log_z=nan(proposal.log_z))
      if 'log_q' not in objective.needs:
        proposal = dataclasses.replace(proposal, log_q=nan(proposal.log_q))
    if 'teacher' not in objective.needs and batch.candidates is not None:
      batch = dataclasses.replace(batch, candidates=dataclasses.replace(
          batch.candidates, scores=nan(batch.candidates.scores),
          positive_scores=nan(batch.candidates.positive_scores)))
    jax.tree.map(
        np.testing.assert_array_equal, run(objective, first)[:2],
        run(objective, Given(first.fresh, batch, proposal))[:2])
    if not objective.needs:
      loss, _, (_, of_fresh, _) = run(objective, given(objective, num_draws=0))
      self.assertTrue(np.isfinite(loss).all())
      self.assertTrue(of_fresh.positives.any())

  def test_is_a_value_that_costs_something(self, case):
    objective, again = OBJECTIVES[case], dict(every_objective())[case]
    self.assertIsNot(objective, again)
    self.assertEqual(objective, again)
    self.assertEqual(hash(objective), hash(again))
    n = given(objective).batch.num_candidates
    cost = objective.flops(B, K + n, n, D)
    self.assertGreater(cost, 0)
    self.assertGreater(objective.flops(2 * B, K + n, n, D), cost)
    self.assertIsInstance(objective.reads_tokens, bool)


if __name__ == '__main__':
  absltest.main()
