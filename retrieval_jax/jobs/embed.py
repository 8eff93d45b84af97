"""Writes the embeddings of a corpus and of its queries as .npy files."""

from collections.abc import Mapping, Sequence
import os

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
    Embeddings [N, D] of the targets and [Q, D] of the queries, float32.

  Raises:
    ValueError: if `out` exists, not one of workdir and config is given, or
      there are fewer dimensions than `dim`.
    DataError: where a file of pairs is malformed, or an embedding is not
      finite or all zeros.
  """
  if os.path.exists(out):
    raise ValueError(f'--out={out} exists; name a new folder or remove it.')
  return write(trained.open_either(workdir, config), out, dtype=dtype,
               pairs=pairs, dim=dim)


def write(retriever: trained.TrainedRetriever, out: str, *,
          dtype: str = 'float32', pairs: Sequence[str] = (),
          dim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Embeds by a trained.TrainedRetriever; the rest is as of `run`."""
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

  def cut(vectors):
    if dim == vectors.shape[1]:
      return vectors
    return matryoshka.truncate(vectors, dim, retriever.config.model.normalize)

  vectors = {'targets': cut(retriever.embed_targets()),
             'queries': cut(retriever.experiment.embed_queries(
                 retriever.params))}
  for name, (_, of_name) in texts.items():
    vectors[f'pairs-{name}'] = cut(retriever.embed_queries(of_name))
  if processes.is_first():
    ids = {'targets': ('target_ids.txt', dataset.corpus_ids),
           'queries': ('query_ids.txt', dataset.query_ids)} | {
               f'pairs-{name}': (f'pairs-{name}_target_ids.txt', of_name)
               for name, (of_name, _) in texts.items()}
    _write(retriever, out, vectors, ids, dtype)
  processes.wait('embedded')
  return vectors['targets'], vectors['queries']


def _write(retriever: trained.TrainedRetriever, out: str,
           vectors: Mapping[str, np.ndarray],
           ids: Mapping[str, tuple[str, Sequence[str]]], dtype: str) -> None:
  """Writes the folder.

  Args:
    retriever: that embedded.
    out: folder to write.
    vectors: name -> [n, dim] float32.
    ids: name -> (file, the n ids of these).
    dtype: of the stored numbers.
  """
  dataset = retriever.dataset
  num_targets, dim = vectors['targets'].shape
  with files.new_folder(os.path.abspath(out)) as folder:
    for name, of_name in vectors.items():
      stored = of_name.astype(dtype)
      # As they would be refused by whatever reads them.
      embeddings_lib.check_rows(stored, os.path.join(out, f'{name}.npy'))
      files.save_array(os.path.join(folder, f'{name}.npy'), stored)
      embeddings_lib.write_ids(os.path.join(folder, ids[name][0]),
                               ids[name][1])
    for split, qrels in dataset.qrels.items():
      if not len(qrels.grades):  # of answers alone, which are not embedded
        continue
      lines = (f'{dataset.query_ids[q]}\t{dataset.corpus_ids[t]}\t{grade}\n'
               for q, t, grade in zip(qrels.query_rows, qrels.corpus_rows,
                                      qrels.grades))
      os.makedirs(os.path.join(folder, 'qrels'), exist_ok=True)
      files.write_text(os.path.join(folder, 'qrels', f'{split}.tsv'),
                       'query-id\tcorpus-id\tscore\n' + ''.join(lines))
    files.write_json(os.path.join(folder, 'embeddings.json'), {
        'dataset': dataset.name, 'workdir': retriever.workdir,
        'step': retriever.step, 'dim': dim, 'num_targets': num_targets,
        'num_queries': len(vectors['queries']), 'dtype': dtype,
        'origin': {**retriever.origin, 'dim': dim}})


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
