"""Tests of the readers of other libraries' sets, beside `readers_test`."""

import os
import sys
from unittest import mock

import pytest

from retrieval_jax import data
from retrieval_jax.data import errors
from retrieval_jax.data.readers import tfds as tfds_reader
from tests.data import fakes
from tests.data import formats


@pytest.mark.parametrize('module, extra, make', [
    ('datasets', 'hf', data.hugging_face.make_reader),
    ('ir_datasets', 'ir_datasets', data.IrDatasetsReader)])
def test_an_absent_package_is_named_with_its_extra(module, extra, make):
  with mock.patch.dict(sys.modules, {module: None}):
    with pytest.raises(ModuleNotFoundError, match=(
        rf"{module}.* Run `pip install 'retrieval_jax\[{extra}\]'`")):
      make('/nowhere')


class TestHuggingFace:

  @pytest.fixture(name='datasets', autouse=True)
  def fixture_datasets(self, tmp_path_factory, monkeypatch):
    datasets = pytest.importorskip('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE',
                        tmp_path_factory.mktemp('hub'))
    return datasets

  def test_a_set_of_the_hub_is_asked_for_by_name(
      self, datasets, monkeypatch):
    asked = []

    def load_dataset(name, config, keep_in_memory):
      assert not keep_in_memory
      asked.append((name, config))
      rows = (formats.document_rows(formats.FIRST) if name == 'me/docs'
              else formats.id_rows('train'))
      return datasets.DatasetDict(train=datasets.Dataset.from_list(rows))

    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    reader = data.hugging_face.make_reader('me/set:pair,me/docs')
    assert asked == [('me/set', 'pair'), ('me/docs', None)]
    assert reader.name == 'set:pair'
    assert reader.splits == ('train',)
    assert len(list(reader.corpus())) == len(formats.PASSAGES)
    assert reader.where('queries', 1) == 'me/set:pair,me/docs:train[1]'

  def test_what_cannot_be_loaded_is_named(
      self, datasets, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, 'load_dataset', mock.Mock(
        side_effect=ConnectionError('no network')))
    with pytest.raises(errors.DataError, match='me/set: .*: no network'):
      data.hugging_face.make_reader('me/set')
    with pytest.raises(errors.DataError, match='expected what `save_to_disk`'):
      data.hugging_face.make_reader(str(tmp_path))

  def test_files_of_other_kinds_are_read(self, tmp_path):
    fakes.write(str(tmp_path / 'train.csv'),
                'query,positive\na,"b, ""c"""\n')
    fakes.write(str(tmp_path / 'test.jsonl'),
                fakes.jsonl([{'query': 'd', 'positive': 'e'}]))
    reader = data.hugging_face.make_reader(str(tmp_path))
    assert reader.splits == ('test', 'train')
    assert [t for _, t in reader.corpus()] == ['e', 'b, "c"']

  def test_fields_of_text_files_are_the_texts_that_stand_there(self, tmp_path):
    texts = ['null', 'NA', 'None', 'nan', '1_0', '1e3', 'True', ' x ', '-',
             '2009-01-01', 'two\nlines']
    fakes.write(str(tmp_path / 'pairs' / 'train.csv'), 'query,positive,neg\n'
                + ''.join(f'"{text}","to {text}","{text}"\n' for text in texts))
    fakes.write(str(tmp_path / 'days' / 'train.jsonl'), fakes.jsonl(
        {'query': '2009-01-01', 'positive': f'2009-01-{day}'}
        for day in (10, 11)))
    fakes.write(str(tmp_path / 'docs' / 'corpus.csv'),
                'docid,text\n007,a\n7,b\n7.0,c\nNA,d\n')
    fakes.write(str(tmp_path / 'ids' / 'train.jsonl'), fakes.jsonl([
        {'query_id': '01', 'query': 'q', 'positive_document_ids': ['007'],
         'negative_document_ids': ['NA']}]))
    make = lambda *names: data.hugging_face.make_reader(
        ','.join(str(tmp_path / name) for name in names))
    pairs = make('pairs')
    assert [text for _, text in pairs.queries()] == texts
    assert [text for _, text in pairs.corpus()] == [
        t for text in texts for t in (f'to {text}', text)]
    assert len(list(pairs.candidates('train'))) == len(texts)
    assert pairs.where('queries', 1) == f'{tmp_path}/pairs/train.csv:3'
    assert [text for _, text in make('days').corpus()] == [
        '2009-01-10', '2009-01-11']
    ids = make('ids', 'docs')
    assert list(ids.corpus()) == [
        ('007', 'a'), ('7', 'b'), ('7.0', 'c'), ('NA', 'd')]
    assert [row[:2] for row in ids.qrels('train')] == [('01', '007')]
    assert [row[:2] for row in ids.candidates('train')] == [('01', 'NA')]

  def test_sets_of_the_hub_that_are_csv_files_are_refused(
      self, datasets, monkeypatch):
    found = datasets.DatasetDict(
        train=datasets.Dataset.from_list([{'query': 'a', 'positive': 'b'}]))
    found['train'].info.builder_name = 'csv'
    monkeypatch.setattr(datasets, 'load_dataset', lambda *_, **__: found)
    with pytest.raises(errors.DataError, match='me/set: is made of CSV files'):
      data.hugging_face.make_reader('me/set')

  def test_a_split_has_one_format(self, tmp_path):
    for kind in ('csv', 'jsonl'):
      fakes.write(str(tmp_path / f'train.{kind}'), '')
    with pytest.raises(errors.DataError, match="'train' is there as csv"):
      data.hugging_face.make_reader(str(tmp_path))

  def test_the_corpus_has_one_split(self, tmp_path):
    for name in ('mine', 'docs'):
      for split in ('a', 'b'):
        fakes.write(str(tmp_path / name / f'{split}.jsonl'),
                    '{"query": "a", "positive": "b"}\n')
    mine, docs = str(tmp_path / 'mine'), str(tmp_path / 'docs')
    with pytest.raises(errors.DataError, match="docs: expected one .*got a, b"):
      data.hugging_face.make_reader(f'{mine},{docs}')
    with pytest.raises(errors.DataError, match='two .* got 3'):
      data.hugging_face.make_reader(f'{mine},{docs},{docs}')


