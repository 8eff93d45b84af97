r"""Time and memory of a step that learns from answers, by phase.

  python -m experiments.benchmarks.answers --config=configs/qa.py:tiny
  python -m experiments.benchmarks.answers --config=configs/qa.py:tiny \
      --chunk_size=0 --chunk_size=16 --chunk_size=64 --rounds=0

The step is the one that --config trains, on questions, passages and answers of
random words, or on the config's own data where it names any; the memory holds
random unit vectors. K is sampler.num_negatives, and the batch size is
--num_pairs / K. For each of --num_pairs and of --chunk_size it prints

  propose    the draws; 'of it corrected' is by how much it is faster without
             the corrector
  gather     tokens of the draws
  rows       question and passage as tokens of the reader, on the host
  update     the rest of the step; of it, each run alone,
    retriever  questions and draws are encoded, with their gradient
    reader     pairs are read, with their gradient
    corrector  it learns from the draws
    rest       the remainder: loss, drift, optimizer, writes, and what the
               parts alone do faster or slower; noise can make it negative

in medians of --rounds, in which all take turns; the corrector's share of the
step, of its time and of its FLOPs as the meter counts them; the bytes that are
alive between two steps; and the temporary bytes of the compiled programs of
the retriever, the reader and the whole update, which --rounds=0 gives without
running them. With encoding.chunk_size these do not grow with the pairs, but
for what is small: tokens, embeddings, and what the corrector computes of them.
"""

from retrieval_jax import runtime

runtime.configure_allocator()  # Before jax is imported; see there.

import contextlib
import dataclasses
import gc
import json
import os
import statistics
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
import jax
from jax import numpy as jnp
from ml_collections import config_dict
import numpy as np

from experiments import process
from retrieval_jax import correctors
from retrieval_jax import factory
from retrieval_jax import files
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.jobs import train
from retrieval_jax.training import meter as meters
from retrieval_jax.training import step as steps

PHASES = ('propose', 'gather', 'rows', 'update')
PARTS = ('retriever', 'reader', 'corrector')  # of the update
_QUESTION, _ANSWER = 9, 2  # words


def define_flags(values):
  """Defines the flags of this script."""
  process.DEFINE_config(
      'Config of answers, e.g. configs/qa.py:tiny.', flag_values=values)
  flags.DEFINE_multi_integer(
      'num_pairs', [64, 256, 1024], 'B * K; may be repeated.', lower_bound=1,
      flag_values=values)
  flags.DEFINE_multi_integer(
      'chunk_size', None, "encoding.chunk_size, 0: all at once; the config's; "
      'may be repeated.', lower_bound=0, flag_values=values)
  flags.DEFINE_integer(
      'num_passages', 10_000, 'Of random words, without data.path.',
      lower_bound=1, flag_values=values)
  flags.DEFINE_integer(
      'passage_words', 100, 'Of each, one or two tokens a word.',
      lower_bound=_ANSWER, flag_values=values)
  flags.DEFINE_integer(
      'rounds', 5, 'Timed turns; 0: memory alone.', lower_bound=0,
      flag_values=values)
  process.DEFINE_path('out', '', 'JSON file of all numbers.',
                      flag_values=values)
  flags.mark_flag_as_required('config', flag_values=values)


def write_data(folder: str, num_passages: int, num_questions: int,
               passage_words: int) -> None:
  """Writes passages, and questions that two words of a passage answer."""
  rng = np.random.default_rng(0)
  words = np.array([''.join(rng.choice(list('aeioubdfgklmnprstvz'), size))
                    for size in rng.integers(3, 9, 5000)])
  passages = words[rng.integers(0, len(words), (num_passages, passage_words))]
  questions = words[rng.integers(0, len(words), (num_questions, _QUESTION))]
  of = rng.integers(0, num_passages, num_questions)
  at = rng.integers(0, passage_words - _ANSWER + 1, num_questions)
  lines = {
      'corpus': [{'_id': f'd{i}', 'title': '', 'text': ' '.join(text)}
                 for i, text in enumerate(passages)],
      'queries': [{'_id': f'q{i}', 'text': ' '.join(text)}
                  for i, text in enumerate(questions)],
      'answers/train': [
          {'_id': f'q{i}', 'answers': [' '.join(
              passages[row, start:start + _ANSWER])]}
          for i, (row, start) in enumerate(zip(of, at))]}
  os.makedirs(os.path.join(folder, 'answers'))
  for name, records in lines.items():
    path = os.path.join(folder, f'{name}.jsonl')
    with open(path, 'w', encoding='utf-8') as file:
      file.writelines(json.dumps(record) + '\n' for record in records)


def sized(config: config_dict.ConfigDict, num_pairs: int, chunk_size: int
          ) -> config_dict.ConfigDict:
  """Returns the config of a step of B * K pairs, in chunks.

  Raises:
    ValueError: if K does not divide the pairs.
  """
  number = config.sampler.num_negatives
  if num_pairs % number:
    raise ValueError(
        f'--num_pairs={num_pairs} must be a multiple of '
        f'K = sampler.num_negatives = {number}; a step reads B * K pairs.')
  config = config_dict.ConfigDict(config)
  config.update_from_flattened_dict({
      'batch_size': num_pairs // number, 'encoding.chunk_size': chunk_size,
      'data.dev_split': '', 'data.test_split': '', 'evaluation.every': 0})
  return config


