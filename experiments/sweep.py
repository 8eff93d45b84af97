r"""Trains one run for every setting that a config's sweep function yields.

  python -m experiments.sweep --config=configs/stale.py --sweep=seeds \
      --workdir=runs/sweep [--dry_run] [--only=seed=1] [--parallel=2] \
      [-- --config.num_steps=100]

The function named by --sweep, in the config's file, takes nothing and yields
dicts of dotted overrides:

  def sweep():
    for num_negatives in (1, 4, 16):
      yield {'sampler.num_negatives': num_negatives,
             'optimizer.learning_rate': 3e-5}

An entry 'name' is not an override but the name of the run; otherwise the
overrides name it. Runs go to WORKDIR/NNN_name, one after the other, each in a
process of its own. A finished run (it has results.json) is skipped, an
unfinished one resumes, a failed one does not stop the others. At the end the
finished runs are compared in WORKDIR/comparison. What follows `--` goes to
every run; an option that the function sets, too, is refused there. The exit
status is 1 if a run failed, 130 if it was interrupted.

--only runs the settings whose name matches. --parallel=n starts runs in the
same order, n of them at a time, each with its share of the cores; what they
print goes to WORKDIR/NNN_name/log.txt.

--launcher=submitit submits them as a job array of SLURM instead, of which
--parallel run at a time, waits, and compares; see docs/clusters.md:

  python -m experiments.sweep --config=configs/stale.py --sweep=seeds \
      --workdir=runs/sweep --launcher=submitit --parallel=4 \
      --slurm=partition=gpu,gpus_per_node=1,timeout_min=600
"""

from collections.abc import Sequence
import os
import shlex
import sys

from absl import app
from absl import flags

from experiments import process
from retrieval_jax.jobs import compare
from retrieval_jax.jobs import submitted
from retrieval_jax.jobs import sweep


def define_flags(values: flags.FlagValues) -> None:
  """Adds this script's flags.

  Importing the module must not: other scripts have flags of the same names.
  """
  # A string, not a config flag: FILE:VARIANT is passed on as it is.
  process.DEFINE_path(
      'config', None, 'Config file, or FILE:VARIANT.', flag_values=values)
  flags.DEFINE_string(
      'sweep', 'sweep', 'Function in the config file that yields overrides.',
      flag_values=values)
  process.DEFINE_path(
      'workdir', None, 'Folder of the runs.', flag_values=values)
  flags.DEFINE_bool(
      'dry_run', False, 'Print the commands and run nothing.',
      flag_values=values)
  flags.DEFINE_string(
      'only', '', 'Regular expression; only runs in whose names it is found '
      'are run.', flag_values=values)
  flags.DEFINE_integer(
      'parallel', 1, 'Runs at a time, each pinned to its share of '
      'the cores, or jobs of a cluster. On this machine it must be 1 where '
      'there are accelerators, which a run takes all of.', lower_bound=1,
      flag_values=values)
  flags.DEFINE_enum(
      'launcher', 'here', ['here', 'submitit'], 'Where runs go: to this '
      'machine, or as a job array to SLURM.', flag_values=values)
  flags.DEFINE_list(
      'slurm', [], 'NAME=VALUE of the jobs of --launcher=submitit: its own, '
      'such as gpus_per_node and timeout_min, and those of sbatch.',
      flag_values=values)
  flags.DEFINE_string(
      'split', 'dev', 'Split that is compared.', flag_values=values)
  flags.DEFINE_string(
      'measure', 'RR@10', 'Measure that is plotted.', flag_values=values)
  flags.mark_flags_as_required(['config', 'workdir'], flag_values=values)


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
  try:
    settings = sweep.load_sweep(values.config, values.sweep)
    every = list(
        sweep.trials(values.config, settings, values.workdir, argv[1:]))
    planned = sweep.matching(every, values.only)
    by_cluster = values.launcher == 'submitit'
    if values.slurm and not by_cluster:
      raise ValueError(
          f'--slurm={",".join(values.slurm)} goes with --launcher=submitit.')
    options = submitted.parse_options(values.slurm)
    if by_cluster:
      submitted.check_installed()
    else:
      cores = sweep.shares(values.parallel)
    for trial in planned:
      sweep.check_same_command(trial)
  except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
    sys.exit(f'sweep: {error}')
  if values.dry_run:
    for trial in planned:
      print(shlex.join(trial.command)
            + ('  # finished' if trial.finished() else ''))
    return
  say = lambda line: print(f'sweep: {line}', flush=True)
  if by_cluster:
    outcomes = submitted.run(planned, values.workdir, say=say, options=options,
                             at_a_time=values.parallel)
  else:
    outcomes = sweep.run(planned, cores, say=say)
  done = [trial.workdir for trial in every if trial.finished()]
  if done:
    out = os.path.join(values.workdir, 'comparison')
    try:
      print(compare.run(
          done, out, split=values.split, measure=values.measure))
      print(f'Wrote the comparison to {out}.')
    except ValueError as error:
      print(f'sweep: nothing compared: {error}')
  print('sweep:')
  for workdir, outcome in outcomes.items():
    print(f'  {workdir}: {outcome}')
  if {'interrupted', 'not started', 'left to the cluster'} & set(
      outcomes.values()):
    sys.exit(130)
  if any(outcome.startswith('failed') for outcome in outcomes.values()):
    sys.exit(1)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
