"""A disk without room, and files that lost some of their bytes."""

import contextlib
import os
import resource


@contextlib.contextmanager
def files_of_at_most(num_bytes):
  """Lets this process write no file beyond a size, as if its disk were full.

  Writing and reserving space then fail as on a full disk (EFBIG in place of
  ENOSPC), in libraries too, and nothing needs to be mounted.
  """
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def damage(path, how):
  """Damages a file: 'cut' to its half, 'empty', 'gone' or a 'changed' byte."""
  size = os.path.getsize(path)
  if how == 'gone':
    os.remove(path)
  elif how == 'changed':
    with open(path, 'r+b') as file:
      file.seek(size // 2)
      byte = file.read(1)
      file.seek(size // 2)
      file.write(bytes([byte[0] ^ 1]))
  else:
    os.truncate(path, {'cut': size // 2, 'empty': 0}[how])


def files_in(folder):
  """Returns the paths of all files below a folder, sorted."""
  return sorted(os.path.join(parent, name)
                for parent, _, names in os.walk(folder) for name in names)
