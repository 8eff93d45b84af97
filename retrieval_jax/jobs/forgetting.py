"""Looks at what a run forgets; see evaluation.forgetting.

  WORKDIR/forgetting/STEP.npz  one look, written whole or not at all
  WORKDIR/forgetting.json      what all of them say

A run that goes on from an earlier step looks again, and finds the same.
"""

import os
import shutil
from typing import Any

import numpy as np

from retrieval_jax import factory
from retrieval_jax import files
from retrieval_jax import processes
from retrieval_jax import types
from retrieval_jax.data import hashing
from retrieval_jax.evaluation import forgetting
from retrieval_jax.jobs import episodes
from retrieval_jax.mining import episodes as mining

RESULTS_FILE = 'forgetting.json'
_FOLDER = 'forgetting'
_PROBE = 21  # what a hash is for; those of data.pipeline and mining are smaller
_NUM_QUERIES = {'train_split': 2048, 'dev_split': 1000}
_DEPTH, _GROUP = 200, 30


def start(workdir: str) -> None:
  """Removes the looks of another start of the run."""
  shutil.rmtree(os.path.join(workdir, _FOLDER), ignore_errors=True)


def look(experiment: factory.Experiment, workdir: str, step: int,
         params: types.Params, table_embeddings: Any) -> dict[str, float]:
  """Takes a look and returns its scalars by name; costs training nothing.

  Args:
    experiment: of the run.
    workdir: of the run; the looks of earlier steps are read from there.
    step: number of finished steps, of which all multiples of
      `forgetting.every` were looked at.
    params: of the encoder.
    table_embeddings: [M, D], of the run's table, see `Experiment.targets_of`.
  """
  rows, known, positives = _probe(experiment)
  ids = experiment.dataset.distinct_ids
  queries = experiment.embed_queries(params, rows)
  embeddings = experiment.targets_of(params, table_embeddings)
  if len(ids) < len(embeddings):
    embeddings = experiment.pick(embeddings, ids)
  depth, group = min(_DEPTH, len(ids)), min(_GROUP, len(ids))
  with episodes.searchable(experiment, embeddings) as search:
    corpus = mining.Corpus(ids, embeddings, search)
    nearest = corpus.search(queries, depth)
  looks = [_read(workdir, earlier) for earlier in range(
      0, step, experiment.config.forgetting.every)]
  chosen = mining.choose_random(
      nearest, group, known=known, query_rows=rows,
      seed=experiment.config.seed, episode=step)
  groups = [*(one.group for one in looks), chosen]
  right = np.stack([_right(corpus, queries, positives, of_look)
                    for of_look in groups])
  looks.append(forgetting.Look(step, nearest, chosen, right))
  found = forgetting.summary(looks)
  if processes.is_first():
    _write(workdir, looks[-1])
    files.write_json(os.path.join(workdir, RESULTS_FILE), found)
  processes.wait('looked')
  return forgetting.scalars(found)


def _probe(experiment):
  """Returns query rows [n], known ids [n, E] and the first positive [n]."""
  config, qrels_of = experiment.config, experiment.dataset.by_text.qrels
  parts = []
  for option, most in _NUM_QUERIES.items():
    split = config.data[option]
    if split:
      rows = qrels_of[split].queries()
      order = np.argsort(hashing.hashes(config.seed, _PROBE, 0, rows),
                         kind='stable')
      rows = np.sort(rows[order[:most]])
      known = qrels_of[split].padded_known(rows)
      parts.append((rows, known, qrels_of[split].padded_positives(rows)[:, 0]))
  width = max(known.shape[1] for _, known, _ in parts)
  rows, known, positives = zip(*parts)
  return (np.concatenate(rows), np.concatenate([
      np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1)
      for part in known]), np.concatenate(positives))


def _right(corpus, queries, positives, group, batch_size=1024):
  """Returns forgetting.are_right of a group, in batches of queries."""
  parts = [slice(start, start + batch_size)
           for start in range(0, len(queries), batch_size)]
  return np.concatenate([forgetting.are_right(
      queries[part], corpus.take(positives[part]), corpus.take(group[part]))
                         for part in parts])


def _path(workdir, step):
  return os.path.join(workdir, _FOLDER, f'{step}.npz')


def _write(workdir, one):
  with files.replacing_binary(_path(workdir, one.step)) as file:
    np.savez_compressed(file, **one._asdict())


def _read(workdir, step):
  with np.load(_path(workdir, step)) as saved:
    return forgetting.Look(**{
        name: saved[name] if name != 'step' else int(saved[name])
        for name in forgetting.Look._fields})
