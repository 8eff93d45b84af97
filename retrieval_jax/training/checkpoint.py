"""Checkpoints: the only file that knows orbax."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import json
import logging
import os
import sys
from typing import Any, NamedTuple, TypeVar
import warnings

import jax
from jax import numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from retrieval_jax import base_params
from retrieval_jax import files
from retrieval_jax import host_table
from retrieval_jax import table as tables
from retrieval_jax import types

_ROWS = ('embeddings', 'written')
_AT_A_TIME = 2**16  # rows that are read at a time

T = TypeVar('T')


class DamagedError(OSError):
  """A checkpoint's files are not as they were written."""


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


class _RowsHandler(ocp.CheckpointHandler):
  """Writes and reads the rows of a HostTable, which never is on a device.

  At once rather than in the background, since the next step changes them.
  """

  def save(self, directory, args):
    for name in _ROWS:
      array = getattr(args.table, name)
      files.save_array(str(directory / f'{name}.npy'), _plain(array))

  def restore(self, directory, args):
    for name in _ROWS:
      array = _plain(getattr(args.table, name))
      saved = np.load(str(directory / f'{name}.npy'), mmap_mode='r')
      if (saved.shape, saved.dtype) != (array.shape, array.dtype):
        raise ValueError(
            f'{directory}: {name} of the table: saved {saved.shape}, expected '
            f'{array.shape}; use the options the run was trained with.')
      for start in range(0, len(array), _AT_A_TIME):
        array[start:start + _AT_A_TIME] = saved[start:start + _AT_A_TIME]
    return args.table


