"""Adapters to every family; those in adapters/ are of experiments/dev."""

import dataclasses
import functools
import json
import os
import re
import shutil

from absl.testing import absltest
from absl.testing import parameterized
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from retrieval_jax import base_params
from retrieval_jax import sharding
from retrieval_jax.data import tensor_files
from retrieval_jax.data import tokenization
from retrieval_jax.models import chunking
from retrieval_jax.models import lora
from retrieval_jax.models import peft
from retrieval_jax.models import pretrained
from tests.models import families_test

FOLDER = os.path.join(os.path.dirname(__file__), 'adapters')
PEFT = ('bert', 'modernbert', 'gemma3_text', 'qwen3', 't5')


def adapted(name, made, noise=True):
  """Returns (model, params, plain model, plain params), B of noise or zero."""
  plain, params, _ = families_test.load(name)
  model = dataclasses.replace(plain, lora=made)
  ours = made.adapt(
      plain.config, params, plain.tower_names, jax.random.key(1))
  rng = np.random.default_rng(0)
  ours['tower']['lora'] = jax.tree.map(
      lambda x: (x + .2 * noise * rng.normal(size=x.shape)).astype(np.float32),
      ours['tower']['lora'])
  return model, ours, plain, params


def tokens_of(name, number=5):
  return tokenization.load_tokenizer(
      families_test.folder_of(name)).encode_batch(
          list(families_test.reference(name)['texts']), 48)[0][:number]


def with_base(test, name):
  """Returns a copy of an adapter's folder, which names the base's."""
  folder = shutil.copytree(
      os.path.join(FOLDER, name),
      os.path.join(test.create_tempdir().full_path, name))
  change(folder, base_model_name_or_path=families_test.folder_of(name))
  return folder


def change(folder, **settings):
  path = os.path.join(folder, peft.CONFIG)
  with open(path, encoding='utf-8') as f:
    found = json.load(f)
  with open(path, 'w', encoding='utf-8') as f:
    json.dump({**found, **settings}, f)


