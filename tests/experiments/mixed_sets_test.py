"""Runs on several data sets, each of which is measured as if it were alone."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from retrieval_jax import factory
from retrieval_jax import trained as trained_lib
from retrieval_jax.evaluation import measures as measures_lib
from retrieval_jax.evaluation import report
from retrieval_jax.evaluation import trec
from retrieval_jax.jobs import evaluate
from retrieval_jax.jobs import train
from tests.experiments import tiny
from tests.experiments.train_test import final_state
from tests.experiments.train_test import run_main
from tests.experiments.train_test import stop_after

NAMES = ('words', 'few')
OPTIONS = {'data__weights': (1, 2), 'num_steps': 6, **tiny.MOVING}


@pytest.fixture(scope='module', name='folders')
def fixture_folders(beir, tmp_path_factory):
  """Returns name -> folder: the tiny set, and the half of it with other texts.

  Both have the same ids, and a target of the first set's text is in both.
  """
  few = str(tmp_path_factory.mktemp('data') / 'few')
  shutil.copytree(beir, few)
  for file in ('corpus.jsonl', 'queries.jsonl'):
    with open(os.path.join(few, file), encoding='utf-8') as f:
      records = [json.loads(line) for line in f]
    if file == 'corpus.jsonl':
      records = records[:tiny.NUM_TARGETS // 2]
    for record in records[1:]:
      record['text'] = ' '.join(reversed(record['text'].split()))
    with open(os.path.join(few, file), 'w', encoding='utf-8') as f:
      f.writelines(json.dumps(record) + '\n' for record in records)
  for split in tiny.NUM_QUERIES:
    path = os.path.join(few, 'qrels', f'{split}.tsv')
    with open(path, encoding='utf-8') as f:
      header, *lines = f.readlines()
    with open(path, 'w', encoding='utf-8') as f:
      f.writelines([header, *(
          line for line in lines
          if int(line.split()[1][1:]) < tiny.NUM_TARGETS // 2)])
  return {'words': beir, 'few': few}


@pytest.fixture(scope='module', name='make_mixed')
def fixture_make_mixed(folders, make_config):
  """Returns **overrides -> tiny config on both sets."""
  return lambda name='stale', **overrides: make_config(name, **({
      'data__source': 'wordnet', 'data__path': '', 'data__sets': tuple(
          f'{each}=beir:{path}' for each, path in folders.items())}
      | overrides))


@pytest.fixture(scope='module', name='run')
def fixture_run(make_mixed, tmp_path_factory):
  """Returns (workdir, results) of a finished run on both sets."""
  workdir = str(tmp_path_factory.mktemp('runs') / 'mixed')
  return workdir, train.run(make_mixed(**OPTIONS), workdir, num_devices=1)


@pytest.mark.slow
def test_each_set_is_measured_as_if_it_were_alone(
    run, folders, make_config, tmp_path):
  workdir, results = run
  retriever = trained_lib.open(workdir, 1)
  binary = evaluate.of_params(
      retriever.experiment, retriever.params, None, ['dev', 'test'],
      precisions=('binary',))
  assert {split: {name: value for name, value in of_split.items()
                  if '/binary' not in name}
          for split, of_split in binary.items()} == results['measures']
  for name, folder in folders.items():
    experiment = factory.build(
        make_config('stale', data__path=folder, model__start_from=workdir),
        num_devices=1)
    alone = evaluate.of_params(
        experiment, retriever.params, None, ['dev', 'test'],
        workdir=str(tmp_path), precisions=('binary',))
    bm25 = evaluate.of_bm25(experiment)
    for split in ('dev', 'test'):
      for found, expected in ((binary[split], alone),
                              (results['bm25'][split], bm25)):
        assert {key.removeprefix(f'{name}/'): value
                for key, value in found.items()
                if key.startswith(f'{name}/')} == expected[split]
      # And the lines of the run are those of the set, behind its name.
      joint = trec.read_run(os.path.join(workdir, f'{split}.run'))
      own = trec.read_run(os.path.join(tmp_path, f'{split}.run'))
      lines = {query: ids.tolist() for query, ids in zip(
          joint.query_ids, joint.ids) if query.startswith(f'{name}/')}
      assert {query: [each for each in ids if each]
              for query, ids in lines.items()} == {
                  f'{name}/{query}': [f'{name}/{one}' for one in ids if one]
                  for query, ids in zip(own.query_ids, own.ids.tolist())}


@pytest.mark.slow
def test_the_mean_counts_each_set_the_same(run):
  _, results = run
  for kind in ('measures', 'untrained', 'bm25'):
    for values in results[kind].values():
      assert list(values) == [
          *measures_lib.MEASURES, *(f'{name}/{measure}' for name in NAMES
                                    for measure in measures_lib.MEASURES)]
      for measure in measures_lib.MEASURES:
        of_sets = [values[f'{name}/{measure}'] for name in NAMES]
        assert values[measure] == pytest.approx(np.mean(of_sets), abs=1e-12)
  # The sets differ, in size too, or this would show nothing.
  found = results['bm25']['dev']
  assert found['words/RR@10'] != found['few/RR@10']
  last = tiny.read_metrics(run[0])[-1]
  assert last['test/few/RR@10'] == results['measures']['test']['few/RR@10']


def test_one_corpus_for_all_where_negatives_are_joint(
    make_mixed, run, tmp_path):
  retriever = trained_lib.open(run[0], 1)
  config = make_mixed(data__negatives='joint', model__start_from=run[0])
  experiment = factory.build(config, num_devices=1)
  joint = evaluate.of_params(experiment, retriever.params, None, ['dev'],
                             workdir=str(tmp_path), dims=(8,),
                             precisions=('int8',))['dev']
  found = trec.read_run(str(tmp_path / 'dev.run'))
  others = {(query.split('/')[0], one.split('/')[0])
            for query, ids in zip(found.query_ids, found.ids) for one in ids}
  assert others == {(a, b) for a in NAMES for b in NAMES}
  own = run[1]['measures']['dev']
  assert joint['R@100'] < own['R@100']
  assert joint['RR@10/8'] == pytest.approx(np.mean(
      [joint[f'{name}/RR@10/8'] for name in NAMES]), abs=1e-12)
  assert list(report.by_form(joint)) == [
      '', *NAMES, *(f'{name}{form}' for form in ('int8', '8', '8/int8')
                    for name in ('', 'words/', 'few/'))]
  # A text that both sets have is one target of the joint corpus alone.
  assert experiment.dataset.copies.ids.tolist() == [tiny.NUM_TARGETS]
  assert not len(retriever.dataset.copies.ids)


@pytest.mark.slow
def test_a_batch_and_its_draws_are_of_one_set(run, make_mixed):
  workdir, _ = run
  experiment = factory.build(trained_lib.read_config(workdir), num_devices=1,
                             workdir=workdir)
  train_step, _ = experiment.make_step()
  state, batches = final_state(workdir), experiment.make_batches()
  sets, seen = experiment.dataset.sets, []
  for step in range(12):
    batch = batches.batch(step)
    of_set = np.unique(sets.of_queries(batch.query_ids))
    assert len(of_set) == 1
    seen.append(int(of_set[0]))
    rows = sets.corpus(seen[-1])
    ids = np.asarray(train_step.propose(
        state, jax.device_put(batch)).proposal.ids)
    assert ((ids >= rows.start) & (ids < rows.stop)).all()
    assert np.isin(batch.target_ids, rows).all()
  assert set(seen) == {0, 1}
  joint = factory.build(make_mixed(**OPTIONS, data__negatives='joint'),
                        num_devices=1)
  ids = np.asarray(joint.make_step()[0].propose(
      state, jax.device_put(batch)).proposal.ids)
  assert not np.isin(ids, rows).all()


@pytest.mark.slow
def test_a_stopped_and_resumed_run_equals_a_straight_one(
    run, make_mixed, folders, tmp_path):
  workdir, results = run
  stopped = str(tmp_path / 'stopped')
  with stop_after(3):
    assert train.run(make_mixed(**OPTIONS), stopped, num_devices=1) is None
  with pytest.raises(ValueError, match='data_fingerprint: saved'):
    train.run(make_mixed(**OPTIONS, data__sets=make_mixed().data.sets[::-1]),
              stopped, num_devices=1)
  moved = shutil.copytree(folders['few'], tmp_path / 'elsewhere' / 'few')
  resumed = train.run(make_mixed(**OPTIONS, data__sets=(
      f'words=beir:{folders["words"]}', f'few=beir:{moved}')), stopped,
                      num_devices=1)
  jax.tree.map(np.testing.assert_array_equal, final_state(stopped),
               final_state(workdir))
  assert tiny.losses(stopped) == tiny.losses(workdir)
  assert resumed['measures'] == results['measures']


def test_other_weights_are_no_resumption(run, make_mixed):
  with pytest.raises(ValueError, match=r'data.weights: saved \[1, 2\], now'):
    train.run(make_mixed(**OPTIONS | {'data__weights': (2, 1)}), run[0],
              num_devices=1)


@pytest.mark.parametrize('num_devices', [2, 4])
@pytest.mark.slow
def test_devices_change_no_loss(num_devices, run, make_mixed, tmp_path):
  train.run(make_mixed(**OPTIONS, evaluation__baselines=False,
                       encoding__chunk_size=0, encoding__buckets=(24,)),
            str(tmp_path), num_devices=num_devices)
  found, expected = (list(tiny.losses(str(path)).values())
                     for path in (tmp_path, run[0]))
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize('best', ['dev/nDCG@10', 'dev/few/nDCG@10'])
@pytest.mark.slow
def test_the_best_by_the_mean_or_a_set(best, make_mixed, tmp_path):
  results = train.run(make_mixed(
      checkpoint__best=best, evaluation__every=2,
      evaluation__baselines=False), str(tmp_path), num_devices=1)
  assert results['best']['measure'] == best
  assert results['measures']['dev'][best.removeprefix('dev/')] == (
      results['best']['value'])


def test_prompts_reach_the_texts_of_their_set_alone(make_mixed):
  options = dict(model__query_prompt='ka: ')
  plain = factory.build(make_mixed(**options), num_devices=1)
  made = factory.build(make_mixed(
      **options, data__query_prompts=('few=lo = mi: ',),
      data__target_prompts=('words=nu: ',)), num_devices=1)
  sets, length = made.dataset.sets, made.config.data.query_length
  for i, name in enumerate(NAMES):
    for kind, prompts, rows in (
        ('query', {'words': 'ka: ', 'few': 'lo = mi: '}, sets.queries(i)),
        ('target', {'words': 'nu: ', 'few': ''}, sets.corpus(i))):
      texts = getattr(made.dataset, 'query_texts' if kind == 'query'
                      else 'corpus_texts')[rows.start:rows.stop]
      expected, lengths = made.tokenizer.encode_batch(
          [prompts[name] + text for text in texts], length)
      tokens = getattr(made, f'{kind}_tokens')
      np.testing.assert_array_equal(tokens[np.array(rows)], expected)
      np.testing.assert_array_equal(tokens.lengths[np.array(rows)], lengths)
      same = np.array_equal(
          expected, getattr(plain, f'{kind}_tokens')[np.array(rows)])
      assert same == ((kind, name) in (('query', 'words'), ('target', 'few')))


@pytest.mark.slow
def test_questions_of_several_sets(make_config, tmp_path):
  """A reader is trained and measured on each, and their mean is taken."""
  folder = tiny.write_questions(str(tmp_path / 'questions'))
  results = train.run(make_config(
      'qa', data__path='', data__sets=tuple(
          f'{name}=beir:{folder}' for name in 'ab'),
      evaluation__baselines=False), str(tmp_path / 'run'), num_devices=1)
  for values in results['measures'].values():
    for measure in ('Answer@20', 'EM', 'F1'):
      assert values[measure] == values[f'a/{measure}'] == values[f'b/{measure}']


@pytest.mark.parametrize('options, message', [
    ({'data__sets': ('words:beir',)},
     r"sets=\('words:beir',\): expected NAME=SOURCE:PATH .* 'words:beir'"),
    ({'data__sets': ('a/b=beir:x',)}, 'NAME=SOURCE:PATH'),
    ({'data__sets': ('a=no:x',)}, "source='no' is not one of"),
    ({'data__sets': ('a=beir:',)}, 'source=beir needs'),
    ({'data__sets': ('a=beir:x', 'a=beir:y')}, "names two sets 'a'"),
    ({'data__path': 'x'}, r"data.path='x' is of one data set.*words.*few"),
    ({'data__corpus': 'x'}, "data.corpus='x' is of one data set"),
    ({'data__negatives': 'all'}, "negatives='all' is not one of .*own.*joint"),
    ({'data__weights': (1,)}, r'weights=\(1,\) must be .* each of the 2 sets'),
    ({'data__temperature': -1.}, 'temperature=-1.0 must be positive'),
    ({'data__query_prompts': ('others=x',)},
     r"query_prompts=\('others=x',\): .*words.*few.*got 'others=x'"),
    ({'data__target_prompts': ('few',)}, "NAME=PROMPT .*got 'few'"),
    ({'checkpoint__best': 'dev/others/nDCG@10', 'evaluation__every': 1},
     'is not measured during training; name one of .*dev/few/nDCG@10'),
    ({'checkpoint__best': 'dev/few/Answer@5', 'evaluation__every': 1},
     "'dev' of few has no answers"),
    ({'sampler__name': 'bucketed'}, "negatives='own' hides the rows"),
])
def test_what_cannot_be_is_refused(options, message, make_mixed):
  with pytest.raises(ValueError, match=message):
    factory.build(make_mixed(**options), num_devices=1)


def test_a_set_without_the_split_is_named(folders, make_mixed, tmp_path):
  folder = shutil.copytree(folders['few'], tmp_path / 'without')
  os.remove(folder / 'qrels' / 'dev.tsv')
  sets = (f'words=beir:{folders["words"]}', f'few=beir:{folder}')
  with pytest.raises(ValueError, match=(
      r"dev_split='dev' is not a split of the set 'few', which has "
      r"\['test', 'train'\]; every set needs it")):
    factory.build(make_mixed(data__sets=sets), num_devices=1)
  factory.build(make_mixed(data__sets=sets, data__dev_split=''), num_devices=1)


def test_options_of_several_sets_are_not_read_with_one(make_config):
  with pytest.warns(UserWarning, match='data.weights=.* is not read with'):
    factory.build(make_config('stale', data__weights=(1, 2)), num_devices=1)


@pytest.mark.slow
def test_the_command_line_names_sets(folders, cache, tmp_path, capfd):
  sets = ', '.join(f"'{name}=beir:{path}'" for name, path in folders.items())
  workdir = str(tmp_path / 'run')
  run_main('--config=configs/stale.py:tiny', f'--workdir={workdir}',
           '--allow_cpu', f'--config.data.sets=({sets})',
           '--config.data.weights=(1, 3)', '--config.num_steps=2',
           '--config.data.query_prompts=("few=query: ",)',
           f'--config.data.cache={cache}', '--config.data.num_targets=0',
           '--config.evaluation.baselines=False')
  with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as f:
    results = json.load(f)
  assert results['config']['data']['weights'] == [1, 3]
  assert 'Batches by set: words 25.0%, few 75.0%.' in capfd.readouterr().err
  assert set(NAMES) == {name.split('/')[0] for name in results['measures'][
      'test']} - set(measures_lib.MEASURES)


@pytest.mark.slow
def test_a_folder_takes_the_place_of_the_sets(folders, make_mixed):
  found = evaluate.of_config(make_mixed(
      data__weights=(1, 2), data__query_prompts=('few=ka: ',),
      evaluation__baselines=False), folder=folders['few'], names=['dev'])
  assert (found['data'], found['config']['data']['weights']) == ('few', ())
  assert set(found['measures']['dev']) == set(measures_lib.MEASURES)


def test_an_index_over_all_sets_measures_no_set_alone(run, tmp_path):
  with pytest.raises(ValueError, match="index=.* is over several sets"):
    evaluate.of_index(str(tmp_path), ['dev'], ['RR@10'], workdir=run[0])
