"""A step writes to the memory where it is: no program copies a table."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import optax
import pytest

from retrieval_jax import correctors
from retrieval_jax import memories
from retrieval_jax import method as methods
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax.training import step as steps
from tests import helpers
from tests.samplers import tree_test

KEPT = {'write_back': True, 'push': True}
MLP = correctors.MLP(
    hidden=8, learning_rate=1e-3, warmup_steps=1, updates_per_step=1,
    weight_decay=0., distribution_weight=0., average_decay=0.,
    condition_on_age=True, num_anchors=4, use_after=0, keep_norm=True,
    reset_on_refresh=True)


def compiled_update(method, devices):
  """Returns HLO of the update of a method."""
  mesh = sharding.make_mesh(devices)
  train_step = steps.make_train_step(
      helpers.ENCODERS, method, optax.adam(1e-2), mesh=mesh, seed=0)
  memory = method.memory
  ids = (np.arange(helpers.NUM_TARGETS) if memory.holds_corpus
         else np.zeros(0, np.int32))
  state = train_step.init_state(helpers.params(), memory.create(
      np.asarray(helpers.encode(helpers.params(), helpers.corpus_tokens()))[
          ids], ids, dim=helpers.DIM, mesh=mesh))
  put = lambda tree: sharding.put_batch(tree, mesh)
  batch = put(helpers.batch(0))
  draws = train_step.propose(state, batch)
  return train_step.update.lower(
      state, batch, draws, put(helpers.gather(draws.negative_ids)),
      put(helpers.gather(draws.probe_ids))).compile().as_text()


def copies(text):
  """Returns the copies of arrays that have as many rows as a shard."""
  return re.findall(
      rf'= (\w+\[{helpers.CHUNK_ROWS}(?:,\d+)?\]\S*) copy\(', text)


METHODS = {
    'write_back': helpers.method(helpers.gumbel(), write_back=True),
    'push': helpers.method(helpers.gumbel(), **KEPT, fraction=.1),
    'ring': helpers.method(helpers.gumbel(), memory='ring', **KEPT),
    'linear': helpers.method(
        helpers.gumbel(), corrector=helpers.linear(num_anchors=4), **KEPT),
    'mlp': helpers.method(helpers.gumbel(), corrector=MLP, **KEPT),
    'int8': helpers.method(helpers.gumbel(), memory=memories.Corpus(
        helpers.NUM_TARGETS, 'float32', helpers.CHUNK_ROWS,
        scan_dtype='int8'), **KEPT),
    'bfloat16': helpers.method(helpers.gumbel(), memory=memories.Corpus(
        helpers.NUM_TARGETS, 'bfloat16', helpers.CHUNK_ROWS), **KEPT),
    'tree': helpers.method(tree_test.make(
        num_negatives=2, leaf_size=8, opened=1, maintain_every=2), **KEPT),
    'rows': helpers.method(
        samplers.TopK(2), targets=methods.Targets('rows', .1))}


class InPlaceTest(parameterized.TestCase):

  @parameterized.parameters('write_back', 'push')
  def test_nothing_copies_the_table(self, name):
    self.assertEmpty(copies(compiled_update(METHODS[name], 1)))

  @parameterized.product(name=tuple(METHODS), devices=(1, 4))
  @pytest.mark.slow
  def test_nor_of_any_method(self, name, devices):
    self.assertEmpty(copies(compiled_update(METHODS[name], devices)))

  def test_rows_that_are_written_after_a_read_stay_what_they_are(self):
    mesh = sharding.make_mesh(1)
    table = helpers.table(mesh)
    rows = np.array([3, -1, 0, 55], np.int32)
    for spoil in (0., np.nan, np.inf):
      spoilt = tables.take(tables.write(
          table, rows[:1], np.full((1, helpers.DIM), spoil), 0), rows)
      np.testing.assert_array_equal(
          jax.jit(tables.after)(rows, spoilt), rows)


if __name__ == '__main__':
  absltest.main()
