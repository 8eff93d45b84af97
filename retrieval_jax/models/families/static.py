"""sentence-transformers' StaticEmbedding and model2vec's files.

The folder has no config.json of an encoder: the shape is that of its tensor,
`embedding.weight` [V, H], or `embeddings`, as model2vec says. There tokens may
share rows (`mapping` [V]) and have weights (`weights` [V]); both are folded
into one table, as sentence-transformers does, and what is written has neither.
"""

import os

import numpy as np

from retrieval_jax import types
from retrieval_jax.data import tensor_files
from retrieval_jax.models import static
from retrieval_jax.models.families import family

_TABLE = 'embedding.weight'
_NAMES = (_TABLE, 'embeddings')


def load(folder: str
         ) -> tuple[static.StaticConfig, types.Params, tuple[str, ...]]:
  """Returns (config, params, names read) of the table in a folder.

  Raises:
    FileNotFoundError: naming the missing file.
    ValueError: for tensors that are missing, superfluous or do not fit.
  """
  path = os.path.join(folder, 'model.safetensors')
  if not os.path.exists(path):
    raise FileNotFoundError(
        f'There is no {path}; save the model with safe_serialization=True.')
  tensors = tensor_files.read_all(path)
  found = [name for name in _NAMES if name in tensors]
  extra = set(tensors) - {*_NAMES, 'mapping', 'weights'}
  if len(found) != 1 or extra:
    raise ValueError(
        f'{path} holds {", ".join(sorted(tensors)) or "nothing"}; expected one '
        f'of {", ".join(_NAMES)}, and maybe mapping and weights.')
  table = tensor_files.finite(tensors[found[0]], path, found[0])
  if table.ndim != 2:
    raise ValueError(f'{path}: {found[0]} has shape {list(table.shape)}, '
                     'expected [tokens, dimensions].')
  if 'mapping' in tensors:
    rows = tensors['mapping']
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer) or (
        rows.size and not 0 <= rows.min() <= rows.max() < len(table)):
      raise ValueError(
          f'{path}: mapping {rows.dtype} {list(rows.shape)} must be of rows of '
          f'{found[0]}, of which there are {len(table)}.')
    table = table[rows]
  if 'weights' in tensors:
    weights = tensor_files.finite(tensors['weights'], path, 'weights')
    if weights.shape != table.shape[:1]:
      raise ValueError(
          f'{path}: weights has shape {list(weights.shape)}, but there are '
          f'{len(table)} tokens.')
    table = table * weights[:, None]
  return (static.StaticConfig(*table.shape),
          {'token_table': np.ascontiguousarray(table, np.float32)},
          tuple(sorted(tensors)))


def _no_config(settings):
  raise ValueError(
      f"{settings.path}: model_type 'static' is not one that config.json "
      'names; a modules.json with StaticEmbedding does.')


FAMILY = family.Family(
    read_config=_no_config,
    write_config=lambda config: {},
    tensors=lambda config: [family.Tensor(
        'token_table', (_TABLE,), (config.vocab_size, config.hidden_size))],
    layer='', renamed=(), unused='')
