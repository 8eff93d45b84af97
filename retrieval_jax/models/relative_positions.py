"""Attention biases by the distance between two tokens, in buckets.

Source: Raffel et al., JMLR 2020, section 2.1; MPNet (Song et al., NeurIPS 2020)
adopted them. Near distances have a bucket each, far ones share buckets that
widen logarithmically, and each direction has half of them, or the past has all
where nothing looks ahead.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def buckets(length: int, num_buckets: int, max_distance: int,
            causal: bool = False) -> np.ndarray:
  """Returns the bucket [L, L] int32 of key j as seen from query i.

  Args:
    length: L.
    num_buckets: of both directions together.
    max_distance: from here on all distances share the last bucket.
    causal: whether no query looks ahead; keys ahead are then in bucket 0.
  """
  offset = np.arange(length)[None] - np.arange(length)[:, None]
  distance = np.maximum(-offset, 0) if causal else np.abs(offset)
  half = num_buckets if causal else num_buckets // 2
  exact = half // 2
  # float32 like the reference, or a distance on an edge changes its bucket.
  far = exact + (
      np.log(np.maximum(distance, 1).astype(np.float32) / exact)
      / math.log(max_distance / exact) * (half - exact)).astype(np.int32)
  bucket = np.where(distance < exact, distance, np.minimum(far, half - 1))
  ahead = 0 if causal else np.where(offset > 0, half, 0)
  return (bucket + ahead).astype(np.int32)


def bias(table: jax.Array, length: int, max_distance: int = 128,
         causal: bool = False) -> jax.Array:
  """Returns what is added to attention logits, [1, heads, L, L].

  Args:
    table: [buckets, heads].
    length: L.
    max_distance: see `buckets`.
    causal: likewise.
  """
  chosen = table[jnp.array(
      buckets(length, table.shape[0], max_distance, causal))]
  return jnp.transpose(chosen, (2, 0, 1))[None]  # [L, L, heads] -> ...
