"""Tokens of drawn targets, looked up on the host or on the device."""

import functools

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
    """Keeps `store` (`store[rows] -> [n, L] int32`, `.pad_id`)."""
    self._store, self._sharding = store, sharding.batch(mesh)

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Returns tokens [n, L] int32, sharded by text, for corpus ids [n].

    Id -1 gives a row of padding. `ids` must be replicated.
    """
    ids = jax.device_get(ids)
    shape = (*ids.shape, self._store.tokens.shape[1])

    def rows(index):
      local = ids[index[0]]
      tokens = np.asarray(self._store[np.maximum(local, 0)], np.int32)
      return np.where(local[:, None] >= 0, tokens, self._store.pad_id)

    with jax.transfer_guard('allow'):  # the transfer is what this is for
      return jax.make_array_from_callback(shape, self._sharding, rows)


class DeviceTokens:
  """Looks tokens up in a device array sharded by row: no host in the step."""

  def __init__(self, store: data.TokenStore, mesh: jax.sharding.Mesh):
    """Puts `store.tokens` [N, L] on the device, padded to the mesh."""
    shards = mesh.shape['data']
    tokens = np.asarray(store.tokens)
    missing = -len(tokens) % shards
    tokens = np.pad(tokens, ((0, missing), (0, 0)),
                    constant_values=store.pad_id)
    self._tokens = jax.make_array_from_callback(
        tokens.shape, sharding.rows(mesh), lambda index: tokens[index])
    self._look_up = jax.jit(
        functools.partial(_look_up, pad_id=store.pad_id),
        out_shardings=sharding.batch(mesh))

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Returns tokens [n, L] int32, sharded by text; id -1 gives padding."""
    return self._look_up(self._tokens, ids)


def _look_up(tokens, ids, *, pad_id):
  found = tokens[jnp.maximum(ids, 0)].astype(jnp.int32)
  return jnp.where(ids[:, None] >= 0, found, pad_id)
