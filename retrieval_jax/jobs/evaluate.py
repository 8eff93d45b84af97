"""Full-corpus evaluation: of runs, encoders, parameters, adapted indexes."""

from collections.abc import Sequence
import contextlib
import functools
import os
from typing import Any

from ml_collections import config_dict
import numpy as np

from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax import matryoshka
from retrieval_jax import origins
from retrieval_jax import processes
from retrieval_jax import quantisation
from retrieval_jax import sharding
from retrieval_jax import trained
from retrieval_jax import types
from retrieval_jax.adapters import store
from retrieval_jax.data import dataset as datasets
from retrieval_jax.data import embeddings as embeddings_lib
from retrieval_jax.data import progress
from retrieval_jax.data.readers import beir
from retrieval_jax.evaluation import bm25
from retrieval_jax.evaluation import measures as measures_lib
from retrieval_jax.evaluation import predictions
from retrieval_jax.evaluation import report
from retrieval_jax.evaluation import retrieval
from retrieval_jax.evaluation import runs
from retrieval_jax.evaluation import trec
from retrieval_jax.factory import mixtures
from retrieval_jax.indexes import exact

Measures = dict[str, dict[str, float]]
"""{split: {measure: value}}."""
_READ = 128  # questions read at a time, which bounds memory


def splits(config: config_dict.ConfigDict) -> list[str]:
  """Returns the splits evaluated at the end of a run: dev and test, if any."""
  return [split for split in (config.data.dev_split, config.data.test_split)
          if split]


def run(workdir: str, *, names: Sequence[str] | None = None,
        measures: Sequence[str] = measures_lib.ALL,
        dims: Sequence[int] | None = None,
        precisions: Sequence[str] | None = None,
        rescore_multiplier: int | None = None) -> tuple[Measures, int]:
  """Evaluates a run's checkpoint and brings its results.json up to date.

  It is the one that `trained.open` opens: the best where the run keeps it, else
  the last.

  Args:
    workdir: folder of the run; SPLIT.run in TREC format goes there, and where
      there is a reader SPLIT.predictions.jsonl, see `predictions`.
    names: splits to evaluate; None for those of the config.
    measures: names of ir-measures, and Answer@k of splits with answers.
    dims: as of `of_params`.
    precisions: likewise.
    rescore_multiplier: likewise.

  Returns:
    {split: {measure: value}}, and the step of the checkpoint.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint in `workdir`.
    ValueError: for splits, measures or precisions that do not exist, or dims
      that do not fit the embeddings.
  """
  retriever = trained.open(workdir)
  experiment = retriever.experiment
  _check_forms(dims, precisions, rescore_multiplier, retriever.model.dim)
  found = of_params(
      experiment, retriever.params, retriever.table_embeddings,
      _checked_splits(names, experiment), workdir=workdir, measures=measures,
      dims=dims, precisions=precisions, rescore_multiplier=rescore_multiplier)
  results = _results_so_far(experiment, workdir, retriever.step)
  for split, of_split in found.items():
    results['measures'].setdefault(split, {}).update(of_split)
  if processes.is_first():
    report.write_results(workdir, results)
  return found, retriever.step


