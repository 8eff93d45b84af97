"""The mesh, and where each array of a run lives on it.

One axis, 'data': it shards the rows of the table, the examples of a batch and,
where a `Layout` says so, the parameters and what the optimizer keeps of them.
Everything else is replicated. This is the only file that builds a mesh;
everywhere else the mesh is an explicit argument.
"""

from collections.abc import Callable
import dataclasses
import functools
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from retrieval_jax.types import ByRow

AXIS = 'data'

RULES = (('token_table$', 1),)
"""(regex, dimension or None) for the paths of parameters that are cut whatever
their size. By columns a token table is neither gathered nor is its gradient
reduced: devices exchange the vectors of a chunk's tokens, see
`models.chunking`."""

_OF_LAYER = re.compile(r'(^|/)transformer/layer_\d+/')


def make_mesh(num_devices: int | None = None) -> jax.sharding.Mesh:
  """Returns a mesh over the first `num_devices` devices (None: all of them).

  Axes are Auto because stock layers do not accept explicitly sharded arrays.

  Raises:
    ValueError: if there are fewer devices than asked for, or several processes
      that would not use all of theirs.
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
  if jax.process_count() > 1 and num_devices < len(devices):
    raise ValueError(
        f'num_devices is {num_devices} of the {len(devices)} devices of '
        f'{jax.process_count()} processes, some of which would have none; '
        'leave it out, or start fewer processes.')
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


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where parameters live, and what an optimizer keeps of each of them.

  A leaf of at least `min_size` numbers is cut along its largest dimension that
  S divides (the last of several), so that each device holds 1 / S of it; all
  others are replicated. The path of an optimizer's moment ends with that of
  its parameter, so the same rules give it the same place.

  Source: Rajbhandari et al., SC 2020 (ZeRO, stage 3); Zhao et al., VLDB 2023
    (FSDP). Rules by regex as in big_vision.

  Attributes:
    mesh: mesh with axis 'data'.
    min_size: least number of elements of a sharded leaf; None shards nothing.
    rules: (regex, dimension) pairs that come before size: the first one found
      in a leaf's path ('/' between names) names its dimension; None keeps it
      whole, as does a dimension that S does not divide.
    by_layer: gather the parameters of an encoder's layers while each of them
      runs, not before the first; see `models.layers`.
  """
  mesh: jax.sharding.Mesh
  min_size: int | None = None
  rules: tuple[tuple[str, int | None], ...] = RULES
  by_layer: bool = False

  def __post_init__(self):
    if self.min_size is not None and self.min_size < 1:
      raise ValueError(
          f'sharding.min_size={self.min_size} must be at least 1: a parameter '
          'of at least so many elements is sharded.')

  @property
  def shards_parameters(self) -> bool:
    """Whether any leaf can be sharded at all."""
    return self.min_size is not None and num_shards(self.mesh) > 1

  def specs(self, tree: Any) -> Any:
    """Returns a tree of PartitionSpecs for arrays or ShapeDtypeStructs."""
    return jax.tree_util.tree_map_with_path(self._spec, tree)

  def shardings(self, tree: Any) -> Any:
    """Returns a tree of NamedShardings for arrays or ShapeDtypeStructs."""
    return jax.tree.map(
        lambda spec: NamedSharding(self.mesh, spec), self.specs(tree),
        is_leaf=_is_spec)

  def gather(self, shards: Any, specs: Any) -> Any:
    """Returns whole arrays from this device's shards; in shard_map only.

    With `by_layer` the arrays of an encoder's layers stay shards, each a
    `Shard`. Gradients through it are what `scatter` makes of those of the whole
    arrays.

    Args:
      shards: of params.
      specs: of the same, as `specs` returns them.
    """
    def whole(path, spec, shard):
      dimension = dimension_of(spec)
      if dimension is None:
        return shard
      found = Shard(shard, dimension)
      path = jax.tree_util.keystr(path, simple=True, separator='/')
      stays = self.by_layer and _OF_LAYER.search(path)
      return found if stays else found.whole()
    return jax.tree_util.tree_map_with_path(
        whole, specs, shards, is_leaf=_is_spec)

  def _spec(self, path, leaf):
    if not self.shards_parameters or leaf.size < self.min_size:
      return PartitionSpec()
    shards, shape = num_shards(self.mesh), leaf.shape
    path = jax.tree_util.keystr(path, simple=True, separator='/')
    dimensions = [i for i, size in enumerate(shape) if size % shards == 0]
    for pattern, dimension in self.rules:
      if re.search(pattern, path):
        dimensions = [i for i in dimensions if i == dimension]
        break
    if not dimensions:
      return PartitionSpec()
    chosen = max(dimensions, key=lambda i: (shape[i], i))
    return PartitionSpec(*[None] * chosen, AXIS)


