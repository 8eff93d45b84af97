"""Every family against its reference; see experiments/dev."""

import dataclasses
import json
import os
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from retrieval_jax.data import settings
from retrieval_jax.data import tokenization
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import families
from retrieval_jax.models import pretrained
from retrieval_jax.models import relative_positions
from retrieval_jax.models import sentence_modules
from retrieval_jax.models import t5

FOLDER = os.path.join(os.path.dirname(__file__), 'families')
MODERN = ('modernbert', 'nomic_bert', 'gte', 'gemma3_text', 'gemma3_causal',
          'qwen3', 'qwen2', 'llama', 'mistral', 'eurobert')
NAMES = ('bert', 'distilbert', 'roberta', 'mpnet', 't5', 't5_gated', *MODERN)


def folder_of(name):
  return os.path.join(FOLDER, name)


def copied(test, name):
  """Returns a copy of a fixture, in a folder that goes with the test."""
  return shutil.copytree(
      folder_of(name), os.path.join(test.create_tempdir().full_path, name))


def reference(name):
  return np.load(os.path.join(folder_of(name), 'reference.npz'))


def load(name, **options):
  """Returns (model, params, head) of a fixture, with all that it says."""
  config, weights, head = pretrained.load_pretrained(folder_of(name))
  dense, tower = head.dense, {'transformer': weights}
  if dense is not None:
    tower['projection'] = dense.params()
    options |= dict(projection=dense.kernel.shape[1],
                    projection_bias=dense.bias is not None,
                    projection_activation=dense.activation)
  return dual_encoder.DualEncoder(
      config, pooling=head.pooling, normalize=head.normalize, **options
  ), {'tower': tower}, head


