"""Files of named tensors (safetensors), and what is wrong with damaged ones."""

from collections.abc import Mapping
import os
from typing import Any

import numpy as np
import safetensors.numpy

from retrieval_jax.data import errors

_LFS_POINTER = b'version https://git-lfs'


def open_file(path: str) -> Any:
  """Opens a file; tensors are read when they are asked for.

  Returns:
    What safetensors.safe_open returns: `keys`, `get_slice`, `get_tensor`.

  Raises:
    FileNotFoundError: if there is none.
    DataError: naming the file, if it is cut or something else.
  """
  try:
    return safetensors.safe_open(path, framework='numpy')
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    if isinstance(error, FileNotFoundError):
      raise
    with open(path, 'rb') as file:
      head = file.read(len(_LFS_POINTER))
    if head == _LFS_POINTER:
      raise errors.DataError(
          f'{path}: is a pointer of git-lfs, not the file itself. Fetch it: '
          '`git lfs pull` in its repository.') from None
    raise errors.DataError(
        f'{path}: expected a safetensors file, {os.path.getsize(path)} bytes '
        f'are there: {error}. Is it complete? Download or save it again.'
    ) from None


def read_all(path: str) -> dict[str, np.ndarray]:
  """Returns all tensors of a file by name; raises as `open_file`."""
  file = open_file(path)
  names = file.keys()  # the file itself is no iterable
  return {name: file.get_tensor(name) for name in names}


def write(path: str, tensors: Mapping[str, np.ndarray],
          metadata: Mapping[str, str] | None = None) -> None:
  """Writes a file.

  Raises:
    OSError: naming the file, if it cannot be written.
  """
  try:
    safetensors.numpy.save_file(
        dict(tensors), path, dict(metadata) if metadata else None)
  except safetensors.SafetensorError as error:
    raise OSError(f'Cannot write {path}: {error}. Is the disk full?') from error


def finite(tensor: np.ndarray, path: str, name: str) -> np.ndarray:
  """Returns weights as float32.

  Raises:
    DataError: naming file and tensor, if one is nan or inf.
  """
  values = np.asarray(tensor).astype(np.float32)
  if not np.isfinite(values).all():
    raise errors.DataError(
        f'{path}: tensor {name!r} holds nan or inf; the encoder is broken. '
        'Download or train it again.')
  return values
