"""The training loop."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import time
from typing import Any

import jax

from retrieval_jax.training import hooks as hooks_lib
from retrieval_jax.training import meter as meter_lib
from retrieval_jax.training import metric_writer


@dataclasses.dataclass
class TrainingRun:
  """What hooks see of a run, and may change.

  Attributes:
    state: the state after `step` steps.
    step: number of finished steps.
    start_step: the step at which this process started or resumed the run.
    num_steps: length of the whole run.
    meter: what it has cost.
    writer: where scalars go; use `write`.
    metrics: the step's metrics since the last log, still on the device.
    latest: the last value written of every metric.
    stopped: whether the user asked to stop after this step.
    started: time.monotonic() at which the loop began.
  """
  state: Any
  step: int
  start_step: int
  num_steps: int
  meter: meter_lib.Meter
  writer: metric_writer.MetricWriter
  metrics: list = dataclasses.field(default_factory=list)
  latest: dict = dataclasses.field(default_factory=dict)
  stopped: bool = False
  started: float = dataclasses.field(default_factory=time.monotonic)

  @property
  def finished(self) -> bool:
    """Whether all steps are done."""
    return self.step >= self.num_steps

  def write(self, scalars: Mapping[str, Any]) -> None:
    """Writes scalars of this step with what the run has cost so far."""
    self.writer.write(self.step, {
        'seconds': self.meter.seconds,
        'meter/target_encoder_calls': self.meter.target_encoder_calls,
        'meter/flops': self.meter.flops,
        **scalars})
    self.latest.update(scalars)


def train(state: Any, batches: Iterator[Any],
          step_fn: Callable[[Any, Any], tuple[Any, Mapping[str, jax.Array]]],
          hooks: Iterable[hooks_lib.Hook], *, start_step: int, num_steps: int,
          meter: meter_lib.Meter, writer: metric_writer.MetricWriter,
          stop: Callable[[int], bool] = lambda step: False,
          transfer_guard: str = 'disallow') -> Any:
  """Trains from `start_step` to `num_steps`, or until `stop` says so.

  Args:
    state: pytree; donated if `step_fn` donates.
    batches: iterator whose next batch is that of `start_step`, on the device.
    step_fn: (state, batch) -> (state, metrics: name -> [] array).
    hooks: called in this order after each step that they are due at.
    start_step: finished steps of `state`.
    num_steps: steps of the whole run, those before `start_step` included.
    meter: a `meter.Meter`.
    writer: a `metric_writer.MetricWriter`.
    stop: asked after each step, e.g. a `signals.StopSignal`.
    transfer_guard: jax.transfer_guard level inside `step_fn`; 'disallow'
      raises on the implicit copies that make a step wait.

  Returns:
    The last state; its `step` tells whether the run was stopped.
  """
  run = TrainingRun(state, start_step, start_step, num_steps, meter, writer)
  del state  # run.state replaces it, and its buffers may be donated
  # XLA:CPU deadlocks when steps with collectives pile up (jax 0.10.2).
  wait = jax.default_backend() == 'cpu'
  with contextlib.ExitStack() as closing:
    for hook in hooks:
      closing.callback(hook.close)
    while not run.finished and not run.stopped:
      with meter.phase('data', block=False):
        batch = next(batches)
      with jax.transfer_guard(transfer_guard):
        run.state, metrics = step_fn(run.state, batch)
      if wait:
        jax.block_until_ready((run.state, metrics))
      run.metrics.append(metrics)
      run.step += 1
      run.stopped = not run.finished and stop(run.step)
      for hook in hooks:
        if hooks_lib.is_due(hook, run):
          hook(run)
  return run.state
