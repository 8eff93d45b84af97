"""An encoder is evaluated as it is, on data with nothing but a test split."""

import json
import os
import shutil
import sys
from unittest import mock

from absl import flags
import ir_measures
import numpy as np
import pytest

from experiments import embed
from experiments import evaluate
from experiments import mine
from experiments import process
from experiments import search
from experiments import train
from tests.experiments import tiny


@pytest.fixture(scope='module', name='test_only')
def fixture_test_only(beir, tmp_path_factory):
  """Returns a copy of the data set with judgements of its test split alone."""
  folder = shutil.copytree(beir, tmp_path_factory.mktemp('data') / 'test_only')
  for split in ('train', 'dev'):
    os.remove(folder / 'qrels' / f'{split}.tsv')
  return str(folder)


@pytest.fixture(name='call')
def fixture_call(test_only, cache):
  """Returns script, *arguments -> calls it with the tiny config on the data."""

  def call(script, *arguments):
    arguments = [
        '--config=configs/in_batch.py:tiny', '--config.data.source=beir',
        f'--config.data.path={test_only}', f'--config.data.cache={cache}',
        '--config.data.num_targets=0', *arguments]
    values = flags.FlagValues()
    script.define_flags(values)
    with mock.patch.object(sys, 'argv', ['script', *arguments]):
      with mock.patch.object(
          process.app, 'parse_flags_with_usage', side_effect=values):
        script.main(process.parse_flags(sys.argv), values)

  return call


@pytest.fixture(name='nano')
def fixture_nano(test_only, tmp_path):
  """Returns a folder of two data sets, of 3 and 9 of the test queries."""
  folder = tmp_path / 'nano'
  for name, kept in (('a', slice(0, 3)), ('b', slice(3, 12))):
    path = shutil.copytree(test_only, folder / name) / 'qrels' / 'test.tsv'
    header, *lines = path.read_text('utf-8').splitlines()
    path.write_text('\n'.join([header, *lines[kept]]), encoding='utf-8')
  (folder / 'README.md').write_text('about them')
  (folder / 'empty').mkdir()
  return str(folder)


def read_json(*path):
  with open(os.path.join(*path), encoding='utf-8') as f:
    return json.load(f)


def test_it_measures_what_training_measures_at_its_start(
    call, trained, test_only, tmp_path, capsys):
  out = str(tmp_path / 'a' / 'out')
  # The encoder of this config is that of the run of the fixture, untrained.
  call(evaluate, f'--out={out}')
  results = read_json(out, 'results.json')
  _, at_start = trained
  for kind, name in (('untrained', 'measures'), ('bm25', 'bm25')):
    assert list(results[name]) == ['test']
    assert results[name]['test'] == pytest.approx(
        at_start[kind]['test'], abs=1e-6)
  assert results['num_targets'] == tiny.NUM_TARGETS
  assert results['num_queries'] == {'test': tiny.NUM_QUERIES['test']}
  assert results['data'] == 'test_only' and results['steps'] == 0
  assert results['config']['data']['path'] == test_only
  assert '--config=configs/in_batch.py:tiny' in results['command']
  printed = capsys.readouterr().out
  assert 'test_only: test queries, whole corpus' in printed
  for system, name in (('BM25', 'bm25'), ('encoder', 'measures')):
    [line] = [line for line in printed.splitlines() if system in line]
    assert [cell.strip() for cell in line.split('│')[2:-1]] == [
        f'{value:.4f}' for value in results[name]['test'].values()]


def test_the_run_files_give_the_same_numbers(call, test_only, tmp_path):
  out = str(tmp_path / 'out')
  call(evaluate, f'--out={out}', '--measures=nDCG@10,R@20')
  assert sorted(os.listdir(out)) == ['bm25', 'results.json', 'test.run']
  results = read_json(out, 'results.json')
  with open(os.path.join(test_only, 'qrels', 'test.tsv'),
            encoding='utf-8') as f:
    qrels = [ir_measures.Qrel(*line.split()[:2], int(line.split()[2]))
             for line in list(f)[1:]]
  for path, name in (('test.run', 'measures'), ('bm25/test.run', 'bm25')):
    found = ir_measures.calc_aggregate(
        [ir_measures.nDCG@10, ir_measures.R@20], qrels,
        ir_measures.read_trec_run(os.path.join(out, path)))
    assert results[name]['test'] == pytest.approx(
        {str(measure): value for measure, value in found.items()})


