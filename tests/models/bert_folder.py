"""A tiny random BERT folder, written by the test that needs it."""

import json
import os

import numpy as np
from safetensors import numpy as safetensors_numpy

SETTINGS = {
    'model_type': 'bert', 'architectures': ['BertModel'],
    'hidden_act': 'gelu', 'vocab_size': 50, 'hidden_size': 16,
    'num_hidden_layers': 3, 'num_attention_heads': 4, 'intermediate_size': 24,
    'max_position_embeddings': 20, 'type_vocab_size': 2,
    'layer_norm_eps': 1e-12, 'pad_token_id': 0,
    'position_embedding_type': 'absolute'}


def tensors(settings=None):
  """Returns random tensors under the names that Hugging Face uses."""
  s = settings or SETTINGS
  hidden, wide = s['hidden_size'], s['intermediate_size']
  random = np.random.default_rng(0)
  normal = lambda *shape: random.normal(0, .3, shape).astype(np.float32)
  out = {'embeddings.position_ids': np.arange(
      s['max_position_embeddings'])[None]}

  def dense(name, inputs, outputs):
    out[f'{name}.weight'] = normal(outputs, inputs)
    out[f'{name}.bias'] = normal(outputs)

  def norm(name):
    out[f'{name}.LayerNorm.weight'] = 1 + normal(hidden)
    out[f'{name}.LayerNorm.bias'] = normal(hidden)

  for name, rows in (('word', 'vocab_size'),
                     ('position', 'max_position_embeddings'),
                     ('token_type', 'type_vocab_size')):
    out[f'embeddings.{name}_embeddings.weight'] = normal(s[rows], hidden)
  norm('embeddings')
  for i in range(s['num_hidden_layers']):
    layer = f'encoder.layer.{i}'
    for part in ('query', 'key', 'value'):
      dense(f'{layer}.attention.self.{part}', hidden, hidden)
    dense(f'{layer}.attention.output.dense', hidden, hidden)
    norm(f'{layer}.attention.output')
    dense(f'{layer}.intermediate.dense', hidden, wide)
    dense(f'{layer}.output.dense', wide, hidden)
    norm(f'{layer}.output')
  dense('pooler.dense', hidden, hidden)
  return out


def write(folder, found=None, settings=None, modules=True):
  """Writes the folder and returns its path."""
  os.makedirs(folder, exist_ok=True)

  def write_json(name, value):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'w', encoding='utf-8') as f:
      json.dump(value, f)

  write_json('config.json', settings or SETTINGS)
  safetensors_numpy.save_file(
      found or tensors(), os.path.join(folder, 'model.safetensors'))
  if modules:
    write_json('modules.json', [
        {'idx': i, 'name': str(i), 'path': path,
         'type': f'sentence_transformers.models.{name}'}
        for i, (name, path) in enumerate((
            ('Transformer', ''), ('Pooling', '1_Pooling'),
            ('Normalize', '2_Normalize')))])
    write_json('1_Pooling/config.json', {
        'word_embedding_dimension': 16, 'pooling_mode_cls_token': False,
        'pooling_mode_mean_tokens': True})
    write_json('sentence_bert_config.json', {'max_seq_length': 20})
  return str(folder)
