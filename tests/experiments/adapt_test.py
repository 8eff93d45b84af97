"""Adapters from the command line: embed, adapt, evaluate and search."""

import csv
import os

from absl import app
import numpy as np
import pytest

from experiments import adapt
from experiments import embed
from experiments import evaluate
from experiments import search
import retrieval_jax
from retrieval_jax import adapters
from retrieval_jax.adapters import fitting
from retrieval_jax.evaluation import trec
from tests.experiments.scripts_test import call
from tests.experiments.scripts_test import read_json

# Small grids: what is tested is not how well a choice is made.
GRID = ['--lambdas=0.3,0.6,1', '--neighbours=4', '--gammas=0,0.1,0.4']


@pytest.fixture(scope='module', name='embedded')
def fixture_embedded(trained, beir, tmp_path_factory):
  """Returns a folder of embeddings by the encoder of a run."""
  out = str(tmp_path_factory.mktemp('embeddings') / 'run')
  retrieval_jax.embed(out, workdir=trained[0], pairs=[
      'targets', f'text={beir}/corpus.jsonl'])
  return out


@pytest.fixture(scope='module', name='adapted')
def fixture_adapted(embedded, tmp_path_factory):
  """Returns (folder, results) of all methods."""
  out = str(tmp_path_factory.mktemp('adapted') / 'all')
  call(adapt, f'--embeddings={embedded}', f'--out={out}', *GRID)
  return out, read_json(out, 'results.json')


@pytest.mark.slow
def test_everything_is_measured_and_written(adapted, embedded, capsys):
  out, results = adapted
  assert list(results['methods']) == ['encoder', *adapters.ADAPTERS]
  assert results['num_train_queries'] == 64
  truth = np.load(os.path.join(embedded, 'targets.npy'))
  for method, report in results['methods'].items():
    assert list(report['test']) == list(fitting.MEASURES)
    assert report['index_bytes'] >= truth.nbytes
    assert report['latency_ms'] > 0
    if method != 'encoder':
      difference = report['test']['R@10'] - results['methods']['encoder'][
          'test']['R@10']
      assert report['gain']['R@10'][0] == pytest.approx(difference)
      assert np.load(os.path.join(out, method, 'targets.npy')).shape == (
          truth.shape)
  # XL keeps the queries and their labels, too.
  sizes = {m: r['index_bytes'] for m, r in results['methods'].items()}
  assert sizes['xs'] == sizes['encoder'] < sizes['xl']
  with open(os.path.join(out, 'grid.csv'), encoding='utf-8') as f:
    rows = list(csv.DictReader(f))
  assert [row['method'] for row in rows] == [
      'xs'] * 3 + ['xl'] * 6 + ['nudge_m'] + ['nudge_n'] * 3
  with open(os.path.join(out, 'results.md'), encoding='utf-8') as f:
    assert f'{results["methods"]["xs"]["test"]["R@10"]:.4f}' in f.read()
  assert os.path.getsize(os.path.join(out, 'recall_over_lambda.png')) > 5000


@pytest.mark.slow
def test_the_chosen_constants_are_the_best_of_the_grid(adapted):
  out, results = adapted
  with open(os.path.join(out, 'grid.csv'), encoding='utf-8') as f:
    rows = list(csv.DictReader(f))
  for method in ('xs', 'xl', 'nudge_n'):
    of_method = [row for row in rows if row['method'] == method]
    best = max(float(row['RR@10']) for row in of_method)
    chosen = results['methods'][method]['constants']
    [row] = [row for row in of_method if all(
        row[name] in (str(value), '') for name, value in chosen.items()
        if name in row)]
    assert float(row['RR@10']) == best
  # Lambda 1 and gamma 0 are the encoder, so three rows agree.
  same = [row['RR@10'] for row in rows
          if row['lambda'] == '1.0' or row['gamma'] == '0.0']
  assert len(same) == 4 and len(set(same)) == 1


@pytest.mark.parametrize('method', ['xs', 'xl'])
def test_an_index_is_evaluated_like_any_other(
    method, adapted, embedded, trained, capsys):
  out, results = adapted
  index = os.path.join(out, method)
  expected = f'RR@10 {results["methods"][method]["test"]["RR@10"]:.4f}'
  for source in (f'--embeddings={embedded}', f'--workdir={trained[0]}'):
    call(evaluate, f'--index={index}', source, '--splits=test')
    assert expected in capsys.readouterr().out
    run = trec.read_run(os.path.join(index, 'test.run'))
    assert len(run.query_ids) == 12
  assert results['methods'][method]['test'] != trained[1]['measures']['test']


