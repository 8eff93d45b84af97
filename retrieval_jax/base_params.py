"""Parameters that stay as they are: of an encoder that adapters are trained on.

They are the entry 'base' of params. No gradient is taken of them, no optimizer
keeps moments of them, and no checkpoint holds them: it is enough to know where
they are from.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import types

KEY = 'base'


def split(params: types.Params) -> tuple[types.Params, types.Params]:
  """Returns (params without those that stay, {} or {'base': those})."""
  if not isinstance(params, Mapping) or KEY not in params:
    return params, {}
  others = {name: part for name, part in params.items() if name != KEY}
  return others, {KEY: params[KEY]}


def join(trained: types.Params, base: types.Params) -> types.Params:
  """Undoes `split`."""
  return {**trained, **base} if base else trained


def rounded(params: types.Params, dtype: str) -> types.Params:
  """Returns numpy params whose base has its large arrays in another dtype.

  These are kernels and token tables, which are rounded again wherever they are
  used; what is added or normalised by stays as it is.

  Args:
    params: numpy, with a base.
    dtype: 'float32' or 'bfloat16'.
  """
  others, base = split(params)

  def of_dtype(path, leaf):
    name = jax.tree_util.keystr(path[-1:], simple=True)
    if name.endswith('_kernel') or name == 'token_table':
      return np.asarray(leaf).astype(jnp.dtype(dtype))
    return leaf

  return join(others, jax.tree_util.tree_map_with_path(of_dtype, base))
