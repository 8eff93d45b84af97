"""Signals stop a real process cleanly, a second one at once."""

import os
import signal
import subprocess
import sys
import threading

from absl.testing import absltest
from absl.testing import parameterized

from retrieval_jax import training

_SCRIPT = """
import os, sys, time
os.environ.setdefault('NPROC', '32')
from retrieval_jax import training
from tests.training import toy
folder, slow = sys.argv[1], float(sys.argv[2])
toy_step = toy.make_step()

def step_fn(state, batch):
  state, metrics = toy_step(state, batch)
  print('step', flush=True)
  time.sleep(slow)
  return state, metrics

with training.Checkpoints(folder) as checkpoints, (
    training.MetricWriter(folder, tensorboard=False)) as writer, (
    training.StopSignal()) as stop:
  state = training.train(
      toy.make_state(), toy.batches(0), step_fn,
      [training.CheckpointHook(checkpoints, 0)], start_step=0,
      num_steps=10**6, meter=training.Meter(), writer=writer, stop=stop)
  print('stopped', int(state.step), checkpoints.latest_step(), stop.received)
"""


class StopSignalTest(parameterized.TestCase):

  def start(self, slow):
    process = subprocess.Popen(
        [sys.executable, '-c', _SCRIPT, self.create_tempdir().full_path,
         str(slow)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
        env=os.environ | {'JAX_PLATFORMS': 'cpu'})
    self.addCleanup(process.kill)
    self.assertEqual(process.stdout.readline(), 'step\n')
    return process

  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_first_signal_saves_and_stops(self, number):
    process = self.start(slow=0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 0, err)
    _, step, saved, received = out.splitlines()[-1].split()
    self.assertEqual(step, saved)
    self.assertEqual(received, number.name)
    self.assertIn(f'{number.name}: stopping after this step', err)

  def test_second_signal_stops_at_once(self):
    process = self.start(slow=60)
    process.send_signal(signal.SIGINT)
    self.assertIn('stopping', process.stderr.readline()
                  + process.stderr.readline())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    self.assertNotEqual(process.returncode, 0)
    self.assertIn('KeyboardInterrupt: second signal (SIGINT)', err)

  def test_handlers_are_put_back(self):
    before = signal.getsignal(signal.SIGINT)
    with training.StopSignal() as stop:
      self.assertNotEqual(signal.getsignal(signal.SIGINT), before)
      self.assertFalse(stop(1))
    self.assertEqual(signal.getsignal(signal.SIGINT), before)

  def test_outside_the_main_thread_it_never_stops(self):
    answers = []
    def ask():
      with training.StopSignal() as stop:
        answers.append(stop(1))
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    self.assertEqual(answers, [False])


if __name__ == '__main__':
  absltest.main()
