"""The state of a run: all that changes, which is all that is checkpointed."""

import dataclasses
from typing import Any

import jax

from retrieval_jax import types


@types.register
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that one training step reads and replaces.

  Nothing random is in it: the key of a step is `fold_in(root, step)`, and the
  data position is the step too, so a restored state continues the same run.

  Attributes:
    step: [] int32, number of finished steps.
    params: pytree of float arrays, placed by a sharding.Layout.
    opt_state: pytree of the optimizer, likewise.
    table: the remembered targets, rows sharded over 'data'; None without.
    corrector: pytree of the corrector, replicated.
    sampler: pytree of the sampler, () for those without state.
  """
  step: jax.Array
  params: types.Params
  opt_state: Any
  table: types.TargetTable | None
  corrector: Any
  sampler: Any


def abstract(state):
  """Returns the shapes, dtypes and shardings of a state, without its arrays.

  It is what `Checkpoints.restore` wants to know, and it stays valid after the
  state's buffers were donated.

  Args:
    state: pytree of arrays, or of ShapeDtypeStruct with shardings.
  """
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state)
