"""Questions with answers, with and without passages of their own."""

import json
import os

import numpy as np
import pytest

from configs import base
from experiments import convert
from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax.data import beir_folder
from retrieval_jax.data.readers import answers
from retrieval_jax.data.readers import beir
from retrieval_jax.data.readers import schemas
from tests.data import fakes
from tests.data.lenient_test import call

PASSAGES = [{'_id': 'd1', 'title': 'A', 'text': 'x'},
            {'_id': 'd2', 'text': 'y'}]
QUESTIONS = [{'question': 'who?', 'answer': ['me', 'I', 'me']},
             {'question': 'where?', 'answer': ['here']}]


def write(folder, name, *rows):
  path = os.path.join(str(folder), name)
  fakes.write(path, fakes.jsonl(rows))
  return path


@pytest.fixture(name='folder')
def fixture_folder(tmp_path):
  """A BEIR folder with judgements of two splits and answers of none."""
  return fakes.write_beir(str(tmp_path / 'beir'))


def prepare(reader, tmp_path):
  return data.prepare(reader, str(tmp_path / 'cache'), progress=False)


def test_answers_are_those_of_a_query():
  found = data.Answers.from_lists({7: ['a', 'b'], 2: ['c']})
  np.testing.assert_array_equal(found.query_rows, [2, 7])
  assert [found.of(row) for row in (2, 7, 0, 9)] == [['c'], ['a', 'b'], [], []]


def test_a_split_of_answers_needs_no_judgements(folder, tmp_path):
  path = write(folder, 'answers/dev.jsonl',
               {'_id': 'q 2', 'answers': ['two', 'II', 'two']},
               {'_id': 'q1', 'answers': 'one'},
               {'_id': 'q 2', 'answers': ['III', 'two']})
  reader = beir.BeirReader(folder)
  assert reader.splits == ('test', 'train', 'dev')
  assert next(reader.answers('dev'))[2] == f'{path}:1'
  found = prepare(reader, tmp_path)
  assert list(found.answers) == ['dev']
  assert found.by_text.answers is found.answers
  np.testing.assert_array_equal(found.answers['dev'].query_rows, [0, 1])
  assert found.answers['dev'].of(0) == ['one']
  assert found.answers['dev'].of(1) == ['two', 'II', 'III']
  assert not len(found.qrels['dev'].grades)
  assert found.queries_of('dev').tolist() == [0, 1]
  assert found.queries_of('test').tolist() == found.qrels[
      'test'].queries().tolist() == [2]


def test_a_query_needs_a_positive_or_an_answer(folder, tmp_path):
  fakes.write(os.path.join(folder, 'qrels', 'test.tsv'),
              'q"é"\td4\t1\nq1\td4\t0\n')
  with pytest.raises(data.DataError, match='test.tsv:2: 1 of 2 queries'):
    prepare(beir.BeirReader(folder), tmp_path)
  write(folder, 'answers/test.jsonl', {'_id': 'q1', 'answers': ['x']})
  found = prepare(beir.BeirReader(folder), tmp_path)
  assert found.qrels['test'].queries().tolist() == [2]
  assert found.queries_of('test').tolist() == [0, 2]


def test_the_fingerprint_covers_answers(folder):
  before = beir.BeirReader(folder).fingerprint()
  seen = {before}
  for name, text in (('answers.jsonl', 'x'), ('answers.jsonl', 'y'),
                     ('answers/answers.jsonl', 'y'),
                     ('answers/train.jsonl', 'y'), ('answers/test.jsonl', 'y')):
    path = write(folder, name, {'_id': 'q1', 'answers': [text]})
    seen.add(beir.BeirReader(folder).fingerprint())
    os.remove(path)
  assert len(seen) == 6
  assert beir.BeirReader(folder).fingerprint() == before


def test_one_file_may_hold_the_answers_of_all_splits(folder, tmp_path):
  path = write(folder, 'answers.jsonl', {'_id': 'q"é"', 'answers': ['x']},
               {'_id': 'q 2', 'answers': []}, {'_id': 'q1', 'answers': ['y']})
  found = prepare(beir.BeirReader(folder), tmp_path)
  assert {split: of_split.query_rows.tolist()
          for split, of_split in found.answers.items()} == {
              'test': [2], 'train': [0]}
  write(folder, 'answers.jsonl', {'_id': 'q1', 'answers': ['y']},
        {'_id': 'nobody', 'answers': ['x']})
  with pytest.raises(data.DataError, match=f'{path}:2: no split judges .*nobo'):
    prepare(beir.BeirReader(folder), tmp_path)
  write(folder, 'answers/dev.jsonl', {'_id': 'q1', 'answers': ['y']})
  with pytest.raises(data.DataError, match='found both'):
    beir.BeirReader(folder)


