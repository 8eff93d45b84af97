"""Arithmetic that correctors share."""

import jax
from jax import numpy as jnp


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """Returns x W + b, [..., D] -> [..., H]."""
  product = x @ kernel
  return product + jnp.broadcast_to(bias, product.shape)


def moved(stale: jax.Array, residual: jax.Array) -> jax.Array:
  """Returns (v + r) |v| / |v + r|, [..., D]; exactly v where r is zero."""
  norm = lambda x: jnp.sqrt(jnp.maximum(
      jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-30))
  ahead = stale + residual
  # Not by the norms alone: compiled, two equal sums may differ by a rounding.
  still = jnp.all(residual == 0, axis=-1, keepdims=True)
  return ahead * jnp.where(still, 1.0, norm(stale) / norm(ahead))
