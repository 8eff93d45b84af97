r"""Beside sentence-transformers: the same model and batches, in one run.

  pip install torch 'sentence-transformers>=6'   # of no other use here
  taskset -c 0 python -m experiments.benchmarks.sentence_transformers \
      --out=beside.json
  taskset -c 0 python -m experiments.benchmarks.sentence_transformers \
      --family=qwen3 --out=beside_qwen3.json

First it compares: from the same checkpoint and batch, the loss and the global
gradient norm of the first step, plain (MultipleNegativesRankingLoss beside
configs/in_batch.py) and with gradient caching
(CachedMultipleNegativesRankingLoss beside encoding.chunk_size), and the
embeddings of the same texts. It stops where they differ by more than rounding.

Then it times them in turns, in this process: training steps in queries/s
(tokenised before the clock starts), encoding in texts/s (from strings to
vectors on the host), by the wall clock and by CPU seconds. Both are on the CPU,
in float32 or with products in bfloat16 (--dtype; theirs by torch.autocast, and
the first step is only compared in float32), with AdamW of the same numbers,
biases and norms not decayed, nothing clipped, and no dropout: ours has none, so
theirs is set to 0. Both profit from `runtime.configure_allocator`.

Linux only where --threads is given.
"""

from retrieval_jax import files
from retrieval_jax import runtime

runtime.configure_allocator()  # Before jax is imported; see there.

import contextlib
import importlib
import importlib.metadata
import json
import math
import os
import string
import tempfile
import time

from absl import app
from absl import flags
import jax
import numpy as np

from configs import in_batch
from experiments.benchmarks import shapes
from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.data.readers import wordnet_files
from retrieval_jax.models import pretrained

LOSS_TOLERANCE = 1e-4
NORM_TOLERANCE = 1e-3  # relative
EMBEDDING_TOLERANCE = 1e-4  # of any coordinate of a vector of length one


def define_flags(values):
  """Defines the flags of this script."""
  flags.DEFINE_string(
      'model', in_batch.get_config().model.pretrained,
      'Hugging Face folder, or package:NAME/FOLDER.', flag_values=values)
  shapes.define_flags(
      values, None, 'A random encoder of this shape in place of that of '
      '--model, with its tokenizer.')
  flags.DEFINE_enum(
      'texts', 'wordnet', ['wordnet', 'random'],
      "'wordnet': usage examples and their synsets. 'random': single letters, "
      'max_length tokens in every text.', flag_values=values)
  flags.DEFINE_integer('max_length', 32, 'Tokens; longer texts are cut.',
                       lower_bound=4, flag_values=values)
  flags.DEFINE_integer('batch_size', 64, 'Pairs per step.', lower_bound=2,
                       flag_values=values)
  flags.DEFINE_integer('chunk_size', 32, 'Texts at a time, cached.',
                       lower_bound=1, flag_values=values)
  flags.DEFINE_integer('num_batches', 2, 'Steps of each turn.', lower_bound=1,
                       flag_values=values)
  flags.DEFINE_integer('num_texts', 1024, 'Texts encoded in each turn.',
                       lower_bound=1, flag_values=values)
  flags.DEFINE_integer(
      'batch_tokens', 1024, 'encoding.batch_tokens, of our encoding. The '
      'last batch of each padded length is partly empty; with the default, '
      'meant for a corpus, such batches would hold most of so few texts.',
      lower_bound=1, flag_values=values)
  flags.DEFINE_multi_integer(
      'encode_batch', [32, 64], 'batch_size of their encode.',
      lower_bound=1, flag_values=values)
  flags.DEFINE_multi_enum(
      'dtype', ['float32'], ['float32', 'bfloat16'],
      'Of products, on both sides.', flag_values=values)
  flags.DEFINE_float('learning_rate', 2e-5, 'Constant.', lower_bound=0.,
                     flag_values=values)
  flags.DEFINE_integer('rounds', 7, 'Turns of each arm.', lower_bound=1,
                       flag_values=values)
  flags.DEFINE_integer(
      'threads', None, 'CPUs for both; by default all that this process may '
      'use (taskset).', flag_values=values)
  flags.DEFINE_string('out', None, 'JSON file for the results.',
                      flag_values=values)


