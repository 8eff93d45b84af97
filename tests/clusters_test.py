"""The files of docs/clusters start what they say, as one machine can tell."""

import os
import pathlib
import re
import subprocess

from absl import flags
import pytest
import yaml

from experiments import train
from retrieval_jax import processes

FOLDER = pathlib.Path(__file__).parents[1] / 'docs' / 'clusters'
JOBSETS = sorted(FOLDER.glob('*.yaml'))


def parsed(arguments):
  """Returns the flags of experiments.train, but for its config's options."""
  values = flags.FlagValues()
  train.define_flags(values)
  values(['train', *arguments])
  return values


def started(values):
  return processes.Start(**{
      name: getattr(values, name) for name in (
          'distributed', 'coordinator', 'num_processes', 'process_id')})


@pytest.mark.parametrize('path', JOBSETS, ids=lambda path: path.name)
def test_a_jobset_starts_as_many_processes_as_it_says(path):
  jobset = yaml.safe_load(path.read_text())
  assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert jobset['spec']['failurePolicy']['maxRestarts'] > 0
  [job] = jobset['spec']['replicatedJobs']
  of_job = job['template']['spec']
  assert of_job['completionMode'] == 'Indexed'
  assert of_job['completions'] == of_job['parallelism'] > 1
  assert of_job['backoffLimit'] == 0  # the JobSet starts all of them again
  pod = of_job['template']['spec']
  assert pod['restartPolicy'] == 'Never'
  [container] = pod['containers']
  assert container['command'] == ['python', '-m', 'experiments.train']
  mounts = [mount['mountPath'] for mount in container['volumeMounts']]
  for index in range(of_job['completions']):
    values = parsed([argument.replace('$(JOB_COMPLETION_INDEX)', str(index))
                     for argument in container['args']])
    assert values.workdir.startswith(tuple(mounts))
    start = started(values)
    if start.coordinator is None:
      continue
    assert start.process_id == index
    assert start.num_processes == job['replicas'] * of_job['completions']
    host, port = start.coordinator.split(':')
    # As JobSet names the first pod of the first job, and its subdomain.
    name = jobset['metadata']['name']
    assert host == f'{name}-{job["name"]}-0-0.{name}'
    assert jobset['spec']['network']['enableDNSHostnames']
    assert {'containerPort': int(port)} in container['ports']
    assert 'nvidia.com/gpu' in container['resources']['limits']
  if start.coordinator is None:  # then the environment tells
    chips = container['resources']['limits']['google.com/tpu']
    rows, columns = map(int, pod['nodeSelector'][
        'cloud.google.com/gke-tpu-topology'].split('x'))
    assert of_job['completions'] * chips == rows * columns


def run(script, folder, commands, *arguments, **environment):
  """Runs a script with other programs in place of those of a cluster.

  Args:
    script: its name.
    folder: for the programs, which write down how they were called.
    commands: name -> exit status.
    *arguments: of the script.
    **environment: besides PATH.
  """
  for name, status in commands.items():
    path = folder / name
    path.write_text(f'#!/bin/bash\nprintf "{name}"; printf " <%s>" "$@"; echo\n'
                    f'exit {status}\n')
    path.chmod(0o755)
  return subprocess.run(
      ['bash', FOLDER / script, *arguments], capture_output=True, text=True,
      env={'PATH': f'{folder}:{os.environ["PATH"]}', **environment})


@pytest.mark.parametrize('status, restarts, again', [
    (0, 0, False), (1, 0, False), (130, 0, True), (137, 3, True),
    (130, 20, False)])
def test_slurm_queues_again_what_was_stopped_and_not_what_is_wrong(
    status, restarts, again, tmp_path):
  done = run('slurm.sbatch', tmp_path, {'srun': status, 'scontrol': 0},
             '--config=configs/stale.py', '--workdir=/a b',
             SLURM_JOB_ID='42', SLURM_RESTART_COUNT=str(restarts))
  assert done.returncode == status, done.stderr
  assert done.stdout.startswith(
      'srun <--kill-on-bad-exit=1> <python> <-m> <experiments.train> '
      '<--config=configs/stale.py> <--workdir=/a b>\n')
  assert ('scontrol <requeue> <42>' in done.stdout) == again


def test_slurm_has_a_task_for_each_gpu():
  """jax gives each task the one device of its number on the node."""
  asked = dict(re.findall(
      r'^#SBATCH --([\w-]+)=(\S+)', (FOLDER / 'slurm.sbatch').read_text(),
      re.MULTILINE))
  assert asked['ntasks-per-node'] == asked['gpus-per-node']
  environment = {'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_NTASKS': str(
      int(asked['nodes']) * int(asked['ntasks-per-node']))}
  assert processes.found_in(environment) == 'SLURM'
  assert asked['signal'].startswith('TERM@')


def test_a_tpu_pod_gets_the_command_on_every_host(tmp_path):
  done = run('tpu_pod.sh', tmp_path, {'gcloud': 0}, 'pod', 'us-east1-d',
             '--config=configs/stale.py', '--workdir=/shared/a b')
  assert not done.returncode, done.stderr
  assert ('<tpu-vm> <ssh> <pod> <--zone=us-east1-d> <--worker=all>'
          in done.stdout)
  [command] = re.findall(r'experiments\.train (.*?)>', done.stdout, re.DOTALL)
  # As the shell of the host splits it.
  arguments = subprocess.run(
      ['bash', '-c', f'printf "%s\\n" {command}'], capture_output=True,
      text=True, check=True).stdout.splitlines()
  values = parsed(arguments)
  assert values.workdir == '/shared/a b' and values.distributed == 'on'
