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
alive between two steps, with the tokens and rows of one; and the temporary
bytes of the compiled programs of the retriever, the reader and the whole
update, which --rounds=0 gives without running them. With encoding.chunk_size
these do not grow with the pairs, but for what is small: tokens, embeddings, and
what the corrector computes of them.
"""

from retrieval_jax import runtime

runtime.configure_allocator()  # Before jax is imported; see there.

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import gc
import itertools
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
from retrieval_jax import method as methods
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import trained
from retrieval_jax import types
from retrieval_jax.jobs import train
from retrieval_jax.training import meter as meters
from retrieval_jax.training import state as states
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


class Abstract:
  """What a step of B * K pairs is given, as shapes on the devices."""

  def __init__(self, experiment: factory.Experiment,
               train_step: steps.TrainStep, state: states.TrainState,
               num_pairs: int):
    """Derives all of it from an abstract state."""
    method, options = experiment.method, experiment.config.data
    mesh, reader = experiment.mesh, experiment.method.reader
    number = num_pairs // method.num_negatives
    of = lambda *shape: jax.ShapeDtypeStruct(
        shape, jnp.int32, sharding=sharding.batch(mesh))
    everywhere = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=sharding.replicated(mesh)), tree)
    with contextlib.closing(experiment.make_batches().iterate(0)) as batches:
      self.batch = jax.tree.map(
          lambda x: of(number, *x.shape[1:]), next(batches))
    self.draws = everywhere(
        jax.eval_shape(train_step.propose, state, self.batch))
    self.tokens = tuple(of(len(ids), options.target_length) for ids in (
        self.draws.negative_ids, self.draws.probe_ids))
    self.rows = of(num_pairs, reader.row_length)
    self.observation = everywhere(jax.eval_shape(
        functools.partial(observed, method), state, self.draws))


def observed(method: methods.Method, state: states.TrainState,
             draws: steps.Draws) -> types.Observation:
  """Returns what a step observes, as if no row had drifted."""
  rows = jnp.concatenate([draws.proposal.rows.reshape(-1), draws.refresh_rows,
                          draws.anchor_rows])
  stale = method.memory.take(state.table, rows)
  fresh = stale.embeddings.astype(jnp.float32)
  return types.Observation(
      stale=stale, fresh=fresh, mask=stale.ids >= 0,
      queries=fresh[:len(draws.proposal.rows)], scale=jnp.ones(()),
      step=jnp.zeros((), jnp.int32))


def arguments(name: str, state: states.TrainState, given: Any) -> tuple:
  """Returns the arguments of the program of one of PARTS, or of 'update'.

  Args:
    name: of the program.
    state: abstract or not.
    given: an Abstract, or a Step.
  """
  params = dict(state.params)
  reader = params.pop('reader')
  return {
      'retriever': (params, given.batch, given.tokens[0]),
      'reader': (reader, given.rows),
      'corrector': (state.corrector, given.observation),
      'update': (state, given.batch, given.draws, *given.tokens, given.rows),
  }[name]


def compiled(experiment: factory.Experiment, train_step: steps.TrainStep,
             state: states.TrainState, num_pairs: int,
             names: Sequence[str] = (*PARTS, 'update')) -> dict[str, Any]:
  """Returns compiled programs of a step by name.

  Args:
    experiment: with a reader.
    train_step: its own.
    state: a TrainState; abstract will do.
    num_pairs: B * K.
    names: of PARTS and 'update'.

  Raises:
    ValueError: for a config without a reader, or with a memory or a sampler on
      the host, whose step is not one program.
  """
  method = experiment.method
  if experiment.reader is None:
    raise ValueError(
        "--config has reader.name='none', and this measures steps with a "
        'reader; see configs/qa.py.')
  if method.sampler.on_host or method.memory.on_host:
    raise ValueError(
        f'--config has {method.sampler} and memory.place='
        f'{experiment.config.memory.place!r}, and this measures steps on the '
        'device alone.')
  encoders = experiment.make_encoders()
  if method.targets.source != 'encoder':
    encoders = encoders._replace(targets=lambda params, tokens: ())
  programs = {
      'retriever': jax.jit(functools.partial(_encoded, encoders)),
      'reader': jax.jit(functools.partial(
          _read, encoders, method.num_negatives)),
      'corrector': jax.jit(method.corrector.update),
      'update': train_step.update}
  state = states.abstract(state)
  given = Abstract(experiment, train_step, state, num_pairs)
  return {name: programs[name].lower(*arguments(name, state, given)).compile()
          for name in names}


def _encoded(encoders, params, batch, tokens):
  """Returns the embeddings of a step, and a gradient of the retriever."""
  embeddings, pull_back = jax.vjp(lambda params: (
      encoders.queries(params, batch.query_tokens),
      encoders.targets(params, tokens)), params)
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


def temporary_bytes(programs: Mapping[str, Any]) -> dict[str, int]:
  """Returns what each program takes besides its arguments and results."""
  return {name: program.memory_analysis().temp_size_in_bytes
          for name, program in programs.items()}


class Step:
  """A step of an experiment on one batch, in the parts that are timed.

  Attributes:
    state: a TrainState, of which `update` makes the next.
    programs: see `compiled`.
    batch, draws, tokens, rows, observation: what these are given.
  """

  def __init__(self, experiment: factory.Experiment):
    """Makes the state and what it is given, and compiles."""
    self._experiment, config = experiment, experiment.config
    self._step = experiment.make_step()[0]
    self._plain = dataclasses.replace(experiment, method=dataclasses.replace(
        experiment.method, corrector=correctors.Identity())).make_step()[0]
    vectors = np.random.default_rng(0).standard_normal(
        (len(experiment.first_ids()), experiment.model.dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    self.state = self._step.init_state(
        experiment.params, experiment.make_table(vectors))
    self.programs = compiled(
        experiment, self._step, self.state,
        config.batch_size * experiment.method.num_negatives)
    self._gather, self._rows = experiment.make_gather(), experiment.make_rows()
    with contextlib.closing(train.device_batches(experiment, 0)) as batches:
      self.batch = next(batches)
    self.draws = self.propose()
    self.tokens = self.gather()
    self.rows, self._lengths = self.make_rows()
    self.observation = jax.device_put(observed(
        experiment.method, self.state, self.draws),
                                      sharding.replicated(experiment.mesh))

  def propose(self) -> steps.Draws:
    """Returns the draws of the step."""
    return self._step.propose(self.state, self.batch)

  def propose_uncorrected(self) -> steps.Draws:
    """Returns draws from the memory as it is."""
    return self._plain.propose(
        dataclasses.replace(self.state, corrector=()), self.batch)

  def gather(self) -> tuple[jax.Array, jax.Array]:
    """Returns the tokens of the draws and of what is encoded besides."""
    return (self._gather(self.draws.negative_ids),
            self._gather(self.draws.probe_ids))

  def make_rows(self) -> tuple[jax.Array, np.ndarray]:
    """Returns the rows of the reader, and the tokens of each."""
    return self._rows(self.draws.query_ids, self.draws.negative_ids)

  def run(self, name: str) -> Any:
    """Returns what a program makes of the present state."""
    found = self.programs[name](*arguments(name, self.state, self))
    if name == 'update':
      self.state, found = found
    return found

  def calls(self) -> dict[str, Callable[[], Any]]:
    """Returns what is timed, by name."""
    return {
        'propose': self.propose,
        'propose_uncorrected': self.propose_uncorrected,
        'gather': self.gather, 'rows': self.make_rows,
        **{name: functools.partial(self.run, name) for name in self.programs}}

  def flops(self) -> dict[str, float]:
    """Returns what the meter counts for the step."""
    meter = meters.Meter()
    cost = train.make_cost(self._experiment, meter)
    cost.step(tables.num_rows(self.state.table), self.draws.negative_ids,
              self.draws.probe_ids)
    cost.reading(self._lengths)
    counts = meter.counts()
    return {name: counts[name] for name in meters.FLOPS}


def seconds_of(step: Step, rounds: int) -> dict[str, list[float]]:
  """Returns the seconds of all that is timed, in turns after a first."""
  calls = step.calls()
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(1 + rounds):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      seconds[name].append(time.perf_counter() - start)
  return {name: times[1:] for name, times in seconds.items()}


def measure_memory(experiment: factory.Experiment, num_pairs: int
                   ) -> dict[str, Any]:
  """Returns the temporary bytes of a size, of which nothing is run."""
  train_step = experiment.make_step()[0]
  return {'temp_bytes': temporary_bytes(compiled(
      experiment, train_step, trained.abstract_state(experiment, train_step),
      num_pairs))}


def measure(experiment: factory.Experiment, rounds: int) -> dict[str, Any]:
  """Returns the numbers of the size of the config."""
  step = Step(experiment)
  gc.collect()
  flops = step.flops()
  found: dict[str, Any] = {
      'num_rows': tables.num_rows(step.state.table), 'flops': flops,
      'live_bytes': meters.live_bytes(),
      'temp_bytes': temporary_bytes(step.programs),
      'times': seconds_of(step, rounds)}
  took = {name: statistics.median(times)
          for name, times in found['times'].items()}
  total = sum(took[name] for name in PHASES)
  corrected = took['propose'] - took.pop('propose_uncorrected')
  return found | {
      'seconds': took | {
          'corrected': corrected, 'step': total,
          'rest': took['update'] - sum(took[name] for name in PARTS)},
      'corrector_share': (corrected + took['corrector']) / total,
      'corrector_share_of_flops': flops['flops_correcting'] / sum(
          flops.values())}


def report(results: list[dict[str, Any]]) -> None:
  """Prints the tables of memory and of time."""
  print('\n| B K | chunk | reader, temporary MB | retriever | update | MB '
        'alive |\n| --- | --- | --- | --- | --- | --- |')
  for found in results:
    sizes = [f'{found["temp_bytes"][name] / 1e6:,.1f}'
             for name in ('reader', 'retriever', 'update')]
    alive = (f'{found["live_bytes"] / 1e6:,.1f}' if 'live_bytes' in found
             else '')
    _print_row(found, [*sizes, alive])
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
    for num_pairs, chunk_size in itertools.product(
        values.num_pairs, chunk_sizes):
      experiment = factory.build(sized(config, num_pairs, chunk_size))
      results.append({'num_pairs': num_pairs, 'chunk_size': chunk_size} | (
          measure(experiment, values.rounds) if values.rounds
          else measure_memory(experiment, num_pairs)))
      print(f'B K = {num_pairs:,} in chunks of {chunk_size or num_pairs:,}: '
            'done', flush=True)
      if values.out:  # as far as it has come
        files.write_json(values.out, {
            'config': experiment.config.to_dict(), 'rounds': values.rounds,
            'device': jax.devices()[0].device_kind, 'results': results})
  print(f'\nK = {config.sampler.num_negatives}, '
        f'{len(experiment.first_ids()):,} rows, on '
        f'{jax.devices()[0].device_kind}')
  report(results)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main, flags_parser=process.parse_flags)
