"""Exports a run's encoder as a folder that sentence-transformers loads.

  python -m experiments.export --workdir=runs/stale --out=models/stale
  python -m experiments.export --workdir=runs/stale --out=models/stale \
      --embeddings
  python -m experiments.export --workdir=runs/lora --out=models/lora --adapters

OUT is config.json, model.safetensors, tokenizer.json, pooling, dense layer and
normalisation, prompts, the inverse temperature (retrieval_jax.json) and a model
card; of separate towers, two such folders, query/ and target/, and a router.
`--config.model.pretrained=OUT` starts another run from it. With --embeddings,
OUT/embeddings gets what experiments.embed writes, the same as
embeddings.safetensors, and where faiss is installed targets.faiss, an
IndexFlatIP whose number i is line i of target_ids.txt, counted from 0.
--precisions=int8,binary adds the targets in fewer bytes; the model card says
how they are served:

  python -m experiments.export --workdir=runs/stale --out=models/stale \
      --embeddings --precisions=int8,binary

Low-rank adapters are in the kernels of what is written. With --adapters OUT has
them alone, in the layout of PEFT (adapter_config.json and
adapter_model.safetensors in place of config.json and model.safetensors), and
names the encoder that they are added to. --push_to_hub uploads OUT, by the
token of `hf auth login` or HF_TOKEN.
"""

from absl import app
from absl import flags

from experiments import process
from retrieval_jax import processes
from retrieval_jax.jobs import export
from retrieval_jax.models import hub


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  process.DEFINE_path('workdir', None, 'Folder of the run.', flag_values=values)
  process.DEFINE_path(
      'out', None, 'Folder to write; must not exist.', flag_values=values)
  flags.DEFINE_bool(
      'embeddings', False, 'Also embed the corpus and all queries.',
      flag_values=values)
  flags.DEFINE_list(
      'precisions', [], 'With --embeddings: also the targets quantised; int8, '
      'binary.', flag_values=values)
  flags.DEFINE_bool(
      'adapters', False, 'Write low-rank adapters alone, as PEFT does.',
      flag_values=values)
  flags.DEFINE_string(
      'push_to_hub', '', 'OWNER/NAME of the Hugging Face hub to upload OUT to.',
      flag_values=values)
  flags.DEFINE_bool(
      'public', False, 'A repository that --push_to_hub makes is seen by all.',
      flag_values=values)
  flags.mark_flags_as_required(['workdir', 'out'], flag_values=values)
  process.DEFINE_processes(values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script(values):
    if values.push_to_hub:
      hub.check_installed(f'--push_to_hub={values.push_to_hub}')
    export.run(values.out, values.workdir, embeddings=values.embeddings,
               adapters=values.adapters, precisions=values.precisions)
    if values.push_to_hub and processes.is_first():
      print(hub.push(values.out, values.push_to_hub, public=values.public))
  if values.embeddings and not export.can_write_faiss():
    print("No targets*.faiss: that needs pip install 'retrieval_jax[faiss]' "
          '(faiss-cpu).')
  print(f'{values.out}: SentenceTransformer({values.out!r}) loads it; so does '
        f'--config.model.pretrained={values.out}.')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