class TestTfds:

  def test_what_cannot_be_loaded_is_named(self, tmp_path):
    for path in (str(tmp_path), 'no_such_set_of_tfds'):
      with pytest.raises(errors.DataError, match=f'{path}: TFDS cannot load'):
        tfds_reader.make_reader(path)

  @pytest.mark.parametrize('damage', [
      lambda content: b'', lambda content: content[:-9],
      lambda content: content.replace(b'fifth', b'FIFTH')])
  def test_damaged_records_are_named(self, damage, tmp_path):
    reader = formats.make_reader('tfds', str(tmp_path / 'data'))
    [path] = (tmp_path / 'data').rglob('tiny-everything*')
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(errors.DataError, match=(
        rf'{path.parent}: TFDS cannot read it: .*complete')):
      list(reader.corpus())

  def test_the_stored_format_must_be_readable(self, tmp_path):
    folder = str(tmp_path / 'data')
    path = formats.write_tfds(folder, formats.FIRST).split(',')[0]
    assert tfds_reader.make_reader(path).splits == ('train', 'test')
    info = os.path.join(path, 'dataset_info.json')
    with open(info, encoding='utf-8') as file:
      text = file.read()
    fakes.write(info, text.replace('array_record', 'tfrecord').replace(
        'ARRAY_RECORD', 'TFRECORD'))
    with pytest.raises(errors.DataError, match='array_record, got tfrecord'):
      tfds_reader.make_reader(path)

  def test_the_corpus_has_one_split(self, tmp_path):
    mine, docs = formats.write_tfds(
        str(tmp_path / 'data'), formats.FIRST).split(',')
    with pytest.raises(errors.DataError, match='expected one split.* train'):
      tfds_reader.make_reader(f'{docs},{mine}')
    with pytest.raises(errors.DataError, match='two .* got 3'):
      tfds_reader.make_reader(f'{mine},{docs},{docs}')


class TestIrDatasets:

  @pytest.fixture(name='ir_datasets', autouse=True)
  def fixture_ir_datasets(self):
    return pytest.importorskip('ir_datasets')

  @pytest.fixture(name='ids')
  def fixture_ids(self, tmp_path):
    return formats.write_ir_datasets(str(tmp_path), formats.FIRST)

  def test_splits_have_names(self, ids):
    train, test = ids.split(',')
    reader = data.IrDatasetsReader(f'a={train},b={test}')
    assert reader.splits == ('a', 'b')
    assert [row[:3] for row in reader.qrels('b')] == [('q3', '4', 1)]
    with pytest.raises(errors.DataError, match="'train' is named twice"):
      data.IrDatasetsReader(f'{train},{train}')

  def test_scored_documents_win_over_pairs(self, ir_datasets, ids, tmp_path):
    fakes.write(str(tmp_path / 'x.run'), 'q1 Q0 3 1 2.5 x\n')
    train = ir_datasets.load(ids.split(',')[0])
    name = f'{tmp_path.name}/scored'
    ir_datasets.registry.register(name, ir_datasets.Dataset(
        train.docs_handler(), train.queries_handler(), train.qrels_handler(),
        train.docpairs_handler(), ir_datasets.formats.TrecScoredDocs(
            ir_datasets.util.LocalDownload(str(tmp_path / 'x.run')))))
    reader = data.IrDatasetsReader(name)
    assert [row[:3] for row in reader.candidates('scored')] == [
        ('q1', '3', 2.5), ('q1', '4', None), ('q2', '5', None)]

  def test_unusable_ids_are_named(self, ir_datasets, ids, tmp_path):
    with pytest.raises(errors.DataError, match='knows no such id'):
      data.IrDatasetsReader('no/such')
    train, _ = ids.split(',')
    name = f'{tmp_path.name}/other'
    path = str(tmp_path / 'collection.tsv')
    ir_datasets.registry.register(
        f'{name}/docs', ir_datasets.create_dataset(docs_tsv=path))
    with pytest.raises(errors.DataError, match='other/docs: .*has no queries'):
      data.IrDatasetsReader(f'{name}/docs')
    ir_datasets.registry.register(f'{name}/all', ir_datasets.create_dataset(
        docs_tsv=path, queries_tsv=str(tmp_path / 'queries.train.tsv'),
        qrels_trec=str(tmp_path / 'qrels.train.tsv')))
    with pytest.raises(errors.DataError, match='same documents, but .*have ot'):
      data.IrDatasetsReader(f'{train},{name}/all')
