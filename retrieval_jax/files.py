"""Files and folders that appear whole or not at all; arrays, JSON, archives."""

import bz2
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
import contextlib
import errno
import gzip
import importlib
import json
import lzma
import math
import os
import pathlib
import platform
import re
import secrets
import shutil
import tempfile
from typing import Any, BinaryIO, TextIO
import zlib

import numpy as np
from numpy.typing import DTypeLike

try:
  import fcntl
except ModuleNotFoundError:  # Windows: without locks nothing is removed
  fcntl = None  # type: ignore[assignment]

_OPENERS: Mapping[str, Callable[[str], Any]] = {
    '.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open,
    '.zst': lambda path: _zstandard().open(path, 'rb')}
COMPRESSIONS = tuple(_OPENERS)
"""Endings of the compressed files that `reading` opens."""

SEAL = 'files.json'
"""Name of the file that `seal` writes."""
_SAMPLES, _SAMPLE_BYTES = 64, 2**14

# What a write says where there is no room: on the disk, in the user's share of
# it, or under a limit that was set for the size of files (ulimit -f).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Python has it from 3.14 on; the other is a package of the same for older ones.
# Not `zstandard`, which takes the end of a cut file for that of the whole.
_ZSTANDARD = ('compression.zstd', 'backports.zstd')


@contextlib.contextmanager
def reading(path: str) -> Iterator[BinaryIO]:
  """Opens a file for reading bytes, decompressed if its ending says so.

  Raises:
    OSError: if there is no such file; on reading, if it is damaged or cut.
    ModuleNotFoundError: for .zst, where nothing is installed that reads it.
  """
  try:
    with _OPENERS.get(os.path.splitext(path)[1], _plain)(path) as file:
      yield file
  except (EOFError, zlib.error, lzma.LZMAError) as error:
    raise OSError(f'{path}: damaged or cut: {error}') from error
  except Exception as error:
    if type(error).__name__ == 'ZstdError':  # of whichever module it is
      raise OSError(f'{path}: damaged or cut: {error}') from error
    raise


def _plain(path: str) -> BinaryIO:
  return open(path, 'rb')


def _zstandard() -> Any:
  for name in _ZSTANDARD:
    with contextlib.suppress(ModuleNotFoundError):
      return importlib.import_module(name)
  raise ModuleNotFoundError(
      'Files that end in .zst need Python 3.14 or `pip install '
      'backports.zstd`; or decompress them: unzstd FILE.')


@contextlib.contextmanager
def replacing(path: str) -> Iterator[TextIO]:
  """Opens a UTF-8 text file for writing that replaces `path` if all goes well.

  Its folder is made if absent, line ends are as written. On any exception an
  earlier file at `path` stays as it is.
  """
  with _replacing(path, 'w', encoding='utf-8', newline='\n') as file:
    yield file


@contextlib.contextmanager
def replacing_binary(path: str) -> Iterator[BinaryIO]:
  """Opens a file of bytes for writing, otherwise as `replacing`."""
  with _replacing(path, 'wb') as file:
    yield file


@contextlib.contextmanager
def _replacing(path: str, mode: str, **options: Any) -> Iterator[Any]:
  """Opens a file, as `open` does, that replaces `path` if all goes well."""
  def make(temporary):
    with open(temporary, 'xb'):
      pass

  with _beside(path, make) as temporary, naming_full_disk(path):
    try:
      with open(temporary, mode, **options) as file:
        yield file
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(FileNotFoundError):
        os.remove(temporary)
      raise


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[str]:
  """Yields a temporary folder that becomes `path` if all goes well.

  On any exception the temporary folder is removed. If another process made
  `path` in the meantime, that one stays and ours is dropped; so two processes
  may make one folder if they would write the same into it.
  """
  with _beside(path, os.mkdir) as temporary, naming_full_disk(path):
    try:
      yield temporary
      try:
        os.rename(temporary, path)
      except OSError:
        if not os.path.isdir(path):
          raise
    finally:
      shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _beside(path: str, make: Callable[[str], object]) -> Iterator[str]:
  """Yields a hidden neighbour of `path` that `make` made; its folder is made.

  It is locked meanwhile. A process that is killed leaves its neighbour but no
  lock, so those without one are removed first.
  """
  folder, name = os.path.split(os.path.abspath(path))
  with _naming_refusal(path):
    os.makedirs(folder, exist_ok=True)
  _remove_abandoned(folder, name)
  lock = None
  while lock is None:
    temporary = os.path.join(folder, f'.{name}.{secrets.token_hex(4)}')
    with _naming_refusal(path):
      make(temporary)
    # None where another process removed it before it was locked.
    lock = locked(temporary, wait=True)
  try:
    yield temporary
  finally:
    os.close(lock)


