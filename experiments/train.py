"""Trains a dual encoder by any method of the design space, and evaluates it.

  python -m experiments.train --config=configs/quickstart.py --workdir=runs/q
  python -m experiments.train --config=configs/stale.py --workdir=runs/stale \
      --config.sampler.num_negatives=4

The same command resumes an interrupted run. A finished one leaves in WORKDIR:
config.json, results.json (measures, baselines, cost), metrics.jsonl,
tensorboard/, checkpoints/ and one TREC run file per evaluated split.
"""

import functools
import json
import os
import shlex
import sys
import time

from absl import app
from absl import flags
import jax
from ml_collections import config_flags
import numpy as np
import rich.console

from experiments import evaluate
from experiments import process
from experiments import saved
from retrieval_jax import factory
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.evaluation import bm25
from retrieval_jax.evaluation import diagnostics
from retrieval_jax.evaluation import report
from retrieval_jax.evaluation import trec
from retrieval_jax.training import checkpoint
from retrieval_jax.training import hooks
from retrieval_jax.training import loop
from retrieval_jax.training import meter as meters
from retrieval_jax.training import metric_writer
from retrieval_jax.training import signals

# Sections that may change when a run is resumed: none of them changes the
# parameters that come out, but for the order of sums. `num_steps` may not: the
# schedule depends on it.
MAY_CHANGE = ('log', 'checkpoint', 'profile', 'diagnostics', 'evaluation',
              'data.cache', 'data.path', 'data.tokens_on_device',
              'encoding.batch_tokens', 'sharding')


def run(config, workdir, *, num_devices=None, command=None):
  """Trains, or resumes training, by `config` and evaluates at the end.

  Args:
    config: ConfigDict as configs/base.py makes it.
    workdir: folder of the run; made if absent.
    num_devices: devices to use; all by default.
    command: what to write down as the command of the run.

  Returns:
    The content of results.json; None if the run was stopped by a signal.
  """
  meter = meters.Meter()
  os.makedirs(workdir, exist_ok=True)
  resolved = config.to_dict()
  with checkpoint.Checkpoints(os.path.join(workdir, 'checkpoints'),
                              keep=config.checkpoint.keep) as checkpoints:
    resumed = checkpoints.latest_step()
    if resumed is not None:
      meta = checkpoints.restore_meta(resumed)
      checkpoint.check_same_config(
          meta['config'], resolved, ignore=(*MAY_CHANGE, 'data_fingerprint'))
      if resumed == config.num_steps and report.is_finished(workdir):
        results = report.read_results(workdir)
        # Other options of evaluation: no steps are left, but measures are.
        if results['config']['evaluation'] == json.loads(
            json.dumps(resolved['evaluation'])):
          say(f'{workdir} is finished; here is what it found.')
          return results
    say('Preparing data, tokens and model; later runs find them ready.')
    with meter.phase('prepare'):
      experiment = factory.build(config, num_devices=num_devices)
    # Data may move to another path, but must not become other data.
    saved_config = {**resolved, 'data_fingerprint':
                    experiment.dataset.fingerprint}
    if resumed is not None:
      checkpoint.check_same_config(
          meta['config'], saved_config, ignore=MAY_CHANGE)
    trec.write_text(os.path.join(workdir, 'config.json'),
                    json.dumps(resolved, indent=2) + '\n')
    say(f'{experiment.dataset.name}: {len(experiment.dataset.corpus_ids):,} '
        f'targets; {experiment.method}')

    cost = Cost(experiment, meter)
    train_step, schedule, state, baselines = start_state(
        experiment, checkpoints, resumed, cost, workdir)
    if resumed is not None:
      meter.load_state_dict(meta['meter'])
      say(f'Resumed at step {resumed} of {config.num_steps}.')
    start_step = resumed or 0
    meter.table_bytes = (0 if experiment.method.memory == 'none'
                         else meters.num_bytes(state.table))

    writer = metric_writer.MetricWriter(
        workdir, resume_step=resumed, tensorboard=config.log.tensorboard)
    with signals.StopSignal() as stop:
      state = loop.train(
          state, device_batches(experiment, start_step),
          make_step(experiment, train_step, cost),
          make_hooks(experiment, train_step, checkpoints, cost, schedule,
                     saved_config, workdir),
          start_step=start_step, num_steps=config.num_steps, meter=meter,
          writer=writer, stop=stop)
    if int(state.step) < config.num_steps:
      say(f'Stopped after step {int(state.step)} of {config.num_steps}; the '
          'same command goes on from there.')
      writer.close()
      return None

    say('Evaluating on the whole corpus.')
    with meter.phase('evaluate'):
      measures = evaluate.evaluate_params(
          experiment, state.params, state.table.embeddings,
          evaluate.splits(config), workdir=workdir)
    writer.write(config.num_steps, {
        f'{split}/{name}': value for split, of_split in measures.items()
        for name, value in of_split.items()})
    writer.close()
  results = {
      'measures': measures, **baselines, 'meter': meter.as_dict(),
      'steps': config.num_steps, 'seed': config.seed,
      'hardware': hardware(experiment.mesh), 'command': command or '',
      'config': resolved, 'method': repr(experiment.method)}
  report.write_results(workdir, results)
  return results


