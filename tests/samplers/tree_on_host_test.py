"""Draws do not depend on where the rows are."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import host_table
from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import tree as trees
from retrieval_jax import types
from retrieval_jax.samplers import tree
from tests.samplers import tree_test

EIGHT = tree_test.QUERY * np.linspace(-1, 1.5, 8, dtype=np.float32)[:, None]


def host_view(scale=1.0, devices=1, fold=None):
  table = host_table.create(
      *tree_test.vectors().shape, live=tree_test.LIVE, dtype='float32')
  table.embeddings[:] = tree_test.vectors()
  return types.View(
      table, jax.tree_util.Partial(scoring.uncorrected), jnp.float32(scale),
      types.Scan(sharding.make_mesh(devices), tree_test.CHUNK), fold)


def request():
  return tree_test.request(1)._replace(
      queries=jnp.asarray(EIGHT), query_ids=np.arange(8),
      exclude_rows=jnp.tile(tree_test.EXCLUDED, (8, 1)),
      exclude_ids=jnp.tile(tree_test.EXCLUDED, (8, 1)),
      positive_rows=np.full(8, -1))


@functools.cache
def host_state(sampler, devices=1):
  return sampler.init(jax.random.key(0), host_view(devices=devices))


class TreeOnHostTest(parameterized.TestCase):

  def test_is_the_same_tree(self):
    sampler = tree_test.make()
    state = host_state(sampler)
    jax.tree.map(functools.partial(
        np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
                 *jax.device_get((tree_test.state(sampler), state)))
    for name in ('rows', 'leaf_of', 'start'):
      self.assertIsInstance(getattr(state, name), np.ndarray)

  @parameterized.parameters(
      (dict(chain_steps=3), 1), (dict(chain_steps=3), 2),
      (dict(chain_steps=3), 4), (dict(chain_steps=3), 8),
      (dict(beam=2, open_until=0.3), 8),
      (dict(accept='resampling', chain_steps=2, step_proposals=3), 2),
      (dict(opened=0), 1),
      (dict(accept='rejection', moments=0, opened=1), 4))
  @pytest.mark.slow
  def test_are_the_same_draws(self, options, devices, scale=2.0):
    sampler = tree_test.make(num_negatives=4, **options)
    on_device = tree_test.call(
        sampler.propose, tree_test.state(sampler), jax.random.key(1),
        request(), tree_test.view(scale))
    on_host = jax.device_get(sampler.propose(
        host_state(sampler, devices), jax.random.key(1), request(),
        host_view(scale, devices)))
    for name in ('rows', 'ids', 'mask'):
      np.testing.assert_array_equal(
          getattr(on_host, name), getattr(on_device, name), err_msg=name)
    self.assertTrue(on_device.mask.any())
    for name in ('logits', 'log_q', 'log_z'):
      np.testing.assert_allclose(
          getattr(on_host, name), getattr(on_device, name), rtol=1e-5,
          atol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        sampler.estimate_log_z(
            host_state(sampler, devices), jax.random.key(1), request(),
            host_view(scale, devices)),
        tree_test.call(sampler.estimate_log_z, tree_test.state(sampler),
                       jax.random.key(1), request(), tree_test.view(scale)),
        rtol=1e-5)

  def test_however_many_leaves_are_opened_one_program_weighs_them(self):
    sampler = tree_test.make(num_negatives=4, open_until=0.9)
    lists, sizes = [], []
    for scale in (0.1, 40.0):
      view = host_view(scale)
      with mock.patch.object(
          tree, '_scored', side_effect=tree._scored) as scored:
        sampler.propose(
            host_state(sampler), jax.random.key(1), request(), view)
      lists.append(scored.call_count)
      sizes.append(tree._weighed._cache_size())
    self.assertNotEqual(*lists)
    self.assertEqual(*sizes)

  @pytest.mark.slow
  def test_queries_are_moved_where_the_corrector_folds(self):
    sampler = tree_test.make(num_negatives=4, chain_steps=2)
    fold = jax.tree_util.Partial(
        lambda matrix, queries: (queries @ matrix, queries.sum(axis=1)),
        jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32))
    device = tree_test.view(0.7)._replace(fold=fold)
    wanted = jax.device_get(jax.jit(
        lambda state, key, request, table: sampler.propose(
            state, key, request, device._replace(table=table)))(
                tree_test.state(sampler), jax.random.key(1), request(),
                device.table))
    found = jax.device_get(sampler.propose(
        host_state(sampler), jax.random.key(1), request(),
        host_view(0.7, fold=fold)))
    np.testing.assert_array_equal(found.rows, wanted.rows)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-5,
                               atol=1e-5)

  @pytest.mark.slow
  def test_follows_what_is_written(self):
    sampler, view = tree_test.make(), host_view()
    state = host_state(sampler)
    rows = np.array([5, -1, 12, 5, 700], np.int32)
    fresh = np.random.default_rng(4).normal(size=(5, 4)).astype(np.float32)
    observation = types.Observation(
        stale=view.table.take(rows), fresh=fresh, mask=rows >= 0,
        queries=jnp.asarray(EIGHT), scale=jnp.float32(1), step=jnp.int32(3),
        written_rows=jnp.asarray(rows))
    new, metrics = sampler.update(state, observation)
    view.table.write(rows, fresh, 3)
    trees.check(new, view.table.embeddings, tree_test.LIVE)
    self.assertGreater(metrics['leaf_scatter'], 0)
    with self.assertRaises(AssertionError):
      trees.check(state, view.table.embeddings, tree_test.LIVE)

  @parameterized.parameters(0.0, 0.1, 50.0)
  @pytest.mark.slow
  def test_is_brought_up_to_date(self, regrow_share):
    sampler = tree_test.make(regrow_share=regrow_share)
    view, told = host_view(), []
    view.table.embeddings[:] += 0.3 * np.random.default_rng(3).normal(
        size=view.table.embeddings.shape)
    new = sampler.rebuild(
        host_state(sampler), jax.random.key(2), types.Episode(
            1, view, compared=lambda *counts: told.append(counts)))
    trees.check(new, view.table.embeddings, tree_test.LIVE)
    self.assertIsInstance(new.leaf_of, np.ndarray)
    built = sampler.rows_compared(view.table.num_slots)
    self.assertEqual(told[-1] == built, regrow_share != 50.0)
    self.assertLen(told, 2 if regrow_share == 0.1 else 1)
    if regrow_share == 0.0:
      again = sampler.init(jax.random.key(2), view)
      jax.tree.map(np.testing.assert_array_equal, *jax.device_get((new, again)))


if __name__ == '__main__':
  absltest.main()
