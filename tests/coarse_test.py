"""Coarse rows: their bounds hold, and scans find what float32 finds."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from retrieval_jax import coarse
from retrieval_jax import correctors
from retrieval_jax import memories
from retrieval_jax import samplers
from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax.types import Scan, View
from tests import helpers

NUM_ROWS, DIM, NUM_QUERIES, CHUNK_ROWS, K = 2000, 32, 256, 128, 5
COARSE = coarse.DTYPES[1:]
KINDS = ('random', 'clustered', 'duplicated', 'norms', 'outliers', 'equal',
         'empty', 'tiny')


@functools.cache
def _data(kind):
  """Returns targets [N, D], queries [B, D], excluded rows [B, 3] and beta."""
  rng = np.random.default_rng(KINDS.index(kind))
  rows = rng.standard_normal((NUM_ROWS, DIM))
  if kind == 'clustered':
    centres = rng.standard_normal((8, DIM))
    rows = centres[rng.integers(8, size=NUM_ROWS)] + .05 * rows
  if kind == 'duplicated':
    rows = rows[rng.integers(NUM_ROWS // 8, size=NUM_ROWS)]
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  beta = 20.
  if kind == 'norms':  # of 1e-3 to 1e4
    rows *= 10.**rng.uniform(-3, 4, (NUM_ROWS, 1))
    beta = .05
  if kind == 'outliers':  # one dimension takes all of the range
    rows[:, 0] *= 1000
    beta = .05
  if kind == 'equal':
    rows[:] = rows[0]
  if kind == 'empty':
    rows[::2] = 0
  if kind == 'tiny':
    rows *= 1e-6
  queries = rng.standard_normal((NUM_QUERIES, DIM))
  queries /= np.linalg.norm(queries, axis=1, keepdims=True)
  rows, queries = rows.astype(np.float32), queries.astype(np.float32)
  queries[:4] = rows[:4]
  exclude = rng.integers(-1, NUM_ROWS, (NUM_QUERIES, 3)).astype(np.int32)
  return rows, queries, exclude, beta


@functools.cache
def _run(devices):
  """Returns a function of what is looked for to all that is found, jitted."""
  mesh = sharding.make_mesh(devices)

  @jax.jit
  def run(rows, queries, exclude, beta):
    view = View(rows, scoring.uncorrected, beta, Scan(mesh, CHUNK_ROWS),
                fold=scoring.unmoved)
    return (
        scoring.best(queries, view, K, exclude_rows=exclude),
        scoring.gumbel_draws(
            jax.random.key(3), queries, view, K, exclude_rows=exclude),
        scoring.bucket_maxima(queries, view, 16, exclude_rows=exclude))

  return run


@functools.cache
def _found(kind, scan_dtype, devices):
  rows, queries, exclude, beta = _data(kind)
  table = tables.from_embeddings(
      rows, sharding.make_mesh(devices), CHUNK_ROWS, 'float32',
      scan_dtype=scan_dtype)
  if kind == 'empty':
    table = dataclasses.replace(
        table, ids=jnp.where(table.ids % 2, table.ids, -1), full=False)
  return jax.device_get(
      _run(devices)(table, queries, exclude, jnp.float32(beta)))


class BoundTest(parameterized.TestCase):

  @parameterized.product(kind=KINDS, dtype=COARSE)
  def test_no_product_is_further_off_than_it_says(self, kind, dtype):
    rows, queries, _, _ = _data(kind)
    queries = 20 * queries
    table = tables.from_embeddings(
        rows[:1920], sharding.make_mesh(1), 64, 'float32', scan_dtype=dtype)
    found = np.asarray(coarse.products(jnp.asarray(queries), table))
    truth = rows[:1920].astype(np.float64) @ queries.astype(np.float64).T
    off = np.abs(found - truth).reshape(-1, 16, NUM_QUERIES).max(axis=1).T
    bound = sum(coarse.errors(
        jnp.asarray(queries), table.coarse, 16, jnp.zeros(NUM_QUERIES)))
    self.assertTrue((off <= np.asarray(bound)).all())

  @parameterized.parameters(*COARSE)
  def test_rows_exist_that_are_off_by_nearly_all_of_it(self, dtype):
    """A query along what is lost of a row: a bound of half the size would lie.

    The query's components are powers of two, which bfloat16 holds.
    """
    rng = np.random.default_rng(0)
    signs = rng.choice([-1., 1.], (16, DIM)).astype(np.float32)
    step = 2.**-8 if dtype == 'bfloat16' else 1 / 127
    # All components lie just below the middle between two codes, but for one
    # that sets the scale of int8.
    rows = (1 + .498 * step) * np.ones((16, DIM), np.float32)
    if dtype == 'int8':
      rows = (100.498 * step) * signs
      rows[:, 0] = 1
    copy = coarse.of(jnp.asarray(rows), dtype)
    table = tables.from_embeddings(
        rows, sharding.make_mesh(1), 64, 'float32', scan_dtype=dtype)
    stored = (np.asarray(copy.codes, np.float32) * np.asarray(copy.scale)[
        :, None] if dtype == 'int8' else np.asarray(
            jax.lax.bitcast_convert_type(copy.codes, jnp.bfloat16), np.float32))
    queries = np.sign(rows - stored)
    queries[queries == 0] = 1
    found = np.diag(np.asarray(
        coarse.products(jnp.asarray(queries), table))[:16])
    off = np.abs(found - np.diag(
        rows.astype(np.float64) @ queries.astype(np.float64).T))
    bound = np.diag(np.asarray(sum(coarse.errors(
        jnp.asarray(queries), table.coarse, 1, jnp.zeros(16))))[:, :16])
    self.assertTrue((off <= bound).all())
    self.assertGreater((off / bound).min(), .8)

  def test_rows_of_bfloat16_are_their_own_copies(self):
    rows = _data('random')[0]
    mesh = sharding.make_mesh(1)
    table = tables.from_embeddings(
        rows, mesh, 64, 'bfloat16', scan_dtype='bfloat16')
    self.assertIsNone(table.coarse.codes)
    self.assertLess(np.max(table.coarse.residual), 1e-5)
    other = tables.from_embeddings(
        rows, mesh, 64, 'float32', scan_dtype='bfloat16')
    queries = jnp.asarray(_data('random')[1])
    np.testing.assert_array_equal(
        coarse.products(queries, table), coarse.products(queries, other))

  def test_norms_whose_squares_overflow(self):
    np.testing.assert_allclose(
        coarse.norms(jnp.asarray([[3e30, 4e30], [0., 0.], [3e-30, 4e-30]])),
        [5e30, 0., 5e-30], rtol=1e-6)


class SameTest(parameterized.TestCase):
  """Of 8 kinds of rows, 256 queries each, three searches: 12,288 cases."""

  @parameterized.product(kind=KINDS, dtype=COARSE, devices=(1, 4))
  def test_rows_and_logits(self, kind, dtype, devices):
    exact, found = (_found(kind, each, devices)
                    for each in ('float32', dtype))
    for name, one, other in zip(('top k', 'draws', 'buckets'), exact, found):
      logits, rows = (0, 1) if name != 'draws' else (1, 0)
      np.testing.assert_array_equal(one[rows], other[rows], name)
      np.testing.assert_array_equal(one[logits], other[logits], name)

  @parameterized.product(kind=KINDS, dtype=COARSE, devices=(1, 4))
  def test_log_z_is_off_by_no_more_than_it_says(self, kind, dtype, devices):
    exact, found = (_found(kind, each, devices)[1]
                    for each in ('float32', dtype))
    off = np.abs(exact.log_z - found.log_z)
    self.assertTrue((off <= found.log_z_error).all())
    np.testing.assert_array_equal(exact.log_z_error, 0.)

  @parameterized.parameters(*COARSE)
  def test_what_log_z_says_is_of_use(self, dtype):
    exact, found = (_found('equal', each, 1)[1] for each in ('float32', dtype))
    off = np.abs(exact.log_z - found.log_z)
    self.assertGreater((off / found.log_z_error).max(), .2)
    self.assertLess(_found('random', dtype, 1)[1].log_z_error.max(), .2)

  @parameterized.parameters(*COARSE)
  def test_few_blocks_are_opened(self, dtype):
    found = _found('random', dtype, 1)
    for name, blocks in (('top k', found[0].opened),
                         ('draws', found[1].opened)):
      self.assertBetween(blocks.mean(), K, 1.5 * K, name)
    exact = _found('random', 'float32', 1)
    self.assertSetEqual({*exact[0].opened}, {NUM_ROWS // 16 + 3})

  @parameterized.parameters(*COARSE)
  def test_what_cannot_be_told_apart_is_scanned_in_float32(self, dtype):
    """More rows are equal than there is room for."""
    self.assertSetEqual(
        {*_found('equal', dtype, 1)[0].opened}, {NUM_ROWS // 16 + 3})

  @parameterized.parameters(*COARSE)
  def test_queries_that_are_moved_in_place_of_rows(self, dtype):
    rows, queries, exclude, beta = _data('random')
    corrector = correctors.Linear(
        fit='ridge', ridge=1e-2, decay=1., num_anchors=0, use_after=0,
        keep_norm=False, reset_on_refresh=True)
    mesh = sharding.make_mesh(2)
    found = {}
    for scan_dtype in ('float32', dtype):
      table = tables.from_embeddings(
          rows, mesh, CHUNK_ROWS, 'float32', scan_dtype=scan_dtype)
      state = jax.tree.map(
          lambda a: a + .1 * jax.random.normal(jax.random.key(a.ndim), a.shape),
          corrector.init(jax.random.key(0), table))
      view = View(
          table, functools.partial(corrector.apply, state), jnp.float32(beta),
          Scan(mesh, CHUNK_ROWS), fold=functools.partial(corrector.fold, state))
      found[scan_dtype] = jax.device_get(
          (scoring.best(queries, view, K, exclude_rows=exclude),
           scoring.gumbel_draws(jax.random.key(1), queries, view, K)))
    for one, other in zip(found['float32'], found[dtype]):
      np.testing.assert_array_equal(one.rows, other.rows)
      self.assertLess(other.opened.mean(), one.opened.mean())

  @parameterized.parameters(*COARSE)
  def test_fewer_rows_than_are_asked_for(self, dtype):
    mesh = sharding.make_mesh(2)
    found = []
    for scan_dtype in ('float32', dtype):
      table = tables.create(
          np.eye(3, 4, dtype=np.float32), [7, -1, 2], mesh=mesh, chunk_rows=64,
          dtype='float32', scan_dtype=scan_dtype)
      view = View(table, scoring.uncorrected, jnp.float32(1), Scan(mesh, 64),
                  fold=scoring.unmoved)
      found.append(jax.device_get((
          scoring.best(np.eye(2, 4, dtype=np.float32), view, 200),
          scoring.gumbel_draws(jax.random.key(0), np.eye(
              2, 4, dtype=np.float32), view, 200))))
    for one, other in zip(*found):
      np.testing.assert_array_equal(one.rows, other.rows)
      np.testing.assert_array_equal(one.logits, other.logits)
      self.assertSetEqual({*one.rows.ravel()}, {-1, 0, 2})


class TableTest(parameterized.TestCase):

  @parameterized.product(dtype=COARSE, replacement=tables.REPLACEMENTS)
  def test_copies_follow_what_is_written(self, dtype, replacement):
    mesh = sharding.make_mesh(2)
    rng = np.random.default_rng(0)
    rows = lambda n: jnp.asarray(rng.standard_normal((n, DIM)), jnp.float32)
    table = tables.create(
        np.asarray(rows(40)), np.arange(40), mesh=mesh, chunk_rows=64,
        dtype='float32', replacement=replacement, scan_dtype=dtype)
    table = tables.write(table, jnp.asarray([3, -1, 3, 9]), rows(4), 1)
    table = tables.push(table, jnp.asarray([50, 4, 50, -1]), rows(4), 2)
    table = tables.emptied_from(table, 39)
    self.assertEqual(tables.scan_dtype_of(table), dtype)
    made = coarse.of(table.embeddings, dtype)
    for name, rtol in (('codes', 0), ('residual', 1e-4), ('norm', 1e-5)):
      np.testing.assert_allclose(
          getattr(table.coarse, name)[:39], getattr(made, name)[:39], rtol,
          err_msg=name)
    again = tables.with_embeddings(table, table.embeddings)
    np.testing.assert_array_equal(again.coarse.codes, made.codes)

  def test_it_is_one_of_three(self):
    with self.assertRaisesRegex(ValueError, "scan_dtype='int4' is not one of"):
      tables.empty(4, 2, sharding.make_mesh(1), 64, 'float32',
                   scan_dtype='int4')


class StepTest(parameterized.TestCase):

  @parameterized.product(
      dtype=COARSE, sampler=(samplers.Gumbel(2), samplers.TopK(2)))
  def test_trains_as_without_copies(self, dtype, sampler):
    """With rows written back, so that the copies have to follow."""
    mesh, found = sharding.make_mesh(2), []
    for scan_dtype in ('float32', dtype):
      method = helpers.method(
          sampler, push=True, write_back=True, memory=memories.Corpus(
              helpers.NUM_TARGETS, 'float32', helpers.CHUNK_ROWS,
              scan_dtype=scan_dtype))
      found.append(helpers.train(
          method, mesh, num_steps=4, optimizer=optax.sgd(1.),
          table_=tables.with_coarse(helpers.table(mesh), scan_dtype)))
    (exact, _), (state, metrics) = found
    # The same draws in another program, which rounds otherwise.
    np.testing.assert_allclose(
        state.params['words'], exact.params['words'], atol=1e-5)
    np.testing.assert_allclose(
        state.table.embeddings, exact.table.embeddings, atol=1e-5)
    made = coarse.of(state.table.embeddings, dtype)
    np.testing.assert_array_equal(state.table.coarse.codes, made.codes)
    self.assertGreaterEqual(metrics[-1]['blocks_opened'], 1)
    self.assertEqual(
        'log_z_error' in metrics[-1], isinstance(sampler, samplers.Gumbel))


if __name__ == '__main__':
  absltest.main()
