"""The state of a run: all that changes, which is all that is checkpointed."""

import dataclasses
from typing import Any

import jax
import numpy as np

from retrieval_jax import base_params
from retrieval_jax import host_table
from retrieval_jax import types


@types.register
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that one training step reads and replaces.

  Nothing random is in it: the key of a step is `fold_in(root, step)`, and the
  data position is the step too, so a restored state continues the same run.

  Attributes:
    step: [] int32, number of finished steps.
    params: pytree of float arrays, placed by a sharding.Layout; those of an
      objective, if it has any, under 'objective'.
    opt_state: pytree of the optimizer, likewise.
    table: the remembered targets, rows sharded over 'data'; or a HostTable.
    corrector: pytree of the corrector, replicated.
    sampler: pytree of the sampler, () for those without state; replicated but
      for what is `types.ByRow`. Numpy arrays where the sampler is on the host.
  """
  step: jax.Array
  params: types.Params
  opt_state: Any
  table: types.TargetTable
  corrector: Any
  sampler: Any


def abstract(state: Any) -> Any:
  """Returns the shapes, dtypes and shardings of a state, without its arrays.

  It is what `Checkpoints.restore` needs to know, and it stays valid after the
  state's buffers were donated.

  Args:
    state: pytree of arrays, or of ShapeDtypeStruct with shardings. A numpy
      array gives one that takes no memory, and comes back as numpy. A HostTable
      stays what it is: its rows are read into it. So do `base_params`, which
      are in no checkpoint: they must not be donated before they are needed.
  """
  on_host = lambda node: isinstance(node, host_table.HostTable)
  def describe(path, x):
    if on_host(x) or any(
        getattr(key, 'key', None) == base_params.KEY for key in path):
      return x
    if isinstance(x, np.ndarray):
      return np.broadcast_to(np.zeros((), x.dtype), x.shape)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  return jax.tree_util.tree_map_with_path(describe, state, is_leaf=on_host)
