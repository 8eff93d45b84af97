"""Takes up a run again from its folder: for all that comes after training."""

import contextlib
import json
import os

import jax
from ml_collections import config_dict
import numpy as np

from retrieval_jax import factory
from retrieval_jax import sharding
from retrieval_jax.adapters import store
from retrieval_jax.factory import defaults
from retrieval_jax.training import checkpoint
from retrieval_jax.training import meter as meters
from retrieval_jax.training import state as states


def read_config(workdir):
  """Returns the ConfigDict of a run.

  Options that came after the run was made keep their defaults.

  Raises:
    FileNotFoundError: if `workdir` holds no run.
  """
  path = os.path.join(workdir, 'config.json')
  if not os.path.exists(path):
    raise FileNotFoundError(
        f'--workdir={workdir} holds no config.json; it is not the folder of a '
        'run. Train one with python -m experiments.train.')
  with open(path, encoding='utf-8') as f:
    values = json.load(f)
  config = defaults.get_config().unlock()
  config.update(config_dict.ConfigDict(values))
  return config.lock()


def load(workdir, *, num_devices=None):
  """Returns what a run's last checkpoint is evaluated and searched by.

  Returns:
    experiment: factory.Experiment.
    params: the model's parameters.
    rows: [M, D] numpy, the table's embeddings where they are the targets
      (targets.source 'frozen' and 'rows'), else None; for
      `experiment.targets_of(params, rows)`.
    step: of the checkpoint.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint in `workdir`.
  """
  with _checkpoints(workdir) as (config, kept, step):
    experiment = factory.build(config, num_devices=num_devices)
    replicated = sharding.replicated(experiment.mesh)
    params = kept.restore_params(jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        experiment.params), step)
    rows = (None if experiment.method.targets.source == 'encoder'
            else kept.restore_rows(step))
  return experiment, params, rows, step


def load_encoder(workdir, config):
  """Returns what `load` returns, of a run or of what a config starts from.

  Args:
    workdir: folder of a run, or None.
    config: ConfigDict in its place, or None; step 0, and no rows.

  Raises:
    ValueError: unless exactly one of the two is given.
    FileNotFoundError: if there is no run or no checkpoint in `workdir`.
  """
  if bool(workdir) == bool(config):
    raise ValueError(
        'Expected --workdir (a run) or --config (the encoder it starts from), '
        f'one of the two, got {"both" if workdir else "neither"}.')
  if workdir:
    return load(workdir)
  experiment = factory.build(config)
  return experiment, experiment.params, None, 0


def load_index(folder, experiment):
  """Returns (index, state) of an adapted index over an experiment's corpus.

  Raises:
    ValueError: if `folder` holds no index, or one of another corpus.
  """
  index, state, ids = store.load(
      folder, experiment.mesh, experiment.config.memory.chunk_rows)
  corpus_ids = experiment.dataset.corpus_ids
  if len(ids) != len(corpus_ids) or any(
      a != b for a, b in zip(ids, corpus_ids)):
    raise ValueError(
        f'--index={folder} is over {len(ids)} targets, the first {ids[0]!r}, '
        f'not over the {len(corpus_ids)} of {experiment.dataset.name}, the '
        f'first {corpus_ids[0]!r}; fit it to embeddings of this corpus.')
  return index, state


def load_state(workdir, *, num_devices=None):
  """Returns (factory.Experiment, TrainState) of a run's last checkpoint.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint in `workdir`.
    ValueError: if the memory was padded to another number of devices.
  """
  with _checkpoints(workdir) as (config, kept, step):
    experiment = factory.build(config, num_devices=num_devices)
    state, _ = kept.restore(
        abstract_state(experiment, experiment.make_step()[0]), step)
  return experiment, state


@contextlib.contextmanager
def _checkpoints(workdir):
  """Yields a run's config, its open Checkpoints and the last step of them."""
  config = read_config(workdir)
  folder = os.path.join(workdir, 'checkpoints')
  if not os.path.isdir(folder):
    raise FileNotFoundError(
        f'--workdir={workdir} holds no checkpoints; run or resume training.')
  with checkpoint.Checkpoints(folder, keep=config.checkpoint.keep) as kept:
    step = kept.latest_step()
    if step is None:
      raise FileNotFoundError(
          f'--workdir={workdir} holds no checkpoint yet; resume training.')
    yield config, kept, step


def read_meter(workdir, step):
  """Returns a Meter with the counts of the checkpoint of `step`."""
  with checkpoint.Checkpoints(os.path.join(workdir, 'checkpoints')) as saved:
    counts = saved.restore_meta(step)['meter']
  meter = meters.Meter()
  meter.load_state_dict(counts)
  return meter


def read_baselines(workdir):
  """Returns what the first start of a run measured before training."""
  path = os.path.join(workdir, 'baselines.json')
  if not os.path.exists(path):
    return {}
  with open(path, encoding='utf-8') as f:
    return json.load(f)


def abstract_state(experiment, train_step):
  """Returns the TrainState of an experiment without its arrays."""
  nothing = np.broadcast_to(
      np.float32(0), (len(experiment.first_ids()), experiment.model.dim))
  return states.abstract(train_step.init_state(
      experiment.params, experiment.make_table(nothing)))
