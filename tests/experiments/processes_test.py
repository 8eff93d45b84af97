"""The scripts on two processes do what they do on one."""

import contextlib
import importlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

from absl import flags
import jax
import numpy as np
import pytest

from retrieval_jax import processes
from retrieval_jax.training import signals
from tests.experiments import tiny
from tests.experiments import train_test

_DEVICES = 2
"""Of each process."""

_BY_STEP = {'num_steps': 4, 'log__every': 1, 'checkpoint__every': 2}
_RUNS = {
    'moving': ('stale', tiny.MOVING | _BY_STEP | {
        'refresh__reencode_every': 2, 'evaluation__every': 2,
        'evaluation__precisions': ('int8',), 'diagnostics__every': 2,
        'corrector__name': 'linear', 'corrector__num_anchors': 4,
        'sharding__parameters': 'sharded', 'sharding__min_size': 64}),
    'rows': ('direct_gradient', _BY_STEP),
    'tree': ('dynamic_index', _BY_STEP | {
        'sampler__leaf_size': 8, 'sampler__opened': 2,
        'memory__chunk_rows': 64}),
    'episodes': ('ance_tele', _BY_STEP | {
        'refresh__reencode_every': 1, 'forgetting__every': 2}),
    'questions': ('qa:stale_tiny', _BY_STEP)}

_PROGRAM = """
import json, sys
from tests.experiments import processes_test
for line in sys.stdin:
  processes_test.call(*json.loads(line))
"""


def call(script, *arguments):
  """Calls a script's main with flags, as its command line would."""
  module = importlib.import_module(f'experiments.{script}')
  values = flags.FlagValues()
  module.define_flags(values)
  # ml_collections looks for its overrides in sys.argv, wherever flags are from.
  with mock.patch.object(sys, 'argv', [script, *arguments]):
    module.main(values(sys.argv), values)


class Pair:
  """Two processes of two devices each, that do the same."""

  def __init__(self, calls, own=((), ())):
    """Starts them.

    Args:
      calls: lists of arguments, which each goes through.
      own: arguments that each adds to all of them.
    """
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    environment = dict(
        os.environ, JAX_PLATFORMS='cpu', JAX_NUM_CPU_DEVICES=str(_DEVICES))
    self.processes = []
    for i in range(2):
      joining = [f'--coordinator=127.0.0.1:{port}', '--num_processes=2',
                 f'--process_id={i}', '--heartbeat_seconds=10', *own[i]]
      one = subprocess.Popen(
          [sys.executable, '-c', _PROGRAM], stdin=subprocess.PIPE,
          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
          env=environment)
      one.stdin.write('\n'.join(
          json.dumps([*arguments, *joining]) for arguments in calls))
      one.stdin.close()
      one.stdin = None
      self.processes.append(one)

  def wait(self):
    """Returns (exit code, output) of each."""
    try:
      outputs = [one.communicate(timeout=900)[0] for one in self.processes]
    finally:
      for one in self.processes:
        one.kill()
    return [(one.returncode, output)
            for one, output in zip(self.processes, outputs)]


def do(*calls):
  """Goes through calls of scripts by two processes; returns the outputs."""
  found = Pair(calls).wait()
  for code, output in found:
    assert not code, output
  return [output for _, output in found]


@pytest.fixture(scope='module')
def train_arguments(beir, cache, tmp_path_factory):
  """Returns (name of a run, workdir, more) -> arguments of its training."""
  questions = tiny.write_questions(
      str(tmp_path_factory.mktemp('questions') / 'data'))

  def arguments(name, workdir, **more):
    module, options = _RUNS[name]
    module, _, variant = module.partition(':')
    options = {'data.source': 'beir', 'data.path': beir,
               'data.num_targets': 0, **options}
    if name == 'questions':
      options |= {'data.path': questions}
    options |= {'data.cache': cache, 'log.tensorboard': False, **more}
    return [f'--config=configs/{module}.py:{variant or "tiny"}',
            f'--workdir={workdir}', *(
                f'--config.{key.replace("__", ".")}={value}'
                for key, value in options.items())]

  return arguments


@pytest.fixture(scope='module')
def both(train_arguments, tmp_path_factory):
  """Returns the folders of two processes' runs, of one's, and the outputs."""
  folder = tmp_path_factory.mktemp('runs')
  two, one = folder / 'two', folder / 'one'
  outputs = do(*(['train', *train_arguments(name, two / name)]
                 for name in _RUNS))
  for name in _RUNS:
    call('train', '--num_devices=4', *train_arguments(name, one / name))
  return two, one, outputs


def read(*path):
  with open(os.path.join(*path), encoding='utf-8') as f:
    return json.load(f)