def import_theirs():
  """Returns the modules (torch, sentence_transformers).

  Raises:
    ImportError: saying what to install.
  """
  try:
    return tuple(map(
        importlib.import_module, ('torch', 'sentence_transformers')))
  except ImportError as error:
    raise ImportError(
        'This benchmark runs beside torch and sentence-transformers, which '
        'nothing else here needs: pip install torch '
        f"'sentence-transformers>=6' ({error}).") from error


def limit_threads(torch, num_threads):
  """Gives both libraries `num_threads` CPUs; before jax's first use.

  jax takes as many threads as there are CPUs that the process may use.

  Raises:
    ValueError: for more CPUs than there are, or where the system (macOS,
      Windows) cannot bind a process to some.
  """
  if not hasattr(os, 'sched_setaffinity'):
    raise ValueError(
        f'--threads={num_threads}: only Linux can bind a process to some CPUs; '
        'leave it out.')
  allowed = sorted(os.sched_getaffinity(0))
  if not 1 <= num_threads <= len(allowed):
    raise ValueError(
        f'--threads={num_threads} must be 1 to {len(allowed)}, the CPUs that '
        'this process may use.')
  os.sched_setaffinity(0, allowed[:num_threads])
  torch.set_num_threads(num_threads)


def make_pairs(source, num_pairs, max_length):
  """Returns `num_pairs` (query, target) texts, no target twice.

  Args:
    source: 'wordnet' or 'random', see the flag --texts.
    num_pairs: how many.
    max_length: tokens of every random text, with the two special ones.

  Raises:
    ValueError: if WordNet has fewer, or is not installed (a DataError).
  """
  random = np.random.default_rng(0)
  if source == 'random':
    letters = np.array(list(string.ascii_lowercase))
    text = lambda: ' '.join(random.choice(letters, max_length - 2))
    return [(text(), text()) for _ in range(num_pairs)]
  # Different synsets may have the same text: a dict keeps one of each.
  pairs = list({
      synset.text: (f'{synset.lemmas[0]}: {synset.examples[0]}', synset.text)
      for synset in wordnet_files.read_synsets(wordnet_files.find_wordnet())
      if synset.examples}.values())
  if num_pairs > len(pairs):
    raise ValueError(
        f'WordNet has {len(pairs)} synsets with examples, fewer than the '
        f'{num_pairs} pairs asked for; lower --batch_size, --num_batches or '
        '--num_texts, or set --texts=random.')
  return [pairs[i] for i in random.permutation(len(pairs))[:num_pairs]]


def make_experiment(options, pairs, *, chunk_size=0, dtype='float32'):
  """Returns the factory.Experiment of configs/in_batch.py, without a data set.

  Args:
    options: the flags.
    pairs: (query, target) texts such as it will encode, which say how long.
    chunk_size: encoding.chunk_size.
    dtype: model.dtype.
  """
  config = in_batch.get_config().unlock()
  config.tokenizer.path = config.model.pretrained = options.model
  config.model.num_layers = 0  # all of them
  config.model.dtype = dtype
  config.data.query_length = config.data.target_length = options.max_length
  config.encoding.chunk_size = chunk_size
  config.encoding.batch_tokens = options.batch_tokens
  config.optimizer.learning_rate = options.learning_rate
  config.optimizer.schedule = 'constant'
  config.optimizer.warmup_steps = 0
  config.optimizer.max_grad_norm = None
  config = factory.settled(config)
  mesh = sharding.make_mesh(1)
  tokenizer = factory.make_tokenizer(config, None)
  model, params = factory.make_model(config, tokenizer)
  dataset = data.RetrievalDataset(
      name='pairs', corpus_ids=(), query_ids=(), corpus_texts=(),
      query_texts=(), qrels={}, copies=data.NO_COPIES, folder='',
      fingerprint='', corpus_fingerprint='')
  queries, targets = (
      data.TokenStore(*tokenizer.encode_batch(texts, options.max_length))
      for texts in zip(*pairs))
  return factory.Experiment(
      config=config, mesh=mesh, layout=sharding.Layout(mesh), dataset=dataset,
      tokenizer=tokenizer, query_tokens=queries, target_tokens=targets,
      model=model, params=params,
      method=factory.make_method(config, num_targets=0, num_queries=0))