@contextlib.contextmanager
def _naming_refusal(path: str) -> Iterator[None]:
  """Says which path cannot be written where a folder does not allow it."""
  try:
    yield
  except OSError as error:
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
      raise
    raise OSError(
        error.errno, f'{error.strerror}: cannot write {path}. Change the '
        'rights of its folder, or name another') from error


def _remove_abandoned(folder: str, name: str) -> None:
  """Removes the neighbours of `name` that no living process writes."""
  pattern = re.compile(rf'\.{re.escape(name)}\.[0-9a-f]{{8}}')
  for found in filter(pattern.fullmatch, os.listdir(folder)):
    path = os.path.join(folder, found)
    lock = locked(path, wait=False)
    if lock is None:
      continue
    if os.path.isdir(path):
      shutil.rmtree(path, ignore_errors=True)
    else:
      with contextlib.suppress(OSError):
        os.remove(path)
    os.close(lock)


def locked(path: str, *, wait: bool) -> int | None:
  """Returns a descriptor that holds the lock of a file or folder.

  None where it does not exist any more, or, without waiting, where another
  process holds its lock, it is another user's or the file system has no locks.
  """
  if fcntl is None:
    return os.open(os.devnull, os.O_RDONLY) if wait else None
  try:
    lock = os.open(path, os.O_RDONLY)
  except FileNotFoundError:
    return None
  except OSError:
    if wait:
      raise
    return None
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except OSError:  # in use; or such a file system, where nothing is removed
    if wait:
      return lock
    os.close(lock)
    return None
  if os.path.exists(path):
    return lock
  os.close(lock)
  return None


def read_object(path: str) -> dict[str, Any]:
  """Returns the JSON object that a file holds.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: with file and line, where it is anything else.
  """
  value = read_json(path)
  if not isinstance(value, dict):
    raise ValueError(
        f'{path}:1: expected a JSON object, got {type(value).__name__}; write '
        'the file again.')
  return value


@contextlib.contextmanager
def lock_folder(path: str) -> Iterator[None]:
  """Keeps a folder, made if absent, to this process by the lock of a file.

  The lock goes with the process, however that ends. Where the file system has
  no locks, nothing is kept.

  Raises:
    OSError: naming the process that has it, or the folder if it cannot be
      written.
  """
  with _naming_refusal(path):
    os.makedirs(path, exist_ok=True)
  name = os.path.join(path, '.lock')
  with contextlib.ExitStack() as stack:
    while fcntl is not None:
      with _naming_refusal(path):
        file = stack.enter_context(open(name, 'a+', encoding='utf-8'))
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        file.seek(0)
        raise OSError(
            error.errno, f'{path} is in use by {file.read() or "a process"}: '
            'wait until it has ended, stop it, or name another folder'
        ) from error
      except OSError:  # no locks
        break
      # Else its holder has just removed it.
      if os.path.exists(name) and os.path.samestat(
          os.stat(name), os.fstat(file.fileno())):
        stack.callback(pathlib.Path(name).unlink, missing_ok=True)
        file.truncate(0)
        file.write(f'process {os.getpid()} on {platform.node()}')
        file.flush()
        break
    yield


