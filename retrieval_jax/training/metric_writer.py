"""Scalars of a run, as JSON lines and for TensorBoard."""

from collections.abc import Mapping
import json
import math
import os
from typing import Any

import jax
import numpy as np
import tensorboardX

from retrieval_jax import files


class MetricWriter:
  """Writes `metrics.jsonl` and TensorBoard events into a folder.

  A line is {"step": int, name: number, ...}; NaN and infinities, which JSON
  cannot express, become null. Only process 0 writes.
  """

  def __init__(self, folder: str, *, resume_step: int | None = None,
               tensorboard: bool = True):
    """Opens the files.

    Args:
      folder: made if absent.
      resume_step: the step that the run continues from; later lines of the
        interrupted run are dropped, so that none is there twice. None starts
        afresh and drops all lines.
      tensorboard: whether to write events too, into `folder`/tensorboard.
    """
    self._lines = self._events = None
    if jax.process_index():
      return
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, 'metrics.jsonl')
    _drop_after(path, -1 if resume_step is None else resume_step)
    self._lines = open(path, 'a', encoding='utf-8')  # noqa: SIM115
    if tensorboard:
      self._events = tensorboardX.SummaryWriter(
          os.path.join(folder, 'tensorboard'),
          purge_step=0 if resume_step is None else resume_step + 1)

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
    self._lines.write(json.dumps(line, allow_nan=False) + '\n')
    self._lines.flush()
    if self._events is not None:
      for name, value in scalars.items():
        self._events.add_scalar(name, value, int(step))

  def close(self) -> None:
    """Closes the files; writing afterwards is an error."""
    if self._lines is not None:
      self._lines.close()
    if self._events is not None:
      self._events.close()

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, *exception):
    self.close()


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
  with open(path, encoding='utf-8') as lines:
    kept = [line for line in lines if _is_kept(line, last_step)]
  files.write_text(path, ''.join(kept))


def _is_kept(line: str, last_step: int) -> bool:
  try:
    return line.endswith('\n') and json.loads(line)['step'] <= last_step
  except ValueError:  # the process was killed while it wrote this line
    return False
