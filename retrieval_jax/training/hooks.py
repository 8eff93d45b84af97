"""Hooks: all that a run does besides its steps.

The loop calls a hook after every `every` steps with the `loop.TrainingRun`,
whose state it may replace. Hooks are called in the order of their list: what
changes the state (re-encoding) first, then what measures it, then the log, and
the checkpoint after everything that it should hold.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
import os
import sys
import time
from typing import Any, ClassVar, Protocol, TextIO, TYPE_CHECKING

import jax
import numpy as np
import tqdm

from retrieval_jax.training import checkpoint

if TYPE_CHECKING:  # the loop imports this module
  from retrieval_jax.training import loop


class Hook(Protocol):
  """Periodic work; subclass it for the defaults.

  Attributes:
    every: period in steps; 0 for never in between.
    at_finish: whether also to run after the last step of the run.
    at_stop: whether also to run when the user stops the run early.
  """
  every: int
  at_finish: ClassVar[bool] = True
  at_stop: ClassVar[bool] = False

  def __call__(self, run: 'loop.TrainingRun') -> None:
    """Does the work after `run.step` finished steps."""

  def close(self) -> None:
    """Releases what the hook holds; called however the loop ends."""
    return


def is_due(hook: Hook, run: 'loop.TrainingRun') -> bool:
  """Returns whether the loop calls this hook now."""
  return bool(hook.every and run.step % hook.every == 0
              or hook.at_finish and run.finished
              or hook.at_stop and run.stopped)


def fetch_metrics(run: 'loop.TrainingRun') -> dict[str, np.ndarray]:
  """Returns the metrics since the last log, name -> [steps] float64.

  Raises:
    FloatingPointError: if one is not finite, naming the first.
  """
  fetched = jax.device_get(run.metrics)
  if not fetched:
    return {}
  first = run.step - len(fetched) + 1
  columns = {name: np.asarray([metrics[name] for metrics in fetched],
                              np.float64) for name in fetched[0]}
  bad = [(int(np.argmin(np.isfinite(values))), name)
         for name, values in columns.items() if not np.isfinite(values).all()]
  if bad:
    offset = min(offset for offset, _ in bad)
    name = next(name for o, name in bad if o == offset)
    raise FloatingPointError(
        f'metric {name!r} is {columns[name][offset]} at step {first + offset} '
        f'(steps {first} to {run.step} were checked); no state was saved after '
        'it. Try a lower learning rate, a longer warm-up or a smaller '
        'max_grad_norm.')
  return columns


@dataclasses.dataclass
class LogHook(Hook):
  """Writes the mean of the step's metrics since the last log.

  Attributes:
    every: period in steps.
    schedule: step -> learning rate, to be logged too.

  Raises:
    FloatingPointError: if a metric is not finite, which stops the run.
  """
  every: int
  schedule: Callable[[int], jax.Array] | None = None
  at_stop: ClassVar[bool] = True

  def __call__(self, run: 'loop.TrainingRun') -> None:
    fetched = fetch_metrics(run)
    run.metrics.clear()
    if not fetched:
      return
    means = {f'train/{name}': values.mean()
             for name, values in fetched.items()}
    if self.schedule is not None:
      means['train/learning_rate'] = float(self.schedule(run.step - 1))
    run.write(means)


@dataclasses.dataclass
class ProgressHook(Hook):
  """Shows where the run is: a bar on a terminal, plain lines elsewhere.

  Attributes:
    every: period in steps.
    shown: names of written metrics to show.
    stream: where to; stderr by default.
  """
  every: int
  shown: tuple[str, ...] = ('train/nll',)
  stream: TextIO | None = None
  at_stop: ClassVar[bool] = True
  _bar: Any = dataclasses.field(default=None, init=False, repr=False)
  _last: tuple[int, float] | None = dataclasses.field(
      default=None, init=False, repr=False)

  def __call__(self, run: 'loop.TrainingRun') -> None:
    if jax.process_index():
      return
    stream = self.stream or sys.stderr
    news = {name.rpartition('/')[2]: f'{run.latest[name]:.4g}'
            for name in self.shown if name in run.latest}
    if stream.isatty():
      if self._bar is None:
        self._bar = tqdm.tqdm(total=run.num_steps, initial=run.start_step,
                              unit='step', file=stream, dynamic_ncols=True)
      self._bar.set_postfix(news, refresh=False)
      self._bar.update(run.step - self._bar.n)
      return
    # The rate is of the last period, so that compilation does not count.
    now = time.monotonic()
    step, then = self._last or (run.start_step, run.started)
    self._last = (run.step, now)
    rate = (run.step - step) / max(now - then, 1e-9)
    left = (run.num_steps - run.step) / rate if rate else math.inf
    print(f'step {run.step}/{run.num_steps}  {rate:.3g} steps/s  '
          f'{_clock(left)} left', *(f'{k}={v}' for k, v in news.items()),
          sep='  ', file=stream, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None


@dataclasses.dataclass
class CheckpointHook(Hook):
  """Saves the state, the config and the meter's counts.

  It looks at the metrics first, whether or not a log is due, so that no state
  is saved after a metric was not finite.

  Attributes:
    checkpoints: where to.
    every: period in steps.
    config: the resolved config as plain JSON, for `check_same_config`.
    best: what is kept besides the latest, written down with each; or None.
  """
  checkpoints: checkpoint.Checkpoints
  every: int
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  best: checkpoint.Best | None = None
  at_stop: ClassVar[bool] = True

  def __call__(self, run: 'loop.TrainingRun') -> None:
    fetch_metrics(run)
    with run.meter.phase('checkpoint', block=False):
      meta = {'config': dict(self.config), 'meter': run.meter.state_dict()}
      if self.best is not None:
        meta['best'] = dataclasses.asdict(self.best)
      self.checkpoints.save(
          run.step, run.state, meta, self.best.step if self.best else None)
      if run.finished or run.stopped:
        self.checkpoints.wait()


@dataclasses.dataclass
class BestHook(Hook):
  """Saves a checkpoint whenever a measure is higher than ever before.

  So the latest checkpoint is never older than the best, and a run that is
  resumed from it knows both.

  Attributes:
    save: what saves, and writes down its `best`, which this hook keeps.
    every: period in steps of what measures, a hook before this one.
  """
  save: CheckpointHook
  every: int

  def __call__(self, run: 'loop.TrainingRun') -> None:
    best = self.save.best
    assert best is not None
    value = run.latest[best.measure]
    if best.beaten_by(value):
      best.step, best.value = run.step, float(value)
      self.save(run)


@dataclasses.dataclass
class EvaluateHook(Hook):
  """Writes what `evaluate` measures of the state, such as 'dev/RR@10'.

  Attributes:
    evaluate: state -> scalars by name; must not donate or keep the state.
    every: period in steps.
    phase: the meter's phase it is timed as.
  """
  evaluate: Callable[[Any], Mapping[str, float]]
  every: int
  phase: str = 'evaluate'

  def __call__(self, run: 'loop.TrainingRun') -> None:
    with run.meter.phase(self.phase, block=True) as hold:
      scalars = hold(self.evaluate(run.state))
    run.write(scalars)


@dataclasses.dataclass
class DiagnosticsHook(EvaluateHook):
  """Writes the quality of the step's approximation on a probe batch."""
  phase: str = 'diagnostics'


