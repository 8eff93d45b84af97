"""Trains a dual encoder by any method of the design space, and evaluates it."""

from collections.abc import Callable, Generator, Mapping
import contextlib
import dataclasses
import functools
import glob
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
from ml_collections import config_dict
import numpy as np

from retrieval_jax import base_params
from retrieval_jax import factory
from retrieval_jax import files
from retrieval_jax import host_table
from retrieval_jax import processes
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import trained
from retrieval_jax import types
from retrieval_jax.evaluation import report
from retrieval_jax.factory import run_folder
from retrieval_jax.jobs import episodes
from retrieval_jax.jobs import evaluate
from retrieval_jax.jobs import forgetting
from retrieval_jax.jobs import hooks
from retrieval_jax.training import checkpoint
from retrieval_jax.training import cost as costs
from retrieval_jax.training import loop
from retrieval_jax.training import meter as meters
from retrieval_jax.training import metric_writer
from retrieval_jax.training import signals
from retrieval_jax.training import state as states
from retrieval_jax.training import step as steps
from retrieval_jax.training import wandb_writer

# Sections that may change when a run is resumed: none of them changes the
# parameters that come out, but for the order of sums. `num_steps` may not: the
# schedule depends on it.
MAY_CHANGE = ('log', 'checkpoint.every', 'checkpoint.keep', 'profile',
              'diagnostics', 'evaluation', 'data.cache', 'data.path',
              'data.corpus', 'data.sets', 'data.tokens_on_device',
              'encoding.batch_tokens', 'memory.folder', 'sharding',
              'teacher.folder', 'teacher.on_device')


