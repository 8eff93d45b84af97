"""BERT and those that differ from it in names and positions.

BERT and MiniLM; RoBERTa and XLM-RoBERTa, whose positions are counted from
pad_id + 1; MPNet, which counts so too, has no token types, and biases by
distance; DistilBERT, without token types and with names of its own.
"""

import dataclasses

import numpy as np

from retrieval_jax.models import transformer
from retrieval_jax.models.families import family

_MPNET_BUCKETS = 32
_TYPES = 'embeddings.token_type_embeddings.weight'


@dataclasses.dataclass(frozen=True)
class _Names:
  """The names of one architecture, in config.json and of its tensors.

  Attributes:
    architecture: class of `transformers` that reads an export.
    settings: field of TransformerConfig -> key of config.json.
    activation: key of config.json.
    layer: prefix of layer {}.
    parts: our part of a layer -> names there, without weight and bias.
    positions_after_padding: the first position is row pad_id + 1.
    types: has token types.
    relative: prefix of the biases by distance; '' without.
    renamed: see `family.Family`.
  """
  architecture: str
  settings: dict[str, str]
  activation: str
  layer: str
  parts: dict[str, tuple[str, ...]]
  positions_after_padding: bool
  types: bool
  relative: str
  renamed: tuple[tuple[str, str], ...]


_BERT = _Names(
    architecture='BertModel',
    settings=family.SETTINGS,
    activation='hidden_act',
    layer='encoder.layer.{}',
    parts={
        'attention/qkv': ('attention.self.query', 'attention.self.key',
                          'attention.self.value'),
        'attention/out': ('attention.output.dense',),
        'attention/norm': ('attention.output.LayerNorm',),
        'mlp/up': ('intermediate.dense',),
        'mlp/down': ('output.dense',),
        'mlp/norm': ('output.LayerNorm',)},
    positions_after_padding=False, types=True, relative='',
    # Checkpoints converted from the first TensorFlow release say gamma, beta.
    renamed=((r'^bert\.', ''), (r'LayerNorm\.gamma$', 'LayerNorm.weight'),
             (r'LayerNorm\.beta$', 'LayerNorm.bias')))

_ROBERTA = dataclasses.replace(
    _BERT, architecture='RobertaModel', positions_after_padding=True,
    renamed=((r'^roberta\.', ''),))

_NAMES = {
    'bert': _BERT,
    'roberta': _ROBERTA,
    'xlm-roberta': dataclasses.replace(
        _ROBERTA, architecture='XLMRobertaModel'),
    'mpnet': dataclasses.replace(
        _ROBERTA, architecture='MPNetModel', types=False,
        relative='encoder.relative_attention_bias',
        parts={**_BERT.parts,
               'attention/qkv': ('attention.attn.q', 'attention.attn.k',
                                 'attention.attn.v'),
               'attention/out': ('attention.attn.o',),
               'attention/norm': ('attention.LayerNorm',)},
        renamed=((r'^mpnet\.', ''),)),
    'distilbert': dataclasses.replace(
        _BERT, architecture='DistilBertModel', types=False,
        settings={
            'vocab_size': 'vocab_size', 'hidden_size': 'dim',
            'num_layers': 'n_layers', 'num_heads': 'n_heads',
            'intermediate_size': 'hidden_dim',
            'max_positions': 'max_position_embeddings'},
        activation='activation',
        layer='transformer.layer.{}',
        parts={
            'attention/qkv': ('attention.q_lin', 'attention.k_lin',
                              'attention.v_lin'),
            'attention/out': ('attention.out_lin',),
            'attention/norm': ('sa_layer_norm',),
            'mlp/up': ('ffn.lin1',),
            'mlp/down': ('ffn.lin2',),
            'mlp/norm': ('output_layer_norm',)},
        renamed=((r'^distilbert\.', ''),)),
}

# position_ids is a constant; pooler and heads belong to other tasks.
_UNUSED = (r'embeddings\.position_ids|pooler\..*|cls\..*|classifier\..*|'
           r'qa_outputs\..*|lm_head\..*|pre_classifier\..*|vocab_\w+\..*')


