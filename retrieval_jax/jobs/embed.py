"""Writes the embeddings of a corpus and of its queries as .npy files."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import os
from typing import Any

from ml_collections import config_dict
import numpy as np

from retrieval_jax import data
from retrieval_jax import files
from retrieval_jax import matryoshka
from retrieval_jax import processes
from retrieval_jax import trained
from retrieval_jax.data import embeddings as embeddings_lib
from retrieval_jax.data.readers import beir


def run(out: str, *, workdir: str | None = None,
        config: config_dict.ConfigDict | None = None, dtype: str = 'float32',
        pairs: Sequence[str] = (), dim: int | None = None
        ) -> tuple[np.ndarray, np.ndarray]:
  """Embeds everything and writes `out` whole or not at all.

  OUT gets targets.npy [N, D], queries.npy [Q, D] (rows in the order of
  target_ids.txt and query_ids.txt, one id per line), the judgements as
  qrels/SPLIT.tsv and embeddings.json; of pairs, pairs-NAME.npy and
  pairs-NAME_target_ids.txt.

  Args:
    out: folder to write.
    workdir: folder of a run; its last checkpoint embeds.
    config: ConfigDict, in place of `workdir`: its initial encoder embeds.
    dtype: of the stored numbers.
    pairs: 'targets' or 'FIELD=FILE' each.
    dim: first dimensions to keep, brought to length one where the model does so
      with whole embeddings; None for all.

  Returns:
    Embeddings [N, D] of the targets and [Q, D] of the queries, in `dtype`,
    mapped from what was written.

  Raises:
    ValueError: if `out` exists, not one of workdir and config is given, or
      there are fewer dimensions than `dim`.
    DataError: where a file of pairs is malformed, or an embedding is not
      finite or all zeros.
  """
  if os.path.exists(out):
    raise ValueError(f'--out={out} exists; name a new folder or remove it.')
  retriever = trained.open_either(workdir, config)
  with processes.new_folder(os.path.abspath(out)) as folder:
    write(retriever, folder, out, dtype=dtype, pairs=pairs, dim=dim)
  return read(out)


def read(out: str) -> tuple[np.ndarray, np.ndarray]:
  """Maps the targets [N, D] and the queries [Q, D] of a folder."""
  targets, queries = (
      np.load(os.path.join(out, f'{name}.npy'), mmap_mode='r')
      for name in ('targets', 'queries'))
  return targets, queries


def write(retriever: trained.TrainedRetriever, folder: str, out: str, *,
          dtype: str = 'float32', pairs: Sequence[str] = (),
          dim: int | None = None) -> None:
  """Embeds into a folder that is there.

  Args:
    retriever: that embeds.
    folder: to write to, of the first process alone.
    out: where it will be, for messages.
    dtype: as of `run`.
    pairs: likewise.
    dim: likewise.

  Raises:
    ValueError: as of `run`.
    DataError: likewise.
  """
  dataset = retriever.dataset
  if dim is None:
    dim = retriever.model.dim
  matryoshka.check_dims([dim], retriever.model.dim, '--dim')
  texts = {}
  for pair in pairs:
    name = pair.partition('=')[0]
    if name in texts:
      raise ValueError(
          f'--pairs={pair}: {name!r} is given twice; rename the field in one '
          'of the files.')
    texts[name] = _texts(pair, dataset)  # before the hours of embedding

  cut = lambda vectors: vectors
  if dim < retriever.model.dim:
    cut = functools.partial(matryoshka.truncate, dim=dim,
                            normalize=retriever.config.model.normalize)

  def column(name, num_rows):
    return _column(folder, out, name, (num_rows, dim), dtype, cut)

  with column('targets', len(dataset.corpus_ids)) as rows:
    retriever.embed_targets(rows)
  with column('queries', len(dataset.query_ids)) as rows:
    rows[:] = retriever.experiment.embed_queries(retriever.params)
  for name, (ids, of_name) in texts.items():
    with column(f'pairs-{name}', len(ids)) as rows:
      rows[:] = retriever.embed_queries(of_name)
  origin = {**retriever.origin, 'dim': dim}
  if processes.is_first():
    embeddings_lib.write_ids(
        os.path.join(folder, 'target_ids.txt'), dataset.corpus_ids)
    embeddings_lib.write_ids(
        os.path.join(folder, 'query_ids.txt'), dataset.query_ids)
    for name, (ids, _) in texts.items():
      embeddings_lib.write_ids(
          os.path.join(folder, f'pairs-{name}_target_ids.txt'), ids)
    _write_judgements(os.path.join(folder, 'qrels'), dataset)
    files.write_json(os.path.join(folder, 'embeddings.json'), {
        'dataset': dataset.name, 'workdir': retriever.workdir,
        'step': retriever.step, 'dim': dim,
        'num_targets': len(dataset.corpus_ids),
        'num_queries': len(dataset.query_ids), 'dtype': dtype,
        'origin': origin})


@dataclasses.dataclass(frozen=True, eq=False)
class _Cut:
  """Takes embeddings [m, D] of some rows, and keeps a part of each.

  Attributes:
    rows: what takes [m, dim].
    cut: [m, D] -> [m, dim].
  """
  rows: Any
  cut: Callable[[np.ndarray], np.ndarray]

  def __setitem__(self, at: Any, embeddings: np.ndarray) -> None:
    self.rows[at] = self.cut(embeddings)


@contextlib.contextmanager
def _column(folder: str, out: str, name: str, shape: tuple[int, int],
            dtype: str, cut: Callable[[np.ndarray], np.ndarray]
            ) -> Iterator[Any]:
  """Yields what takes the rows of a file of embeddings as they come.

  Args:
    folder: where it is written, by the first process alone.
    out: where it will be, for messages.
    name: of the file, without .npy.
    shape: (n, dim) of what is stored.
    dtype: likewise.
    cut: see `_Cut`.

  Raises:
    DataError: if a row that was written is not finite or all zeros.
  """
  file = f'{name}.npy'
  with processes.new_array(os.path.join(folder, file), dtype, shape) as rows:
    yield _Cut(rows, cut)
    if processes.is_first():
      # As they would be refused by whatever reads them.
      embeddings_lib.check_rows(rows, os.path.join(out, file))


def _write_judgements(folder: str, dataset: data.RetrievalDataset) -> None:
  """Writes those of each split, but of answers, which are not embedded."""
  for split, qrels in dataset.qrels.items():
    if not len(qrels.grades):
      continue
    os.makedirs(folder, exist_ok=True)
    embeddings_lib.write_qrels(
        folder, split, qrels, dataset.query_ids, dataset.corpus_ids)


def _texts(pair: str, dataset: data.RetrievalDataset
           ) -> tuple[Sequence[str], Sequence[str]]:
  """Returns (target ids, texts) of one --pairs; empty texts are left out."""
  field, _, path = pair.partition('=')
  if pair == 'targets':
    found = list(zip(dataset.corpus_ids, dataset.corpus_texts))
  elif field and path:
    found = list(beir.read_texts(
        os.path.expanduser(path), field, set(dataset.corpus_ids)))
  else:
    raise ValueError(
        f"--pairs={pair}: expected 'targets' or FIELD=FILE, such as "
        'title=corpus.jsonl.')
  found = [(name, text) for name, text in found if text.strip()]
  if not found:
    raise ValueError(f'--pairs={pair}: there is no text to embed.')
  names, texts = zip(*found)
  return names, texts
