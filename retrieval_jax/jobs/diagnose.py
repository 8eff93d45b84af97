"""How well a run's memory stands in for brute force."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import correctors
from retrieval_jax import factory
from retrieval_jax import host_table
from retrieval_jax import table as tables
from retrieval_jax import trained
from retrieval_jax import types
from retrieval_jax.evaluation import diagnostics
from retrieval_jax.training import state as states


def run(workdir: str, *, bounds: bool = False
        ) -> tuple[dict[str, dict[str, float]], int]:
  """Compares the memory of a run's last checkpoint with brute force.

  Args:
    workdir: folder of the run.
    bounds: also compare it as moved by correctors fitted to all targets.

  Returns:
    {corrector: what `diagnostics.approximation` found}, 'this run' first, and
    the step of the checkpoint.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint in `workdir`.
    ValueError: if the run has no memory.
  """
  experiment, state = trained.load_state(workdir)
  if not experiment.method.memory.num_slots:
    raise ValueError(
        f'--workdir={workdir} trained without a memory '
        "(memory.kind='none'); there is nothing to compare.")
  return of_state(experiment, state, bounds), int(state.step)


def of_state(experiment: factory.Experiment, state: states.TrainState,
             bounds: bool = False) -> dict[str, dict[str, float]]:
  """Returns {corrector: what `diagnostics.approximation` found}.

  Encodes the whole corpus; not counted as a cost of training. Rows of the host
  are put on the devices, which must have room for them.

  Args:
    experiment: factory.Experiment.
    state: TrainState, with a memory.
    bounds: whether to add correctors fitted to all targets.
  """
  fresh = experiment.targets_of(state.params, state.table.embeddings)
  if isinstance(state.table, host_table.HostTable):
    state = dataclasses.replace(state, table=tables.of_host(
        state.table, experiment.mesh, experiment.method.memory.chunk_rows))
  look = functools.partial(
      against_brute_force, experiment, state, fresh)
  found = {'this run': look(functools.partial(
      experiment.method.corrector.apply, state.corrector))}
  if bounds:
    for name, (corrector, num_steps) in _bounding_correctors(
        experiment.config.model.normalize, experiment.model.dim).items():
      fitted = diagnostics.fit_to_all(
          corrector, state.table, fresh, num_steps=num_steps)
      found[name] = look(functools.partial(corrector.apply, fitted))
  return found


def against_brute_force(
    experiment: factory.Experiment, state: states.TrainState,
    fresh: np.ndarray, correct: Callable[[types.TargetTable], jax.Array]
    ) -> dict[str, float]:
  """Returns `diagnostics.approximation` of the memory seen through `correct`.

  And what the sampler has to say of its draws from it. Queries without
  positives, or of a method that knows none, exclude nothing, as in training,
  and gradients are then those of the negatives alone.

  Args:
    experiment: factory.Experiment.
    state: TrainState.
    fresh: [N, D] float32, what the corpus is searched by now.
    correct: maps slices of the table to present embeddings, as types.View.
  """
  config = experiment.config
  dataset = experiment.dataset.by_text
  qrels = dataset.qrels[config.data.dev_split]
  method = experiment.method
  has_positives = method.has_positives and len(qrels.grades) > 0
  rows = (qrels.queries() if has_positives
          else dataset.queries_of(config.data.dev_split))
  rows = rows[diagnostics.sample_queries(
      [dataset.query_ids[row] for row in rows],
      config.diagnostics.num_queries)]
  queries = experiment.embed_queries(state.params, rows)
  view = types.View(table=state.table, correct=correct,
                    scale=experiment.model.scale_of(state.params),
                    scan=types.Scan(experiment.mesh, method.memory.chunk_rows))
  positives = np.full(len(rows), -1, np.int32)
  known = positives[:, None]
  if has_positives:
    known = qrels.padded_known(rows)
    positives = np.array([qrels.positives(row)[0] for row in rows], np.int32)
  found = diagnostics.approximation(
      queries, fresh, view, known_positives=known,
      positive_ids=positives if has_positives else None,
      copies=dataset.copies.ids, mesh=experiment.mesh)

  def of_sampler(state, table, queries, known, positives):
    return method.sampler.diagnose(state, types.Request(
        queries, rows.astype(np.int32),
        method.memory.rows_of(table, known), known,
        method.memory.rows_of(table, positives), jnp.int32(0)),
                                   view._replace(table=table))

  with jax.transfer_guard('allow'):
    return found | {
        name: float(value) for name, value in jax.jit(of_sampler)(
            state.sampler, state.table, queries, known.astype(np.int32),
            positives).items()}


def _bounding_correctors(normalize: bool, dim: int
                         ) -> dict[str, tuple[Any, int]]:
  """Returns name -> (corrector, updates) of what is fitted to all targets."""
  shared: dict[str, Any] = dict(
      num_anchors=0, use_after=0, keep_norm=normalize, reset_on_refresh=False)
  return {
      'best linear': (correctors.Linear(
          fit='ridge', ridge=max(1e-4, correctors.least_ridge(dim)), decay=1.0,
          **shared), 60),
      'wide network': (correctors.MLP(
          hidden=1024, learning_rate=1e-3, warmup_steps=10,
          updates_per_step=1, weight_decay=0.0, distribution_weight=0.0,
          average_decay=0.0, condition_on_age=False, **shared), 1000)}