def read_run(path):
  """Returns (query, target) -> score of a TREC run; near ties may swap."""
  with open(path, encoding='utf-8') as f:
    rows = [line.split() for line in f]
  return {(row[0], row[2]): float(row[4]) for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize('name', _RUNS)
def test_two_processes_find_what_one_finds(name, both):
  two, one, _ = both
  of_two, of_one = (read(folder, name, 'results.json') for folder in (two, one))
  assert of_two['hardware'].pop('processes') == 2
  assert of_one['hardware'].pop('processes') == 1
  assert of_two['hardware'] == of_one['hardware']
  for split, measures in of_one['measures'].items():
    assert of_two['measures'][split] == pytest.approx(measures, abs=1e-6)
  assert of_two['bm25'] == of_one['bm25']
  for meter in (of_two['meter'], of_one['meter']):
    del meter['seconds']
    # What the process held before, in one that runs many tests.
    del meter['device_bytes']
  assert of_two['meter'] == of_one['meter']
  losses = tiny.losses(one / name)
  assert tiny.losses(two / name) == pytest.approx(losses, rel=1e-4)
  assert len(losses) == 4
  files = lambda folder: sorted(
      os.path.relpath(os.path.join(at, file), folder)
      for at, _, names in os.walk(folder) for file in names
      if 'checkpoints' not in at and 'start' not in at)
  assert files(two / name) == files(one / name)
  for file in files(one / name):
    if file.endswith('.run'):
      assert read_run(two / name / file) == pytest.approx(
          read_run(one / name / file), rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_the_first_process_alone_prints(both):
  *_, (first, other) = both
  assert 'RR@10' in first and 'Done in' in first
  assert 'RR@10' not in other and 'Embedding' not in other


_LONG = _RUNS['moving'][1] | {
    'num_steps': 40, 'checkpoint__every': 1, 'evaluation__every': 0,
    'diagnostics__every': 0}


@pytest.fixture(scope='module')
def straight(train_arguments, tmp_path_factory):
  """Returns the losses and the last state of a run that nothing stops."""
  folder = tmp_path_factory.mktemp('straight')
  call('train', '--num_devices=4', *train_arguments('moving', folder, **_LONG))
  return tiny.losses(folder), train_test.final_state(folder)


def check_same(folder, straight):
  losses, state = straight
  found = tiny.losses(folder)
  assert found == pytest.approx(losses, rel=1e-3)
  assert list(found) == list(range(1, 41))
  for one, other in zip(jax.tree.leaves(state),
                        jax.tree.leaves(train_test.final_state(folder))):
    np.testing.assert_allclose(
        np.asarray(one, np.float64), np.asarray(other, np.float64),
        rtol=1e-2, atol=1e-3)


def wait_for_step(folder, step, pair):
  """Returns when a run has logged a step."""
  until = time.monotonic() + 600
  while time.monotonic() < until:
    if os.path.exists(folder / 'metrics.jsonl') and max(
        tiny.losses(folder), default=0) >= step:
      return
    assert pair.processes[0].poll() is None, pair.wait()
    time.sleep(0.05)
  raise AssertionError(f'no step {step}: {pair.wait()}')


@pytest.mark.slow
def test_when_one_is_killed_the_other_ends_and_both_go_on(
    train_arguments, straight, tmp_path):
  arguments = ['train', *train_arguments('moving', tmp_path, **_LONG)]
  pair = Pair([arguments])
  wait_for_step(tmp_path, 3, pair)
  pair.processes[1].kill()
  (code, output), _ = pair.wait()  # and does not wait for ever
  assert code, output
  assert max(tiny.losses(tmp_path)) < 40
  do(arguments)
  check_same(tmp_path, straight)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_one_process_goes_on(
    train_arguments, straight, tmp_path):
  arguments = train_arguments('moving', tmp_path, **_LONG)
  pair = Pair([['train', *arguments]])
  wait_for_step(tmp_path, 1, pair)
  pair.processes[1].send_signal(signal.SIGTERM)
  found = pair.wait()
  assert [code for code, _ in found] == [130, 130], found
  assert 'Stopped after step' in found[0][1]
  call('train', '--num_devices=1', *arguments)
  check_same(tmp_path, straight)


@pytest.mark.slow
def test_two_go_on_where_one_was_stopped(train_arguments, straight, tmp_path):
  arguments = train_arguments('moving', tmp_path, **_LONG)
  with mock.patch.object(
      signals.StopSignal, '__call__', lambda self, step: step >= 3
  ), pytest.raises(SystemExit):
    call('train', '--num_devices=1', *arguments)
  do(['train', *arguments])
  check_same(tmp_path, straight)


@pytest.fixture(scope='module')
def after(both, tmp_path_factory):
  """Returns what the other scripts make of a run, and print: by two, by one."""
  folder, found = tmp_path_factory.mktemp('after'), []
  for which, run in zip(('two', 'one'), both):
    run, out = run / 'moving', folder / which
    calls = [
        ['evaluate', f'--workdir={run}', '--splits=train'],
        ['diagnose', f'--workdir={run}'],
        ['embed', f'--workdir={run}', f'--out={out}/embeddings',
         '--pairs=targets'],
        ['mine', f'--workdir={run}', f'--out={out}/mined', '--splits=dev'],
        ['adapt', f'--embeddings={out}/embeddings', f'--out={out}/adapted',
         '--method=xs,nudge_n'],
        ['export', f'--workdir={run}', f'--out={out}/exported',
         '--embeddings', '--precisions=int8'],
        ['search', f'--workdir={run}', '--query=kabel lodor', '--k=3']]
    if which == 'two':
      found.append((out, do(*calls)[0]))
    else:
      printed = io.StringIO()
      with contextlib.redirect_stdout(printed):
        for arguments in calls:
          call(*arguments)
      found.append((out, printed.getvalue()))
  return found


def close(one, other):
  """Checks that two texts differ in numbers alone, and little."""
  split = lambda text: re.split(r'(-?\d+\.\d+)', text)
  for a, b in zip(split(one), split(other), strict=True):
    try:
      assert float(a) == pytest.approx(float(b), rel=1e-3, abs=2e-3)
    except ValueError:
      assert a == b


@pytest.mark.slow
@pytest.mark.parametrize('name', [
    'embeddings', 'mined', 'adapted/xs', 'adapted/nudge_n', 'exported'])
def test_the_other_scripts_write_what_one_process_writes(name, after):
  (of_two, _), (of_one, _) = after
  tree = lambda folder: sorted(
      os.path.relpath(os.path.join(at, file), folder)
      for at, _, names in os.walk(folder) for file in names)
  files = tree(of_one / name)
  assert files == tree(of_two / name) and files
  compared = 0
  for file in files:
    one, other = of_one / name / file, of_two / name / file
    if file.endswith('.npy'):
      a, b = np.load(one), np.load(other)
      assert (a.shape, a.dtype) == (b.shape, b.dtype)
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    elif file.endswith(('.tsv', '.txt')):
      close(one.read_text(), other.read_text())
    else:
      continue
    compared += 1
  assert compared or name == 'exported'


@pytest.mark.slow
def test_the_other_scripts_print_what_one_process_prints(after):
  (_, of_two), (_, of_one) = after
  picked = lambda text: '\n'.join(
      line for line in text.splitlines()
      if re.match(r'(train at step|. (tv|kl|drift_before|coverage) |  *\d\.\d+ '
                  r' *d\d+)', line))
  one, two = picked(of_one), picked(of_two)
  assert all(name in one for name in ('train at step 4', 'tv', ' d'))
  close(one, two)


@pytest.mark.slow
def test_processes_that_differ_are_refused(train_arguments, tmp_path):
  for name, values in (('--config.seed', (1, 2)),
                       ('--workdir', (tmp_path / 'a', tmp_path / 'b'))):
    found = Pair([['train', *train_arguments('moving', tmp_path / 'a')]],
                 [[f'{name}={value}'] for value in values]).wait()
    flag = name.removesuffix('.seed')
    assert [code for code, _ in found] == [1, 1], found
    assert all(f'The 2 processes differ in {flag}: process {i} has' in said
               for i, (_, said) in enumerate(found)), found
  assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_an_error_of_the_first_ends_the_other(train_arguments, tmp_path):
  started = time.monotonic()
  (first, said), (other, heard) = Pair([[
      'train', *train_arguments('moving', tmp_path),
      '--config.data.path=/no/such/folder']]).wait()
  assert (first, other) == (1, 1)
  assert 'process 0: error: ' in said and '/no/such/folder' in said
  assert 'process 1: error: preparing data, tokens and model: ' in heard
  assert time.monotonic() - started < 120


def test_the_flags_belong_together():
  with pytest.raises(ValueError, match='--coordinator without --num_proc'):
    processes.Start(coordinator='host:1')
  with pytest.raises(ValueError, match='--distributed=off goes without'):
    processes.Start('off', 'host:1', 2, 0)
  with pytest.raises(ValueError, match='--process_id=2 must be 0 to 1'):
    processes.Start('auto', 'host:1', 2, 2)
  with pytest.raises(ValueError, match='--coordinator=host must be HOST:PORT'):
    processes.Start('auto', 'host', 2, 0)


@pytest.mark.parametrize('environment, found', [
    ({}, ''),
    ({'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_NTASKS': '2'}, 'SLURM'),
    ({'SLURM_STEP_NODELIST': 'n1', 'SLURM_NTASKS': '1'}, ''),
    ({'SLURM_NTASKS': '2'}, ''),  # salloc or sbatch, outside of srun
    ({'OMPI_COMM_WORLD_SIZE': '4'}, 'Open MPI'),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 'TPU pod'),
    ({'TPU_WORKER_HOSTNAMES': 'a'}, ''),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, ''),  # any pod
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '0'},
     'Kubernetes')])
def test_several_processes_are_found_in_the_environment(environment, found):
  assert processes.found_in(environment) == found


def test_one_process_needs_no_other():
  with mock.patch.object(jax.distributed, 'initialize') as initialize:
    with mock.patch.dict(os.environ, clear=True):
      processes.start(processes.Start())
      processes.start(processes.Start('off'))
    initialize.assert_not_called()
    processes.start(processes.Start('on'))
    initialize.assert_called_once()
  processes.wait('nobody')
  processes.check_same({'what': object()}, '')
  assert processes.total(2**40 + 1) == 2**40 + 1
