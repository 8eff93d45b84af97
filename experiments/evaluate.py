r"""Evaluates a run's checkpoint against the whole corpus.

  python -m experiments.evaluate --workdir=runs/stale --splits=dev,test

Writes SPLIT.run (TREC) to the run's folder and prints the measures;
results.json is brought up to date, or made if the run has not finished.

An index of experiments.adapt is evaluated by the encoder of a run, by the one a
config starts from, or by stored embeddings of queries; SPLIT.run goes to the
folder of the index, and the run's files stay as they are:

  python -m experiments.evaluate --index=adapted/xs --embeddings=embeddings/x \
      --splits=test
"""

from absl import app
from absl import flags
import rich.console

from experiments import process
from retrieval_jax.evaluation import measures as measures_lib
from retrieval_jax.jobs import evaluate


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  process.DEFINE_path('workdir', None, 'Folder of the run.', flag_values=values)
  process.DEFINE_path('index', None, 'Folder of an adapted index to evaluate; '
                      'then the queries come from one of --workdir, --config '
                      'and --embeddings.', flag_values=values)
  process.DEFINE_config(
      'Config file; the encoder it starts from.',
      flag_values=values)
  process.DEFINE_path('embeddings', None, 'Folder of embeddings.',
                      flag_values=values)
  flags.DEFINE_list(
      'splits', None, 'Splits to evaluate; those of the config by default.',
      flag_values=values)
  flags.DEFINE_list(
      'measures', list(measures_lib.MEASURES),
      'Measures in the spelling of ir-measures.', flag_values=values)
  flags.DEFINE_list(
      'dims', None, 'Of a run: prefixes of the embeddings to measure besides '
      'the whole; those of the config by default.', flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script():
    if values.index:
      found = evaluate.of_index(
          values.index, values.splits, values.measures, workdir=values.workdir,
          config=values.config, embeddings=values.embeddings)
      where = values.index
    elif values.workdir:
      found, step = evaluate.run(
          values.workdir, names=values.splits, measures=values.measures,
          dims=_whole_numbers(values.dims))
      where = f'step {step}'
    else:
      raise ValueError('Expected --workdir=RUN or --index=DIR, got neither.')
  console = rich.console.Console(width=88)
  for split, of_split in found.items():
    line = '  '.join(f'{name} {value:.4f}' for name, value in of_split.items())
    console.print(f'{split} at {where}: {line}', soft_wrap=True,
                  highlight=False)


def _whole_numbers(dims):
  if dims is not None and not all(dim.isdigit() for dim in dims):
    raise ValueError(f'--dims={",".join(dims)} must be whole numbers.')
  return dims and [int(dim) for dim in dims]


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