def run(config: config_dict.ConfigDict, workdir: str, *,
        num_devices: int | None = None, command: str | None = None
        ) -> dict[str, Any] | None:
  """Trains, or resumes training, by `config` and evaluates at the end.

  The same call resumes an interrupted run. A finished one leaves in `workdir`:
  config.json, tokenizer.json, encoder.json, results.json (measures, baselines,
  cost), metrics.jsonl, tensorboard/, checkpoints/ and one TREC run file per
  evaluated split.

  Args:
    config: ConfigDict as factory/defaults.py makes it.
    workdir: folder of the run; made if absent.
    num_devices: devices to use; all by default.
    command: what to write down as the command of the run.

  Returns:
    The content of results.json; None if the run was stopped by a signal.

  Raises:
    ImportError: if what `log.wandb` needs is not installed.
    OSError: if another process trains in `workdir`, or it cannot be written.
    ValueError: for options that cannot work, or others than those of the run
      to resume.
  """
  if config.log.wandb:
    wandb_writer.check_installed(config.log.wandb)
  processes.check_same(
      {'--config': config.to_json_best_effort(), '--workdir': workdir},
      'Start all with the same flags.')
  meter = meters.Meter()
  with contextlib.ExitStack() as stack:
    if processes.is_first():
      stack.enter_context(files.lock_folder(workdir))
    checkpoints = stack.enter_context(checkpoint.Checkpoints(
        run_folder.checkpoints(workdir), keep=config.checkpoint.keep))
    resumed = checkpoints.latest_step()
    processes.check_same(
        {f'the latest checkpoint of --workdir={workdir}': resumed},
        'It must be one folder, which all of them see.')
    if resumed is not None:
      meta = checkpoints.restore_meta()
      config = factory.settled(config)
      resolved = config.to_dict()
      checkpoint.check_same_config(
          meta['config'], resolved, ignore=(
              *MAY_CHANGE, 'data_fingerprint', 'teacher_fingerprint'))
      if resumed == config.num_steps and report.is_finished(workdir):
        results = report.read_results(workdir)
        # With other options of evaluation only the measures are left to do.
        if (results.get('config') or {}).get('evaluation') == json.loads(
            json.dumps(resolved['evaluation'])):
          say(f'{workdir} is finished; here is what it found.')
          return results
    say('Preparing data, tokens and model; later runs find them ready.')
    with meter.phase('prepare'), processes.first_before_others(
        'preparing data, tokens and model'):
      experiment = factory.build(
          config, num_devices=num_devices,
          workdir=None if resumed is None else workdir)
    processes.check_same(
        {'the data': experiment.dataset.fingerprint},
        'Give all of them the same --config.data.path.')
    resolved = experiment.config.to_dict()
    # Data may move to another path, but must not become other data; nor may
    # the teacher.
    saved_config = {**resolved, 'data_fingerprint':
                    experiment.dataset.fingerprint}
    if experiment.teacher is not None:
      saved_config['teacher_fingerprint'] = experiment.teacher.fingerprint
    if resumed is not None:
      checkpoint.check_same_config(
          meta['config'], saved_config, ignore=MAY_CHANGE)
    elif processes.is_first():
      run_folder.write(workdir, experiment.tokenizer, experiment.model)
      _, base = base_params.split(experiment.params)
      if base:
        run_folder.write_base(
            workdir, factory.base_option(experiment.config), base)
      if experiment.reader is not None:
        run_folder.write_reader(workdir, *experiment.reader[:2])
    if processes.is_first():
      files.write_json(os.path.join(workdir, 'config.json'), resolved)
    say(f'{experiment.dataset.name}: {len(experiment.dataset.corpus_ids):,} '
        f'targets; {experiment.method}')
    sets, turns = experiment.dataset.sets, experiment.turns
    if sets is not None and turns is not None:
      say('Batches by set: ' + ', '.join(
          f'{name} {chance:.1%}'
          for name, chance in zip(sets.names, turns.chances)) + '.')
    copies = experiment.dataset.copies
    if len(copies.ids):
      say(f'{len(copies.ids):,} targets are copies: {copies.num_texts:,} texts '
          'occur more than once. Training takes the targets of one text for '
          'one target, the first of them.')

    unused = experiment.dataset.candidates.get(config.data.train_split)
    if unused is not None and not config.data.num_candidates:
      say(f'Warning: the data has {len(unused.query_rows):,} candidates of '
          f'split {config.data.train_split!r}, which are not used: '
          '--config.data.num_candidates=0. Say how many of them each query '
          'trains against in a step.')

    cost = make_cost(experiment, meter)
    train_step, schedule, state, baselines = start_state(
        experiment, checkpoints, resumed, cost, workdir)
    if resumed is not None:
      resumed = int(state.step)  # where the latest is damaged, one before it
      say(f'Resumed at step {resumed} of {config.num_steps}.')
    elif processes.is_first():
      _remove_results(workdir)
    start_step = resumed or 0
    meter.table_bytes = (meters.num_bytes(state.table)
                         if experiment.method.memory.num_slots else 0)
    meter.host_bytes = meters.num_host_bytes(state)

    best = None
    if config.checkpoint.best:
      best = checkpoint.Best(config.checkpoint.best)
      if resumed is not None:
        best = checkpoint.Best(**meta['best'])
    writer = metric_writer.MetricWriter(
        workdir, resume_step=resumed, tensorboard=config.log.tensorboard,
        wandb=config.log.wandb, config=resolved)
    with signals.StopSignal() as stop, contextlib.closing(
        device_batches(experiment, start_step)) as batches:
      state = loop.train(
          state, batches,
          make_step(experiment, train_step, cost, start_step),
          hooks.make_hooks(
              experiment, checkpoints, workdir, schedule=schedule,
              reencode=functools.partial(
                  reencode, experiment, train_step, cost),
              maintain=functools.partial(
                  train_step.refreshed, table=None, compared=cost.comparing),
              restart=functools.partial(
                  episodes.restarted, experiment, train_step, workdir),
              saved_config=saved_config, best=best),
          start_step=start_step, num_steps=config.num_steps, meter=meter,
          writer=writer, stop=stop)
    meter.device_bytes = processes.total(meters.live_bytes())
    if int(state.step) < config.num_steps:
      say(f'Stopped after step {int(state.step)} of {config.num_steps}; the '
          'same command goes on from there.')
      writer.close()
      return None

    say('Evaluating on the whole corpus.')
    params, embeddings = state.params, state.table.embeddings
    if best is not None:
      assert best.step is not None  # the last step was measured, too
      say(f'The best by {best.measure} is step {best.step}: {best.value:.4f}.')
      params, embeddings = trained.restore_model(
          experiment, checkpoints, best.step, states.abstract(params))
    with meter.phase('evaluate'):
      measures = evaluate.of_params(
          experiment, params, embeddings, evaluate.splits(config),
          workdir=workdir)
    # The dev measures of the last step are there already where the best has
    # others.
    writer.write(config.num_steps, evaluate.flat({
        split: of_split for split, of_split in measures.items()
        if best is None or split != config.data.dev_split}))
    writer.close()
  results = {
      'measures': measures,
      **({'best': dataclasses.asdict(best)} if best else {}), **baselines,
      'meter': meter.as_dict(),
      'steps': config.num_steps, 'seed': config.seed,
      'hardware': hardware(experiment.mesh), 'command': command or '',
      'commit': commit(), 'dropped': experiment.dataset.dropped,
      'data_fingerprint': experiment.dataset.fingerprint,
      'config': resolved, 'method': repr(experiment.method)}
  if processes.is_first():
    report.write_results(workdir, results)
  processes.wait('results')
  return results


def _remove_results(workdir: str) -> None:
  """Removes what an earlier run, whose checkpoints are gone, has found.

  Else it would pass for what this run finds, if that is interrupted.
  """
  found = [os.path.join(workdir, report.RESULTS_FILE),
           *glob.glob(os.path.join(glob.escape(workdir), '*.run'))]
  for path in filter(os.path.exists, found):
    say(f'{path} is of an earlier run, whose checkpoints are gone: removed.')
    os.remove(path)