@contextlib.contextmanager
def naming_full_disk(path: str) -> Iterator[None]:
  """Says in errors of a full disk what was being written, which they lack.

  Args:
    path: file or folder that is written meanwhile.

  Raises:
    OSError: with the same number, naming `path`, the room there and what to do.
  """
  try:
    yield
  except OSError as error:
    if error.errno not in _FULL or isinstance(error, _FullDiskError):
      raise
    raise _full(path, error.errno) from error


class _FullDiskError(OSError):
  """The disk is full, in our words; not to be worded again further out."""


def _full(path: str, number: int, needed: int | None = None
          ) -> _FullDiskError:
  """Returns an error that says that there is no room for `path`."""
  free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
  return _FullDiskError(
      number, f'{os.strerror(number)}: cannot write {path}'
      + (f', which needs {_size(needed)}' if needed is not None else '')
      + f'; {_size(free)} are free there. Make room or name another folder, '
      'then give the same command again')


def _size(num_bytes: float) -> str:
  for unit in ('bytes', 'kB', 'MB'):
    if num_bytes < 1000:
      return f'{num_bytes:.4g} {unit}'
    num_bytes /= 1000
  return f'{num_bytes:.4g} GB'


@contextlib.contextmanager
def new_array(path: str, dtype: DTypeLike, shape: Sequence[int]
              ) -> Iterator[np.ndarray]:
  """Yields a new .npy file, memory-mapped to be filled.

  Its space is reserved first: a write through a map that finds the disk full
  does not fail but kills the process (SIGBUS). One without elements, which
  cannot be mapped, comes as an array of that shape.

  Raises:
    OSError: naming the file, its size and the free space, where the disk is
      full.
  """
  dtype, shape = np.dtype(dtype), tuple(shape)
  with _new_array(path, dtype, shape):
    pass
  if not math.prod(shape):
    yield np.zeros(shape, dtype)
    return
  array = np.lib.format.open_memmap(path, 'r+')
  yield array
  array.flush()


def save_array(path: str, array: np.ndarray) -> None:
  """Writes a .npy file as np.save does, with the errors of `new_array`.

  Those of np.save name neither the file nor the reason.
  """
  with _new_array(path, array.dtype, array.shape) as file:
    np.ascontiguousarray(array).tofile(file)


@contextlib.contextmanager
def _new_array(path: str, dtype: np.dtype, shape: tuple[int, ...]
               ) -> Iterator[BinaryIO]:
  """Yields a new .npy file at its first element, with room for all."""
  with open(path, 'wb') as file, naming_full_disk(path):
    np.lib.format.write_array_header_1_0(file, {
        'descr': np.lib.format.dtype_to_descr(dtype), 'fortran_order': False,
        'shape': shape})
    start = file.tell()
    _reserve(file, start + math.prod(shape) * dtype.itemsize)
    file.seek(start)
    yield file


def scratch_array(folder: str, dtype: DTypeLike, shape: Sequence[int]
                  ) -> np.ndarray:
  """Returns zeros that are mapped from a file without a name.

  The file is gone when the process ends, however it ends.

  Args:
    folder: where it is; made if absent.
    dtype: of the array.
    shape: of the array, without zeros.

  Raises:
    OSError: naming the folder, the size and the free space, where the disk is
      full.
  """
  dtype, shape = np.dtype(dtype), tuple(shape)
  os.makedirs(folder, exist_ok=True)
  with tempfile.TemporaryFile(dir=folder) as file, naming_full_disk(folder):
    _reserve(file, math.prod(shape) * dtype.itemsize, os.path.join(folder, '.'))
    return np.memmap(file, dtype, 'r+', shape=shape)


def _reserve(file: BinaryIO, num_bytes: int, path: str = '') -> None:
  """Makes an open file that long, of zeros that have their place on disk.

  `path` is for messages, of a file that has no name.
  """
  file.flush()
  try:
    os.posix_fallocate(file.fileno(), 0, num_bytes)
  except (AttributeError, OSError) as error:
    number = getattr(error, 'errno', None)
    if number in _FULL:
      raise _full(path or file.name, number, num_bytes) from error
    if number not in (None, errno.EINVAL, errno.EOPNOTSUPP):
      raise
    # Not on this system (macOS, Windows), or not on this file system.
    zeros = bytes(2**20)
    for first in range(file.seek(0, os.SEEK_END), num_bytes, len(zeros)):
      file.write(zeros[:num_bytes - first])
    file.flush()


