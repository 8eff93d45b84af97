"""Tokens of drawn targets, looked up on the host or on the device."""

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import data
from retrieval_jax import sharding


class HostTokens:
  """Looks tokens up in a host array; waits for the ids to come off the device.

  Memory-mapped corpora of any size; each process reads its own rows only.
  """

  def __init__(self, store: data.TokenStore, mesh: jax.sharding.Mesh):
    """Keeps `store` (`store[rows] -> [n, L] int32`)."""
    self._store, self._sharding = store, sharding.batch(mesh)

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Returns tokens [n, L] int32, sharded by text, for corpus ids [n].

    Id -1 gives a row of padding, -1. `ids` must be replicated.
    """
    return sharding.looked_up(
        ids, self._store.tokens.shape[1], self._sharding,
        lambda ids: self._store[ids])


class DeviceTokens:
  """Looks tokens up in a device array sharded by row: no host in the step."""

  def __init__(self, store: data.TokenStore, mesh: jax.sharding.Mesh):
    """Puts tokens [N, L] and lengths [N] on the device, padded to the mesh."""
    missing = -len(store) % mesh.shape['data']

    def put(array):
      array = np.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1))
      return jax.make_array_from_callback(
          array.shape, sharding.rows(mesh), lambda index: array[index])

    self._arrays = put(np.asarray(store.tokens)), put(store.lengths)
    self._look_up = jax.jit(_look_up, out_shardings=sharding.batch(mesh))

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Returns tokens [n, L] int32, sharded by text; id -1 gives padding."""
    return self._look_up(*self._arrays, ids)


def _look_up(tokens, lengths, ids):
  found = tokens[jnp.maximum(ids, 0)].astype(jnp.int32)
  lengths = jnp.where(ids >= 0, lengths[jnp.maximum(ids, 0)], 0)
  return jnp.where(
      jnp.arange(tokens.shape[1])[None] < lengths[:, None], found, -1)