class OurTrainer:
  """Training steps as experiments.train takes them."""

  def __init__(self, options, pairs, chunk_size, dtype='float32'):
    self._experiment = make_experiment(
        options, pairs, chunk_size=chunk_size, dtype=dtype)
    self._train_step, _ = self._experiment.make_step()
    self._state = self._train_step.init_state(
        self._experiment.params, self._experiment.make_table(None))

  def tokenize(self, texts):
    """Returns tokens [n, L] int32 on the host."""
    length = self._experiment.config.data.query_length
    return self._experiment.tokenizer.encode_batch(texts, length)[0]

  def prepare(self, pairs):
    """Returns the device's types.Batch of pairs, in which nothing is masked."""
    queries, targets = map(self.tokenize, zip(*pairs))
    ids = np.arange(len(pairs), dtype=np.int32)
    return sharding.put_batch(
        types.Batch(query_tokens=queries, target_tokens=targets, query_ids=ids,
                    target_ids=ids, known_positives=ids[:, None]),
        self._experiment.mesh)

  def step(self, batch):
    """Takes a step; returns its loss and global gradient norm."""
    none = batch.target_tokens[:0]
    draws = self._train_step.propose(self._state, batch)
    self._state, metrics = jax.block_until_ready(self._train_step.update(
        self._state, batch, draws, none, none))
    return float(metrics['loss']), float(metrics['gradient_norm'])


class TheirTrainer:
  """Training steps as SentenceTransformerTrainer takes them."""

  def __init__(self, options, chunk_size, dtype='float32'):
    self._torch, library = import_theirs()
    self._dtype = dtype
    self.model = library.SentenceTransformer(
        pretrained.resolve_folder(options.model), device='cpu',
        config_kwargs={'hidden_dropout_prob': 0.,
                       'attention_probs_dropout_prob': 0.})
    self.model.max_seq_length = options.max_length
    losses = importlib.import_module(
        'sentence_transformers.sentence_transformer.losses')
    settings = in_batch.get_config()
    scale = settings.model.scale
    self._loss = (
        losses.CachedMultipleNegativesRankingLoss(
            self.model, scale=scale, mini_batch_size=chunk_size)
        if chunk_size else
        losses.MultipleNegativesRankingLoss(self.model, scale=scale))
    decayed, others = [], []
    for parameter in self.model.parameters():
      (decayed if parameter.ndim >= 2 else others).append(parameter)
    adam = settings.optimizer
    # Fused, as their trainer has it: the fastest one.
    self._optimizer = self._torch.optim.AdamW(
        [{'params': decayed, 'weight_decay': adam.weight_decay},
         {'params': others, 'weight_decay': 0.}],
        lr=options.learning_rate, betas=(adam.b1, adam.b2), eps=adam.eps,
        fused=True)

  def prepare(self, pairs):
    """Returns the features of queries and of targets, padded per column."""
    return [self.model.preprocess(list(texts)) for texts in zip(*pairs)]

  def step(self, features):
    """Takes a step and returns its loss."""
    self.model.train()
    self._optimizer.zero_grad()
    with self._products():
      # Copies, since modules write into the dicts they get.
      loss = self._loss([dict(column) for column in features], None)
      loss.backward()  # The cached loss encodes again meanwhile.
    self._optimizer.step()
    return loss.item()

  def gradient_norm(self):
    """Returns the global norm of the last step's gradient."""
    return self._torch.nn.utils.get_total_norm(
        [p.grad for p in self.model.parameters()
         if p.grad is not None]).item()

  def encode(self, texts, batch_size):
    """Returns embeddings [n, D] float32."""
    with self._products():
      return self.model.encode(
          texts, batch_size=batch_size, show_progress_bar=False)

  def _products(self):
    if self._dtype == 'float32':
      return contextlib.nullcontext()
    return self._torch.autocast('cpu', dtype=self._torch.bfloat16)


def check_same_tokens(tokens, input_ids, mask):
  """Raises ValueError unless ours [n, L] are theirs [n, <= L] and padding."""
  width = input_ids.shape[1]
  if (width > tokens.shape[1] or (tokens[:, width:] >= 0).any()
      or (tokens[:, :width] != np.where(mask > 0, input_ids, -1)).any()):
    raise ValueError(
        'The two libraries tokenise the same texts differently; is the '
        'tokenizer.json of --model that of its other tokenizer files?')