def _first_row(names, config):
  return config.pad_id + 1 if names.positions_after_padding else 0


def _family(model_type):
  """Returns the Family of a key of `_NAMES`."""
  names = _NAMES[model_type]

  def read_config(settings):
    settings.expect(names.activation, 'gelu')
    settings.expect('position_embedding_type', 'absolute', default='absolute')
    if names.relative:
      settings.expect('relative_attention_num_buckets', _MPNET_BUCKETS,
                      default=_MPNET_BUCKETS)
    config = transformer.TransformerConfig(
        **{ours: settings.read(theirs, int)
           for ours, theirs in names.settings.items()},
        type_vocab_size=(
            settings.read('type_vocab_size', int, 2) if names.types else 0),
        layer_norm_eps=settings.read('layer_norm_eps', float, 1e-12),
        pad_id=settings.read(
            'pad_token_id', int, 1 if names.positions_after_padding else 0),
        relative_buckets=_MPNET_BUCKETS if names.relative else 0,
        model_type=model_type)
    return dataclasses.replace(
        config, max_positions=config.max_positions - _first_row(names, config))

  def write_config(config):
    values = {theirs: getattr(config, ours)
              for ours, theirs in names.settings.items()}
    values['max_position_embeddings'] += _first_row(names, config)
    return {
        'model_type': model_type, 'architectures': [names.architecture],
        names.activation: 'gelu', **values,
        'layer_norm_eps': config.layer_norm_eps,
        'pad_token_id': config.pad_id,
        **({'type_vocab_size': config.type_vocab_size or 1}
           if names.types else {}),
        **({'relative_attention_num_buckets': config.relative_buckets}
           if names.relative else {})}

  def constants(config):
    # The reference adds a type even where we have none.
    missing = names.types and not config.type_vocab_size
    return {_TYPES: np.zeros((1, config.hidden_size), np.float32)
            } if missing else {}

  return family.Family(
      read_config, write_config, lambda config: _tensors(names, config),
      names.layer, names.renamed, _UNUSED, names.types, constants)


def _tensors(names, config):
  """Returns a family.Tensor per parameter."""
  hidden, wide = config.hidden_size, config.intermediate_size
  shapes = {  # [outputs, inputs] of each of theirs
      'attention/qkv': (hidden, hidden), 'attention/out': (hidden, hidden),
      'mlp/up': (wide, hidden), 'mlp/down': (hidden, wide)}

  def norm(ours, theirs):
    for mine, name in (('scale', 'weight'), ('bias', 'bias')):
      yield family.Tensor(f'{ours}_{mine}', (f'{theirs}.{name}',), (hidden,))

  def dense(ours, theirs, shape):
    yield family.Tensor(f'{ours}_kernel', tuple(
        f'{name}.weight' for name in theirs), shape, transposed=True)
    yield family.Tensor(f'{ours}_bias', tuple(
        f'{name}.bias' for name in theirs), shape[:1])

  first_row = _first_row(names, config)
  found = [
      family.Tensor('token_table', ('embeddings.word_embeddings.weight',),
                    (config.vocab_size, hidden)),
      family.Tensor('embeddings/positions',
                    ('embeddings.position_embeddings.weight',),
                    (config.max_positions + first_row, hidden),
                    first_row=first_row),
      *norm('embeddings/norm', 'embeddings.LayerNorm')]
  if config.type_vocab_size:
    found.append(family.Tensor(
        'embeddings/types', (_TYPES,),
        (config.type_vocab_size, hidden)))
  if config.relative_buckets:
    found.append(family.Tensor(
        'relative_bias', (f'{names.relative}.weight',),
        (config.relative_buckets, config.num_heads)))
  for i in range(config.num_layers):
    for part, parts in names.parts.items():
      theirs = [f'{names.layer.format(i)}.{name}' for name in parts]
      ours = f'layer_{i}/{part}'
      found.extend(dense(ours, theirs, shapes[part]) if part in shapes
                   else norm(ours, *theirs))
  return found


FAMILIES = {model_type: _family(model_type) for model_type in _NAMES}
"""model_type of config.json -> family.Family."""