def dimension_of(spec: PartitionSpec) -> int | None:
  """Returns which dimension a spec shards, None for none."""
  return tuple(spec).index(AXIS) if AXIS in spec else None


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=['value'], meta_fields=['dimension'])
@dataclasses.dataclass(frozen=True)
class Shard:
  """This device's part of an array that is gathered where it is used.

  Attributes:
    value: the part.
    dimension: along which the array is cut.
  """
  value: jax.Array
  dimension: int

  def whole(self) -> jax.Array:
    """Returns the array; in shard_map only.

    The gradient is that of this part, summed over devices.
    """
    return jax.lax.all_gather(
        self.value, AXIS, axis=self.dimension, tiled=True)


def has_shards(tree: Any) -> bool:
  """Returns whether any array of a tree is a `Shard`."""
  return any(map(_is_shard, jax.tree.leaves(tree, is_leaf=_is_shard)))


def gather_shards(tree: Any) -> Any:
  """Returns a tree with each `Shard` made whole; in shard_map only."""
  return jax.tree.map(
      lambda leaf: leaf.whole() if _is_shard(leaf) else leaf, tree,
      is_leaf=_is_shard)


def scatter(gradient: Any, specs: Any) -> Any:
  """Sums gradients of sharded arrays over devices; each keeps its shard.

  In shard_map only; those of replicated arrays stay as they are, and that of a
  `Shard` has been summed.
  """
  def shard(spec, whole):
    dimension = dimension_of(spec)
    if dimension is None:
      return whole
    if _is_shard(whole):
      return whole.value
    return jax.lax.psum_scatter(
        whole, AXIS, scatter_dimension=dimension, tiled=True)
  return jax.tree.map(shard, specs, gradient, is_leaf=_is_spec)


def sum_replicated(gradient: Any, specs: Any) -> Any:
  """Sums gradients of replicated arrays over devices; in shard_map only."""
  def total(spec, leaf):
    return jax.lax.psum(leaf, AXIS) if dimension_of(spec) is None else leaf
  return jax.tree.map(total, specs, gradient, is_leaf=_is_spec)


def _is_spec(node):
  return isinstance(node, PartitionSpec)


def _is_shard(node):
  return isinstance(node, Shard)


def put(tree: Any, where: Any) -> Any:
  """Puts arrays that every process has whole where they belong.

  As jax.device_put, which compares what several processes give.

  Args:
    tree: pytree of arrays of the host or of the devices.
    where: a sharding, or a tree of them.

  Returns:
    The same tree of global jax.Arrays.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, where)

  def put_one(array, where):
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
      return jax.device_put(array, where)
    array = np.asarray(array)
    return jax.make_array_from_callback(
        array.shape, where, lambda index: array[index])

  if isinstance(where, jax.sharding.Sharding):
    return jax.tree.map(lambda array: put_one(array, where), tree)
  return jax.tree.map(put_one, tree, where)


def fetch(tree: Any) -> Any:
  """Returns arrays as numpy, whole on every process.

  All processes must call it where one is cut over their devices.
  """
  def fetch_one(array):
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated):
      return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
  return jax.tree.map(fetch_one, tree)


def put_batch(tree: Any, mesh: jax.sharding.Mesh) -> Any:
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
  def put_one(array):
    array = np.asarray(array)
    if array.ndim == 0:
      return put(array, replicated(mesh))
    size = array.shape[0] * jax.process_count()
    if size % num_shards(mesh):
      raise ValueError(
          f'A batch of {size} examples cannot be split evenly over '
          f'{num_shards(mesh)} devices. Choose a batch size that is a multiple '
          'of the number of devices, or use fewer devices.')
    if jax.process_count() == 1:
      return jax.device_put(array, batch(mesh))
    return jax.make_array_from_process_local_data(batch(mesh), array)
  return jax.tree.map(put_one, tree)


def looked_up(ids: jax.Array, width: int, where: NamedSharding,
              rows: Callable[[np.ndarray], np.ndarray]) -> jax.Array:
  """Returns an array [..., width] that the host looks up by ids [...].

  It waits for the ids to come off the device. Each process looks up its own
  part only.

  Args:
    ids: replicated.
    width: of a row.
    where: sharding of the result, by the dimensions of the ids.
    rows: from ids [...], a part of them, to what is looked up, [..., width].
  """
  found = np.asarray(jax.device_get(ids))

  def part(index):
    return rows(found[index[:found.ndim]])

  with jax.transfer_guard('allow'):  # the transfer is what this is for
    return jax.make_array_from_callback((*found.shape, width), where, part)


def state_shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Returns a tree of shardings: `ByRow` parts over rows, the rest replicated.

  Args:
    tree: any pytree of arrays or ShapeDtypeStructs, e.g. of
      `jax.eval_shape(init)`; the result fits `jit(init, out_shardings=...)`.
    mesh: the mesh of the run.
  """
  by_row = lambda node: isinstance(node, ByRow)
  def sharding(node):
    if by_row(node):
      return jax.tree.map(lambda _: rows(mesh), node)
    return replicated(mesh)
  return jax.tree.map(sharding, tree, is_leaf=by_row)


def capacity(num_rows: int, mesh: jax.sharding.Mesh, chunk_rows: int) -> int:
  """Returns the least M >= num_rows such that shards hold whole chunks."""
  multiple = num_shards(mesh) * chunk_rows
  return -(-num_rows // multiple) * multiple
