"""JSON lines: valid whatever the number, and never doubled by a resume."""

import glob
import json
import struct
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
from tensorboardX.proto import event_pb2

from retrieval_jax import training
from retrieval_jax.training import wandb_writer
from tests import disks


class MetricWriterTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path

  def write(self, *steps, resume_step=None):
    with training.MetricWriter(self.folder, resume_step=resume_step) as writer:
      for step in steps:
        writer.write(step, {'x': step})

  def lines(self):
    with open(self.folder + '/metrics.jsonl') as file:
      return [json.loads(line) for line in file]

  def test_all_kinds_of_scalars(self):
    with training.MetricWriter(self.folder, tensorboard=False) as writer:
      writer.write(np.int64(3), {
          'a': jnp.float32(0.5), 'b': np.int32(2), 'c': True, 'd': jnp.ones(1),
          'e': float('nan'), 'f': -np.inf, 'g': jnp.bfloat16(1.5)})
    self.assertEqual(self.lines(), [
        {'step': 3, 'a': 0.5, 'b': 2, 'c': 1, 'd': 1.0, 'e': None, 'f': None,
         'g': 1.5}])

  @parameterized.parameters((np.zeros(2), r'shape \(2,\)'), ('text', 'dtype'))
  def test_other_values_are_refused_by_name(self, value, message):
    with training.MetricWriter(self.folder, tensorboard=False) as writer:
      with self.assertRaisesRegex(ValueError, f"'bad' must be.*{message}"):
        writer.write(0, {'bad': value})

  def test_resume_drops_later_and_torn_lines(self):
    self.write(0, 5, 10, 15)
    with open(self.folder + '/metrics.jsonl', 'a') as file:
      file.write('{"step": 1')
    self.write(12, resume_step=10)
    self.assertEqual([line['step'] for line in self.lines()], [0, 5, 10, 12])

  def test_lines_that_are_none_of_ours_are_dropped(self):
    self.write(0)
    with open(self.folder + '/metrics.jsonl', 'ab') as file:
      file.write(b'{"step": 1, "\xff": 2}\n[1]\n{"x": 1}\n{"step": null}\n')
    self.write(5, resume_step=3)
    self.assertEqual([line['step'] for line in self.lines()], [0, 5])

  def test_a_full_disk_is_named(self):
    # An event is longer than a line, so that each is the first to lack room.
    for tensorboard, name in ((False, 'metrics.jsonl'), (True, 'tensorboard')):
      with disks.files_of_at_most(10**4), self.assertRaisesRegex(
          OSError, f'cannot write .*{name}'):
        with training.MetricWriter(
            self.folder, tensorboard=tensorboard) as writer:
          for step in range(10**4):
            writer.write(step, {'x': step})

  def test_new_run_drops_all_lines(self):
    self.write(0, 5)
    self.write(0)
    self.assertEqual([line['step'] for line in self.lines()], [0])

  def test_writes_tensorboard_events(self):
    self.write(1)
    self.write(7, resume_step=3)
    first, second = [_events(path) for path in sorted(
        glob.glob(self.folder + '/tensorboard/events*'))]
    self.assertEqual([event.step for event in first], [0, 0, 1])
    self.assertEqual([event.step for event in second], [0, 4, 7])
    self.assertEqual(second[1].session_log.status,
                     event_pb2.SessionLog.START)  # hides what was after step 3
    [value] = second[2].summary.value
    self.assertEqual((value.tag, value.simple_value), ('x', 7))

  def test_weights_and_biases_get_the_scalars_and_one_run(self):
    # The library itself is no dependency of the tests; this is what we call.
    run = mock.Mock()
    library = mock.Mock(init=mock.Mock(return_value=run))
    with mock.patch.dict(sys.modules, wandb=library):
      for resume_step in (None, 3):
        with training.MetricWriter(
            self.folder, resume_step=resume_step, wandb='words',
            config={'seed': 1}) as writer:
          writer.write(7, {'x': jnp.float32(.5)})
    first, second = library.init.call_args_list
    self.assertEqual(first, second)
    self.assertEqual(first.kwargs['project'], 'words')
    self.assertEqual(first.kwargs['config'], {'seed': 1})
    self.assertEqual(first.kwargs['resume'], 'allow')
    self.assertEqual(run.log.call_args_list, 2 * [mock.call({'x': .5}, step=7)])
    self.assertEqual(run.finish.call_count, 2)

  def test_weights_and_biases_that_are_not_installed(self):
    with mock.patch.dict(sys.modules, wandb=None):
      with self.assertRaisesRegex(ImportError, r'log.wandb=words .*\[wandb'):
        wandb_writer.check_installed('words')


def _events(path):
  """Returns the events of a file: length, its checksum, event, checksum."""
  with open(path, 'rb') as file:
    content, events = file.read(), []
  while content:
    [length] = struct.unpack('<Q', content[:8])
    events.append(event_pb2.Event.FromString(content[12:12 + length]))
    content = content[16 + length:]
  return events


if __name__ == '__main__':
  absltest.main()
