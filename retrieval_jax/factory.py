"""From a ConfigDict to objects; the only reader of ConfigDict in the package.

The registries are literal dicts: a new component is a file, a line here and a
default in configs/base.py.
"""

import dataclasses
import math
import os
from typing import Any
import warnings

import jax
import ml_collections
import numpy as np

from retrieval_jax import correctors
from retrieval_jax import data
from retrieval_jax import distillation
from retrieval_jax import matryoshka
from retrieval_jax import method as methods
from retrieval_jax import runtime
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax.data import progress
from retrieval_jax.models import chunking
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import embedding
from retrieval_jax.models import pretrained
from retrieval_jax.models import sentence_modules
from retrieval_jax.models import transformer
from retrieval_jax.training import checkpoint
from retrieval_jax.training import optimizer as optimizers
from retrieval_jax.training import step as steps
from retrieval_jax.training import target_tokens

READERS = {
    'beir': lambda path, cache: data.BeirReader(path),
    'dpr': lambda path, cache: data.dpr.make_reader(path),
    'hf': lambda path, cache: data.hugging_face.make_reader(path),
    'ir_datasets': lambda path, cache: data.IrDatasetsReader(path),
    'msmarco': lambda path, cache: data.MsMarcoReader(path),
    'pairs': lambda path, cache: data.pairs.make_reader(path),
    'tevatron': lambda path, cache: data.tevatron.make_reader(path),
    'tfds': lambda path, cache: data.tfds.make_reader(path),
    'trec': lambda path, cache: data.MsMarcoReader(path),
    'wordnet': lambda path, cache: data.WordNetReader(
        os.path.join(cache, 'tfds')),
}

CORRECTORS = {
    'identity': lambda config: correctors.Identity(),
    'linear': lambda config: correctors.Linear(
        **_options(config.corrector, correctors.Linear)),
    'mlp': lambda config: correctors.MLP(
        **_options(config.corrector, correctors.MLP)),
}

