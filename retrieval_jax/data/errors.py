"""The error that malformed or missing data raises."""

from collections.abc import Iterable
import importlib
import types
import unicodedata

# Marks without a shape of their own that are not of a category of such.
_INVISIBLE = {'\u034f', '\u115f', '\u1160', '\u3164', '\uffa0',
              *map(chr, range(0xfe00, 0xfe10))}


class DataError(ValueError):
  """Malformed input; the message says where and what to do."""


def appearance(name: str) -> str:
  """Returns what ids that look the same have in common.

  That is their compatibility form (NFKC) without spaces and characters that
  nobody sees: 'e' with a combining accent is 'é', a zero-width space nothing.
  """
  return ''.join(
      c for c in unicodedata.normalize('NFKC', name)
      if c not in _INVISIBLE and unicodedata.category(c)[0] not in 'CZ')


def lookalike(name: str, ids: Iterable[str]) -> str:
  """Returns a sentence for a message about an id that is not among `ids`.

  It shows the code points of the first that looks like it; '' if none does.
  """
  looks = appearance(name)
  other = next((one for one in ids if appearance(one) == looks), None)
  if other is None:
    return ''
  return (f' One that looks the same is there, of other characters: '
          f'{ascii(other)}, here it is {ascii(name)}.')


def import_extra(module: str, extra: str, option: str = ''
                 ) -> types.ModuleType:
  """Imports an optional package, or says by which extra it is installed.

  Args:
    module: what to import.
    extra: of this package, which brings it.
    option: what needs it, for the message; '' where that is plain.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    needed = f'{option} needs {module}: ' if option else ''
    raise ModuleNotFoundError(
        f'{needed}{error}. Run `pip install \'retrieval_jax[{extra}]\'`, or in '
        f"a clone `pip install -e '.[{extra}]'`.") from error
