"""Writes scalars that the runs of sweeps have logged as one CSV file.

  python -m experiments.results.logged --sweep=runs/all_wordnet \
      --names=train/nll --from_step=181 --out=loss.csv

A row for each step of each finished run at which any of --names was logged; the
column of a name is what follows its last '/'.
"""

import csv
import io
import os

from absl import app
from absl import flags

from experiments import process
from retrieval_jax import files
from retrieval_jax.comparison import runs as runs_lib


def define_flags(values):
  process.DEFINE_paths('sweep', None, 'Folders of runs.', flag_values=values)
  flags.DEFINE_list('names', None, 'Scalars of metrics.jsonl.',
                    flag_values=values)
  flags.DEFINE_integer('from_step', 0, 'First step to write.',
                       flag_values=values)
  process.DEFINE_path('out', None, 'CSV file to write.', flag_values=values)
  flags.mark_flags_as_required(['sweep', 'names', 'out'], flag_values=values)


def rows(sweep, names, from_step):
  """Yields the rows of a sweep, dicts, in the order of its runs."""
  for workdir in runs_lib.in_sweep(sweep)[0]:
    for line in runs_lib.read_log(workdir):
      if line['step'] >= from_step and any(name in line for name in names):
        yield {'run': os.path.basename(workdir), 'step': int(line['step'])} | {
            name.rpartition('/')[2]: '' if line.get(name) is None
            else f'{line[name]:.5f}' for name in names}


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  text, short = io.StringIO(), [
      name.rpartition('/')[2] for name in values.names]
  writer = csv.DictWriter(text, ['run', 'step', *short], lineterminator='\n')
  writer.writeheader()
  for sweep in values.sweep:
    writer.writerows(rows(sweep, values.names, values.from_step))
  files.write_text(values.out, text.getvalue())


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