class FamiliesTest(parameterized.TestCase):

  @parameterized.parameters(*NAMES)
  def test_equals_the_reference_from_text_to_embedding(self, name):
    wanted = reference(name)
    model, params, head = load(name)
    tokenizer = tokenization.load_tokenizer(folder_of(name))
    self.assertEqual(tokenizer.pad_id, model.config.pad_id)
    texts = list(wanted['texts'])
    tokens, _ = tokenizer.encode_batch(texts, head.max_length)
    used = tokens >= 0
    np.testing.assert_array_equal(
        np.where(used, tokens, tokenizer.pad_id), wanted['tokens'])
    hidden = jax.jit(lambda p, t: model.config.module().apply(
        {'params': p}, t))(params['tower']['transformer'], tokens)
    np.testing.assert_allclose(hidden[used], wanted['hidden'][used], atol=1e-5)
    encode = jax.jit(model.encode_targets)
    for prompt, key in ((head.query_prompt, 'queries'),
                        (head.target_prompt, 'targets')):
      prompted = dataclasses.replace(tokenizer, prompt=prompt or '')
      np.testing.assert_allclose(
          encode(params, prompted.encode_batch(texts, head.max_length)[0]),
          wanted[key], atol=1e-5)

  def test_fixtures_differ_where_prompts_do(self):
    # Or the prompts of the test above would be tested by nothing.
    for name, differ in (('roberta', True), ('mpnet', True), ('bert', False)):
      found = reference(name)
      self.assertEqual(
          np.abs(found['queries'] - found['targets']).max() > 1e-2, differ)

  @parameterized.parameters(*dual_encoder.POOLINGS)
  def test_poolings_equal_the_reference(self, pooling):
    wanted = reference('bert')
    theirs = {'mean_sqrt_len': 'mean_sqrt_len_tokens'}.get(pooling, pooling)
    np.testing.assert_allclose(
        jax.jit(dual_encoder.pool, static_argnums=2)(
            wanted['hidden'], wanted['tokens'] != 0, pooling),
        wanted[f'pooled_{theirs}'], atol=1e-5)

  def test_buckets_of_distances_equal_the_reference(self):
    wanted = np.load(os.path.join(FOLDER, 'relative_buckets.npz'))['buckets']
    np.testing.assert_array_equal(
        relative_positions.buckets(200, 32, 128), wanted)

  @parameterized.parameters(*NAMES)
  def test_what_is_written_is_what_was_read(self, name):
    config, params, _ = pretrained.load_pretrained(folder_of(name))
    folder = self.create_tempdir().full_path
    pretrained.save_pretrained(folder, config, params)
    again, found, _ = pretrained.load_pretrained(folder)
    self.assertEqual(again, config)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    # The published names and values too, but for heads and pooler, and for the
    # rows in front of RoBERTa's first position, which nothing reads.
    tensors = safetensors_numpy.load_file(
        os.path.join(folder, 'model.safetensors'))
    theirs = {}
    for file in os.listdir(folder_of(name)):
      if file.endswith('.safetensors'):
        theirs |= safetensors_numpy.load_file(
            os.path.join(folder_of(name), file))
    unused = [n for n in theirs if n.startswith('pooler.')]
    self.assertCountEqual([*tensors, *unused], theirs)
    for key, value in tensors.items():
      skipped = 2 if (name in ('roberta', 'mpnet')
                      and 'position_embeddings' in key) else 0
      np.testing.assert_array_equal(value[skipped:], theirs[key][skipped:])
    with open(os.path.join(folder_of(name), 'config.json'),
              encoding='utf-8') as f:
      settings = json.load(f)
    for key, value in sentence_modules.read_json(folder, 'config.json').items():
      self.assertEqual(settings.get(key, value), value, key)

  def test_two_names_of_one_array_are_one(self):
    folder = copied(self, 't5')
    path = os.path.join(folder, 'model.safetensors')
    tensors = safetensors_numpy.load_file(path)
    tensors['encoder.embed_tokens.weight'] = tensors.pop('shared.weight')
    tensors['decoder.final_layer_norm.weight'] = np.ones(32, np.float32)
    safetensors_numpy.save_file(tensors, path)
    jax.tree.map(np.testing.assert_array_equal,
                 pretrained.load_pretrained(folder)[1],
                 pretrained.load_pretrained(folder_of('t5'))[1])

  def test_two_names_of_one_array_must_agree(self):
    folder = copied(self, 't5')
    path = os.path.join(folder, 'model.safetensors')
    tensors = safetensors_numpy.load_file(path)
    table = tensors['shared.weight'].copy()
    tensors['encoder.embed_tokens.weight'] = table
    safetensors_numpy.save_file(tensors, path)
    pretrained.load_pretrained(folder)
    table[5, 3] += 1
    safetensors_numpy.save_file(tensors, path)
    with self.assertRaisesRegex(
        ValueError, "'(shared|encoder.embed_tokens).weight' and .* differ in"):
      pretrained.load_pretrained(folder)

  @parameterized.parameters('document', 'passage')
  def test_a_router_has_two_towers(self, target):
    names = {'query': 'mpnet', target: 'roberta'}
    folder = self.write_router(names)
    towers = pretrained.tower_folders(folder)
    self.assertLen(towers, 2)
    for tower, name in zip(towers, names.values()):
      config, params, head = pretrained.load_pretrained(tower)
      alone, theirs, wanted = pretrained.load_pretrained(folder_of(name))
      self.assertEqual(config, alone)
      jax.tree.map(np.testing.assert_array_equal, params, theirs)
      for field in ('pooling', 'normalize', 'max_length'):
        self.assertEqual(getattr(head, field), getattr(wanted, field), field)
      self.assertEqual(head.query_prompt, 'q: ')
      self.assertEqual(
          tokenization.load_tokenizer(
              sentence_modules.transformer_folder(tower)),
          tokenization.load_tokenizer(folder_of(name)))

  def test_a_router_of_other_routes_is_refused(self):
    folder = self.write_router({'query': 'bert', 'image': 'bert'})
    with self.assertRaisesRegex(ValueError, 'with routes query, image is not'):
      pretrained.tower_folders(folder)

  def write_router(self, names):
    """Writes {route: family} as sentence-transformers saves its Router."""
    folder = self.create_tempdir().full_path
    types, structure = {}, {}
    for route, name in names.items():
      structure[route] = []
      for i, module in enumerate(sentence_modules.read_json(
          folder_of(name), 'modules.json')):
        kind = module['type'].rpartition('.')[2]
        inside = f'{route}_{i}_{kind}'
        structure[route].append(inside)
        types[inside] = f'sentence_transformers.models.{kind}.{kind}'
        source = os.path.join(folder_of(name), module['path'])
        if os.path.isdir(source):  # nothing is written for Normalize
          shutil.copytree(source, os.path.join(folder, inside))
    for file, value in (
        ('modules.json', [{'idx': 0, 'name': '0', 'path': '', 'type':
                           'sentence_transformers.models.Router.Router'}]),
        ('router_config.json', {
            'types': types, 'structure': structure,
            'parameters': {'default_route': 'query', 'allow_empty_key': True}}),
        ('config_sentence_transformers.json', {'prompts': {'query': 'q: '}})):
      sentence_modules.write_json(folder, file, value)
    return folder

  @parameterized.parameters(
      ('t5', 'feed_forward_proj', 'gated-silu', "only 'relu', 'gated-gelu'"),
      ('distilbert', 'activation', 'relu', "activation='relu' is not"),
      ('mpnet', 'relative_attention_num_buckets', 64, 'num_buckets=64 is not'),
      ('roberta', 'model_type', None, "'model_type' to be a string, got None"))
  def test_what_is_not_supported_is_named(self, name, key, value, message):
    folder = copied(self, name)
    path = os.path.join(folder, 'config.json')
    with open(path, encoding='utf-8') as f:
      settings = json.load(f)
    with open(path, 'w', encoding='utf-8') as f:
      json.dump({**settings, key: value}, f)
    with self.assertRaisesRegex(ValueError, message):
      pretrained.load_pretrained(folder)

  def test_a_missing_shard_and_a_missing_setting_are_named(self):
    folder = copied(self, 'roberta')
    os.remove(os.path.join(folder, 'model-00002-of-00003.safetensors'))
    with self.assertRaisesRegex(FileNotFoundError, 'model-00002-of-00003'):
      pretrained.load_pretrained(folder)
    with self.assertRaisesRegex(ValueError, r"json: 'd_kv' is missing"):
      families.FAMILIES['t5'].read_config(
          settings.Settings({'vocab_size': 1, 'd_model': 2, 'num_layers': 1,
                             'num_heads': 1}, 'config.json'))

  @parameterized.parameters('roberta', 't5')  # in shards; with all modules
  def test_any_content_of_a_json_file_is_read_or_refused_by_name(self, name):
    folder, refused = copied(self, name), 0
    for file in ('config.json', 'modules.json', '1_Pooling/config.json',
                 'sentence_bert_config.json', 'tokenizer_config.json',
                 'config_sentence_transformers.json', '2_Dense/config.json',
                 'model.safetensors.index.json'):
      path = os.path.join(folder, file)
      if not os.path.exists(path):
        continue
      with open(path, encoding='utf-8') as f:
        whole = f.read()
      for content in (
          '{"a": ', '', '[]', '[1]', '"x"', '3', 'null', '{}', '[{}]',
          '[{"type": 1, "path": 2}]', '{"weight_map": 1}',
          '{"weight_map": {"a": 1}}', '{"prompts": [1]}',
          '{"prompts": {"query": 1}}', '{"max_seq_length": "many"}',
          '{"do_lower_case": "no"}', '{"model_max_length": "many"}',
          '{"pooling_mode": 3}', '{"include_prompt": 0}',
          '{"out_features": "3"}', '{"pad_token": 3}', whole[:len(whole) // 2]):
        with open(path, 'w', encoding='utf-8') as f:
          f.write(content)
        try:
          pretrained.load_pretrained(folder, num_layers=0)
          tokenization.load_tokenizer(folder)
        except (ValueError, FileNotFoundError) as error:
          refused += 1
          # What is missing in an index is named by the folder, or the file.
          self.assertIn(folder, str(error))
      with open(path, 'w', encoding='utf-8') as f:
        f.write(whole)
    self.assertGreater(refused, 70)

  @parameterized.parameters(*NAMES)
  def test_a_setting_of_another_type_is_named(self, name):
    folder = copied(self, name)
    path = os.path.join(folder, 'config.json')
    with open(path, encoding='utf-8') as f:
      content = json.load(f)
    for key, value in content.items():
      if isinstance(value, int) and not isinstance(value, bool):
        for other in (str(value), [value], True, -5):
          with open(path, 'w', encoding='utf-8') as f:
            json.dump({**content, key: other}, f)
          try:
            pretrained.load_pretrained(folder)
          except ValueError as error:
            self.assertRegex(str(error), 'config.json')


class T5Test(parameterized.TestCase):

  def test_flops_are_those_of_the_matmuls(self):
    model, _, _ = load('t5_gated')
    length, hidden, inner, wide = 7, 32, 4 * 6, 40
    self.assertEqual(model.config.flops(length), 2 * (2 * length * (
        4 * hidden * inner + 3 * hidden * wide + 2 * length * inner)))

  @pytest.mark.slow
  def test_bfloat16_and_remat_are_near_in_value_and_gradient(self):
    model, params, _ = load('t5')
    tokens = reference('t5')['tokens'][:3]
    tokens = np.where(tokens == model.config.pad_id, -1, tokens)

    def gradient(**options):
      other = dataclasses.replace(
          model, config=dataclasses.replace(model.config, **options))
      return jax.jit(jax.value_and_grad(
          lambda p: other.encode_targets(p, tokens)[:, 0].sum()))(params)

    plain = gradient()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
                 gradient(remat=True), plain)
    value, half = gradient(dtype='bfloat16')
    np.testing.assert_allclose(value, plain[0], atol=5e-2)
    table = half['tower']['transformer']['relative_bias']
    self.assertEqual(table.dtype, np.float32)
    self.assertGreater(np.abs(table).max(), 0)

  @parameterized.parameters(
      (dict(head_size=0), 'head_size=0 must be at least 1'),
      (dict(num_layers=-1), 'num_layers=-1 must not be negative'),
      (dict(pad_id=78), 'pad_id=78 must lie in'),
      (dict(dtype='float16'), "dtype='float16' must be one of float32"))
  def test_wrong_configs_are_refused(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      dataclasses.replace(
          t5.T5Config(78, 32, 2, 4, 6, 40), **options)


if __name__ == '__main__':
  absltest.main()
