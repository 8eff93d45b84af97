"""JSON objects of model folders, read with values of the right types."""

from collections.abc import Mapping
from typing import Any

_REQUIRED = object()
_KINDS = {int: 'an integer', float: 'a number', str: 'a string',
          bool: 'true or false', list: 'a list', dict: 'an object'}


class Settings:
  """A JSON object, which knows where it came from."""

  def __init__(self, values: Any, path: str):
    """Takes what a file holds, or a part of it.

    Args:
      values: the content.
      path: of the file, for messages.

    Raises:
      ValueError: if it is no object.
    """
    if not isinstance(values, Mapping):
      raise ValueError(
          f'{path}: expected a JSON object, got {_shown(values)}. Download or '
          'save it again.')
    self.values, self.path = values, path

  def read(self, name: str, kind: type, default: Any = _REQUIRED) -> Any:
    """Returns a value of type `kind`.

    Args:
      name: the key.
      kind: int, float (which integers are, too), str, bool, list or dict.
      default: what stands for null, and where there is no such key.

    Raises:
      ValueError: where it is of another type, or missing without a default.
    """
    value = self.values.get(name)
    if value is None and default is not _REQUIRED:
      return default
    if name not in self.values:
      raise ValueError(f'{self.path}: {name!r} is missing.')
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (
        isinstance(value, bool) and kind is not bool):
      raise ValueError(
          f'{self.path}: expected {name!r} to be {_KINDS[kind]}, got '
          f'{_shown(value)}.')
    return value

  def part(self, name: str) -> 'Settings | None':
    """Returns the object under a key; None for null, and where there is none.

    Raises:
      ValueError: where it is no object.
    """
    value = self.read(name, dict, None)
    return None if value is None else Settings(value, self.path)

  def expect(self, name: str, *supported: Any, default: Any = _REQUIRED
             ) -> Any:
    """Returns a value after comparing it with those supported, of one type."""
    value = self.read(name, type(supported[0]), default)
    if value not in supported:
      raise ValueError(
          f'{self.path}: {name}={value!r} is not supported, only '
          f'{", ".join(map(repr, supported))}.')
    return value


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'
