"""Says what a model folder is, and what would be read, ignored or refused.

  python -m experiments.inspect --model=FOLDER
  python -m experiments.inspect \
      --model=sentence-transformers/all-MiniLM-L6-v2

MODEL is anything that --config.model.pretrained takes. Everything is read that
training from it would read, and what is printed is what it found: architecture,
parameters, tensors left aside, pooling, dense layer, prompts, lengths, tokens
of an example, and the options that start a run. What is not supported is
printed in the words of the error that training would stop with, and the exit
status is 1.
"""

from absl import app
from absl import flags

from experiments import process
from retrieval_jax.jobs import inspect


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  process.DEFINE_path(
      'model', None, 'Folder, package:NAME/FOLDER, or name on the Hugging Face '
      'hub.', flag_values=values)
  flags.mark_flags_as_required(['model'], flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script():
    print(inspect.describe(values.model))


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
