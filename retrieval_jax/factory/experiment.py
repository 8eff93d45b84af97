"""Everything a config stands for, built and checked."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import os
from typing import Any

import jax
from jax import numpy as jnp
from ml_collections import config_dict
import numpy as np

from retrieval_jax import compatibility
from retrieval_jax import data
from retrieval_jax import files
from retrieval_jax import matryoshka
from retrieval_jax import method as methods
from retrieval_jax import processes
from retrieval_jax import quantisation
from retrieval_jax import reading
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.data import progress
from retrieval_jax.data import teachers
from retrieval_jax.data import turns as turns_lib
from retrieval_jax.evaluation import measures
from retrieval_jax.factory import datasets
from retrieval_jax.factory import encoders
from retrieval_jax.factory import methods as methods_lib
from retrieval_jax.factory import mixtures
from retrieval_jax.factory import readers
from retrieval_jax.factory import run_folder
from retrieval_jax.mining import episodes
from retrieval_jax.models import chunking
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import embedding
from retrieval_jax.models import grouping
from retrieval_jax.training import optimizer as optimizers
from retrieval_jax.training import step as steps
from retrieval_jax.training import target_tokens
from retrieval_jax.training import teacher_vectors

_IN_MEMORY = 2**30
"""The most bytes of the targets' embeddings that a host has in memory."""


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
    params: its initial parameters; zeros where a run was opened, since they
      are in its checkpoints.
    method: method.Method.
    reader: what belongs to its reader; None where it has none. The parameters
      of that are the entry 'reader' of all `params` here.
  """
  config: config_dict.ConfigDict
  mesh: jax.sharding.Mesh
  layout: sharding.Layout
  dataset: data.RetrievalDataset
  tokenizer: data.Tokenizer
  query_tokens: data.TokenStore
  target_tokens: data.TokenStore
  model: dual_encoder.DualEncoder
  params: types.Params
  method: methods.Method
  reader: readers.Made | None = None

  @functools.cached_property
  def plan(self) -> episodes.Plan:
    """Which episodes there are, and what each of them mines."""
    return methods_lib.make_plan(self.config)

  @functools.cached_property
  def early(self) -> 'Experiment':
    """This, with the method of all episodes but the last."""
    return dataclasses.replace(self, method=methods_lib.make_early_method(
        self.method, self.plan))

  @functools.cached_property
  def teacher(self) -> teachers.Teacher | None:
    """Another encoder's vectors of the data; None where training reads none.

    Raises:
      DataError: if teacher.folder does not have them all.
    """
    if 'teacher_vectors' not in self.method.objective.needs:
      return None
    options, dataset = self.config.teacher, self.dataset
    return teachers.read(
        os.path.expanduser(options.folder), dataset, dim=options.dim,
        asked=dataset.qrels[self.config.data.train_split].queries())

  @property
  def own_sets(self) -> data.Sets | None:
    """The sets of the data, where queries meet those of their own set alone.

    None where there is one set, or all queries meet all targets.
    """
    return self.dataset.sets if self.config.data.negatives == 'own' else None

  @functools.cached_property
  def turns(self) -> turns_lib.Turns | None:
    """Which of several sets the batch of a step is of; None of one set."""
    sets = self.dataset.sets
    return None if sets is None else turns_lib.Turns(
        sets.query_starts, mixtures.chances(self.config, self.dataset),
        self.config.seed)

  def tokenize_queries(self, texts: Sequence[str]
                       ) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens [n, Lq] int32 and lengths [n] int32, prompt included."""
    return dataclasses.replace(
        self.tokenizer, prompt=self.config.model.query_prompt).encode_batch(
            texts, self.config.data.query_length)

  def room(self, shape: tuple[int, int], dtype: Any = np.float32
           ) -> np.ndarray:
    """Returns an array of the host, to be filled with vectors of targets.

    A large one (a GiB; ours) is mapped from a file without a name in the folder
    of prepared data, so that a host needs no memory for it.

    Args:
      shape: [n, D].
      dtype: of its numbers.

    Raises:
      OSError: naming that folder, where the disk is full.
    """
    if math.prod(shape) * np.dtype(dtype).itemsize <= _IN_MEMORY:
      return np.empty(shape, dtype)
    return files.scratch_array(datasets.cache(self.config), dtype, shape)

  def pick(self, embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns rows [m] of embeddings [n, D] float32, in `room` of their own."""
    out = self.room((len(rows), embeddings.shape[1]))
    return np.take(  # which would buffer the whole to raise
        embeddings, rows, axis=0, out=out, mode='clip')

  def embed_targets(self, params: types.Params, ids: np.ndarray | None = None,
                    out: Any = None) -> Any:
    """Returns embeddings [n, D] float32 of the targets `ids`, or of all.

    On the host, see `room`; shows progress on stderr, of the first process
    only.

    Args:
      params: of the model.
      ids: [n].
      out: takes them by `out[ids] = embeddings` as they come, such as an array
        [N, D], and is returned instead.
    """
    total = len(self.target_tokens) if ids is None else len(ids)
    with progress.counter('embedding targets', total=total,
                          show=processes.is_first()) as add:
      return self._embed(self.model.encode_targets, params, self.target_tokens,
                         rows=ids, progress=add, out=out, room=self.room)

  def embedded_table(self, params: types.Params, table: types.TargetTable,
                     step: int) -> types.TargetTable:
    """Returns a memory of `first_ids` with their embeddings by `params`.

    They never leave the devices; the arrays of the table are donated.

    Args:
      params: of the model.
      table: as `make_table` made it, or as the run left it.
      step: whose parameters these are.
    """
    ids = self.first_ids()
    if not len(ids):
      return table
    rows = ids if table.rows_are_ids else np.arange(len(ids))
    written = jax.jit(lambda written: jnp.full_like(written, step),
                      out_shardings=table.written.sharding)(table.written)
    return tables.with_embeddings(
        dataclasses.replace(table, written=written),
        self._embed_onto(params, table.embeddings, ids, rows))

  def corpus_table(self, params: types.Params) -> types.TargetTable:
    """Returns all targets as the target tower embeds them, float32.

    They never leave the devices; row i holds target i.
    """
    size = len(self.target_tokens)
    blank = tables.from_embeddings(
        jax.ShapeDtypeStruct((size, self.model.dim), np.float32), self.mesh,
        self.config.memory.chunk_rows, np.float32)
    every = np.arange(size)
    return dataclasses.replace(blank, embeddings=self._embed_onto(
        params, blank.embeddings, every, every))

  def _embed_onto(self, params, array, ids, rows):
    with progress.counter('embedding targets', total=len(ids),
                          show=processes.is_first()) as add:
      return embedding.embed_onto(
          array, self._in_layout(self.model.encode_targets),
          self._of_towers(params), self.target_tokens, texts=ids, rows=rows,
          progress=add, layout=self.layout, **self._embedding)

  def targets_of(self, params: types.Params, table_embeddings: Any,
                 out: Any = None) -> Any:
    """Returns the embeddings [N, D] float32 that the corpus is searched by.

    They are those of the table where its rows are the targets of the loss, else
    what the target tower makes of the corpus.

    Args:
      params: of the model.
      table_embeddings: [M, D], of the run's table; read in the former case
        only. None before training, when no row has moved yet.
      out: takes them, as of `embed_targets`.
    """
    if self.method.targets.source == 'encoder' or table_embeddings is None:
      return self.embed_targets(params, out=out)
    num_targets, size = len(self.target_tokens), self.config.memory.chunk_rows
    if out is None:
      out = self.room((num_targets, table_embeddings.shape[1]))
    for start in range(0, num_targets, size):
      ids = np.arange(start, min(start + size, num_targets))
      out[ids] = sharding.fetch(
          table_embeddings[self.dataset.copies.firsts_of(ids)])
    return out

  def embed_queries(self, params: types.Params, rows: np.ndarray | None = None
                    ) -> np.ndarray:
    """Returns embeddings [n, D] float32 of the queries in `rows`, or of all."""
    return self._embed(self.model.encode_queries, params, self.query_tokens,
                       rows=rows)

  def embed_texts(self, params: types.Params, texts: Sequence[str]
                  ) -> np.ndarray:
    """Returns embeddings [n, D] float32 of texts by the query tower."""
    tokens, lengths = self.tokenize_queries(texts)
    return self._embed(
        self.model.encode_queries, params,
        data.TokenStore(tokens, lengths))

  def read(self, params: types.Params, rows: np.ndarray, ids: np.ndarray,
           scores: np.ndarray) -> list[reading.Reading]:
    """Returns what a reader makes of queries and their passages.

    Args:
      params: with those of the reader.
      rows: [n], of the queries.
      ids: [n, K], corpus ids of their passages, -1 for none.
      scores: [n, K], <x, y> of these, any number where there is none.
    """
    return self.read_texts(
        params, [self.dataset.query_texts[int(row)] for row in rows], ids,
        scores)

  def read_texts(self, params: types.Params, texts: Sequence[str],
                 ids: np.ndarray, scores: np.ndarray) -> list[reading.Reading]:
    """The same as `read`, of n questions as texts."""
    if self.reader is None:
      raise ValueError(
          "This run has no reader (reader.name='none'), so it cannot answer; "
          "train one with objective.name='marginal', see configs/qa.py.")
    logits = np.where(
        ids >= 0, float(self.model.scale_of(params)) * scores, -np.inf)
    with np.errstate(invalid='ignore', divide='ignore'):
      log_prior = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    passages = self.dataset.corpus_texts
    return reading.read(
        self.reader.texts, params['reader'], texts,
        [[passages[int(row)] if row >= 0 else '' for row in of_question]
         for of_question in ids],
        np.where(ids >= 0, log_prior, -np.inf), **self._embedding)

  def _embed(self, encode, params, tokens, **options):
    return embedding.embed(
        self._in_layout(encode), self._of_towers(params), tokens,
        layout=self.layout, **self._embedding, **options)

  def _in_layout(self, encode):
    """Returns an `encode` of parameters as the layout has them."""
    return chunking.chunked(encode, chunk_size=None, layout=self.layout)

  @property
  def _embedding(self):
    options = self.config.encoding
    return {'mesh': self.mesh, 'batch_tokens': options.batch_tokens,
            'buckets': tuple(options.buckets)}

  def _of_towers(self, params):
    """Returns params without the reader's, which no encoder has to carry."""
    if self.reader is None:
      return params
    return {name: part for name, part in params.items() if name != 'reader'}

  def first_ids(self) -> np.ndarray:
    """Returns the corpus ids [n] that the memory holds before step 0."""
    ids = self.dataset.distinct_ids
    return ids[self.method.memory.first_ids(len(ids), self.config.seed)]

  def of_all_targets(self, embeddings: np.ndarray) -> np.ndarray:
    """Returns the embeddings [N, D] of all targets from the distinct ones'.

    Args:
      embeddings: [n, D], of the first target of each text, in corpus order.
    """
    copies = self.dataset.copies
    if not len(copies.ids):
      return embeddings
    rows = np.searchsorted(
        self.dataset.distinct_ids,
        copies.firsts_of(np.arange(len(self.target_tokens))))
    return self.pick(embeddings, rows)

  def make_table(self, embeddings: Any, step: int = 0) -> types.TargetTable:
    """Returns the memory of the method, which holds `first_ids`.

    Args:
      embeddings: [n, D] float32, of the targets `first_ids`; ignored where
        there are none. None for zeros, for `embedded_table`.
      step: the step whose parameters made them.
    """
    return self.method.memory.create(
        embeddings, self.first_ids(), dim=self.model.dim, mesh=self.mesh,
        step=step)

  def make_step(self) -> tuple[
      steps.TrainStep, Callable[[int], jax.Array]]:
    """Returns (TrainStep, optimizer schedule)."""
    given = dict(self.config.optimizer)
    if self.plan.restart:
      given['total_steps'] = self.plan.longest(
          self.config.num_steps, self.method.refresh.reencode_every)
    frozen = (() if self.method.targets.source == 'encoder'
              else self.model.tower_names[-1:])
    if self._trains_reader_alone:
      frozen = (*self.model.tower_names, 'log_scale')
    optimizer, schedule = optimizers.make_optimizer(**given, frozen=frozen)
    copies, first_of_text = self.dataset.copies, None
    if len(copies.ids) and not self.method.sampler.draws_from_memory:
      first_of_text = copies.firsts_of(
          np.arange(len(self.target_tokens), dtype=np.int32))
    return steps.make_train_step(
        self.make_encoders(), self.method, optimizer, mesh=self.mesh,
        seed=self.config.seed, layout=self.layout,
        first_of_text=first_of_text, sets=self.own_sets), schedule

  def make_encoders(self) -> steps.Encoders:
    """Returns the model, and the reader, as a step computes them.

    In chunks of `encoding.chunk_size`, or at once in groups of like length.
    """
    options, sets = self.config.encoding, self.dataset.sets
    wrap = lambda encode: chunking.chunked(
        encode, chunk_size=options.chunk_size or None,
        buckets=tuple(options.buckets), layout=self.layout)

    def of_texts(encode, store, starts):
      if options.chunk_size:
        return wrap(encode)
      lengths = np.split(
          np.asarray(store.lengths), () if starts is None else starts[1:-1])
      return grouping.grouped(
          encode, lengths, buckets=tuple(options.buckets), layout=self.layout)

    encode_by = steps.Encoders(
        of_texts(self.model.encode_queries, self.query_tokens,
                 sets and sets.query_starts),
        of_texts(self.model.encode_targets, self.target_tokens,
                 sets and sets.corpus_starts),
        self.model.scale_of)
    return (encode_by if self.reader is None
            else self._with_reader(encode_by, wrap))

  @property
  def _trains_reader_alone(self):
    return self.reader is not None and self.config.reader.alone

  def _with_reader(self, encode_by, wrap):
    """Returns steps.Encoders over params that hold the reader's.

    Args:
      encode_by: steps.Encoders over params without.
      wrap: what bounds the memory of an encoder.
    """
    of_towers = self._of_towers
    if self._trains_reader_alone:
      of_towers = lambda params: jax.lax.stop_gradient(self._of_towers(params))
    queries, targets, scale, *_ = encode_by
    read = wrap(self.method.reader.read)
    return steps.Encoders(
        lambda params, tokens: queries(of_towers(params), tokens),
        lambda params, tokens: targets(of_towers(params), tokens),
        lambda params: scale(of_towers(params)),
        lambda params, rows: read(params['reader'], rows),
        self._read_fused())

  def _read_fused(self):
    """Returns what reads the passages of a question together, or None."""
    reader, devices = self.method.reader, self.mesh.size
    if not reader.fuses:
      return None
    # As many passages at a time as others are; padding is inside of a row.
    size = self.config.encoding.chunk_size // self.method.num_negatives
    size = max(size // devices, 1) * devices
    read = chunking.chunked(
        reader.read_fused, buckets=(2**30,), layout=self.layout,
        chunk_size=size if self.config.encoding.chunk_size else None)
    return lambda params, rows: read(params['reader'], rows)

  def make_rows(self) -> Callable[
      [jax.Array, jax.Array], tuple[jax.Array, np.ndarray]] | None:
    """Returns the function from draws to a reader's rows, see reading.Gather.

    None without a reader.
    """
    if self.reader is None:
      return None
    return reading.Gather(
        self.reader.texts, self.dataset.query_texts, self._answers().of,
        self.dataset.corpus_texts, sharding.batch(self.mesh),
        self.reader.reader.row_length)

  def _answers(self):
    return self.dataset.answers[self.config.data.train_split]

  def make_gather(self) -> Callable[[jax.Array], jax.Array]:
    """Returns the function from corpus ids to target tokens."""
    kind = (target_tokens.DeviceTokens if self.config.data.tokens_on_device
            else target_tokens.HostTokens)
    return kind(self.target_tokens, self.mesh)

  def make_teacher(self) -> Callable[
      [jax.Array, jax.Array, jax.Array], types.TeacherVectors] | None:
    """Returns the function from ids to a teacher's vectors of them.

    None where training reads none; see `teacher_vectors`.
    """
    if self.teacher is None:
      return None
    kind = (teacher_vectors.DeviceVectors if self.config.teacher.on_device
            else teacher_vectors.HostVectors)
    return kind(self.teacher, self.mesh)

  def make_batches(self) -> data.TrainBatches | data.QuestionBatches:
    """Returns the training batches, addressed by step."""
    split, dataset = self.config.data.train_split, self.dataset.by_text
    if not self.method.has_positives:
      return data.QuestionBatches(
          self._answers().query_rows, self.query_tokens,
          batch_size=self.config.batch_size, seed=self.config.seed,
          num_shards=jax.process_count(), shard_index=jax.process_index(),
          turns=self.turns)
    return data.TrainBatches(
        dataset.qrels[split], self.query_tokens, self.target_tokens,
        batch_size=self.config.batch_size, seed=self.config.seed,
        num_shards=jax.process_count(), shard_index=jax.process_index(),
        candidates=dataset.candidates.get(split),
        num_candidates=self.method.num_candidates,
        positive=self.config.data.positive, turns=self.turns)


def build(config: config_dict.ConfigDict, *,
          num_devices: int | None = None, workdir: str | None = None,
          training: bool = True) -> Experiment:
  """Returns the Experiment for a config.

  Args:
    config: ConfigDict.
    num_devices: devices to use; all by default.
    workdir: folder of a run, of which `config` is the settled config: its
      tokenizer and model are taken. Without one they are made.
    training: whether to train it. Else the data need not have what only
      training reads: its splits, candidates, enough targets for the memory.

  Raises:
    ValueError: for options that cannot work.
    FileNotFoundError: if a run lacks its tokenizer or model.
  """
  mesh = sharding.make_mesh(num_devices)
  if config.profile.num_steps and config.profile.start < 1:
    raise ValueError(
        f'--config.profile.start={config.profile.start} must be at least 1: '
        'the first step is compiled, which a trace of it would show.')
  quantisation.check(
      config.evaluation.precisions, '--config.evaluation.precisions')
  quantisation.check_multiplier(
      config.evaluation.rescore_multiplier,
      '--config.evaluation.rescore_multiplier')
  if training:
    _check_best(config)
  if workdir is None:
    config = encoders.settled(config)
  layout = encoders.make_layout(config, mesh)
  dataset = datasets.make_dataset(config, training=training)
  make_tokenizer = functools.cache(
      lambda: datasets.make_tokenizer(config, dataset) if workdir is None
      else run_folder.read_tokenizer(workdir))
  reader = readers.make(config, make_tokenizer, workdir)
  split = config.data.train_split
  method = methods_lib.make_method(
      config, len(dataset.corpus_ids), len(dataset.query_ids),
      len(dataset.qrels[split].queries()) if split in dataset.qrels else None,
      reader and reader.reader)
  if training:
    setting = methods_lib.make_setting(
        config, sharding.num_shards(mesh), dataset)
    compatibility.check_setting(method, setting)
    plan = methods_lib.make_plan(config)
    compatibility.check_episodes(
        plan, method, setting, num_steps=config.num_steps,
        best=config.checkpoint.best)
    methods_lib.make_early_method(method, plan)  # which checks it
  tokenizer = make_tokenizer()
  query_tokens, target_tokens_ = datasets.make_tokens(
      config, dataset, tokenizer)
  model, params = (encoders.make_model(config, tokenizer) if workdir is None
                   else encoders.read_model(config, workdir))
  if reader is not None:
    params = {**params, 'reader': reader.params}
  method = methods_lib.fitted(method, model.dim)
  for option in ('estimator.matryoshka_dims', 'evaluation.dims'):
    section, name = option.split('.')
    matryoshka.check_dims(
        config[section][name], model.dim, f'--config.{option}')
  return Experiment(
      config=config, mesh=mesh, layout=layout, dataset=dataset,
      tokenizer=tokenizer, query_tokens=query_tokens,
      target_tokens=target_tokens_, model=model, params=params, method=method,
      reader=reader)


def _check_best(config: config_dict.ConfigDict) -> None:
  """Raises ValueError unless training measures what checkpoint.best names."""
  best, split = config.checkpoint.best, config.data.dev_split
  if not best:
    return
  if not config.evaluation.every:
    raise ValueError(
        f'--config.checkpoint.best={best!r} needs measures of the dev split '
        'during training; set --config.evaluation.every=STEPS.')
  sets = ['', *(f'{name}/' for name in mixtures.sources(config))]
  prefixes = ['', *(f'/{dim}' for dim in config.evaluation.dims)]
  forms = ['', *(f'/{name}' for name in quantisation.variants(
      config.evaluation.precisions, config.evaluation.rescore_multiplier))]
  measured = [f'{split}/{of_set}{name}{prefix}{form}' for of_set in sets
              for prefix in prefixes for form in forms for name in measures.ALL]
  if best not in measured:
    raise ValueError(
        f'--config.checkpoint.best={best!r} is not measured during training; '
        f'name one of {", ".join(measured)}.')
