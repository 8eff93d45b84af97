"""The mesh, and where each array of a run lives on it.

One axis, 'data': it shards the rows of the table, and the examples of a batch.
Everything else (parameters, optimizer state) is replicated. This is the only
file that builds a mesh; everywhere else the mesh is an explicit argument.
"""

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from retrieval_jax.types import TargetTable

AXIS = 'data'


def make_mesh(num_devices: int | None = None) -> jax.sharding.Mesh:
  """Returns a mesh over the first `num_devices` devices (None: all of them).

  Axes are Auto because stock layers do not accept explicitly sharded arrays.

  Raises:
    ValueError: if there are fewer devices than asked for.
  """
  devices = jax.devices()
  if num_devices is None:
    num_devices = len(devices)
  if not 1 <= num_devices <= len(devices):
    raise ValueError(
        f'num_devices is {num_devices}, expected 1 to {len(devices)}, the '
        f'number of {devices[0].platform} devices here. On a CPU, virtual '
        'devices come from jax.config.update("jax_num_cpu_devices", n) before '
        'the first use of jax.')
  return jax.make_mesh(
      (num_devices,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,),
      devices=devices[:num_devices])


def num_shards(mesh: jax.sharding.Mesh) -> int:
  """Returns S, the number of shards of the table."""
  return mesh.shape[AXIS]


def rows(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of an array whose first axis is table rows."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def batch(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of an array whose first axis is examples."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def put_batch(tree, mesh: jax.sharding.Mesh):
  """Puts a host batch on the mesh, examples sharded over 'data'.

  Args:
    tree: pytree of numpy arrays. With several processes each passes its own
      part of the batch, in process order. Scalars are replicated.
    mesh: where to put it.

  Returns:
    The same tree of global jax.Arrays.

  Raises:
    ValueError: if the global number of examples does not divide by S.
  """
  def put(array):
    array = np.asarray(array)
    if array.ndim == 0:
      return jax.device_put(array, replicated(mesh))
    size = array.shape[0] * jax.process_count()
    if size % num_shards(mesh):
      raise ValueError(
          f'A batch of {size} examples cannot be split evenly over '
          f'{num_shards(mesh)} devices. Choose a batch size that is a multiple '
          'of the number of devices, or use fewer devices.')
    if jax.process_count() == 1:
      return jax.device_put(array, batch(mesh))
    return jax.make_array_from_process_local_data(batch(mesh), array)
  return jax.tree.map(put, tree)


def state_shardings(tree, mesh: jax.sharding.Mesh):
  """Returns a tree of shardings: TargetTables over rows, the rest replicated.

  Args:
    tree: any pytree of arrays or ShapeDtypeStructs, e.g. of
      `jax.eval_shape(init)`; the result fits `jit(init, out_shardings=...)`.
    mesh: the mesh of the run.
  """
  is_table = lambda node: isinstance(node, TargetTable)
  def sharding(node):
    if is_table(node):
      return jax.tree.map(lambda _: rows(mesh), node)
    return replicated(mesh)
  return jax.tree.map(sharding, tree, is_leaf=is_table)


def capacity(num_rows: int, mesh: jax.sharding.Mesh, chunk_rows: int) -> int:
  """Returns the least M >= num_rows such that shards hold whole chunks."""
  multiple = num_shards(mesh) * chunk_rows
  return -(-num_rows // multiple) * multiple
