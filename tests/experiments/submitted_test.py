"""Sweeps are submitted as jobs, waited for, and go on when queued again."""

import os
import subprocess
import sys
import time
from unittest import mock

from absl import flags
import pytest

from experiments import sweep as script
from retrieval_jax.jobs import submitted
from retrieval_jax.jobs import sweep

submitit = pytest.importorskip('submitit')

# Stands in for experiments.train; the second argument is the exit status. It
# fails where another one runs beside it.
_TRAIN = """
import json, os, sys, time
workdir, status = sys.argv[1:]
print('trains', flush=True)
lock = os.path.join(os.path.dirname(workdir), 'one at a time')
os.mkdir(lock)
time.sleep(0.2)
os.rmdir(lock)
if status == '0':
  with open(os.path.join(workdir, 'results.json'), 'w') as f:
    json.dump({'measures': {}, 'meter': {}, 'steps': 1}, f)
sys.exit(int(status))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(submitted, '_POLL', 0.05)


def trial(folder, name, status=0):
  return sweep.Trial(str(folder / name), {}, (
      sys.executable, '-c', _TRAIN, str(folder / name), str(status)))


def run(planned, folder, **options):
  lines = []
  found = submitted.run(
      planned, str(folder), at_a_time=1, options=options, say=lines.append)
  return list(found.values()), '\n'.join(lines)


def test_what_is_not_finished_runs_as_a_job(tmp_path):
  planned = [trial(tmp_path, '000_a'), trial(tmp_path, '001_b', 3),
             trial(tmp_path, '002_c')]
  found, said = run(planned, tmp_path, timeout_min=5)
  assert found == ['finished', 'failed (exit 3)', 'finished']
  assert '000_a/log.txt' in said
  assert (tmp_path / '000_a' / 'log.txt').read_text() == 'trains\n'
  # Again: only what failed, and its log goes on.
  found, _ = run(planned, tmp_path)
  assert found == ['skipped (finished before)', 'failed (exit 3)',
                   'skipped (finished before)']
  assert (tmp_path / '000_a' / 'log.txt').read_text() == 'trains\n'
  assert (tmp_path / '001_b' / 'log.txt').read_text() == 'trains\ntrains\n'


def test_a_job_that_dies_is_told_from_a_run_that_fails(tmp_path):
  found, said = run([sweep.Trial(
      str(tmp_path / '000_a'), {}, ('/no/such/command',))], tmp_path)
  assert found == ['failed (the job)']
  assert 'No such file' in said


def test_a_preempted_run_is_stopped_and_queued_again(tmp_path):
  child = ('import signal, sys, time\n'
           'signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1] + '
           '"/saved", "w").close(), sys.exit(130)))\n'
           'open(sys.argv[1] + "/ready", "w").close()\ntime.sleep(60)')
  folder = str(tmp_path / '000_a')
  one = submitted.Run(sweep.Trial(
      folder, {}, (sys.executable, '-S', '-c', child, folder)))
  with mock.patch.object(subprocess.Popen, 'wait', autospec=True,
                         return_value=None) as wait:
    one()  # as in a job, which waits
    assert wait.called
  while not os.path.exists(os.path.join(folder, 'ready')):
    time.sleep(0.02)
  again = one.checkpoint()
  assert os.path.exists(os.path.join(folder, 'saved'))
  assert again.function == submitted.Run(one.trial)
  assert one._process.returncode == 130


def test_a_job_that_slurm_preempts_is_requeued_by_submitit():
  """submitit finds the method by its name."""
  job = submitit.helpers.DelayedSubmission(submitted.Run(None))
  with mock.patch.object(submitted.Run, 'checkpoint') as checkpoint:
    job._checkpoint_function()
  checkpoint.assert_called_once_with()


def test_an_interrupt_leaves_the_jobs_to_the_cluster(tmp_path):
  planned = [trial(tmp_path, '000_a'), trial(tmp_path, '001_b')]
  with mock.patch.object(time, 'sleep', side_effect=KeyboardInterrupt):
    found, said = run(planned, tmp_path)
  assert found == ['left to the cluster', 'not started']
  assert 'the jobs go on' in said
  until = time.monotonic() + 60
  while not planned[0].finished():  # it does go on
    assert time.monotonic() < until
    time.sleep(0.05)


class Slurm:
  """An executor of submitit as if there were SLURM."""
  cluster = 'slurm'

  def __init__(self, folder):
    self.folder, self.parameters = folder, {}

  def _valid_parameters(self):
    return {'timeout_min', 'gpus_per_node', 'name'}

  def update_parameters(self, **parameters):
    self.parameters = parameters

  def submit_array(self, runs):
    self.runs = runs
    jobs = []
    for number, one in enumerate(runs):
      jobs.append(mock.Mock(job_id=f'7_{number}'))
      jobs[-1].exception.return_value = None
      jobs[-1].results.return_value = [one()]
    return jobs


def test_on_slurm_all_are_one_array_that_keeps_to_the_number(tmp_path):
  made = []
  with mock.patch.object(
      submitit, 'AutoExecutor', lambda folder: made.append(Slurm(folder))
      or made[-1]):
    found, said = run(
        [trial(tmp_path, '000_a'), trial(tmp_path, '001_b', 2)], tmp_path,
        partition='gpu', gpus_per_node=1)
  assert found == ['finished', 'failed (exit 2)']
  assert 'job 7_1' in said
  [executor] = made
  assert executor.parameters == {
      'timeout_min': 7 * 24 * 60, 'name': 'sweep', 'gpus_per_node': 1,
      'slurm_partition': 'gpu', 'slurm_array_parallelism': 1}
  assert len(executor.runs) == 2


def test_options_are_checked(tmp_path):
  assert submitted.parse_options(['a=b=c', 'n=12']) == {'a': 'b=c', 'n': 12}
  for given in (['a'], ['=b'], ['a=1', 'a=2']):
    with pytest.raises(ValueError, match='--slurm: expected NAME=VALUE'):
      submitted.parse_options(given)
  with pytest.raises(ValueError, match='--slurm: .*timeout_min'):
    run([trial(tmp_path, '000_a')], tmp_path, timeout_min='long')


def test_without_submitit_it_says_what_to_install():
  with mock.patch.dict(sys.modules, {'submitit': None}), mock.patch.object(
      submitted.importlib.util, 'find_spec', return_value=None):
    with pytest.raises(ModuleNotFoundError, match=r'retrieval_jax\[submitit\]'):
      submitted.check_installed()


@pytest.mark.parametrize('arguments, message', [
    (['--slurm=a=1'], '--slurm=a=1 goes with --launcher=submitit'),
    (['--launcher=submitit', '--slurm=a'], 'expected NAME=VALUE')])
def test_the_script_refuses(arguments, message, tmp_path):
  values = flags.FlagValues()
  script.define_flags(values)
  argv = values(['sweep', '--config=configs/stale.py', '--sweep=seeds',
                 f'--workdir={tmp_path}', *arguments])
  with pytest.raises(SystemExit, match=message):
    script.main(argv, values)