def seal(folder: str, *, without: Container[str] = ()) -> None:
  """Writes the sizes and checksums of the files of a folder into it.

  Args:
    folder: whose files, and those of its folders, are complete.
    without: paths in it that may change.
  """
  write_json(os.path.join(folder, SEAL), {
      name: {'bytes': os.path.getsize(path), 'crc32': _checksum(path),
             'sampled': _checksum(path, sampled=True)}
      for name, path in sorted(_files_of(folder)) if name not in without})


def _files_of(folder: str) -> Iterator[tuple[str, str]]:
  for parent, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(parent, name)
      yield os.path.relpath(path, folder).replace(os.sep, '/'), path


def damage(folder: str, *, sampled: bool = False) -> str | None:
  """Returns what of a sealed folder is not as it was, naming the first file.

  Files that were added after `seal` are not looked at.

  Args:
    folder: with or without a seal.
    sampled: compares 64 blocks of 16 kB, evenly spread, in place of whole files
      where they are larger than that together. A file that is cut, empty, gone,
      longer, or replaced by another is noticed in either case; of changed bytes
      only those of 1/64 of the file in a row are for certain.

  Returns:
    'FILE: what is wrong'; None where nothing is, or where there is no seal.
  """
  seal_path = os.path.join(folder, SEAL)
  if not os.path.exists(seal_path):
    return None
  try:
    sealed = read_json(seal_path).items()
    for name, facts in sealed:
      path = os.path.join(folder, name)
      if not os.path.isfile(path):
        return f'{path}: is not there'
      if os.path.getsize(path) != facts['bytes']:
        return (f'{path}: has {os.path.getsize(path)} bytes, expected '
                f'{facts["bytes"]}')
      if _checksum(path, sampled=sampled) != facts[
          'sampled' if sampled else 'crc32']:
        return f'{path}: other bytes than were written (checksum)'
  except (ValueError, KeyError, TypeError, AttributeError):
    return f'{seal_path}: is damaged itself'
  return None


def _checksum(path: str, *, sampled: bool = False) -> int:
  """Returns the CRC-32 of a file, or of its samples."""
  size, checksum = os.path.getsize(path), 0
  with open(path, 'rb') as file:
    if not sampled or size <= _SAMPLES * _SAMPLE_BYTES:
      while block := file.read(2**20):
        checksum = zlib.crc32(block, checksum)
      return checksum
    for i in range(_SAMPLES):
      file.seek(i * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
      checksum = zlib.crc32(file.read(_SAMPLE_BYTES), checksum)
  return checksum


def write_text(path: str, text: str) -> None:
  """Writes a whole UTF-8 file, or leaves an earlier one untouched."""
  with replacing(path) as file:
    file.write(text)


def write_json(path: str, value: Any) -> None:
  """Writes a value as indented JSON, whole or not at all.

  Raises:
    ValueError: naming the file, where a number is infinite or nan, which JSON
      cannot express.
    TypeError: naming the file, where the value is not made of dicts, lists,
      strings, numbers, booleans and None.
  """
  try:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise type(error)(
        f'{path}: expected a value that JSON can hold: {error}.') from error
  write_text(path, text + '\n')


def read_json(path: str) -> Any:
  """Returns what a JSON file holds.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: with file and line, where it is not JSON in UTF-8.
  """
  with open(path, 'rb') as file:
    content = file.read()
  try:
    return json.loads(content.decode('utf-8'))
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    raise ValueError(
        f'{path}:{line}: expected JSON in UTF-8 ({error}); write the file '
        'again.') from error
  except json.JSONDecodeError as error:
    raise ValueError(
        f'{path}:{error.lineno}: expected JSON ({error.msg}, column '
        f'{error.colno}); is the file complete? Correct it or write it again.'
    ) from error
