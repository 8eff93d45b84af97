"""Our encoders behind the `SearchProtocol` of mteb, version 2.

  import mteb
  import retrieval_jax

  model = retrieval_jax.MtebSearch.of_run('runs/stale')
  mteb.evaluate(model, mteb.get_tasks(['SciFact', 'ArguAna']))

It embeds the corpus of a task and searches it exactly, as the command
`experiments.evaluate` does; nothing is exported. mteb keeps results by a
model's name and revision; the revision is a hash of the weights and of all else
that changes an embedding, so another checkpoint never gets the results of this
one.

What is ours and what is theirs:
  * prompts: those of the run or folder, never those that a task of mteb names;
  * instructions, of tasks that give each query one, follow the query, as in
    mteb's own encoders;
  * lengths: those of the run, in tokens, for instance 48 for targets;
  * a document is 'title text', as everywhere here and in mteb;
  * measures: mteb's, which leaves out a query's own passage where the task says
    so (ArguAna).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

import jax
from ml_collections import config_dict
import numpy as np

from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax import origins
from retrieval_jax import sharding
from retrieval_jax import trained
from retrieval_jax import types
from retrieval_jax.data import errors
from retrieval_jax.factory import defaults
from retrieval_jax.indexes import exact
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import embedding

Scores = dict[str, dict[str, float]]
"""query id -> target id -> score."""


class MtebSearch:
  """An encoder that mteb evaluates; implements `mteb.models.SearchProtocol`.

  Make it by `of_run` or `of_folder`. It holds the embeddings of the corpus that
  was indexed last.
  """

  def __init__(self, name: str, config: config_dict.ConfigDict,
               tokenizer: data.Tokenizer, model: dual_encoder.DualEncoder,
               params: types.Params, mesh: jax.sharding.Mesh):
    """Takes the parts of an encoder.

    Args:
      name: what results are kept under, of the form 'ORGANISATION/MODEL'.
      config: as `factory.settled` returns it: lengths, prompts, batches.
      tokenizer: without prompts.
      model: whose parameters `params` are.
      params: of the model.
      mesh: devices.
    """
    self.name = name
    self._config = config
    self._tokenizer = tokenizer
    self._model = model
    self._params = params
    self._mesh = mesh
    self._index = exact.ExactIndex(mesh, config.memory.chunk_rows)
    self._ids: list[str] = []
    self._targets = np.empty((0, model.dim), np.float32)

  @classmethod
  def of_run(cls, workdir: str, num_devices: int | None = None) -> 'MtebSearch':
    """Returns the encoder of a run, which is called by the folder's name.

    Raises:
      FileNotFoundError: if there is no run or no checkpoint in `workdir`.
      ValueError: if the run has trained the rows of a table in place of its
        target tower, so that it can only search its own corpus.
    """
    retriever = trained.open(workdir, num_devices)
    experiment = retriever.experiment
    if experiment.method.targets.source == 'rows':
      raise ValueError(
          f"{workdir} was trained with --config.targets.source='rows': its "
          'targets are rows of a table, and it cannot embed others.')
    return cls(_name(workdir), experiment.config, experiment.tokenizer,
               experiment.model, sharding.put(
                   retriever.params, sharding.replicated(experiment.mesh)),
               experiment.mesh)

  @classmethod
  def of_folder(cls, folder: str, options: Mapping[str, Any] | None = None,
                num_devices: int | None = None) -> 'MtebSearch':
    """Returns the encoder of a model folder, as --config.model.pretrained.

    Args:
      folder: in Hugging Face layout, a package or a name on the hub.
      options: of a config, to set, such as {'data.target_length': 256}; lengths
        are those of the folder by default, and all layers are used.
      num_devices: devices to use; all by default.

    Raises:
      ValueError: for options that cannot work.
    """
    config = defaults.get_config()
    config.update_from_flattened_dict({
        'model.pretrained': folder, 'model.num_layers': 0,
        'data.query_length': 0, 'data.target_length': 0, **(options or {})})
    config = factory.settled(config)
    none: Any = None  # the folder has a tokenizer, so no corpus is read
    tokenizer = factory.make_tokenizer(config, none)
    model, params = factory.make_model(config, tokenizer)
    return cls(_name(folder), config, tokenizer, model, params,
               sharding.make_mesh(num_devices))

  def index(self, corpus: Any, **options: Any) -> None:
    """Embeds the corpus of a task.

    Args:
      corpus: datasets.Dataset of 'id', 'text' and maybe 'title'.
      **options: what else mteb says about the task; not read.
    """
    del options
    self._ids = list(corpus['id'])
    texts = _texts(corpus)
    if 'title' in corpus.column_names:
      texts = [f'{title} {text}' if title else text
               for title, text in zip(corpus['title'], texts)]
    self._targets = self._embed(texts, 'target')

  def search(self, queries: Any, *, top_k: int,
             top_ranked: Mapping[str, Sequence[str]] | None = None,
             **options: Any) -> Scores:
    """Returns the best targets of each query among those indexed last.

    Args:
      queries: datasets.Dataset of 'id', 'text' and maybe 'instruction'.
      top_k: targets per query.
      top_ranked: query id -> target ids, of tasks that ask to rank these and no
        others; None searches the corpus.
      **options: what else mteb says about the task; not read.
    """
    del options
    ids, texts = list(queries['id']), _texts(queries)
    if 'instruction' in queries.column_names:
      texts = [f'{text} {instruction}' if instruction else text
               for text, instruction in zip(texts, queries['instruction'])]
    embeddings = self._embed(texts, 'query')
    if top_ranked is not None:
      return self._ranked(ids, embeddings, top_ranked, top_k)
    scores, rows = self._index.search(
        self._index.build(self._targets), embeddings,
        min(top_k, len(self._ids)))
    return {query: {self._ids[row]: score for row, score in zip(*found)
                    if row >= 0}
            for query, *found in zip(ids, rows.tolist(), scores.tolist())}

  def _ranked(self, ids: Sequence[str], embeddings: np.ndarray,
              top_ranked: Mapping[str, Sequence[str]], top_k: int) -> Scores:
    """Returns the scores of given targets."""
    row_of = {name: row for row, name in enumerate(self._ids)}
    found: Scores = {}
    for query, vector in zip(ids, embeddings):
      names = list(top_ranked.get(query, ()))
      scores = self._targets[[row_of[name] for name in names]] @ vector
      best = np.argsort(-scores, kind='stable')[:top_k]
      found[query] = {names[i]: float(scores[i]) for i in best}
    return found

  @functools.cached_property
  def mteb_model_meta(self) -> Any:
    """What mteb writes down about the model, a ModelMeta.

    Raises:
      ModuleNotFoundError: without mteb.
    """
    meta = errors.import_extra('mteb.models.model_meta', 'mteb')
    config = self._config
    return meta.ModelMeta.create_empty({
        'name': self.name, 'revision': self.revision, 'framework': ['JAX'],
        'embed_dim': self._model.dim, 'max_tokens': config.data.target_length,
        'n_parameters': sum(np.size(x) for x in jax.tree.leaves(self._params)),
        'similarity_fn_name': meta.ScoringFunction(
            'cosine' if config.model.normalize else 'dot'),
        'use_instructions': bool(
            config.model.query_prompt or config.model.target_prompt)})

  @functools.cached_property
  def revision(self) -> str:
    """A hash of all that the embeddings of texts depend on."""
    config = self._config
    facts = json.dumps([
        origins.digest(self._params), repr(self._model),
        self._tokenizer.fingerprint,
        config.model.query_prompt, config.model.target_prompt,
        config.data.query_length, config.data.target_length])
    return hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()

  def _embed(self, texts: Sequence[str], side: str) -> np.ndarray:
    """Returns embeddings [n, D] float32 of texts, by the tower of a side."""
    config = self._config
    tokens, lengths = dataclasses.replace(
        self._tokenizer, prompt=config.model[f'{side}_prompt']).encode_batch(
            texts, config.data[f'{side}_length'])
    encode = (self._model.encode_queries if side == 'query'
              else self._model.encode_targets)
    return embedding.embed(
        encode, self._params, data.TokenStore(tokens, lengths), mesh=self._mesh,
        batch_tokens=config.encoding.batch_tokens,
        buckets=tuple(config.encoding.buckets))


def _texts(rows: Any) -> list[str]:
  """Returns the column 'text' of a dataset of mteb, checked."""
  if 'text' not in rows.column_names:
    raise ValueError(
        f'Expected a task of texts, got one of {rows.column_names}; this is an '
        'encoder of texts alone.')
  texts = list(rows['text'])
  other = next((text for text in texts if not isinstance(text, str)), None)
  if other is not None:
    raise ValueError(
        f'Expected texts, got {other!r}: a task of conversations, which this '
        'encoder does not read.')
  return texts


def _name(path: str) -> str:
  """Returns what mteb calls the model at a path."""
  return f'retrieval_jax/{os.path.basename(os.path.abspath(path))}'
