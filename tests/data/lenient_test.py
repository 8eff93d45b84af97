"""What is wrong with judgements is refused, or dropped and counted if asked."""

import json
import os
import shutil

from absl import flags
import numpy as np
import pytest

from experiments import adapt
from experiments import bm25
from experiments import convert
from experiments import evaluate
from experiments import mine
from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax.data import dropped
from retrieval_jax.data import embeddings
from retrieval_jax.data import lenient
from retrieval_jax.jobs import evaluate as evaluate_job
from retrieval_jax.jobs import train
from tests.data import fakes
from tests.experiments import tiny

_HEADER = 'query-id\tcorpus-id\tscore\n'


def call(script, *arguments):
  values = flags.FlagValues()
  script.define_flags(values)
  script.main(values([script.__name__, *arguments]), values)


def records(*triples):
  return [(query, target, grade, f'file:{line}')
          for line, (query, target, grade) in enumerate(triples, 1)]


def dirty(folder):
  """Adds to the dev and test judgements in a folder what is refused."""
  for split, first in (('dev', 64), ('test', 76)):
    path = os.path.join(folder, 'qrels', f'{split}.tsv')
    with open(path, encoding='utf-8') as f:
      text = f.read()
    with open(path, 'w', encoding='utf-8') as f:
      # The grade that counts is the highest, wherever it stands.
      query, target, _ = text.splitlines()[1].split('\t')
      f.write(text.replace(_HEADER, f'{_HEADER}{query}\t{target}\t0\n'))
      f.write(f'\nnobody\td0\t1\nq{first}\tnothing\t1\nq{first + 1}\tno\t0\n'
              f'q0\td0\t0\nq1\td0\t-1\n')
  return folder


EXPECTED = {'unknown_queries': 1, 'unknown_targets': 2, 'repeated': 1,
            'without_positive': 2}


@pytest.fixture(scope='module', name='clean')
def fixture_clean(tmp_path_factory):
  return tiny.write_beir(str(tmp_path_factory.mktemp('clean') / 'words'))


@pytest.fixture(scope='module', name='soiled')
def fixture_soiled(clean, tmp_path_factory):
  return dirty(shutil.copytree(
      clean, str(tmp_path_factory.mktemp('soiled') / 'words')))


@pytest.fixture(scope='module', name='cache')
def fixture_cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp('cache'))


def test_the_highest_grade_stays_and_each_kind_is_counted():
  kept, counts = lenient.keep(records(
      ('q1', 'd1', 0), ('q2', 'd1', 1), ('q1', 'd1', 2), ('q1', 'd1', 1),
      ('q1', 'd2', -1), ('x', 'd1', 1), ('q2', 'x', 1), ('x', 'x', 1),
      ('q3', 'x', 1), ('q4', 'd1', 0), ('q4', 'd2', -1)),
      {'q1', 'q2', 'q3', 'q4'}, {'d1', 'd2'})
  assert kept == [('q1', 'd1', 2, 'file:3'), ('q2', 'd1', 1, 'file:2'),
                  ('q1', 'd2', -1, 'file:5')]
  assert counts == {'unknown_queries': 2, 'unknown_targets': 2, 'repeated': 2,
                    'without_positive': 2}
  assert set(counts) < set(dropped.MEANINGS)


@pytest.mark.parametrize('line, message', [
    ('nobody\td0\t1', "'nobody' is not in the queries"),
    ('q64\tnothing\t1', "'nothing' is not in the corpus"),
    ('q0\td0\t0', "have no target with a score above 0 .first: 'q0'"),
    (None, 'are judged 3 here but 1 further up')])
def test_each_is_refused_unless_asked_otherwise(line, message, clean, tmp_path):
  folder = shutil.copytree(clean, str(tmp_path / 'words'))
  path = os.path.join(folder, 'qrels', 'dev.tsv')
  with open(path, encoding='utf-8') as f:
    first = f.read().splitlines()[1]
  with open(path, 'a', encoding='utf-8') as f:
    f.write(line or first[:-1] + '3')
  reader = data.BeirReader(folder)
  with pytest.raises(data.DataError, match=rf'dev.tsv:14: .*{message}'):
    data.prepare(reader, str(tmp_path / 'cache'), progress=False)
  found = data.prepare(
      data.Lenient(reader), str(tmp_path / 'cache'), progress=False)
  assert sum(found.dropped['dev'].values()) == 1
  assert len(found.qrels['dev'].queries()) == tiny.NUM_QUERIES['dev']


