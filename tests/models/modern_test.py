"""The block of today's encoders; families_test has the references."""

import dataclasses
import os

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from retrieval_jax import files
from retrieval_jax.data import settings
from retrieval_jax.data import tokenization
from retrieval_jax.models import families
from retrieval_jax.models import modern
from retrieval_jax.models import pretrained
from retrieval_jax.models import sentence_modules
from tests.models import families_test

SIZES = dict(vocab_size=20, hidden_size=8, num_layers=2, num_heads=4,
             num_kv_heads=2, head_size=6, intermediate_size=12,
             max_positions=32, norm='rms', norm_at='before', norm_eps=1e-6,
             activation='silu', theta=100., model_type='qwen3')


def hidden_of(config, params, tokens):
  return jax.jit(lambda p, t: config.module().apply({'params': p}, t))(
      params, tokens)


def fixture(name):
  """Returns (config, params, tokens with -1 for padding, hidden vectors)."""
  config, params, head = pretrained.load_pretrained(
      families_test.folder_of(name))
  wanted = families_test.reference(name)
  tokens, _ = tokenization.load_tokenizer(
      families_test.folder_of(name)).encode_batch(
          list(wanted['texts']), head.max_length)
  return config, params, tokens, wanted['hidden']


class ReferenceTest(parameterized.TestCase):
  """That equality with the reference in families_test can fail."""

  @parameterized.parameters(
      ('modernbert', dict(theta=10_000.)),
      ('modernbert', dict(local_theta=160_000.)),
      ('modernbert', dict(window=5)), ('modernbert', dict(window=7)),
      ('modernbert', dict(global_layers=None)),
      ('modernbert', dict(global_layers=(1,))),
      ('modernbert', dict(activation='gelu_tanh')),
      ('modernbert', dict(causal=True)),
      ('nomic_bert', dict(theta=10_000.)),
      ('nomic_bert', dict(activation='gelu')),
      ('gte', dict(ntk_factor=2.)), ('gte', dict(activation='silu')),
      ('gemma3_text', dict(norm='rms')),
      ('gemma3_text', dict(embedding_scale=1.)),
      ('gemma3_text', dict(query_scale=0.)),
      ('gemma3_text', dict(window=5)), ('gemma3_text', dict(window=7)),
      ('gemma3_text', dict(causal=True)),
      ('gemma3_text', dict(local_theta=1e6)),
      ('gemma3_causal', dict(window=4)), ('gemma3_causal', dict(window=6)),
      ('gemma3_causal', dict(causal=False)),
      ('qwen3', dict(theta=1e6)), ('qwen3', dict(causal=False)),
      ('qwen3', dict(qk_norm=False)), ('llama', dict(theta=10_000.)),
      ('llama', dict(biases=('qkv', 'up', 'down'))),
      ('mistral', dict(window=4)), ('mistral', dict(window=6)),
      ('mistral', dict(global_layers=None)),
      ('eurobert', dict(causal=True)))
  def test_another_variant_differs(self, name, change):
    config, params, tokens, hidden = fixture(name)
    used = tokens >= 0
    found = hidden_of(dataclasses.replace(config, **change), params, tokens)
    self.assertGreater(np.abs(found - hidden)[used].max(), 3e-4)

  @parameterized.parameters(*families_test.MODERN)
  def test_swapped_halves_of_the_gate_differ(self, name):
    config, params, tokens, hidden = fixture(name)
    kernel = params['layer_0']['mlp']['up_kernel']
    params['layer_0']['mlp']['up_kernel'] = np.roll(
        kernel, kernel.shape[1] // 2, axis=1)
    found = hidden_of(config, params, tokens)
    self.assertGreater(np.abs(found - hidden)[tokens >= 0].max(), 1e-2)

  @parameterized.parameters(*families_test.MODERN)
  @pytest.mark.slow
  def test_neither_padding_nor_other_texts_count(self, name):
    config, params, tokens, hidden = fixture(name)
    longer = np.pad(tokens, ((0, 0), (0, 7)), constant_values=-1)
    for i, count in enumerate((tokens >= 0).sum(1)):
      for row in (tokens[i, :count], longer[i]):
        np.testing.assert_allclose(
            hidden_of(config, params, row[None])[0, :count], hidden[i, :count],
            atol=2e-5)

  @pytest.mark.slow
  def test_a_text_of_no_tokens_is_finite(self):
    for name in families_test.MODERN:
      config, params, tokens, _ = fixture(name)
      nothing = np.full_like(tokens[:1], -1)
      value, gradient = jax.jit(jax.value_and_grad(
          lambda p, config=config, nothing=nothing: config.module().apply(
              {'params': p}, nothing).sum()))(params)
      self.assertTrue(np.isfinite(value))
      jax.tree.map(lambda g: self.assertTrue(np.isfinite(g).all()), gradient)

  @parameterized.parameters('modernbert', 'gemma3_text', 'qwen3')
  @pytest.mark.slow
  def test_bfloat16_and_remat_are_near_in_value_and_gradient(self, name):
    config, params, tokens, _ = fixture(name)

    def gradient(**options):
      module = dataclasses.replace(config, **options).module()
      return jax.jit(jax.value_and_grad(lambda p: (
          module.apply({'params': p}, tokens[:3])[:, 0] ** 2).mean()))(params)

    plain, again = gradient(), gradient(remat=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, atol=1e-5, rtol=1e-4), again, plain)
    value, half = gradient(dtype='bfloat16')
    np.testing.assert_allclose(value, plain[0], rtol=.05)
    kernel = half['layer_0']['attention']['qkv_kernel']
    self.assertEqual(kernel.dtype, np.float32)
    self.assertGreater(np.abs(kernel).max(), 0)

  def test_the_first_layers_are_those_of_the_whole(self):
    config, params, _ = pretrained.load_pretrained(
        families_test.folder_of('modernbert'), num_layers=2)
    whole = fixture('modernbert')[1]
    self.assertEqual(config.num_layers, 2)
    self.assertNotIn('layer_2', params)
    jax.tree.map(np.testing.assert_array_equal, params['layer_1'],
                 whole['layer_1'])

  def test_the_last_token_is_pooled_though_padding_has_its_name(self):
    # https://github.com/QwenLM/Qwen3-Embedding/issues/122
    tokenizer = tokenization.load_tokenizer(families_test.folder_of('qwen3'))
    _, _, tokens, _ = fixture('qwen3')
    last = (tokens >= 0).sum(1) - 1
    np.testing.assert_array_equal(
        tokens[np.arange(len(tokens)), last], tokenizer.pad_id)


