"""Scalars of a run for Weights & Biases, an optional extra."""

from collections.abc import Mapping
import os
from typing import Any
import uuid

from retrieval_jax import files
from retrieval_jax.data import errors

_FILE = 'wandb.json'  # in the folder of the run: by which id it goes on


def check_installed(project: str) -> None:
  """Raises ImportError, which says what to install, where that is missing."""
  errors.import_extra('wandb', 'wandb', f'--config.log.wandb={project}')


class WandbWriter:
  """A run of a project of Weights & Biases, which a resumed run goes on with.

  What the library finds in the environment holds (WANDB_MODE=offline,
  WANDB_ENTITY and so on). Steps that an interrupted run had written before it
  went on from an earlier one stay as they are: a resumed run finds the same
  numbers again.
  """

  def __init__(self, project: str, folder: str, config: Mapping[str, Any]):
    """Starts the run, or goes on with it.

    Args:
      project: name.
      folder: of the run, where the library keeps its files, too.
      config: options, as JSON.

    """
    import wandb  # Late: an optional dependency.

    path = os.path.join(folder, _FILE)
    if not os.path.exists(path):
      files.write_json(path, {'id': uuid.uuid4().hex[:12]})
    self._run = wandb.init(
        project=project, dir=folder, config=dict(config), resume='allow',
        id=files.read_json(path)['id'],
        name=os.path.basename(os.path.abspath(folder)))

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes the scalars of a step."""
    self._run.log(dict(scalars), step=step)

  def close(self) -> None:
    """Waits until all is sent, or written."""
    self._run.finish()