@dataclasses.dataclass
class ReencodeHook(Hook):
  """Re-encodes the whole table every R steps.

  It runs on multiples of `every`, where a run may be stopped and resumed too,
  but not after the last step of the run, when nothing would read the rows.

  Attributes:
    reencode: state -> state, whose table it may delete; counts its own encoder
      calls on the meter.
    every: R.
    until: the last step that it runs after; None for no last one.
  """
  reencode: Callable[[Any], Any]
  every: int
  until: int | None = None
  at_finish: ClassVar[bool] = False

  def applies(self, run: 'loop.TrainingRun') -> bool:
    """Returns whether it has something to do now, and is due."""
    return (is_due(self, run) and not run.finished
            and (self.until is None or run.step <= self.until))

  def __call__(self, run: 'loop.TrainingRun') -> None:
    if not self.applies(run):
      return
    with run.meter.phase('refresh', block=True) as hold:
      run.state = hold(self.reencode(run.state))


@dataclasses.dataclass
class MaintainHook(ReencodeHook):
  """Brings what a sampler keeps up to date with the memory as it is.

  Attributes:
    renewed_by: another hook, which does that, too, so that this one need not
      where that applies; None for none.
  """
  renewed_by: ReencodeHook | None = None

  def applies(self, run: 'loop.TrainingRun') -> bool:
    return super().applies(run) and not (
        self.renewed_by is not None and self.renewed_by.applies(run))


@dataclasses.dataclass
class RestartHook(ReencodeHook):
  """Starts the encoder again, where the same period ends.

  It is a hook of its own because what an episode has learned is measured in
  between, after the memory was renewed by it.
  """


@dataclasses.dataclass
class ProfileHook(Hook):
  """Writes a profiler trace of a few steps, for TensorBoard or Perfetto.

  Attributes:
    folder: where to.
    first_step: finished steps before the trace; past the compilation.
    num_steps: how many steps it covers.
  """
  folder: str
  first_step: int = 10
  num_steps: int = 5
  every: int = dataclasses.field(default=1, init=False)
  at_stop: ClassVar[bool] = True
  _tracing: bool = dataclasses.field(default=False, init=False, repr=False)

  def __call__(self, run: 'loop.TrainingRun') -> None:
    if run.step == self.first_step:
      jax.block_until_ready(run.state)
      os.makedirs(self.folder, exist_ok=True)
      jax.profiler.start_trace(self.folder)
      self._tracing = True
    elif self._tracing and run.step >= self.first_step + self.num_steps:
      jax.block_until_ready(run.state)
      self.close()

  def close(self) -> None:
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()


def _clock(seconds: float) -> str:
  if not math.isfinite(seconds):
    return '?'
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
