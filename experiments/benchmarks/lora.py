r"""Training all of an encoder, and low-rank adapters to it: seconds and bytes.

  python -m experiments.benchmarks.lora --model=FOLDER --out=lora.json
  python -m experiments.benchmarks.lora --family=qwen3 --hidden_size=256 \
      --num_layers=4 --batch_size=16 --max_length=64

Steps of configs/in_batch.py on random tokens, each arm in turn within one
process: everything, adapters, adapters to a base in bfloat16. The encoder is
that of a folder, or a random one of a family. `state` are the bytes of
parameters and of what the optimizer keeps, `temporary` those that XLA assigns
to the compiled step besides arguments and results, `FLOPs` what XLA counts in
it, with the body of a loop once.
"""

from retrieval_jax import files
from retrieval_jax import runtime

runtime.configure_allocator()  # Before jax is imported; see there.

import statistics
import time

from absl import app
from absl import flags
import jax
import numpy as np

from configs import in_batch
from experiments.benchmarks import shapes
from retrieval_jax import base_params
from retrieval_jax import factory
from retrieval_jax import keys
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.models import chunking
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import lora
from retrieval_jax.models import pretrained
from retrieval_jax.training import optimizer as optimizers
from retrieval_jax.training import step as steps

ARMS = ('everything', 'adapters', 'adapters, bfloat16 base')


def define_flags(values):
  """Defines the flags of this script."""
  flags.DEFINE_string('model', '', 'Hugging Face folder, package:NAME/FOLDER; '
                      'empty for a random encoder.', flag_values=values)
  shapes.define_flags(values, 'qwen3', 'Shape of a random encoder.')
  for name, default, text in (
      ('vocab_size', 30_000, 'Of a random encoder.'),
      ('batch_size', 16, 'Pairs per step.'), ('max_length', 64, 'Tokens.'),
      ('rank', 16, 'Of the adapters.'), ('rounds', 7, 'Turns of each arm.')):
    flags.DEFINE_integer(name, default, text, lower_bound=1,
                         flag_values=values)
  flags.DEFINE_integer('chunk_size', 0, 'Texts at a time; 0: all.',
                       lower_bound=0, flag_values=values)
  flags.DEFINE_bool('remat', False, 'Compute activations again.',
                    flag_values=values)
  flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'],
                    'Of matmuls.', flag_values=values)
  flags.DEFINE_string('out', None, 'JSON file for the results.',
                      flag_values=values)


def make_encoder(options):
  """Returns (config, weights or None) of the encoder without adapters."""
  if options.model:
    folder = pretrained.tower_folders(options.model)[0]
    config, weights, _ = pretrained.load_pretrained(folder)
    return config, weights
  return shapes.config(
      options.family, hidden_size=options.hidden_size,
      num_layers=options.num_layers, vocab_size=options.vocab_size), None


class Arm:
  """A step of one arm, and its state."""

  def __init__(self, name, options):
    config, weights = make_encoder(options)
    config = factory.encoders.computing_by(options, config)
    model = dual_encoder.DualEncoder(config)
    params = jax.jit(model.init)(jax.random.key(0))
    if weights is not None:
      params = model.with_pretrained(params, {'transformer': weights})
    if name != 'everything':
      made = lora.Lora(options.rank, 2. * options.rank)
      params = made.adapt(config, params, model.tower_names,
                          keys.of_phase(0, 'lora'))
      params = base_params.rounded(
          jax.device_get(params),
          'bfloat16' if 'bfloat16' in name else 'float32')
      model = dual_encoder.DualEncoder(config, lora=made)
    mesh = sharding.make_mesh(1)
    wrap = lambda encode: chunking.chunked(
        encode, chunk_size=options.chunk_size, buckets=(options.max_length,))
    settings = in_batch.get_config()
    method = factory.make_method(settings, num_targets=0, num_queries=0)
    optimizer, _ = optimizers.make_optimizer(**settings.optimizer)
    self._step = steps.make_train_step(
        steps.Encoders(wrap(model.encode_queries), wrap(model.encode_targets),
                       model.scale_of),
        method, optimizer, mesh=mesh, seed=0)
    table = method.memory.create(
        None, np.zeros(0, np.int32), dim=model.dim, mesh=mesh, step=0)
    self._state = self._step.init_state(params, table)
    random = np.random.default_rng(0)
    tokens = random.integers(1, config.vocab_size, (
        2, options.batch_size, options.max_length)).astype(np.int32)
    ids = np.arange(options.batch_size, dtype=np.int32)
    self._batch = sharding.put_batch(
        types.Batch(query_tokens=tokens[0], target_tokens=tokens[1],
                    query_ids=ids, target_ids=ids,
                    known_positives=ids[:, None]), mesh)

  def _arguments(self):
    none = self._batch.target_tokens[:0]
    return (self._state, self._batch,
            self._step.propose(self._state, self._batch), none, none)

  def facts(self):
    """Returns what the compiled step and its state take."""
    compiled = self._step.update.lower(*self._arguments()).compile()
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    trained, base = base_params.split(self._state.params)
    return {
        'trained': sum(x.size for x in jax.tree.leaves(trained)),
        'stays': sum(x.size for x in jax.tree.leaves(base)),
        'state_bytes': size((self._state.params, self._state.opt_state)),
        'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
        'flops': compiled.cost_analysis()['flops']}

  def step(self):
    """Takes a step; returns its seconds."""
    arguments = self._arguments()
    start = time.perf_counter()
    self._state, _ = jax.block_until_ready(self._step.update(*arguments))
    return time.perf_counter() - start


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  arms = {name: Arm(name, values) for name in ARMS}
  found = {name: arm.facts() for name, arm in arms.items()}
  seconds = {name: [] for name in arms}
  for turn in range(values.rounds + 1):  # the first one compiles
    for name, arm in arms.items():
      took = arm.step()
      if turn:
        seconds[name].append(took)
  print('| arm | trained | state MB | temporary MB | GFLOPs | ms, median '
        '(least) |\n| --- | --- | --- | --- | --- | --- |')
  for name, facts in found.items():
    facts['seconds'] = seconds[name]
    print(f'| {name} | {facts["trained"]:,} | {facts["state_bytes"] / 1e6:,.1f}'
          f' | {facts["temporary_bytes"] / 1e6:,.1f} | '
          f'{facts["flops"] / 1e9:,.1f} | '
          f'{1e3 * statistics.median(seconds[name]):,.0f} '
          f'({1e3 * min(seconds[name]):,.0f}) |')
  device = jax.devices()[0]
  if values.out:
    files.write_json(values.out, {
        'options': values.flag_values_dict(), 'device': device.device_kind,
        'jax': jax.__version__, 'arms': found})


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
