"""Exports a run's encoder as a folder that sentence-transformers loads.

  python -m experiments.export --workdir=runs/stale --out=models/stale
  python -m experiments.export --workdir=runs/stale --out=models/stale \
      --embeddings

OUT is config.json, model.safetensors, tokenizer.json, pooling, dense layer and
normalisation, prompts, the inverse temperature (retrieval_jax.json) and a model
card; of separate towers, two such folders, query/ and target/, and a router.
`--config.model.pretrained=OUT` starts another run from it. With --embeddings,
OUT/embeddings gets what experiments.embed writes, the same as
embeddings.safetensors, and where faiss is installed targets.faiss, an
IndexFlatIP whose number i is line i of target_ids.txt, counted from 0.
"""

import importlib.util
import os

from absl import app
from absl import flags
import safetensors.numpy

from experiments import embed
from experiments import model_card
from experiments import process
from retrieval_jax import indexes
from retrieval_jax import trained
from retrieval_jax.data import dataset as datasets
from retrieval_jax.evaluation import report
from retrieval_jax.evaluation import trec
from retrieval_jax.models import export


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values)
  flags.DEFINE_string(
      'out', None, 'Folder to write; must not exist.', flag_values=values)
  flags.DEFINE_bool(
      'embeddings', False, 'Also embed the corpus and all queries.',
      flag_values=values)
  flags.mark_flags_as_required(['workdir', 'out'], flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script():
    write(values.out, values.workdir, embeddings=values.embeddings)
  print(f'{values.out}: SentenceTransformer({values.out!r}) loads it; so does '
        f'--config.model.pretrained={values.out}.')


def write(out, workdir, *, embeddings=False):
  """Exports the last checkpoint of a run, whole or not at all.

  Args:
    out: folder to write.
    workdir: folder of the run.
    embeddings: also write OUT/embeddings.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint in `workdir`.
    ValueError: if `out` exists.
  """
  if os.path.exists(out):
    raise ValueError(f'--out={out} exists; name a new folder or remove it.')
  loaded = trained.load(workdir)
  experiment, params, _, step = loaded
  config, model = experiment.config, experiment.model
  measured = os.path.exists(os.path.join(workdir, report.RESULTS_FILE))
  with datasets.atomic_folder(os.path.abspath(out)) as folder:
    export.write(
        folder, model, params, experiment.tokenizer,
        lengths=(config.data.query_length, config.data.target_length),
        prompts=(config.model.query_prompt, config.model.target_prompt))
    trec.write_text(os.path.join(folder, 'README.md'), model_card.write(
        experiment, float(model.scale_of(params)), step,
        report.read_results(workdir) if measured else None))
    if embeddings:
      inside = os.path.join(folder, 'embeddings')
      targets, queries = embed.write_by(loaded, inside, workdir=workdir)
      safetensors.numpy.save_file(
          {'targets': targets, 'queries': queries},
          os.path.join(inside, 'embeddings.safetensors'))
      if importlib.util.find_spec('faiss'):
        _write_index(os.path.join(inside, 'targets.faiss'), targets)
      else:
        print('No targets.faiss: that needs pip install '
              "'retrieval_jax[faiss]' (faiss-cpu).")


def _write_index(path, targets):
  """Writes an exact inner-product index of targets [N, D]."""
  import faiss  # pylint: disable=g-import-not-at-top
  faiss.write_index(indexes.FaissFlat().build(targets), path)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
