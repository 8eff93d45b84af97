"""Says how well a run's memory stands in for brute force, right now.

  python -m experiments.diagnose --workdir=runs/stale
  python -m experiments.diagnose --workdir=runs/stale --bounds

Encodes the whole corpus with the last checkpoint and compares the softmax over
the remembered targets with the one over the fresh ones, on the first dev
queries. The same numbers come as a hook with --config.diagnostics.every=R.
evaluation/diagnostics.py defines each.

--bounds adds what the best linear map and a wide network would make of the same
memory, both fitted to all targets, fresh: no corrector of their kind can do
better in training, where it sees a few targets a step.
"""

import functools

from absl import app
from absl import flags
import rich.console
import rich.table

from experiments import process
from experiments import train
from retrieval_jax import correctors
from retrieval_jax import trained
from retrieval_jax.evaluation import diagnostics


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values)
  flags.DEFINE_bool(
      'bounds', False, 'Also fit correctors to all targets.',
      flag_values=values)
  flags.mark_flags_as_required(['workdir'], flag_values=values)


def bounding_correctors(normalize):
  """Returns name -> (corrector, updates) of what is fitted to all targets."""
  shared = dict(num_anchors=0, keep_norm=normalize, reset_on_refresh=False)
  return {
      'best linear': (correctors.Linear(
          fit='ridge', ridge=1e-4, decay=1.0, **shared), 60),
      'wide network': (correctors.MLP(
          hidden=1024, learning_rate=1e-3, warmup_steps=10,
          updates_per_step=1, weight_decay=0.0, distribution_weight=0.0,
          average_decay=0.0, condition_on_age=False, **shared), 1000)}


def diagnose(experiment, state, bounds):
  """Returns name of the corrector -> what `approximation` found."""
  fresh = experiment.targets_of(state.params, state.table.embeddings)
  look = functools.partial(
      train.against_brute_force, experiment, state, fresh)
  found = {'this run': look(functools.partial(
      experiment.method.corrector.apply, state.corrector))}
  if bounds:
    for name, (corrector, num_steps) in bounding_correctors(
        experiment.config.model.normalize).items():
      fitted = diagnostics.fit_to_all(
          corrector, state.table, fresh, num_steps=num_steps)
      found[name] = look(functools.partial(corrector.apply, fitted))
  return found


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script():
    experiment, state = trained.load_state(values.workdir)
    if experiment.method.memory == 'none':
      raise ValueError(
          f'--workdir={values.workdir} trained without a memory '
          "(memory.kind='none'); there is nothing to compare.")
    found = diagnose(experiment, state, values.bounds)
  table = rich.table.Table(
      title=f'memory against brute force at step {int(state.step)}')
  table.add_column('')
  for name in found:
    table.add_column(name, justify='right')
  for measure in found['this run']:
    table.add_row(
        measure, *(f'{values[measure]:.4g}' for values in found.values()))
  rich.console.Console().print(table)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
