"""Writes the embeddings of a corpus and of its queries as .npy files.

  python -m experiments.embed --workdir=runs/stale --out=embeddings/stale
  python -m experiments.embed --config=configs/minilm.py --out=embeddings/minilm

By the encoder of a run's last checkpoint, or by the one that a config starts
from, untrained by us. OUT gets targets.npy [N, D], queries.npy [Q, D] (rows in
the order of target_ids.txt and query_ids.txt, one id per line), the judgements
as qrels/SPLIT.tsv and embeddings.json: a folder that experiments.adapt takes.
"""

import json
import os

from absl import app
from absl import flags
from ml_collections import config_flags
import numpy as np

from experiments import process
from experiments import saved
from retrieval_jax import factory
from retrieval_jax.data import dataset as datasets
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
  flags.mark_flags_as_required(['out'], flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  if bool(values.workdir) == bool(values.config):
    raise app.UsageError(
        'Expected --workdir (a run) or --config (a start), one of the two.')
  with process.script():
    write(values.out, workdir=values.workdir, config=values.config,
          dtype=values.dtype)


def write(out, *, workdir=None, config=None, dtype='float32'):
  """Embeds everything and writes `out` whole or not at all.

  Args:
    out: folder to write.
    workdir: folder of a run; its last checkpoint embeds.
    config: ConfigDict, in place of `workdir`: its initial encoder embeds.
    dtype: of the stored numbers.

  Raises:
    ValueError: if `out` exists.
  """
  if os.path.exists(out):
    raise ValueError(f'--out={out} exists; name a new folder or remove it.')
  if workdir:
    experiment, params, rows, step = saved.load(workdir)
    targets = experiment.targets_of(params, rows)
  else:
    experiment, step = factory.build(config), 0
    params = experiment.params
    targets = experiment.embed_targets(params)
  dataset = experiment.dataset
  queries = experiment.embed_queries(params)
  with datasets.atomic_folder(os.path.abspath(out)) as folder:
    for name, embeddings, ids in (('target', targets, dataset.corpus_ids),
                                  ('query', queries, dataset.query_ids)):
      plural = {'target': 'targets', 'query': 'queries'}[name]
      np.save(os.path.join(folder, f'{plural}.npy'), embeddings.astype(dtype))
      trec.write_text(os.path.join(folder, f'{name}_ids.txt'),
                      ''.join(f'{i}\n' for i in ids))
    for split, qrels in dataset.qrels.items():
      lines = (f'{dataset.query_ids[q]}\t{dataset.corpus_ids[t]}\t{grade}\n'
               for q, t, grade in zip(qrels.query_rows, qrels.corpus_rows,
                                      qrels.grades))
      os.makedirs(os.path.join(folder, 'qrels'), exist_ok=True)
      trec.write_text(os.path.join(folder, 'qrels', f'{split}.tsv'),
                      'query-id\tcorpus-id\tscore\n' + ''.join(lines))
    trec.write_text(os.path.join(folder, 'embeddings.json'), json.dumps({
        'dataset': dataset.name, 'workdir': workdir, 'step': step,
        'dim': int(targets.shape[1]), 'num_targets': len(targets),
        'num_queries': len(queries), 'dtype': dtype}, indent=2) + '\n')
  print(f'{out}: {len(targets):,} targets and {len(queries):,} queries, '
        f'{targets.shape[1]} dimensions.')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
