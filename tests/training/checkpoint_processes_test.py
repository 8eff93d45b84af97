"""Two real processes: a signal to one stops both; one resumes alone."""

import os
import signal
import socket
import subprocess
import sys

from absl.testing import absltest
import pytest

from retrieval_jax import training
from tests.training import toy

_SCRIPT = """
import os, sys, time
import jax
folder, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update('jax_num_cpu_devices', 2)
jax.distributed.initialize(coordinator_address='127.0.0.1:' + port,
                           num_processes=2, process_id=index)
from retrieval_jax import training
from tests.training import toy
toy_step = toy.make_step(4)

def step_fn(state, batch):
  if index == 0:
    print('step', flush=True)
  time.sleep(0.01)
  return toy_step(state, batch)

with training.Checkpoints(folder + '/ckpt') as checkpoints, (
    training.MetricWriter(folder, tensorboard=False)) as writer, (
    training.StopSignal(sync_every=4)) as stop:
  state = training.train(
      toy.make_state(4), toy.batches(0, 4), step_fn,
      [training.LogHook(4), training.CheckpointHook(checkpoints, 0)],
      start_step=0, num_steps=10**6, meter=training.Meter(), writer=writer,
      stop=stop)
print('stopped', int(state.step), flush=True)
"""


class ProcessesTest(absltest.TestCase):

  @pytest.mark.slow
  def test_signal_to_one_process_stops_both_and_one_resumes(self):
    folder = self.create_tempdir().full_path
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', _SCRIPT, folder, str(port), str(index)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
            env=os.environ | {'JAX_PLATFORMS': 'cpu', 'NPROC': '32'})
        for index in range(2)]
    for process in processes:
      self.addCleanup(process.kill)
    for line in processes[0].stdout:  # gloo greets first
      if line == 'step\n':
        break
    processes[1].send_signal(signal.SIGTERM)
    last_lines = []
    for process in processes:
      out, err = process.communicate(timeout=100)
      self.assertEqual(process.returncode, 0, err)
      last_lines.append(out.splitlines()[-1])
    self.assertEqual(last_lines[0], last_lines[1])
    step = int(last_lines[0].split()[1])
    self.assertEqual(step % 4, 0)
    with training.Checkpoints(folder + '/ckpt') as checkpoints:
      state, _ = checkpoints.restore(training.abstract(toy.make_state(8)))
    self.assertEqual(int(state.step), step)
    self.assertLen(state.table.embeddings.sharding.device_set, 8)


if __name__ == '__main__':
  absltest.main()