def test_prepared_data_are_the_clean_ones_and_say_what_was_dropped(
    clean, soiled, cache):
  expected = data.prepare(data.BeirReader(clean), cache, progress=False)
  assert expected.dropped == {}
  for _ in range(2):  # the second time from the cache
    with pytest.warns(UserWarning, match=(
        "words, split '(dev|test)', is read leniently: without 1 judgements of "
        'unknown queries, 2 .* unknown targets, 1 repeated .*, 2 queries')):
      found = data.prepare(
          data.Lenient(data.BeirReader(soiled)), cache, progress=False)
    assert found.dropped['train'] == dict.fromkeys(EXPECTED, 0)
    assert found.dropped['dev'] == found.dropped['test'] == EXPECTED
    for split in ('train', 'dev', 'test'):
      for field in ('query_rows', 'corpus_rows', 'grades'):
        np.testing.assert_array_equal(
            getattr(found.qrels[split], field),
            getattr(expected.qrels[split], field))


def test_a_part_of_the_data_is_read_leniently_too(soiled, cache, clean):
  part = lambda folder, make: data.prepare(
      data.Subset(make(data.BeirReader(folder)), 80), cache, progress=False)
  with pytest.warns(UserWarning, match='leniently'):
    found = part(soiled, data.Lenient)
  expected = part(clean, lambda reader: reader)
  assert list(found.query_ids) == list(expected.query_ids)
  assert found.dropped['dev'] == EXPECTED


def test_candidates_of_unknown_ids_are_dropped(tmp_path):
  folder = fakes.write_beir(str(tmp_path / 'beir'))
  fakes.write_candidates(folder)
  with open(os.path.join(folder, 'candidates', 'train.tsv'), 'a',
            encoding='utf-8') as f:
    f.write('q1\tno\t1\nno\td1\t1\n')
  reader = data.BeirReader(folder)
  with pytest.raises(data.DataError, match="'no' is not in the corpus"):
    data.prepare(reader, str(tmp_path / 'cache'), progress=False)
  with pytest.warns(UserWarning, match='2 candidates of unknown'):
    found = data.prepare(
        data.Lenient(reader), str(tmp_path / 'cache'), progress=False)
  assert found.dropped['train']['unknown_candidates'] == 2
  assert len(found.candidates['train'].scores) == len(fakes.CANDIDATES)


@pytest.mark.slow
def test_training_and_evaluation_report_what_was_dropped(
    clean, soiled, cache, tmp_path):
  options = dict(num_steps=1, evaluation__baselines=False)
  make = lambda folder, **more: tiny.config(
      'in_batch', folder, cache, **options, **more)
  with pytest.raises(data.DataError, match='judged 1 here but 0'):
    train.run(make(soiled), str(tmp_path / 'refused'), num_devices=1)
  with pytest.warns(UserWarning, match='leniently'):
    results = train.run(
        make(soiled, data__lenient=True), str(tmp_path / 'run'), num_devices=1)
  expected = train.run(make(clean), str(tmp_path / 'clean'), num_devices=1)
  assert results['measures'] == expected['measures']
  with open(tmp_path / 'run' / 'results.json', encoding='utf-8') as f:
    assert json.load(f)['dropped']['test'] == EXPECTED
  assert expected['dropped'] == {}
  os.remove(tmp_path / 'run' / 'results.json')
  with pytest.warns(UserWarning, match='leniently'):
    evaluate_job.run(str(tmp_path / 'run'), names=['test'])
  with open(tmp_path / 'run' / 'results.json', encoding='utf-8') as f:
    assert json.load(f)['dropped']['test'] == EXPECTED
  with pytest.warns(UserWarning, match='leniently'):
    found = evaluate_job.of_config(make(soiled, data__lenient=True))
  assert found['dropped']['test'] == EXPECTED


