"""What every reader must do, and what `beir_folder` makes of it."""

import os

import pytest

from configs import base
from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax.data import beir_folder
from retrieval_jax.data.readers import wordnet_files
from tests.data import formats

IDS = ('beir', 'beir, answers', 'ir_datasets', 'msmarco', 'questions', 'trec',
       'tevatron', 'tevatron, ids', 'hf', 'hf, parquet', 'tfds')  # have ids
NO_NEGATIVES = ('beir', 'beir, answers', 'questions', 'trec')
ANSWERS = ('beir, answers', 'dpr', 'hf', 'questions', 'tevatron', 'tfds')


@pytest.fixture(autouse=True)
def fixture_surroundings(tmp_path_factory, monkeypatch):
  """Keeps Hugging Face's cache in a folder, and all of WordNet in a split."""
  monkeypatch.setattr(wordnet_files, 'SPLITS', {'train': 1.0})
  try:
    import datasets
  except ModuleNotFoundError:
    return
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE',
                      tmp_path_factory.mktemp('hub'))


@pytest.fixture(name='reader', params=formats.WRITERS)
def fixture_reader(request, tmp_path):
  return formats.make_reader(request.param, str(tmp_path / 'data'))


def candidates(reader, split):
  """Returns the candidates of a split, without where they stand."""
  if hasattr(reader, 'candidates'):
    return [row[:3] for row in reader.candidates(split)]
  return []


def answers(reader, split):
  """Returns the answers of a split, without where they stand."""
  if hasattr(reader, 'answers'):
    return [(name, list(texts)) for name, texts, _ in reader.answers(split)]
  return []


def read_candidates(folder, split):
  """Returns the rows of candidates/SPLIT.tsv; [] where there is none."""
  path = os.path.join(folder, 'candidates', f'{split}.tsv')
  if not os.path.exists(path):
    return []
  with open(path, encoding='utf-8', newline='\n') as file:
    header, *lines = file.read().splitlines()
  assert header == 'query-id\tcorpus-id\tscore'
  assert lines  # else there is no file
  rows = [line.split('\t') for line in lines]
  return [(q, c, float(score) if score else None) for q, c, score in rows]


def test_every_registered_format_has_a_fixture():
  assert {name.split(',')[0] for name in formats.WRITERS} == set(
      factory.READERS)


def test_wordnet_lies_in_the_cache_unless_it_has_a_path():
  path = lambda given: factory.make_reader('wordnet', given, '/cache').data_dir
  assert path('') == '/cache/tfds'
  assert path('/mine') == '/mine'


def test_iterators_start_afresh(reader):
  for column in (reader.corpus, reader.queries):
    first = column()
    next(first)
    assert list(column()) == list(column())
    assert len(list(first)) == len(list(column())) - 1
  for split in reader.splits:
    assert list(reader.qrels(split)) == list(reader.qrels(split))
    assert candidates(reader, split) == candidates(reader, split)
    assert answers(reader, split) == answers(reader, split)


def test_judgements_and_candidates_name_records(reader):
  ids = {column: [name for name, _ in getattr(reader, column)()]
         for column in ('corpus', 'queries')}
  for names in ids.values():
    assert len(set(names)) == len(names)
  for split in reader.splits:
    assert list(reader.qrels(split))
    for query_id, corpus_id, *_ in (
        *reader.qrels(split), *candidates(reader, split)):
      assert query_id in ids['queries'] and corpus_id in ids['corpus']


def test_where_names_different_places(reader):
  for column in ('corpus', 'queries'):
    size = len(list(getattr(reader, column)()))
    places = {reader.where(column, row) for row in range(size)}
    assert all(any(c.isdigit() for c in place) for place in places)
    assert places - {reader.where(column, 0)}
    assert reader.where(column, size)  # an empty column has a name too


@pytest.mark.parametrize('name', formats.WRITERS)
def test_the_fingerprint_is_that_of_the_contents(name, tmp_path):
  folder = str(tmp_path / 'data')
  before = formats.make_reader(name, folder).fingerprint()
  if name not in ('wordnet', 'tfds'):  # array_record: new bytes every time
    assert formats.make_reader(name, folder).fingerprint() == before
  changed = formats.make_reader(name, folder, 'the FIRST text')
  assert any('the FIRST text' in text for _, text in changed.corpus())
  assert changed.fingerprint() != before


def test_prepare_takes_it(reader, tmp_path):
  prepared = data.prepare(reader, str(tmp_path / 'cache'), progress=False)
  assert list(zip(prepared.corpus_ids, prepared.corpus_texts)) == list(
      reader.corpus())
  assert sorted(prepared.qrels) == sorted(reader.splits)


