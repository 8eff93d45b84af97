from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax import sharding
from retrieval_jax.models import chunking
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import transformer
from tests import helpers

MODEL = dual_encoder.DualEncoder(transformer.TransformerConfig(
    vocab_size=40, hidden_size=8, num_layers=1, num_heads=2,
    intermediate_size=12, max_positions=24))


def texts(num, width, seed=0):
  """Returns tokens [num, width] of texts of all lengths, empty ones too."""
  random = np.random.default_rng(seed)
  tokens = random.integers(0, 40, (num, width))
  lengths = random.integers(0, width + 1, num)
  return np.where(np.arange(width) < lengths[:, None], tokens, -1).astype(
      np.int32)


def mesh(num_devices):
  return jax.make_mesh(
      (num_devices,), ('data',), devices=jax.devices()[:num_devices],
      axis_types=(jax.sharding.AxisType.Auto,))


def bag(params, tokens):
  """Encodes as a nonlinear bag of tokens: an encoder without parts."""
  mask = (tokens >= 0)[:, :, None]
  return jnp.tanh(jnp.sum(params['table'][tokens] * mask, 1) @ params['out'])


def value_and_grad(encode, tokens, weights):
  return jax.jit(jax.value_and_grad(
      lambda p: jnp.sum(weights * jnp.sin(3 * encode(p, tokens)))))


class ChunkedTest(parameterized.TestCase):

  @parameterized.product(
      num_and_chunk=((7, 3), (12, 4), (5, 8)), has_parts=(True, False))
  @pytest.mark.slow
  def test_equals_direct_values_and_gradients(self, num_and_chunk, has_parts):
    num, chunk_size = num_and_chunk
    tokens = texts(num, 18)
    params = jax.jit(MODEL.init)(jax.random.key(0))
    tower = MODEL.encode_targets
    direct = tower if has_parts else lambda p, t: tower(p, t)
    chunks = chunking.chunked(
        direct, chunk_size=chunk_size, buckets=(4, 12))
    weights = np.random.default_rng(1).normal(size=(num, 8)).astype('f')
    np.testing.assert_allclose(jax.jit(chunks)(params, tokens),
                               jax.jit(direct)(params, tokens), atol=1e-6)
    ours = value_and_grad(chunks, tokens, weights)(params)
    plain = value_and_grad(direct, tokens, weights)(params)
    self.assertEqual(jax.tree.structure(ours), jax.tree.structure(plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
        ours, plain)

  def test_equals_direct_in_float64(self):
    with helpers.float64():
      random = np.random.default_rng(0)
      params = {'table': random.normal(size=(40, 6)),
                'out': random.normal(size=(6, 3))}
      tokens, weights = texts(11, 9), random.normal(size=(11, 3))
      chunks = chunking.chunked(bag, chunk_size=4, buckets=(3, 6))
      jax.tree.map(
          lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
          value_and_grad(chunks, tokens, weights)(params),
          value_and_grad(bag, tokens, weights)(params))

  @parameterized.parameters((True,), (False,))
  @pytest.mark.slow
  def test_texts_may_be_sharded(self, with_mesh):
    tokens = texts(16, 12)
    weights = np.random.default_rng(1).normal(size=(16, 8)).astype('f')
    params = jax.jit(MODEL.init)(jax.random.key(0))
    devices = mesh(4)
    chunks = chunking.chunked(
        MODEL.encode_targets, chunk_size=8, buckets=(6,),
        layout=sharding.Layout(devices) if with_mesh else None)
    loss = lambda p, t: jnp.sum(weights * chunks(p, t))
    gradient = jax.jit(jax.grad(loss))(params, jax.device_put(
        tokens, sharding.batch(devices)))
    plain = jax.jit(jax.grad(lambda p: jnp.sum(
        weights * MODEL.encode_targets(p, tokens))))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        gradient, plain)

  def test_other_lengths_do_not_recompile(self):
    params = {'table': jnp.ones((40, 6)), 'out': jnp.ones((6, 3))}
    traces = []

    def counted(params, tokens):
      traces.append(tokens.shape)
      return bag(params, tokens)

    step = jax.jit(jax.grad(lambda p, t: jnp.sum(chunking.chunked(
        counted, chunk_size=4, buckets=(3, 6))(p, t))))
    step(params, texts(8, 9, seed=0))
    before = len(traces)
    for seed in range(3):
      step(params, texts(8, 9, seed=seed))
    self.assertLen(traces, before)

  @pytest.mark.slow
  def test_memory_is_that_of_one_chunk(self):
    params = jax.jit(MODEL.init)(jax.random.key(0))
    tokens = texts(256, 24)

    def temporary_bytes(encode):
      step = jax.jit(jax.grad(lambda p: jnp.sum(encode(p, tokens))))
      return step.lower(params).compile().memory_analysis().temp_size_in_bytes

    chunks = chunking.chunked(
        MODEL.encode_targets, chunk_size=16, buckets=(12,))
    self.assertLess(temporary_bytes(chunks),
                    temporary_bytes(MODEL.encode_targets) / 4)

  def test_without_chunk_size_it_is_encode_itself(self):
    self.assertIs(chunking.chunked(bag, chunk_size=None), bag)

  def test_equal_when_built_from_equal_parts(self):
    make = lambda size: chunking.chunked(
        MODEL.encode_targets, chunk_size=size, buckets=(4,))
    self.assertEqual(make(4), make(4))
    self.assertEqual(hash(make(4)), hash(make(4)))
    self.assertNotEqual(make(4), make(8))

  def test_token_table_by_rows_is_refused(self):
    layout = sharding.Layout(mesh(4), min_size=1, rules=(('token_table', 0),))
    encode = chunking.chunked(
        MODEL.encode_targets, chunk_size=4, layout=layout)
    with self.assertRaisesRegex(ValueError, 'token table .* sharded by rows'):
      jax.eval_shape(encode, jax.eval_shape(MODEL.init, jax.random.key(0)),
                     jax.ShapeDtypeStruct((4, 8), np.int32))

  def test_wrong_options_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'chunk_size=6 must be .* the 4'):
      chunking.chunked(bag, chunk_size=6, layout=sharding.Layout(mesh(4)))
    with self.assertRaisesRegex(ValueError, 'buckets=.* must be .*ascending'):
      chunking.chunked(bag, chunk_size=6, buckets=(4, 4))


if __name__ == '__main__':
  absltest.main()