SAMPLERS = {
    'none': lambda config, mesh, num_targets: samplers.NoNegatives(),
    'uniform': lambda config, mesh, num_targets: samplers.Uniform(
        config.sampler.num_negatives),
    'stochastic': lambda config, mesh, num_targets: (
        samplers.StochasticNegativeMining(
            config.sampler.num_negatives, config.sampler.pool_size)),
    'exhaustive': lambda config, mesh, num_targets: samplers.Exhaustive(
        -(-sharding.capacity(num_targets, mesh, config.memory.chunk_rows)
          // config.batch_size)),
    'top_k': lambda config, mesh, num_targets: samplers.TopK(
        config.sampler.num_negatives, config.memory.chunk_rows, mesh,
        _ceiling(config)),
    'simans': lambda config, mesh, num_targets: samplers.SimANS(
        config.sampler.num_negatives, config.sampler.pool_size,
        config.sampler.simans_a, config.sampler.simans_b,
        config.memory.chunk_rows, mesh, _ceiling(config)),
    'gumbel': lambda config, mesh, num_targets: samplers.Gumbel(
        config.sampler.num_negatives, config.memory.chunk_rows, mesh,
        _ceiling(config)),
    'top_k_gumbel': lambda config, mesh, num_targets: samplers.ShortlistGumbel(
        config.sampler.num_negatives, config.sampler.shortlist, False,
        config.memory.chunk_rows, mesh),
    'bucketed': lambda config, mesh, num_targets: samplers.ShortlistGumbel(
        config.sampler.num_negatives, config.sampler.shortlist, True,
        config.memory.chunk_rows, mesh),
}


def _ceiling(config, section='sampler'):
  share, margin = config[section].max_share, config[section].min_margin
  if share is None and margin is None:
    return None
  return samplers.Ceiling(share, margin, section)


def _cache(config):
  return os.path.expanduser(config.data.cache)


def _options(section, cls):
  """Returns those options of a config section that are fields of `cls`."""
  fields = {field.name for field in dataclasses.fields(cls)}
  return {name: value for name, value in section.items() if name in fields}


def _choose(registry, option, name):
  if name not in registry:
    raise ValueError(
        f'--config.{option}={name!r} is not one of {sorted(registry)}.')
  return registry[name]


def make_reader(source, path, cache):
  """Returns the dataset.Reader of a format.

  Args:
    source: name of the format, a key of READERS.
    path: folder, file or name of the data; not looked at by 'wordnet'.
    cache: folder where 'wordnet' keeps its copy.

  Raises:
    ValueError: for an unknown source or an empty path; a DataError for data
      that cannot be read.
  """
  make = _choose(READERS, 'data.source', source)
  if source != 'wordnet' and not path:
    raise ValueError(
        f'--config.data.source={source} needs --config.data.path=DIR '
        '(--path of experiments.convert), or a file or a name, as the README '
        'says under "Your data".')
  return make(path, cache)


def make_dataset(config) -> data.RetrievalDataset:
  """Returns the prepared data set; prepares it on the first call."""
  reader = make_reader(config.data.source, config.data.path, _cache(config))
  if config.data.num_targets:
    reader = data.Subset(reader, config.data.num_targets)
  dataset = data.prepare(reader, _cache(config))
  for option in ('train_split', 'dev_split', 'test_split'):
    split = config.data[option]
    if split and split not in dataset.qrels:
      raise ValueError(
          f'--config.data.{option}={split!r} is not a split of '
          f'{dataset.name}; it has {sorted(dataset.qrels)}.')
  for option in ('evaluation.every', 'diagnostics.every'):
    if config[option.split('.')[0]].every and not config.data.dev_split:
      raise ValueError(
          f'--config.{option} looks at the dev queries; name a split by '
          '--config.data.dev_split, or set it to 0.')
  return dataset


def make_tokenizer(config, dataset) -> data.Tokenizer:
  """Returns the tokenizer at tokenizer.path, or one trained on the corpus."""
  given = os.path.expanduser(config.tokenizer.path)
  if os.path.isfile(given):
    return data.load_tokenizer(given)
  if given:
    return data.load_tokenizer(sentence_modules.transformer_folder(
        pretrained.tower_folders(given)[0]))
  path = os.path.join(
      dataset.folder, f'wordpiece-{config.tokenizer.vocab_size}.json')
  if not os.path.exists(path):
    data.train_tokenizer(
        dataset.corpus_texts, config.tokenizer.vocab_size).save(path)
  return data.load_tokenizer(path)


def make_tokens(config, dataset, tokenizer):
  """Returns the TokenStores of the queries and of the targets."""
  folder = os.path.join(dataset.folder, 'tokens')
  options = config.model
  return tuple(
      data.tokenize(texts, dataclasses.replace(tokenizer, prompt=prompt),
                    length, folder, key)
      for texts, prompt, length, key in (
          (dataset.query_texts, options.query_prompt,
           config.data.query_length, 'queries'),
          (dataset.corpus_texts, options.target_prompt,
           config.data.target_length, 'targets')))


def make_layout(config, mesh) -> sharding.Layout:
  """Returns where the parameters and the optimizer's moments live."""
  min_sizes = {'replicated': None, 'sharded': config.sharding.min_size}
  return sharding.Layout(mesh, _choose(
      min_sizes, 'sharding.parameters', config.sharding.parameters))


def make_model(config, tokenizer):
  """Returns (DualEncoder, params), the initial parameters on the host."""
  options = config.model
  towers, dense = (), None
  if options.pretrained:
    architecture, towers, dense = _pretrained_towers(options)
    _check_tokens(config, tokenizer, architecture)
  else:
    architecture = transformer.TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=options.hidden_size,
        num_layers=options.num_layers, num_heads=options.num_heads,
        intermediate_size=options.intermediate_size,
        pad_id=tokenizer.pad_id,
        max_positions=max(
            config.data.query_length, config.data.target_length))
  dtype = options.dtype
  if dtype == 'auto':
    dtype = ('bfloat16' if runtime.multiplies_bfloat16_natively()
             else 'float32')
  architecture = dataclasses.replace(
      architecture, dtype=dtype, remat=options.remat)
  model = dual_encoder.DualEncoder(
      architecture, pooling=options.pooling,
      projection=dense.kernel.shape[1] if dense else options.projection or None,
      projection_bias=dense is not None and dense.bias is not None,
      projection_activation=dense.activation if dense else 'identity',
      normalize=options.normalize,
      tied=options.tied, scale=options.scale, learn_scale=options.learn_scale)
  params = model.init(jax.random.key(config.seed))
  if towers:
    params = model.with_pretrained(params, *towers)
  if options.start_from:
    params = _started(config, model, params)
  return model, jax.device_get(params)


def _pretrained_towers(options):
  """Returns (architecture, one entry of params per tower, Dense or None).

  Raises:
    ValueError: if the towers of the folder are not of one architecture.
  """
  loaded = [
      pretrained.load_pretrained(folder, num_layers=options.num_layers or None)
      for folder in pretrained.tower_folders(options.pretrained)]
  # An explicit projection is one of our own; `settled` gives notice.
  denses = [None if options.projection else head.dense for _, _, head in loaded]
  shapes = [(architecture, dense and (dense.activation, [
      (name, value.shape) for name, value in dense.params().items()]))
            for (architecture, *_), dense in zip(loaded, denses)]
  if shapes[0] != shapes[-1]:
    raise ValueError(
        f'--config.model.pretrained={options.pretrained!r} holds towers of '
        f'different architectures: {shapes[0]} and {shapes[-1]}.')
  towers = [{'transformer': weights,
             **({'projection': dense.params()} if dense else {})}
            for (_, weights, _), dense in zip(loaded, denses)]
  return loaded[0][0], towers, denses[0]


def _check_tokens(config, tokenizer, architecture):
  """Raises where the tokens that come are not those the encoder knows."""
  path, encoder = (f'--config.tokenizer.path={config.tokenizer.path!r}',
                   f'--config.model.pretrained={config.model.pretrained!r}')
  if tokenizer.vocab_size > architecture.vocab_size:
    raise ValueError(
        f'{path} has {tokenizer.vocab_size} tokens, but the encoder at '
        f'{encoder} has {architecture.vocab_size}; use the tokenizer of the '
        'encoder.')
  if tokenizer.pad_id != architecture.pad_id:
    raise ValueError(
        f'{path} pads with token {tokenizer.pad_id}, but the encoder at '
        f'{encoder} with {architecture.pad_id}; use the tokenizer of the '
        'encoder.')
  for option in ('query_length', 'target_length'):
    if (architecture.max_positions or math.inf) < config.data[option]:
      raise ValueError(
          f'--config.data.{option}={config.data[option]} exceeds the '
          f'{architecture.max_positions} positions of the encoder at '
          f'{encoder}; lower it.')


def settled(config):
  """Returns a copy of a config without options that say "as the folder has it".

  These are tokenizer.path, pooling, normalize, query_prompt, target_prompt and
  scale of model, and query_length and target_length of data. An option that
  says otherwise than the folder at model.pretrained wins, with a warning.

  Args:
    config: ConfigDict; options that it lacks (an older run's) stay absent.

  Raises:
    ValueError: for an option left to a folder that says nothing about it.
  """
  config = config.copy_and_resolve_references()
  name = config.model.pretrained
  heads = [sentence_modules.read(folder)
           for folder in (pretrained.tower_folders(name) if name else ())
           ] or [sentence_modules.Head()]
  queries, targets = heads[0], heads[-1]
  # option, what stands for the folder's, the folder's, where that says nothing
  for option, left_open, found, usual in (
      ('tokenizer.path', 'auto', name, ''),
      ('model.pooling', 'auto', queries.pooling, 'mean'),
      ('model.normalize', None, queries.normalize, True),
      ('model.query_prompt', 'auto', queries.query_prompt, ''),
      ('model.target_prompt', 'auto', targets.target_prompt, ''),
      ('model.scale', 0., queries.scale, None),
      ('data.query_length', 0, queries.max_length, None),
      ('data.target_length', 0, targets.max_length, None)):
    section, key = option.split('.')
    if key not in config[section]:
      continue
    given = config[section][key]
    if given == left_open:
      value = usual if found is None else found
      if value is None:
        raise ValueError(
            f'--config.{option}={given} leaves it to '
            f'--config.model.pretrained={name!r}, which does not say; give a '
            'number.')
      config[section][key] = value
    elif section == 'model' and key != 'scale' and found not in (None, given):
      warnings.warn(
          f'--config.{option}={given!r} takes the place of {found!r}, which '
          f'{name} was made with.', stacklevel=2)
  if config.model.projection and queries.dense:
    warnings.warn(
        f'--config.model.projection={config.model.projection}, a new layer, '
        f'takes the place of the dense layer that {name} was made with.',
        stacklevel=2)
  return config


def _started(config, model, params):
  """Returns params with the towers of the run at model.start_from.

  Raises:
    FileNotFoundError: if that folder holds no checkpoint.
    ValueError: if its encoder or its tokens differ, naming the options.
  """
  folder = os.path.join(config.model.start_from, 'checkpoints')
  if not os.path.isdir(folder):
    raise FileNotFoundError(
        f'--config.model.start_from={config.model.start_from} holds no '
        'checkpoints; name the --workdir of a run of experiments.train.')
  with checkpoint.Checkpoints(folder) as saved:
    theirs = settled(ml_collections.ConfigDict(
        saved.restore_meta()['config'])).to_dict()
    ours = config.to_dict()
    try:
      checkpoint.check_same_config(
          {name: theirs[name] for name in ('model', 'tokenizer')},
          {name: ours[name] for name in ('model', 'tokenizer')},
          ignore=['model.' + name for name in (
              'start_from', 'tied', 'scale', 'learn_scale', 'dtype', 'remat')])
    except ValueError as error:
      raise ValueError(
          f'--config.model.start_from={config.model.start_from}: another '
          f'encoder. {error}') from error
    source = dataclasses.replace(
        model, tied=theirs['model']['tied'],
        learn_scale=theirs['model']['learn_scale'])
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(source.init, jax.random.key(0)))
    return model.with_towers_of(params, source, saved.restore_params(shapes))


