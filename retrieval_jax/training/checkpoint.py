"""Checkpoints: the only file that knows orbax."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


@dataclasses.dataclass
class Best:
  """The checkpoint with the highest value of a measure, so far.

  Attributes:
    measure: its name, such as 'dev/nDCG@10'.
    step: of the checkpoint; None before the first measurement.
    value: of the measure; likewise.
  """
  measure: str
  step: int | None = None
  value: float | None = None

  def beaten_by(self, value: float) -> bool:
    """Returns whether a value is higher; of equal ones the first stays."""
    return self.value is None or value > self.value


class Checkpoints:
  """The last few states of a run, each written whole or not at all.

  One more may be kept, the best so far.
  A state is written in the background into a temporary folder that gets its
  name when it is complete. It may be restored to another mesh or number of
  devices.
  """

  def __init__(self, folder: str, *, keep: int = 2):
    """Opens or makes the folder.

    Args:
      folder: holds one folder per kept step.
      keep: how many of the latest are kept.
    """
    # Orbax refuses relative paths; those with a scheme are absolute.
    self.folder = folder if '://' in folder else os.path.abspath(folder)
    self._kept = _LatestAndOne(keep)
    self._manager = ocp.CheckpointManager(
        self.folder,
        # Named so that shapes can be asked for before anything was saved.
        item_handlers={'state': ocp.StandardCheckpointHandler(),
                       'meta': ocp.JsonCheckpointHandler()},
        options=ocp.CheckpointManagerOptions(
            preservation_policy=self._kept, cleanup_tmp_directories=True))

  def latest_step(self) -> int | None:
    """Returns the step of the latest complete checkpoint, None if none."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, meta: dict[str, Any],
           best: int | None = None) -> None:
    """Starts to save; returns once `state` may be donated.

    Args:
      step: number of finished steps; nothing is done if it is saved already.
      state: pytree of arrays.
      meta: plain JSON that goes with it: the config, the meter's counts.
      best: step of a checkpoint that is kept besides the latest; None for none.
    """
    self._kept.step = best
    if step == self._manager.latest_step():
      return
    self._manager.save(step, args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))

  def restore(self, abstract_state: Any, step: int | None = None
              ) -> tuple[Any, dict[str, Any]]:
    """Returns (state, meta) of a checkpoint.

    Args:
      abstract_state: pytree of ShapeDtypeStruct with shardings, as made by
        `state.abstract`; arrays come back with these shardings.
      step: which; None for the latest.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: naming the arrays whose shapes differ from the saved ones.
    """
    step = self._existing(step)
    self._check_shapes(step, abstract_state)
    restored = self._manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract_state),
        meta=ocp.args.JsonRestore()))
    return restored.state, restored.meta

  def restore_params(self, abstract_params: Any, step: int | None = None
                     ) -> Any:
    """Returns the params of a checkpoint, and reads nothing else of it.

    Unlike `restore` it does not care how many rows the table was padded to,
    which depends on the number of devices.

    Args:
      abstract_params: pytree of ShapeDtypeStruct with shardings.
      step: which; None for the latest.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: naming the arrays whose shapes differ from the saved ones, or
        that are not finite.
    """
    step = self._existing(step)
    wanted = {'params': abstract_params}
    self._check_shapes(step, wanted, partial=True)
    params = self._restore_part(
        step, wanted, ocp.checkpoint_utils.construct_restore_args(wanted)
    )['params']
    broken = [name for name, leaf in _leaves(params).items()
              if not jnp.isfinite(leaf).all()]
    if broken:
      raise ValueError(
          f'The checkpoint of step {step} in {self.folder} holds nan or inf in '
          f'{len(broken)} arrays of params, the first {broken[0]!r}; training '
          'has diverged. Use an earlier checkpoint, or train again.')
    return params

  def restore_table_embeddings(self, step: int | None = None) -> np.ndarray:
    """Returns the embeddings [M, D] of a checkpoint's table, on the host.

    M is what the table was padded to when it was saved.

    Args:
      step: which; None for the latest.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
    """
    step = self._existing(step)
    saved = self._manager.item_metadata(step).state['table']['embeddings']
    wanted = {'table': {'embeddings': jax.ShapeDtypeStruct(
        saved.shape, saved.dtype)}}
    on_host = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    return self._restore_part(step, wanted, on_host)['table']['embeddings']

  def restore_meta(self, step: int | None = None) -> dict[str, Any]:
    """Returns the meta of a checkpoint, None for the latest, without state."""
    step = self.latest_step() if step is None else step
    if step is None:
      raise FileNotFoundError(f'No checkpoint in {self.folder}.')
    return self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

  def wait(self) -> None:
    """Waits until everything saved is on disk, and raises what went wrong."""
    self._manager.wait_until_finished()
    self._manager.check_for_errors()

  def close(self) -> None:
    """Waits, then releases the folder."""
    self.wait()
    self._manager.close()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exception):
    self.close()

  def _restore_part(self, step, wanted, restore_args):
    """Returns those arrays of a state that the tree `wanted` names."""
    # The manager restores items whole; a handler of trees takes a part.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      return reader.restore(
          os.path.join(self.folder, str(step), 'state'),
          args=ocp.args.PyTreeRestore(
              item=wanted, partial_restore=True, restore_args=restore_args))

  def _existing(self, step):
    """Returns `step`, or the latest for None, if there is a checkpoint."""
    steps = sorted(self._manager.all_steps())
    if step is None and steps:
      step = steps[-1]
    if step not in steps:
      raise FileNotFoundError(
          f'No checkpoint of step {step} in {self.folder}; '
          f'there {f"are steps {steps}" if steps else "is none at all"}.')
    return step

  def _check_shapes(self, step, abstract_state, *, partial=False):
    """Raises a ValueError in our words where orbax would name no option."""
    saved = _leaves(self._manager.item_metadata(step).state)
    wanted = _leaves(abstract_state)
    wrong = [
        f'{name}: saved {_shape(saved, name)}, expected {_shape(wanted, name)}'
        for name in sorted(wanted if partial else saved | wanted)
        if _shape(saved, name) != _shape(wanted, name)]
    if wrong:
      raise ValueError(
          f'The checkpoint of step {step} in {self.folder} does not fit this '
          'run; use the options it was trained with, or another folder.\n  '
          + '\n  '.join(wrong))