@pytest.mark.slow
def test_an_index_is_searched_like_any_other(adapted, trained, capsys):
  for method in ('nudge_n', 'xl'):
    call(search, f'--index={adapted[0]}/{method}', f'--workdir={trained[0]}',
         '--query=kabel lodor mifin', '--k=3')
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == 'kabel lodor mifin' and len(lines) == 5
  # Its best target is that of the moved rows.
  call(search, f'--workdir={trained[0]}', '--query=kabel lodor mifin',
       f'--index={adapted[0]}/xs', '--k=1')
  line = capsys.readouterr().out.splitlines()[2].split()
  [query] = retrieval_jax.open_run(trained[0]).embed_queries(
      ['kabel lodor mifin'])
  scores = np.load(f'{adapted[0]}/xs/targets.npy') @ query
  assert line[1] == f'd{np.argmax(scores)}'
  assert float(line[0]) == pytest.approx(scores.max(), abs=1e-4)


def test_pairs_of_texts_are_the_targets_seen_by_the_query_tower(
    embedded, trained):
  for name in ('targets', 'text'):  # the corpus has no titles
    vectors = np.load(os.path.join(embedded, f'pairs-{name}.npy'))
    with open(os.path.join(embedded, f'pairs-{name}_target_ids.txt'),
              encoding='utf-8') as f:
      assert f.read().split() == [f'd{i}' for i in range(120)]
    # One tower: a text is the same as query and as target.
    np.testing.assert_allclose(
        vectors, np.load(os.path.join(embedded, 'targets.npy')), atol=1e-5)


def test_extra_pairs_cover_all_targets(embedded, tmp_path):
  out = str(tmp_path / 'out')
  call(adapt, f'--embeddings={embedded}', f'--out={out}', '--method=xs',
       '--pairs=targets', *GRID)
  results = read_json(out, 'results.json')
  assert results['covered_targets'] == 120
  assert results['num_pairs'] == 64 + 120
  assert results['methods']['xs']['test_uncovered']['R@100'] is None


def test_a_share_and_held_out_queries(embedded, tmp_path):
  out = str(tmp_path / 'out')
  call(adapt, f'--embeddings={embedded}', f'--out={out}', '--method=xs,nudge_m',
       '--dev_split=', '--dev_share=0.25', '--share=0.5', *GRID)
  results = read_json(out, 'results.json')
  # Half of all 64: the held-out queries come back for the final fit.
  assert results['num_train_queries'] == 32
  assert results['methods']['xs']['constants']['lambda'] in (0.3, 0.6, 1.)


def test_one_setting_needs_no_dev_split(embedded, tmp_path):
  out = str(tmp_path / 'out')
  call(adapt, f'--embeddings={embedded}', f'--out={out}', '--method=xl',
       '--dev_split=', '--lambdas=1', '--neighbours=8', '--normalisations=sum',
       '--knn=hnsw', '--missing=exact')
  methods = read_json(out, 'results.json')['methods']
  assert methods['xl']['test'] == methods['encoder']['test']
  assert read_json(out, 'xl', 'index.json')['knn'] == 'hnsw'


def test_vectors_of_any_source(tmp_path):
  """No ids, other file kinds, rows that are not of norm 1."""
  rng = np.random.default_rng(0)
  folder = tmp_path / 'black_box'
  os.makedirs(folder / 'qrels')
  targets = rng.normal(size=(30, 4)).astype(np.float32)
  np.savez(folder / 'targets.npz', embeddings=targets)
  np.save(folder / 'queries.npy', targets[rng.permutation(30)])
  for split, rows in (('train', range(20)), ('dev', range(20, 25)),
                      ('test', range(25, 30))):
    (folder / 'qrels' / f'{split}.tsv').write_text(
        ''.join(f'{row}\t{row}\t1\n' for row in rows), encoding='utf-8')
  arguments = [f'--embeddings={folder}', f'--out={tmp_path}/out',
               '--method=xs', *GRID]
  with pytest.raises(SystemExit, match=r'targets.npz: .* row 0 .*--normalize'):
    call(adapt, *arguments)
  assert not os.path.exists(tmp_path / 'out')
  call(adapt, *arguments, '--normalize')
  assert read_json(tmp_path, 'out', 'results.json')['num_test_queries'] == 5


@pytest.mark.parametrize('arguments, message', [
    (['--method=xz'], "--method=xz is not one of"),
    (['--lambdas=0.5,2'], r'lambda is 2.0, expected a number in \[0, 1\]'),
    (['--lambdas=a'], '--lambdas=a: expected numbers'),
    (['--neighbours=1.5'], '--neighbours=1.5: expected whole numbers'),
    # Before anything of the first method is fitted.
    (['--neighbours=0', '--method=xs,xl'], '--neighbours. is 0, expected at'),
    (['--gammas='], '--gammas is empty'),
    (['--choose_by=R@7'], '--choose_by=R@7 is not one of'),
    (['--dev_split='], 'xs has 10 settings .* no dev split'),
    (['--dev_split=', '--method=nudge_m'], 'nudge_m finds its step'),
    (['--dev_split=', '--dev_share=1'], '--dev_share=1.0 must be between'),
    (['--dev_split=train'], '64 queries, .*--dev_split=train are in'),
    (['--test_split=train'], '64 queries, .*--test_split=train'),
    (['--test_split=x'], 'x.tsv: no such file; there are the splits dev, test'),
    (['--share=0'], '--share=0.0, expected'),
    (['--max_dev_queries=0'], '--max_dev_queries=0 must be'),
    (['--pairs=x'], 'pairs-x.npy: no such file')])