def make_method(config, mesh, num_targets) -> methods.Method:
  """Returns the point of the design space that the config names.

  Args:
    config: ConfigDict.
    mesh: mesh with axis 'data'.
    num_targets: N; sampler 'exhaustive' derives its num_negatives from it.

  Raises:
    ValueError: for options that cannot work, alone or together.
  """
  if (config.corrector.name != 'identity' and config.corrector.keep_norm
      and not config.model.normalize):
    raise ValueError(
        '--config.corrector.keep_norm=True gives a corrected row the length of '
        'the stale one, which is right for embeddings of length one only; with '
        '--config.model.normalize=False set --config.corrector.keep_norm=False.')
  if _ceiling(config) and config.sampler.name not in (
      'top_k', 'gumbel', 'simans'):
    raise ValueError(
        '--config.sampler.max_share and min_margin are of the samplers '
        "'top_k', 'gumbel' and 'simans', which score the whole table; leave "
        f'them out with {config.sampler.name!r}.')
  source = config.targets.source
  if source != 'encoder' and config.model.tied:
    raise ValueError(
        f'--config.targets.source={source!r} trains the query tower alone, '
        'which must not be the target tower too; set '
        '--config.model.tied=False.')
  if source == 'rows' and config.memory.dtype != 'float32':
    raise ValueError(
        "--config.targets.source='rows' trains the rows of the table by small "
        f'steps, which {config.memory.dtype} rounds away; set '
        '--config.memory.dtype=float32.')
  return methods.Method(
      memory=config.memory.kind,
      corrector=_choose(
          CORRECTORS, 'corrector.name', config.corrector.name)(config),
      sampler=_choose(
          SAMPLERS, 'sampler.name', config.sampler.name)(
              config, mesh, num_targets),
      estimator=config.estimator.name,
      columns=config.estimator.columns,
      refresh=methods.Refresh(**config.refresh),
      targets=methods.Targets(
          **config.targets, normalize=config.model.normalize),
      num_candidates=config.data.num_candidates,
      ceiling=_ceiling(config, 'estimator'),
      distillation=distillation.Distillation(**config.distillation),
      matryoshka=matryoshka.Matryoshka(
          tuple(config.estimator.matryoshka_dims),
          tuple(config.estimator.matryoshka_weights),
          config.model.normalize))


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything a config stands for, built and checked.

  Attributes:
    config: the ConfigDict, as `settled` returns it.
    mesh: mesh with axis 'data'.
    layout: sharding.Layout of the parameters in training.
    dataset: data.RetrievalDataset.
    tokenizer: data.Tokenizer, without prompts.
    query_tokens: data.TokenStore of all queries.
    target_tokens: data.TokenStore of the corpus.
    model: dual_encoder.DualEncoder.
    params: its initial parameters.
    method: method.Method.
  """
  config: Any
  mesh: jax.sharding.Mesh
  layout: sharding.Layout
  dataset: data.RetrievalDataset
  tokenizer: data.Tokenizer
  query_tokens: data.TokenStore
  target_tokens: data.TokenStore
  model: dual_encoder.DualEncoder
  params: Any
  method: methods.Method

  def tokenize_queries(self, texts):
    """Returns tokens [n, Lq] int32 and lengths [n] int32, prompt included."""
    return dataclasses.replace(
        self.tokenizer, prompt=self.config.model.query_prompt).encode_batch(
            texts, self.config.data.query_length)

  def embed_targets(self, params, ids=None):
    """Returns embeddings [n, D] float32 of the targets `ids`, or of all.

    On the host; shows progress on stderr, of the first process only.
    """
    total = len(self.target_tokens) if ids is None else len(ids)
    with progress.counter('embedding targets', total=total,
                          show=not jax.process_index()) as add:
      return self._embed(self.model.encode_targets, params, self.target_tokens,
                         rows=ids, progress=add)

  def targets_of(self, params, rows):
    """Returns the embeddings [N, D] float32 that the corpus is searched by.

    Where the table's rows are the targets of the loss they are those, else what
    the target tower makes of the corpus.

    Args:
      params: of the model.
      rows: [M, D], embeddings of the run's table; read in the former case only.
    """
    if self.method.targets.source == 'encoder':
      return self.embed_targets(params)
    return np.asarray(rows[:len(self.target_tokens)], np.float32)

  def embed_queries(self, params, rows=None):
    """Returns embeddings [n, D] float32 of the queries in `rows`, or of all."""
    return self._embed(self.model.encode_queries, params, self.query_tokens,
                       rows=rows)

  def embed_texts(self, params, texts):
    """Returns embeddings [n, D] float32 of texts by the query tower."""
    tokens, lengths = self.tokenize_queries(texts)
    return self._embed(
        self.model.encode_queries, params,
        data.TokenStore(tokens, lengths, self.tokenizer.pad_id))

  def _embed(self, encode, params, tokens, **options):
    return embedding.embed(
        encode, params, tokens, mesh=self.mesh,
        batch_tokens=self.config.encoding.batch_tokens,
        buckets=tuple(self.config.encoding.buckets), **options)

  def first_ids(self):
    """Returns the corpus ids [n] that the memory holds before step 0.

    All of them, none, or as many random ones as a pre-filled ring takes: not
    the first, for a corpus comes in some order (WordNet's by part of speech).
    """
    memory, num_targets = self.config.memory, len(self.target_tokens)
    if self.method.memory == 'corpus':
      return np.arange(num_targets)
    if self.method.memory == 'none' or not memory.prefill:
      return np.arange(0)
    # The second number keeps this apart from other uses of the seed.
    return np.sort(np.random.default_rng([self.config.seed, 1]).choice(
        num_targets, memory.capacity, replace=False))

  def make_table(self, embeddings, step=0):
    """Returns the memory of the method, which holds `first_ids`.

    Args:
      embeddings: [n, D] float32, of the targets `first_ids`.
      step: the step whose parameters made them.
    """
    memory = self.config.memory
    if self.method.memory == 'corpus':
      return tables.from_embeddings(
          embeddings, mesh=self.mesh, chunk_rows=memory.chunk_rows,
          dtype=memory.dtype, step=step)
    if self.method.memory == 'none':  # a placeholder: nothing reads or writes
      return tables.empty(1, self.model.dim, mesh=self.mesh, chunk_rows=1,
                          dtype=memory.dtype)
    options = dict(mesh=self.mesh, chunk_rows=memory.chunk_rows,
                   dtype=memory.dtype, replacement=memory.replacement)
    if not memory.prefill:
      return tables.empty(memory.capacity, self.model.dim, **options)
    return tables.create(embeddings, self.first_ids(), step=step, **options)

  def make_step(self):
    """Returns (TrainStep, optimizer schedule)."""
    optimizer, schedule = optimizers.make_optimizer(
        **self.config.optimizer,
        frozen=(() if self.method.targets.source == 'encoder'
                else self.model.tower_names[-1:]))
    options = self.config.encoding
    wrap = lambda encode: chunking.chunked(
        encode, chunk_size=options.chunk_size or None,
        buckets=tuple(options.buckets),
        pad_id=self.model.config.pad_id, layout=self.layout)
    encoders = steps.Encoders(
        wrap(self.model.encode_queries), wrap(self.model.encode_targets),
        self.model.scale_of)
    return steps.make_train_step(
        encoders, self.method, optimizer, mesh=self.mesh,
        seed=self.config.seed, layout=self.layout), schedule

  def make_gather(self):
    """Returns the function from corpus ids to target tokens."""
    kind = (target_tokens.DeviceTokens if self.config.data.tokens_on_device
            else target_tokens.HostTokens)
    return kind(self.target_tokens, self.mesh)

  def make_batches(self):
    """Returns the training batches, addressed by step."""
    split = self.config.data.train_split
    return data.TrainBatches(
        self.dataset.qrels[split], self.query_tokens, self.target_tokens,
        batch_size=self.config.batch_size, seed=self.config.seed,
        num_shards=jax.process_count(), shard_index=jax.process_index(),
        candidates=self.dataset.candidates.get(split),
        num_candidates=self.method.num_candidates)


def _check_ring(config, num_targets):
  memory = config.memory
  if memory.capacity < config.batch_size:
    raise ValueError(
        f'--config.memory.capacity={memory.capacity} rows must hold at least '
        f'one batch of {config.batch_size} (--config.batch_size).')
  if memory.prefill and memory.capacity > num_targets:
    raise ValueError(
        f'--config.memory.capacity={memory.capacity} rows cannot be filled '
        f'with {num_targets} targets; lower it, or take '
        "--config.memory.kind=corpus, which holds them all.")
  if memory.replacement not in tables.REPLACEMENTS:
    raise ValueError(
        f'--config.memory.replacement={memory.replacement!r} is not one of '
        f'{list(tables.REPLACEMENTS)}.')


def _check_candidates(method, dataset, split):
  """Raises where the data has not the candidates or scores that a method asks.

  Single queries may have fewer, or no scores: they are masked.
  """
  if not method.num_candidates:
    return
  if split not in dataset.candidates:
    raise ValueError(
        f'--config.data.num_candidates={method.num_candidates}, but '
        f'{dataset.name} has no candidates of split {split!r}; add '
        f'candidates/{split}.tsv to its folder, or set the option to 0.')
  candidates, qrels = dataset.candidates[split], dataset.qrels[split]
  negatives = candidates.negatives(qrels)
  most = np.unique(negatives.query_rows, return_counts=True)[1].max(initial=0)
  if most < method.num_candidates:
    raise ValueError(
        f'--config.data.num_candidates={method.num_candidates}, but no query '
        f'of split {split!r} has more than {most} candidates that are not '
        'known positives; lower the option.')
  kind = method.distillation.kind
  scored = lambda part: part.query_rows[np.isfinite(part.scores)]
  if kind != 'none' and not np.isin(
      scored(negatives), scored(candidates.positives(qrels))).any():
    raise ValueError(
        f'--config.distillation.kind={kind} needs teacher scores, but no query '
        f'of split {split!r} has both a positive and another candidate with a '
        f"score; give them in the third column of candidates/{split}.tsv, the "
        'positives among them.')


def build(config, *, num_devices=None) -> Experiment:
  """Returns the Experiment for `config`; raises ValueError on bad options."""
  mesh = sharding.make_mesh(num_devices)
  if config.batch_size % mesh.shape['data']:
    raise ValueError(
        f'--config.batch_size={config.batch_size} must be a multiple of the '
        f'{mesh.shape["data"]} devices.')
  if config.profile.num_steps and config.profile.start < 1:
    raise ValueError(
        f'--config.profile.start={config.profile.start} must be at least 1: '
        'the first step is compiled, which a trace of it would show.')
  config = settled(config)
  layout = make_layout(config, mesh)
  dataset = make_dataset(config)
  method = make_method(config, mesh, len(dataset.corpus_ids))
  _check_candidates(method, dataset, config.data.train_split)
  if method.memory == 'ring':
    _check_ring(config, len(dataset.corpus_ids))
  tokenizer = make_tokenizer(config, dataset)
  query_tokens, target_tokens_ = make_tokens(config, dataset, tokenizer)
  model, params = make_model(config, tokenizer)
  for option in ('estimator.matryoshka_dims', 'evaluation.dims'):
    section, name = option.split('.')
    matryoshka.check_dims(
        config[section][name], model.dim, f'--config.{option}')
  return Experiment(
      config=config, mesh=mesh, layout=layout, dataset=dataset,
      tokenizer=tokenizer, query_tokens=query_tokens,
      target_tokens=target_tokens_, model=model, params=params, method=method)
