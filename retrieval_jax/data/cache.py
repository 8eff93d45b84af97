"""Folders of prepared data: made once, checked whenever they are opened."""

from collections.abc import Callable
import errno
import os
import shutil
import warnings

from retrieval_jax import files


def folder(path: str, write: Callable[[str], None]) -> None:
  """Makes a folder that can be made again, unless it is there, undamaged.

  One that is damaged, or was not sealed, is removed with a warning and made
  again. Several processes may do this at once.

  Args:
    path: of the folder.
    write: fills the empty folder that it is given; what it writes is sealed.

  Raises:
    OSError: naming the option, where the folder cannot be written.
  """
  if os.path.isdir(path):
    problem = _without_damaged(path)
    if problem:
      warnings.warn(f'{problem}; {path} is made again.', stacklevel=2)
  if not os.path.isdir(path):
    _check_writable(os.path.dirname(path))
    with files.new_folder(path) as temporary:
      write(temporary)
      files.seal(temporary)


def _check_writable(path: str) -> None:
  """Makes a folder; raises an OSError in our words if nothing can be put in."""
  error: OSError | None = None
  try:
    os.makedirs(path, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
      error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  except OSError as reason:
    error = reason
  if error is not None:
    raise OSError(
        error.errno, f'{error.strerror}: prepared data cannot be written to '
        f'{path}. Name a folder that can be written by --config.data.cache'
    ) from error


def _without_damaged(path: str) -> str | None:
  """Removes a folder if it is damaged; returns what was found."""
  def problem():
    if not os.path.exists(os.path.join(path, files.SEAL)):
      return f'{os.path.join(path, files.SEAL)}: is not there'
    return files.damage(path, sampled=True)

  if not problem():
    return None
  _check_writable(os.path.dirname(path))
  # Another process may have found the same, and made the folder again since.
  lock = files.locked(os.path.dirname(os.path.abspath(path)), wait=True)
  try:
    found = problem() if os.path.isdir(path) else None
    if found:
      shutil.rmtree(path)
    return found
  finally:
    if lock is not None:
      os.close(lock)