def test_answers_to_unknown_queries_are_refused_or_dropped(folder, tmp_path):
  path = write(folder, 'answers/dev.jsonl', {'_id': 'q1', 'answers': ['x']},
               {'_id': 'nobody', 'answers': ['x']})
  reader = beir.BeirReader(folder)
  message = f"{path}:2: id 'nobody' is not in the queries"
  with pytest.raises(data.DataError, match=message):
    prepare(reader, tmp_path)
  with pytest.raises(data.DataError, match=message):
    beir_folder.write(reader, str(tmp_path / 'out'))
  with pytest.warns(UserWarning, match="'dev'.* 1 answers to unknown queries"):
    found = prepare(data.Lenient(reader), tmp_path)
  assert found.answers['dev'].query_rows.tolist() == [0]
  assert found.dropped['dev']['unknown_answers'] == 1
  assert 'unknown_answers' not in found.dropped['train']


def test_read_leniently_a_question_stays_without_a_positive(folder, tmp_path):
  fakes.write(os.path.join(folder, 'qrels', 'test.tsv'),
              'q1\tnothing\t1\nq"é"\td4\t1\n')
  write(folder, 'answers/test.jsonl', {'_id': 'q1', 'answers': ['x']})
  with pytest.warns(UserWarning, match='1 judgements of unknown targets'):
    found = prepare(data.Lenient(beir.BeirReader(folder)), tmp_path)
  assert found.qrels['test'].queries().tolist() == [2]
  assert found.queries_of('test').tolist() == [0, 2]


@pytest.mark.parametrize('value', [
    None, [], ['x', ''], [' '], 3, ['x', 3], [['x']], {'value': None}])
def test_what_are_no_answers_is_named(value):
  with pytest.raises(data.DataError, match='^file:1: expected .*"answers"'):
    answers.read('file:1', {'_id': 'q', 'answers': value})


def test_answers_are_read_in_every_form():
  read = lambda **row: answers.read('file:1', row)
  assert read(answers=['x', 'y', 'x']) == ['x', 'y']
  assert read(answer='x') == read(answers=None, answer=['x']) == ['x']
  assert read(Answer={'Value': 'y', 'Aliases': ['x', 'y'],
                      'NormalizedAliases': ['z']}) == ['y', 'x']
  assert read(answers={'text': ['x', 'x'], 'answer_start': [1, 2]}) == ['x']
  assert answers.read('file:1', {}, required=False) == []


def test_rows_of_questions_are_told_from_pairs():
  parse = lambda row: schemas.parse('file:1', row)
  found = parse({'question': 'who?', 'answer': ['me']})
  assert found.answers == ['me'] and not found.positives
  found = parse({'question_id': 'a', 'question': 'who?', 'answer': {
      'value': 'me', 'aliases': ['I']}})
  assert (found.query_id, found.answers) == ('a', ['me', 'I'])
  for row in ({'question': 'who?', 'answer': 'a passage'},
              {'question': 'who?', 'answer': ['a passage'], 'negative': 'x'},
              {'query': 'who?', 'answers': ['x'], 'positive': 'a passage'}):
    found = parse(row)
    assert not found.answers
    assert [passage.text for passage in found.positives] == ['a passage']


