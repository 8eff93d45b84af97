"""What training leaves behind, opened to be used: search, embed, evaluate."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import os
import shutil
import sys
from typing import Any, NamedTuple
import warnings

import jax
from ml_collections import config_dict
import numpy as np

from retrieval_jax import base_params
from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax import files
from retrieval_jax import origins
from retrieval_jax import processes
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.adapters import store
from retrieval_jax.factory import defaults
from retrieval_jax.factory import run_folder
from retrieval_jax.indexes import exact
from retrieval_jax.models import dual_encoder
from retrieval_jax.training import checkpoint
from retrieval_jax.training import meter as meters
from retrieval_jax.training import state as states
from retrieval_jax.training import step as steps

BASELINES_FILE = 'baselines.json'
_VECTORS, _ORIGIN = 'vectors.npy', 'origin.json'  # of WORKDIR/targets


class CorpusIndex(NamedTuple):
  """An index over a corpus, whose row i is the corpus id i.

  Attributes:
    index: has `search(state, queries, k, exclude)`.
    state: what it searches.
  """
  index: Any
  state: Any


class Found(NamedTuple):
  """Results of a search, a list per query, best first.

  Attributes:
    ids: of the data set.
    scores: inner products, unscaled.
    texts: as the data set has them.
  """
  ids: list[list[str]]
  scores: list[list[float]]
  texts: list[list[str]]


class Answered(NamedTuple):
  """What a reader answers to a question, by the passages that it read.

  Attributes:
    answer: the likeliest over all passages, '' where there is none.
    ids: of the K passages, best first by the retriever.
    texts: K, as the data set has them.
    prior: [K] float32, their probabilities by the retriever.
    posterior: [K] float32, and given the answer.
    spans: K (start, stop), where each passage has its own answer, in characters
      of its text; None where the reader points at none.
    answers: K, these answers.
  """
  answer: str
  ids: list[str]
  texts: list[str]
  prior: np.ndarray
  posterior: np.ndarray
  spans: list[tuple[int, int] | None]
  answers: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRetriever:
  """An encoder over its corpus: what a run has learned, ready to be used.

  Attributes:
    experiment: factory.Experiment: the config, data, tokens and model.
    params: the model's parameters, where `experiment.layout` has them.
    table_embeddings: [M, D] numpy, those of the table where they are the
      targets (targets.source 'frozen' and 'rows'), else None.
    step: of the checkpoint; 0 of an encoder that a config starts from.
    workdir: folder of the run; None of such an encoder.
  """
  experiment: factory.Experiment
  params: types.Params
  table_embeddings: np.ndarray | None
  step: int
  workdir: str | None = None

  @property
  def config(self) -> config_dict.ConfigDict:
    """The resolved options."""
    return self.experiment.config

  @property
  def dataset(self) -> data.RetrievalDataset:
    """The corpus, the queries and the judgements."""
    return self.experiment.dataset

  @property
  def model(self) -> dual_encoder.DualEncoder:
    """The model whose parameters `params` are."""
    return self.experiment.model

  def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
    """Returns embeddings [n, D] float32 of any texts, by the query tower."""
    return self.experiment.embed_texts(self.params, texts)

  def embed_targets(self, out: Any = None) -> Any:
    """Returns embeddings [N, D] float32 of the corpus, as it is searched by.

    Args:
      out: takes them by `out[ids] = embeddings` as they come, and is returned
        instead.
    """
    return self.experiment.targets_of(self.params, self.table_embeddings, out)

  def stored_targets(self) -> np.ndarray:
    """Returns `embed_targets` of a run, which it computes once per checkpoint.

    They are kept in WORKDIR/targets and memory-mapped from there, as long as
    they are what `origin` says of this retriever. An encoder that has no run
    keeps nothing, nor does a run whose folder cannot be written to.
    """
    if self.workdir is None:
      return self.embed_targets()
    folder = os.path.join(self.workdir, 'targets')
    stored = _read_stored(folder, self.origin)
    processes.check_same(
        {f'what is kept in {folder}': stored is not None},
        'All must see the same folder.')
    if stored is None and self._store_targets(folder):
      stored = _read_stored(folder, self.origin)
    return self.embed_targets() if stored is None else stored

  def _store_targets(self, folder: str) -> bool:
    """Embeds the corpus into a new `folder`; returns whether that is there.

    Its vectors go to the file as they come. Where one cannot be written, a
    warning says so, and no time is lost on embedding.
    """
    made, temporary, problem = True, '', None
    try:
      with contextlib.ExitStack() as stack:
        try:
          if processes.is_first():
            shutil.rmtree(folder, ignore_errors=True)
            temporary = stack.enter_context(files.new_folder(folder))
          out = stack.enter_context(processes.new_array(
              os.path.join(temporary, _VECTORS), np.float32,
              (len(self.dataset.corpus_ids), self.model.dim)))
        except OSError as error:
          problem = error
        if processes.total(problem is not None):
          raise problem or OSError('the first process says why')
        self.embed_targets(out)
        if processes.is_first():
          files.write_json(os.path.join(temporary, _ORIGIN), self.origin)
          files.seal(temporary)
    except OSError as error:
      made = False
      if processes.is_first():
        warnings.warn(
            f'{folder}: cannot keep the embeddings of the corpus, which are '
            f'made again next time: {error}.', stacklevel=3)
    return not processes.total(not made)

  @functools.cached_property
  def origin(self) -> dict[str, Any]:
    """What decides the numbers of `embed_targets` and `embed_queries`; JSON."""
    encoder = run_folder.facts(self.model)
    for name in ('tied', 'scale', 'learn_scale'):  # not of the vectors
      del encoder[name]
    del encoder['config']['remat']
    options = self.config
    return {
        'parameters': origins.digest((self.params, self.table_embeddings)),
        'dtype': encoder['config'].pop('dtype'), 'encoder': encoder,
        'tokenizer': self.experiment.tokenizer.fingerprint,
        'prompts': [options.model.query_prompt, options.model.target_prompt],
        'lengths': [options.data.query_length, options.data.target_length],
        'dim': self.model.dim, 'corpus': self.dataset.corpus_fingerprint}

  def index(self, folder: str | None = None) -> CorpusIndex:
    """Returns the corpus, ready to be searched.

    Args:
      folder: of an index that was adapted to this corpus; None searches the
        targets exactly, as the model embeds them.

    Raises:
      ValueError: if `folder` holds no index, or one of another corpus.
    """
    mesh, chunk_rows = self.experiment.mesh, self.config.memory.chunk_rows
    if folder is None:
      exact_index = exact.ExactIndex(
          mesh, chunk_rows, scan_dtype=self.config.evaluation.scan_dtype)
      return CorpusIndex(exact_index, exact_index.build(self.stored_targets()))
    index, state, ids = store.load(folder, mesh, chunk_rows)
    corpus_ids = self.dataset.corpus_ids
    if len(ids) != len(corpus_ids) or any(
        a != b for a, b in zip(ids, corpus_ids)):
      raise ValueError(
          f'--index={folder} is over {len(ids)} targets, the first {ids[0]!r}, '
          f'not over the {len(corpus_ids)} of {self.dataset.name}, the first '
          f'{corpus_ids[0]!r}; fit it to embeddings of this corpus.')
    origins.check_same(
        store.origin(folder), self.origin, f'--index={folder}',
        f'--workdir={self.workdir}' if self.workdir else '--config')
    return CorpusIndex(index, state)

  def search(self, texts: Sequence[str], k: int = 10,
             index: CorpusIndex | None = None) -> Found:
    """Returns the k best targets of each query.

    Args:
      texts: n queries.
      k: results per query; there are fewer where the corpus has fewer.
      index: what `index` returned; None searches the targets exactly. They are
        put on the device by the first such search and stay there.
    """
    dataset = self.dataset
    scores, rows = self._search(texts, k, index)
    found = [row[row >= 0] for row in rows]
    return Found(
        [[dataset.corpus_ids[int(i)] for i in row] for row in found],
        [of_query[row >= 0].tolist() for of_query, row in zip(scores, rows)],
        [[dataset.corpus_texts[int(i)] for i in row] for row in found])

  def answer(self, texts: Sequence[str], k: int = 20,
             index: CorpusIndex | None = None) -> list[Answered]:
    """Returns what the run's reader answers to each question.

    Args:
      texts: n questions.
      k: passages that are read.
      index: as of `search`.

    Raises:
      ValueError: if the run has no reader.
    """
    scores, rows = self._search(texts, k, index)
    answered = []
    for ids, reading in zip(rows, self.experiment.read_texts(
        self.params, texts, rows, scores)):
      there = np.flatnonzero(ids >= 0)
      of = lambda items, there=there: [items[i] for i in there]
      answered.append(Answered(
          reading.answer,
          [self.dataset.corpus_ids[int(i)] for i in ids[there]],
          [self.dataset.corpus_texts[int(i)] for i in ids[there]],
          reading.prior[there], reading.posterior[there], of(reading.spans),
          of(reading.texts)))
    return answered

  def _search(self, texts, k, index):
    """Returns (scores, corpus rows), [n, k] each."""
    index = index or self._own_index
    return index.index.search(
        index.state, self.embed_queries(texts),
        min(k, len(self.dataset.corpus_ids)))

  @functools.cached_property
  def _own_index(self) -> CorpusIndex:
    return self.index()


def open(workdir: str, num_devices: int | None = None) -> TrainedRetriever:
  """Opens a run at its best checkpoint, if it keeps that, else at its last.

  Says which where it is not the last.

  Args:
    workdir: folder of the run, which need not have finished.
    num_devices: devices to use, whatever the run used; all by default.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint in `workdir`.
    ValueError: if the rows of the run's table are its targets and its data has
      changed; of other runs a warning says so.
  """
  with _checkpoints(workdir) as (config, kept):
    experiment = factory.build(
        config, num_devices=num_devices, workdir=workdir, training=False)
    where = experiment.layout.shardings
    changed, base = base_params.split(experiment.params)
    abstract = base_params.join(jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding),
        changed, where(changed)), sharding.put(base, where(base)))

    def read(last):
      meta = kept.restore_meta(last)
      _check_data(workdir, experiment, meta['config'], may_change=(
          experiment.method.targets.source == 'encoder'))
      best = meta.get('best') or {}
      step = best.get('step') or last
      params, embeddings = restore_model(experiment, kept, step, abstract)
      if step != last and processes.is_first():
        print(f'{workdir}: step {step}, the best by {best["measure"]}; the '
              f'last is {last}.', file=sys.stderr)
      return params, embeddings, step

    params, embeddings, step = kept.newest(read)
  return TrainedRetriever(experiment, params, embeddings, step, workdir)


def restore_model(experiment: factory.Experiment,
                  kept: checkpoint.Checkpoints, step: int,
                  abstract_params: Any) -> tuple[
                      types.Params, np.ndarray | None]:
  """Returns params and `table_embeddings`, see TrainedRetriever, of a step.

  Args:
    experiment: factory.Experiment.
    kept: checkpoints of a run of it.
    step: of the checkpoint.
    abstract_params: pytree of ShapeDtypeStruct with shardings.
  """
  return (kept.restore_params(abstract_params, step),
          None if experiment.method.targets.source == 'encoder'
          else kept.restore_table_embeddings(step))


def from_config(config: config_dict.ConfigDict,
                num_devices: int | None = None) -> TrainedRetriever:
  """Returns the encoder that a config starts from, untrained by us.

  Its data need not have a split to train on.

  Raises:
    ValueError: for options that cannot work.
  """
  experiment = factory.build(config, num_devices=num_devices, training=False)
  return TrainedRetriever(experiment, experiment.params, None, 0)


def open_either(workdir: str | None, config: config_dict.ConfigDict | None
                ) -> TrainedRetriever:
  """Opens the one of the two that is given; the other is None.

  Raises:
    ValueError: unless exactly one of the two is given.
    FileNotFoundError: if there is no run or no checkpoint in `workdir`.
  """
  if bool(workdir) == bool(config):
    raise ValueError(
        'Expected --workdir (a run) or --config (the encoder it starts from), '
        f'one of the two, got {"both" if workdir else "neither"}.')
  return open(workdir) if workdir else from_config(config)


def load_state(workdir: str, num_devices: int | None = None
               ) -> tuple[factory.Experiment, states.TrainState]:
  """Returns (factory.Experiment, TrainState) of a run's last checkpoint.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint in `workdir`.
    ValueError: if the run's data has changed.
  """
  with _checkpoints(workdir) as (config, kept):
    experiment = factory.build(
        config, num_devices=num_devices, workdir=workdir)
    _check_data(workdir, experiment, kept.restore_meta()['config'],
                may_change=False)
    state, _ = kept.restore(
        abstract_state(experiment, experiment.make_step()[0]))
  return experiment, state


def read_config(workdir: str) -> config_dict.ConfigDict:
  """Returns the ConfigDict of a run.

  Options that were added after the run was made keep their defaults.

  Raises:
    FileNotFoundError: if `workdir` holds no run.
  """
  path = os.path.join(workdir, 'config.json')
  if not os.path.exists(path):
    raise FileNotFoundError(
        f'--workdir={workdir} holds no config.json; it is not the folder of a '
        'run. Train one with python -m experiments.train.')
  config = defaults.get_config().unlock()
  try:
    config.update(config_dict.ConfigDict(files.read_object(path)))
  except (TypeError, ValueError) as error:
    raise ValueError(
        f'{path} is not the config of a run: {error} The command of its '
        'training, given again, writes it anew.') from error
  return config.lock()


@contextlib.contextmanager
def _checkpoints(workdir: str) -> Iterator[
    tuple[config_dict.ConfigDict, checkpoint.Checkpoints]]:
  """Yields a run's config and its Checkpoints, of which there are some."""
  config = read_config(workdir)
  folder = run_folder.checkpoints(workdir)
  if not os.path.isdir(folder):
    raise FileNotFoundError(
        f'--workdir={workdir} holds no checkpoints; run or resume training.')
  with checkpoint.Checkpoints(folder, read_only=True) as kept:
    if kept.latest_step() is None:
      raise FileNotFoundError(
          f'--workdir={workdir} holds no checkpoint yet; resume training.')
    yield config, kept