def of_config(config: config_dict.ConfigDict, *, folder: str | None = None,
              names: Sequence[str] | None = None,
              measures: Sequence[str] = measures_lib.ALL,
              dims: Sequence[int] | None = None,
              precisions: Sequence[str] | None = None,
              rescore_multiplier: int | None = None, out: str | None = None,
              command: str | None = None) -> dict[str, Any]:
  """Evaluates the encoder that a config starts from, and BM25, untrained.

  The data need only have the splits that are evaluated.

  Args:
    config: ConfigDict; with evaluation.baselines=False, BM25 is left out.
    folder: a data set in BEIR layout, or a folder of several, in place of the
      data of the config.
    names: splits to evaluate; None for the test split of the config, or its dev
      split where that is empty.
    measures: names of ir-measures, and Answer@k of splits with answers.
    dims: as of `of_params`.
    precisions: likewise.
    rescore_multiplier: likewise.
    out: folder to write, whole or not at all; None writes nothing. It gets
      results.json, SPLIT.run of the encoder and bm25/SPLIT.run; the runs in a
      folder per data set where there are several.
    command: what to write down as the command of the evaluation.

  Returns:
    The content of results.json: 'measures' of the encoder and of 'bm25' by
    split, the sizes of the data, and what was dropped. Of several data sets,
    'sets' holds these of each, and the measures are their means, in which each
    set counts the same.

  Raises:
    ValueError: if `out` exists, or for splits, measures, dims or precisions
      that do not exist.
    DataError: if there is no data set in `folder`.
  """
  if out is not None and os.path.exists(out):
    raise ValueError(f'--out={out} exists; name a new folder or remove it.')
  names = names or splits(config)[-1:]
  if not names:
    raise ValueError(
        'Expected a split to evaluate, got none; name it by --splits or by '
        '--config.data.test_split.')
  config = config.copy_and_resolve_references()
  if folder is not None:
    with config.unlocked():
      config.data.source, config.data.path = 'beir', folder
      config.data.corpus = ''
      mixtures.leave_out(config)
  with contextlib.ExitStack() as stack:
    written = out and stack.enter_context(
        processes.new_folder(os.path.abspath(out)))
    measure = functools.partial(
        _of_encoder, names=names, measures=measures, dims=dims,
        precisions=precisions, rescore_multiplier=rescore_multiplier)
    if folder is not None and not beir.is_data_set(folder):
      sets = {}
      for name, path in beir.data_sets(folder).items():
        with config.unlocked():
          config.data.path = path
        sets[name] = measure(config, written and os.path.join(written, name))
      with config.unlocked():
        config.data.path = folder
      found = {kind: _means([of_set[kind] for of_set in sets.values()])
               for kind in ('measures', 'bm25')} | {'sets': sets}
    else:
      found = measure(config, written)
    results = {**found, 'steps': 0, 'seed': config.seed,
               'command': command or '', 'config': config.to_dict()}
    if written:
      report.write_results(written, results)
  return results


def _of_encoder(config, written, *, names, measures, dims, precisions,
                rescore_multiplier):
  """Returns what `of_config` returns of one data set."""
  retriever = trained.from_config(config)
  experiment, dataset = retriever.experiment, retriever.dataset
  _check_forms(dims, precisions, rescore_multiplier, retriever.model.dim)
  _checked_splits(names, experiment)
  bm25_of = {}
  if config.evaluation.baselines:
    bm25_of = of_bm25(experiment, names, measures=measures,
                      workdir=written and os.path.join(written, 'bm25'))
  return {
      'measures': of_params(
          experiment, retriever.params, None, names, workdir=written,
          measures=measures, dims=dims, precisions=precisions,
          rescore_multiplier=rescore_multiplier),
      'bm25': bm25_of, 'data': dataset.name, 'dropped': dataset.dropped,
      'num_targets': len(dataset.corpus_ids),
      'num_queries': {name: len(dataset.queries_of(name))
                      for name in names}}


def _means(of_sets: Sequence[Measures]) -> Measures:
  """Returns the means over data sets of the measures that all of them have."""
  return {split: _mean([of_set[split] for of_set in of_sets])
          for split in of_sets[0]}


def _mean(of_sets: Sequence[dict[str, float]]) -> dict[str, float]:
  return {name: float(np.mean([of_set[name] for of_set in of_sets]))
          for name in of_sets[0]
          if all(name in of_set for of_set in of_sets)}


