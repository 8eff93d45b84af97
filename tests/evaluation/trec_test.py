"""TREC files hold what was written, or nothing."""

import os

from absl.testing import absltest
from absl.testing import parameterized
import ir_measures
import numpy as np

from retrieval_jax import files
from retrieval_jax.evaluation import runs
from retrieval_jax.evaluation import trec
from tests.data import fakes


def make_run(query_ids, ids, scores):
  return runs.Run(query_ids, np.array(ids, dtype=object),
                  np.array(scores, np.float32))


class TrecTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.create_tempdir().full_path, 'a', 'b.run')

  def write(self, text):
    os.makedirs(os.path.dirname(self.path), exist_ok=True)
    with open(self.path, 'w', encoding='utf-8', newline='') as f:
      f.write(text)

  def test_a_run_reads_back_bit_for_bit(self):
    run = make_run(['q"1', 'é,2'], [['a', "b'"], ['c%20', '']],
                   [[1 / 3, 1e-8], [-2.5, 9]])
    trec.write_run(self.path, run)
    back = trec.read_run(self.path)
    self.assertEqual(back.query_ids, ('q"1', 'é,2'))
    np.testing.assert_array_equal(back.ids, run.ids)
    np.testing.assert_array_equal(
        back.scores[run.ids != ''].astype(np.float32),
        run.scores[run.ids != ''])

  def test_lines_have_the_six_columns_and_ranks_from_one(self):
    trec.write_run(
        self.path, make_run(['q'], [['a', 'b']], [[2, 1]]), tag='mine')
    with open(self.path, encoding='utf-8') as f:
      self.assertEqual(f.read(), 'q Q0 a 1 2.0 mine\nq Q0 b 2 1.0 mine\n')

  def test_ir_measures_reads_the_files(self):
    trec.write_run(self.path, make_run(['q\u2003x'], [['a b']], [[2]]))
    [document] = ir_measures.read_trec_run(self.path)
    self.assertEqual(document.query_id, 'q%{2003}x')
    self.assertEqual(document.doc_id, 'a%{20}b')

  def test_qrels_read_back(self):
    qrels = {'q': {'a': 2, 'b': 0}, 'r': {'c"': -1}}
    trec.write_qrels(self.path, qrels)
    self.assertEqual(trec.read_qrels(self.path), qrels)

  def test_ids_that_look_like_encoded_ones_stay_apart(self):
    ids = ['a b', 'a%20b', 'a%{20}b', 'a%{25}{20}b', 'a%2520b', 'a%%{20}b']
    trec.write_run(self.path, make_run(['q'], [ids], [range(6, 0, -1)]))
    self.assertEqual(trec.read_run(self.path).ids.tolist(), [ids])
    qrels = {name: dict.fromkeys(ids, 1) for name in ids}
    trec.write_qrels(self.path, qrels)
    self.assertEqual(trec.read_qrels(self.path), qrels)

  def test_any_ids_read_back(self):
    random = np.random.default_rng(0)
    signs = np.array(list('%{}20a5 \t\n\r\x1c\x85\u2003\u3000ü'))
    ids = list(dict.fromkeys(
        ''.join(random.choice(signs, random.integers(1, 9)))
        for _ in range(5000)))
    self.assertLen({trec.encode_id(name) for name in ids}, len(ids))
    trec.write_run(self.path, make_run(ids, [[name] for name in ids[::-1]],
                                       np.zeros([len(ids), 1])))
    run = trec.read_run(self.path)
    self.assertEqual(list(run.query_ids), ids)
    self.assertEqual(run.ids[:, 0].tolist(), ids[::-1])
    # Others split at white space of every kind, and get the same columns.
    with open(self.path, encoding='utf-8', newline='\n') as f:
      self.assertEqual({len(line.split()) for line in f}, {6})

  def test_ids_without_white_space_are_written_as_they_are(self):
    for name in ('a%20b', '100%', 'x{1}', 'http://x/%E2%80%83?q={a}', 'é,"'):
      self.assertEqual(trec.encode_id(name), name)
    self.write('q%20 Q0 a%20b 1 0.5 t\nq%20 Q0 %{zz} 1 0.4 t\n')
    run = trec.read_run(self.path)
    self.assertEqual(run.query_ids, ('q%20',))
    self.assertEqual(run.ids.tolist(), [['a%20b', '%{zz}']])

  def test_an_id_that_stands_twice_is_refused(self):
    run = make_run(['q'], [['a b', 'a b']], [[2, 1]])
    with self.assertRaisesRegex(ValueError, "'q' has the id 'a b' more than o"):
      trec.write_run(self.path, run)
    self.assertEqual(os.listdir(os.path.dirname(self.path)), [])

  def test_an_empty_id_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'non-empty id'):
      trec.write_qrels(self.path, {'': {'a': 1}})

  def test_a_byte_order_mark_belongs_to_no_query(self):
    self.write('\ufeffq Q0 a 1 0.5 t\nq Q0 b 2 0.4 t\n')
    self.assertEqual(trec.read_run(self.path).query_ids, ('q',))
    self.write('\ufeffq 0 a 1\nq 0 b 2\n')
    self.assertEqual(trec.read_qrels(self.path), {'q': {'a': 1, 'b': 2}})

  def test_the_score_orders_a_run_whatever_the_ranks_say(self):
    self.write('q Q0 a 1 0.5 t\n\nq Q0 b 2 0.7 t\r\n')
    self.assertEqual(trec.read_run(self.path).ids.tolist(), [['b', 'a']])

  def test_a_run_of_ranks_is_ordered_by_them(self):
    self.write('q\tb\t2\nq\ta\t1\nr\tc\t10\n')
    run = trec.read_run(self.path)
    self.assertEqual(run.ids.tolist(), [['a', 'b'], ['c', '']])
    self.assertEqual(run.scores.tolist(), [[-1, -2], [-10, -np.inf]])
    self.assertFalse(trec.has_scores(self.path))
    self.write('q Q0 a 1 1 t\n')
    self.assertTrue(trec.has_scores(self.path))

  @parameterized.parameters(*files.COMPRESSIONS)
  def test_compressed_runs_are_read(self, ending):
    self.write('q Q0 a 1 0.5 t\n')
    path = fakes.compress(self.path, ending)
    with fakes.zstandard():
      self.assertEqual(trec.read_run(path).ids.tolist(), [['a']])

  @parameterized.parameters(
      ('q a 1\nq Q0 b 2 1 t\n', r'b\.run:2: expected 3 columns .* got 6'),
      ('qid pid rank\n', r'b\.run:1: expected an integer .* got .rank.'),
      ('q Q0 a 1 0.5\n', r'b\.run:1: expected 3 or 6 columns .* got 5'),
      ('q Q0 a 1 nan t\n', r'b\.run:1: expected a finite number .* got .nan.'),
      ('q Q0 a 1 2 t\nq Q0 b 2 -inf t\n', r'run:2: .* finite .* got .-inf.'),
      ('q Q0 a 1 1e400 t\n', r'run:1: .* finite number .* got .1e400.'),
      ('q Q0 a 1 0.5 t\nq Q0 b 2 x t\n', r'b\.run:2: .* number .* got .x.'),
      ('q Q0 a 1 1 t\nq Q0 a 2 0 t\n', r'b\.run:2: .*\'a\' occurs twice'),
  )
  def test_a_malformed_run_names_the_line(self, text, message):
    self.write(text)
    with self.assertRaisesRegex(ValueError, message):
      trec.read_run(self.path)

  @parameterized.parameters(
      ('q 0 a\n', 'b.run:1: expected 4 columns'),
      ('q 0 a 1.5\n', 'b.run:1: expected an integer score'),
      ('q 0 a 1\nq 0 a 1\n', 'b.run:2: .* judged twice'),
  )
  def test_malformed_qrels_name_the_line(self, text, message):
    self.write(text)
    with self.assertRaisesRegex(ValueError, message):
      trec.read_qrels(self.path)

  def test_text_that_is_not_utf8_names_the_line(self):
    os.makedirs(os.path.dirname(self.path))
    with open(self.path, 'wb') as f:
      f.write(b'q 0 \xff 1\n')
    with self.assertRaisesRegex(ValueError, 'b.run:1: expected UTF-8'):
      trec.read_qrels(self.path)


if __name__ == '__main__':
  absltest.main()
