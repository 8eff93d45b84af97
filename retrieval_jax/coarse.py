"""Rows in a coarse format, and how far their scores may be off.

A scan need not be exact to give exact results. A row g is kept beside its
coarse copy g~, and a query q is rounded to q~, such that

  |<q, g> - <q~, g~>| <= |q| |g - g~| + |q - q~| |g~| + gamma |q| max(|g|, |g~|)

where the last term stands for all rounding of sums in float32, here and where
<q, g> itself is computed. Norms of rows are stored when the rows are written.
`scoring` scores all rows in the coarse format, and again in float32 the blocks
that the bound does not rule out.

  bfloat16  g~ is g rounded, D * 2 bytes; kept as their bits, because XLA for
            CPUs takes a chunk of an array of bfloat16 by converting all of it.
  int8      g~ = w * code, w = max |g_d| / 127, D bytes.

Codes are multiplied as bfloat16, which holds each of them exactly, and summed
in float32.

Source: ours, by the Cauchy-Schwarz inequality; for sums, Higham, Accuracy and
  Stability of Numerical Algorithms, 2nd ed., section 3.1.
"""

import jax
from jax import numpy as jnp

from retrieval_jax import types

DTYPES = ('float32', 'bfloat16', 'int8')
"""What all rows can be scanned in; the first is no coarse format."""

UNIT = 2.**-23
"""What one operation in float32 may be off by, relative; rounding to nearest is
off by half of it, but the sums of some accelerators truncate."""


def check(dtype: str, option: str) -> None:
  """Raises a ValueError unless it is one of DTYPES."""
  if dtype not in DTYPES:
    raise ValueError(f'{option}={dtype!r} is not one of {list(DTYPES)}.')


def of(embeddings: jax.Array, dtype: str) -> types.CoarseRows | None:
  """Returns the coarse copy of rows [..., D]; None for 'float32'.

  Rows that are bfloat16 already are their own copy in bfloat16 (codes None).
  """
  if dtype == 'float32':
    return None
  exact = embeddings.astype(jnp.float32)
  if dtype == 'bfloat16':
    rounded, scale = embeddings.astype(jnp.bfloat16), None
    copy, codes = rounded.astype(jnp.float32), None
    if embeddings.dtype != jnp.bfloat16:
      codes = jax.lax.bitcast_convert_type(rounded, jnp.uint16)
  else:
    largest = jnp.max(jnp.abs(exact), axis=-1)
    scale = jnp.where(largest > 0, largest / 127, 1.)
    levels = jnp.clip(jnp.round(exact / scale[..., None]), -127, 127)
    codes, copy = levels.astype(jnp.int8), levels * scale[..., None]
  norm = jnp.maximum(norms(exact), norms(copy))
  # What rounding may take from a residual is far below this.
  residual = norms(exact - copy) * (1 + 2.**-10) + 4 * UNIT * norm
  return types.CoarseRows(
      codes=codes, scale=scale, residual=residual, norm=norm)


def norms(vectors: jax.Array) -> jax.Array:
  """Returns the norms [...] of vectors [..., D], whose squares may overflow."""
  largest = jnp.max(jnp.abs(vectors), axis=-1)
  safe = jnp.where(largest > 0, largest, 1.)
  return safe * jnp.sqrt(jnp.sum(
      jnp.square(vectors / safe[..., None]), axis=-1))


def products(queries: jax.Array, rows: types.TargetTable) -> jax.Array:
  """Returns <q~, g~> of queries [B, D] and rows [C], [C, B] float32."""
  copies = rows.coarse
  assert copies is not None
  codes = rows.embeddings if copies.codes is None else copies.codes
  if codes.dtype == jnp.uint16:
    codes = jax.lax.bitcast_convert_type(codes, jnp.bfloat16)
  found = jnp.einsum(
      'cd,bd->cb', codes.astype(jnp.bfloat16), queries.astype(jnp.bfloat16),
      preferred_element_type=jnp.float32)
  if copies.scale is not None:
    found *= copies.scale[:, None]
  return found


def errors(queries: jax.Array, rows: types.CoarseRows, block_rows: int,
           constants: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns what a product may be off by, at most, in each block of rows.

  Once for the coarse format, and once for all rounding in float32, of products
  in the coarse format and of those without it.

  Args:
    queries: [B, D] float32.
    rows: [M].
    block_rows: g, rows of a block, which divides M.
    constants: [B] float32, added to the products of each query.

  Returns:
    Twice [B, M / g] float32, to be added.
  """
  size = norms(queries)[:, None]
  lost = norms(queries - queries.astype(jnp.bfloat16).astype(jnp.float32))
  residual, norm = (
      jnp.max(array.reshape(-1, block_rows), axis=1)[None]
      for array in (rows.residual, rows.norm))
  # Two sums of D products, a scale, a constant; queries and rows as given.
  gamma = (2 * queries.shape[1] + 16) * UNIT
  return (size * residual + lost[:, None] * (1 + 2.**-10) * norm,
          gamma * size * norm + 4 * UNIT * jnp.abs(constants)[:, None])
