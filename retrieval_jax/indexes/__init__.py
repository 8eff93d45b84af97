"""Ways to search a trained model: build(targets), search(state, queries, k)."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax

from retrieval_jax.indexes.exact import ExactIndex as ExactIndex
from retrieval_jax.indexes.faiss import FaissFlat as FaissFlat
from retrieval_jax.indexes.faiss import FaissHNSW as FaissHNSW
from retrieval_jax.indexes.quantised import BinaryIndex as BinaryIndex
from retrieval_jax.indexes.quantised import Int8Index as Int8Index
from retrieval_jax.indexes.tree import TreeIndex as TreeIndex

INDEXES: Mapping[str, Any] = {
    'exact': ExactIndex, 'tree': TreeIndex, 'faiss_flat': FaissFlat,
    'faiss_hnsw': FaissHNSW}
"""Name -> class; options are its fields. tests/indexes runs over all.

Those of quantised targets are none of them: their scores are not the products.
"""


def make(name: str, mesh: jax.sharding.Mesh, **options: Any) -> Any:
  """Returns an index.

  Args:
    name: a key of INDEXES.
    mesh: devices that share the targets, for an index that uses them.
    **options: fields of the class.

  Raises:
    ValueError: for a name that is not registered, or an option that the index
      does not read.
  """
  if name not in INDEXES:
    raise ValueError(f'index {name!r} is not one of {list(INDEXES)}.')
  known = {field.name for field in dataclasses.fields(INDEXES[name])}
  for option in options:
    if option not in known - {'mesh'}:
      raise ValueError(
          f'{option} is not an option of the index {name!r}, which has '
          f'{", ".join(sorted(known - {"mesh"}))}; leave it out.')
  return INDEXES[name](**({'mesh': mesh} if 'mesh' in known else {}), **options)