def make_cost(experiment: factory.Experiment, meter: meters.Meter
              ) -> costs.Cost:
  """Returns the cost.Cost of an experiment."""
  config, model, method = experiment.config, experiment.model, experiment.method
  flops = lambda store: model.flops(np.mean(store.lengths).item())
  return costs.Cost(
      meter, method, dim=model.dim, batch_size=config.batch_size,
      query_flops=flops(experiment.query_tokens),
      target_flops=flops(experiment.target_tokens),
      passes=costs.passes_of_gradient(
          chunked=bool(config.encoding.chunk_size), remat=config.model.remat,
          adapters=model.lora is not None))


def start_state(experiment: factory.Experiment,
                checkpoints: checkpoint.Checkpoints, resumed: int | None,
                cost: costs.Cost, workdir: str) -> tuple[
                    steps.TrainStep, Callable[[int], jax.Array],
                    states.TrainState, Mapping[str, Any]]:
  """Returns (TrainStep, schedule, state, baselines) to start or go on from.

  A fresh run embeds targets with the initial parameters: as many as the memory
  begins with, and all of them for the measures of the untrained encoder.
  """
  config = experiment.config
  train_step, schedule = experiment.make_step()
  if resumed is not None:
    state, meta = checkpoints.restore(
        trained.abstract_state(experiment, train_step))
    cost.meter.load_state_dict(meta['meter'])
    return train_step, schedule, state, trained.read_baselines(workdir)
  ids, targets, baselines = experiment.first_ids(), None, {}
  mined_first = episodes.embeds_first(experiment)
  if mined_first and not experiment.method.memory.num_slots:
    ids = experiment.dataset.distinct_ids
  # Rows are filled as they come, unless all are measured, or mined, besides.
  table: Any = None
  if experiment.method.memory.num_slots and not mined_first and not (
      config.evaluation.baselines and evaluate.splits(config)):
    table = experiment.make_table(None)
  if len(ids):
    say(f'Embedding {len(ids):,} targets '
        f'{"to mine" if mined_first else "for the memory"}.')
    # Where training reads no remembered vector, only the measures need them.
    are_read = cost.reads_memory or mined_first
    with cost.meter.phase('refresh' if are_read else 'evaluate'):
      if table is None or experiment.method.memory.on_host:
        targets = experiment.embed_targets(
            experiment.params, ids,
            None if table is None else table.embeddings)
      else:
        table = experiment.embedded_table(experiment.params, table, step=0)
    if are_read:
      cost.reembedding(len(ids))
  whole = distinct = None
  if targets is not None and table is None and len(ids) == len(
      experiment.dataset.distinct_ids):
    distinct, whole = targets, experiment.of_all_targets(targets)
  if config.evaluation.baselines and evaluate.splits(config):
    say('Measuring BM25 and the untrained encoder.')
    with cost.meter.phase('evaluate'):
      baselines = {
          'bm25': evaluate.of_bm25(experiment),
          'untrained': evaluate.of_params(
              experiment, experiment.params, None, evaluate.splits(config),
              targets=whole)}
  if processes.is_first():
    files.write_json(os.path.join(workdir, trained.BASELINES_FILE), baselines)
  if table is None:
    table = experiment.make_table(targets)
  state = train_step.init_state(experiment.params, table)
  cost.comparing(*experiment.method.sampler.rows_compared(
      experiment.method.memory.num_slots))
  if episodes.are_mined(experiment):
    with cost.meter.phase('refresh'):
      state = train_step.refreshed(state, state.table, pools=(
          episodes.mine_pools(experiment, cost, experiment.params, distinct,
                              state.table, step=0)))
  if experiment.plan.restart:
    episodes.keep_start(experiment, workdir)
  if processes.is_first():
    forgetting.start(workdir)
  processes.wait('started')
  if config.forgetting.every:
    with cost.meter.phase('forgetting'):
      forgetting.look(experiment, workdir, 0, experiment.params, None)
  return train_step, schedule, state, baselines


def device_batches(experiment: factory.Experiment, start_step: int
                   ) -> Generator[types.Batch, None, None]:
  """Yields the batches from `start_step` on, sharded over the mesh.

  Close it to stop the threads that make batches ahead.
  """
  with contextlib.closing(
      experiment.make_batches().iterate(start_step)) as batches:
    for batch in batches:
      yield sharding.put_batch(batch, experiment.mesh)


