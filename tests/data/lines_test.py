"""Tests of reading lines, records and fields."""

import json
import os
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from retrieval_jax.data import errors
from retrieval_jax.data.readers import lines
from tests.data import fakes

_RECORDS = [{'a': 'x"]},{[\\' * 9, 'b': [1, {'c': None}]}, {},
            {'a': 'ünïcode \u2028' * 5}]


class CsvRecordsTest(parameterized.TestCase):

  def read(self, text, zipped=False):
    path = os.path.join(self.create_tempdir().full_path, 'x.csv')
    fakes.write(path, text, zipped)
    return list(lines.csv_records(path + '.gz' * zipped))

  @parameterized.parameters(False, True)
  def test_fields_are_texts(self, zipped):
    long = 'x' * 200_000
    self.assertEqual(self.read(
        f'\ufeffa,"b,"\r\n007,null\r\n\r\n"1\n""2""",\r\n,{long}', zipped),
        [(2, {'a': '007', 'b,': 'null'}), (5, {'a': '1\n"2"', 'b,': ''}),
         (6, {'a': '', 'b,': long})])

  @parameterized.parameters(
      ('a,b\nc,d\nx\n', r"x.csv:3: expected 2 fields .*a, b.*got 1 in \['x'\]"),
      ('a,b\n"c\n",d,e\n', 'x.csv:3: expected 2 fields .* got 3'),
      ('a,b\nc,"d\n\n', 'x.csv:3: broken CSV: unexpected end'),
      ('a,b\nc,"d"e\n', 'x.csv:2: broken CSV: '),
      ('a,b,a\n', 'x.csv:1: expected columns of different names, got a, b, a'))
  def test_broken_files_are_refused_with_the_line(self, text, message):
    with self.assertRaisesRegex(errors.DataError, message):
      self.read(text)


class JsonRecordsTest(parameterized.TestCase):

  def path(self, text, zipped=False):
    path = os.path.join(self.create_tempdir().full_path, 'x.json')
    fakes.write(path, text, zipped)
    return path + '.gz' * zipped

  @parameterized.product(
      chunk=[1, 2, 7, 1 << 16], indent=[None, 1], zipped=[False, True])
  def test_an_array_is_read_in_any_chunks(self, chunk, indent, zipped):
    text = json.dumps(_RECORDS, indent=indent, ensure_ascii=chunk == 7)
    path = self.path(f'\n {text}\n\n', zipped)
    with mock.patch.object(lines, '_CHUNK', chunk):
      found = list(lines.json_records(path)) if chunk > 2 else list(
          lines._array(path))  # too small to look into
    self.assertEqual([record for _, record in found], _RECORDS)
    whole = '\n ' + text
    if indent:
      places = [whole[:whole.index(mark)].count('\n') + 1
                for mark in ('{\n  "a"', '{}')]
      self.assertEqual([line for line, _ in found[:2]], places)
    else:
      self.assertEqual([line for line, _ in found], [2, 2, 2])

  def test_an_array_is_not_held_in_memory(self):
    path = self.path(json.dumps([{'a': 'x' * 1000}] * 400, indent=0))
    read, sizes = [], []
    raw_decode = json.JSONDecoder.raw_decode

    def decode(decoder, text, at):
      sizes.append(len(text))
      return raw_decode(decoder, text, at)

    with mock.patch.object(lines, '_CHUNK', 3000), mock.patch.object(
        json.JSONDecoder, 'raw_decode', decode):
      for _, record in lines.json_records(path):
        read.append(record)
    self.assertLen(read, 400)
    self.assertLess(max(sizes), 3 * 3000)

  def test_lines_and_the_empty_array_are_taken(self):
    self.assertEqual(list(lines.json_records(self.path('{"a": 1}\n\n{}\n'))),
                     [(1, {'a': 1}), (3, {})])
    for text in ('[]', ' [ \n ] \n', '', '\n'):
      self.assertEmpty(list(lines.json_records(self.path(text))))

  @parameterized.named_parameters(
      ('cut_between', '[\n{"a": 1},\n', ':3: the JSON array ends without'),
      ('cut_within', '[\n{"a": "b', ":2: broken JSON: Unterminated string"),
      ('no_comma', '[{}\n{}]', ':2: expected .* , or \\], got'),
      ('two_commas', '[{},\n,{}]', ':2: expected .* here {, got'),
      ('last_comma', '[{},\n]', ':2: expected'),
      ('no_objects', '[1]', ':1: expected a JSON array of JSON objects'),
      ('more_after', '[{}]\n{}', ':2: expected .*nothing more, got'),
      ('broken', '[{},\n{\n"a" "b"}]' + ' ' * 40,
       ":3: broken JSON: Expecting ':' delimiter"))
  def test_a_broken_array_is_named(self, text, message):
    with self.assertRaisesRegex(errors.DataError, 'x.json' + message):
      list(lines.json_records(self.path(text)))

  def test_a_file_that_is_not_text_is_named(self):
    path = self.path('')
    with open(path, 'wb') as file:
      file.write(b'[{"a": "\xff"}]')
    with self.assertRaisesRegex(errors.DataError, 'json:1: expected utf-8'):
      list(lines.json_records(path))


class FieldsTest(parameterized.TestCase):

  def test_the_first_field_that_is_not_null_counts(self):
    row = {'b': None, 'c': 'x', 'd': 'y'}
    self.assertEqual(lines.string('f:1', row, 'a', 'b', 'c', 'd'), 'x')
    with self.assertRaisesRegex(errors.DataError, '"b" to be .*, got None'):
      lines.string('f:1', row, 'a', 'b')
    with self.assertRaisesRegex(
        errors.DataError, 'f:1: field "a" or "z" is missing; .* b, c, d'):
      lines.string('f:1', row, 'a', 'z')

  @parameterized.parameters('nan', 'inf', '1e39', 'x', None, [[]])
  def test_a_score_is_a_finite_number(self, value):
    with self.assertRaisesRegex(errors.DataError, 'f:1: .* finite number'):
      lines.number('f:1', value)
    self.assertEqual(lines.number('f:1', '-1.5e3'), -1500)

  def test_a_table_has_the_columns_it_should_have(self):
    path = os.path.join(self.create_tempdir().full_path, 'x.tsv')
    fakes.write(path, ' a \tb\n\na  b \t c\n')
    self.assertEqual(
        list(lines.table(path, 'x y or x y z', separator=None)),
        [(f'{path}:1', ['a', 'b']), (f'{path}:3', ['a', 'b', 'c'])])
    with self.assertRaisesRegex(
        errors.DataError, 'x.tsv:3: expected columns x y, .* tabs or spaces, '
        'got 3'):
      list(lines.table(path, 'x y', separator=None))
    self.assertEqual(next(lines.table(path, 'x y'))[1], [' a ', 'b'])


if __name__ == '__main__':
  absltest.main()