@dataclasses.dataclass
class _LatestAndOne:
  """Keeps the latest checkpoints and one more; a policy of orbax.

  Attributes:
    number: of the latest.
    step: of the one more, None for none.
  """
  number: int
  step: int | None = None

  def should_preserve(self, checkpoints, *, context):
    """Returns whether to keep each of the checkpoints, the oldest first."""
    del context
    first = len(checkpoints) - self.number
    return [place >= first or one.step == self.step
            for place, one in enumerate(checkpoints)]


def check_same_config(saved: Mapping[str, Any], current: Mapping[str, Any], *,
                      ignore: Sequence[str] = ()) -> None:
  """Raises if a run is resumed with another configuration.

  Args:
    saved: nested config of the checkpoint, as plain JSON.
    current: nested config of the process that resumes.
    ignore: dotted names, of sections or of single options, that may differ.

  Raises:
    ValueError: naming every differing option and both values.
  """
  before, now = _flat(_jsonable(saved)), _flat(_jsonable(current))
  absent = '(absent)'
  different = [
      f'{name}: saved {before.get(name, absent)!r}, '
      f'now {now.get(name, absent)!r}'
      for name in sorted(before | now)
      if before.get(name, absent) != now.get(name, absent)
      and not any(name == i or name.startswith(i + '.') for i in ignore)]
  if different:
    raise ValueError(
        'The run to resume has another configuration; give these options '
        'their saved values, or start again in another --workdir.\n  '
        + '\n  '.join(different))


def _leaves(tree):
  return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _shape(leaves, name):
  if name not in leaves:
    return 'nothing'
  leaf = leaves[name]
  # Orbax keeps the data of a typed key, uint32 with one more dimension.
  if hasattr(leaf, 'dtype') and jax.dtypes.issubdtype(
      leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
  return tuple(leaf.shape)


def _jsonable(config):
  """Returns the config as it comes back from JSON: tuples become lists."""
  return json.loads(json.dumps(config, default=str))


def _flat(config, prefix=''):
  flat = {}
  for name, value in config.items():
    if isinstance(value, dict) and value:
      flat |= _flat(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat
