"""What sentence-transformers writes around an encoder, read and written.

Besides config.json and the weights there are modules.json (the chain of
modules), a folder each for pooling and a dense layer,
config_sentence_transformers.json (prompts) and sentence_bert_config.json
(length). A file of our own holds the inverse temperature, for which these have
no place.
"""

import collections
from collections.abc import Callable
import dataclasses
import os
import re
from typing import Any

import numpy as np

from retrieval_jax import files
from retrieval_jax.data import settings as settings_lib
from retrieval_jax.data import tensor_files

OUR_FILE = 'retrieval_jax.json'

# Our pooling -> the flag of versions up to 5, the word of later ones.
_POOLINGS = {
    'mean': ('pooling_mode_mean_tokens', 'mean'),
    'cls': ('pooling_mode_cls_token', 'cls'),
    'max': ('pooling_mode_max_tokens', 'max'),
    'mean_sqrt_len': (
        'pooling_mode_mean_sqrt_len_tokens', 'mean_sqrt_len_tokens'),
    'weightedmean': ('pooling_mode_weightedmean_tokens', 'weightedmean'),
    'lasttoken': ('pooling_mode_lasttoken', 'lasttoken'),
}

# Keys of `dual_encoder.ACTIVATIONS` -> what a dense module calls them.
_ACTIVATIONS = {
    'identity': 'torch.nn.modules.linear.Identity',
    **{name.lower(): f'torch.nn.modules.activation.{name}'
       for name in ('Tanh', 'ReLU', 'GELU', 'Sigmoid')}}

_ROUTE = '::'  # between a folder and a route of the router in it
_DOCUMENT = ('document', 'passage', 'corpus')  # names of the side of targets
_MODULES = 'sentence_transformers.models.'  # known to old versions and new
_STATIC = 'StaticEmbedding'  # which pools, too
_CHAIN = re.compile(
    rf'(Transformer Pooling|{_STATIC})( Dense)*( Normalize)? ')


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
  """A dense layer after pooling, activation(x kernel + bias).

  Several in a row without activations between them, as EmbeddingGemma has, are
  one, their product; so what is written has one.

  Attributes:
    kernel: [H, D] float32.
    bias: [D] float32, or None.
    activation: a key of `dual_encoder.ACTIVATIONS`.
  """
  kernel: np.ndarray
  bias: np.ndarray | None = None
  activation: str = 'identity'

  def params(self) -> dict[str, np.ndarray]:
    """Returns the layer as an entry 'projection' of a tower's params."""
    return {'kernel': self.kernel,
            **({} if self.bias is None else {'bias': self.bias})}


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
  """What follows an encoder, and what precedes its texts.

  Every attribute is None where the folder says nothing about it.

  Attributes:
    pooling: one of `dual_encoder.POOLINGS`.
    dense: the layer after pooling.
    normalize: whether embeddings get length one.
    query_prompt: put before each query.
    target_prompt: put before each target.
    max_length: of a text in tokens.
    scale: inverse temperature that the encoder was trained with.
  """
  pooling: str | None = None
  dense: Dense | None = None
  normalize: bool | None = None
  query_prompt: str | None = None
  target_prompt: str | None = None
  max_length: int | None = None
  scale: float | None = None


def towers(folder: str) -> tuple[str, ...]:
  """Returns the towers of a folder, each of which `read` takes.

  They are the folder itself or, where its first module is a router, the folder
  with the route of queries and with that of documents behind '::'.

  Raises:
    ValueError: for a router that has other routes.
  """
  modules = _modules(folder)
  if not modules or _kind(modules[0]) != 'Router':
    return folder,
  routes = _router(folder, modules[0]).read('structure', dict)
  document = next((name for name in _DOCUMENT if name in routes), '')
  if len(routes) != 2 or 'query' not in routes or not document:
    raise ValueError(
        f'{folder}: a router with routes {", ".join(routes)} is not supported, '
        f'only query and one of {", ".join(_DOCUMENT)}.')
  return tuple(f'{folder}{_ROUTE}{route}' for route in ('query', document))


def split_route(tower: str) -> tuple[str, str]:
  """Returns (folder, '::' and the route or nothing) of one of `towers`."""
  folder, mark, route = tower.partition(_ROUTE)
  return folder, mark + route