def _check_data(workdir: str, experiment: factory.Experiment,
                saved: Mapping[str, Any], *, may_change: bool) -> None:
  """Warns, or raises, where the data is not what the run was trained on."""
  if saved['data_fingerprint'] == experiment.dataset.fingerprint:
    return
  message = (
      f'--workdir={workdir}: the data at '
      f'{experiment.config.data.path or experiment.dataset.name} (now '
      f'{len(experiment.dataset.corpus_ids)} targets) has changed since the '
      'run was trained on it')
  if not may_change:
    raise ValueError(
        f'{message}, and the rows of its memory are no longer its targets. '
        'Restore the data, or train again.')
  warnings.warn(f'{message}; what follows is about the data as it is now.',
                stacklevel=3)


def _read_stored(folder: str, origin: Mapping[str, Any]) -> np.ndarray | None:
  """Maps vectors that were stored; None where there are none of `origin`."""
  if not os.path.isdir(folder):
    return None
  problem = files.damage(folder, sampled=True)
  if problem:
    warnings.warn(f'{problem}; the corpus is embedded again.', stacklevel=3)
  elif files.read_json(os.path.join(folder, _ORIGIN)) == origin:
    return np.load(os.path.join(folder, _VECTORS), mmap_mode='r')
  return None


def read_meter(workdir: str, step: int) -> meters.Meter:
  """Returns a Meter with the counts of the checkpoint of `step`."""
  with checkpoint.Checkpoints(
      run_folder.checkpoints(workdir), read_only=True) as saved:
    counts = saved.restore_meta(step)['meter']
  meter = meters.Meter()
  meter.load_state_dict(counts)
  return meter


def read_baselines(workdir: str) -> Mapping[str, Any]:
  """Returns what the first start of a run measured before training."""
  path = os.path.join(workdir, BASELINES_FILE)
  return files.read_object(path) if os.path.exists(path) else {}


def abstract_state(experiment: factory.Experiment, train_step: steps.TrainStep
                   ) -> states.TrainState:
  """Returns the TrainState of an experiment without its arrays."""
  nothing = np.broadcast_to(
      np.float32(0), (len(experiment.first_ids()), experiment.model.dim))
  return states.abstract(train_step.init_state(
      experiment.params, experiment.make_table(nothing)))
