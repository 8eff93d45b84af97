r"""Compares finished runs: tables (Markdown, CSV) and figures (PNG).

  python -m experiments.compare --sweep=runs/methods --out=runs/comparison \
      --split=test --reference=oracle --pairs=stale:in_batch \
      --curves=diagnostics/kl,diagnostics/tv --steps_to=stale

Takes every finished run of the sweeps' folders and of --workdirs, reads its
results.json, metrics.jsonl and config.json, and writes

  comparison.md   quality and cost of each method, and differences of methods
  comparison.csv  the first of these tables in full precision
  runs.csv        every single run, and the commit of the code that made it
  comparison.png  quality against target-encoder calls, FLOPs and seconds
  curves.png      the scalars named by --curves over training steps

A runs.csv is as good as the folders that it was made of, but for their curves
and baselines: --runs=FILE draws its tables and its figure again.

Runs whose configs differ in nothing but the seed are one method, named after
the first of them without number and seed: 003_stale-seed0 is 'stale'. Shown are
mean, sample standard deviation, least and greatest over seeds.

Two columns are of dev evaluations during training, whatever --split is, and say
nothing finer than evaluation.every: `curve noise`, how far an evaluation lies
from the line through its neighbours (a standard deviation, defined in
retrieval_jax/comparison/curves.py; ours), and by --steps_to=METHOD the steps to
the first one that is as good as METHOD at its end, seed by seed where both have
the same seeds. All steps of a run count, those before a restart too.
"""

from collections.abc import Sequence
import sys

from absl import app
from absl import flags

from experiments import process
from retrieval_jax.comparison import runs
from retrieval_jax.jobs import compare


def define_flags(values: flags.FlagValues) -> None:
  """Adds this script's flags.

  Importing the module must not: other scripts have flags of the same names.
  """
  process.DEFINE_paths(
      'sweep', [], 'Folders whose finished children are compared, such as '
      '--workdir of experiments.sweep.', flag_values=values)
  process.DEFINE_paths(
      'workdirs', [], 'Folders of finished runs, separated by commas.',
      flag_values=values)
  process.DEFINE_paths(
      'runs', [], 'Files runs.csv of earlier comparisons, whose runs are '
      'added; their measures must be of --split.', flag_values=values)
  process.DEFINE_path(
      'out', None, 'Folder to write the comparison to.', flag_values=values)
  flags.DEFINE_string(
      'split', 'dev', 'Split whose measures are shown.', flag_values=values)
  flags.DEFINE_string(
      'measure', 'RR@10', 'Measure that is plotted, judged and chosen by.',
      flag_values=values)
  flags.DEFINE_string(
      'choose_on', None, 'Split on which the best of several settings of the '
      'same method is chosen; all are shown by default.', flag_values=values)
  flags.DEFINE_list(
      'reference', [], 'Methods that all others are judged against, each.',
      flag_values=values)
  flags.DEFINE_list(
      'pairs', [], 'A:B,... to judge method A against method B.',
      flag_values=values)
  flags.DEFINE_list(
      'curves', [], 'Scalars of metrics.jsonl to plot over steps, such as '
      'diagnostics/kl.', flag_values=values)
  flags.DEFINE_string(
      'steps_to', None, 'Method whose final measure on dev others are to '
      'reach; the table then says in how many steps.', flag_values=values)
  flags.mark_flag_as_required('out', flag_values=values)


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Expected flags only, got {argv[1:]}.')
  try:
    workdirs = list(values.workdirs)
    for folder in values.sweep:
      done, unfinished = runs.in_sweep(folder)
      workdirs += done
      for workdir in unfinished:
        print(f'compare: {workdir} has not finished and is left out.',
              file=sys.stderr)
    print(compare.run(
        workdirs, values.out, runs=values.runs, split=values.split,
        measure=values.measure, choose_on=values.choose_on,
        references=values.reference, pairs=values.pairs, curves=values.curves,
        steps_to=values.steps_to))
  except (FileNotFoundError, ValueError) as error:
    sys.exit(f'compare: {error}')
  print(f'Wrote comparison.md to {values.out}, with CSV files and figures.')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