def of_params(experiment: factory.Experiment, params: types.Params,
              table_embeddings: Any, names: Sequence[str], *,
              targets: Any = None, workdir: str | None = None,
              measures: Sequence[str] = measures_lib.ALL,
              dims: Sequence[int] | None = None,
              precisions: Sequence[str] | None = None,
              rescore_multiplier: int | None = None) -> Measures:
  """Returns {split: {measure: value}} of a full-corpus search.

  Measures of the first m dimensions are called MEASURE/m, as in 'RR@10/64',
  those of quantised targets MEASURE/NAME, as in 'RR@10/int8', with the names of
  `quantisation.variants`; of both 'RR@10/64/int8': the prefix is taken, and
  normalised, first. Of several data sets those of each are called SET/MEASURE,
  and MEASURE is their mean, in which each set counts the same; where negatives
  are of a query's own set, so is the corpus that is searched for it.

  Args:
    experiment: factory.Experiment.
    params: the model's parameters.
    table_embeddings: [M, D], of the run's table, see
      `Experiment.targets_of`.
    names: splits to evaluate.
    targets: [N, D] float32 numpy, embeddings of the corpus if there are any
      already.
    workdir: where to write SPLIT.run in TREC format; None writes nothing.
    measures: names of ir-measures, and Answer@k of splits with answers.
    dims: prefixes to measure besides whole embeddings, normalised where the
      model normalises those; None for `evaluation.dims`.
    precisions: of quantisation.PRECISIONS, in which targets are measured
      besides floats; None for `evaluation.precisions`.
    rescore_multiplier: as of `retrieval.search_quantised`; None for
      `evaluation.rescore_multiplier`.
  """
  config, dataset = experiment.config, experiment.dataset
  if not names:
    return {}
  rows = np.concatenate([dataset.queries_of(name) for name in names])
  queries = experiment.embed_queries(params, rows)

  if dims is None:
    dims = config.evaluation.dims
  if precisions is None:
    precisions = config.evaluation.precisions
  if rescore_multiplier is None:
    rescore_multiplier = config.evaluation.rescore_multiplier
  if targets is None:
    # Others than the whole of them, in floats, are made on the host.
    alone = not (dims or precisions or experiment.own_sets)
    if alone and experiment.method.targets.source == 'encoder':
      targets = experiment.corpus_table(params)
    else:
      targets = experiment.targets_of(params, table_embeddings)
  measure = functools.partial(
      _measure, dataset, names, measures=measures,
      depth=config.evaluation.depth,
      drop_self_matches=config.evaluation.drop_self_matches)

  def searched(search, queries, targets, *options, **more):
    of_part = lambda part: (
        targets if isinstance(targets, types.TargetTable)
        else targets[part.start:part.stop])
    return _searched(experiment, rows, lambda places, part: search(
        queries[places], of_part(part), *options,
        query_ids=[dataset.query_ids[row] for row in rows[places]],
        corpus_ids=data.Part(dataset.corpus_ids, part), mesh=experiment.mesh,
        k=config.evaluation.depth + config.evaluation.drop_self_matches,
        chunk_rows=config.memory.chunk_rows, **more))

  read = None
  if experiment.reader is not None:
    read = functools.partial(_read, experiment, params)
  by_split = measure(
      searched(functools.partial(
          _exactly, scan_dtype=config.evaluation.scan_dtype), queries, targets)[
              ''], folder=workdir, read=read)

  def add(form, found):
    for name, of_split in measure(found).items():
      by_split[name] |= {
          f'{key}/{form}': value for key, value in of_split.items()}

  for dim in (None, *dims):
    of_queries, of_targets, prefix = queries, targets, ''
    if dim is not None:
      of_queries, of_targets = (
          matryoshka.truncate(vectors, dim, config.model.normalize)
          for vectors in (queries, targets))
      add(dim, searched(_exactly, of_queries, of_targets)[''])
      prefix = f'{dim}/'
    for form, found in searched(
        retrieval.search_quantised, of_queries, of_targets, precisions,
        rescore_multiplier=rescore_multiplier).items():
      add(prefix + form, found)
  return by_split


def of_bm25(experiment: factory.Experiment,
            names: Sequence[str] | None = None, *, workdir: str | None = None,
            measures: Sequence[str] = measures_lib.ALL) -> Measures:
  """Returns BM25's measures by split.

  Args:
    experiment: of which the config and the data set are read.
    names: splits to evaluate; None for those of the config.
    workdir: where to write SPLIT.run in TREC format; None writes nothing.
    measures: names of ir-measures, and Answer@k of splits with answers.
  """
  config, dataset = experiment.config, experiment.dataset
  names = names or splits(config)
  rows = np.concatenate([dataset.queries_of(split) for split in names])

  def search(places, part):
    found, scores = bm25.bm25_run(
        data.Part(dataset.corpus_texts, part),
        [dataset.query_texts[row] for row in rows[places]],
        config.evaluation.depth + config.evaluation.drop_self_matches,
        progress=None if processes.is_first() else False)
    yield '', runs.from_rows(
        [dataset.query_ids[row] for row in rows[places]], found, scores,
        data.Part(dataset.corpus_ids, part))

  return _measure(
      dataset, names, _searched(experiment, rows, search)[''],
      measures=measures, depth=config.evaluation.depth,
      drop_self_matches=config.evaluation.drop_self_matches, folder=workdir)


