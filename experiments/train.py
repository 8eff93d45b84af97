"""Trains a dual encoder by any method of the design space, and evaluates it.

  python -m experiments.train --config=configs/quickstart.py --workdir=runs/q
  python -m experiments.train --config=configs/stale.py --workdir=runs/stale \
      --config.sampler.num_negatives=4

The same command resumes an interrupted run. A finished one leaves in WORKDIR:
config.json, results.json (measures, baselines, cost), metrics.jsonl,
tensorboard/, checkpoints/ and one TREC run file per evaluated split.
"""

import shlex
import sys
import time

from absl import app
from absl import flags
import jax
import rich.console

from experiments import process
from retrieval_jax import runtime
from retrieval_jax.evaluation import report
from retrieval_jax.jobs import train


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  process.DEFINE_config(
      'Config file, e.g. configs/stale.py:tiny.',
      flag_values=values)
  process.DEFINE_path('workdir', None, 'Folder of the run.', flag_values=values)
  flags.DEFINE_integer(
      'num_devices', None, 'Devices to use; all by default.', lower_bound=1,
      flag_values=values)
  flags.DEFINE_bool(
      'allow_cpu', False, 'Train on the CPU even where a plugin for an '
      'accelerator is installed that did not start.', flag_values=values)
  flags.mark_flags_as_required(['config', 'workdir'], flag_values=values)
  process.DEFINE_processes(values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  started = time.monotonic()
  command = 'python -m experiments.train ' + shlex.join(sys.argv[1:])
  with process.script(values):
    runtime.check_accelerator(values.allow_cpu)
    if not jax.process_index():
      devices = jax.devices()[:values.num_devices]
      print(f'Devices: {runtime.describe_devices(devices)}.', flush=True)
    results = train.run(
        values.config, values.workdir, num_devices=values.num_devices,
        command=command)
  if results is None:
    sys.exit(130)  # as after Ctrl-C, so that `train && next` ends here
  if not jax.process_index():
    _print_results(results, values.workdir, time.monotonic() - started)


def _print_results(results, workdir, seconds):
  """Prints the table of measures, the cost, and what to do next."""
  console = rich.console.Console(width=88)
  # The last split is the test split, where there is one.
  for split in list(results['measures'])[-1:]:
    console.print(report.results_table(results, split))
  console.print(report.meter_table(results))
  console.print(
      f'Done in {seconds:.0f} s. The run is in {workdir}: results.json, '
      'SPLIT.run (TREC), metrics.jsonl, tensorboard/, checkpoints/.\n'
      'Next: python -m experiments.search '
      f'--workdir={workdir} --query="..."\n'
      '      other methods: --config=configs/{in_batch,stale,refresh}.py\n'
      '      your data: --config.data.source=beir --config.data.path=DIR',
      highlight=False, markup=False, soft_wrap=True)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main, flags_parser=process.parse_flags)
