"""What happens between the episodes of a run: mining, and starting again.

Both are done by hooks of the one training loop at the end of an episode, before
its checkpoint. So a run that is interrupted meanwhile goes on from the
checkpoint before, and does it again.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import os
import shutil
from typing import Any

import jax
import numpy as np

from retrieval_jax import base_params
from retrieval_jax import factory
from retrieval_jax import memories
from retrieval_jax import processes
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.data import progress
from retrieval_jax.evaluation import answers
from retrieval_jax.evaluation import bm25
from retrieval_jax.indexes import exact
from retrieval_jax.mining import episodes
from retrieval_jax.samplers import pool as pools
from retrieval_jax.training import checkpoint
from retrieval_jax.training import cost as costs
from retrieval_jax.training import state as states
from retrieval_jax.training import step as steps

_START = 'start'  # folder of a run, of the encoder that it began with


def are_mined(experiment: factory.Experiment) -> bool:
  """Returns whether the run draws from mined pools."""
  return experiment.method.sampler.draws_from_pools


def are_remembered(experiment: factory.Experiment) -> bool:
  """Returns whether all pools but the first are mined from the memory."""
  return are_mined(experiment) and experiment.plan.later == 'memory'


def embeds_first(experiment: factory.Experiment) -> bool:
  """Returns whether the first pools ask for embeddings of the corpus."""
  return are_mined(experiment) and experiment.plan.first == 'encoder'


def number_of(experiment: factory.Experiment, step: int) -> int:
  """Returns which episode, from 1, the step after `step` finished is in."""
  every = experiment.method.refresh.reencode_every
  last = experiment.plan.num_episodes(experiment.config.num_steps, every)
  return min(step // every + 1, last) if every else 1


def end_steps(experiment: factory.Experiment) -> list[int]:
  """Returns the steps after which another episode begins."""
  every = experiment.method.refresh.reencode_every
  number = experiment.plan.num_episodes(experiment.config.num_steps, every)
  return [every * episode for episode in range(1, number)]


# --- Mining.


def mine_pools(experiment: factory.Experiment, cost: costs.Cost,
               params: types.Params, embeddings: np.ndarray | None,
               table: types.TargetTable, *, step: int,
               previous: pools.Pools | None = None,
               corrector: Any = None) -> np.ndarray:
  """Returns the pools [Q, P] int32 of the episode that begins now.

  Args:
    experiment: of the run.
    cost: counts what is embedded and scored.
    params: of the encoder that mines.
    embeddings: [m, D] float32, of the distinct targets by these params; None
      embeds them where they are needed.
    table: the run's memory, which is searched where it holds the corpus, and
      then holds these embeddings.
    step: number of finished steps.
    previous: the pools of the episode before; None in the first.
    corrector: state of the run's corrector, for pools by the memory as it moves
      it, without embedding; then `embeddings` are not read.
  """
  plan, dataset = experiment.plan, experiment.dataset.by_text
  qrels = dataset.qrels[experiment.config.data.train_split]
  rows, episode = qrels.queries(), number_of(experiment, step)
  known, seed = qrels.padded_known(rows), experiment.config.seed
  positives, ids = qrels.padded_positives(rows), dataset.distinct_ids
  unfit = None
  if plan.bar_answers:
    unfit = answers.holders(
        dataset.answers[experiment.config.data.train_split].of,
        dataset.corpus_texts)
  if episode == 1 and plan.first == 'bm25':
    found, _ = bm25.bm25_run(
        dataset.corpus_texts, [dataset.query_texts[row] for row in rows],
        plan.depth, progress=None if processes.is_first() else False)
    lists = episodes.choose(plan, dataset.copies.firsts_of(found), rows,
                            known=known, seed=seed, unfit=unfit)
  else:
    in_place, fold = experiment.method.memory.holds_corpus, None
    if corrector is not None:
      embeddings = corrected(experiment, table, corrector)
      cost.correcting(len(embeddings))
      by = experiment.method.corrector
      in_place = by.folds
      fold = functools.partial(by.fold, corrector) if by.folds else None
    elif embeddings is None:
      embeddings = experiment.embed_targets(params, ids)
      cost.reembedding(len(embeddings))
    queries = experiment.embed_queries(params, rows)
    ahead = positives[:, :1] if plan.positives == 'first' else positives
    cost.mining(len(rows), len(embeddings), searches=len(rows) + (
        int((ahead >= 0).sum()) if plan.lookahead else 0))
    with searchable(
        experiment, embeddings, table if in_place else None, fold
    ) as search, progress.counter(
        f'mining episode {episode}', unit='queries', total=len(rows),
        show=processes.is_first()) as add:
      lists = episodes.mine(
          plan, episodes.Corpus(ids, embeddings, search),
          queries, rows, positives=positives, known=known,
          seed=seed, episode=episode, unfit=unfit, progress=add)
  before = None
  if previous is not None:
    before = sharding.fetch(previous.ids)[rows]
  found = episodes.pool(plan, lists, before, rows, seed=seed, episode=episode)
  every = np.full((len(dataset.query_ids), found.shape[1]), -1, np.int32)
  every[rows] = found
  return every


def corrected(experiment: factory.Experiment, table: types.TargetTable,
              state: Any) -> np.ndarray:
  """Returns [m, D] float32, the remembered targets moved to the present.

  On the host, in the order of `Experiment.first_ids`; a chunk at a time goes
  over the devices.

  Args:
    experiment: of the run.
    table: its memory, which holds the corpus.
    state: of its corrector.
  """
  memory, size = experiment.method.memory, experiment.config.memory.chunk_rows
  apply = jax.jit(
      lambda state, table, rows: experiment.method.corrector.apply(
          state, memory.take(table, rows)),
      out_shardings=sharding.replicated(experiment.mesh))
  rows = experiment.first_ids()  # of a corpus, the rows
  moved = experiment.room((len(rows), experiment.model.dim))
  for start in range(0, len(rows), size):
    part = rows[start:start + size]
    padded = np.pad(part, (0, size - len(part)), mode='edge')
    moved[start:start + size] = apply(state, table, padded)[:len(part)]
  return moved


@contextlib.contextmanager
def searchable(experiment: factory.Experiment, embeddings: np.ndarray,
               table: types.TargetTable | None = None,
               fold: Callable | None = None) -> Iterator[
                   Callable[[np.ndarray, int], np.ndarray]]:
  """Yields the `search` of an episodes.Corpus; what it needs is freed then.

  Args:
    experiment: of the run.
    embeddings: [m, D] float32, of the distinct targets.
    table: that holds them already; None makes one.
    fold: where it holds what a corrector moves there, the `View.fold` of that.
  """
  mesh, chunk_rows = experiment.mesh, experiment.config.memory.chunk_rows
  own = None
  if table is None:
    own = table = memories.Corpus(
        len(experiment.target_tokens), 'float32', chunk_rows).create(
            embeddings, experiment.dataset.distinct_ids,
            dim=experiment.model.dim, mesh=mesh)
  index = exact.ExactIndex(mesh, chunk_rows)
  try:
    yield lambda vectors, depth: index.search(
        table, vectors if fold is None else np.asarray(fold(vectors)[0]),
        depth)[1]
  finally:
    for array in jax.tree.leaves(own):
      array.delete()


# --- Starting again.


def keep_start(experiment: factory.Experiment, workdir: str) -> None:
  """Writes the parameters that every episode begins with, at step 0.

  They are not made again later: a folder that they are from may change.
  """
  folder = os.path.join(workdir, _START)
  if processes.is_first():
    shutil.rmtree(folder, ignore_errors=True)  # that of another start
  processes.wait('kept')
  with checkpoint.Checkpoints(folder) as kept:
    params, _ = base_params.split(experiment.params)  # a base stays anyway
    kept.save(0, {'params': params}, {})


def restarted(experiment: factory.Experiment, train_step: steps.TrainStep,
              workdir: str, state: states.TrainState) -> states.TrainState:
  """Returns the state with the encoder of step 0, which has learned nothing.

  Its memory and pools stay, its step counts on.
  """
  # Those of an objective are made anew by `init_state`.
  abstract = states.abstract(
      {name: state.params[name] for name in experiment.params})
  with checkpoint.Checkpoints(
      os.path.join(workdir, _START), read_only=True) as kept:
    params = kept.restore_params(abstract)
  return dataclasses.replace(
      train_step.init_state(params, state.table), step=state.step,
      sampler=state.sampler)


def schedule_of(experiment: factory.Experiment,
                schedule: Callable[[int], jax.Array]
                ) -> Callable[[int], jax.Array]:
  """Returns the schedule as the run sees it: begun anew by each restart."""
  if not experiment.plan.restart:
    return schedule
  ends = end_steps(experiment)
  return lambda step: schedule(
      step - max((end for end in ends if end <= step), default=0))
