"""Writes a run's embeddings of the corpus and of the queries as .npy files.

  python -m experiments.embed --workdir=runs/stale --out=embeddings/stale

OUT gets targets.npy [N, D], queries.npy [Q, D] (float32, rows in the order of
target_ids.txt and query_ids.txt, one id per line) and embeddings.json.
"""

import json
import os

from absl import app
from absl import flags
import numpy as np

from experiments import process
from experiments import saved
from retrieval_jax.data import dataset as datasets
from retrieval_jax.evaluation import trec


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values)
  flags.DEFINE_string(
      'out', None, 'Folder to write; must not exist.', flag_values=values)
  flags.DEFINE_enum(
      'dtype', 'float32', ['float32', 'float16'], 'Type of the stored numbers.',
      flag_values=values)
  flags.mark_flags_as_required(['workdir', 'out'], flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script():
    write(values.workdir, values.out, values.dtype)


def write(workdir, out, dtype='float32'):
  """Embeds everything and writes `out` whole or not at all."""
  if os.path.exists(out):
    raise ValueError(f'--out={out} exists; name a new folder or remove it.')
  experiment, params, rows, step = saved.load(workdir)
  dataset = experiment.dataset
  with datasets.atomic_folder(os.path.abspath(out)) as folder:
    targets = experiment.targets_of(params, rows)
    queries = experiment.embed_queries(params, None)
    for name, embeddings, ids in (('target', targets, dataset.corpus_ids),
                                  ('query', queries, dataset.query_ids)):
      plural = {'target': 'targets', 'query': 'queries'}[name]
      np.save(os.path.join(folder, f'{plural}.npy'), embeddings.astype(dtype))
      trec.write_text(os.path.join(folder, f'{name}_ids.txt'),
                      ''.join(f'{i}\n' for i in ids))
    trec.write_text(os.path.join(folder, 'embeddings.json'), json.dumps({
        'dataset': dataset.name, 'workdir': workdir, 'step': step,
        'dim': int(targets.shape[1]), 'num_targets': len(targets),
        'num_queries': len(queries), 'dtype': dtype}, indent=2) + '\n')
  print(f'{out}: {len(targets):,} targets and {len(queries):,} queries, '
        f'{targets.shape[1]} dimensions.')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