def test_converted_it_reads_the_same(reader, tmp_path):
  out = str(tmp_path / 'out')
  counts = beir_folder.write(reader, out)
  again = data.BeirReader(out)
  assert list(again.corpus()) == list(reader.corpus())
  assert list(again.queries()) == list(reader.queries())
  assert sorted(again.splits) == sorted(reader.splits)
  for split in reader.splits:
    qrels = [row[:3] for row in reader.qrels(split)]
    assert [row[:3] for row in again.qrels(split)] == qrels
    assert counts[f'{split} judgements'] == len(qrels)
    assert read_candidates(out, split) == candidates(reader, split)
    assert answers(again, split) == answers(reader, split)
  assert counts['targets'] == len(list(reader.corpus()))
  if not any(candidates(reader, split) for split in reader.splits):
    assert not os.path.exists(os.path.join(out, 'candidates'))


def test_a_config_names_the_format_and_the_path(tmp_path):
  config = base.get_config('tiny')
  config.data.update(
      source='tevatron', cache=str(tmp_path / 'cache'), dev_split='',
      path=formats.write_tevatron(str(tmp_path / 'data'), formats.FIRST))
  prepared = factory.make_dataset(config)
  assert sorted(prepared.corpus_ids) == list(formats.PASSAGES)
  config.data.path = ''
  with pytest.raises(ValueError, match='source=tevatron needs --config.data.p'):
    factory.make_dataset(config)


@pytest.mark.parametrize('name', [
    'beir', 'msmarco', 'trec', 'dpr', 'tevatron', 'tevatron, ids', 'pairs',
    'pairs, tsv'])
def test_a_file_that_is_not_utf8_is_named(name, tmp_path):
  folder = str(tmp_path / 'data')
  formats.make_reader(name, folder)
  paths = [os.path.join(at, file) for at, _, files in os.walk(folder)
           for file in files]
  for path in paths:
    with open(path, 'rb') as file:
      content = file.read()
    with open(path, 'wb') as file:
      file.write('é\t'.encode('latin-1') + content)
    with pytest.raises(data.DataError, match=f'{path}:.* utf-8'):
      data.prepare(factory.make_reader(name.split(',')[0], folder, ''),
                   str(tmp_path / 'cache'), progress=False)
    with open(path, 'wb') as file:
      file.write(content)


@pytest.mark.parametrize('name', IDS)
def test_formats_with_ids_agree(name, tmp_path):
  reader = formats.make_reader(name, str(tmp_path / 'data'))
  assert dict(reader.corpus()) == {n: formats.text(n) for n in formats.PASSAGES}
  assert dict(reader.queries()) == {
      row[0]: row[1] for rows in formats.ROWS.values() for row in rows}
  for split, rows in formats.ROWS.items():
    assert [row[:3] for row in reader.qrels(split)] == [
        (row[0], n, 1) for row in rows for n in row[2]]
    if name not in NO_NEGATIVES:
      assert candidates(reader, split) == [
          (row[0], n, None) for row in rows for n in row[3]]


@pytest.mark.parametrize('name', formats.WRITERS)
def test_formats_with_answers_agree(name, tmp_path):
  reader = formats.make_reader(name, str(tmp_path / 'data'))
  queries = dict(reader.queries())
  for split, rows in zip(('train', 'test'), formats.ROWS.values()):
    found = {queries[query]: texts for query, texts in answers(
        reader, split if split in reader.splits else reader.splits[0])}
    expected = {row[1]: formats.ANSWERS[row[0]] for row in rows}
    assert found == (expected if name in ANSWERS else {})


@pytest.mark.parametrize('name', ['dpr', 'pairs', 'pairs, tsv'])
def test_formats_without_ids_agree_on_texts(name, tmp_path):
  reader = formats.make_reader(name, str(tmp_path / 'data'))
  texts, queries = dict(reader.corpus()), dict(reader.queries())
  splits = ('train', 'test') if name != 'pairs, tsv' else reader.splits
  assert len(splits) == len(reader.splits)
  for split, rows in zip(splits, formats.ROWS.values()):
    assert {(queries[q], texts[c]) for q, c, *_ in reader.qrels(split)} == {
        (row[1], formats.text(n)) for row in rows for n in row[2]}
    assert {(queries[q], texts[c]) for q, c, _ in candidates(reader, split)
           } == {(row[1], formats.text(n)) for row in rows for n in row[3]}


@pytest.mark.parametrize('name', formats.WRITERS)
def test_an_unknown_split_is_named(name, tmp_path):
  reader = formats.make_reader(name, str(tmp_path / 'data'))
  with pytest.raises((data.DataError, ValueError), match='nope'):
    list(reader.qrels('nope'))