class Step:
  """A step of an experiment, in the parts that are measured.

  Attributes:
    state: a TrainState, of which `update` makes the next.
    programs: name -> compiled program, of PARTS and 'update'.
  """

  def __init__(self, experiment: factory.Experiment):
    """Makes the state and one batch, and compiles.

    Raises:
      ValueError: for a config without a reader, or with a memory or a sampler
        on the host, whose step is not one program.
    """
    method = experiment.method
    if experiment.reader is None:
      raise ValueError(
          "--config has reader.name='none', and this measures steps with a "
          'reader; see configs/qa.py.')
    if method.sampler.on_host or method.memory.on_host:
      raise ValueError(
          f'--config has {method.sampler} and memory.place='
          f'{experiment.config.memory.place!r}, and this measures steps on '
          'the device alone.')
    self._experiment, self._meter = experiment, meters.Meter()
    self._step = experiment.make_step()[0]
    self._plain = dataclasses.replace(experiment, method=dataclasses.replace(
        method, corrector=correctors.Identity())).make_step()[0]
    self._gather, self._rows = experiment.make_gather(), experiment.make_rows()
    vectors = np.random.default_rng(0).standard_normal(
        (len(experiment.first_ids()), experiment.model.dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    self.state = self._step.init_state(
        experiment.params, experiment.make_table(vectors))
    with contextlib.closing(train.device_batches(experiment, 0)) as batches:
      self._batch = next(batches)
    draws = self._draws = self.propose()
    self._tokens = self.gather()
    rows, self._lengths = self._rows(draws.query_ids, draws.negative_ids)
    self._given = rows
    self._observation = self._observed()
    encoders = experiment.make_encoders()
    parts = {
        'retriever': lambda *args: _encoded(encoders, *args),
        'reader': lambda *args: _read(encoders, method.num_negatives, *args),
        'corrector': method.corrector.update}
    if method.targets.source != 'encoder':
      parts['retriever'] = lambda params, batch, tokens: _encoded(
          encoders._replace(targets=None), params, batch, tokens)
    self.programs = {
        name: jax.jit(part).lower(*self._arguments(name)).compile()
        for name, part in parts.items()}
    self.programs['update'] = self._step.update.lower(
        self.state, self._batch, draws, *self._tokens, rows).compile()

  def propose(self) -> steps.Draws:
    """Returns the draws of the step."""
    return self._step.propose(self.state, self._batch)

  def propose_uncorrected(self) -> steps.Draws:
    """Returns draws from the memory as it is."""
    return self._plain.propose(
        dataclasses.replace(self.state, corrector=()), self._batch)

  def gather(self) -> tuple[jax.Array, jax.Array]:
    """Returns the tokens of the draws and of what is encoded besides."""
    return (self._gather(self._draws.negative_ids),
            self._gather(self._draws.probe_ids))

  def rows(self) -> jax.Array:
    """Returns the rows of the reader."""
    return self._rows(self._draws.query_ids, self._draws.negative_ids)[0]

  def update(self) -> types.Params:
    """Takes the step; returns its metrics."""
    self.state, metrics = self.programs['update'](
        self.state, self._batch, self._draws, *self._tokens, self._given)
    return metrics

  def part(self, name: str) -> Any:
    """Returns what one of PARTS computes."""
    return self.programs[name](*self._arguments(name))

  def flops(self) -> dict[str, float]:
    """Returns what the meter counts for the step."""
    cost = train.make_cost(self._experiment, self._meter)
    cost.step(tables.num_rows(self.state.table), self._draws.negative_ids,
              self._draws.probe_ids)
    cost.reading(self._lengths)
    counts = self._meter.counts()
    return {name: counts[name] for name in meters.FLOPS}

  def _arguments(self, name):
    """Returns the arguments of the program of a part."""
    if name == 'corrector':
      return self.state.corrector, self._observation
    params = dict(self.state.params)
    reader = params.pop('reader')
    return ((reader, self._given) if name == 'reader'
            else (params, self._batch, self._tokens[0]))

  def _observed(self):
    """Returns a types.Observation of the rows that the step observes."""
    draws, table = self._draws, self.state.table
    rows = np.concatenate([np.asarray(rows).reshape(-1) for rows in (
        draws.proposal.rows, draws.refresh_rows, draws.anchor_rows)])
    stale = self._experiment.method.memory.take(table, rows)
    dim = stale.embeddings.shape[-1]
    return types.Observation(
        stale=stale, fresh=stale.embeddings.astype(jnp.float32),
        mask=stale.ids >= 0, queries=jnp.ones((len(draws.proposal.rows), dim)),
        scale=jnp.ones(()), step=jnp.zeros((), jnp.int32))


def _encoded(encoders, params, batch, tokens):
  """Returns the embeddings of a step, and a gradient of the retriever."""
  def encode(params):
    queries = encoders.queries(params, batch.query_tokens)
    return queries, encoders.targets and encoders.targets(params, tokens)

  embeddings, pull_back = jax.vjp(encode, params)
  return embeddings, pull_back(embeddings)


def _read(encoders, num_negatives, reader, rows):
  """Returns what a step reads, and a gradient of the reader."""
  def read(reader):
    params = {'reader': reader}
    if encoders.read_fused is None:
      return encoders.read(params, rows)
    return (encoders.read(jax.lax.stop_gradient(params), rows),
            encoders.read_fused(params, rows.reshape(
                len(rows) // num_negatives, -1)))

  found, pull_back = jax.vjp(read, reader)
  return found, pull_back(found)


def temporary_bytes(step: Step) -> dict[str, int]:
  """Returns what each program takes besides arguments and results."""
  return {name: program.memory_analysis().temp_size_in_bytes
          for name, program in step.programs.items()}


def seconds_of(step: Step, rounds: int) -> dict[str, list[float]]:
  """Returns the seconds of all phases and parts, in turns after a first."""
  calls = {name: getattr(step, name) for name in PHASES}
  calls['propose_uncorrected'] = step.propose_uncorrected
  for name in PARTS:
    calls[name] = lambda name=name: step.part(name)
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(1 + rounds):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      seconds[name].append(time.perf_counter() - start)
  return {name: times[1:] for name, times in seconds.items()}


def measure(config: config_dict.ConfigDict, num_pairs: int, chunk_size: int,
            rounds: int) -> dict[str, Any]:
  """Returns the numbers of one size."""
  experiment = factory.build(sized(config, num_pairs, chunk_size))
  step = Step(experiment)
  gc.collect()
  flops = step.flops()
  found = {
      'num_pairs': num_pairs, 'chunk_size': chunk_size,
      'num_negatives': experiment.method.num_negatives,
      'num_rows': tables.num_rows(step.state.table), 'flops': flops,
      'corrector_share_of_flops': flops['flops_correcting'] / sum(
          flops.values()),
      'live_bytes': meters.live_bytes(), 'temp_bytes': temporary_bytes(step)}
  if rounds:
    found['times'] = seconds_of(step, rounds)
    found['seconds'] = took = {
        name: statistics.median(times) for name, times in
        found['times'].items()}
    total = sum(took[name] for name in PHASES)
    corrected = took['propose'] - took.pop('propose_uncorrected')
    took |= {'corrected': corrected, 'step': total,
             'rest': took['update'] - sum(took[name] for name in PARTS)}
    found['corrector_share'] = (corrected + took['corrector']) / total
  return found


def report(results: list[dict[str, Any]]) -> None:
  """Prints the tables of memory and of time."""
  print('\n| B K | chunk | MB alive | reader, temporary MB | retriever | '
        'update |\n| --- | --- | --- | --- | --- | --- |')
  for found in results:
    sizes = (found['live_bytes'], *(found['temp_bytes'][name] for name in (
        'reader', 'retriever', 'update')))
    _print_row(found, [f'{size / 1e6:,.1f}' for size in sizes])
  timed = [found for found in results if 'seconds' in found]
  if not timed:
    return
  names = ('propose', 'corrected', 'gather', 'rows', *PARTS, 'rest', 'step')
  titles = ['of it corrected' if name == 'corrected' else name
            for name in names]
  print(f'\n| B K | chunk | {", ms | ".join(titles)}, ms | corrector, of the '
        f'time | of the FLOPs |\n|{" --- |" * (len(names) + 4)}')
  for found in timed:
    _print_row(found, [
        *(f'{1e3 * found["seconds"][name]:,.1f}' for name in names),
        f'{found["corrector_share"]:.1%}',
        f'{found["corrector_share_of_flops"]:.1%}'])


def _print_row(found, cells):
  size = found['chunk_size'] or 'all'
  print(f'| {found["num_pairs"]:,} | {size} | {" | ".join(cells)} |')


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  results: list[dict[str, Any]] = []
  with process.script(), tempfile.TemporaryDirectory() as folder:
    config = config_dict.ConfigDict(values.config)
    chunk_sizes = values.chunk_size or [config.encoding.chunk_size]
    if not config.data.path:
      config.data.path = os.path.join(folder, 'data')
      config.data.cache = os.path.join(folder, 'cache')
      write_data(config.data.path, values.num_passages, max(values.num_pairs),
                 values.passage_words)
    for num_pairs in values.num_pairs:
      for chunk_size in chunk_sizes:
        results.append(measure(config, num_pairs, chunk_size, values.rounds))
        print(f'B K = {num_pairs:,} in chunks of {chunk_size or num_pairs:,}: '
              'done', flush=True)
        if values.out:  # as far as it has come
          files.write_json(values.out, {
              'config': config.to_dict(), 'rounds': values.rounds,
              'device': jax.devices()[0].device_kind, 'results': results})
  found = results[0]
  print(f'\nK = {found["num_negatives"]}, {found["num_rows"]:,} rows, on '
        f'{jax.devices()[0].device_kind}')
  report(results)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main, flags_parser=process.parse_flags)
