"""The adapters by name, and how one is made from its constants."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from retrieval_jax.adapters import moved
from retrieval_jax.adapters import nudge
from retrieval_jax.adapters import pefa_xl
from retrieval_jax.adapters import pefa_xs

ADAPTERS: Mapping[str, Any] = {
    'xs': pefa_xs.PefaXS, 'xl': pefa_xl.PefaXL, 'nudge_m': nudge.NudgeM,
    'nudge_n': nudge.NudgeN}
"""Name -> class.

A class is a `moved.Move`, or an index over (index, query_index) like PefaXL.
Its attribute GRID has the constants that are chosen on dev queries, and the
values that are tried; it is empty where a classmethod `fitted`, as of NudgeM,
finds them.
"""


def make(name: str, index: Any, query_index: Any, **constants: Any) -> Any:
  """Returns the index of an adapter.

  Args:
    name: a key of ADAPTERS.
    index: of the targets: anything with `build` and `search`.
    query_index: of the training queries; read by PefaXL alone.
    **constants: fields of the class.
  """
  adapter = ADAPTERS[name]
  if hasattr(adapter, 'search'):
    return adapter(index, query_index, **constants)
  return moved.Moved(adapter(**constants), index)


def options(adapter: Any, given: Mapping[str, Any]) -> dict[str, Any]:
  """Returns those of the given options that a class has."""
  names = {field.name for field in dataclasses.fields(adapter)}
  return {name: value for name, value in given.items() if name in names}


def constants(index: Any) -> dict[str, Any]:
  """Returns what, beside embeddings, decides what an adapted index finds."""
  adapter: Any = index.move if isinstance(index, moved.Moved) else index
  return {field.name: getattr(adapter, field.name)
          for field in dataclasses.fields(adapter)
          if field.name not in ('index', 'query_index', 'batch_size')}
