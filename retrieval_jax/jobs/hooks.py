"""The hooks of a training run."""

from collections.abc import Callable, Mapping
import dataclasses
import os
from typing import Any

import jax

from retrieval_jax import factory
from retrieval_jax.jobs import diagnose
from retrieval_jax.jobs import episodes
from retrieval_jax.jobs import evaluate
from retrieval_jax.jobs import forgetting
from retrieval_jax.training import checkpoint
from retrieval_jax.training import hooks
from retrieval_jax.training import state as states


def make_hooks(experiment: factory.Experiment,
               checkpoints: checkpoint.Checkpoints, workdir: str, *,
               schedule: Callable[[int], jax.Array],
               reencode: Callable[[states.TrainState], states.TrainState],
               maintain: Callable[[states.TrainState], states.TrainState],
               restart: Callable[[states.TrainState], states.TrainState],
               saved_config: Mapping[str, Any],
               best: checkpoint.Best | None = None) -> list[hooks.Hook]:
  """Returns the hooks of a run: re-encoding, measuring, logging, saving.

  Args:
    experiment: factory.Experiment.
    checkpoints: checkpoint.Checkpoints to save to.
    workdir: folder of the run.
    schedule: step -> learning rate.
    reencode: state -> state with a memory that is re-encoded whole.
    maintain: state -> state whose sampler follows the memory as it is.
    restart: state -> state with the encoder of step 0.
    saved_config: what a checkpoint keeps of the config, as plain JSON.
    best: the best checkpoint so far, which is kept too; or None.
  """
  config = experiment.config
  chosen: list[hooks.Hook] = [hooks.LogHook(
      config.log.every, episodes.schedule_of(experiment, schedule))]
  every, ends = (experiment.method.refresh.reencode_every,
                 episodes.end_steps(experiment))
  until = ends[-1] if ends else 0
  renewed_by = None
  if every:
    renewed_by = hooks.ReencodeHook(reencode, every, until)
    chosen.append(renewed_by)
  if experiment.method.sampler.maintain_every:
    chosen.append(hooks.MaintainHook(
        maintain, experiment.method.sampler.maintain_every,
        renewed_by=renewed_by))
  if config.evaluation.every:
    # The last state may be the best, whether or not its turn has come.
    kind = hooks.EvaluateHook if best else EvaluateDevHook
    chosen.append(kind(
        lambda state: evaluate_dev(experiment, state), config.evaluation.every))
  if config.diagnostics.every:
    chosen.append(hooks.DiagnosticsHook(
        lambda state: diagnose_memory(experiment, state),
        config.diagnostics.every))
  if config.forgetting.every:
    chosen.append(ForgettingHook(experiment, workdir, config.forgetting.every))
  if experiment.plan.restart:
    chosen.append(hooks.RestartHook(restart, every, until))
  chosen.append(hooks.ProgressHook(config.log.every))
  save = hooks.CheckpointHook(
      checkpoints, config.checkpoint.every, saved_config, best)
  chosen += [hooks.BestHook(save, config.evaluation.every)] if best else []
  chosen.append(save)
  if config.profile.num_steps:
    chosen.append(hooks.ProfileHook(
        os.path.join(workdir, 'profile'), config.profile.start,
        config.profile.num_steps))
  return chosen


class EvaluateDevHook(hooks.EvaluateHook):
  """Dev evaluation on its period only: at the end all splits are evaluated."""
  at_finish = False


@dataclasses.dataclass
class ForgettingHook(hooks.Hook):
  """Looks at what the run has forgotten.

  Attributes:
    experiment: of the run.
    workdir: of the run.
    every: period in steps.
  """
  experiment: factory.Experiment
  workdir: str
  every: int

  def __call__(self, run) -> None:
    with run.meter.phase('forgetting'):
      found = forgetting.look(
          self.experiment, self.workdir, run.step, run.state.params,
          run.state.table.embeddings)
    run.write(found)


def evaluate_dev(experiment: factory.Experiment, state: states.TrainState
                 ) -> dict[str, float]:
  """Returns 'SPLIT/MEASURE' -> value of the dev queries."""
  return evaluate.flat(evaluate.of_params(
      experiment, state.params, state.table.embeddings,
      [experiment.config.data.dev_split]))


def diagnose_memory(experiment: factory.Experiment, state: states.TrainState
                    ) -> dict[str, float]:
  """Returns how the memory approximates brute force on dev queries."""
  found = diagnose.of_state(experiment, state)['this run']
  return {f'diagnostics/{name}': value for name, value in found.items()}