class Cost:
  """Tells the meter what encoding costs; FLOPs are at mean text length."""

  def __init__(self, experiment, meter):
    """Takes text lengths from the experiment's token stores."""
    self._meter, config = meter, experiment.config
    flops = lambda store: experiment.model.flops(float(np.mean(store.lengths)))
    self._target_flops = flops(experiment.target_tokens)
    self._query_flops = flops(experiment.query_tokens)
    # Forward and backward are three passes; gradient caching adds a forward.
    self._passes = 4 if config.encoding.chunk_size else 3
    self._targets = 0
    if experiment.method.targets.source == 'encoder':
      self._targets = config.batch_size * (
          1 + experiment.method.sampler.num_negatives
          + experiment.method.num_candidates)
    self._queries = config.batch_size

  @property
  def phase(self):
    """The meter's `phase`."""
    return self._meter.phase

  def step(self, num_probes):
    """Counts one training step that re-encodes `num_probes` rows on top."""
    self._meter.count_step(
        targets=self._targets, queries=self._queries,
        target_flops=self._passes * self._target_flops,
        query_flops=self._passes * self._query_flops)
    self.reembedding(num_probes)

  def reembedding(self, num_targets):
    """Counts targets encoded for the memory alone."""
    self._meter.count_reembedding(
        targets=num_targets, target_flops=self._target_flops)


def say(text):
  """Prints a line of progress; the first process speaks for all."""
  if not jax.process_index():
    print(text, file=sys.stderr, flush=True)


def start_state(experiment, checkpoints, resumed, cost, workdir):
  """Returns (TrainStep, schedule, state, baselines) to start or go on from.

  A fresh run embeds targets with the initial parameters: as many as the memory
  begins with, and all of them for the measures of the untrained encoder.
  """
  config = experiment.config
  train_step, schedule = experiment.make_step()
  if resumed is not None:
    state, _ = checkpoints.restore(
        saved.abstract_state(experiment, train_step), resumed)
    return train_step, schedule, state, saved.read_baselines(workdir)
  ids, targets, baselines = experiment.first_ids(), None, {}
  if len(ids):
    say(f'Embedding {len(ids):,} targets for the memory.')
    with cost.phase('refresh'):
      targets = experiment.embed_targets(experiment.params, ids)
    cost.reembedding(len(ids))
  whole = targets if experiment.method.memory == 'corpus' else None
  if config.evaluation.baselines and evaluate.splits(config):
    say('Measuring BM25 and the untrained encoder.')
    with cost.phase('evaluate'):
      baselines = {
          'bm25': evaluate_bm25(experiment),
          'untrained': evaluate.evaluate_params(
              experiment, experiment.params, None, evaluate.splits(config),
              targets=whole)}
  trec.write_text(os.path.join(workdir, 'baselines.json'),
                  json.dumps(baselines, indent=2) + '\n')
  state = train_step.init_state(
      experiment.params, experiment.make_table(targets))
  return train_step, schedule, state, baselines


def evaluate_bm25(experiment):
  """Returns BM25's measures by split."""
  config, dataset = experiment.config, experiment.dataset
  splits = evaluate.splits(config)
  rows = np.concatenate([dataset.qrels[split].queries() for split in splits])
  texts = [dataset.query_texts[row] for row in rows]
  found, scores = bm25.bm25_run(
      dataset.corpus_texts, texts,
      config.evaluation.depth + config.evaluation.drop_self_matches)
  return evaluate.measure_by_split(experiment, splits, rows, found, scores)


def device_batches(experiment, start_step):
  """Yields batches of `start_step` and on, sharded over the mesh."""
  for batch in experiment.make_batches().iterate(start_step):
    yield sharding.put_batch(batch, experiment.mesh)


def make_step(experiment, train_step, cost):
  """Returns step_fn(state, batch) -> (state, metrics) for the loop."""
  gather = experiment.make_gather()

  def step(state, batch):
    with cost.phase('propose') as hold:
      proposal, probe_rows, negative_ids, probe_ids = hold(
          train_step.propose(state, batch))
    cost.step(probe_ids.shape[0])
    with cost.phase('gather') as hold:
      negatives, probes = hold((gather(negative_ids), gather(probe_ids)))
    with cost.phase('update') as hold:
      return hold(train_step.update(
          state, batch, proposal, probe_rows, negatives, probes))

  return step


