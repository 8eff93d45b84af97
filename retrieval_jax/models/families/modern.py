"""ModernBERT, NomicBERT, GTE, and encoders made of decoders.

Tables over one module, `models/modern.py`. They are read as published on the
hub, which is what `transformers` 5 writes, too: NomicBERT's config.json may say
GPT's names, ModernBERT's and Gemma's may have rotations in either of two forms.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from retrieval_jax.models import modern
from retrieval_jax.models.families import family

_FULL, _SLIDING = 'full_attention', 'sliding_attention'

_NOMIC_SETTINGS = {  # as nomic-embed-text-v1.5 and others have them
    'vocab_size': 'vocab_size', 'hidden_size': 'n_embd',
    'num_layers': 'n_layer', 'num_heads': 'n_head',
    'intermediate_size': 'n_inner', 'max_positions': 'n_positions'}


@dataclasses.dataclass(frozen=True)
class _Names:
  """The names of one architecture, in config.json and of its tensors.

  Attributes:
    architecture: class of `transformers` that reads an export.
    read: Settings -> fields of ModernConfig besides those of `settings`.
    write: ModernConfig -> entries of config.json besides these.
    layer: prefix of layer {}.
    parts: our part of a layer -> names there, without weight and bias.
    table: of the token table.
    final_norm: name; '' without.
    embedding_norm: the same.
    renamed: see `family.Family`.
    unused: the same.
    kv_heads: whether keys may have fewer heads, and heads a size of their own.
    gate_second: whether the half that is activated comes second in `mlp/up`.
    types: whether the encoder takes token_type_ids.
  """
  architecture: str
  read: Callable[[Any], dict[str, Any]]
  write: Callable[[modern.ModernConfig], dict[str, Any]]
  layer: str
  parts: dict[str, tuple[str, ...]]
  table: str
  final_norm: str
  embedding_norm: str
  renamed: tuple[tuple[str, str], ...]
  unused: str
  kv_heads: bool
  gate_second: bool = False
  types: bool = False


# --- What config.json says.


def _theta(settings, kind: str, old: str, default: float) -> float:
  """Returns the base of a rotation, from either of the forms it is written in.

  Args:
    settings: of config.json.
    kind: whose of several rotations; '' where there is one.
    old: the key that it had before `rope_parameters`.
    default: where there is neither.

  Raises:
    ValueError: for wavelengths that are stretched.
  """
  found = settings.part('rope_parameters')
  found = found and found.part(kind) if kind else found
  base = (found or settings).read('rope_theta' if found else old, float, None)
  for scaling in (found, settings.part('rope_scaling')):
    if scaling:
      for key in ('rope_type', 'type'):
        scaling.expect(key, 'default', default='default')
  return default if base is None else base


def _layers(settings, usual: Callable[[int], bool]) -> tuple[int, ...] | None:
  """Returns the layers with full attention; None for all of them."""
  number = settings.read('num_hidden_layers', int)
  kinds = settings.read('layer_types', list, [
      _FULL if usual(i) else _SLIDING for i in range(number)])
  unknown = {str(kind) for kind in kinds} - {_FULL, _SLIDING}
  if unknown or len(kinds) != number:
    raise ValueError(
        f'{settings.path}: expected layer_types to be {number} of {_FULL!r} '
        f'and {_SLIDING!r}, got {len(kinds)}'
        f'{" with " + ", ".join(sorted(unknown)) if unknown else ""}.')
  found = tuple(i for i, kind in enumerate(kinds) if kind == _FULL)
  return None if len(found) == number else found


def _flags(settings, **flags: tuple[str, ...]) -> tuple[str, ...]:
  """Returns those of BIASES that the flags named say there are."""
  return tuple(part for flag, parts in flags.items()
               if settings.read(flag, bool, False) for part in parts)


def _layer_types(config):
  return {'layer_types': [
      _FULL if config.is_global(i) else _SLIDING
      for i in range(config.num_layers)]}


def _two_ropes(config, old_global, old_local):
  return {
      old_global: config.theta, old_local: config.local_theta,
      'rope_parameters': {
          _FULL: {'rope_type': 'default', 'rope_theta': config.theta},
          _SLIDING: {'rope_type': 'default',
                     'rope_theta': config.local_theta}}}


def _one_rope(config):
  return {'rope_theta': config.theta, 'rope_parameters': {
      'rope_type': 'default', 'rope_theta': config.theta}}


def _read_modernbert(settings):
  settings.expect('hidden_activation', 'gelu', default='gelu')
  every = settings.read('global_attn_every_n_layers', int, 3)
  return dict(
      norm='layer', norm_at='before', norm_bias=settings.read(
          'norm_bias', bool, False),
      norm_eps=settings.read('norm_eps', float, 1e-5), activation='gelu',
      first_norm=False, embedding_norm=True,
      biases=_flags(settings, attention_bias=('qkv', 'out'),
                    mlp_bias=('up', 'down')),
      theta=_theta(settings, _FULL, 'global_rope_theta', 160_000.),
      local_theta=_theta(settings, _SLIDING, 'local_rope_theta', 10_000.),
      global_layers=_layers(settings, lambda i: i % every == 0),
      window=settings.read('local_attention', int, 128) // 2)


def _write_modernbert(config):
  return {
      'hidden_activation': 'gelu', 'norm_bias': config.norm_bias,
      'norm_eps': config.norm_eps, 'attention_bias': 'qkv' in config.biases,
      'mlp_bias': 'up' in config.biases, 'local_attention': 2 * config.window,
      **_layer_types(config),
      **_two_ropes(config, 'global_rope_theta', 'local_rope_theta')}


def _read_nomic(settings):
  if 'n_embd' in settings.values:
    for name, value in (
        ('prenorm', False), ('causal', False), ('parallel_block', False),
        ('use_rms_norm', False), ('rotary_emb_interleaved', False),
        ('qkv_proj_bias', False), ('mlp_fc1_bias', False),
        ('mlp_fc2_bias', False)):
      settings.expect(name, value, default=value)
    settings.expect('rotary_emb_fraction', 1., default=1.)
    settings.expect('activation_function', 'swiglu', default='swiglu')
    theta = settings.read('rotary_emb_base', float, 1000.)
    eps = settings.read('layer_norm_epsilon', float, 1e-12)
    if settings.values.get('rotary_scaling_factor'):
      settings.expect('rotary_scaling_factor', 1., default=1.)
    settings.expect('num_experts', 0, default=0)
  else:
    settings.expect('hidden_act', 'silu', default='silu')
    theta = _theta(settings, '', 'rope_theta', 1000.)
    eps = settings.read('layer_norm_eps', float, 1e-12)
  return dict(
      norm='layer', norm_at='after', norm_bias=True, norm_eps=eps,
      activation='silu', embedding_norm=True, theta=theta,
      type_vocab_size=settings.read('type_vocab_size', int, 2))


def _write_nomic(config):
  return {'hidden_act': 'silu', 'layer_norm_eps': config.norm_eps,
          'type_vocab_size': config.type_vocab_size,
          'head_dim': config.head_size, **_one_rope(config)}


def _read_gte(settings):
  settings.expect('hidden_act', 'gelu', default='gelu')
  settings.expect('position_embedding_type', 'rope', default='rope')
  settings.expect('layer_norm_type', 'layer_norm', default='layer_norm')
  for name, value in (('logn_attention_scale', False),
                      ('logn_attention_clip1', False), ('pack_qkv', True)):
    settings.expect(name, value, default=value)
  scaling, factor = settings.part('rope_scaling'), 1.
  if scaling and scaling.values.get('type') == 'ntk':
    factor = scaling.read('factor', float)
    theta = settings.read('rope_theta', float, 160_000.)
  else:
    theta = _theta(settings, '', 'rope_theta', 160_000.)
  return dict(
      norm='layer', norm_at='after', norm_bias=True,
      norm_eps=settings.read('layer_norm_eps', float, 1e-12),
      activation='gelu', embedding_norm=True, biases=('qkv', 'out', 'down'),
      theta=theta, ntk_factor=factor,
      type_vocab_size=settings.read('type_vocab_size', int, 0),
      model_type='gte' if factor == 1 else 'new')


def _write_gte(config):
  return {'hidden_act': 'gelu', 'layer_norm_eps': config.norm_eps,
          'type_vocab_size': config.type_vocab_size,
          'position_embedding_type': 'rope', **(
              _one_rope(config) if config.ntk_factor == 1 else {
                  'rope_theta': config.theta, 'rope_scaling': {
                      'type': 'ntk', 'factor': config.ntk_factor}})}


def _read_decoder(settings, biases: tuple[str, ...]):
  """Returns what Llama and its descendants have in common."""
  settings.expect('hidden_act', 'silu', default='silu')
  return dict(
      norm='rms', norm_at='before', activation='silu', causal=True,
      norm_eps=settings.read('rms_norm_eps', float, 1e-6), biases=biases,
      theta=_theta(settings, '', 'rope_theta', 10_000.))


def _write_decoder(config):
  return {'hidden_act': 'silu', 'rms_norm_eps': config.norm_eps,
          **_one_rope(config)}


def _read_llama(settings):
  return _read_decoder(settings, _flags(
      settings, attention_bias=('qkv', 'out'), mlp_bias=('up', 'down')))


def _write_llama(config):
  return {**_write_decoder(config), 'attention_bias': 'qkv' in config.biases,
          'mlp_bias': 'up' in config.biases}


def _read_eurobert(settings):
  return {**_read_llama(settings), 'causal': False,
          'norm_eps': settings.read('rms_norm_eps', float, 1e-5)}


def _read_mistral(settings):
  fields = _read_decoder(settings, ())
  sliding = settings.read('sliding_window', int, None)
  return fields if sliding is None else {
      **fields, 'global_layers': (), 'window': sliding - 1,
      'local_theta': fields['theta']}


def _write_mistral(config):
  return {**_write_decoder(config), 'sliding_window': (
      None if config.global_layers is None else config.window + 1)}


def _read_qwen2(settings):
  settings.expect('use_sliding_window', False, default=False)
  return _read_decoder(settings, ('qkv',))


def _read_qwen3(settings):
  settings.expect('use_sliding_window', False, default=False)
  return {**_read_decoder(settings, _flags(
      settings, attention_bias=('qkv', 'out'))), 'qk_norm': True}


def _write_qwen(config):
  return {**_write_decoder(config), 'use_sliding_window': False,
          **_layer_types(config)}


def _write_qwen3(config):
  return {**_write_qwen(config), 'attention_bias': 'qkv' in config.biases}


def _read_gemma3(settings):
  settings.expect('hidden_activation', 'gelu_pytorch_tanh',
                  default='gelu_pytorch_tanh')
  settings.expect('attn_logit_softcapping', 0., default=0.)
  both_ways = settings.read('use_bidirectional_attention', bool, False)
  sliding = settings.read('sliding_window', int, 4096)
  if both_ways and sliding % 2:
    raise ValueError(
        f'{settings.path}: sliding_window={sliding} is odd, as transformers '
        f'4.57 wrote half of it; write {2 * (sliding - 1)}, as the model was '
        'published.')
  every = settings.read('sliding_window_pattern', int, 0) or settings.read(
      '_sliding_window_pattern', int, 6)
  return dict(
      norm='rms_plus_one', norm_at='around',
      norm_eps=settings.read('rms_norm_eps', float, 1e-6),
      activation='gelu_tanh', qk_norm=True, causal=not both_ways,
      embedding_scale=math.sqrt(settings.read('hidden_size', int)),
      query_scale=settings.read('query_pre_attn_scalar', int, 256) ** -0.5,
      biases=_flags(settings, attention_bias=('qkv', 'out')),
      theta=_theta(settings, _FULL, 'rope_theta', 1e6),
      local_theta=_theta(settings, _SLIDING, 'rope_local_base_freq', 1e4),
      global_layers=_layers(settings, lambda i: (i + 1) % every == 0),
      window=sliding // 2 if both_ways else sliding - 1)


def _write_gemma3(config):
  return {
      'hidden_activation': 'gelu_pytorch_tanh', 'rms_norm_eps': config.norm_eps,
      'use_bidirectional_attention': not config.causal,
      'sliding_window': (
          config.window + 1 if config.causal else 2 * config.window),
      'query_pre_attn_scalar': round(config.query_scale ** -2),
      'attention_bias': 'qkv' in config.biases, **_layer_types(config),
      **_two_ropes(config, 'rope_theta', 'rope_local_base_freq')}


# --- What the tensors are called.

_DECODER = _Names(
    architecture='LlamaModel', read=_read_llama, write=_write_llama,
    layer='layers.{}',
    parts={
        'attention/norm': ('input_layernorm',),
        'attention/qkv': ('self_attn.q_proj', 'self_attn.k_proj',
                          'self_attn.v_proj'),
        'attention/out': ('self_attn.o_proj',),
        'mlp/norm': ('post_attention_layernorm',),
        'mlp/up': ('mlp.gate_proj', 'mlp.up_proj'),
        'mlp/down': ('mlp.down_proj',)},
    table='embed_tokens', final_norm='norm', embedding_norm='',
    renamed=((r'^model\.', ''),),
    unused=r'lm_head\..*|score\..*|(.*\.)?rotary_emb\.inv_freq',
    kv_heads=True)
_HEAD_NORMS = {'attention/q_norm': ('self_attn.q_norm',),
               'attention/k_norm': ('self_attn.k_norm',)}
_GTE = _Names(
    architecture='GteModel', read=_read_gte, write=_write_gte,
    layer='encoder.layer.{}',
    parts={
        'attention/qkv': ('attention.qkv_proj',),
        'attention/out': ('attention.o_proj',),
        'attention/norm': ('attn_ln',),
        'mlp/up': ('mlp.up_gate_proj',),
        'mlp/down': ('mlp.down_proj',),
        'mlp/norm': ('mlp_ln',)},
    table='embeddings.word_embeddings', final_norm='',
    embedding_norm='embeddings.LayerNorm',
    renamed=((r'^new\.', ''),),
    unused=(r'pooler\..*|lm_head\..*|classifier\..*|'
            r'embeddings\.position_ids'),
    kv_heads=False, gate_second=True, types=True)

_NAMES = {
    'modernbert': _Names(
        architecture='ModernBertModel', read=_read_modernbert,
        write=_write_modernbert, layer='layers.{}',
        parts={
            'attention/norm': ('attn_norm',),
            'attention/qkv': ('attn.Wqkv',),
            'attention/out': ('attn.Wo',),
            'mlp/norm': ('mlp_norm',),
            'mlp/up': ('mlp.Wi',),
            'mlp/down': ('mlp.Wo',)},
        table='embeddings.tok_embeddings', final_norm='final_norm',
        embedding_norm='embeddings.norm', renamed=((r'^model\.', ''),),
        unused=r'head\..*|decoder\..*|classifier\..*', kv_heads=False),
    'nomic_bert': _Names(
        architecture='NomicBertModel', read=_read_nomic, write=_write_nomic,
        layer='encoder.layers.{}',
        parts={
            'attention/qkv': ('attn.Wqkv',),
            'attention/out': ('attn.out_proj',),
            'attention/norm': ('norm1',),
            'mlp/up': ('mlp.fc12', 'mlp.fc11'),
            'mlp/down': ('mlp.fc2',),
            'mlp/norm': ('norm2',)},
        table='embeddings.word_embeddings', final_norm='',
        embedding_norm='emb_ln', renamed=((r'^bert\.', ''),),
        unused=r'pooler\..*|cls\..*|classifier\..*', kv_heads=False,
        types=True),
    'gte': _GTE,
    'new': _GTE,  # GTE before transformers knew it, which lacks its scaling
    'llama': _DECODER,
    'mistral': dataclasses.replace(
        _DECODER, architecture='MistralModel', read=_read_mistral,
        write=_write_mistral),
    'qwen2': dataclasses.replace(
        _DECODER, architecture='Qwen2Model', read=_read_qwen2,
        write=_write_qwen),
    'qwen3': dataclasses.replace(
        _DECODER, architecture='Qwen3Model', read=_read_qwen3,
        write=_write_qwen3, parts={**_DECODER.parts, **_HEAD_NORMS}),
    'eurobert': dataclasses.replace(
        _DECODER, architecture='EuroBertModel', read=_read_eurobert),
    'gemma3_text': dataclasses.replace(
        _DECODER, architecture='Gemma3TextModel', read=_read_gemma3,
        write=_write_gemma3, parts={
            **_DECODER.parts, **_HEAD_NORMS,
            'attention/post_norm': ('post_attention_layernorm',),
            'mlp/norm': ('pre_feedforward_layernorm',),
            'mlp/post_norm': ('post_feedforward_layernorm',)}),
}


def _family(model_type):
  """Returns the Family of a key of `_NAMES`."""
  names = _NAMES[model_type]

  def read_config(settings):
    keys = _NOMIC_SETTINGS if (
        model_type == 'nomic_bert' and 'n_embd' in settings.values
    ) else family.SETTINGS
    sizes = {ours: settings.read(theirs, int) for ours, theirs in keys.items()}
    heads = sizes['num_heads']
    usual = max(sizes['hidden_size'] // max(heads, 1), 1)
    if names.kv_heads:
      own = settings.read('head_dim', int, 0)
      kv_heads = settings.read('num_key_value_heads', int, 0) or heads
    else:
      own, kv_heads = 0, heads
    if not own and sizes['hidden_size'] != usual * heads:
      raise ValueError(
          f'{settings.path}: hidden_size={sizes["hidden_size"]} is no multiple '
          f'of the {heads} heads, and head_dim is not given.')
    return modern.ModernConfig(**{
        **sizes, 'num_kv_heads': kv_heads, 'head_size': own or usual,
        'pad_id': settings.read('pad_token_id', int, None),
        'model_type': model_type, **names.read(settings)})

  def write_config(config):
    return {
        'model_type': model_type, 'architectures': [names.architecture],
        **{theirs: getattr(config, ours)
           for ours, theirs in family.SETTINGS.items()},
        **({'num_key_value_heads': config.num_kv_heads,
            'head_dim': config.head_size} if names.kv_heads else {}),
        'pad_token_id': config.pad_id, **names.write(config)}

  return family.Family(
      read_config, write_config, lambda config: _tensors(names, config),
      names.layer, names.renamed, names.unused, names.types)


def _tensors(names, config):
  """Returns a family.Tensor per parameter."""
  hidden, wide = config.hidden_size, config.intermediate_size
  inner = config.num_heads * config.head_size
  kernels = {  # widths side by side, and what they are made from
      'attention/qkv': (config.qkv_widths, hidden),
      'attention/out': ((hidden,), inner),
      'mlp/up': ((wide, wide), hidden),
      'mlp/down': ((hidden,), wide)}
  biased = config.norm == 'layer' and config.norm_bias

  def norm(ours, theirs, size=hidden):
    yield family.Tensor(f'{ours}_scale', (f'{theirs}.weight',), (size,))
    if biased:
      yield family.Tensor(f'{ours}_bias', (f'{theirs}.bias',), (size,))

  def dense(ours, theirs):
    widths, inputs = kernels[ours.partition('/')[2]]
    if len(theirs) == 1:
      widths = (sum(widths),)
    options = dict(
        widths=widths,
        halves_swapped=names.gate_second and ours.endswith('mlp/up'))
    yield family.Tensor(
        f'{ours}_kernel', tuple(f'{name}.weight' for name in theirs),
        (0, inputs), transposed=True, **options)
    if ours.rpartition('/')[2] in config.biases:
      yield family.Tensor(
          f'{ours}_bias', tuple(f'{name}.bias' for name in theirs), (0,),
          **options)

  found = [family.Tensor('token_table', (f'{names.table}.weight',),
                         (config.vocab_size, hidden))]
  if config.type_vocab_size:
    found.append(family.Tensor(
        'embeddings/types', ('embeddings.token_type_embeddings.weight',),
        (config.type_vocab_size, hidden)))
  if names.embedding_norm:
    found.extend(norm('embeddings/norm', names.embedding_norm))
  if names.final_norm:
    found.extend(norm('final_norm', names.final_norm))
  for i in range(config.num_layers):
    for part, parts in names.parts.items():
      theirs = [f'{names.layer.format(i)}.{name}' for name in parts]
      ours = f'layer_{i}/{part}'
      if part in kernels:
        found.extend(dense(ours, theirs))
      elif i or config.first_norm or part != 'attention/norm':
        size = config.head_size if part in _HEAD_NORMS else hidden
        found.extend(norm(ours, theirs[0], size))
  return found


FAMILIES = {model_type: _family(model_type) for model_type in _NAMES}
"""model_type of config.json -> family.Family."""