def transformer_folder(folder: str) -> str:
  """Returns the folder that holds config.json, weights and tokenizer."""
  inside, _ = split_route(folder)
  for module in _modules(folder):
    if _kind(module) in ('Transformer', _STATIC):
      return os.path.normpath(os.path.join(inside, module['path']))
  return inside


def has_modules(folder: str) -> bool:
  """Whether `folder`, or one of its `towers`, says what follows its encoder."""
  return bool(_modules(folder))


def is_static(folder: str) -> bool:
  """Whether `folder`, or one of its `towers`, has static embeddings."""
  modules = _modules(folder)
  if modules:
    return _kind(modules[0]) == _STATIC
  return _model2vec(split_route(folder)[0]) is not None


def _model2vec(folder):
  """Returns the Settings of a model2vec folder, None for another one."""
  settings = read_settings(folder, 'config.json', {})
  return settings if settings.values.get('model_type') == 'model2vec' else None


def read(folder: str) -> Head:
  """Returns the Head that `folder`, or one of its `towers`, describes.

  Raises:
    ValueError: for modules, poolings and settings that are not supported,
      naming file and value.
  """
  tower, (folder, _) = folder, split_route(folder)
  prompts = _prompts(folder)
  ours = read_settings(folder, OUR_FILE, {})
  head = Head(
      query_prompt=prompts('query'),
      target_prompt=prompts(*_DOCUMENT),
      scale=ours.read('scale', float, None))
  modules = _modules(tower)
  if not modules:
    model2vec = _model2vec(folder)
    return head if model2vec is None else dataclasses.replace(
        head, pooling='mean', max_length=_cut_at(folder),
        normalize=model2vec.read('normalize', bool, False))
  chain = ''.join(f'{_kind(module)} ' for module in modules)
  if not _CHAIN.fullmatch(chain):
    raise ValueError(
        f"{os.path.join(folder, 'modules.json')}: modules "
        f'{", ".join(chain.split())} are not supported, only Transformer and '
        f'Pooling or {_STATIC}, Dense, and Normalize, in this order.')
  paths = collections.defaultdict(list)
  for module in modules:
    paths[_kind(module)].append(os.path.join(folder, module['path']))
  return dataclasses.replace(
      head, pooling='mean' if paths[_STATIC] else _pooling(*paths['Pooling']),
      dense=_joined(paths['Dense']) if paths['Dense'] else None,
      normalize=bool(paths['Normalize']),
      max_length=(_cut_at if paths[_STATIC] else _max_length)(
          transformer_folder(tower)))


def write(folder: str, head: Head, hidden_size: int, *,
          static: bool = False) -> None:
  """Writes the files that `read` finds, for old and new versions to load.

  Args:
    folder: the encoder's; exists.
    head: with every attribute but `dense` and the prompts set.
    hidden_size: H, of the encoder.
    static: of static embeddings, which take texts of any length.

  Raises:
    ValueError: for static embeddings that are not pooled by their mean.
  """
  if static and head.pooling != 'mean':
    raise ValueError(
        f'Static embeddings with pooling {head.pooling!r} cannot be written: '
        "what loads them takes the mean. Train with --config.model.pooling="
        'mean.')
  modules = [(_STATIC if static else 'Transformer', '')]

  def add(kind):
    modules.append((kind, f'{len(modules)}_{kind}'))
    os.makedirs(os.path.join(folder, modules[-1][1]))
    return os.path.join(folder, modules[-1][1])

  if not static:
    write_json(add('Pooling'), 'config.json', {
        'word_embedding_dimension': hidden_size,
        **{flag: name == head.pooling for name, (flag, _) in _POOLINGS.items()},
        'include_prompt': True})
    write_json(folder, 'sentence_bert_config.json', {
        'max_seq_length': head.max_length, 'do_lower_case': False})
  if head.dense is not None:
    path = add('Dense')
    write_json(path, 'config.json', {
        'in_features': head.dense.kernel.shape[0],
        'out_features': head.dense.kernel.shape[1],
        'bias': head.dense.bias is not None,
        'activation_function': _ACTIVATIONS[head.dense.activation]})
    tensors = {'linear.weight': np.ascontiguousarray(head.dense.kernel.T)}
    if head.dense.bias is not None:
      tensors['linear.bias'] = head.dense.bias
    tensor_files.write(
        os.path.join(path, 'model.safetensors'), tensors, {'format': 'pt'})
  if head.normalize:
    add('Normalize')
  write_json(folder, 'modules.json', [
      {'idx': i, 'name': str(i), 'path': path, 'type': _MODULES + kind}
      for i, (kind, path) in enumerate(modules)])
  write_prompts(folder, head)
  write_json(folder, OUR_FILE, {'scale': head.scale})


