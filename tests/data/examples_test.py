"""Tests of the formats of examples: DPR, Tevatron, and rows of texts."""

import os

from absl.testing import absltest
from absl.testing import parameterized

from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data.readers import dpr
from retrieval_jax.data.readers import examples
from retrieval_jax.data.readers import pairs
from retrieval_jax.data.readers import schemas
from retrieval_jax.data.readers import tevatron
from tests.data import fakes
from tests.data import formats

_SOURCES = {'dpr': dpr, 'pairs': pairs, 'tevatron': tevatron}
_CTX = '{"docid": "1", "text": "x"}'


def texts(passages):
  return [passage.text for passage in passages]


class FilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path

  def write(self, name, text, zipped=False):
    fakes.write(os.path.join(self.folder, name), text, zipped)
    return os.path.join(self.folder, name)

  def test_a_split_is_named_by_its_file(self):
    row = '{"query": "a", "positive": "b"}\n'
    for name in ('nq-train.jsonl', 'dev.json', 'notes.md'):
      self.write(name, row)
    self.write('x-y-test.tsv', 'a\tb\n', zipped=True)
    self.assertEqual(pairs.make_reader(self.folder).splits,
                     ('dev', 'train', 'test'))
    one = pairs.make_reader(os.path.join(self.folder, 'nq-train.jsonl'))
    self.assertEqual((one.splits, one.name), (('train',), 'nq-train.jsonl'))
    self.write('dev.jsonl', row)
    with self.assertRaisesRegex(errors.DataError, "'dev' is also in .*dev.js"):
      pairs.make_reader(self.folder)

  @parameterized.parameters('dpr', 'pairs', 'tevatron')
  def test_a_folder_without_examples_is_named(self, source):
    self.write('corpus.jsonl', '')
    for path in (self.folder, os.path.join(self.folder, 'absent'),
                 self.write('x.md', '')):
      with self.assertRaisesRegex(
          errors.DataError, f'{path}: expected .* {source} format'):
        _SOURCES[source].make_reader(path)

  def test_equal_queries_and_passages_are_one(self):
    self.write('train.jsonl', fakes.jsonl([
        {'query': 'a', 'positive': 'b', 'negative': 'c'},
        {'query': 'a', 'positive': 'd', 'negative': 'c'},
        {'query': 'a', 'positive': 'b', 'negative': 'd'}]))
    self.write('test.jsonl', fakes.jsonl([{'query': 'a', 'positive': 'c'}]))
    reader = pairs.make_reader(self.folder)
    (query, _), = reader.queries()
    ids = {text: name for name, text in reader.corpus()}
    self.assertCountEqual(ids, ['b', 'c', 'd'])
    self.assertEqual([row[:3] for row in reader.qrels('train')],
                     [(query, ids['b'], 1), (query, ids['d'], 1)])
    self.assertEqual([row[0] for row in reader.qrels('test')], [query])

  def test_an_id_with_two_texts_is_refused(self):
    row = '{"query_id": 1, "query": "%s", "positive_passages": [%s]}\n'
    self.write('train.jsonl', row % ('a', _CTX) + '\n'
               + row % ('a', _CTX.replace('"x"', '"y"')))
    with self.assertRaisesRegex(
        errors.DataError, "train.jsonl:3: id '1' of the corpus .*another text"):
      list(tevatron.make_reader(self.folder).corpus())
    self.write('train.jsonl', row % ('a', _CTX) + row % ('b', _CTX))
    with self.assertRaisesRegex(
        errors.DataError, "train.jsonl:2: id '1' of the queries"):
      list(tevatron.make_reader(self.folder).queries())

  def test_ids_without_a_corpus_are_refused(self):
    self.write('train.jsonl', fakes.jsonl(formats.id_rows('train')))
    reader = tevatron.make_reader(self.folder)
    self.assertLen(list(reader.queries()), 2)
    with self.assertRaisesRegex(
        errors.DataError, 'train.jsonl:1: .*ids only.* corpus.jsonl'):
      list(reader.corpus())

  def test_the_passages_of_dpr_are_its_corpus(self):
    formats.write_dpr(self.folder, formats.FIRST)
    self.write('psgs_w100.tsv', 'id\ttext\ttitle\n'
               '1\t"a ""quoted"" text"\tT\n7\tplain "text"\tU\n', zipped=True)
    reader = dpr.make_reader(self.folder)
    self.assertEqual(list(reader.corpus()), [
        ('1', 'T a "quoted" text'), ('7', 'U plain "text"')])
    self.assertEqual(reader.splits, ('test', 'train'))
    self.assertTrue(reader.where('corpus', 1).endswith('psgs_w100.tsv.gz:3'))

  def test_passages_of_dpr_may_be_of_any_length(self):
    formats.write_dpr(self.folder, formats.FIRST)
    long = 'x "" ' * 100_000
    self.write('psgs_w100.tsv', f'id\ttext\ttitle\n1\t"{long}"\tT\n')
    [(name, text)] = dpr.make_reader(self.folder).corpus()
    self.assertEqual((name, text), ('1', 'T ' + long.replace('""', '"')))

  def test_psg_id_and_no_id_are_taken(self):
    ctxs = [{'title': 'T', 'text': 'x', 'psg_id': '7'},
            {'title': 'T', 'text': 'x', 'passage_id': None, 'psg_id': '8'},
            {'title': '', 'text': 'x'}]
    row = dpr.parse('f:1', {'question': 'a', 'positive_ctxs': ctxs})
    self.assertEqual([p.id for p in row.positives],
                     ['7', '8', examples.content_id('x')])
    self.assertEqual(row.negatives, [])

  @parameterized.parameters(
      ({'query': 'a', 'positive': 'b'}, []),
      ({'anchor': 'a', 'pos': ['b'], 'neg': ['c', 'd']}, ['c', 'd']),
      ({'question': 'a', 'answer': 'b', 'negative_1': 'c', 'negative_2': None,
        'negative_3': '', 'negative_10': 'd'}, ['c', 'd']),
      ({'query': 'a', 'positive': 'b', 'negatives': ['c'], 'other': 3}, ['c']))
  def test_rows_of_texts_have_many_names(self, row, negatives):
    found = pairs.parse('f:1', row)
    self.assertEqual((found.query, texts(found.positives)), ('a', ['b']))
    self.assertEqual(texts(found.negatives), negatives)

  def test_scores_of_a_teacher_are_candidates(self):
    self.write('train.jsonl', fakes.jsonl([
        {'query': 'a', 'pos': ['b'], 'neg': ['c', 'd', 'b'],
         'pos_scores': [2], 'neg_scores': [1.5, -3, 0]}]))
    reader = pairs.make_reader(self.folder)
    corpus = dict(reader.corpus())
    self.assertEqual(
        [(corpus[c], score) for _, c, score, _ in reader.candidates('train')],
        [('b', 2.0), ('c', 1.5), ('d', -3.0)])

  def test_columns_have_names_or_an_order(self):
    self.write('train.tsv', 'anchor\tnegative\tpositive\n"a"\tc\tb\n')
    self.write('test.tsv', 'a\tb\tc\td\na\te\n')
    reader = pairs.make_reader(self.folder)
    corpus = dict(reader.corpus())
    self.assertEqual([text for _, text in reader.queries()], ['a', '"a"'])
    self.assertEqual([corpus[row[1]] for row in reader.qrels('train')], ['b'])
    self.assertEqual([corpus[row[1]] for row in reader.qrels('test')],
                     ['b', 'e'])
    self.assertEqual([corpus[row[1]] for row in reader.candidates('test')],
                     ['c', 'd'])

  @parameterized.parameters(
      ('Query\tPositive', ['b']), ('positive\tquery', ['a']),
      ('What is a query?\tpositive', ['positive', 'b']))
  def test_a_header_is_no_query(self, first_line, corpus):
    self.write('train.tsv', first_line + '\na\tb\n')
    found = list(pairs.make_reader(self.folder).corpus())
    self.assertEqual([text for _, text in found], corpus)

  @parameterized.parameters(
      'sentence1\tsentence2', 'premise\thypothesis', 'doc_id\tPassage_text')
  def test_a_header_of_unknown_columns_is_refused(self, header):
    path = self.write('train.tsv', header + '\na\tb\n')
    with self.assertRaisesRegex(
        errors.DataError, f'{path}:1: expected texts or names of columns'):
      list(pairs.make_reader(self.folder).queries())

  @parameterized.named_parameters(
      ('no_question', 'dpr', 'train.json', '[\n{}]', ':2: field "question" is'),
      ('no_records', 'dpr', 'train.json',
       '[{"question": "a", "positive_ctxs": ["x"]}]', ':1: .*list of records'),
      ('no_list', 'dpr', 'train.json',
       '[{"question": "a", "positive_ctxs": "x"}]', ':1: .*to be a list, got'),
      ('no_text', 'dpr', 'train.json',
       '[{"question": "a", "positive_ctxs": [{"title": "x"}]}]',
       ':1: field "text" is missing; the record has title'),
      ('two_columns', 'dpr', 'psgs_w100.tsv', '1\ta\n', ':1: expected 3 col'),
      ('no_query_id', 'tevatron', 'train.jsonl', '\n{"query": "a"}',
       ':2: field "query_id" is missing'),
      ('no_query', 'tevatron', 'train.jsonl', '{"query_id": "a"}',
       ':1: field "query_text" or "query" is missing'),
      ('truth', 'tevatron', 'train.jsonl', '{"query_id": true, "query": "a"}',
       ':1: expected "query_id" to be a string, got True'),
      ('tab', 'tevatron', 'train.jsonl', '{"query_id": "a\\tb", "query": "a"}',
       ':1: expected an "query_id" that'),
      ('id_in_list', 'tevatron', 'train.jsonl', '{"query_id": "a", '
       '"query": "a", "negative_document_ids": [1.5]}',
       ':1: expected "negative_document_ids" to be a string, got 1.5'),
      ('no_docid', 'tevatron', 'corpus.jsonl', '{"text": "a"}',
       ':1: field "docid" or '),
      ('no_positive', 'pairs', 'train.jsonl',
       '{"query": "a", "negative": "b", "positive": null}',
       ':1: expected a text in field "positive"'),
      ('no_text_in_list', 'pairs', 'train.jsonl',
       '{"query": "a", "pos": ["b", 3]}', ':1: expected "pos" to be a string'),
      ('scores', 'pairs', 'train.jsonl',
       '{"query": "a", "pos": ["b"], "pos_scores": [1, 2]}',
       r':1: expected as many "pos_scores" as texts \(1\), got 2'),
      ('score', 'pairs', 'train.jsonl',
       '{"query": "a", "pos": ["b"], "pos_scores": ["x"]}', ':1: .*finite'),
      ('columns', 'pairs', 'train.tsv', 'query\tpositive\na\tb\tc\n',
       r':2: expected 2 columns .*\(query, positive\), got 3'),
      ('one_column', 'pairs', 'train.tsv', 'a\n', ':1: .* got 1'))
  def test_malformed_input_is_named(self, source, name, text, message):
    if not name.startswith('train'):
      self.write('train.jsonl', '')
    path = self.write(name, text)
    reader = _SOURCES[source].make_reader(self.folder)
    with self.assertRaisesRegex(errors.DataError, path + message):
      list(reader.corpus())
      list(reader.queries())

  @parameterized.parameters(1, 'text', ({'b': 1},))
  def test_a_record_is_no_list_of_records(self, value):
    with self.assertRaisesRegex(
        errors.DataError, 'f:1: expected "x" to be a list of records, or'):
      examples.listed('f:1', {'x': {'a': value}}, 'x')

  def test_a_file_without_records_is_named(self):
    self.write('test.jsonl', '')
    self.write('train.jsonl', '{"query": "a", "positive": "b"}\n')
    with self.assertRaisesRegex(
        errors.DataError, f"{self.folder}: split 'test' has no judgements"):
      dataset.prepare(pairs.make_reader(self.folder),
                      self.create_tempdir().full_path, progress=False)
    os.remove(os.path.join(self.folder, 'test.jsonl'))
    self.write('train.jsonl', '')
    with self.assertRaisesRegex(
        errors.DataError, f'{self.folder}, corpus: expected at least one'):
      dataset.prepare(pairs.make_reader(self.folder),
                      self.create_tempdir().full_path, progress=False)

  def test_lists_of_records_may_be_records_of_lists(self):
    row = {'x': {'a': [1, 2], 'b': ['c', 'd']}}
    self.assertEqual(examples.listed('f:1', row, 'x'),
                     [{'a': 1, 'b': 'c'}, {'a': 2, 'b': 'd'}])
    with self.assertRaisesRegex(errors.DataError, 'f:1: .*differ in length'):
      examples.listed('f:1', {'x': {'a': [1], 'b': []}}, 'x')

  def test_the_fields_tell_the_format(self):
    first = formats.FIRST
    for rows in (formats.dpr_rows('train', first), formats.id_rows('train'),
                 formats.nested_rows('train', first),
                 formats.text_rows('train', first)):
      found = schemas.parse('f:1', rows[0])
      self.assertEqual(found.query, formats.ROWS['train'][0][1])
      self.assertEqual((len(found.positives), len(found.negatives)), (1, 2))


if __name__ == '__main__':
  absltest.main()