@pytest.mark.slow
def test_a_folder_of_data_sets_gives_the_mean_over_them(
    call, nano, tmp_path, capsys):
  out = str(tmp_path / 'out')
  call(evaluate, f'--data={nano}', f'--out={out}')
  results = read_json(out, 'results.json')
  assert list(results['sets']) == ['a', 'b']
  assert results['config']['data']['path'] == nano
  for kind in ('measures', 'bm25'):
    of_sets = [results['sets'][name][kind]['test'] for name in 'ab']
    assert of_sets[0] != of_sets[1]
    for name, value in results[kind]['test'].items():
      assert value == pytest.approx(np.mean([one[name] for one in of_sets]))
  for name, number in (('a', 3), ('b', 9)):
    assert results['sets'][name]['num_queries'] == {'test': number}
    assert sorted(os.listdir(os.path.join(out, name))) == ['bm25', 'test.run']
  printed = capsys.readouterr().out
  assert 'BM25: test queries' in printed and 'encoder: test queries' in printed
  mean = results['measures']['test']['nDCG@10']
  assert [line.split('│')[-2].strip() for line in printed.splitlines()
          if 'mean of 2' in line][-1] == f'{mean:.4f}'
  # And each set alone gives its own row.
  call(evaluate, f'--data={nano}/b', '--config.evaluation.baselines=False')
  printed = capsys.readouterr().out
  assert 'BM25' not in printed
  own = results['sets']['b']['measures']['test']['nDCG@10']
  [line] = [line for line in printed.splitlines() if '│ encoder' in line]
  assert line.split('│')[-2].strip() == f'{own:.4f}'


def test_prefixes_are_measured_too(call, tmp_path):
  out = str(tmp_path / 'out')
  call(evaluate, f'--out={out}', '--measures=R@20', '--dims=8')
  assert list(read_json(out, 'results.json')['measures']['test']) == [
      'R@20', 'R@20/8']


@pytest.mark.slow
def test_quantised_targets_are_measured_too(call, nano, tmp_path, capsys):
  out = str(tmp_path / 'out')
  call(evaluate, f'--data={nano}', f'--out={out}', '--measures=R@20,RR@10',
       '--dims=8', '--precisions=int8,binary')
  results = read_json(out, 'results.json')
  forms = ['', '/int8', '/binary', '/binary_rescored', '/binary_rescored_int8']
  forms += ['/8', *(f'/8{form}' for form in forms[1:])]
  names = [f'{name}{form}' for form in forms for name in ('R@20', 'RR@10')]
  for found in (results, results['sets']['b']):
    assert sorted(found['measures']['test']) == sorted(names)
  assert sorted(results['bm25']['test']) == ['R@20', 'RR@10']
  printed = ' '.join(capsys.readouterr().out.split())  # titles are wrapped
  for label in ('BM25', 'encoder', 'encoder, int8', 'encoder, 8/binary'):
    assert f'{label}: test queries' in printed
  # And by hand, from the embeddings of one set.
  call(embed, f'--out={tmp_path}/embeddings')
  folder = tmp_path / 'embeddings'
  targets, queries = (np.load(folder / f'{name}.npy')
                      for name in ('targets', 'queries'))
  ids = {name: (folder / f'{name}_ids.txt').read_text('utf-8').split('\n')
         for name in ('target', 'query')}
  with open(folder / 'qrels' / 'test.tsv', encoding='utf-8') as f:
    judged = [line.split() for line in list(f)[1:]]
  prefix = lambda x: x[:, :8] / np.linalg.norm(x[:, :8], axis=1, keepdims=True)
  call(evaluate, f'--out={tmp_path}/one', '--measures=R@20', '--dims=8',
       '--precisions=int8,binary', '--rescore_multiplier=2',
       '--config.evaluation.depth=20')
  of_test = read_json(tmp_path, 'one', 'results.json')['measures']['test']
  for cut, form in ((lambda x: x, ''), (prefix, '/8')):
    expected = forms_by_hand(cut(queries), cut(targets), 20, 2)
    for name, rows in expected.items():
      found = {query: {ids['target'][row] for row in of_query}
               for query, of_query in zip(ids['query'], rows)}
      relevant = {query: {target for other, target, grade in judged
                          if other == query and int(grade) > 0}
                  for query, *_ in judged}
      recall = np.mean([len(found[query] & targets_) / len(targets_)
                        for query, targets_ in relevant.items() if targets_])
      assert of_test[f'R@20{form}/{name}'] == pytest.approx(recall), name