def write_prompts(folder: str, head: Head) -> None:
  """Writes config_sentence_transformers.json alone."""
  write_json(folder, 'config_sentence_transformers.json', {
      'prompts': {'query': head.query_prompt or '',
                  'document': head.target_prompt or ''},
      'default_prompt_name': None,
      'similarity_fn_name': 'cosine' if head.normalize else 'dot'})


def write_router(folder: str, towers: dict[str, str]) -> None:
  """Writes a modules.json whose queries and documents take different towers.

  Args:
    folder: holds the folders of the towers, each written by `write`.
    towers: route, 'query' and 'document' -> folder in `folder`.
  """
  types: dict[str, str] = {}
  structure: dict[str, list[str]] = {}
  for route, tower in towers.items():
    structure[route] = []
    for module in _modules(os.path.join(folder, tower)):
      path = '/'.join(filter(None, (tower, module['path'])))
      types[path] = module['type']
      structure[route].append(path)
  write_json(folder, 'modules.json', [
      {'idx': 0, 'name': '0', 'path': '', 'type': _MODULES + 'Router'}])
  write_json(folder, 'router_config.json', {
      'types': types, 'structure': structure, 'parameters': {
          'default_route': 'document', 'allow_empty_key': True}})


def _modules(folder):
  """Returns the modules of a tower, {'type': str, 'path': str} each.

  They are the entries of modules.json; of a route, those of the router's
  configuration take the place of the router, the first entry.
  """
  folder, route = split_route(folder)
  path = os.path.join(folder, 'modules.json')
  listed = settings_lib.Settings(
      {'modules': read_json(folder, 'modules.json', [])}, path)
  modules = [settings_lib.Settings(module, path)
             for module in listed.read('modules', list)]
  found = [{name: module.read(name, str) for name in ('type', 'path')}
           for module in modules]
  if not route:
    return found
  router, *rest = found
  config = _router(folder, router)
  kinds, routes = (
      settings_lib.Settings(config.read(name, dict), config.path)
      for name in ('types', 'structure'))
  return [{'type': kinds.read(name, str),
           'path': '/'.join(filter(None, (router['path'], name)))}
          for name in routes.read(route.removeprefix(_ROUTE), list)] + rest


def _router(folder, module):
  """Returns the Settings of a router."""
  return read_settings(
      os.path.join(folder, module['path']), 'router_config.json')


def _kind(module):
  """Returns e.g. 'Pooling'; packages were renamed over the versions."""
  return module['type'].rpartition('.')[2]


def _pooling(folder):
  """Returns our name of the one mode in a pooling module."""
  settings = read_settings(folder, 'config.json')
  words = settings.values.get('pooling_mode', [
      name for name, value in settings.values.items()
      if name.startswith('pooling_mode_') and value is True])
  words = [*map(str, words)] if isinstance(words, list) else [str(words)]
  ours = [ours for ours, theirs in _POOLINGS.items()
          if len(words) == 1 and words[0] in theirs]
  if not ours:
    raise ValueError(
        f"{os.path.join(folder, 'config.json')}: pooling "
        f'{", ".join(words) or "none"} is not supported, only one of '
        f'{", ".join(_POOLINGS)}.')
  if not settings.read('include_prompt', bool, True):
    raise ValueError(
        f"{os.path.join(folder, 'config.json')}: include_prompt=False, a "
        'pooling without the tokens of the prompt, is not supported.')
  return ours[0]


