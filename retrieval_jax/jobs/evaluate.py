"""Full-corpus evaluation: of a run, of parameters, of an adapted index."""

from collections.abc import Mapping, Sequence
import functools
import os
from typing import Any, NamedTuple

from ml_collections import config_dict
import numpy as np

from retrieval_jax import factory
from retrieval_jax import matryoshka
from retrieval_jax import origins
from retrieval_jax import sharding
from retrieval_jax import trained
from retrieval_jax import types
from retrieval_jax.adapters import store
from retrieval_jax.data import embeddings as embeddings_lib
from retrieval_jax.evaluation import bm25
from retrieval_jax.evaluation import measures as measures_lib
from retrieval_jax.evaluation import report
from retrieval_jax.evaluation import retrieval
from retrieval_jax.evaluation import runs
from retrieval_jax.evaluation import trec

Measures = dict[str, dict[str, float]]
"""{split: {measure: value}}."""


def splits(config: config_dict.ConfigDict) -> list[str]:
  """Returns the splits evaluated at the end of a run: dev and test, if any."""
  return [split for split in (config.data.dev_split, config.data.test_split)
          if split]


def run(workdir: str, *, names: Sequence[str] | None = None,
        measures: Sequence[str] = measures_lib.MEASURES,
        dims: Sequence[int] | None = None) -> tuple[Measures, int]:
  """Evaluates a run's last checkpoint and brings its results.json up to date.

  Args:
    workdir: folder of the run; SPLIT.run in TREC format goes there.
    names: splits to evaluate; None for those of the config.
    measures: names of ir-measures.
    dims: as of `of_params`.

  Returns:
    {split: {measure: value}}, and the step of the checkpoint.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint in `workdir`.
    ValueError: for splits or measures that do not exist, or dims that do not
      fit the embeddings.
  """
  retriever = trained.open(workdir)
  experiment = retriever.experiment
  if dims is not None:
    matryoshka.check_dims(dims, retriever.model.dim, '--dims')
  found = of_params(
      experiment, retriever.params, retriever.table_embeddings,
      _checked_splits(names, experiment), workdir=workdir, measures=measures,
      dims=dims)
  results = _results_so_far(experiment, workdir, retriever.step)
  for split, of_split in found.items():
    results['measures'].setdefault(split, {}).update(of_split)
  report.write_results(workdir, results)
  return found, retriever.step


def of_params(experiment: factory.Experiment, params: types.Params,
              table_embeddings: Any, names: Sequence[str], *,
              targets: np.ndarray | None = None, workdir: str | None = None,
              measures: Sequence[str] = measures_lib.MEASURES,
              dims: Sequence[int] | None = None) -> Measures:
  """Returns {split: {measure: value}} of a full-corpus search.

  Measures of the first m dimensions are called MEASURE/m, as in 'RR@10/64'.

  Args:
    experiment: factory.Experiment.
    params: the model's parameters.
    table_embeddings: [M, D], of the run's table, see
      `Experiment.targets_of`.
    names: splits to evaluate.
    targets: [N, D] float32, embeddings of the corpus if there are any already.
    workdir: where to write SPLIT.run in TREC format; None writes nothing.
    measures: names of ir-measures.
    dims: prefixes to measure besides whole embeddings, normalised where the
      model normalises those; None for `evaluation.dims`.
  """
  config, dataset = experiment.config, experiment.dataset
  if not names:
    return {}
  if targets is None:
    targets = experiment.targets_of(params, table_embeddings)
  rows = np.concatenate([dataset.qrels[name].queries() for name in names])
  queries = experiment.embed_queries(params, rows)

  def measure(queries, targets, folder):
    found = retrieval.search_corpus(
        queries, targets, query_ids=[dataset.query_ids[row] for row in rows],
        corpus_ids=dataset.corpus_ids, mesh=experiment.mesh,
        k=config.evaluation.depth + config.evaluation.drop_self_matches,
        chunk_rows=config.memory.chunk_rows)
    return _measure(dataset, names, found, measures,
                    config.evaluation.drop_self_matches, folder)

  by_split = measure(queries, targets, workdir)
  for dim in config.evaluation.dims if dims is None else dims:
    cut = functools.partial(
        matryoshka.truncate, dim=dim, normalize=config.model.normalize)
    for name, of_split in measure(cut(queries), cut(targets), None).items():
      by_split[name] |= {
          f'{key}/{dim}': value for key, value in of_split.items()}
  return by_split


def of_bm25(experiment: factory.Experiment) -> Measures:
  """Returns BM25's measures by split."""
  config, dataset = experiment.config, experiment.dataset
  names = splits(config)
  rows = np.concatenate([dataset.qrels[split].queries() for split in names])
  texts = [dataset.query_texts[row] for row in rows]
  found, scores = bm25.bm25_run(
      dataset.corpus_texts, texts,
      config.evaluation.depth + config.evaluation.drop_self_matches)
  return _measure(
      dataset, names, runs.from_rows(
          [dataset.query_ids[row] for row in rows], found, scores,
          dataset.corpus_ids), measures_lib.MEASURES,
      config.evaluation.drop_self_matches)


