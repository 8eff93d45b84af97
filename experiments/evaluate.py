r"""Evaluates a run's checkpoint, or any encoder, against the whole corpus.

  python -m experiments.evaluate --workdir=runs/stale --splits=dev,test

Writes SPLIT.run (TREC) to the run's folder and prints the measures;
results.json is brought up to date, or made if the run has not finished.

Without a run it is the encoder that a config starts from, as it is, and BM25;
its data need only have the split that is evaluated:

  python -m experiments.evaluate --config=configs/minilm.py --data=beir/nfcorpus
  python -m experiments.evaluate --config=configs/minilm.py --data=beir/nano \
      --out=results/nano

--data takes the place of the config's data: a folder in BEIR layout, or one of
several such, of which each is evaluated and the mean is taken. OUT gets
results.json and the run files.

An index of experiments.adapt is evaluated by the encoder of a run, by the one a
config starts from, or by stored embeddings of queries; SPLIT.run goes to the
folder of the index, and the run's files stay as they are:

  python -m experiments.evaluate --index=adapted/xs --embeddings=embeddings/x \
      --splits=test
"""

import shlex
import sys

from absl import app
from absl import flags
import rich.console

from experiments import process
from retrieval_jax.evaluation import measures as measures_lib
from retrieval_jax.evaluation import report
from retrieval_jax.jobs import evaluate


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  process.DEFINE_path('workdir', None, 'Folder of the run.', flag_values=values)
  process.DEFINE_path('index', None, 'Folder of an adapted index to evaluate; '
                      'then the queries come from one of --workdir, --config '
                      'and --embeddings.', flag_values=values)
  process.DEFINE_config(
      'Config file, in place of a run: the encoder it starts from.',
      flag_values=values)
  process.DEFINE_path(
      'data', None, 'With --config: folder in BEIR layout, or of several such, '
      'in place of the data of the config.', flag_values=values)
  process.DEFINE_path(
      'out', None, 'With --config: folder to write; must not exist. Without '
      'it the measures are printed alone.', flag_values=values)
  process.DEFINE_path('embeddings', None, 'Folder of embeddings.',
                      flag_values=values)
  process.DEFINE_lenient(flag_values=values)
  flags.DEFINE_list(
      'splits', None, 'Splits to evaluate; by default those of the config, '
      'without a run its test split.', flag_values=values)
  flags.DEFINE_list(
      'measures', list(measures_lib.ALL),
      'Measures in the spelling of ir-measures, and Answer@k of splits with '
      'answers.', flag_values=values)
  flags.DEFINE_list(
      'dims', None, 'Prefixes of the embeddings to measure besides the whole; '
      'those of the config by default. Not with --index.', flag_values=values)
  flags.DEFINE_list(
      'precisions', None, 'Quantised targets to measure besides floats: int8, '
      'binary; those of the config by default. Not with --index.',
      flag_values=values)
  flags.DEFINE_integer(
      'rescore_multiplier', None, 'Candidates by Hamming distance per result, '
      'which the float query scores again; 0: none; that of the config by '
      'default.', flag_values=values)
  process.DEFINE_processes(values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  console = rich.console.Console(width=110)
  with process.script(values):
    _check_flags(values)
    forms = dict(
        dims=_whole_numbers(values.dims), precisions=values.precisions,
        rescore_multiplier=values.rescore_multiplier)
    if values.config and not values.index:
      results = evaluate.of_config(
          values.config, folder=values.data, names=values.splits,
          measures=values.measures, out=values.out, **forms,
          command='python -m experiments.evaluate ' + shlex.join(sys.argv[1:]))
      for table in report.encoder_tables(results):
        console.print(table)
      return
    if values.index:
      found = evaluate.of_index(
          values.index, values.splits, values.measures, workdir=values.workdir,
          config=values.config, embeddings=values.embeddings,
          lenient=values.lenient)
      where = values.index
    elif values.workdir:
      found, step = evaluate.run(
          values.workdir, names=values.splits, measures=values.measures,
          **forms)
      where = f'step {step}'
    else:
      raise ValueError('Expected --workdir=RUN, --config=FILE or --index=DIR, '
                       'got none of them.')
  for split, of_split in found.items():
    for form, values in report.by_form(of_split).items():
      line = '  '.join(f'{name} {value:.4f}' for name, value in values.items())
      console.print(f'{report.labelled(split, form)} at {where}: {line}',
                    soft_wrap=True, highlight=False)


def _check_flags(values):
  """Raises ValueError for flags that nothing would read."""
  if values.workdir and values.config:
    raise ValueError(
        'Expected one of --workdir (a run) and --config (the encoder it starts '
        'from), got both.')
  for name in ('data', 'out'):
    if values[name].value and (values.index or not values.config):
      raise ValueError(
          f'--{name} goes with --config alone; '
          'a run and an index have their own data and folder.')
  if values.lenient and not values.embeddings:
    raise ValueError(
        '--lenient goes with --embeddings; of a config it is '
        '--config.data.lenient=True, and a run has its own.')
  for name in ('dims', 'precisions', 'rescore_multiplier'):
    if values[name].value is not None and values.index:
      raise ValueError(f'--{name} does not go with --index; leave it out.')


def _whole_numbers(dims):
  if dims is not None and not all(dim.isdigit() for dim in dims):
    raise ValueError(f'--dims={",".join(dims)} must be whole numbers.')
  return dims and [int(dim) for dim in dims]


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main, flags_parser=process.parse_flags)