def make_hooks(experiment, train_step, checkpoints, cost, schedule,
               saved_config, workdir):
  """Returns the hooks of a run: re-encoding, measuring, logging, saving."""
  config, method = experiment.config, experiment.method

  def reencode(state):
    cost.reembedding(len(experiment.target_tokens))
    table = experiment.make_table(
        experiment.embed_targets(state.params), step=int(state.step))
    return train_step.refreshed(state, table)

  def evaluate_dev(state):
    measures = evaluate.evaluate_params(
        experiment, state.params, state.table.embeddings,
        [config.data.dev_split])
    return {f'{split}/{name}': value for split, of_split in measures.items()
            for name, value in of_split.items()}

  chosen = [hooks.LogHook(config.log.every, schedule)]
  if method.refresh.reencode_every:
    chosen.append(hooks.ReencodeHook(reencode, method.refresh.reencode_every))
  if config.evaluation.every:
    chosen.append(EvaluateHook(evaluate_dev, config.evaluation.every))
  if config.diagnostics.every:
    chosen.append(hooks.DiagnosticsHook(
        functools.partial(diagnose, experiment), config.diagnostics.every))
  chosen.append(hooks.ProgressHook(config.log.every))
  chosen.append(hooks.CheckpointHook(
      checkpoints, config.checkpoint.every, saved_config))
  if config.profile.num_steps:
    chosen.append(hooks.ProfileHook(
        os.path.join(workdir, 'profile'), config.profile.start,
        config.profile.num_steps))
  return chosen


class EvaluateHook(hooks.EvaluateHook):
  """Dev evaluation on its period only: the end has its own."""
  at_finish = False


def diagnose(experiment, state):
  """Returns how the memory approximates brute force on dev queries.

  The probe batch is the same at every look: the first queries of the dev
  split. Encodes the whole corpus; not counted as training cost.
  """
  found = against_brute_force(
      experiment, state,
      experiment.targets_of(state.params, state.table.embeddings),
      functools.partial(experiment.method.corrector.apply, state.corrector))
  return {f'diagnostics/{name}': value for name, value in found.items()}


def against_brute_force(experiment, state, fresh, correct):
  """Returns `diagnostics.approximation` of the memory seen through `correct`.

  Args:
    experiment: factory.Experiment.
    state: TrainState.
    fresh: [N, D] float32, what the corpus is searched by now.
    correct: maps slices of the table to present embeddings, as types.View.
  """
  config = experiment.config
  qrels = experiment.dataset.qrels[config.data.dev_split]
  rows = qrels.queries()[:config.diagnostics.num_queries]
  return diagnostics.approximation(
      experiment.embed_queries(state.params, rows), fresh,
      types.View(table=state.table, correct=correct,
                 scale=experiment.model.scale_of(state.params)),
      known_positives=qrels.padded_known(rows),
      positive_ids=np.array(
          [qrels.positives(row)[0] for row in rows], np.int32),
      mesh=experiment.mesh)


def hardware(mesh):
  """Returns what the run ran on, for results.json."""
  devices = mesh.devices.reshape(-1)
  return {'devices': len(devices), 'kind': devices[0].device_kind,
          'platform': devices[0].platform, 'cores': os.cpu_count(),
          'processes': jax.process_count(), 'jax': jax.__version__}


def print_results(results, workdir, seconds):
  """Prints the table of measures, the cost, and what to do next."""
  console = rich.console.Console(width=88)
  # The last split is the test split, where there is one.
  for split in list(results['measures'])[-1:]:
    console.print(report.results_table(results, split))
  console.print(report.meter_table(results))
  console.print(
      f'Done in {seconds:.0f} s. The run is in {workdir}: results.json, '
      'SPLIT.run (TREC), metrics.jsonl, tensorboard/, checkpoints/.\n'
      'Next: python -m experiments.search '
      f'--workdir={workdir} --query="..."\n'
      '      other methods: --config=configs/{in_batch,stale,refresh}.py\n'
      '      your data: --config.data.source=beir --config.data.path=DIR',
      highlight=False, markup=False, soft_wrap=True)


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  config_flags.DEFINE_config_file(
      'config', None, 'Config file, e.g. configs/stale.py:tiny.',
      flag_values=values)
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values)
  flags.DEFINE_integer(
      'num_devices', None, 'Devices to use; all by default.', lower_bound=1,
      flag_values=values)
  flags.mark_flags_as_required(['config', 'workdir'], flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  started = time.monotonic()
  command = 'python -m experiments.train ' + shlex.join(sys.argv[1:])
  with process.script():
    results = run(values.config, values.workdir,
                  num_devices=values.num_devices, command=command)
  if results is None:
    sys.exit(130)  # as after Ctrl-C, so that `train && next` ends here
  if not jax.process_index():
    print_results(results, values.workdir, time.monotonic() - started)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main, flags_parser=process.parse_flags)
