import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax.models import dual_encoder
from retrieval_jax.models import transformer

CONFIG = transformer.TransformerConfig(
    vocab_size=30, hidden_size=8, num_layers=2, num_heads=2,
    intermediate_size=12, max_positions=10, type_vocab_size=2)
TOKENS = np.array(
    [[3, 4, 5, -1, -1, -1], [7, 8, 9, 10, 11, 12], [-1] * 6])


class DualEncoderTest(parameterized.TestCase):

  @parameterized.parameters(
      dict(pooling='mean', projection=None, tied=True, learn_scale=False),
      dict(pooling='mean', projection=5, tied=False, learn_scale=True),
      dict(pooling='cls', projection=5, tied=True, learn_scale=False),
      dict(pooling='cls', projection=None, tied=False, learn_scale=True))
  @pytest.mark.slow
  def test_every_variant_embeds(self, **options):
    model = dual_encoder.DualEncoder(CONFIG, **options)
    params = jax.jit(model.init)(jax.random.key(0))
    targets = jax.jit(model.encode_targets)(params, TOKENS)
    queries = jax.jit(model.encode_queries)(params, TOKENS)
    self.assertEqual(targets.shape, (3, model.dim))
    self.assertEqual(targets.dtype, jnp.float32)
    np.testing.assert_allclose(
        jnp.linalg.norm(targets[:2], axis=1), 1., atol=1e-6)
    self.assertEqual(bool(jnp.all(targets == queries)), options['tied'])
    np.testing.assert_allclose(model.scale_of(params), 20., rtol=1e-6)
    self.assertEqual('log_scale' in params, options['learn_scale'])

  @parameterized.parameters(*dual_encoder.POOLINGS)
  def test_padding_changes_nothing(self, pooling):
    model = dual_encoder.DualEncoder(CONFIG, pooling=pooling)
    params = jax.jit(model.init)(jax.random.key(0))
    np.testing.assert_allclose(
        jax.jit(model.encode_targets)(params, TOKENS[:1]),
        jax.jit(model.encode_targets)(params, TOKENS[:1, :3]), atol=1e-6)

  @parameterized.parameters(*dual_encoder.POOLINGS)
  def test_text_of_padding_only_is_finite(self, pooling):
    model = dual_encoder.DualEncoder(CONFIG, pooling=pooling)
    params = jax.jit(model.init)(jax.random.key(0))
    total = lambda p: jnp.sum(model.encode_targets(p, TOKENS)[:, 0])
    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    self.assertTrue(np.isfinite(value))
    for leaf in jax.tree.leaves(gradient):
      self.assertTrue(np.all(np.isfinite(leaf)))

  def test_remat_gives_the_same_gradient(self):
    def gradient(remat):
      model = dual_encoder.DualEncoder(
          dataclasses.replace(CONFIG, remat=remat))
      params = jax.jit(model.init)(jax.random.key(0))
      return jax.jit(jax.grad(
          lambda p: model.encode_targets(p, TOKENS)[0, 0]))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
                 gradient(False), gradient(True))

  @pytest.mark.slow
  def test_bfloat16_is_near_and_returns_float32(self):
    model = dual_encoder.DualEncoder(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0))
    half = dual_encoder.DualEncoder(
        dataclasses.replace(CONFIG, dtype='bfloat16'))
    embeddings = jax.jit(half.encode_targets)(params, TOKENS)
    self.assertEqual(embeddings.dtype, jnp.float32)
    np.testing.assert_allclose(
        embeddings, jax.jit(model.encode_targets)(params, TOKENS), atol=2e-2)
    gradient = jax.jit(jax.grad(
        lambda p: half.encode_targets(p, TOKENS)[0, 0]))(params)
    for leaf in jax.tree.leaves(gradient):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_learned_scale_is_the_exponential_of_its_parameter(self):
    model = dual_encoder.DualEncoder(CONFIG, scale=7., learn_scale=True)
    params = jax.jit(model.init)(jax.random.key(0))
    np.testing.assert_allclose(
        jax.grad(model.scale_of)(params)['log_scale'], 7., rtol=1e-6)

  def test_flops_are_those_of_the_matmuls(self):
    model = dual_encoder.DualEncoder(CONFIG, projection=5)
    length, hidden, wide = 6, 8, 12
    per_token = (4 * hidden * hidden + 2 * hidden * wide  # dense layers
                 + 2 * length * hidden)  # scores and their weighted sum
    self.assertEqual(model.flops(length),
                     2 * (2 * length * per_token + hidden * 5))

  @pytest.mark.slow
  def test_tower_is_the_composition_of_its_parts(self):
    model = dual_encoder.DualEncoder(CONFIG, tied=False)
    params = jax.jit(model.init)(jax.random.key(0))
    encode = model.encode_targets
    table, rest = encode.split(params)
    np.testing.assert_array_equal(
        jax.jit(encode)(params, TOKENS),
        jax.jit(encode.body)(rest, table[TOKENS], TOKENS))
    jax.tree.map(np.testing.assert_array_equal, params,
                 encode.merge(table, rest))
    self.assertEqual(encode, model.encode_targets)
    self.assertEqual(hash(encode), hash(model.encode_targets))

  def test_weights_of_another_shape_are_refused(self):
    model = dual_encoder.DualEncoder(CONFIG)
    other = dual_encoder.DualEncoder(
        dataclasses.replace(CONFIG, num_layers=1))
    with self.assertRaisesRegex(ValueError, 'layer_1.*None'):
      model.with_pretrained(
          jax.jit(model.init)(jax.random.key(0)),
          jax.jit(other.init)(jax.random.key(0))['tower'])

  @parameterized.parameters(
      (dict(pooling='sum'), "pooling='sum' must be one of mean, cls"),
      (dict(projection=0), 'projection=0 must be at least 1'),
      (dict(scale=0.), 'scale=0.0 must be positive'))
  def test_wrong_options_are_refused(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      dual_encoder.DualEncoder(CONFIG, **options)

  @parameterized.parameters(
      (dict(num_heads=3), 'hidden_size=8 must be a multiple of num_heads=3'),
      (dict(dtype='float16'), "dtype='float16' must be one of float32"),
      (dict(pad_id=30), 'pad_id=30 must lie in'),
      (dict(vocab_size=0), 'vocab_size=0 must be at least 1'))
  def test_wrong_configs_are_refused(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      dataclasses.replace(CONFIG, **options)

  def test_wrong_tokens_are_refused(self):
    model = dual_encoder.DualEncoder(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0))
    with self.assertRaisesRegex(ValueError, 'L=11, but .*max_positions=10'):
      jax.jit(model.encode_targets)(params, np.ones((1, 11), np.int32))
    with self.assertRaisesRegex(ValueError, r'expected two dimensions'):
      jax.jit(model.encode_targets)(params, np.ones((1, 2, 3), np.int32))


if __name__ == '__main__':
  absltest.main()