def forms_by_hand(queries, targets, k, multiplier):
  """Returns name -> [n, k] rows that are found, of each way to search."""
  best = lambda scores, k: np.argsort(-scores, axis=1, kind='stable')[:, :k]
  low, high = targets.min(axis=0), targets.max(axis=0)
  width = np.where(high == low, 1, (high - low) / 255).astype(np.float32)
  int8 = queries @ (low + width * np.clip(
      np.floor((targets - low) / width), 0, 255)).T
  bits = queries @ np.where(targets > 0, 1., -1.).T
  near = -((queries[:, None] > 0) != (targets[None] > 0)).sum(axis=2)
  candidates = best(near, k * multiplier)
  again = lambda scores: np.take_along_axis(candidates, best(
      np.take_along_axis(scores, candidates, axis=1), k), axis=1)
  return {'int8': best(int8, k), 'binary': candidates[:, :k],
          'binary_rescored': again(bits), 'binary_rescored_int8': again(int8)}


def test_one_table_has_a_row_per_form(call, capsys):
  call(evaluate, '--measures=R@20,RR@10', '--precisions=int8',
       '--config.evaluation.baselines=False')
  cells = [[cell.strip() for cell in line.replace('┃', '│').split('│')[1:-1]]
           for line in capsys.readouterr().out.splitlines()
           if '│' in line or '┃' in line]
  assert cells[0] == ['', 'R@20', 'RR@10']
  assert [row[0] for row in cells[1:]] == ['encoder', 'encoder, int8']
  assert all(0 < float(value) <= 1 for row in cells[1:] for value in row[1:])


@pytest.mark.parametrize('arguments, message', [
    (['--splits=train'], r"\['train'\]; test_only has \['test'\]"),
    (['--config.data.test_split=', '--config.data.dev_split='],
     'a split to evaluate, got none'),
    (['--data=nowhere'], 'nowhere: expected a data set in BEIR layout'),
    (['--workdir=x'], 'Expected one of --workdir .* got both'),
    (['--data=x', '--index=y'], '--data goes with --config alone'),
    (['--dims=2', '--index=y'], '--dims does not go with --index'),
    (['--dims=33'], '--dims=.*33'),
    (['--precisions=int8', '--index=y'], '--precisions does not go with --ind'),
    (['--rescore_multiplier=0', '--index=y'], '--rescore_multiplier does not'),
    (['--precisions=int4'], r"--precisions=\['int4'\]: expected names among"),
    (['--rescore_multiplier=-1'], '--rescore_multiplier=-1 must be at least 1'),
    (['--out=tests'], '--out=tests exists; name a new folder'),
    (['--config.data.pth=x'], 'no such --config option: .*pth')])
def test_what_cannot_work_is_refused(call, arguments, message):
  with pytest.raises(SystemExit, match=message):
    call(evaluate, *arguments)


def test_nothing_half_written_stays(call, nano, tmp_path):
  os.remove(os.path.join(nano, 'b', 'qrels', 'test.tsv'))
  with pytest.raises(SystemExit, match='expected at least one file of judge'):
    call(evaluate, f'--data={nano}', f'--out={tmp_path}/out')
  assert os.listdir(tmp_path) == ['nano']


def test_other_commands_need_no_training_split_either(call, tmp_path, capsys):
  call(embed, f'--out={tmp_path}/embeddings')
  assert os.listdir(tmp_path / 'embeddings' / 'qrels') == ['test.tsv']
  call(mine, '--splits=test', f'--out={tmp_path}/mined')
  assert read_json(tmp_path, 'mined', 'mining.json')['splits']['test'][
      'queries'] == tiny.NUM_QUERIES['test']
  capsys.readouterr()
  call(search, '--query=kabel', '--k=2')
  assert len(capsys.readouterr().out.splitlines()) == 4


def test_training_needs_one(call, tmp_path):
  with pytest.raises(SystemExit, match=(
      r"train_split='train' is not a split of test_only; it has \['test'\]")):
    call(train, f'--workdir={tmp_path}/run')