def test_convert_and_bm25_read_leniently(
    clean, soiled, cache, tmp_path, capsys):
  out = str(tmp_path / 'out')
  call(convert, '--source=beir', f'--path={soiled}', f'--out={out}',
       '--lenient')
  printed = capsys.readouterr().out
  assert 'train, dropped: nothing.' in printed
  assert 'dev, dropped: 1 judgements of unknown queries, 2' in printed
  found, expected = (data.BeirReader(folder) for folder in (out, clean))
  for split in ('train', 'dev', 'test'):
    assert sorted(found.qrels(split))[0][:3] == sorted(
        expected.qrels(split))[0][:3]
    assert len(list(found.qrels(split))) == len(list(expected.qrels(split)))
  of_bm25 = lambda folder, *more: call(
      bm25, '--source=beir', f'--path={folder}', f'--cache={cache}', *more)
  with pytest.raises(SystemExit, match='judged 1 here but 0 further up'):
    of_bm25(soiled)
  with pytest.warns(UserWarning, match='leniently'):
    of_bm25(soiled, '--lenient')
  lenient_measures = capsys.readouterr().out
  of_bm25(clean)
  assert capsys.readouterr().out == lenient_measures


@pytest.fixture(name='embedded')
def fixture_embedded(soiled, tmp_path):
  """Returns a folder of random embeddings with the judgements as they are."""
  folder = tmp_path / 'embeddings'
  folder.mkdir()
  rng = np.random.default_rng(0)
  reader = data.BeirReader(soiled)
  for side, file, column in (('targets', 'target_ids', reader.corpus),
                             ('queries', 'query_ids', reader.queries)):
    ids = [name for name, _ in column()]
    vectors = rng.normal(size=(len(ids), 8)).astype(np.float32)
    np.save(folder / f'{side}.npy',
            vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    embeddings.write_ids(str(folder / f'{file}.txt'), ids)
  shutil.copytree(os.path.join(soiled, 'qrels'), folder / 'qrels')
  return str(folder)


@pytest.mark.filterwarnings('ignore:.*is read leniently')
def test_folders_of_embeddings_are_read_leniently(embedded, tmp_path, capsys):
  given = f'--embeddings={embedded}'
  fit = ['--method=xs', '--lambdas=0.5', f'--out={tmp_path}/adapted', given]
  for refused in (
      [adapt, *fit], [mine, given, '--splits=dev', f'--out={tmp_path}/mined']):
    with pytest.raises(SystemExit, match='judged 1 here but 0 further up'):
      call(*refused)
    call(*refused, '--lenient')
  with open(tmp_path / 'adapted' / 'results.json', encoding='utf-8') as f:
    facts = json.load(f)
  assert facts['dropped']['test'] == facts['dropped']['dev'] == EXPECTED
  assert facts['num_test_queries'] == tiny.NUM_QUERIES['test']
  with open(tmp_path / 'mined' / 'mining.json', encoding='utf-8') as f:
    assert json.load(f)['dropped'] == {'dev': EXPECTED}
  of_index = [evaluate, f'--index={tmp_path}/adapted/xs', given,
              '--splits=test']
  with pytest.raises(SystemExit, match='judged 1 here but 0 further up'):
    call(*of_index)
  call(*of_index, '--lenient')
  assert 'test at' in capsys.readouterr().out


@pytest.mark.parametrize('script', [evaluate, mine])
def test_a_config_has_an_option_of_its_own(script, tmp_path):
  arguments = ['--workdir=x', '--lenient']
  if script is mine:
    arguments.append(f'--out={tmp_path}/out')
  with pytest.raises(SystemExit, match='it is --config.data.lenient=True'):
    call(script, *arguments)


def test_make_reader_reads_leniently_when_asked(clean):
  assert isinstance(factory.make_reader('beir', clean, ''), data.BeirReader)
  assert isinstance(
      factory.make_reader('beir', clean, '', lenient=True), data.Lenient)