def test_questions_are_asked_of_the_passages_of_another_set(tmp_path):
  path = write(tmp_path / 'open', 'NQ-open.dev.jsonl', *QUESTIONS)
  corpus = write(tmp_path / 'wiki', 'corpus.jsonl', *PASSAGES)
  reader = factory.make_reader('questions', path, '')
  with pytest.raises(data.DataError, match=f'{path}: has no passages.*data.co'):
    prepare(reader, tmp_path)
  config = base.get_config('tiny')
  config.data.update(source='questions', path=path, corpus=corpus,
                     cache=str(tmp_path / 'cache'), train_split='open.dev',
                     dev_split='', test_split='')
  with pytest.raises(ValueError, match="'open.dev' of .* has no judgements"):
    factory.make_dataset(config)
  found = factory.make_dataset(config, training=False)
  assert list(found.corpus_texts) == ['A x', 'y']
  [split] = found.qrels
  of = {found.query_texts[row]: found.answers[split].of(row)
        for row in found.queries_of(split)}
  assert of == {'who?': ['me', 'I'], 'where?': ['here']}
  before = found.fingerprint
  write(tmp_path / 'wiki', 'corpus.jsonl', *PASSAGES[:1])
  config.data.corpus = os.path.dirname(corpus)  # finds the file in it
  found = factory.make_dataset(config, training=False)
  assert found.fingerprint != before
  assert list(found.corpus_ids) == ['d1']


def test_passages_of_another_set_are_judged_by_their_ids(folder, tmp_path):
  lines = '\n'.join(['id\ttext\ttitle', *(
      f'{name}\tother {name}\tT' for name in ('d1', 'd,2', '"d""3"""', 'd4')),
                     'new\tof DPR\t'])
  path = str(tmp_path / 'psgs.tsv')
  fakes.write(path, lines)
  fakes.write_candidates(folder)
  reader = data.OverPassages(beir.BeirReader(folder), path)
  found = prepare(reader, tmp_path)
  own = prepare(beir.BeirReader(folder), tmp_path)
  assert list(found.corpus_texts)[0] == 'T other d1'
  assert list(found.corpus_ids) == [*own.corpus_ids, 'new']
  for split in ('train', 'test'):
    np.testing.assert_array_equal(found.qrels[split].corpus_rows,
                                  own.qrels[split].corpus_rows)
  np.testing.assert_array_equal(found.candidates['train'].corpus_rows,
                                own.candidates['train'].corpus_rows)
  assert reader.where('corpus', 1) == f'{path}:3'
  assert reader.where('queries', 1) == os.path.join(
      folder, 'queries.jsonl') + ':2'
  fakes.write(path, 'd1\tx\ty\n')
  with pytest.raises(data.DataError, match="'d4' is not in the corpus"):
    prepare(reader, tmp_path)


def test_passages_that_are_not_there_are_named(folder, tmp_path):
  for path in (str(tmp_path), os.path.join(folder, 'qrels', 'no.csv')):
    with pytest.raises(data.DataError, match=f'data.corpus={path}: expected'):
      data.OverPassages(beir.BeirReader(folder), path)


def test_a_subset_keeps_questions_without_judgements(folder, tmp_path):
  write(folder, 'answers/dev.jsonl', {'_id': 'q1', 'answers': ['x']},
        {'_id': 'q 2', 'answers': ['y']})
  for split in ('train', 'test'):
    os.remove(os.path.join(folder, 'qrels', f'{split}.tsv'))
  reader = data.Subset(beir.BeirReader(folder), 2)
  found = prepare(reader, tmp_path)
  assert len(found.corpus_ids) < len(fakes.CORPUS)
  assert list(found.query_ids) == ['q1', 'q 2']
  assert found.answers['dev'].of(1) == ['y']
  write(folder, 'answers/dev.jsonl', {'_id': 'nobody', 'answers': ['x']})
  with pytest.raises(data.DataError, match="'nobody' is not in the queries"):
    prepare(reader, tmp_path)


def test_questions_and_passages_become_one_folder(tmp_path, capsys):
  path = write(tmp_path / 'open', 'dev.jsonl', *QUESTIONS)
  corpus = write(tmp_path / 'wiki', 'corpus.jsonl', *PASSAGES)
  out = str(tmp_path / 'out')
  call(convert, '--source=questions', f'--path={path}', f'--corpus={corpus}',
       f'--out={out}')
  assert '2 targets, 2 queries, 2 dev answers.' in capsys.readouterr().out
  assert sorted(os.listdir(out)) == ['answers', 'corpus.jsonl', 'queries.jsonl']
  with open(os.path.join(out, 'answers', 'dev.jsonl'), encoding='utf-8') as f:
    assert json.loads(f.readline())['answers'] == ['me', 'I']
  assert prepare(beir.BeirReader(out), tmp_path).queries_of('dev').tolist() == [
      0, 1]