def check_close(what, ours, theirs, tolerance, *, relative=False):
  """Returns |ours - theirs|, the largest; raises if it is above tolerance.

  Args:
    what: what is compared, for the error.
    ours: number or array.
    theirs: number or array of the same shape.
    tolerance: largest difference.
    relative: divide by |theirs|.

  Raises:
    ValueError: with both values and the difference; also for nan.
  """
  difference = np.max(np.abs(np.subtract(ours, theirs))
                      / (np.abs(theirs) if relative else 1.))
  if not difference <= tolerance:
    values = f' (ours {ours:.8g}, theirs {theirs:.8g})' if np.ndim(
        ours) == 0 else ''
    raise ValueError(
        f'{what} differs from that of sentence-transformers by '
        f'{difference:.3g}{values}, more than {tolerance:g}.')
  return float(difference)


def time_in_turns(arms, rounds):
  """Returns the (wall, CPU) seconds of each arm: name -> [rounds, 2].

  Every other round goes backwards, so that none always comes after the same.
  CPU seconds, of all threads, are less at the mercy of a machine's other work.
  """
  seconds = {name: [] for name in arms}
  clock = lambda: np.array([time.perf_counter(), time.process_time()])
  for i in range(rounds):
    for name in list(arms)[::-1 if i % 2 else 1]:
      start = clock()
      arms[name]()
      seconds[name].append(clock() - start)
  return {name: np.array(values) for name, values in seconds.items()}


def compare_training(options, pairs, chunk_size, dtype):
  """Returns what the first steps say, and an arm of steps for each side.

  Args:
    options: the flags.
    pairs: (query, target) texts; the batches are the first of them.
    chunk_size: texts encoded at a time; 0 for the plain loss.
    dtype: of products.

  Raises:
    ValueError: if tokens, loss or gradient norm of the first batch differ, the
      latter in float32.
  """
  ours = OurTrainer(options, pairs, chunk_size, dtype)
  theirs = TheirTrainer(options, chunk_size, dtype)
  size = options.batch_size
  batches = [pairs[i * size:(i + 1) * size] for i in range(options.num_batches)]
  for texts, column in zip(zip(*batches[0]), theirs.prepare(batches[0])):
    check_same_tokens(ours.tokenize(texts), column['input_ids'].numpy(),
                      column['attention_mask'].numpy())
  prepared = {side: [side.prepare(batch) for batch in batches]
              for side in (ours, theirs)}
  loss, norm = ours.step(prepared[ours][0])
  their_loss = theirs.step(prepared[theirs][0])
  their_norm = theirs.gradient_norm()
  name = 'cached' if chunk_size else 'plain'
  loss_tolerance, norm_tolerance = (
      (LOSS_TOLERANCE, NORM_TOLERANCE) if dtype == 'float32'
      else (math.inf, math.inf))
  found = {
      'loss': loss, 'their_loss': their_loss,
      'loss_difference': check_close(
          f'The {name} loss', loss, their_loss, loss_tolerance),
      'gradient_norm': norm, 'their_gradient_norm': their_norm,
      'gradient_norm_relative_difference': check_close(
          f'The gradient norm of the {name} loss', norm, their_norm,
          norm_tolerance, relative=True)}
  run = lambda side: lambda: [side.step(batch) for batch in prepared[side]]
  arms = {'ours': run(ours), 'theirs': run(theirs)}
  # Also warms up; that the losses stay together shows that the optimizers are
  # the same. Adam's first steps divide rounding by rounding: not checked.
  found['later_loss'] = arms['ours']()[-1][0]
  found['their_later_loss'] = arms['theirs']()[-1]
  return found, arms


def compare_encoding(options, texts, dtype):
  """Returns the largest difference of an embedding, and timed arms.

  Args:
    options: the flags.
    texts: [n] strings.
    dtype: of products.

  Returns:
    The difference, and arms: 'ours', and theirs by batch size.

  Raises:
    ValueError: if the embeddings in float32 differ.
  """
  theirs = TheirTrainer(options, 0, dtype)
  expected = theirs.encode(texts, options.encode_batch[0])
  experiment = make_experiment(
      options, [(text, text) for text in texts], dtype=dtype)
  params = jax.device_put(
      experiment.params, sharding.replicated(experiment.mesh))
  ours = lambda: experiment.embed_texts(params, texts)
  difference = check_close(
      'An embedding', ours(), expected,
      EMBEDDING_TOLERANCE if dtype == 'float32' else math.inf)
  return difference, {'ours': ours} | {
      size: lambda size=size: theirs.encode(texts, size)
      for size in options.encode_batch}


