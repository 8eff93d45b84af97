"""Evaluates a run's checkpoint against the whole corpus.

  python -m experiments.evaluate --workdir=runs/stale --splits=dev,test

Writes SPLIT.run (TREC) beside the run's files and prints the measures;
results.json is brought up to date, or made if the run has not finished.
"""

import os

from absl import app
from absl import flags
import numpy as np
import rich.console

from experiments import process
from experiments import saved
from retrieval_jax.evaluation import measures as measures_lib
from retrieval_jax.evaluation import report
from retrieval_jax.evaluation import retrieval
from retrieval_jax.evaluation import runs
from retrieval_jax.evaluation import trec


def splits(config):
  """Returns the splits evaluated at the end of a run: dev and test, if any."""
  return [split for split in (config.data.dev_split, config.data.test_split)
          if split]


def evaluate_params(experiment, params, rows, names, *, targets=None,
                    workdir=None, measures=measures_lib.MEASURES):
  """Returns {split: {measure: value}} of a full-corpus search.

  Args:
    experiment: factory.Experiment.
    params: the model's parameters.
    rows: [M, D], embeddings of the run's table, see `Experiment.targets_of`.
    names: splits to evaluate.
    targets: [N, D] float32, embeddings of the corpus if there are any already.
    workdir: where to write SPLIT.run in TREC format; None writes nothing.
    measures: names of ir-measures.
  """
  config, dataset = experiment.config, experiment.dataset
  if not names:
    return {}
  if targets is None:
    targets = experiment.targets_of(params, rows)
  queries = np.concatenate([dataset.qrels[name].queries() for name in names])
  found = retrieval.search_corpus(
      experiment.embed_queries(params, queries), targets,
      query_ids=[dataset.query_ids[row] for row in queries],
      corpus_ids=dataset.corpus_ids, mesh=experiment.mesh,
      k=config.evaluation.depth + config.evaluation.drop_self_matches,
      chunk_rows=config.memory.chunk_rows)
  return _measure(experiment, names, queries, found, workdir, measures)


def measure_by_split(experiment, names, rows, found, scores):
  """Returns {split: {measure: value}} of results given as corpus rows."""
  dataset = experiment.dataset
  return _measure(experiment, names, rows, runs.from_rows(
      [dataset.query_ids[row] for row in rows], found, scores,
      dataset.corpus_ids), None, measures_lib.MEASURES)


def _measure(experiment, names, rows, found, workdir, measures):
  """Cuts a run into splits (queries `rows` in split order) and measures it."""
  config, dataset = experiment.config, experiment.dataset
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
        measures,
        drop_self_matches=config.evaluation.drop_self_matches)
    if workdir:
      trec.write_run(os.path.join(workdir, f'{name}.run'), part)
  assert start == len(rows)
  return by_split


def results_so_far(experiment, workdir, step):
  """Returns results.json as it stands, or as a run that got to `step` has it.

  Args:
    experiment: factory.Experiment.
    workdir: folder of the run.
    step: that of the checkpoint; other results of the folder are out of date.
  """
  if os.path.exists(os.path.join(workdir, report.RESULTS_FILE)):
    results = report.read_results(workdir)
    if results['steps'] == step:
      return results
  return {
      'measures': {}, **saved.read_baselines(workdir),
      'meter': saved.read_meter(workdir, step).as_dict(), 'steps': step,
      'seed': experiment.config.seed, 'config': experiment.config.to_dict(),
      'method': repr(experiment.method)}


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values)
  flags.DEFINE_list(
      'splits', None, 'Splits to evaluate; those of the config by default.',
      flag_values=values)
  flags.DEFINE_list(
      'measures', list(measures_lib.MEASURES),
      'Measures in the spelling of ir-measures.', flag_values=values)
  flags.mark_flags_as_required(['workdir'], flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  workdir = values.workdir
  with process.script():
    experiment, params, rows, step = saved.load(workdir)
    names = values.splits or splits(experiment.config)
    unknown = set(names) - set(experiment.dataset.qrels)
    if unknown:
      raise ValueError(
          f'--splits names {sorted(unknown)}; {experiment.dataset.name} has '
          f'{sorted(experiment.dataset.qrels)}.')
    found = evaluate_params(
        experiment, params, rows, names, workdir=workdir,
        measures=values.measures)
    results = results_so_far(experiment, workdir, step)
    for split, of_split in found.items():
      results['measures'].setdefault(split, {}).update(of_split)
    report.write_results(workdir, results)
  console = rich.console.Console(width=88)
  for split, of_split in found.items():
    line = '  '.join(f'{name} {value:.4f}' for name, value in of_split.items())
    console.print(f'{split} at step {step}: {line}', soft_wrap=True,
                  highlight=False)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
