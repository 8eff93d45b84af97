"""Files and folders that appear whole or not at all; compressed files, JSON."""

import bz2
from collections.abc import Callable, Iterator, Mapping
import contextlib
import gzip
import importlib
import json
import lzma
import os
import re
import secrets
import shutil
from typing import Any, BinaryIO, TextIO
import zlib

try:
  import fcntl
except ModuleNotFoundError:  # Windows: without locks nothing is removed
  fcntl = None  # type: ignore[assignment]

_OPENERS: Mapping[str, Callable[[str], Any]] = {
    '.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open,
    '.zst': lambda path: _zstandard().open(path, 'rb')}
COMPRESSIONS = tuple(_OPENERS)
"""Endings of the compressed files that `reading` opens."""

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
  def make(temporary):
    with open(temporary, 'x', encoding='utf-8'):
      pass

  with _beside(path, make) as temporary:
    try:
      with open(temporary, 'w', encoding='utf-8', newline='\n') as file:
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
  with _beside(path, os.mkdir) as temporary:
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
  os.makedirs(folder, exist_ok=True)
  _remove_abandoned(folder, name)
  lock = None
  while lock is None:
    temporary = os.path.join(folder, f'.{name}.{secrets.token_hex(4)}')
    make(temporary)
    # None where another process removed it before it was locked.
    lock = _locked(temporary, wait=True)
  try:
    yield temporary
  finally:
    os.close(lock)


def _remove_abandoned(folder: str, name: str) -> None:
  """Removes the neighbours of `name` that no living process writes."""
  pattern = re.compile(rf'\.{re.escape(name)}\.[0-9a-f]{{8}}')
  for found in filter(pattern.fullmatch, os.listdir(folder)):
    path = os.path.join(folder, found)
    lock = _locked(path, wait=False)
    if lock is None:
      continue
    if os.path.isdir(path):
      shutil.rmtree(path, ignore_errors=True)
    else:
      with contextlib.suppress(OSError):
        os.remove(path)
    os.close(lock)


def _locked(path: str, *, wait: bool) -> int | None:
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