def describe(task, ours, theirs, count):
  """Returns a row of results: rates of two arms and their ratio, medians.

  Args:
    task: name of the row.
    ours: [rounds, 2], wall and CPU seconds of each round.
    theirs: the same. Ratios are of the same round, since other work on the
      machine comes and goes.
    count: queries or texts per round.
  """
  row = {'task': task, 'seconds': {
      'ours': ours.tolist(), 'theirs': theirs.tolist()}}
  for i, clock in enumerate(('wall', 'cpu')):
    ratios = theirs[:, i] / ours[:, i]
    row[clock] = {
        'ours': float(np.median(count / ours[:, i])),
        'theirs': float(np.median(count / theirs[:, i])),
        'ratio': float(np.median(ratios)),
        'ratio_range': [float(ratios.min()), float(ratios.max())]}
  return row


def to_markdown(rows):
  """Returns the table of what `describe` returned."""
  lines = ['| task | clock | ours | sentence-transformers | ratio | range |',
           '| --- | --- | --- | --- | --- | --- |']
  for row in rows:
    for clock in ('wall', 'cpu'):
      found = row[clock]
      low, high = found['ratio_range']
      lines.append(
          f'| {row["task"]} | {clock} | {found["ours"]:.1f} | '
          f'{found["theirs"]:.1f} | {found["ratio"]:.2f} | {low:.2f} to '
          f'{high:.2f} |')
  return '\n'.join(lines)


def main(argv, options=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}.')
  own = flags.FlagValues()
  define_flags(own)  # Their names: absl has flags of its own.
  torch, _ = import_theirs()
  jax.config.update('jax_platforms', 'cpu')
  if options.threads is not None:
    limit_threads(torch, options.threads)
  stack = contextlib.ExitStack()
  if options.family:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    write_random(options, os.path.join(folder, options.family))
  with stack:
    compare(options, own, torch)


def write_random(options, folder):
  """Writes the encoder of --family, and has --model name it."""
  tokenizer = pretrained.load_tokenizer(
      pretrained.tower_folders(options.model)[0])
  shapes.write(folder, options.family, hidden_size=options.hidden_size,
               num_layers=options.num_layers, tokenizer=tokenizer,
               max_length=options.max_length)
  options.model = folder


def compare(options, own, torch):
  """Does what the script is for, by the flags `own`."""
  num_queries = options.batch_size * options.num_batches
  pairs = make_pairs(options.texts, max(num_queries, options.num_texts),
                     options.max_length)
  results = {
      'versions': {name: importlib.metadata.version(name) for name in (
          'jax', 'torch', 'sentence-transformers', 'transformers')},
      'torch_threads': torch.get_num_threads(),
      'options': {name: options[name].value for name in own},
      'first_step': {}, 'embedding_difference': {}, 'speed': []}
  print(results['versions'], f'{results["torch_threads"]} threads', flush=True)
  for dtype in options.dtype:
    compare_in(dtype, options, pairs, results)
  print(to_markdown(results['speed']))
  if options.out:
    files.write_text(options.out, json.dumps(results, indent=2) + '\n')


def compare_in(dtype, options, pairs, results):
  """Adds to `results` what training and encoding in `dtype` give."""
  for name, chunk_size in (('plain', 0), ('cached', options.chunk_size)):
    found, arms = compare_training(options, pairs, chunk_size, dtype)
    results['first_step'][f'{dtype}, {name}'] = found
    print(f'first step, {dtype}, {name}: ' + ', '.join(
        f'{key} {value:.8g}' for key, value in found.items()), flush=True)
    seconds = time_in_turns(arms, options.rounds)
    results['speed'].append(describe(
        f'training, {dtype}, {name} loss, queries/s', seconds['ours'],
        seconds['theirs'], options.batch_size * options.num_batches))

  texts = [target for _, target in pairs[:options.num_texts]]
  difference, arms = compare_encoding(options, texts, dtype)
  results['embedding_difference'][dtype] = difference
  print(f'largest difference of an embedding, {dtype}: {difference}',
        flush=True)
  seconds = time_in_turns(arms, options.rounds)
  results['speed'] += [
      describe(f'encoding, {dtype}, their batch {size}, texts/s',
               seconds['ours'], seconds[size], len(texts))
      for size in options.encode_batch]


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