class ConfigTest(parameterized.TestCase):

  def test_flops_are_those_of_the_matmuls(self):
    config = modern.ModernConfig(**SIZES)
    length, hidden, inner, keys, wide = 7, 8, 24, 12, 12
    self.assertEqual(config.flops(length), 2 * 2 * (
        length * hidden * (2 * inner + 2 * keys + 3 * wide)
        + 2 * length * length * inner))

  def test_ntk_scaling_is_that_of_the_formula(self):
    # As GTE's and others' code has it: the base times the factor, and all
    # wavelengths times factor^(2 / S).
    length, size, theta, factor = 9, 10, 1000., 4.
    inverse = 1 / (theta * factor) ** (np.arange(0, size, 2) / size)
    inverse = inverse / factor ** (2 / size)
    found = modern.rotation(length, size, theta, factor)
    angles = np.arange(length)[:, None] * inverse[None]
    np.testing.assert_allclose(found[0], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(found[1], np.sin(angles), atol=1e-6)
    np.testing.assert_allclose(inverse[-1] * factor, theta ** -.8)

  def test_rotation_leaves_products_of_equal_distance(self):
    turn = modern.rotation(12, 6, 50.)
    x, y = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 6))
    everywhere = lambda v: np.asarray(modern.rotate(
        np.tile(v, (1, 12, 1, 1)).astype(np.float32), turn))[0, :, 0]
    products = everywhere(x) @ everywhere(y).T
    for distance in range(-5, 6):
      diagonal = np.diagonal(products, distance)
      np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    self.assertGreater(np.ptp(products[0]), .1)

  @parameterized.parameters(
      (dict(num_heads=0), 'num_heads=0 must be at least 1'),
      (dict(num_layers=-1), 'num_layers=-1 must not be negative'),
      (dict(num_kv_heads=3), 'must be a multiple of num_kv_heads=3'),
      (dict(head_size=5), 'head_size=5 must be even'),
      (dict(norm='batch'), "norm='batch' must be one of layer, rms"),
      (dict(norm_at='within'), "norm_at='within' must be one of before"),
      (dict(activation='relu'), "activation='relu' must be one of gelu"),
      (dict(theta=0.), 'theta=0.0 must be positive'),
      (dict(global_layers=()), 'local_theta=0.0 must be positive'),
      (dict(pad_id=20), 'pad_id=20 must lie in'),
      (dict(dtype='float16'), "dtype='float16' must be one of float32"))
  def test_wrong_configs_are_refused(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      modern.ModernConfig(**SIZES | options)

  def test_lists_of_json_become_tuples(self):
    config = modern.ModernConfig(
        **SIZES | dict(global_layers=[0], local_theta=9., biases=['qkv']))
    self.assertEqual(config, modern.ModernConfig(**dataclasses.asdict(config)))
    hash(config)

  def test_too_long_texts_are_refused(self):
    config = modern.ModernConfig(**SIZES)
    with self.assertRaisesRegex(ValueError, 'L=33, but .*max_positions=32'):
      config.module().init(jax.random.key(0), np.zeros((1, 33), np.int32))


class FilesTest(parameterized.TestCase):

  def read(self, name, changes=None, drop=()):
    values = files.read_json(
        os.path.join(families_test.folder_of(name), 'config.json'))
    values = {key: value for key, value in values.items() if key not in drop}
    return families.FAMILIES[values['model_type']].read_config(
        settings.Settings(values | (changes or {}), 'config.json'))

  def test_gpt_names_of_nomic_bert(self):
    # nomic-embed-text-v1.5's config.json has these.
    old = {
        'model_type': 'nomic_bert', 'n_embd': 32, 'n_layer': 2, 'n_head': 4,
        'n_inner': 40, 'n_positions': 64, 'rotary_emb_base': 1000,
        'rotary_emb_fraction': 1.0, 'rotary_scaling_factor': None,
        'activation_function': 'swiglu', 'layer_norm_epsilon': 1e-12,
        'prenorm': False, 'qkv_proj_bias': False, 'type_vocab_size': 2,
        'vocab_size': self.read('nomic_bert').vocab_size, 'pad_token_id': 0}
    read = families.FAMILIES['nomic_bert'].read_config
    self.assertEqual(read(settings.Settings(old, 'config.json')),
                     self.read('nomic_bert'))
    for key, value in (('rotary_emb_fraction', .5), ('num_experts', 8),
                       ('activation_function', 'gelu'), ('prenorm', True)):
      with self.assertRaisesRegex(ValueError, f'{key}={value!r} is not supp'):
        read(settings.Settings(old | {key: value}, 'config.json'))

  def test_rotations_in_the_form_of_older_files(self):
    self.assertEqual(
        self.read('modernbert', {'global_rope_theta': 160_000.,
                                 'local_rope_theta': 10_000.,
                                 'global_attn_every_n_layers': 3},
                  drop=['rope_parameters', 'layer_types']),
        self.read('modernbert'))
    self.assertEqual(
        self.read('modernbert', {'global_rope_theta': 7., 'local_rope_theta': 5,
                                 'global_attn_every_n_layers': 2},
                  drop=['rope_parameters', 'layer_types']),
        dataclasses.replace(self.read('modernbert'), theta=7., local_theta=5.,
                            global_layers=(0, 2)))
    self.assertEqual(
        self.read('gemma3_text', {'rope_theta': 1e6,
                                  'sliding_window_pattern': 2,
                                  'rope_local_base_freq': 1e4},
                  drop=['rope_parameters', 'layer_types']),
        self.read('gemma3_text'))
    self.assertEqual(
        self.read('qwen3', {'rope_theta': 1e6}, drop=['rope_parameters']).theta,
        1e6)

  def test_gte_before_transformers_knew_it(self):
    alibabas = {'model_type': 'new', 'rope_theta': 20_000,
                'rope_scaling': {'type': 'ntk', 'factor': 8.0},
                'position_embedding_type': 'rope', 'pack_qkv': True,
                'layer_norm_type': 'layer_norm', 'logn_attention_scale': False}
    config = self.read('gte', alibabas, drop=['rope_parameters'])
    self.assertEqual((config.theta, config.ntk_factor, config.model_type),
                     (20_000., 8., 'new'))
    family = families.FAMILIES['new']
    self.assertEqual(family.canonical('new.encoder.layer.0.attn_ln.weight'),
                     'encoder.layer.0.attn_ln.weight')
    again = family.read_config(settings.Settings(
        family.write_config(config), 'config.json'))
    self.assertEqual(again, config)
    plain = self.read('gte', alibabas | {'rope_scaling': None},
                      drop=['rope_parameters'])
    self.assertEqual((plain.model_type, plain.ntk_factor), ('gte', 1.))

  @parameterized.parameters(
      ('modernbert', {'hidden_activation': 'silu'}, "hidden_activation='silu'"),
      ('modernbert', {'layer_types': ['full_attention']}, 'to be 3 of'),
      ('modernbert', {'layer_types': ['full_attention'] * 2 + ['linear']},
       'with linear'),
      ('llama', {'rope_scaling': {'rope_type': 'llama3', 'factor': 32.}},
       "rope_type='llama3' is not supported"),
      ('llama', {'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1.}},
       "rope_type='yarn' is not supported"),
      ('qwen3', {'use_sliding_window': True}, 'use_sliding_window=True'),
      ('qwen2', {'hidden_act': 'gelu'}, "hidden_act='gelu' is not"),
      ('llama', {'hidden_size': 30, 'head_dim': None}, 'no multiple of the 4'),
      ('gte', {'pack_qkv': False}, 'pack_qkv=False is not supported'),
      ('gemma3_text', {'sliding_window': 257}, 'is odd.* write 512'),
      ('gemma3_text', {'attn_logit_softcapping': 50.}, 'softcapping=50.0'))
  def test_what_is_not_supported_is_named(self, name, change, message):
    with self.assertRaisesRegex(ValueError, message):
      self.read(name, change)

  def test_an_unknown_padding_token_is_none(self):
    self.assertIsNone(self.read('qwen3', {'pad_token_id': None}).pad_id)

  def test_dense_layers_in_a_row_must_be_linear_but_for_the_last(self):
    folder = families_test.copied(self, 'gemma3_text')
    path = os.path.join(folder, '2_Dense')
    values = files.read_json(os.path.join(path, 'config.json'))
    files.write_json(os.path.join(path, 'config.json'), values | {
        'activation_function': 'torch.nn.modules.activation.Tanh'})
    with self.assertRaisesRegex(ValueError, 'an activation before another'):
      sentence_modules.read(folder)

  def test_biases_of_dense_layers_in_a_row_add_up(self):
    folder = families_test.copied(self, 'gemma3_text')
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 32)).astype(np.float32)
    wanted = x
    for name, inputs, outputs in (('2_Dense', 32, 48), ('3_Dense', 48, 24)):
      dense = sentence_modules.Dense(
          random.normal(size=(inputs, outputs)).astype(np.float32),
          random.normal(size=outputs).astype(np.float32))
      other = self.create_tempdir().full_path
      sentence_modules.write(other, sentence_modules.Head(
          pooling='mean', dense=dense, normalize=False, max_length=9), inputs)
      for file in ('config.json', 'model.safetensors'):
        os.replace(os.path.join(other, '2_Dense', file),
                   os.path.join(folder, name, file))
      wanted = wanted @ dense.kernel + dense.bias
    found = sentence_modules.read(folder).dense
    np.testing.assert_allclose(
        x @ found.kernel + found.bias, wanted, rtol=1e-5, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
