"""A teacher's vectors of a step's texts, looked up on host or device."""

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.data import teachers


class HostVectors:
  """Looks vectors up in host arrays; waits for the ids to come off the device.

  Memory-mapped files of any size; each process reads its own rows only.
  """

  def __init__(self, teacher: teachers.Teacher, mesh: jax.sharding.Mesh):
    self._teacher, self._sharding = teacher, sharding.batch(mesh)

  def __call__(self, query_ids: jax.Array, positive_ids: jax.Array,
               negative_ids: jax.Array) -> types.TeacherVectors:
    """Returns the vectors of a step, sharded by query.

    Args:
      query_ids: [B] int32, replicated, as are the others.
      positive_ids: [B] int32, corpus ids.
      negative_ids: [B, K] int32, corpus ids, -1 gives zeros.
    """
    queries, targets = self._teacher.queries, self._teacher.targets
    of = lambda vectors, ids: sharding.looked_up(
        ids, vectors.dim, self._sharding, lambda ids: vectors[ids])
    return types.TeacherVectors(
        of(queries, query_ids), of(targets, positive_ids),
        of(targets, negative_ids))


class DeviceVectors:
  """Looks vectors up in device arrays sharded by row: no host in the step."""

  def __init__(self, teacher: teachers.Teacher, mesh: jax.sharding.Mesh):
    """Puts [Q, D'] and [N, D'] float32 on the devices, padded to the mesh."""

    def put(vectors):
      size = len(vectors) + -len(vectors) % sharding.num_shards(mesh)
      ids = np.pad(np.arange(len(vectors)), (0, size - len(vectors)),
                   constant_values=-1)
      return jax.make_array_from_callback(
          (size, vectors.dim), sharding.rows(mesh),
          lambda index: vectors[ids[index[0]]])

    self._arrays = put(teacher.queries), put(teacher.targets)
    self._look_up = jax.jit(_look_up, out_shardings=sharding.batch(mesh))

  def __call__(self, query_ids: jax.Array, positive_ids: jax.Array,
               negative_ids: jax.Array) -> types.TeacherVectors:
    """Returns the same as `HostVectors`."""
    return self._look_up(*self._arrays, query_ids, positive_ids, negative_ids)


def _look_up(queries, targets, query_ids, positive_ids, negative_ids):
  of = lambda vectors, ids: jnp.where(
      ids[..., None] >= 0, vectors[jnp.maximum(ids, 0)], 0.)
  return types.TeacherVectors(
      of(queries, query_ids), of(targets, positive_ids),
      of(targets, negative_ids))
