"""Embeddings in fewer bytes: by hand, and as other libraries write them."""

import importlib.util

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from retrieval_jax import quantisation


def normal(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class Int8Test(parameterized.TestCase):

  # Ranges 0..255 (w = 1), -255..255 (w = 2), and a dimension that stays 0.5.
  targets = np.float32([[0., -255., .5], [255., 255., .5], [100.9, 0., .5]])

  def test_a_code_is_the_step_that_a_value_is_in(self):
    ranges = quantisation.ranges(self.targets)
    np.testing.assert_array_equal(
        ranges, np.float32([[0., -255., .5], [255., 255., .5]]))
    # 100.9 is in step 100; 0 is in the middle of step 127, from -1 to 1.
    codes = quantisation.to_int8(self.targets, ranges)
    self.assertEqual(codes.dtype, np.int8)
    np.testing.assert_array_equal(codes, [
        [0 - 128, 0 - 128, -128], [255 - 128, 255 - 128, -128],
        [100 - 128, 127 - 128, -128]])
    # Each code stands for the lower end of its step; what never varies is kept.
    np.testing.assert_array_equal(
        quantisation.from_int8(codes, ranges),
        np.float32([[0., -255., .5], [255., 255., .5], [100., -1., .5]]))

  def test_what_is_out_of_range_gets_its_end(self):
    ranges = np.float32([[0.], [255.]])
    np.testing.assert_array_equal(
        quantisation.to_int8(np.float32([[-9.], [300.], [7.]]), ranges),
        [[-128], [127], [7 - 128]])

  def test_no_value_moves_by_more_than_a_step(self):
    targets = normal(500, 7)
    ranges = quantisation.ranges(targets)
    error = targets - quantisation.from_int8(
        quantisation.to_int8(targets, ranges), ranges)
    width = quantisation.steps(ranges)
    self.assertTrue((error >= -1e-6).all())
    self.assertTrue((error <= width + 1e-6).all())
    self.assertGreater(error.max(), .9 * width.min())

  @parameterized.parameters(
      (np.zeros((0, 2)), 'ranges of, got none'),
      (np.float32([[0, 1], [0, np.nan]]), 'got nan or inf in dimension 1'))
  def test_ranges_of_nothing_are_refused(self, targets, message):
    with self.assertRaisesRegex(ValueError, message):
      quantisation.ranges(targets)

  def test_ranges_of_another_dimension_are_refused(self):
    with self.assertRaisesRegex(ValueError, r'shape \(2, 3\), .*\(2, 4\)'):
      quantisation.to_int8(np.zeros((5, 4)), np.zeros((2, 3)))


class BinaryTest(parameterized.TestCase):

  def test_bits_are_the_positive_signs_first_in_the_highest_bit(self):
    packed = quantisation.to_binary(np.float32([
        [1, -1, 0, 2, -3, -1, -1, 1, 5, -1],
        [-1, -1, -1, -1, -1, -1, -1, -1, -1, 1e-9]]))
    self.assertEqual(packed.dtype, np.uint8)
    np.testing.assert_array_equal(
        packed, [[0b10010001, 0b10000000], [0, 0b01000000]])


class NamesTest(parameterized.TestCase):

  @parameterized.parameters(
      ((), 4, []),
      (('int8',), 4, ['int8']),
      (('binary',), 0, ['binary']),
      (('binary',), 4, ['binary', 'binary_rescored']),
      (('int8', 'binary'), 0, ['int8', 'binary']),
      (('binary', 'int8'), 2, ['binary', 'int8', 'binary_rescored',
                               'binary_rescored_int8']))
  def test_each_way_of_searching_has_a_name(self, precisions, times, names):
    self.assertEqual(quantisation.variants(precisions, times), names)

  @parameterized.parameters((('int4',),), (('int8', 'int8'),), ('int8',))
  def test_other_precisions_are_refused(self, precisions):
    with self.assertRaisesRegex(
        ValueError, r"--x=.*expected names among \('int8', 'binary'\)"):
      quantisation.check(precisions, '--x')

  def test_a_multiplier_counts(self):
    quantisation.check_multiplier(0, '--x')
    with self.assertRaisesRegex(ValueError, '--x=-1 must be at least 1'):
      quantisation.check_multiplier(-1, '--x')


@pytest.mark.parametrize('function', [
    quantisation.to_binary,
    lambda x: quantisation.to_int8(x, quantisation.ranges(x))])
def test_parts_of_mapped_embeddings_are_the_whole(
    function, tmp_path, monkeypatch):
  targets = normal(11, 9).astype(np.float16)
  np.save(tmp_path / 'targets.npy', targets)
  whole = function(targets.astype(np.float32))
  monkeypatch.setattr(quantisation, '_ROWS', 4)
  np.testing.assert_array_equal(
      function(np.load(tmp_path / 'targets.npy', mmap_mode='r')), whole)


@pytest.mark.skipif(
    not importlib.util.find_spec('torch')
    or not importlib.util.find_spec('sentence_transformers'),
    reason='sentence-transformers is not installed')
def test_sentence_transformers_writes_the_same_bytes():
  import sentence_transformers
  targets = normal(300, 20)
  targets[:, 3] = .25
  ranges = quantisation.ranges(targets)
  for ours, precision in (
      (quantisation.to_int8(targets, ranges), 'int8'),
      (quantisation.to_binary(targets), 'ubinary')):
    theirs = sentence_transformers.quantize_embeddings(
        targets, precision, calibration_embeddings=targets)
    np.testing.assert_array_equal(ours, theirs)


if __name__ == '__main__':
  absltest.main()
