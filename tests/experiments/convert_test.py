"""`experiments.convert` writes whole folders or none; see also readers_test."""

import os

from absl import flags
import pytest

from experiments import convert
from retrieval_jax import data
from tests.data import fakes
from tests.data import formats


def call(**options):
  values = flags.FlagValues()
  convert.define_flags(values)
  arguments = [f'--{name}={value}' for name, value in options.items()]
  convert.main(values(['convert', *arguments]), values)


def test_writes_texts_judgements_and_candidates(tmp_path, capsys):
  path = formats.write_trec(str(tmp_path / 'trec'), formats.FIRST)
  out = str(tmp_path / 'a' / 'out')
  call(source='trec', path=path, out=out)
  assert capsys.readouterr().out == (
      f'{out}: 5 targets, 3 queries, 1 test judgements, 3 train judgements, '
      '6 train candidates.\n')
  assert sorted(os.listdir(out)) == [
      'candidates', 'corpus.jsonl', 'qrels', 'queries.jsonl']
  assert os.listdir(os.path.join(out, 'candidates')) == ['train.tsv']
  with open(os.path.join(out, 'candidates', 'train.tsv'),
            encoding='utf-8') as file:
    assert file.read().startswith(
        f'query-id\tcorpus-id\tscore\nq1\t1\t{-1 / 3}\nq1\t3\t{-2 / 3}\n')
  assert dict(data.BeirReader(out).corpus())['1'] == formats.text('1')


@pytest.mark.parametrize('name, text, message', [
    ('collection.tsv', '1\ta\n2\tb\n\n1\tc\n',
     "collection.tsv:4: id '1' occurs again"),
    ('qrels.test.tsv', 'q9 0 1 1\n',
     "qrels.test.tsv:1: id 'q9' is not in the queries"),
    ('qrels.test.tsv', 'q3\xad 0 1 1\n',
     r"not in the queries .* looks the same .*: 'q3', here it is 'q3\\xad'"),
    ('triples.train.tsv', 'q1\t1\t9\n',
     "triples.train.tsv:1: id '9' is not in the corpus"),
    ('queries.test.tsv', 'q3\n', 'queries.test.tsv:1: expected columns')])
def test_refuses_what_could_not_be_read_and_leaves_nothing(
    name, text, message, tmp_path):
  path = formats.write_msmarco(str(tmp_path / 'data'), formats.FIRST)
  fakes.write(os.path.join(path, name), text)
  with pytest.raises(SystemExit, match=message):
    call(source='msmarco', path=path, out=str(tmp_path / 'out'))
  assert os.listdir(tmp_path) == ['data']


def test_overwrites_nothing(tmp_path):
  with pytest.raises(SystemExit, match='exists; name a new folder'):
    call(source='beir', path='x', out=str(tmp_path))
  with pytest.raises(SystemExit, match='needs --config.data.path=DIR'):
    call(source='beir', out=str(tmp_path / 'out'))
