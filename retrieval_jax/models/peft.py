"""Adapters in the layout of the library PEFT: read, added to a base, written.

A folder has adapter_config.json, which names the base, and
adapter_model.safetensors. sentence-transformers reads one in place of
config.json and model.safetensors.
"""

from collections.abc import Mapping
import os
import re
from typing import Any

from flax import traverse_util
import numpy as np

from retrieval_jax import types
from retrieval_jax.data import tensor_files
from retrieval_jax.models import families
from retrieval_jax.models import lora
from retrieval_jax.models import sentence_modules

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
_PARTS = {'a': 'lora_A', 'b': 'lora_B'}

# model_type of those whose modules are called in transformers otherwise than
# their tensors are in files.
_RENAMED = ('gte', 'new', 'nomic_bert')

# What would change the encoder in ways that are not ours -> where it does not.
_PLAIN = {
    'bias': 'none', 'fan_in_fan_out': False, 'use_dora': False,
    'use_qalora': False, 'lora_bias': False, 'rank_pattern': {},
    'alpha_pattern': {}, 'layer_replication': [], 'target_parameters': [],
    'trainable_token_indices': [], 'alora_invocation_tokens': [],
    'modules_to_save': []}


def check_names(model_type: str, where: str) -> None:
  """Raises ValueError for a family that this layout has no names for."""
  if model_type in _RENAMED:
    raise ValueError(
        f'{where}: adapters to an encoder of type {model_type!r} in the layout '
        'of PEFT are not supported, for transformers calls its modules '
        'otherwise than its files do; merge them into the encoder.')


def is_adapter(folder: str) -> bool:
  """Returns whether a folder holds adapters in place of an encoder."""
  return os.path.exists(os.path.join(folder, CONFIG))


def base_of(folder: str) -> str:
  """Returns the name of the encoder that adapters belong to."""
  return _settings(folder).read('base_model_name_or_path', str)


def _settings(folder):
  return sentence_modules.read_settings(folder, CONFIG)


def add(folder: str, config: Any, weights: types.Params) -> types.Params:
  """Returns weights of an encoder with the adapters of a folder added.

  Args:
    folder: of the adapters.
    config: of their base; with fewer layers, the adapters of the others are
      left out.
    weights: of the base, numpy float32.

  Raises:
    FileNotFoundError: naming the missing file.
    ValueError: for adapters that are not plain LoRA, naming the setting, or
      that do not fit the base, naming the tensor.
  """
  settings = _settings(folder)
  check_names(config.model_type, settings.path)
  settings.expect('peft_type', 'LORA')
  for name, plain in _PLAIN.items():
    settings.expect(name, plain, default=plain)
  rank = settings.read('r', int)
  alpha = settings.read('lora_alpha', float)
  if rank < 1 or alpha <= 0:
    raise ValueError(f'{settings.path}: expected r and lora_alpha to be '
                     f'positive, got {rank} and {alpha}.')
  if settings.read('use_rslora', bool, False):
    alpha *= rank ** 0.5  # it scales by alpha / sqrt(r)
  made = lora.Lora(rank, alpha)
  return made.added(config, weights, _read(folder, config, rank))


def _read(folder, config, rank):
  """Returns the adapters of a folder, as an entry 'lora'."""
  path = os.path.join(folder, WEIGHTS)
  if not os.path.exists(path):
    raise FileNotFoundError(
        f'There is no {path}; save the adapters with '
        'safe_serialization=True.')
  family = families.FAMILIES[config.model_type]
  found = {family.canonical(name.removeprefix(_PREFIX)): (name, value)
           for name, value in tensor_files.read_all(path).items()}
  adapters = {}
  for place in lora.places(config):
    names = {part: f'{place.module}.{theirs}.weight'
             for part, theirs in _PARTS.items()}
    if not found.keys() & set(names.values()):
      continue
    for part, shape in (('a', (rank, place.inputs)),
                        ('b', (place.outputs, rank))):
      if names[part] not in found:
        raise ValueError(f'{path}: tensor {names[part]!r} is missing.')
      name, value = found.pop(names[part])
      if value.shape != shape:
        raise ValueError(
            f'{path}: tensor {name!r} has shape {list(value.shape)}, but '
            f'r={rank} and the base ask for {list(shape)}.')
      adapters[*place.path, part] = _ours(
          place, part, tensor_files.finite(value, path, name))
  others = [name for canonical, (name, _) in found.items()
            if not _is_left_out(family, config, canonical)]
  if others:
    raise ValueError(
        f'{path}: {others[0]!r} and {len(others) - 1} more tensors belong to '
        f'no kernel of the {config.model_type} encoder of {config.num_layers} '
        'layers.')
  return traverse_util.unflatten_dict(adapters)


def _is_left_out(family, config, name):
  """Returns whether a tensor is of a layer that was not read."""
  number = re.match(
      re.escape(family.layer).replace(r'\{\}', r'(\d+)') + r'\.', name)
  return number is not None and int(number[1]) >= config.num_layers


def _ours(place, part, value):
  """Returns one of a pair in our layout."""
  value = np.ascontiguousarray(value.T)
  return _rolled(value) if part == 'b' and place.halves_swapped else value


def _theirs(place, part, value):
  """Undoes `_ours`."""
  value = _rolled(value) if part == 'b' and place.halves_swapped else value
  return np.ascontiguousarray(value.T)


def _rolled(value):
  return np.roll(value, value.shape[1] // 2, axis=1)


def write(folder: str, config: Any, made: lora.Lora,
          adapters: Mapping[str, Any], base: str) -> None:
  """Writes the two files.

  Args:
    folder: exists.
    config: of the encoder.
    made: which adapters these are.
    adapters: an entry 'lora', numpy.
    base: what the encoder is called; PEFT loads that.
  """
  pairs = traverse_util.flatten_dict(adapters)
  found = made.places(config)
  tensor_files.write(os.path.join(folder, WEIGHTS), {
      f'{_PREFIX}{place.module}.{theirs}.weight': _theirs(
          place, part, pairs[*place.path, part])
      for place in found for part, theirs in _PARTS.items()}, {'format': 'pt'})
  sentence_modules.write_json(folder, CONFIG, {
      'peft_type': 'LORA', 'task_type': 'FEATURE_EXTRACTION',
      'base_model_name_or_path': base, 'r': made.rank,
      'lora_alpha': made.alpha, 'lora_dropout': 0.0, 'bias': 'none',
      'fan_in_fan_out': False, 'use_rslora': False, 'use_dora': False,
      'modules_to_save': None, 'init_lora_weights': True,
      'inference_mode': True,
      'target_modules': [place.module for place in found]})
