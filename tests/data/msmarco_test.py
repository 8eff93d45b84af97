"""Tests of the reader of MS MARCO's and TREC's files."""

import os

from absl.testing import absltest
from absl.testing import parameterized

from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data.readers import msmarco
from tests.data import fakes
from tests.data import formats


class MsMarcoTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path
    formats.write_msmarco(self.folder, formats.FIRST)

  def write(self, name, text, zipped=False):
    fakes.write(os.path.join(self.folder, name), text, zipped)

  def candidates(self, split):
    return [row[:3] for row in msmarco.MsMarcoReader(
        self.folder).candidates(split)]

  def test_a_file_belongs_to_the_longest_split(self):
    self.write('qrels.train.small.tsv', 'q1\t0\t1\t1\n')
    self.write('triples.train.smaller.tsv', 'q1\t1\t5\n')
    self.write('triples.train.small.tsv', 'q1\t1\t4\n', zipped=True)
    reader = msmarco.MsMarcoReader(self.folder)
    self.assertEqual(reader.splits, ('test', 'train.small', 'train'))
    self.assertEqual(self.candidates('train.small'), [('q1', '4', None)])
    self.assertIn(('q1', '5', None), self.candidates('train'))
    self.assertNotIn(('q1', '4', None), self.candidates('test'))

  def test_queries_may_stand_in_two_files_but_not_differ(self):
    self.write('queries.train.small.tsv', 'q1\twhich is first?\nq9\tnew\n')
    reader = msmarco.MsMarcoReader(self.folder)
    self.assertCountEqual(dict(reader.queries()), ['q1', 'q2', 'q3', 'q9'])
    self.write('queries.zzz.tsv', 'q8\tx\nq1\tWhich is first?\n')
    with self.assertRaisesRegex(
        errors.DataError, "zzz.tsv:2: id 'q1' of the queries .* another text"):
      list(msmarco.MsMarcoReader(self.folder).queries())

  def test_runs_give_scores_and_win_over_triples(self):
    self.write('run.train.txt', 'q1 Q0 3 1 -2.5 x\nq1 Q0\t1 2 7 x\n')
    self.write('run_other.test.tsv', 'q3\t2\t1\n')
    self.assertEqual(self.candidates('train'), [
        ('q1', '3', -2.5), ('q1', '1', 7.0), ('q1', '4', None),
        ('q2', '5', None)])
    self.assertEqual(self.candidates('test'), [('q3', '2', None)])

  def test_every_file_counts_in_the_fingerprint(self):
    prints = {msmarco.MsMarcoReader(self.folder).fingerprint()}
    for name in ('run.train.txt', 'queries.more.tsv', 'qrels.more.tsv',
                 'triples.train.tsv'):
      self.write(name, '')
      prints.add(msmarco.MsMarcoReader(self.folder).fingerprint())
    self.assertLen(prints, 5)

  @parameterized.parameters(
      ('1\ta\n', 'a'), ('pid\tPassage\n1\ta\n', 'a'),
      ('1\tT\ta\n', 'T a'), ('id\ttext\ttitle\n1\ta\tT\n', 'T a'),
      ('1\thttp://x\t\ta\n', 'a'), ('D1\tu\tT\ta\n', 'T a'))
  def test_a_collection_may_have_titles_urls_and_a_header(self, text, target):
    self.write('collection.tsv', text)
    found = list(msmarco.MsMarcoReader(self.folder).corpus())
    self.assertEqual(found, [('D1' if 'D1' in text else '1', target)])

  def test_a_header_is_no_query(self):
    self.write('queries.train.tsv', 'qid\tquery\nq1\twhich is first?\n')
    self.assertCountEqual(
        dict(msmarco.MsMarcoReader(self.folder).queries()), ['q1', 'q3'])

  @parameterized.named_parameters(
      ('header', 'collection.tsv', 'docid\tabstract\n1\ta\n',
       'collection.tsv:1: expected a record or the names .* id, title, text'),
      ('run_header', 'run.train.tsv', 'qid\tpid\trank\n',
       "run.train.tsv:1: expected a rank .* got 'rank'"),
      ('collection', 'collection.tsv', '1\ta\n2\tb\tc\n',
       'collection.tsv:2: expected columns id text, .* got 3'),
      ('empty_id', 'collection.tsv', '\ta\n', 'collection.tsv:1: .*not empty'),
      ('duplicate', 'collection.tsv', '1\ta\n1\tb\n',
       "collection.tsv:2: id '1' occurs again"),
      ('queries', 'queries.train.tsv', 'q1\n', 'train.tsv:1: .* got 1'),
      ('qrels', 'qrels.train.tsv', 'q1 1 1\n',
       'qrels.train.tsv:1: expected columns query-id 0 corpus-id grade'),
      ('grade', 'qrels.train.tsv', 'q1 0 1 x\n', 'tsv:1: .*integer score'),
      ('run', 'run.train.tsv', 'q1 Q0 1 1 2.0\n', 'run.train.tsv:1: .* got 5'),
      ('score', 'run.train.tsv', 'q1 Q0 1 1 nan x\n', 'tsv:1: .*finite numb'),
      ('texts', 'triples.train.tsv', 'what is\tthis one\tand this\n',
       'triples.train.tsv:1: .* got 6 .*source=pairs'))
  def test_malformed_input_is_named(self, name, text, message):
    self.write(name, text)
    with self.assertRaisesRegex(errors.DataError, message):
      reader = msmarco.MsMarcoReader(self.folder)
      list(reader.candidates('train'))
      dataset.prepare(reader, self.create_tempdir().full_path, progress=False)

  def test_missing_or_superfluous_files_are_named(self):
    self.write('run.dev.tsv', '')
    with self.assertRaisesRegex(
        errors.DataError, 'run.dev.tsv: belongs to no split; .* test, train'):
      msmarco.MsMarcoReader(self.folder)
    self.write('corpus.jsonl', '')
    with self.assertRaisesRegex(errors.DataError, 'one corpus, found .* and '):
      msmarco.MsMarcoReader(self.folder)
    empty = self.create_tempdir().full_path
    for name, wanted in (('collection.tsv', 'collection.tsv or corpus.jsonl'),
                         ('queries.tsv', 'queries.SPLIT.tsv'),
                         ('qrels.x.tsv', 'qrels.SPLIT.tsv')):
      with self.assertRaisesRegex(errors.DataError, f'a folder with {wanted}'):
        msmarco.MsMarcoReader(empty)
      fakes.write(os.path.join(empty, name), '')
    self.assertEqual(msmarco.MsMarcoReader(empty).splits, ('x',))


if __name__ == '__main__':
  absltest.main()
