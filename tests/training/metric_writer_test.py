"""JSON lines: valid whatever the number, and never doubled by a resume."""

import glob
import json
import struct

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
from tensorboardX.proto import event_pb2

from retrieval_jax import training
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
