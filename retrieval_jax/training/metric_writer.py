"""Scalars of a run, as JSON lines, for TensorBoard and Weights & Biases."""

from collections.abc import Mapping
import json
import math
import os
import time
from typing import Any, TextIO

import jax
import numpy as np
from tensorboardX import event_file_writer
from tensorboardX import summary
from tensorboardX.proto import event_pb2

from retrieval_jax import files
from retrieval_jax.training import wandb_writer

_FLUSH_SECONDS = 120  # as TensorBoard's own writer


class MetricWriter:
  """Writes `metrics.jsonl` and TensorBoard events into a folder.

  A line is {"step": int, name: number, ...}; NaN and infinities, which JSON
  cannot express, become null. Only process 0 writes. A full disk raises an
  OSError that names the file.
  """

  def __init__(self, folder: str, *, resume_step: int | None = None,
               tensorboard: bool = True, wandb: str = '',
               config: Mapping[str, Any] | None = None):
    """Opens the files.

    Args:
      folder: made if absent.
      resume_step: the step that the run continues from; later lines of the
        interrupted run are dropped, so that none is there twice. None starts
        afresh and drops all lines.
      tensorboard: whether to write events too, into `folder`/tensorboard.
      wandb: project of Weights & Biases to write to as well; '' for none.
      config: of the run, for the latter.
    """
    self._path = os.path.join(folder, 'metrics.jsonl')
    self._lines: TextIO | None = None
    self._events: _Events | None = None
    self._wandb: wandb_writer.WandbWriter | None = None
    if jax.process_index():
      return
    os.makedirs(folder, exist_ok=True)
    _drop_after(self._path, -1 if resume_step is None else resume_step)
    self._lines = open(self._path, 'a', encoding='utf-8')  # noqa: SIM115
    if tensorboard:
      self._events = _Events(
          os.path.join(folder, 'tensorboard'),
          0 if resume_step is None else resume_step + 1)
    if wandb:
      self._wandb = wandb_writer.WandbWriter(wandb, folder, config or {})

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes the scalars of one step.

    Args:
      step: number of finished steps.
      scalars: name -> Python, numpy or jax scalar.

    Raises:
      ValueError: naming a metric that is not a scalar.
    """
    scalars = {name: as_scalar(name, value) for name, value in scalars.items()}
    if self._lines is None:
      return
    line = {'step': int(step)} | {
        name: value if math.isfinite(value) else None
        for name, value in scalars.items()}
    with files.naming_full_disk(self._path):
      self._lines.write(json.dumps(line, allow_nan=False) + '\n')
      self._lines.flush()
    if self._events is not None:
      self._events.write(int(step), scalars)
    if self._wandb is not None:
      self._wandb.write(int(step), scalars)

  def close(self) -> None:
    """Closes the files; writing afterwards is an error."""
    if self._lines is not None:
      with files.naming_full_disk(self._path):
        self._lines.close()
    if self._events is not None:
      self._events.close()
    if self._wandb is not None:
      self._wandb.close()

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, *exception):
    self.close()


class _Events:
  """Scalars as a file of TensorBoard events.

  tensorboardX's SummaryWriter writes by a thread, which a full disk ends with a
  traceback; the run then waits for ever to put an event into its queue.
  """

  def __init__(self, folder: str, purge_step: int):
    """Opens a new file in `folder`; older events from `purge_step` on go."""
    self._folder = folder
    self._flushed = -math.inf
    os.makedirs(folder, exist_ok=True)
    with files.naming_full_disk(folder):
      self._writer = event_file_writer.EventsWriter(
          os.path.join(folder, 'events'), f'.{purge_step}')
      self._writer.write_event(event_pb2.Event(
          wall_time=time.time(), step=purge_step,
          session_log=event_pb2.SessionLog(
              status=event_pb2.SessionLog.START)))

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes the scalars of a step; to the disk at least every two minutes."""
    with files.naming_full_disk(self._folder):
      for name, value in scalars.items():
        self._writer.write_event(event_pb2.Event(
            wall_time=time.time(), step=step,
            summary=summary.scalar(name, value)))
      if time.monotonic() - self._flushed > _FLUSH_SECONDS:
        self._writer.flush()
        self._flushed = time.monotonic()

  def close(self) -> None:
    with files.naming_full_disk(self._folder):
      self._writer.close()


def as_scalar(name: str, value: Any) -> int | float:
  """Returns a Python number.

  Args:
    name: only for the message.
    value: Python, numpy or jax scalar, or an array of one element.

  Raises:
    ValueError: if it is anything else.
  """
  array = np.asarray(value)
  if array.size != 1 or array.dtype.kind not in 'biuf' and (
      array.dtype.name != 'bfloat16'):
    raise ValueError(
        f'metric {name!r} must be a scalar, got shape {array.shape} of dtype '
        f'{array.dtype}; reduce it in the step.')
  number = array.reshape(())
  return int(number) if array.dtype.kind in 'biu' else float(number)


def _drop_after(path: str, last_step: int) -> None:
  """Rewrites a JSONL file without later lines and without a torn last one."""
  if not os.path.exists(path):
    return
  with open(path, 'rb') as lines:
    kept = [line for line in lines if _is_kept(line, last_step)]
  files.write_text(path, b''.join(kept).decode('utf-8'))


def _is_kept(line: bytes, last_step: int) -> bool:
  try:
    return line.endswith(b'\n') and json.loads(
        line.decode('utf-8'))['step'] <= last_step
  # The process was killed while it wrote this line; or it is none of ours.
  except (ValueError, KeyError, TypeError):
    return False
