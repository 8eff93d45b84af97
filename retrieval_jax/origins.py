"""What stored vectors were made by: facts that must be equal to compare them.

`TrainedRetriever.origin` has them; embeddings.json, index.json and the stored
targets of a run keep them.
"""

from collections.abc import Mapping
import hashlib
from typing import Any

import jax
import numpy as np

from retrieval_jax import sharding


def check_same(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None,
               name: str, other_name: str) -> None:
  """Raises unless vectors of two origins are of one space, and one corpus.

  They may be rounded differently: an index that an accelerator made is searched
  on a CPU.

  Args:
    one: an `origin`, or None where it is not known, as of the embeddings of
      somebody else's encoder; then nothing is checked.
    other: likewise.
    name: of the first, for the message.
    other_name: of the second.

  Raises:
    ValueError: naming what differs.
  """
  if one is None or other is None:
    return
  different = [key for key in one
               if key != 'dtype' and one[key] != other.get(key)]
  if different:
    raise ValueError(
        f'{name} and {other_name} do not belong together, for they differ in '
        f'{", ".join(different)}: the encoder was trained on, or its data has '
        'changed, since one of them was made. Embed and adapt again.')


def digest(tree: Any) -> str:
  """Returns a hash of the names, shapes and values of arrays.

  All processes must call it where one is cut over their devices.
  """
  found = hashlib.blake2b(digest_size=12)
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    value = sharding.fetch(leaf)
    name = f'{jax.tree_util.keystr(path)} {value.dtype} {value.shape}'
    found.update(name.encode())
    found.update(np.ascontiguousarray(value).data)
  return found.hexdigest()
