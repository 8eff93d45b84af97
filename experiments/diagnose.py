"""Says how well a run's memory stands in for brute force, right now.

  python -m experiments.diagnose --workdir=runs/stale

Encodes the whole corpus with the last checkpoint and compares the softmax over
the remembered targets with the one over the fresh ones, on the first dev
queries. The same numbers come as a hook with --config.diagnostics.every=R.
evaluation/diagnostics.py defines each.
"""

from absl import app
from absl import flags
import rich.console
import rich.table

from experiments import process
from experiments import saved
from experiments import train


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values)
  flags.mark_flags_as_required(['workdir'], flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script():
    experiment, state = saved.load_state(values.workdir)
    if experiment.method.memory == 'none':
      raise ValueError(
          f'--workdir={values.workdir} trained without a memory '
          "(memory.kind='none'); there is nothing to compare.")
    found = train.diagnose(experiment, state)
  table = rich.table.Table(
      title=f'memory against brute force at step {int(state.step)}')
  table.add_column('')
  table.add_column('', justify='right')
  for name, value in found.items():
    table.add_row(name.removeprefix('diagnostics/'), f'{value:.4g}')
  rich.console.Console().print(table)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
