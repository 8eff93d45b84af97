"""Embeddings from any source: what is read, and what is refused."""

import os

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from safetensors import numpy as safetensors

from retrieval_jax.data import embeddings
from retrieval_jax.data import errors

MATRIX = np.arange(6, dtype=np.float32).reshape(3, 2)


class EmbeddingsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path

  def path(self, *names):
    return os.path.join(self.folder, *names)

  def write(self, name, text):
    os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
    with open(self.path(name), 'w', encoding='utf-8') as f:
      f.write(text)

  @parameterized.parameters('npy', 'npz', 'safetensors')
  def test_every_kind_of_file_gives_the_same(self, kind):
    if kind == 'npy':
      np.save(self.path('targets.npy'), MATRIX)
    elif kind == 'npz':
      np.savez(self.path('targets.npz'), vectors=MATRIX, ids=np.arange(3))
    else:
      safetensors.save_file({'x': MATRIX}, self.path('targets.safetensors'))
    self.write('target_ids.txt', 'd 1\nü\nthird\n')
    found = embeddings.read(self.folder, 'targets')
    np.testing.assert_array_equal(found.vectors, MATRIX)
    self.assertEqual(list(found.ids), ['d 1', 'ü', 'third'])

  def test_without_a_file_of_ids_they_are_row_numbers(self):
    np.save(self.path('queries.npy'), MATRIX.astype(np.float16))
    self.assertEqual(embeddings.read(self.folder, 'queries').ids,
                     ['0', '1', '2'])

  def test_both_sides_must_have_one_dimension(self):
    np.save(self.path('targets.npy'), MATRIX)
    np.save(self.path('queries.npy'), MATRIX[:2])
    targets, queries = embeddings.read_both(self.folder)
    np.testing.assert_array_equal(targets.vectors, MATRIX)
    self.assertLen(queries.ids, 2)
    np.save(self.path('queries.npy'), MATRIX.T)
    with self.assertRaisesRegex(
        errors.DataError, 'targets.npy has 2 dimensions, .*queries.npy 3;'):
      embeddings.read_both(self.folder)

  def test_written_ids_are_read_again(self):
    ids = ['a b', 'c\td', 'é\u2028f']
    embeddings.write_ids(self.path('x.txt'), ids)
    self.assertEqual(embeddings.read_ids(self.path('x.txt')), ids)

  def test_bad_vectors_are_refused(self):
    with self.assertRaisesRegex(errors.DataError, 'targets.npz.*found none'):
      embeddings.read(self.folder, 'targets')
    np.save(self.path('targets.npy'), np.arange(3))
    with self.assertRaisesRegex(
        errors.DataError, r'one matrix \[n, D\] of floats, found  int64 \[3\]'):
      embeddings.read(self.folder, 'targets')
    self.write('targets.npz', 'x')
    with self.assertRaisesRegex(
        errors.DataError, 'found targets.npy, targets.npz'):
      embeddings.read(self.folder, 'targets')
    os.remove(self.path('targets.npy'))
    with self.assertRaisesRegex(errors.DataError, 'targets.npz: cannot read'):
      embeddings.read(self.folder, 'targets')
    np.savez(self.path('two.npz'), a=MATRIX, b=MATRIX)
    with self.assertRaisesRegex(
        errors.DataError, 'found a float32 .*, b float32'):
      embeddings.read_matrix(self.path('two.npz'))
    np.save(self.path('none.npy'), MATRIX[:0])
    with self.assertRaisesRegex(errors.DataError, 'none.npy: .* no rows'):
      embeddings.read_matrix(self.path('none.npy'))
    with self.assertRaisesRegex(errors.DataError, 'x.bin: .* ends in one of'):
      embeddings.read_matrix(self.path('x.bin'))

  def test_a_header_that_is_no_python_is_named(self):
    path = self.path('targets.npy')
    np.save(path, MATRIX)
    with open(path, 'r+b') as file:
      file.seek(10)
      file.write(b'k')  # in place of {
    with self.assertRaisesRegex(errors.DataError, 'targets.npy: cannot read'):
      embeddings.read_matrix(path)

  @parameterized.parameters('npy', 'npz', 'safetensors')
  def test_a_cut_file_is_named(self, kind):
    path = self.path(f'targets.{kind}')
    {'npy': np.save, 'npz': np.savez,
     'safetensors': lambda path, x: safetensors.save_file({'x': x}, path)
     }[kind](path, np.ones((9, 9), np.float32))
    with open(path, 'rb') as file:
      whole = file.read()
    for content in (b'', whole[:5], whole[:-9]):
      with open(path, 'wb') as file:
        file.write(content)
      with self.assertRaisesRegex(errors.DataError, f'targets.{kind}: '):
        embeddings.read(self.folder, 'targets')

  @parameterized.product(
      value=[np.nan, np.inf, -np.inf, 1e300, 0], kind=['npy', 'npz'],
      row=[0, 1, 9_000])
  def test_rows_without_a_direction_are_refused(self, value, kind, row):
    matrix = np.ones([9_001, 2])
    matrix[row:, 0] = value
    if not value:
      matrix[row] = 0
    save = np.save if kind == 'npy' else np.savez
    save(self.path(f'queries.{kind}'), matrix)
    with self.assertRaisesRegex(
        errors.DataError, rf'queries.{kind}: row {row} \(from 0\) holds '
        + {0: 'zeros', 1e300: 'inf'}.get(value, str(value))):
      embeddings.read(self.folder, 'queries')

  def test_a_byte_order_mark_belongs_to_no_id(self):
    self.write('x.txt', '\ufeffa\r\nb\r\n')
    self.assertEqual(embeddings.read_ids(self.path('x.txt')), ['a', 'b'])
    with open(self.path('x.txt'), 'wb') as file:
      file.write(b'a\n\xff\n')
    with self.assertRaisesRegex(errors.DataError, 'x.txt:.: expected utf-8'):
      embeddings.read_ids(self.path('x.txt'))

  def test_bad_ids_are_refused_with_the_line(self):
    np.save(self.path('targets.npy'), MATRIX)
    self.write('target_ids.txt', 'a\nb\n')
    with self.assertRaisesRegex(errors.DataError, '2 ids, but .* has 3 rows'):
      embeddings.read(self.folder, 'targets')
    self.write('target_ids.txt', 'a\nb\na\n')
    with self.assertRaisesRegex(
        errors.DataError, r"ids.txt:3: id 'a' already occurs in line 1"):
      embeddings.read(self.folder, 'targets')
    self.write('target_ids.txt', 'a\n\nb\n')
    with self.assertRaisesRegex(errors.DataError, 'ids.txt:2: expected an id'):
      embeddings.read(self.folder, 'targets')

  def test_judgements_become_rows(self):
    self.write('qrels/dev.tsv', 'query-id\tcorpus-id\tscore\n'
               'q2\td1\t1\nq1\td3\t0\nq1\td2\t2\n')
    found = embeddings.read_qrels(
        self.path('qrels'), 'dev', ['q1', 'q2'], ['d1', 'd2', 'd3'])
    np.testing.assert_array_equal(found.query_rows, [0, 0, 1])
    np.testing.assert_array_equal(found.corpus_rows, [1, 2, 0])
    np.testing.assert_array_equal(found.grades, [2, 0, 1])
    self.assertEqual(embeddings.read_splits(self.path('qrels')), ['dev'])

  def test_a_judgement_given_twice_counts_once(self):
    self.write('qrels/dev.tsv', 'q1\td1\t2\nq1\td2\t1\nq1\td1\t2\n')
    found = embeddings.read_qrels(
        self.path('qrels'), 'dev', ['q1'], ['d1', 'd2'])
    self.assertEqual(found.corpus_rows.tolist(), [0, 1])

  def test_a_folder_is_a_collection_without_texts(self):
    self.write('qrels/dev.tsv', 'q2\td1\t1\n')
    self.write('qrels/test.tsv', 'q1\td2\t1\n')
    names = dict(query_ids=['q1', 'q2'], corpus_ids=['d1', 'd2'])
    found = embeddings.read_collection(self.folder, **names)
    self.assertEqual(list(found.qrels), ['dev', 'test'])
    self.assertEqual(found.qrels['dev'].positives(1).tolist(), [0])
    self.assertEqual((found.query_ids, found.corpus_texts, found.name),
                     (['q1', 'q2'], None, self.folder))
    some = embeddings.read_collection(self.folder, splits=['test'], **names)
    self.assertEqual(list(some.qrels), ['test'])

  def test_bad_judgements_are_refused_with_the_line(self):
    self.write('qrels/dev.tsv', 'q1\td1\t1\nq1\td9\t1\n')
    read = lambda split, queries: embeddings.read_qrels(
        self.path('qrels'), split, queries, ['d1'])
    with self.assertRaisesRegex(
        errors.DataError, "dev.tsv:2: target 'd9' has no embedding. Embed it"):
      read('dev', ['q1'])
    with self.assertRaisesRegex(
        errors.DataError, "dev.tsv:1: query 'q1' has no embedding"):
      read('dev', ['q'])
    self.write('qrels/dev.tsv', 'q1\td\u200b1\t1\n')
    with self.assertRaisesRegex(
        errors.DataError, r"tsv:1: .* looks the same .*'d1', .*'d\\u200b1'"):
      read('dev', ['q1'])
    self.write('qrels/dev.tsv', 'q1\td1\t1\nq2\td1\t2\n\nq1\td1\t0\n')
    with self.assertRaisesRegex(
        errors.DataError, "dev.tsv:4: query 'q1' and target 'd1' are judged 0 "
        'here but 1 further up. Keep one'):
      read('dev', ['q1', 'q2'])
    with self.assertRaisesRegex(
        errors.DataError, 'test.tsv: no such file; there are the splits dev'):
      read('test', ['q1'])
    with self.assertRaisesRegex(errors.DataError, 'no such folder'):
      embeddings.read_splits(self.path('nothing'))


if __name__ == '__main__':
  absltest.main()