def test_bad_options_are_refused(arguments, message, embedded, tmp_path):
  out = tmp_path / 'out'
  with pytest.raises(SystemExit, match=message):
    call(adapt, f'--embeddings={embedded}', f'--out={out}', *arguments)
  assert os.listdir(tmp_path) == []


def test_fewer_training_queries_give_fewer_neighbours(
    embedded, tmp_path, capsys):
  out = str(tmp_path / 'out')
  call(adapt, f'--embeddings={embedded}', f'--out={out}', '--share=0.15',
       '--method=xs,xl', '--lambdas=0.5')  # of 64; 16, 32 and 64 neighbours
  assert ('--neighbours=16,32,64: there are only 10 training queries'
          in ' '.join(capsys.readouterr().err.split()))
  results = read_json(out, 'results.json')
  assert list(results['methods']) == ['encoder', 'xs', 'xl']
  assert results['methods']['xl']['constants']['k'] == 10
  assert results['options']['neighbours'] == [10]


def test_extra_pairs_are_checked(embedded, tmp_path):
  np.save(tmp_path / 'p.npy',
          np.load(os.path.join(embedded, 'queries.npy'))[:2])
  arguments = [f'--embeddings={embedded}', f'--out={tmp_path}/out',
               f'--pairs={tmp_path}/p.npy']
  with pytest.raises(SystemExit, match='p_target_ids.txt is missing'):
    call(adapt, *arguments)
  (tmp_path / 'p_target_ids.txt').write_text('d1\n', encoding='utf-8')
  with pytest.raises(SystemExit, match='1 ids for 2 rows'):
    call(adapt, *arguments)
  (tmp_path / 'p_target_ids.txt').write_text('d1\ndx\n', encoding='utf-8')
  with pytest.raises(SystemExit, match="ids.txt:2: target 'dx' has no embedd"):
    call(adapt, *arguments)


def test_embed_refuses_bad_pairs_before_it_embeds(trained, beir, tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"_id": "d1", "title": "a"}\n{"_id": "dx", "title": "b"}\n',
                  encoding='utf-8')
  for pair, message in (
      ('x', "expected 'targets' or FIELD=FILE"),
      (f'title={path}', 'x.jsonl:2: "_id" .dx. is not a target'),
      (f'text={path}', 'x.jsonl:1: field "text" is missing'),
      (f'title={beir}/corpus.jsonl', 'there is no text to embed')):
    with pytest.raises(SystemExit, match=message):
      call(embed, f'--workdir={trained[0]}', f'--out={tmp_path}/out',
           f'--pairs={pair}')
  assert not os.path.exists(tmp_path / 'out')


def test_an_index_of_another_corpus_is_refused(adapted, trained, tmp_path):
  index = tmp_path / 'index'
  with pytest.raises(SystemExit, match='index holds no index.json'):
    call(search, f'--index={index}', f'--workdir={trained[0]}', '--query=x')
  os.makedirs(index)
  for name in ('index.json', 'targets.npy', 'target_ids.txt'):
    with open(f'{adapted[0]}/xs/{name}', 'rb') as f:
      (index / name).write_bytes(f.read())
  (index / 'target_ids.txt').write_text(
      ''.join(f'e{i}\n' for i in range(120)), encoding='utf-8')
  with pytest.raises(SystemExit, match="120 targets, the first 'e0', not over"):
    call(search, f'--index={index}', f'--workdir={trained[0]}', '--query=x')


def test_where_the_queries_come_from_must_be_said(adapted, embedded, trained):
  for arguments, message in (
      ([], 'Expected --workdir=RUN, --config=FILE or --index=DIR'),
      ([f'--index={adapted[0]}/xs'], 'one of the two, got neither'),
      ([f'--index={adapted[0]}/xs', f'--embeddings={embedded}',
        f'--workdir={trained[0]}'], 'got several')):
    with pytest.raises(SystemExit, match=message):
      call(evaluate, *arguments)
  with pytest.raises(SystemExit, match='got neither'):
    call(embed, '--out=x')
  with pytest.raises(app.UsageError, match='Unexpected'):
    call(adapt, f'--embeddings={embedded}', '--out=x', 'y')