@ocp.args.register_with_handler(
    _RowsHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _Rows(ocp.args.CheckpointArgs):
  """Attributes: table, a HostTable; what is restored goes into its arrays."""
  table: host_table.HostTable


def _plain(array):
  """Returns a view of an array with a dtype that .npy files know."""
  return np.asarray(array).view(f'u{array.dtype.itemsize}')


class _Aside(NamedTuple):
  """What is no part of the arrays of a state that orbax writes.

  Attributes:
    table: a HostTable, which goes its own way; None where there is none.
    base: as of `base_params.split`; written nowhere.
    scan_dtype: of the coarse copies of rows, which are made again.
  """
  table: host_table.HostTable | None
  base: types.Params
  scan_dtype: str


def _apart(state):
  """Returns a state without what is _Aside, and that."""
  table, scan_dtype = getattr(state, 'table', None), 'float32'
  if isinstance(table, host_table.HostTable):
    state = dataclasses.replace(state, table=None)
  else:
    if isinstance(table, types.TargetTable) and table.coarse is not None:
      scan_dtype = tables.scan_dtype_of(table)
      state = dataclasses.replace(
          state, table=dataclasses.replace(table, coarse=None))
    table = None
  params, base = base_params.split(getattr(state, 'params', {}))
  if base:
    state = dataclasses.replace(state, params=params)
  return state, _Aside(table, base, scan_dtype)


class Checkpoints:
  """The last few states of a run, each written whole or not at all.

  One more may be kept, the best so far.
  A state is written in the background into a temporary folder that gets its
  name when it is complete. With it go the sizes and checksums of its files
  (`files.seal`), which are compared whenever it is read. It may be restored to
  another mesh or number of devices.
  """

  def __init__(self, folder: str, *, keep: int = 2, read_only: bool = False):
    """Opens or makes the folder.

    Args:
      folder: holds one folder per kept step.
      keep: how many of the latest are kept.
      read_only: leaves all as it is; otherwise, what an interrupted process
        left half-written is removed, which must not be that of a living one.
    """
    _silence_orbax()
    # Orbax refuses relative paths; those with a scheme are absolute.
    self.folder = folder if '://' in folder else os.path.abspath(folder)
    self._kept = _LatestAndOne(keep)
    self._manager = ocp.CheckpointManager(
        self.folder,
        # Named so that shapes can be asked for before anything was saved.
        item_handlers={'state': ocp.StandardCheckpointHandler(),
                       'meta': ocp.JsonCheckpointHandler(),
                       'rows': _RowsHandler()},
        options=ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            cleanup_tmp_directories=not read_only,
            read_only=read_only, async_options=ocp.AsyncOptions(
                post_finalization_callback=self._seal)))
    self._checked: dict[int, str | None] = {}

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

    Raises:
      OSError: naming the folder, if this state or an earlier one cannot be
        written.
    """
    self._kept.step = best
    with self._writing():
      for damaged in self._damaged():  # the run went on from one before them
        self._manager.delete(damaged)
        del self._checked[damaged]
      if step == self._manager.latest_step():
        return
      state, (table, _, _) = _apart(state)
      self._manager.save(step, args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta),
          **({} if table is None else {'rows': _Rows(table)})))

  def restore(self, abstract_state: Any, step: int | None = None
              ) -> tuple[Any, dict[str, Any]]:
    """Returns (state, meta) of a checkpoint.

    The rows that pad a table for a mesh are no part of what was saved: it comes
    back with as many as `abstract_state` has.

    Args:
      abstract_state: pytree of ShapeDtypeStruct with shardings, as made by
        `state.abstract`; arrays come back with these shardings. The rows of a
        HostTable are overwritten; `base_params` come back as they are given.
      step: which; None for the latest that is whole.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      DamagedError: naming it and its first damaged file.
      ValueError: naming the arrays whose shapes differ from the saved ones.
    """
    if step is None:
      return self.newest(lambda step: self.restore(abstract_state, step))
    abstract_state, (table, base, scan_dtype) = _apart(abstract_state)
    num_rows = self._num_rows(step, abstract_state)
    self._check_shapes(step, abstract_state, num_rows=num_rows)
    with self._reading(step):
      restored = self._manager.restore(step, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(
              abstract_state, strict=num_rows is None),
          meta=ocp.args.JsonRestore(),
          **({} if table is None else {'rows': _Rows(table)})))
    state = restored.state
    if num_rows is not None:
      state = dataclasses.replace(
          state, table=tables.emptied_from(state.table, num_rows))
    if table is not None:
      state = dataclasses.replace(state, table=table)
    if scan_dtype != 'float32':
      state = dataclasses.replace(
          state, table=tables.with_coarse(state.table, scan_dtype))
    if base:
      state = dataclasses.replace(
          state, params=base_params.join(state.params, base))
    return state, restored.meta

  def restore_params(self, abstract_params: Any, step: int | None = None
                     ) -> Any:
    """Returns the params of a checkpoint, and reads nothing else of it.

    Unlike `restore` it does not care how many rows the table was padded to,
    which depends on the number of devices.

    Args:
      abstract_params: pytree of ShapeDtypeStruct with shardings, and
        `base_params`, if there are any, which come back as they are.
      step: which; None for the latest that is whole.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      DamagedError: naming it and its first damaged file.
      ValueError: naming the arrays whose shapes differ from the saved ones, or
        that are not finite.
    """
    if step is None:
      return self.newest(
          lambda step: self.restore_params(abstract_params, step))
    abstract_params, base = base_params.split(abstract_params)
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
    return base_params.join(params, base)

  def restore_table_embeddings(self, step: int) -> np.ndarray:
    """Returns the embeddings [M, D] of a checkpoint's table, on the host.

    M is what the table was padded to when it was saved.

    Args:
      step: which.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      DamagedError: naming it and its first damaged file.
    """
    saved = self._saved(step)['table']['embeddings']
    wanted = {'table': {'embeddings': jax.ShapeDtypeStruct(
        saved.shape, saved.dtype)}}
    on_host = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    return self._restore_part(step, wanted, on_host)['table']['embeddings']

  def restore_meta(self, step: int | None = None) -> dict[str, Any]:
    """Returns the meta of a checkpoint, None for the latest, without state.

    Raises: as `restore`.
    """
    if step is None:
      return self.newest(self.restore_meta)
    with self._reading(step):
      return self._manager.restore(
          step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

  def newest(self, read: Callable[[int], T]) -> T:
    """Returns `read(step)` of the latest checkpoint that is whole.

    Each later one is named in a warning.

    Args:
      read: as the methods of this class, raises DamagedError of a damaged one.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      DamagedError: naming all, if each is damaged.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    if not steps:
      raise FileNotFoundError(
          f'No checkpoint in {self.folder}; there is none at all.')
    problems = []
    for step in steps:
      try:
        return read(step)
      except DamagedError as error:
        problems.append(str(error))
        if step != steps[-1]:
          warnings.warn(f'{error}; the checkpoint before it is used.',
                        stacklevel=2)
    raise DamagedError(
        f'No checkpoint in {self.folder} can be read: {"; ".join(problems)}. '
        'Copy one back, or train again in another --workdir.')

  def wait(self) -> None:
    """Waits until everything saved is on disk, and raises what went wrong."""
    with self._writing():
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def close(self) -> None:
    """Waits, then releases the folder."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, error, traceback):
    if error is None:
      self.close()
      return
    with contextlib.suppress(Exception):  # the first error is what matters
      self.close()

  def _seal(self):
    """Notes the files of a checkpoint that is about to get its name."""
    if jax.process_index() or '://' in self.folder:
      return
    for name in os.listdir(self.folder):
      if name.endswith('.orbax-checkpoint-tmp'):
        files.seal(os.path.join(self.folder, name),
                   without=('_CHECKPOINT_METADATA',))  # gets the time of commit

  @contextlib.contextmanager
  def _writing(self):
    """Says of errors meanwhile which folder could not be written."""
    try:
      yield
    except (OSError, ValueError) as error:  # tensorstore's are ValueErrors
      raise OSError(
          f'A checkpoint could not be written to {self.folder}: '
          f'{_first_line(error)}. When that is mended (is the disk full?), the '
          'same command goes on from the last whole one.') from error

  @contextlib.contextmanager
  def _reading(self, step):
    """Raises DamagedError if a checkpoint's files are not as written."""
    steps = sorted(self._manager.all_steps())
    if step not in steps:
      raise FileNotFoundError(
          f'No checkpoint of step {step} in {self.folder}; '
          f'there {f"are steps {steps}" if steps else "is none at all"}.')
    folder = os.path.join(self.folder, str(step))
    if step not in self._checked:
      self._checked[step] = files.damage(folder)
    if self._checked[step]:
      raise DamagedError(self._checked[step])
    try:
      yield
    except Exception as error:
      if os.path.exists(os.path.join(folder, files.SEAL)):
        raise  # not for its files
      # By an earlier version, which wrote no checksums.
      self._checked[step] = f'{folder}: {_first_line(error)}'
      raise DamagedError(self._checked[step]) from error

  def _damaged(self):
    """Returns the steps that were found to be damaged."""
    return [step for step, problem in self._checked.items() if problem]

  def _saved(self, step):
    """Returns the tree of a saved state, which has shapes and dtypes."""
    with self._reading(step):
      saved = self._manager.item_metadata(step).state
      if saved is None:
        raise ValueError('there is no state in it')
    return saved

  def _restore_part(self, step, wanted, restore_args):
    """Returns those arrays of a state that the tree `wanted` names."""
    # The manager restores items whole; a handler of trees takes a part.
    with self._reading(step), ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler()) as reader:
      return reader.restore(
          os.path.join(self.folder, str(step), 'state'),
          args=ocp.args.PyTreeRestore(
              item=wanted, partial_restore=True, restore_args=restore_args))

  def _num_rows(self, step, abstract_state):
    """Returns the rows of the saved table if its padding alone is another."""
    table = getattr(abstract_state, 'table', None)
    if not isinstance(table, types.TargetTable):
      return None
    saved = _leaves(self._saved(step)).get('table.ids')
    if saved is None or saved.shape == table.ids.shape or (
        saved.shape[0] < table.num_slots):
      return None
    return saved.shape[0]

  def _check_shapes(self, step, abstract_state, *, partial=False,
                    num_rows=None):
    """Raises a ValueError in our words where orbax would name no option.

    Args:
      step: of the checkpoint.
      abstract_state: what is wanted of it.
      partial: whether more may have been saved.
      num_rows: what `_num_rows` says.
    """
    saved = _leaves(self._saved(step))
    wanted = _leaves(abstract_state)
    if num_rows is not None:
      wanted |= {
          f'table.{name}': jax.ShapeDtypeStruct(
              (num_rows, *leaf.shape[1:]), leaf.dtype)
          for name, leaf in _leaves(abstract_state.table).items()}
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


def _silence_orbax() -> None:
  """Leaves errors to who raises them: orbax also prints them, with tracebacks.

  Orbax 0.12 logs what it raises. After a write that failed, as on a full disk,
  what is left of it in other threads logs or prints that it cannot go on.
  """
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(_is_no_error_of_orbax)
  if not isinstance(sys.unraisablehook, _WithoutLeftovers):
    sys.unraisablehook = _WithoutLeftovers(sys.unraisablehook)


def _is_no_error_of_orbax(record: logging.LogRecord) -> bool:
  """Returns whether to log this, which is so but for errors of orbax."""
  if record.levelno < logging.ERROR:
    return True
  if record.name == 'asyncio':
    return 'exception was never retrieved' not in record.getMessage()
  return f'{os.sep}orbax{os.sep}' not in record.pathname


@dataclasses.dataclass(frozen=True)
class _WithoutLeftovers:
  """A sys.unraisablehook that drops what tensorstore has to say to no one."""
  inner: Callable[[Any], object]

  def __call__(self, unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      self.inner(unraisable)


def _first_line(error):
  """Returns a message without the details that tensorstore appends."""
  return (str(error).splitlines() or [type(error).__name__])[0]


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
