"""Tests of the reader of BEIR's layout."""

import os

from absl.testing import absltest
from absl.testing import parameterized

from retrieval_jax import files
from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data.readers import beir
from tests.data import fakes

_GOOD = '{"_id": "d1", "text": "t"}\n'


class BeirReaderTest(parameterized.TestCase):

  @parameterized.parameters(False, True)
  def test_reads_every_column(self, zipped):
    folder = fakes.write_beir(self.create_tempdir().full_path, zipped=zipped)
    reader = beir.BeirReader(folder)
    self.assertEqual(list(reader.corpus()), [
        ('d1', 'A title the first text'), ('d,2', 'second'),
        ('d"3"', 'third text, with ünïcode'), ('d4', 'T x')])
    self.assertEqual(list(reader.queries()), fakes.QUERIES)
    self.assertEqual(reader.splits, ('test', 'train'))
    self.assertEqual([line[:3] for line in reader.qrels('train')], fakes.TRAIN)
    self.assertEqual(next(reader.qrels('train'))[3],
                     os.path.join(folder, 'qrels', 'train.tsv') + ':2')

  @parameterized.parameters(False, True)
  def test_reads_candidates(self, zipped):
    folder = fakes.write_beir(self.create_tempdir().full_path)
    self.assertEmpty(list(beir.BeirReader(folder).candidates('train')))
    fakes.write_candidates(folder, zipped=zipped)
    reader = beir.BeirReader(folder)
    self.assertEqual([line[:3] for line in reader.candidates('train')],
                     fakes.CANDIDATES)
    self.assertEqual(next(reader.candidates('train'))[3], os.path.join(
        folder, 'candidates', 'train.tsv' + '.gz' * zipped) + ':2')
    self.assertEmpty(list(reader.candidates('test')))

  def test_ids_may_be_integers_and_grades_end_in_zeros(self):
    folder = fakes.write_beir(self.create_tempdir().full_path)
    for column in ('corpus', 'queries'):
      fakes.write(os.path.join(folder, f'{column}.jsonl'),
                  fakes.jsonl([{'_id': 10, 'text': 't'}]))
    fakes.write(os.path.join(folder, 'qrels', 'train.tsv'), '10\t10\t20.0\n')
    reader = beir.BeirReader(folder)
    self.assertEqual(list(reader.corpus()), [('10', 't')])
    self.assertEqual(list(reader.queries()), [('10', 't')])
    self.assertEqual([line[:3] for line in reader.qrels('train')],
                     [('10', '10', 20)])

  @parameterized.parameters(*files.COMPRESSIONS)
  def test_reads_compressed_files(self, ending):
    folder = fakes.write_beir(self.create_tempdir().full_path)
    plain = list(beir.BeirReader(folder).corpus())
    for name in ('corpus.jsonl', 'queries.jsonl', 'qrels/train.tsv'):
      fakes.compress(os.path.join(folder, name), ending)
    reader = beir.BeirReader(folder)
    with fakes.zstandard():
      self.assertEqual(list(reader.corpus()), plain)
      self.assertEqual(list(reader.queries()), fakes.QUERIES)
      self.assertEqual(
          [line[:3] for line in reader.qrels('train')], fakes.TRAIN)

  @parameterized.parameters(*files.COMPRESSIONS)
  def test_damaged_compressed_files_are_named(self, ending):
    folder = fakes.write_beir(self.create_tempdir().full_path)
    path = fakes.compress(os.path.join(folder, 'corpus.jsonl'), ending)
    with open(path, 'r+b') as file:
      file.truncate(os.path.getsize(path) - 10)
    with fakes.zstandard(), self.assertRaisesRegex(
        errors.DataError, rf'{path}:\d: cannot read further: .*damaged or cut'):
      list(beir.BeirReader(folder).corpus())

  def test_candidates_of_a_split_without_judgements_are_refused(self):
    folder = fakes.write_beir(self.create_tempdir().full_path)
    fakes.write(os.path.join(folder, 'candidates', 'dev.tsv'), 'q1\td1\t\n')
    with self.assertRaisesRegex(
        errors.DataError, "dev.tsv: candidates of split 'dev', which has no"):
      beir.BeirReader(folder)

  @parameterized.named_parameters(
      ('no_header', 'q1\td1\t1\n'), ('no_last_line_end', 'q1\td1\t1'),
      ('windows_line_ends', 'query-id\tcorpus-id\tscore\r\nq1\td1\t1\r\n'),
      ('byte_order_mark', '\ufeffq1\td1\t1\n'),
      ('blank_lines', '\nq1\td1\t1\n\n'))
  def test_takes_judgements_with(self, text):
    folder = fakes.write_beir(self.create_tempdir().full_path)
    fakes.write(os.path.join(folder, 'qrels', 'train.tsv'), text)
    reader = beir.BeirReader(folder)
    self.assertEqual([line[:3] for line in reader.qrels('train')],
                     [('q1', 'd1', 1)])

  def test_texts_may_hold_unicode_line_ends(self):
    folder = fakes.write_beir(self.create_tempdir().full_path)
    text = 'a\u2028b\x0bc\x85d'
    fakes.write(os.path.join(folder, 'corpus.jsonl'),
                fakes.jsonl([{'_id': 'd1', 'text': text}]))
    self.assertEqual(list(beir.BeirReader(folder).corpus()), [('d1', text)])

  @parameterized.named_parameters(
      ('bad_json', 'corpus.jsonl', _GOOD + '{"_id": "d2", \n',
       'corpus.jsonl:2: expected one JSON object per line'),
      ('no_object', 'corpus.jsonl', '[1]\n', 'corpus.jsonl:1: .*JSON object'),
      ('no_text', 'corpus.jsonl', _GOOD + '\n{"_id": "d2"}\n',
       'corpus.jsonl:3: field "text" is missing; the record has _id'),
      ('no_id', 'queries.jsonl', '{"text": "a"}\n',
       'queries.jsonl:1: field "_id" is missing'),
      ('fraction_as_id', 'queries.jsonl', '{"_id": 1.5, "text": "a"}\n',
       'queries.jsonl:1: expected "_id" to be a string, got 1.5'),
      ('number_as_title', 'corpus.jsonl',
       '{"_id": "a", "text": "a", "title": 3}\n', '"title" to be a string'),
      ('tab_in_id', 'corpus.jsonl', '{"_id": "a\\tb", "text": "a"}\n',
       'corpus.jsonl:1: expected an "_id" that is not empty and has no tab'),
      ('lone_surrogate', 'corpus.jsonl', '{"_id": "a", "text": "\\ud800"}\n',
       'corpus.jsonl:1: "text" holds a lone surrogate'),
      ('duplicate_id', 'corpus.jsonl', _GOOD + '\n' + _GOOD,
       r"corpus.jsonl:3: id 'd1' occurs again \(first at "
       r".*corpus.jsonl:1\)"),
      ('duplicate_query', 'queries.jsonl', _GOOD * 2,
       "queries.jsonl:2: id 'd1' occurs again"),
      ('empty_corpus', 'corpus.jsonl', '\n',
       'corpus.jsonl: expected at least one record'),
      ('unknown_query', 'qrels/train.tsv', 'q1\td1\t1\nq9\td1\t1\n',
       "train.tsv:2: id 'q9' is not in the queries"),
      ('unknown_target', 'qrels/train.tsv', 'q1\td9\t1\n',
       "train.tsv:1: id 'd9' is not in the corpus"),
      ('lookalike', 'qrels/train.tsv', 'q1\td1\t1\nq"e\u0301"\td1\t1\n',
       r"""train.tsv:2: .*not in the queries .* One that looks the same is """
       r"""there, .*: 'q"\\xe9"', here it is 'q"e\\u0301"'"""),
      ('commas', 'qrels/train.tsv', 'query-id,corpus-id,score\nq1,d1,1\n',
       'train.tsv:1: expected 3 columns .* separated by commas; use tabs'),
      ('spaces', 'qrels/train.tsv', 'q1 d1 1\n', 'separated by spaces'),
      ('trec', 'qrels/train.tsv', 'q1\t0\td1\t1\n', 'TREC format'),
      ('two_columns', 'qrels/train.tsv', 'q1\td1\n', 'columns .* got 2'),
      ('fraction', 'qrels/train.tsv', 'q1\td1\t0.5\n',
       "train.tsv:1: expected an integer score .* got '0.5'"),
      ('no_positive', 'qrels/train.tsv', 'q1\td1\t1\nq 2\td1\t0\n',
       "train.tsv:2: 1 of 2 queries of split 'train' have no target .*q 2"),
      ('contradiction', 'qrels/train.tsv', 'q1\td1\t1\nq1\td1\t2\n',
       'train.tsv:2: .* judged 2 here but 1 further up'),
      ('candidate_unknown', 'candidates/train.tsv', 'q1\td1\t1\nq1\td9\t\n',
       "candidates/train.tsv:2: id 'd9' is not in the corpus"),
      ('candidate_query', 'candidates/train.tsv', 'q9\td1\t\n',
       "candidates/train.tsv:1: id 'q9' is not in the queries"),
      ('candidate_score', 'candidates/train.tsv', 'q1\td1\thigh\n',
       "candidates/train.tsv:1: expected a finite number .* got 'high'"),
      ('candidate_infinite', 'candidates/train.tsv', 'q1\td1\tinf\n',
       "expected a finite number .* got 'inf'"),
      ('candidate_columns', 'candidates/train.tsv', 'q1\td1\n',
       'candidates/train.tsv:1: expected 3 columns .* got 2'),
      ('candidate_scored_twice', 'candidates/train.tsv',
       'q1\td4\t2\n\nq1\td1\t2\nq 2\td1\t1\nq1\td1\t1\nq1\td4\t2\n',
       r"train.tsv:5: target 'd1' is a candidate of query 'q1' with another "
       r'score than at .*train.tsv:3'),
      ('no_judgements', 'qrels/train.tsv', 'query-id\tcorpus-id\tscore\n',
       'no judgements'))
  def test_malformed_input_is_named_and_leaves_nothing(
      self, name, text, message):
    folder = fakes.write_beir(self.create_tempdir().full_path)
    fakes.write(os.path.join(folder, name), text)
    cache = self.create_tempdir().full_path
    with self.assertRaisesRegex(errors.DataError, message):
      dataset.prepare(beir.BeirReader(folder), cache, progress=False)
    self.assertEmpty(os.listdir(cache))

  def test_broken_encoding_and_zip_are_named(self):
    folder = fakes.write_beir(self.create_tempdir().full_path)
    path = os.path.join(folder, 'corpus.jsonl')
    with open(path, 'wb') as file:
      file.write(b'{"_id": "d1", "text": "\xff"}\n')
    with self.assertRaisesRegex(errors.DataError, 'jsonl:1: expected utf-8'):
      list(beir.BeirReader(folder).corpus())
    os.remove(path)
    with open(path + '.gz', 'wb') as file:
      file.write(b'no gzip')
    with self.assertRaisesRegex(errors.DataError, 'gz:1: cannot read further'):
      list(beir.BeirReader(folder).corpus())

  def test_missing_files_are_named(self):
    folder = self.create_tempdir().full_path
    with self.assertRaisesRegex(errors.DataError, 'no such folder'):
      beir.BeirReader(os.path.join(folder, 'absent'))
    with self.assertRaisesRegex(errors.DataError,
                                'corpus.jsonl or corpus.jsonl.gz, found nei'):
      beir.BeirReader(folder)
    fakes.write_beir(folder)
    with self.assertRaisesRegex(errors.DataError, 'no split .dev.; there are'):
      list(beir.BeirReader(folder).qrels('dev'))
    fakes.write(os.path.join(folder, 'corpus.jsonl'), '', zipped=True)
    with self.assertRaisesRegex(
        errors.DataError, 'found corpus.jsonl and corpus.jsonl.gz'):
      beir.BeirReader(folder)


if __name__ == '__main__':
  absltest.main()