def make_step(experiment: factory.Experiment, train_step: steps.TrainStep,
              cost: costs.Cost, start_step: int) -> Callable[
                  [states.TrainState, types.Batch],
                  tuple[states.TrainState, Mapping[str, jax.Array]]]:
  """Returns step_fn(state, batch) -> (state, metrics) for the loop.

  Args:
    experiment: of the run.
    train_step: of its last episode; that of the others, which may draw another
      number of negatives, is made here.
    cost: of the last episode.
    start_step: finished steps before the first call. They are counted from
      there, because the number in the state is on the device.
  """
  gather, phase = experiment.make_gather(), cost.meter.phase
  make_rows, finished = experiment.make_rows(), itertools.count(start_step)
  make_teacher = experiment.make_teacher()
  until = max(episodes.end_steps(experiment), default=0)
  early = last = train_step, cost
  if until and experiment.early.method != experiment.method:
    early = experiment.early.make_step()[0], dataclasses.replace(
        cost, method=experiment.early.method)

  def step(state, batch):
    train_step, cost = early if next(finished) < until else last
    with phase('propose') as hold:
      draws = hold(train_step.propose(state, batch))
    cost.step(tables.num_rows(state.table), draws.negative_ids, draws.probe_ids)
    with phase('gather') as hold:
      negatives, probes = hold((
          gather(draws.negative_ids), gather(draws.probe_ids)))
    rows = teacher = None
    if make_teacher is not None:
      with phase('gather') as hold:
        teacher = hold(make_teacher(
            draws.query_ids, draws.positive_ids, draws.proposal.ids))
    if make_rows is not None:
      with phase('rows') as hold:
        rows, lengths = make_rows(draws.query_ids, draws.negative_ids)
        hold(rows)
      cost.reading(lengths)
    with phase('update') as hold:
      return hold(train_step.update(
          state, batch, draws, negatives, probes, rows, teacher))

  return step


def reencode(experiment: factory.Experiment, train_step: steps.TrainStep,
             cost: costs.Cost, state: states.TrainState) -> states.TrainState:
  """Returns the state with a memory of all targets, encoded by its model.

  The table of `state` is overwritten, on the devices as on the host, or deleted
  before another is made, so that there need not be room for both. A sampler may
  then be rebuilt, for which pools are mined if it draws from them; a method
  without a memory has nothing else to renew, nor has one whose pools are mined
  from the memory.
  """
  table, embeddings, pools = state.table, None, None
  remembers = episodes.are_remembered(experiment)
  if isinstance(table, host_table.HostTable):
    ids = experiment.first_ids()
    experiment.embed_targets(state.params, ids, table.embeddings)
    table.written[ids] = int(state.step)
    cost.reembedding(len(ids))
  elif experiment.method.memory.holds_corpus and not remembers:
    ids = experiment.first_ids()
    cost.reembedding(len(ids))
    if episodes.are_mined(experiment):  # which reads them on the host
      embeddings = experiment.embed_targets(state.params, ids)
      for array in jax.tree.leaves(table):
        array.delete()
      table = experiment.make_table(embeddings, step=int(state.step))
    else:
      table = experiment.embedded_table(
          state.params, table, step=int(state.step))

  def embed_targets(ids):
    cost.reembedding(len(ids))
    return experiment.embed_targets(state.params, ids)

  if episodes.are_mined(experiment):
    pools = episodes.mine_pools(
        experiment, cost, state.params, embeddings, table,
        step=int(state.step), previous=state.sampler,
        corrector=state.corrector if remembers else None)
  known_positives = lambda ids: np.full((len(ids), 1), -1, np.int32)
  if experiment.method.has_positives:
    known_positives = experiment.dataset.by_text.qrels[
        experiment.config.data.train_split].padded_known
  return train_step.refreshed(
      state, None if remembers else table, embed_targets=embed_targets,
      embed_queries=functools.partial(experiment.embed_queries, state.params),
      known_positives=known_positives, pools=pools, compared=cost.comparing)


def hardware(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Returns what the run ran on, for results.json."""
  devices = mesh.devices.reshape(-1)
  return {'devices': len(devices), 'kind': devices[0].device_kind,
          'platform': devices[0].platform, 'cores': os.cpu_count(),
          'processes': jax.process_count(), 'jax': jax.__version__}


def commit() -> str | None:
  """Returns the commit of this code, with '-dirty' where files differ from it.

  None where the package is not in a repository of its own.
  """
  root = pathlib.Path(__file__).parents[2]
  if not root.joinpath('.git').exists() or not shutil.which('git'):
    return None
  found = subprocess.run(
      ['git', '-C', root, 'describe', '--always', '--dirty', '--abbrev=40',
       '--exclude=*'], capture_output=True, text=True, check=False)
  return found.stdout.strip() or None


def say(text: str) -> None:
  """Prints a line of progress; the first process speaks for all."""
  if processes.is_first():
    print(text, file=sys.stderr, flush=True)
