"""Says how well a run's memory stands in for brute force, right now.

  python -m experiments.diagnose --workdir=runs/stale
  python -m experiments.diagnose --workdir=runs/stale --bounds

Encodes the whole corpus with the last checkpoint and compares the softmax over
the remembered targets with the one over the fresh ones, on a sample of the dev
queries: those whose ids have the smallest hashes, so that it is the same in
every run. The same numbers come as a hook with --config.diagnostics.every=R.
evaluation/diagnostics.py defines each.

--bounds adds what the best linear map and a wide network would make of the same
memory, both fitted to all targets, fresh: no corrector of their kind can do
better in training, where it sees a few targets a step.
"""

from absl import app
from absl import flags
import rich.console
import rich.table

from experiments import process
from retrieval_jax.jobs import diagnose


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  process.DEFINE_path('workdir', None, 'Folder of the run.', flag_values=values)
  flags.DEFINE_bool(
      'bounds', False, 'Also fit correctors to all targets.',
      flag_values=values)
  flags.mark_flags_as_required(['workdir'], flag_values=values)
  process.DEFINE_processes(values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script(values):
    found, step = diagnose.run(values.workdir, bounds=values.bounds)
  table = rich.table.Table(
      title=f'memory against brute force at step {step}')
  table.add_column('')
  for name in found:
    table.add_column(name, justify='right')
  for measure in found['this run']:
    table.add_row(
        measure, *(f'{looked[measure]:.4g}' for looked in found.values()))
  rich.console.Console().print(table)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