def of_index(folder: str, names: Sequence[str] | None, measures: Sequence[str],
             *, workdir: str | None = None,
             config: config_dict.ConfigDict | None = None,
             embeddings: str | None = None, lenient: bool = False) -> Measures:
  """Returns {split: {measure: value}} of an adapted index; writes SPLIT.run.

  Args:
    folder: of the index; the run files go there.
    names: splits to evaluate; None for all of a folder of embeddings, or for
      those of the config.
    measures: names of ir-measures, and Answer@k of splits with answers.
    workdir: of the run whose encoder embeds the queries; or
    config: ConfigDict whose initial encoder does; or
    embeddings: folder of their embeddings and judgements.
    lenient: whether what is wrong with the judgements of `embeddings` is
      dropped, with a warning that counts it; else it is refused.
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
    dataset: datasets.Collection = datasets.Collection(
        name=embeddings, corpus_ids=corpus_ids, query_ids=queries.ids, qrels={
            name: embeddings_lib.read_qrels(
                qrels_folder, name, queries.ids, corpus_ids,
                dropped={} if lenient else None) for name in names})
    embed = lambda rows: np.asarray(queries.vectors[rows], np.float32)
  else:
    retriever = trained.open_either(workdir, config)
    experiment, dataset = retriever.experiment, retriever.dataset
    if experiment.own_sets is not None:
      raise ValueError(
          f'--index={folder} is over several sets, and '
          "--config.data.negatives='own' measures a query against its own; an "
          "index is measured with 'joint' only.")
    index, state = retriever.index(folder)
    names = _checked_splits(names, experiment)
    drop = experiment.config.evaluation.drop_self_matches
    embed = lambda rows: experiment.embed_queries(retriever.params, rows)
  rows = np.concatenate([dataset.queries_of(name) for name in names])
  found = retrieval.search_index(
      index, state, embed(rows), query_ids=[dataset.query_ids[i] for i in rows],
      corpus_ids=dataset.corpus_ids, k=retrieval.NUM_RESULTS + drop)
  return _measure(
      dataset, names, found, measures=measures, depth=retrieval.NUM_RESULTS,
      drop_self_matches=drop, folder=folder)


def flat(measures: Measures) -> dict[str, float]:
  """Returns {'SPLIT/MEASURE': value} of what evaluation returns."""
  return {f'{split}/{name}': value for split, of_split in measures.items()
          for name, value in of_split.items()}


def _check_forms(dims, precisions, rescore_multiplier, limit):
  """Raises ValueError for flags that do not fit; None is the config's."""
  matryoshka.check_dims(dims or (), limit, '--dims')
  quantisation.check(precisions or (), '--precisions')
  quantisation.check_multiplier(
      rescore_multiplier or 0, '--rescore_multiplier')


def _exactly(queries, targets, *, mesh, chunk_rows, scan_dtype='float32',
             **options):
  """Yields the run of an exact search as `search_quantised` does its own.

  Args:
    queries: [n, D].
    targets: [N, D], or the table of them.
    mesh: as of `retrieval.search_corpus`, as are chunk_rows and the rest.
    chunk_rows: see there.
    scan_dtype: as of `indexes.ExactIndex`.
    **options: see there.
  """
  index = exact.ExactIndex(mesh, chunk_rows, scan_dtype=scan_dtype)
  if isinstance(targets, types.TargetTable):
    yield '', retrieval.search_index(
        index, index.of_table(targets), queries, **options)
  else:
    yield '', retrieval.search_corpus(queries, targets, index=index, **options)