class LoraTest(parameterized.TestCase):

  @parameterized.parameters(*families_test.NAMES)
  def test_what_is_added_is_what_is_merged(self, name):
    model, params, plain, base = adapted(name, lora.Lora(3, 2.))
    tokens = tokens_of(name)
    found = jax.jit(model.encode_targets)(params, tokens)
    self.assertGreater(
        np.abs(found - jax.jit(plain.encode_targets)(base, tokens)).max(), .01)
    whole, merged = model.merged(params)
    self.assertEqual(whole, plain)
    np.testing.assert_allclose(
        jax.jit(whole.encode_targets)(merged, tokens), found,
        rtol=1e-4, atol=2e-5)

  @parameterized.parameters(*families_test.NAMES)
  def test_at_first_it_is_the_base(self, name):
    model, params, plain, base = adapted(name, lora.Lora(3, 2.), noise=False)
    tokens = tokens_of(name)
    np.testing.assert_array_equal(
        jax.jit(model.encode_targets)(params, tokens),
        jax.jit(plain.encode_targets)(base, tokens))

  @parameterized.parameters(
      ('qwen3', r'.*\.v_proj', 2), ('qwen3', r'.*\.(k|o)_proj', 4),
      ('qwen3', r'layers\.1\..*', 7), ('bert', r'.*query', 2),
      ('bert', r'query', 0))
  def test_targets_are_whole_names(self, name, targets, number):
    made = lora.Lora(2, 4., targets)
    config = families_test.load(name)[0].config
    if not number:
      with self.assertRaisesRegex(
          ValueError, r"lora.targets='query' matches no module .* encoder\."
          r'layer\.N\.attention\.self\.query, '):
        made.places(config)
      return
    self.assertLen(made.places(config), number)
    model, params, _, _ = adapted(name, made)
    tokens = tokens_of(name)
    whole, merged = model.merged(params)
    np.testing.assert_allclose(
        jax.jit(whole.encode_targets)(merged, tokens),
        jax.jit(model.encode_targets)(params, tokens), rtol=1e-4, atol=2e-5)
    kernel = merged['tower']['transformer']['layer_0']['attention']
    base = params['base']['tower']['transformer']['layer_0']['attention']
    for name_of_kernel, value in kernel.items():
      columns = (value != base[name_of_kernel]).reshape(-1, value.shape[-1])
      adapted_columns = columns.any(axis=0)
      for place in lora.places(config):
        if place.kernel[:2] == ('layer_0', 'attention') and (
            place.kernel[2] == name_of_kernel):
          self.assertEqual(
              adapted_columns[place.first:place.first + place.outputs].all(),
              place in made.places(config))

  def test_the_formula(self):
    made = lora.Lora(2, 6., r'.*\.up_proj')
    _, params, _, base = adapted('qwen3', made)
    _, merged = dataclasses.replace(
        families_test.load('qwen3')[0], lora=made).merged(params)
    pair = params['tower']['lora']['layer_1']['mlp']['up_kernel']
    (first, pair), = pair.items()  # behind the gate
    after, before = (whole['tower']['transformer']['layer_1']['mlp']
                     for whole in (merged, base))
    wide = len(before['down_kernel'])
    self.assertEqual(int(first), wide)
    added = after['up_kernel'] - before['up_kernel']
    np.testing.assert_allclose(
        added[:, wide:], 3 * pair['a'] @ pair['b'], atol=1e-5)
    np.testing.assert_array_equal(added[:, :wide], 0)

  def test_initial_values_are_those_of_peft(self):
    made = lora.Lora(64, 1.)
    adapters = traverse_util.flatten_dict(made.init(
        families_test.load('bert')[0].config, jax.random.key(0)))
    a, b = (np.concatenate([
        np.ravel(value) * (value.shape[0] ** .5 if part == 'a' else 1)
        for (*_, of), value in adapters.items() if of == part])
            for part in 'ab')
    self.assertLess(np.abs(a).max(), 1)
    np.testing.assert_allclose(a.std(), 3 ** -.5, rtol=.02)
    np.testing.assert_array_equal(b, 0)

  @parameterized.parameters((None, 1), (2, 1), (4, 4), (4, 2))
  @pytest.mark.slow
  def test_gradients_are_those_of_all_at_once_and_of_adapters_alone(
      self, chunk_size, devices):
    model, params, _, _ = adapted('modernbert', lora.Lora(3, 2.))
    trained, base = base_params.split(params)
    tokens = tokens_of('modernbert', 4)
    layout = sharding.Layout(
        sharding.make_mesh(devices), 256 if devices > 1 else None)
    encode = chunking.chunked(
        model.encode_targets, chunk_size=chunk_size, buckets=(16, 48),
        layout=layout)

    def loss(encode, trained, base, tokens):
      out = encode(base_params.join(trained, base), tokens)
      return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum()

    wanted = jax.jit(jax.grad(functools.partial(loss, model.encode_targets)))(
        trained, base, tokens)
    found = jax.jit(jax.grad(functools.partial(loss, encode)))(
        jax.device_put(trained, layout.shardings(trained)),
        jax.device_put(base, layout.shardings(base)),
        sharding.put_batch(tokens, layout.mesh))
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(
        ours, theirs, rtol=1e-3, atol=2e-5), found, wanted)
    self.assertGreater(largest(wanted), 1e-2)

  @pytest.mark.slow
  def test_the_kernels_own_gradient_is_not_computed(self):
    model, params, plain, base = adapted('modernbert', lora.Lora(1, 2.))
    tokens = tokens_of('modernbert', 4)

    def flops(model, params):
      trained, stays = base_params.split(params)
      encode = chunking.chunked(model.encode_targets, chunk_size=4)
      grad = jax.grad(lambda trained, stays: encode(
          base_params.join(trained, stays), tokens).sum())
      return jax.jit(grad).lower(
          trained, stays).compile().cost_analysis()['flops']

    # Forward, again, and through the kernels: 3 of 4, and what is not matmuls.
    self.assertLess(flops(model, params), .87 * flops(plain, base))

  def test_a_base_in_bfloat16_is_rounded_where_it_is_multiplied(self):
    model, params, _, _ = adapted('modernbert', lora.Lora(3, 2.))
    rounded = base_params.rounded(params, 'bfloat16')
    flat = traverse_util.flatten_dict(
        rounded['base']['tower']['transformer'], sep='/')
    for name, value in flat.items():
      self.assertEqual(
          value.dtype == jnp.bfloat16,
          name == 'token_table' or name.endswith('_kernel'), name)
    tokens = tokens_of('modernbert')
    again = base_params.join(
        rounded, {'base': jax.tree.map(
            lambda x: x.astype(np.float32), rounded['base'])})
    np.testing.assert_array_equal(
        jax.jit(model.encode_targets)(rounded, tokens),
        jax.jit(model.encode_targets)(again, tokens))

  @parameterized.parameters(
      (dict(rank=0, alpha=1.), 'lora.rank=0 must be at least 1'),
      (dict(rank=1, alpha=0.), 'lora.alpha=0.0 must be positive'),
      (dict(rank=1, alpha=1., targets='('), r"lora.targets='\(' is not a reg"))
  def test_options_that_cannot_be(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      lora.Lora(**options)

  def test_static_embeddings_have_nothing_to_adapt(self):
    config = pretrained.load_pretrained(families_test.folder_of('static'))[0]
    with self.assertRaisesRegex(ValueError, 'static encoder, which has no'):
      lora.Lora(1, 1.).places(config)


class PeftTest(parameterized.TestCase):

  @parameterized.parameters(*PEFT)
  def test_equals_the_reference(self, name):
    folder = with_base(self, name)
    config, params, head = pretrained.load_pretrained(folder)
    self.assertEqual(
        head.pooling, pretrained.load_pretrained(
            families_test.folder_of(name))[2].pooling)
    tokens = tokens_of(name)
    hidden = jax.jit(lambda p, t: config.module().apply({'params': p}, t))(
        params, tokens)
    wanted = np.load(os.path.join(folder, 'hidden.npy'))
    np.testing.assert_allclose(
        hidden[tokens >= 0], wanted[tokens >= 0], rtol=1e-4, atol=3e-5)
    base = families_test.reference(name)['hidden']
    self.assertGreater(np.abs(base - wanted)[tokens >= 0].max(), .1)

  @parameterized.parameters(*PEFT)
  def test_what_is_written_is_what_peft_wrote(self, name):
    theirs = safetensors_numpy.load_file(
        os.path.join(FOLDER, name, peft.WEIGHTS))
    with open(os.path.join(FOLDER, name, peft.CONFIG), encoding='utf-8') as f:
      settings = json.load(f)
    config = pretrained.load_pretrained(families_test.folder_of(name))[0]
    modules = {key.removeprefix('base_model.model.').rpartition('.lora_')[0]
               for key in theirs}
    made = lora.Lora(settings['r'], settings['lora_alpha'],
                     '|'.join(map(re.escape, modules)))
    folder = self.create_tempdir().full_path
    adapters = peft._read(os.path.join(FOLDER, name), config, made.rank)
    peft.write(folder, config, made, adapters, 'base')
    found = safetensors_numpy.load_file(os.path.join(folder, peft.WEIGHTS))
    self.assertCountEqual(found, theirs)
    for key, value in theirs.items():
      np.testing.assert_array_equal(found[key], value)
    with open(os.path.join(folder, peft.CONFIG), encoding='utf-8') as f:
      written = json.load(f)
    self.assertCountEqual(written['target_modules'], modules)
    for key, value in written.items():
      if key not in ('target_modules', 'base_model_name_or_path',
                     'init_lora_weights', 'use_rslora'):
        self.assertEqual(settings[key], value, key)

  def test_the_first_layers_take_their_adapters(self):
    folder = with_base(self, 'qwen3')
    _, whole, _ = pretrained.load_pretrained(folder)
    config, params, _ = pretrained.load_pretrained(folder, num_layers=1)
    self.assertEqual(config.num_layers, 1)
    jax.tree.map(
        np.testing.assert_array_equal, params['layer_0'], whole['layer_0'])

  @parameterized.parameters(
      (dict(use_dora=True), 'use_dora=True is not supported'),
      (dict(modules_to_save=['head']), "modules_to_save=.'head'. is not"),
      (dict(peft_type='IA3'), "peft_type='IA3' is not supported"),
      (dict(r=2), r'shape \[3, 32\], but r=2 and the base ask for \[2, 32\]'),
      (dict(r=0), 'expected r and lora_alpha to be positive'),
      (dict(base_model_name_or_path='nowhere'), "'nowhere' is not a folder"))
  def test_what_is_not_plain(self, settings, message):
    folder = with_base(self, 'qwen3')
    change(folder, **settings)
    with self.assertRaisesRegex((ValueError, FileNotFoundError), message):
      pretrained.load_pretrained(folder)

  def test_tensors_of_another_base(self):
    folder = with_base(self, 'qwen3')
    change(folder, base_model_name_or_path=families_test.folder_of('bert'))
    with self.assertRaisesRegex(ValueError, 'belong to no kernel of the bert'):
      pretrained.load_pretrained(folder)

  def test_half_a_pair(self):
    folder = with_base(self, 'qwen3')
    path = os.path.join(folder, peft.WEIGHTS)
    tensors = tensor_files.read_all(path)
    name = 'base_model.model.layers.1.mlp.up_proj.lora_B.weight'
    tensor_files.write(path, {
        key: value for key, value in tensors.items() if key != name}, {})
    with self.assertRaisesRegex(
        ValueError, "'layers.1.mlp.up_proj.lora_B.weight' is missing"):
      pretrained.load_pretrained(folder)

  @parameterized.parameters('gte', 'nomic_bert')
  def test_families_whose_modules_have_two_names(self, name):
    with self.assertRaisesRegex(ValueError, 'otherwise than its files'):
      peft.check_names(name, '--adapters')


def largest(tree):
  return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


if __name__ == '__main__':
  absltest.main()