def of_index(folder: str, names: Sequence[str] | None, measures: Sequence[str],
             *, workdir: str | None = None,
             config: config_dict.ConfigDict | None = None,
             embeddings: str | None = None) -> Measures:
  """Returns {split: {measure: value}} of an adapted index; writes SPLIT.run.

  Args:
    folder: of the index; the run files go there.
    names: splits to evaluate; None for all of a folder of embeddings, or for
      those of the config.
    measures: names of ir-measures.
    workdir: of the run whose encoder embeds the queries; or
    config: ConfigDict whose initial encoder does; or
    embeddings: folder of their embeddings and judgements.
  """
  if embeddings:
    if workdir or config:
      raise ValueError(
          'Expected one of --workdir, --config and --embeddings to embed the '
          'queries, got several.')
    mesh, drop = sharding.make_mesh(), False
    queries = embeddings_lib.read(embeddings, 'queries')
    index, state, corpus_ids = store.load(folder, mesh, 4096)
    origins.check_same(
        store.origin(folder), embeddings_lib.read_origin(embeddings),
        f'--index={folder}', f'--embeddings={embeddings}')
    qrels_folder = os.path.join(embeddings, 'qrels')
    names = names or embeddings_lib.read_splits(qrels_folder)
    dataset: Any = _Judged(corpus_ids, queries.ids, {
        name: embeddings_lib.read_qrels(
            qrels_folder, name, queries.ids, corpus_ids) for name in names})
    embed = lambda rows: np.asarray(queries.vectors[rows], np.float32)
  else:
    retriever = trained.open_either(workdir, config)
    experiment, dataset = retriever.experiment, retriever.dataset
    index, state = retriever.index(folder)
    names = _checked_splits(names, experiment)
    drop = experiment.config.evaluation.drop_self_matches
    embed = lambda rows: experiment.embed_queries(retriever.params, rows)
  rows = np.concatenate([dataset.qrels[name].queries() for name in names])
  found = retrieval.search_index(
      index, state, embed(rows), query_ids=[dataset.query_ids[i] for i in rows],
      corpus_ids=dataset.corpus_ids, k=retrieval.NUM_RESULTS + drop)
  return _measure(dataset, names, found, measures, drop, folder)


def flat(measures: Measures) -> dict[str, float]:
  """Returns {'SPLIT/MEASURE': value} of what evaluation returns."""
  return {f'{split}/{name}': value for split, of_split in measures.items()
          for name, value in of_split.items()}


class _Judged(NamedTuple):
  """The part of a dataset that `_measure` reads."""
  corpus_ids: Sequence[str]
  query_ids: Sequence[str]
  qrels: Mapping[str, Any]


def _checked_splits(names: Sequence[str] | None,
                    experiment: factory.Experiment) -> Sequence[str]:
  names = names or splits(experiment.config)
  unknown = set(names) - set(experiment.dataset.qrels)
  if unknown:
    raise ValueError(
        f'--splits names {sorted(unknown)}; {experiment.dataset.name} has '
        f'{sorted(experiment.dataset.qrels)}.')
  return names


def _measure(dataset, names, found, measures, drop_self_matches, folder=None):
  """Cuts a run (queries in the order of the splits) and measures it."""
  by_split, start = {}, 0
  for name in names:
    qrels = dataset.qrels[name]
    stop = start + len(qrels.queries())
    part = runs.Run(found.query_ids[start:stop], found.ids[start:stop],
                    found.scores[start:stop])
    start = stop
    relevant = qrels.grades > 0  # below 0: related, neither right nor wrong
    by_split[name] = measures_lib.evaluate(
        part, measures_lib.qrels_from_rows(
            qrels.query_rows[relevant], qrels.corpus_rows[relevant],
            qrels.grades[relevant], dataset.query_ids, dataset.corpus_ids),
        measures, drop_self_matches=drop_self_matches)
    if folder:
      trec.write_run(os.path.join(folder, f'{name}.run'), part)
  assert start == len(found.query_ids)
  return by_split


def _results_so_far(experiment: factory.Experiment, workdir: str, step: int
                    ) -> dict[str, Any]:
  """Returns results.json as it is, or what it would be for a run at `step`.

  Args:
    experiment: factory.Experiment.
    workdir: folder of the run.
    step: that of the checkpoint; results of another step or of other data are
      out of date.
  """
  if os.path.exists(os.path.join(workdir, report.RESULTS_FILE)):
    results = report.read_results(workdir)
    if ('measures' in results and results.get('steps') == step
        and results.get('data_fingerprint') == experiment.dataset.fingerprint):
      return results
  return {
      'measures': {}, **trained.read_baselines(workdir),
      'meter': trained.read_meter(workdir, step).as_dict(), 'steps': step,
      'seed': experiment.config.seed,
      'data_fingerprint': experiment.dataset.fingerprint,
      'config': experiment.config.to_dict(), 'method': repr(experiment.method)}
