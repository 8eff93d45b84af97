"""JSON lines: valid whatever the number, and never doubled by a resume."""

import glob
import json

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from retrieval_jax import training


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

  def test_new_run_drops_all_lines(self):
    self.write(0, 5)
    self.write(0)
    self.assertEqual([line['step'] for line in self.lines()], [0])

  def test_writes_tensorboard_events(self):
    self.write(1)
    self.assertLen(glob.glob(self.folder + '/tensorboard/events*'), 1)


if __name__ == '__main__':
  absltest.main()
