"""Inner products of queries and targets, at one precision everywhere."""

import jax
from jax import numpy as jnp


def inner(subscripts: str, *arrays: jax.Array) -> jax.Array:
  """Returns an einsum in float32 (or more), also where matmuls default to less.

  Scores that choose negatives and those that are trained on must not differ in
  precision: a draw's probability and its logit are compared with each other.
  """
  return jnp.einsum(
      subscripts, *arrays, precision=jax.lax.Precision.HIGHEST,
      preferred_element_type=jnp.promote_types(
          jnp.result_type(*arrays), jnp.float32))
