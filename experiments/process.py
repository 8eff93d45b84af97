"""What every script does around its work: quiet logs, errors in one line."""

import contextlib
import os
import sys

from absl import flags
from absl import logging

from retrieval_jax import runtime


@contextlib.contextmanager
def script():
  """Keeps libraries' logs to warnings and compiled programs on disk.

  Errors that a user can mend (ValueError, FileNotFoundError,
  FloatingPointError, ModuleNotFoundError) end the process with exit code 1 and
  their message alone; RETRIEVAL_JAX_TRACEBACK=1 shows where they came from.
  """
  if 'verbosity' not in flags.FLAGS or not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.ERROR)
  runtime.configure_compilation_cache(
      os.path.expanduser('~/.cache/retrieval_jax/compiled'))
  try:
    yield
  except (ValueError, FileNotFoundError, FloatingPointError,
          ModuleNotFoundError) as error:
    if os.environ.get('RETRIEVAL_JAX_TRACEBACK'):
      raise
    sys.exit(f'error: {error}\n(RETRIEVAL_JAX_TRACEBACK=1 shows where.)')
