"""Tests of memory-mapped strings."""

import os
import pickle

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax.data import strings

STRINGS = ['a', '', 'ünïcödé 日本', '', 'line\nend', 'x' * 5000]


class StringArrayTest(parameterized.TestCase):

  def _write(self, values):
    prefix = os.path.join(self.create_tempdir().full_path, 'texts')
    self.assertEqual(strings.write_strings(prefix, iter(values)), len(values))
    return strings.StringArray(prefix)

  @parameterized.parameters(([],), ([''],), (STRINGS,), (STRINGS * 2000,))
  def test_reads_back_what_was_written(self, values):
    array = self._write(values)
    self.assertLen(array, len(values))
    self.assertEqual(list(array), values)

  def test_indexes_like_a_list(self):
    array = self._write(STRINGS)
    for i in range(-6, 6):
      self.assertEqual(array[i], STRINGS[i])
    for s in (slice(None), slice(1, 4), slice(4, 1), slice(None, None, -2),
              slice(3, 100)):
      self.assertEqual(array[s], STRINGS[s])
    self.assertEqual(array[np.array([2, 0, 2])],
                     [STRINGS[2], STRINGS[0], STRINGS[2]])

  def test_index_out_of_range_names_both(self):
    with self.assertRaisesRegex(IndexError, 'string 6 of 6'):
      _ = self._write(STRINGS)[6]

  def test_survives_pickling(self):
    self.assertEqual(list(pickle.loads(pickle.dumps(self._write(STRINGS)))),
                     STRINGS)


if __name__ == '__main__':
  absltest.main()
