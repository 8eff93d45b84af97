"""Runs with a reader answer questions: measured, written and shown."""

import json
import os

from absl import flags
import numpy as np
import pytest
import rich.console

from experiments import answer
from experiments import evaluate
from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax import trained as trained_lib
from retrieval_jax.evaluation import answers
from retrieval_jax.evaluation import measures
from retrieval_jax.evaluation import predictions
from retrieval_jax.evaluation import trec
from retrieval_jax.jobs import train
from tests.experiments import tiny

NUM_READ = 6
OPTIONS = {
    'objective__name': 'marginal', 'reader__name': 'extractive',
    'reader__pretrained': '', 'reader__row_length': 48,
    'sampler__num_negatives': 4, 'num_steps': 3,
    'evaluation__num_read': NUM_READ, 'evaluation__baselines': False,
    'data__test_split': ''}


@pytest.fixture(scope='module', name='asked')
def fixture_asked(beir, tmp_path_factory):
  """Returns the data with two of a passage's words as answer."""
  folder = str(tmp_path_factory.mktemp('data') / 'asked')
  os.makedirs(os.path.join(folder, 'answers'))
  for name in ('corpus.jsonl', 'queries.jsonl', 'qrels'):
    os.symlink(os.path.join(beir, name), os.path.join(folder, name))
  reader = data.BeirReader(beir)
  texts = dict(reader.corpus())
  for split in ('train', 'dev'):
    path = os.path.join(folder, 'answers', f'{split}.jsonl')
    with open(path, 'w', encoding='utf-8') as f:
      f.writelines(json.dumps({
          '_id': query, 'answers': [texts[target].split()[3].upper()]}) + '\n'
                   for query, target, *_ in reader.qrels(split))
  return folder


@pytest.fixture(scope='module', name='run')
def fixture_run(asked, cache, tmp_path_factory):
  """Returns (workdir, results) of a run with a reader."""
  workdir = str(tmp_path_factory.mktemp('runs') / 'qa')
  return workdir, train.run(
      tiny.config('stale', asked, cache, **OPTIONS), workdir, num_devices=1)


@pytest.fixture(scope='module', name='retriever')
def fixture_retriever(run):
  return trained_lib.open(run[0], num_devices=1)


def call(script, *arguments):
  values = flags.FlagValues()
  script.define_flags(values)
  script.main(values([script.__name__, *arguments]), values)


@pytest.mark.slow
def test_a_run_is_measured_by_what_it_answers(run, retriever):
  workdir, results = run
  found = results['measures']['dev']
  assert list(found) == list(measures.ALL)
  path = os.path.join(workdir, 'dev.predictions.jsonl')
  answered, dataset = predictions.read(path), retriever.dataset
  right = dataset.answers_of('dev')
  assert list(answered) == list(right)
  assert found['F1'] == pytest.approx(np.mean([
      answers.f1(answered[query], right[query]) for query in right]))
  assert found['EM'] == pytest.approx(np.mean([
      answers.exact_match(answered[query], right[query]) for query in right]))


@pytest.mark.slow
def test_the_passages_of_a_prediction_are_the_first_found(run, retriever):
  workdir, dataset = run[0], retriever.dataset
  texts = dict(zip(dataset.corpus_ids, dataset.corpus_texts))
  found = {query: ids for query, ids, _ in trec.read_run(
      os.path.join(workdir, 'dev.run')).rankings()}
  with open(os.path.join(workdir, 'dev.predictions.jsonl'),
            encoding='utf-8') as f:
    records = [json.loads(line) for line in f]
  for record in records:
    passages = record['passages']
    assert [one['id'] for one in passages] == found[record['id']][:NUM_READ]
    assert sum(one['prior'] for one in passages) == pytest.approx(1, abs=1e-5)
    assert sum(one['posterior'] for one in passages) == pytest.approx(
        1, abs=1e-5)
    for one in passages:
      assert texts[one['id']][slice(*one['span'])] == one['answer'] != ''
    best = max(passages, key=lambda one: one['posterior'])
    assert answers.normalize(record['prediction']) in answers.normalize(
        texts[best['id']])


