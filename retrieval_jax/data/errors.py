"""The error that malformed or missing data raises."""

import importlib
import types


class DataError(ValueError):
  """Malformed input; the message says where and what to do."""


def import_extra(module: str, extra: str) -> types.ModuleType:
  """Imports an optional package, or says by which extra it is installed."""
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error}. Run `pip install \'retrieval_jax[{extra}]\'`, or in a clone '
        f"`pip install -e '.[{extra}]'`.") from error
