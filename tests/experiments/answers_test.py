"""Retrievers are measured by answers, on splits without judgements, too."""

import json
import os
import shutil
import sys
from unittest import mock

from absl import flags
import pytest

from experiments import bm25
from experiments import embed
from experiments import evaluate
from experiments import mine
from experiments import process
from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax.evaluation import answers
from retrieval_jax.evaluation import measures
from retrieval_jax.evaluation import trec
from retrieval_jax.jobs import evaluate as evaluate_job
from tests.experiments import tiny


@pytest.fixture(scope='module', name='asked')
def fixture_asked(beir, tmp_path_factory):
  """Returns a copy of the data with answers to test, and a split without more.

  A question is answered by two words that stand together in few passages.
  """
  folder = str(tmp_path_factory.mktemp('data') / 'asked')
  shutil.copytree(beir, folder)
  reader = data.BeirReader(folder)
  texts = dict(reader.corpus())
  asked = [(query, ' '.join(texts[target].split()[2:4]).upper())
           for query, target, *_ in reader.qrels('test')]
  os.makedirs(os.path.join(folder, 'answers'))
  for split in ('test', 'alone'):
    path = os.path.join(folder, 'answers', f'{split}.jsonl')
    with open(path, 'w', encoding='utf-8') as f:
      f.writelines(json.dumps({'_id': query, 'answers': ['nothing', answer]})
                   + '\n' for query, answer in asked)
  return folder


def call(script, asked, cache, *arguments):
  arguments = [
      '--config=configs/in_batch.py:tiny', '--config.data.source=beir',
      f'--config.data.path={asked}', f'--config.data.cache={cache}',
      '--config.data.num_targets=0', *arguments]
  values = flags.FlagValues()
  script.define_flags(values)
  with mock.patch.object(sys, 'argv', ['script', *arguments]):
    with mock.patch.object(
        process.app, 'parse_flags_with_usage', side_effect=values):
      script.main(process.parse_flags(sys.argv), values)


def test_a_split_is_measured_by_what_it_has(asked, cache, tmp_path):
  out = str(tmp_path / 'out')
  call(evaluate, asked, cache, '--splits=test,alone', f'--out={out}')
  with open(os.path.join(out, 'results.json'), encoding='utf-8') as f:
    results = json.load(f)
  number = tiny.NUM_QUERIES['test']
  assert results['num_queries'] == {'test': number, 'alone': number}
  reader = data.BeirReader(asked)
  texts = dict(reader.corpus())
  right = {query: of_query for query, of_query, _ in reader.answers('alone')}
  for kind, folder in (('measures', out), ('bm25', os.path.join(out, 'bm25'))):
    found = results[kind]
    assert list(found['test']) == [
        *measures.MEASURES, *answers.MEASURES]
    assert list(found['alone']) == list(answers.MEASURES)
    run = trec.read_run(os.path.join(folder, 'alone.run'))
    assert len(run.query_ids) == number
    for depth in (1, 20):
      hits = [any(answers.has_answer(texts[name], right[query])
                  for name in ids[:depth]) for query, ids, _ in run.rankings()]
      assert found['alone'][f'Answer@{depth}'] == pytest.approx(
          sum(hits) / number)
      # The passages that hold an answer are the judged ones and few others.
      assert found['test'][f'Answer@{depth}'] == (
          found['alone'][f'Answer@{depth}'])
    assert found['alone']['Answer@1'] < 1 and found['alone']['Answer@20'] > 0


def test_measures_are_chosen_by_name(asked, cache, capsys):
  call(evaluate, asked, cache, '--splits=test',
       '--measures=Answer@7,RR@10', '--config.evaluation.baselines=False')
  shown = capsys.readouterr().out
  assert 'Answer@7' in shown and 'RR@10' in shown and 'Answer@20' not in shown
  with pytest.raises(SystemExit, match=(
      r"what split 'alone' of asked has \(answers\), got RR@10")):
    call(evaluate, asked, cache, '--splits=alone', '--measures=RR@10')


def test_bm25_is_measured_by_answers(asked, cache, capsys):
  values = flags.FlagValues()
  bm25.define_flags(values)
  bm25.main(values(['bm25', '--source=beir', f'--path={asked}',
                    '--split=alone', f'--cache={cache}']), values)
  shown = capsys.readouterr().out.split()
  assert shown[::2] == list(answers.MEASURES)


def test_what_reads_judgements_leaves_the_split_out(
    asked, cache, tmp_path):
  call(embed, asked, cache, f'--out={tmp_path / "vectors"}')
  assert sorted(os.listdir(tmp_path / 'vectors' / 'qrels')) == [
      'dev.tsv', 'test.tsv', 'train.tsv']
  with pytest.raises(
      SystemExit, match='--splits=alone: asked has answers in it and no judg'):
    call(mine, asked, cache, '--splits=alone', '--index=bm25',
         f'--out={tmp_path / "mined"}')


def test_passages_with_an_answer_are_no_negatives(asked, cache, tmp_path):
  reader = data.BeirReader(asked)
  texts = dict(reader.corpus())
  right = {query: of_query for query, of_query, _ in reader.answers('test')}
  holding = {}
  for flag in ('--bar_answers', '--nobar_answers'):
    out = tmp_path / flag
    call(mine, asked, cache, '--splits=test', '--index=bm25', flag,
         '--format=trec', '--num_negatives=10', f'--out={out}')
    run = trec.read_run(str(out / 'trec' / 'test.run'))
    holding[flag] = [answers.has_answer(texts[name], right[query])
                     for query, ids, _ in run.rankings() for name in ids]
    with open(out / 'mining.json', encoding='utf-8') as f:
      removed = json.load(f)['splits']['test']['removed']
    assert ('answer' in removed) == (flag == '--bar_answers')
    assert removed.get('answer', 1) > 0
  barred, others = holding.values()
  assert len(barred) >= len(others) - 1  # others came in their place
  assert any(others) and not any(barred)
  with pytest.raises(SystemExit, match="bar_answers.* no answers in .'train'"):
    call(mine, asked, cache, '--splits=train', '--index=bm25', '--bar_answers',
         f'--out={tmp_path / "none"}')


@pytest.mark.parametrize('options, message', [
    ({'data__train_split': 'alone'}, "train_split='alone' .* no judgements"),
    ({'data__dev_split': 'alone', 'forgetting__every': 1},
     "forgetting.every .*'alone' .* answers alone"),
    ({'data__dev_split': 'alone', 'evaluation__every': 1,
      'checkpoint__best': 'alone/RR@10'}, "'alone' of .* has no judgements"),
    ({'evaluation__every': 1, 'checkpoint__best': 'dev/Answer@20'},
     "'dev' of .* has no answers")])
def test_what_needs_more_than_a_split_has_is_refused(
    options, message, asked, cache):
  with pytest.raises(ValueError, match=message):
    factory.build(tiny.config('in_batch', asked, cache, **options))


def test_the_best_checkpoint_may_be_that_of_most_answers(asked, cache):
  config = tiny.config(
      'in_batch', asked, cache, data__dev_split='alone', evaluation__every=1,
      checkpoint__best='alone/Answer@20')
  experiment = factory.build(config)
  found = evaluate_job.of_params(
      experiment, experiment.params, None, ['alone'])
  assert 'Answer@20' in found['alone']
