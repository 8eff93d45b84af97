"""Ridge regression from sums over pairs of features and displacements."""

import jax
from jax import numpy as jnp


def least_ridge(num_features: int) -> float:
  """Returns the least penalty that float32 resolves with F features, 1e-6 F.

  Below about 2e-7 F the Cholesky factorisation of sums of few pairs fails
  (measured: F = 16 to 1024, 2 to F / 4 pairs, on a line or in general
  position).
  """
  return 1e-6 * num_features


def product(left: jax.Array, right: jax.Array) -> jax.Array:
  """Returns the matrix product in float32, also where matmuls default to less.

  Sums that are nearly singular do not forgive it.
  """
  return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def added(inputs: jax.Array, outputs: jax.Array, *, features: jax.Array,
          displacements: jax.Array, mask: jax.Array, decay: float
          ) -> tuple[jax.Array, jax.Array]:
  """Returns both sums after they decayed and some pairs came in.

  Args:
    inputs: [F, F] float32, the sum of x x^T.
    outputs: [F, D] float32, the sum of x (g - v)^T.
    features: [P, F] float32, x.
    displacements: [P, D] float32, g - v.
    mask: [P] bool, which of them count.
    decay: weight that the sums keep.
  """
  weighted = jnp.where(mask[:, None], features, 0.0)
  return (decay * inputs + product(weighted.T, features),
          decay * outputs + product(weighted.T, displacements))


def penalty(inputs: jax.Array, ridge: float) -> jax.Array:
  """Returns ridge * mean(x^2) [], over the sum of x x^T, [F, F]."""
  return ridge * jnp.trace(inputs) / len(inputs)


def solved(inputs: jax.Array, outputs: jax.Array, ridge: float) -> jax.Array:
  """Returns argmin_M sum |x M - (g - v)|^2 + penalty |M|^2, [F, D] float32.

  Args:
    inputs: [F, F] float32, the sum of x x^T, not zero.
    outputs: [F, D] float32, the sum of x (g - v)^T.
    ridge: see `penalty`.
  """
  return jax.scipy.linalg.solve(
      inputs + penalty(inputs, ridge) * jnp.eye(len(inputs)), outputs,
      assume_a='pos')


def flops_of_sums(num_rows: int, num_features: int, dim: int) -> float:
  """Returns the FLOPs of `added` with P rows: two sums of outer products."""
  return 2. * num_rows * num_features * (num_features + dim)


def flops_of_solution(num_features: int, dim: int) -> float:
  """Returns the FLOPs of `solved`: a Cholesky factorisation, D right sides."""
  return num_features**3 / 3 + 2. * num_features**2 * dim