def _joined(folders):
  """Returns the one Dense that dense modules in a row are.

  Raises:
    ValueError: where one before the last is not linear.
  """
  *first, last = map(_dense, folders)
  for dense, folder in zip(first, folders):
    if dense.activation != 'identity':
      raise ValueError(
          f"{os.path.join(folder, 'config.json')}: a dense layer with an "
          'activation before another dense layer is not supported.')
  for dense in reversed(first):
    kernel = last.kernel.astype(np.float64)  # a product rounded once
    bias = last.bias
    if dense.bias is not None:
      moved = dense.bias @ kernel
      bias = (moved if bias is None else bias + moved).astype(np.float32)
    last = dataclasses.replace(
        last, kernel=(dense.kernel @ kernel).astype(np.float32), bias=bias)
  return last


def _dense(folder):
  """Returns the Dense of a dense module."""
  settings = read_settings(folder, 'config.json')
  path = settings.path
  shape = tuple(settings.read(name, int)
                for name in ('out_features', 'in_features'))
  activation = settings.expect('activation_function', *_ACTIVATIONS.values())
  for name, plain in (('use_residual', False),
                      ('module_input_name', 'sentence_embedding'),
                      ('module_output_name', 'sentence_embedding')):
    settings.expect(name, plain, default=plain)
  weights = os.path.join(folder, 'model.safetensors')
  if not os.path.exists(weights):
    raise FileNotFoundError(
        f'There is no {weights}; save the model with safe_serialization=True.')
  tensors = {name: tensor_files.finite(tensor, weights, name)
             for name, tensor in tensor_files.read_all(weights).items()}
  wanted = {'linear.weight': shape,
            **({'linear.bias': shape[:1]}
               if settings.read('bias', bool) else {})}
  found = {name: value.shape for name, value in tensors.items()}
  if found != wanted:
    raise ValueError(
        f'{weights} holds {found}, but {path} asks for {wanted}.')
  bias = tensors.get('linear.bias')
  return Dense(
      np.ascontiguousarray(tensors['linear.weight'].T), bias,
      next(ours for ours, theirs in _ACTIVATIONS.items()
           if theirs == activation))


def _prompts(folder) -> Callable[..., str | None]:
  """Returns a function from names to the first prompt that one of them has."""
  found = read_settings(folder, 'config_sentence_transformers.json', {})
  prompts = settings_lib.Settings(found.read('prompts', dict, {}), found.path)
  return lambda *names: next(
      (prompts.read(name, str) for name in names
       if prompts.values.get(name) is not None), None)


def _cut_at(folder):
  """Returns the length at which tokenizer.json cuts; None for any length."""
  truncation = read_settings(folder, 'tokenizer.json', {}).part('truncation')
  return truncation and truncation.read('max_length', int)


def _max_length(folder):
  settings = read_settings(folder, 'sentence_bert_config.json', {})
  if settings.read('do_lower_case', bool, False):
    raise ValueError(
        f"{os.path.join(folder, 'sentence_bert_config.json')}: "
        'do_lower_case=True is not supported; use a tokenizer that lowercases.')
  found = settings.read('max_seq_length', int, None)
  if found is not None:
    return found
  found = read_settings(folder, 'tokenizer_config.json', {}).read(
      'model_max_length', float, None)
  return int(found) if found and found < 10**6 else None  # 1e30: no limit


_REQUIRED = object()


def read_json(folder: str, file: str, default: Any = _REQUIRED) -> Any:
  """Returns the content of a JSON file, or `default` where there is none.

  Raises:
    FileNotFoundError: where there is neither.
    ValueError: with file and line, for anything but JSON.
  """
  path = os.path.join(folder, file)
  try:
    return files.read_json(path)
  except FileNotFoundError as e:
    if default is not _REQUIRED:
      return default
    raise FileNotFoundError(
        f'There is no {path}; expected a model folder in the Hugging Face '
        'layout (config.json, model.safetensors).') from e


def read_settings(folder: str, file: str, default: Any = _REQUIRED
                  ) -> settings_lib.Settings:
  """Returns the object that a JSON file holds; the rest as of `read_json`.

  Raises:
    ValueError: also for JSON that is no object.
  """
  return settings_lib.Settings(
      read_json(folder, file, default), os.path.join(folder, file))


def write_json(folder: str, file: str, value: Any) -> None:
  """Writes a JSON file into a folder."""
  files.write_json(os.path.join(folder, file), value)
