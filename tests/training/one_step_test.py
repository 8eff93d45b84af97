"""All that a step leaves behind, against the same step written out in numpy.

Every test goes through `run`, which takes the steps by `helpers.train`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax.training import step as steps
from tests import helpers

RING_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Recorder:
  """A corrector that corrects nothing and shows what it was shown."""
  num_anchors: int = 0
  folds: bool = False

  def init(self, key, table):
    del key, table
    return jnp.zeros([], jnp.int32)

  def anchor_rows(self, state, key, table, step):
    del state, step
    return tables.systematic_rows(key, table, self.num_anchors)

  def apply(self, state, rows):
    del state
    return rows.embeddings.astype(jnp.float32)

  def update(self, state, observation):
    return state + 1, {'observation': observation}

  def rebuild(self, state, key, table):
    del key, table
    return state


@dataclasses.dataclass(frozen=True)
class Hosted(samplers.Uniform):
  """Uniform draws, made between the two compiled parts of a step."""
  on_host = True


class Step(NamedTuple):
  """One step, on the host: states around it, its draws, its metrics."""
  before: Any
  proposal: Any
  after: Any
  metrics: dict


def run(method, *, num_steps=1, devices=1, **options):
  """Returns a Step for each of the first `num_steps` steps of `method`."""
  copied = lambda tree: jax.tree.map(np.array, tree)
  before, proposals = [], []

  def keep(state, proposal, probes):
    del probes
    before.append(copied(state))
    proposals.append(copied(proposal))

  last, history = helpers.train(
      method, sharding.make_mesh(devices), num_steps=num_steps, each=keep,
      **options)
  return [Step(*each) for each in zip(
      before, proposals, [*before[1:], copied(last)], history)]


def fresh_targets(step):
  """Returns the corpus [N, D] by the parameters that the step began with."""
  return np.asarray(helpers.encode(step.before.params, helpers.corpus_tokens()))


class Memory:
  """The slow obvious memory: one row after the other."""

  def __init__(self, table):
    self.embeddings, self.ids = table.embeddings.copy(), table.ids.copy()
    self.written = table.written.copy()
    self.inserted = (table.inserted.copy()
                     if isinstance(table, tables.QueueTable) else None)

  def row_of(self, target):
    return next((r for r, i in enumerate(self.ids) if i == target), -1)

  def write(self, ids, fresh, step):
    """Rewrites the rows that hold these targets."""
    for target in ids:
      row = self.row_of(target)
      if target >= 0 and row >= 0:
        self.embeddings[row], self.written[row] = fresh[target], step

  def push(self, ids, fresh, step):
    """Remembers targets; new ones take empty rows, then the oldest."""
    since = self.written if self.inserted is None else self.inserted
    queue = sorted(
        (r for r, i in enumerate(self.ids) if i not in ids),
        key=lambda r: (self.ids[r] >= 0, since[r], r))
    last = [i for n, i in enumerate(ids) if i not in ids[n + 1:]]
    for target in [i for i in last if self.row_of(i) < 0]:
      row = queue.pop(0)
      self.ids[row] = target
      if self.inserted is not None:
        self.inserted[row] = step
    self.write(last, fresh, step)


def full_ring(mesh, replacement):
  """Returns a ring without an empty row; it holds one positive of batch 0."""
  positives = helpers.batch(0).target_ids
  others = np.setdiff1d(np.arange(helpers.NUM_TARGETS), positives)
  ids = np.append(others[:RING_ROWS - 1], positives[2])
  return tables.create(
      np.asarray(helpers.encode(helpers.params(5), helpers.gather(ids))), ids,
      mesh=mesh, chunk_rows=RING_ROWS, dtype='float32', step=-3,
      replacement=replacement)


@functools.cache
def ring_steps(replacement):
  """Returns three steps that write drawn and refreshed rows, and push."""
  method = dataclasses.replace(
      helpers.method(
          samplers.Uniform(2), memory=helpers.ring(RING_ROWS, RING_ROWS),
          columns='all', write_back=True, push=True, fraction=0.25),
      corrector=Recorder(num_anchors=3))
  return run(method, num_steps=3, table_=full_ring(
      sharding.make_mesh(1), replacement))


class WritesTest(parameterized.TestCase):

  @parameterized.parameters('lru', 'fifo')
  @pytest.mark.slow
  def test_draws_and_refreshed_rows_are_written_before_positives_come_in(
      self, replacement):
    """Else a row would hold one target's id and another's embedding."""
    evicted = 0
    for number, step in enumerate(ring_steps(replacement)):
      batch, fresh = helpers.batch(number), fresh_targets(step)
      memory = Memory(step.before.table)
      memory.write(step.proposal.ids.ravel(), fresh, number)
      observation = step.metrics['observation']
      refreshed = observation.stale.ids[16:20]
      memory.write(refreshed, fresh, number)
      rewritten = set(memory.ids[memory.written == number])
      memory.push(batch.target_ids, fresh, number)
      evicted += len(rewritten - set(memory.ids))
      after = step.after.table
      np.testing.assert_array_equal(after.ids, memory.ids)
      np.testing.assert_array_equal(after.written, memory.written)
      np.testing.assert_allclose(
          after.embeddings, memory.embeddings, atol=1e-6)
      if replacement == 'fifo':
        np.testing.assert_array_equal(after.inserted, memory.inserted)
    self.assertGreater(evicted, 0)  # or the order could not be seen

  def test_nothing_is_written_unless_the_method_says_so(self):
    method = dataclasses.replace(
        helpers.method(samplers.Uniform(2), columns='all'),
        corrector=Recorder(num_anchors=8))
    [step] = run(method)
    jax.tree.map(np.testing.assert_array_equal, step.after.table,
                 step.before.table)
    self.assertEqual((step.before.step, step.after.step), (0, 1))
    self.assertEqual((step.before.corrector, step.after.corrector), (0, 1))


class ObservationTest(parameterized.TestCase):

  def test_rows_are_shown_as_they_stood_before_the_writes(self):
    for step in ring_steps('lru'):
      stale = step.metrics['observation'].stale
      before = step.before.table
      rows = np.array([Memory(before).row_of(i) for i in stale.ids])
      live = stale.ids >= 0
      self.assertTrue((step.after.table.written[rows] > before.written[rows])[
          live].any())  # what was shown was written afterwards
      np.testing.assert_array_equal(
          stale.embeddings[live], before.embeddings[rows[live]])
      np.testing.assert_array_equal(
          stale.written[live], before.written[rows[live]])

  def test_shows_draws_then_probes_then_positives(self):
    for number, step in enumerate(ring_steps('lru')):
      ids = step.metrics['observation'].stale.ids
      self.assertLen(ids, 16 + 4 + 3 + 8)
      np.testing.assert_array_equal(ids[:16], step.proposal.ids.ravel())
      positives = helpers.batch(number).target_ids
      np.testing.assert_array_equal(
          ids[-8:], np.where(np.isin(positives, step.before.table.ids),
                             positives, -1))

  def test_only_remembered_targets_are_to_be_learned_from(self):
    """Neither masked draws nor positives that are new to the memory."""
    for step in ring_steps('lru'):
      observation = step.metrics['observation']
      live = observation.stale.ids >= 0
      np.testing.assert_array_equal(observation.mask, live)
      np.testing.assert_array_equal(
          observation.mask[:16], step.proposal.mask.ravel())
      self.assertTrue(observation.mask[16:23].all())  # the ring is full
      self.assertFalse(observation.mask[-8:].all())

  def test_empty_rows_are_not_to_be_learned_from(self):
    method = dataclasses.replace(
        helpers.method(
            samplers.Uniform(2), memory=helpers.ring(RING_ROWS, RING_ROWS),
            columns='all', push=True, fraction=0.5),
        corrector=Recorder(num_anchors=8))
    mesh = sharding.make_mesh(1)
    steps_ = run(method, num_steps=2, table_=tables.empty(
        RING_ROWS, helpers.DIM, mesh=mesh, chunk_rows=RING_ROWS,
        dtype='float32'))
    self.assertFalse(steps_[0].metrics['observation'].mask.any())
    seen = steps_[1].metrics['observation']
    np.testing.assert_array_equal(
        seen.mask, np.isin(seen.stale.ids, helpers.batch(0).target_ids))
    self.assertTrue(seen.mask.any())

  def test_fresh_is_what_the_step_encoded(self):
    for number, step in enumerate(ring_steps('lru')):
      observation = step.metrics['observation']
      batch, live = helpers.batch(number), observation.mask
      np.testing.assert_allclose(
          observation.fresh[live],
          fresh_targets(step)[observation.stale.ids[live]], atol=1e-6)
      np.testing.assert_allclose(
          observation.queries,
          helpers.encode(step.before.params, batch.query_tokens), atol=1e-6)
      self.assertEqual(observation.scale, 5.0)

  def test_step_is_that_of_the_parameters_so_that_ages_are_right(self):
    for number, step in enumerate(ring_steps('lru')):
      observation = step.metrics['observation']
      self.assertEqual(observation.step, number)
      seen = observation.mask[:-8]  # positives do not count as drift
      np.testing.assert_allclose(
          step.metrics['age'],
          (number - observation.stale.written[:-8])[seen].mean(), rtol=1e-6)
      stale, fresh = observation.stale.embeddings[:-8], observation.fresh[:-8]
      np.testing.assert_allclose(
          step.metrics['drift_before'],
          np.square(stale - fresh)[seen].sum(axis=1).mean(), rtol=1e-5)


@functools.cache
def probed(seed):
  """Returns [(refreshed rows, anchor rows)] of six steps."""
  method = dataclasses.replace(
      helpers.method(samplers.NoNegatives(), columns='positives',
                     fraction=0.2), corrector=Recorder(num_anchors=5))
  found = []
  for number, step in enumerate(run(method, num_steps=6, seed=seed)):
    shown = step.metrics['observation'].stale.ids[:-8]
    refreshed, anchors = shown[:-5], shown[-5:]
    table = step.after.table
    if number:  # the table itself is of step 0
      np.testing.assert_array_equal(
          np.flatnonzero((table.written == number) & (table.ids >= 0)),
          np.unique(refreshed[refreshed >= 0]))
    found.append((frozenset(refreshed.tolist()), frozenset(anchors.tolist())))
  return found


class ProbesTest(parameterized.TestCase):

  def test_other_rows_are_refreshed_in_every_step(self):
    """The same ones in every step would be 11, of 56."""
    refreshed, anchors = zip(*probed(0))
    self.assertGreaterEqual(len(set(refreshed)), 5)
    self.assertGreaterEqual(len(set(anchors)), 5)
    self.assertGreater(len(frozenset.union(*refreshed)), 20)

  def test_rows_depend_on_the_seed_and_anchors_on_another_key(self):
    self.assertNotEqual(probed(0), probed(1))
    apart = [anchors - refreshed for refreshed, anchors in probed(0)]
    self.assertGreater(sum(map(bool, apart)), 3)


class HostTest(parameterized.TestCase):

  @parameterized.parameters(1, 4)
  @pytest.mark.slow
  def test_a_sampler_on_the_host_draws_and_trains_as_on_the_device(
      self, devices):
    for here, there in zip(*(
        run(helpers.method(sampler, fraction=0.2, write_back=True),
            num_steps=3, devices=devices)
        for sampler in (samplers.Uniform(3), Hosted(3)))):
      np.testing.assert_array_equal(here.proposal.rows, there.proposal.rows)
      jax.tree.map(functools.partial(
          np.testing.assert_allclose, rtol=1e-4, atol=1e-7),
                   here.after, there.after)


class ScaleTest(parameterized.TestCase):

  ENCODERS = steps.Encoders(
      helpers.encode, helpers.encode,
      lambda params: jnp.exp(params['log_beta']))

  def step(self, method):
    params = helpers.params() | {'log_beta': jnp.float32(np.log(3.0))}
    return run(method, encoders=self.ENCODERS, first_params=params,
               optimizer=optax.sgd(1.0))[0]

  def scores(self, step):
    """Returns (queries [B, D], scores of the positives [B])."""
    batch = helpers.batch(0)
    queries = np.asarray(helpers.encode(helpers.params(), batch.query_tokens))
    return queries, np.einsum(
        'bd,bd->b', queries, fresh_targets(step)[batch.target_ids])

  def test_softmax_teaches_the_scale(self):
    """dL/d log beta = beta mean_b (sum_j p_bj s_bj - s_b+)."""
    step = self.step(helpers.method(
        samplers.NoNegatives(), memory='none', columns='positives'))
    batch, (queries, positive) = helpers.batch(0), self.scores(step)
    gradient = 0.0
    for b, query in enumerate(queries):
      seen = [i for i in batch.target_ids if i not in batch.known_positives[b]]
      scores = np.append(positive[b], fresh_targets(step)[seen] @ query)
      chances = np.exp(3.0 * scores) / np.exp(3.0 * scores).sum()
      gradient += 3.0 * (chances @ scores - positive[b]) / len(queries)
    self.assertGreater(abs(gradient), 0.1)
    np.testing.assert_allclose(
        step.after.params['log_beta'], np.log(3.0) - gradient, rtol=1e-5)
    self.assertAlmostEqual(step.metrics['scale'], 3.0, places=5)

  def test_cache_gradient_teaches_the_scale(self):
    """dL/d log beta = mean_b (1 - p_b+) beta (s_b- - s_b+)."""
    step = self.step(helpers.method(
        helpers.gumbel(1), estimator='cache_gradient'))
    queries, positive = self.scores(step)
    drawn = fresh_targets(step)[step.proposal.ids[:, 0]]
    negative = np.einsum('bd,bd->b', queries, drawn)
    left = 1 / (1 + np.exp(3.0 * positive - step.proposal.log_z))
    gradient = np.mean(left * 3.0 * (negative - positive))
    self.assertGreater(abs(gradient), 0.1)
    np.testing.assert_allclose(
        step.after.params['log_beta'], np.log(3.0) - gradient, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