def _searched(experiment, rows, search):
  """Returns name -> run of queries, each over the corpus it is measured by.

  Args:
    experiment: of the data.
    rows: [n], of the queries.
    search: from places [m] among the queries and a range of corpus rows to
      (name, run) of each way to search those targets for these queries.
  """
  dataset, sets = experiment.dataset, experiment.own_sets
  places = np.arange(len(rows))
  if sets is None:
    return dict(search(places, range(len(dataset.corpus_ids))))
  of_set, found = sets.of_queries(rows), {}
  for i in np.unique(of_set):
    part = places[of_set == i]
    for name, run in search(part, sets.corpus(i)):
      found.setdefault(name, []).append((part, run))
  query_ids = [dataset.query_ids[row] for row in rows]
  return {name: runs.merge(query_ids, parts) for name, parts in found.items()}


def _by_set(dataset, measure):
  """Returns what `measure` finds: of one data set, or of each and the mean."""
  parts = dataset.parts
  if not parts:
    return measure(dataset)
  found = {name: measure(part) for name, part in parts.items()}
  return _mean(list(found.values())) | {
      f'{name}/{key}': value for name, of_set in found.items()
      for key, value in of_set.items()}


def _of_predicted(predicted, dataset, split, measures):
  if split not in dataset.answers:
    return {}
  return predictions.evaluate(predicted, dataset.answers_of(split), measures)


def _checked_splits(names: Sequence[str] | None,
                    experiment: factory.Experiment) -> Sequence[str]:
  names = names or splits(experiment.config)
  unknown = set(names) - set(experiment.dataset.qrels)
  if unknown:
    raise ValueError(
        f'--splits names {sorted(unknown)}; {experiment.dataset.name} has '
        f'{sorted(experiment.dataset.qrels)}.')
  return names


def _measure(dataset, names, found, *, measures, depth, drop_self_matches,
             folder=None, read=None):
  """Cuts a run (queries in the order of the splits) and measures it.

  What is written into `folder` is what is measured: at most `depth` results of
  a query, its self match not among them where it is dropped. `read` makes
  predictions of a part of the run.
  """
  of_reader = [name for name in measures
               if read and name in predictions.MEASURES]
  if not processes.is_first():
    folder = None  # which the first process writes
  by_split, start = {}, 0
  if drop_self_matches:
    found = runs.drop_self_matches(found)
  found = found.top(depth)
  for name in names:
    stop = start + len(dataset.queries_of(name))
    part = runs.Run(found.query_ids[start:stop], found.ids[start:stop],
                    found.scores[start:stop])
    start = stop
    reads = of_reader if name in dataset.answers else []
    by_split[name] = {}
    if not reads or len(reads) < len(measures):
      by_split[name] = _by_set(dataset, functools.partial(
          measures_lib.of_split, part, split=name, measures=measures))
    if reads:
      records = read(name, part)
      predicted = {record['id']: record['prediction'] for record in records}
      by_split[name] |= _by_set(dataset, functools.partial(
          _of_predicted, predicted, split=name, measures=reads))
      if folder:
        predictions.write(
            os.path.join(folder, f'{name}.predictions.jsonl'), records)
    if folder:
      trec.write_run(os.path.join(folder, f'{name}.run'), part)
  assert start == len(found.query_ids)
  return by_split


def _read(experiment, params, split, run):
  """Returns records, see `predictions`, of the questions of a split."""
  dataset, records = experiment.dataset, []
  rows = dataset.queries_of(split)
  run = run.top(experiment.config.evaluation.num_read)
  ids = runs.to_rows(run, dataset.corpus_ids)
  with progress.counter(f'reading {split}', total=len(rows), unit='questions',
                        show=processes.is_first()) as add:
    for start in range(0, len(rows), _READ):
      part = slice(start, start + _READ)
      readings = experiment.read(
          params, rows[part], ids[part], run.scores[part])
      for row, names, reading in zip(
          rows[part].tolist(), run.ids[part].tolist(), readings):
        records.append(predictions.record(
            dataset.query_ids[row], dataset.query_texts[row], names, reading))
      add(len(readings))
  return records


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
    if ('measures' in results and report.measured_step(results) == step
        and results.get('data_fingerprint') == experiment.dataset.fingerprint):
      return results
  return {
      'measures': {}, **trained.read_baselines(workdir),
      'meter': trained.read_meter(workdir, step).as_dict(), 'steps': step,
      'seed': experiment.config.seed,
      'data_fingerprint': experiment.dataset.fingerprint,
      'dropped': experiment.dataset.dropped,
      'config': experiment.config.to_dict(), 'method': repr(experiment.method)}
