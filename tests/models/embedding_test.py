import types

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import sharding
from retrieval_jax.models import embedding

PARAMS = {'table': np.random.default_rng(0).normal(size=(40, 6)).astype('f')}


def bag(params, tokens):
  mask = (tokens >= 0)[:, :, None]
  return jnp.sum(jnp.sin(params['table'][tokens]) * mask, axis=1)


def store(num, width=13):
  random = np.random.default_rng(1)
  lengths = random.integers(0, width + 1, num)
  tokens = random.integers(0, 40, (num, width))  # behind the texts, too
  return types.SimpleNamespace(tokens=tokens.astype(np.uint16), lengths=lengths)


def padded(texts, rows=slice(None)):
  tokens, lengths = texts.tokens[rows].astype(np.int32), texts.lengths[rows]
  return np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, -1)


class EmbedTest(parameterized.TestCase):

  @parameterized.parameters(0, 1, 3, 8)
  def test_equals_encoding_all_at_once(self, num_devices):
    texts = store(57)
    mesh = jax.make_mesh(
        (num_devices,), ('data',), devices=jax.devices()[:num_devices],
        axis_types=(jax.sharding.AxisType.Auto,)) if num_devices else None
    done = []
    ours = embedding.embed(
        bag, PARAMS, texts, mesh=mesh, batch_tokens=120, buckets=(4, 8, 32),
        progress=done.append)
    np.testing.assert_allclose(
        ours, bag(PARAMS, padded(texts)), atol=1e-5)
    self.assertEqual(sum(done), 57)

  def test_rows_come_in_their_order_and_may_repeat(self):
    texts = store(20)
    embed = lambda rows: embedding.embed(
        bag, PARAMS, texts, rows=rows, batch_tokens=64, buckets=(4, 8))
    np.testing.assert_array_equal(embed([7, 2, 7]), embed(None)[[7, 2, 7]])
    self.assertEqual(embed([]).shape, (0, 6))

  @parameterized.parameters(1, 4)
  def test_embeddings_go_to_their_rows_on_the_devices(self, num_devices):
    texts, random = store(57), np.random.default_rng(2)
    mesh = sharding.make_mesh(num_devices)
    before = random.normal(size=(64, 6)).astype(np.float32)
    ids, rows = random.permutation(57)[:40], random.permutation(64)[:40]
    options = dict(mesh=mesh, batch_tokens=120, buckets=(4, 8, 32))
    for dtype in (jnp.float32, jnp.bfloat16):
      array, done = jax.device_put(
          before.astype(dtype), sharding.rows(mesh)), []
      found = embedding.embed_onto(
          array, bag, PARAMS, texts, texts=ids, rows=rows,
          progress=done.append, **options)
      wanted = before.astype(dtype)
      wanted[rows] = embedding.embed(bag, PARAMS, texts, rows=ids, **options)
      np.testing.assert_array_equal(found, wanted)
      self.assertEqual(found.sharding, sharding.rows(mesh))
      self.assertTrue(array.is_deleted())  # overwritten, not copied
      self.assertEqual(sum(done), 40)

  def test_second_call_traces_nothing(self):
    traces = []

    def counted(params, tokens):
      traces.append(tokens.shape)
      return bag(params, tokens)

    run = lambda rows: embedding.embed(
        counted, PARAMS, store(50), rows=rows, batch_tokens=64,
        buckets=(4, 8))
    run(None)
    self.assertCountEqual(traces, [(16, 4), (8, 8), (4, 13)])
    run(range(10, 50))
    self.assertLen(traces, 3)

  def test_few_texts_are_not_padded_to_a_batch_of_a_corpus(self):
    traces = []

    def counted(params, tokens):
      traces.append(tokens.shape)
      return bag(params, tokens)

    texts = store(50)
    fits = np.flatnonzero(texts.lengths <= 4)
    rows = np.concatenate([fits[:3], np.flatnonzero(texts.lengths > 8)[:1]])
    np.testing.assert_allclose(
        embedding.embed(counted, PARAMS, texts, rows=rows, batch_tokens=1300,
                        buckets=(4, 8)),
        bag(PARAMS, padded(texts, rows)), atol=1e-5)
    self.assertCountEqual(traces, [(4, 4), (1, 13)])

  def test_result_has_the_dtype_asked_for(self):
    ours = embedding.embed(bag, PARAMS, store(5), dtype=np.float16)
    self.assertEqual(ours.dtype, np.float16)

  def test_works_where_implicit_transfers_are_refused(self):
    with jax.transfer_guard('disallow'):
      embedding.embed(bag, PARAMS, store(5))

  def test_wrong_options_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'buckets=.* ascending'):
      embedding.embed(bag, PARAMS, store(5), buckets=(8, 4))
    with self.assertRaisesRegex(
        ValueError, 'batch_tokens=5 must be at least one text of 13 tokens'):
      embedding.embed(bag, PARAMS, store(5), buckets=(), batch_tokens=5)


if __name__ == '__main__':
  absltest.main()
