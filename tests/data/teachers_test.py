"""A teacher's vectors are found by id, and what is missing is named."""

import json
import os
import types

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax.data import embeddings
from retrieval_jax.data import errors
from retrieval_jax.data import teachers

TARGETS = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
QUERIES = -TARGETS[:3]
DATA = types.SimpleNamespace(
    name='toy', corpus_ids=['c', 'a', 'd'], query_ids=['y', 'x', 'z'],
    corpus_fingerprint='these')


class TeachersTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path
    self.write('targets', TARGETS, ['a', 'b', 'c', 'd'])
    self.write('queries', QUERIES, ['x', 'y', 'v'])

  def write(self, side, vectors, ids):
    np.save(os.path.join(self.folder, f'{side}.npy'), vectors)
    names = {'targets': 'target_ids.txt', 'queries': 'query_ids.txt'}
    embeddings.write_ids(os.path.join(self.folder, names[side]), ids)

  def read(self, asked=(0, 1), dim=2, **changes):
    return teachers.read(
        self.folder, types.SimpleNamespace(**vars(DATA) | changes),
        asked=np.array(asked), dim=dim)

  def test_vectors_are_found_by_id(self):
    teacher = self.read()
    np.testing.assert_array_equal(
        teacher.targets[np.array([[0, 1], [2, -1]])],
        [[TARGETS[2], TARGETS[0]], [TARGETS[3], [0, 0]]])
    # z, which training does not ask, has none.
    np.testing.assert_array_equal(
        teacher.queries[np.array([0, 1, 2])], [QUERIES[1], QUERIES[0], [0, 0]])
    self.assertEqual(teacher.targets[np.array([0])].dtype, np.float32)
    self.assertLen(teacher.targets, 3)
    self.assertEqual(teacher.targets.dim, 2)
    self.assertEqual(teachers.read_dim(self.folder), 2)

  def test_the_fingerprint_is_of_vectors_and_ids(self):
    first = self.read().fingerprint
    self.assertEqual(self.read().fingerprint, first)
    self.write('targets', TARGETS, ['a', 'c', 'b', 'd'])
    second = self.read().fingerprint
    self.write('queries', 2 * QUERIES, ['x', 'y', 'v'])
    self.assertLen({first, second, self.read().fingerprint}, 3)

  @parameterized.parameters(
      (dict(corpus_ids=['c', 'n', 'm']), '2 of 3 targets of toy, the first .n'),
      (dict(query_ids=['y', 'n', 'z']),
       '1 of 2 training queries of toy, the first .n'),
      (dict(asked=[2]), '1 of 1 training queries of toy, the first .z'),
      (dict(corpus_ids=['c', 'a\u200b', 'd']), 'One that looks the same'),
      (dict(dim=3), r'of 2 dimensions, but this run was made for 3 \(--config'))
  def test_names_what_is_missing(self, options, message):
    with self.assertRaisesRegex(
        errors.DataError, f'--config.teacher.folder={self.folder} .*{message}'):
      self.read(**options)

  @parameterized.parameters('targets', 'queries')
  def test_names_the_file_that_is_missing(self, side):
    os.remove(os.path.join(self.folder, f'{side}.npy'))
    for read in (self.read, lambda: teachers.read_dim(self.folder)):
      with self.assertRaisesRegex(
          errors.DataError, '--config.teacher.folder=.* must be a folder that '
          f'experiments.embed wrote: .*expected one of {side}.npy'):
        read()

  def test_other_texts_under_the_same_ids_are_refused(self):
    with open(os.path.join(self.folder, 'embeddings.json'), 'w',
              encoding='utf-8') as f:
      json.dump({'origin': {'corpus': 'others'}}, f)
    self.read()  # it may be of a larger corpus
    with self.assertRaisesRegex(errors.DataError, 'made of other texts than'):
      self.read(corpus_ids=['a', 'b', 'c', 'd'])
    self.read(corpus_ids=['a', 'b', 'c', 'd'], corpus_fingerprint='others')


if __name__ == '__main__':
  absltest.main()
