"""A clean stop on Ctrl-C or a scheduler's SIGTERM."""

import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np


class StopSignal:
  """Turns the first SIGINT or SIGTERM into a question the loop can ask.

  Inside the context the first signal only sets a flag; calling the object
  answers whether to stop, and the loop then saves and returns. The second
  signal raises KeyboardInterrupt at once. Outside the main thread, where
  Python allows no handlers, it never asks for a stop.

  With several processes a signal may reach one of them only, and a process
  that leaves the loop alone makes the others hang. They therefore agree by an
  all-gather, every `sync_every` steps.
  """

  def __init__(self, *, sync_every: int = 16):
    self._sync_every = sync_every
    self._previous: dict[int, Any] = {}
    self.received = None  # name of the first signal

  def __enter__(self) -> 'StopSignal':
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exception):
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}

  def __call__(self, step: int) -> bool:
    """Returns whether to stop after `step`; equal on all processes."""
    if jax.process_count() == 1:
      return self.received is not None
    if step % self._sync_every:
      return False
    flags = multihost_utils.process_allgather(
        np.asarray(self.received is not None))
    return bool(np.any(flags))

  def _handle(self, number, frame):
    del frame
    if self.received is not None:
      raise KeyboardInterrupt(
          f'second signal ({signal.Signals(number).name}); stopped at once')
    self.received = signal.Signals(number).name
    # os.write, as print may be what the signal interrupted.
    os.write(2, (
        f'\n{self.received}: stopping after this step and saving a checkpoint; '
        'the same command resumes from it. Once more stops at once.\n'
        ).encode())
