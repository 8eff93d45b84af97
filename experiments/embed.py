"""Writes the embeddings of a corpus and of its queries as .npy files.

  python -m experiments.embed --workdir=runs/stale --out=embeddings/stale
  python -m experiments.embed --config=configs/minilm.py --out=embeddings/minilm

By the encoder of a run's last checkpoint, or by the one that a config starts
from, untrained by us. OUT gets targets.npy [N, D], queries.npy [Q, D] (rows in
the order of target_ids.txt and query_ids.txt, one id per line), the judgements
as qrels/SPLIT.tsv and embeddings.json: a folder that experiments.adapt takes.

Texts that stand for targets may be embedded as further queries to adapt to: a
field of a JSONL file whose "_id" is the target's, such as titles of the corpus
or generated pseudo-queries:

  --pairs=title=DIR/corpus.jsonl.gz --pairs=text=pseudo_queries.jsonl

gives pairs-title.npy and pairs-title_target_ids.txt; `--pairs=targets` embeds
the targets' whole texts, cut to the length of queries.
"""

import json
import os

from absl import app
from absl import flags
from ml_collections import config_flags
import numpy as np

from experiments import process
from experiments import saved
from retrieval_jax import matryoshka
from retrieval_jax.data import dataset as datasets
from retrieval_jax.data import embeddings as embeddings_lib
from retrieval_jax.data.readers import beir
from retrieval_jax.evaluation import trec


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  flags.DEFINE_string(
      'workdir', None, 'Folder of the run whose encoder embeds.',
      flag_values=values)
  config_flags.DEFINE_config_file(
      'config', None, 'Config file, in place of a run: the encoder it starts '
      'from embeds.', flag_values=values)
  flags.DEFINE_string(
      'out', None, 'Folder to write; must not exist.', flag_values=values)
  flags.DEFINE_enum(
      'dtype', 'float32', ['float32', 'float16'], 'Type of the stored numbers.',
      flag_values=values)
  flags.DEFINE_integer(
      'dim', None, 'Dimensions to keep, the first of each embedding; all by '
      'default.', flag_values=values)
  flags.DEFINE_multi_string(
      'pairs', [], "'targets' or FIELD=FILE.jsonl[.gz], repeatable: texts to "
      'embed as queries of the targets that "_id" names.', flag_values=values)
  flags.mark_flags_as_required(['out'], flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script():
    targets, queries = write(
        values.out, workdir=values.workdir, config=values.config,
        dtype=values.dtype, pairs=values.pairs, dim=values.dim)
  print(f'{values.out}: {len(targets):,} targets and {len(queries):,} queries, '
        f'{targets.shape[1]} dimensions.')


def write(out, *, workdir=None, config=None, dtype='float32', pairs=(),
          dim=None):
  """Embeds everything and writes `out` whole or not at all.

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
    DataError: where a file of pairs is malformed.
  """
  if os.path.exists(out):
    raise ValueError(f'--out={out} exists; name a new folder or remove it.')
  return write_by(saved.load_encoder(workdir, config), out, workdir=workdir,
                  dtype=dtype, pairs=pairs, dim=dim)


def write_by(loaded, out, *, workdir=None, dtype='float32', pairs=(), dim=None):
  """Embeds by what `saved.load_encoder` returned; the rest is as of `write`."""
  experiment, params, rows, step = loaded
  dataset = experiment.dataset
  if dim is None:
    dim = experiment.model.dim
  matryoshka.check_dims([dim], experiment.model.dim, '--dim')
  texts = {}
  for pair in pairs:
    name = pair.partition('=')[0]
    if name in texts:
      raise ValueError(
          f'--pairs={pair}: {name!r} comes twice; rename the field in one of '
          'the files.')
    texts[name] = _texts(pair, dataset)  # before the hours of embedding

  def cut(vectors):
    if dim == vectors.shape[1]:
      return vectors
    return matryoshka.truncate(vectors, dim, experiment.config.model.normalize)

  targets = cut(experiment.targets_of(params, rows))
  queries = cut(experiment.embed_queries(params))
  with datasets.atomic_folder(os.path.abspath(out)) as folder:
    def save(name, vectors, ids_file, ids):
      np.save(os.path.join(folder, f'{name}.npy'), vectors.astype(dtype))
      embeddings_lib.write_ids(os.path.join(folder, ids_file), ids)

    save('targets', targets, 'target_ids.txt', dataset.corpus_ids)
    save('queries', queries, 'query_ids.txt', dataset.query_ids)
    for name, (ids, of_name) in texts.items():
      save(f'pairs-{name}', cut(experiment.embed_texts(params, of_name)),
           f'pairs-{name}_target_ids.txt', ids)
    for split, qrels in dataset.qrels.items():
      lines = (f'{dataset.query_ids[q]}\t{dataset.corpus_ids[t]}\t{grade}\n'
               for q, t, grade in zip(qrels.query_rows, qrels.corpus_rows,
                                      qrels.grades))
      os.makedirs(os.path.join(folder, 'qrels'), exist_ok=True)
      trec.write_text(os.path.join(folder, 'qrels', f'{split}.tsv'),
                      'query-id\tcorpus-id\tscore\n' + ''.join(lines))
    trec.write_text(os.path.join(folder, 'embeddings.json'), json.dumps({
        'dataset': dataset.name, 'workdir': workdir, 'step': step,
        'dim': dim, 'num_targets': len(targets),
        'num_queries': len(queries), 'dtype': dtype}, indent=2) + '\n')
  return targets, queries


def _texts(pair, dataset):
  """Returns (target ids, texts) of one --pairs; empty texts are left out."""
  field, _, path = pair.partition('=')
  if pair == 'targets':
    found = list(zip(dataset.corpus_ids, dataset.corpus_texts))
  elif field and path:
    found = list(beir.read_texts(path, field, set(dataset.corpus_ids)))
  else:
    raise ValueError(
        f"--pairs={pair}: expected 'targets' or FIELD=FILE, such as "
        'title=corpus.jsonl.')
  found = [(name, text) for name, text in found if text.strip()]
  if not found:
    raise ValueError(f'--pairs={pair}: there is no text to embed.')
  return tuple(zip(*found))


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