def test_questions_as_texts_are_answered_as_those_of_the_split(run, retriever):
  path = os.path.join(run[0], 'dev.predictions.jsonl')
  with open(path, encoding='utf-8') as f:
    records = [json.loads(line) for line in f][:3]
  found = retriever.answer(
      [record['question'] for record in records], k=NUM_READ)
  for record, one in zip(records, found):
    assert one.answer == record['prediction']
    passages = record['passages']
    assert one.ids == [passage['id'] for passage in passages]
    np.testing.assert_allclose(
        one.posterior, [passage['posterior'] for passage in passages],
        atol=1e-5)
    np.testing.assert_allclose(
        one.prior, [passage['prior'] for passage in passages], atol=1e-5)
    assert [list(span) for span in one.spans] == [
        passage['span'] for passage in passages]
    assert one.answers == [passage['answer'] for passage in passages]


@pytest.mark.slow
def test_measures_of_the_reader_are_chosen_by_name(run, capsys):
  call(evaluate, f'--workdir={run[0]}', '--splits=dev', '--measures=EM')
  shown = capsys.readouterr().out
  assert 'EM 0.' in shown and 'F1' not in shown and 'RR@10' not in shown
  # A split that has no answers is measured by its judgements still.
  call(evaluate, f'--workdir={run[0]}', '--splits=test')
  shown = capsys.readouterr().out
  assert 'RR@10' in shown and 'EM' not in shown


@pytest.mark.slow
def test_the_script_shows_the_answer_and_its_passages(run, retriever, capsys):
  query = 'kabel \x1b[31mmidor'
  call(answer, f'--workdir={run[0]}', f'--query={query}', '--k=4', '--show=2')
  blank, asked, answered, *passages = capsys.readouterr().out.splitlines()
  assert (blank, asked) == ('', 'kabel \\x1b[31mmidor')
  [expected] = retriever.answer([query], 4)
  assert answered.strip() == expected.answer
  order = np.argsort(-expected.posterior, kind='stable')[:2]
  assert len(passages) == 2
  for line, i in zip(passages, order):
    posterior, prior, name, *text = line.split()
    assert posterior == f'{expected.posterior[i]:.3f}'
    assert prior == f'{expected.prior[i]:.3f}'
    assert (name, ' '.join(text)) == (expected.ids[i], expected.texts[i])


def test_spans_are_highlighted_and_texts_are_safe():
  text = 'x' * 100 + ' \x1b]0;a\x07 Par\x07is, \u202e' + 'y' * 100
  start = text.index('Par')
  answered = trained_lib.Answered(
      'Par\x1bis', ['d1', 'd\x1b2'], ['none', text], np.float32([.6, .4]),
      np.float32([0, 1]), [None, (start, start + 6)], ['', 'Par\x07is'])
  lines = list(answer.lines(answered, 5))
  assert [line.plain[:7] for line in lines] == [
      '  Par\\x', '  1.000', '  0.000']
  [span] = [span for span in lines[1].spans if span.style]
  assert lines[1].plain[span.start:span.end] == 'Par\\x07is'
  assert not [span for span in lines[2].spans if span.style]
  assert lines[2].plain.endswith('none')
  shown = ''.join(line.plain for line in lines)
  assert shown.isprintable() and '\u202e' not in shown
  assert 'xxx \\x1b]0;a\\x07 Par\\x07is, \\u202eyyy' in shown
  assert max(map(len, shown.split('  '))) < 300
  console = rich.console.Console(force_terminal=True, color_system='standard')
  with console.capture() as captured:
    console.print(lines[1])
  assert '\x1b[1;7mPar\\x07is\x1b[0m' in captured.get()


def test_no_answer_says_so():
  answered = trained_lib.Answered(
      '', ['d1', 'd2'], ['a', 'b'], np.float32([.4, .6]), np.float32([0, 0]),
      [None, None], ['', ''])
  first, *others = answer.lines(answered, 5)
  assert first.plain == '  no answer'
  assert [line.plain.split()[1] for line in others] == ['0.600', '0.400']


def test_a_run_without_a_reader_says_so(trained):
  with pytest.raises(SystemExit, match='no reader'):
    call(answer, f'--workdir={trained[0]}', '--query=x')


def test_the_best_by_exact_match_needs_answers_and_a_reader(asked, cache):
  options = {**OPTIONS, 'evaluation__every': 1, 'checkpoint__best': 'dev/EM'}
  factory.build(tiny.config('stale', asked, cache, **options))
  for other, message in (
      ({'data__dev_split': 'test', 'checkpoint__best': 'test/EM'},
       "'test' of .* has no answers"),
      ({'objective__name': 'contrastive', 'reader__name': 'none'},
       "is of a reader, and --config.reader.name='none'")):
    with pytest.raises(ValueError, match=message):
      factory.build(tiny.config('stale', asked, cache, **{**options, **other}))
