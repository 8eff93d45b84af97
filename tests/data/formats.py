"""One tiny dataset, written in every format that we read.

Its splits are train and test; formats without ids hash the texts.
"""

import json
import os
import shutil

import pytest

from retrieval_jax import factory
from tests.data import fakes

FIRST = 'the first text'
# Title and text; a text may hold line ends that are none in a file.
PASSAGES = {'1': ('A "title"', FIRST),
            '2': ('', 'ünïcode\u2028text, "quoted"'),
            '3': ('', 'third'), '4': ('T', 'fourth\x85'), '5': ('', 'fifth')}
# Query id, query, positives, negatives.
ROWS = {
    'train': [('q1', 'which is first?', ['1'], ['3', '4']),
              ('q2', 'où "est" ça?', ['2', '1'], ['5'])],
    'test': [('q3', '最後', ['4'], [])]}

ANSWERS = {'q1': ['First', '1'], 'q2': ['là'], 'q3': ['"4th"', 'fourth', 'T']}


def text(name, first=FIRST):
  """Returns the text of a passage as a reader yields it."""
  title, body = passage(name, first)
  return f'{title} {body}' if title else body


def passage(name, first):
  """Returns (title, text) of a passage."""
  title, body = PASSAGES[name]
  return title, first if name == '1' else body


def _tsv(folder, name, rows):
  fakes.write(os.path.join(folder, name),
              ''.join('\t'.join(map(str, row)) + '\n' for row in rows))


def write_beir(folder, first):
  fakes.write(os.path.join(folder, 'corpus.jsonl'), fakes.jsonl(
      {'_id': name, 'title': passage(name, first)[0],
       'text': passage(name, first)[1]} for name in PASSAGES))
  fakes.write(os.path.join(folder, 'queries.jsonl'), fakes.jsonl(
      {'_id': row[0], 'text': row[1]} for rows in ROWS.values()
      for row in rows))
  for split, rows in ROWS.items():
    _tsv(folder, f'qrels/{split}.tsv', [
        (row[0], name, 1) for row in rows for name in row[2]])
  return folder


def write_beir_answers(folder, first):
  write_beir(folder, first)
  for split, rows in ROWS.items():
    fakes.write(os.path.join(folder, 'answers', f'{split}.jsonl'), fakes.jsonl(
        {'_id': row[0], 'answers': ANSWERS[row[0]]} for row in rows))
  return folder


def write_questions(folder, first):
  """Questions in two forms, whose passages are beside them."""
  rows = ROWS['train']
  fakes.write(os.path.join(folder, 'x-train.jsonl'), fakes.jsonl(
      {'_id': row[0], 'question': row[1], 'answer': ANSWERS[row[0]],
       'passages': row[2]} for row in rows))
  fakes.write(os.path.join(folder, 'test.json'), json.dumps({
      'Data': [{'QuestionId': row[0], 'Question': row[1], 'Answer': {
          'Value': ANSWERS[row[0]][0], 'Aliases': ANSWERS[row[0]]},
                'positive_document_ids': row[2]} for row in ROWS['test']],
      'Domain': 'Web', 'Version': 1.0}, indent=2))
  fakes.write(os.path.join(folder, 'corpus.jsonl'),
              fakes.jsonl(document_rows(first)))
  return folder


def write_msmarco(folder, first):
  _tsv(folder, 'collection.tsv', [(n, text(n, first)) for n in PASSAGES])
  for split, rows in ROWS.items():
    _tsv(folder, f'queries.{split}.tsv', [row[:2] for row in rows])
    _tsv(folder, f'qrels.{split}.tsv', [
        (row[0], 0, name, 1) for row in rows for name in row[2]])
  _tsv(folder, 'qidpidtriples.train.full.2.tsv', [
      (row[0], row[2][0], name) for row in ROWS['train'] for name in row[3]])
  return folder


def write_trec(folder, first):
  """MS MARCO's files with runs in place of triples, and BEIR's texts."""
  write_beir(folder, first)
  shutil.rmtree(os.path.join(folder, 'qrels'))
  for split, rows in ROWS.items():
    fakes.write(os.path.join(folder, f'qrels.{split}.txt'), ''.join(
        f'{row[0]} 0  {name} 1\n' for row in rows for name in row[2]))
  fakes.write(os.path.join(folder, 'run.train.txt'), ''.join(
      f'{row[0]} Q0 {name} {rank} {-rank / 3} bm25\n' for row in ROWS['train']
      for rank, name in enumerate(row[2] + row[3], 1)))
  return folder


def dpr_rows(split, first):
  """Returns a split as DPR's records; passage 5 has no id."""
  ctx = lambda name: {
      'title': passage(name, first)[0], 'text': passage(name, first)[1],
      **({'passage_id': name} if name != '5' else {}), 'score': 1000}
  return [{'question': query, 'answers': ANSWERS[query_id],
           'positive_ctxs': list(map(ctx, positives)), 'negative_ctxs': [],
           'hard_negative_ctxs': list(map(ctx, negatives))}
          for query_id, query, positives, negatives in ROWS[split]]


def write_dpr(folder, first):
  for split in ROWS:
    fakes.write(os.path.join(folder, f'biencoder-nq-{split}.json'),
                json.dumps(dpr_rows(split, first), indent=2))
  return folder


def nested_rows(split, first):
  """Returns a split in the first form of Tevatron."""
  ctx = lambda name: {'docid': name, 'title': passage(name, first)[0],
                      'text': passage(name, first)[1]}
  return [{'query_id': name, 'query': query, 'answers': ANSWERS[name],
           'positive_passages': list(map(ctx, positives)),
           'negative_passages': list(map(ctx, negatives))}
          for name, query, positives, negatives in ROWS[split]]


def id_rows(split):
  """Returns a split in the second form of Tevatron."""
  return [{'query_id': name, 'query_text': query,
           'positive_document_ids': positives,
           'negative_document_ids': negatives}
          for name, query, positives, negatives in ROWS[split]]


def document_rows(first):
  return [{'docid': name, 'document_text': text(name, first)}
          for name in PASSAGES]


def text_rows(split, first):
  """Returns a split as rows of texts."""
  return [{'anchor': query, 'positive': [text(n, first) for n in positives],
           'negative_1': text(negatives[0]) if negatives else None,
           'negative_2': text(negatives[1]) if negatives[1:] else None}
          for _, query, positives, negatives in ROWS[split]]


def write_tevatron(folder, first):
  for split in ROWS:
    fakes.write(os.path.join(folder, f'{split}.jsonl'),
                fakes.jsonl(nested_rows(split, first)))
  return folder


def write_tevatron_ids(folder, first):
  for split in ROWS:
    fakes.write(os.path.join(folder, f'{split}.jsonl'),
                fakes.jsonl(id_rows(split)))
  fakes.write(os.path.join(folder, 'corpus.jsonl'),
              fakes.jsonl(document_rows(first)))
  return folder


def write_pairs(folder, first):
  for split in ROWS:
    fakes.write(os.path.join(folder, f'{split}.jsonl'),
                fakes.jsonl(text_rows(split, first)))
  return folder


def write_triples(folder, first):
  """Triples of texts in one file, as MS MARCO's."""
  path = os.path.join(folder, 'triples.train.small.tsv')
  _tsv(folder, 'triples.train.small.tsv', [
      (query, text(positive, first), text(negative))
      for _, query, positives, negatives in ROWS['train']
      for positive in positives for negative in negatives])
  return path


def write_saved(folder, first):
  """What `save_to_disk` of Hugging Face's datasets writes."""
  datasets = pytest.importorskip('datasets')
  shutil.rmtree(folder, ignore_errors=True)
  datasets.DatasetDict({
      split: datasets.Dataset.from_list(nested_rows(split, first))
      for split in ROWS}).save_to_disk(folder)
  return folder


def write_parquet(folder, first):
  """Two folders of Parquet files: rows of ids, and their corpus."""
  datasets = pytest.importorskip('datasets')
  mine = os.path.join(folder, 'mine'), os.path.join(folder, 'docs')
  for path in mine:
    os.makedirs(path, exist_ok=True)
  for split in ROWS:
    for i, row in enumerate(id_rows(split)):
      datasets.Dataset.from_list([row]).to_parquet(os.path.join(
          mine[0], f'{split}-{i:05}-of-{len(ROWS[split]):05}.parquet'))
  datasets.Dataset.from_list(document_rows(first)).to_parquet(
      os.path.join(mine[1], 'train.parquet'))
  return ','.join(mine)


def write_tfds(folder, first):
  """Two TFDS builders: nested rows, and their corpus."""
  import tensorflow_datasets as tfds
  text_feature = tfds.features.Text
  passages = tfds.features.Sequence(
      {name: text_feature() for name in ('docid', 'title', 'text')})
  features = {
      'queries': {'query_id': text_feature(), 'query': text_feature(),
                  'answers': tfds.features.Sequence(text_feature()),
                  'positive_passages': passages,
                  'negative_passages': passages},
      'documents': {'docid': text_feature(), 'document_text': text_feature()}}
  records = {
      'queries': {split: nested_rows(split, first) for split in ROWS},
      'documents': {'everything': document_rows(first)}}
  shutil.rmtree(folder, ignore_errors=True)

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = 'tiny'
    code_path = None  # see wordnet_tfds
    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name)
                       for name in features]

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, disable_shuffling=True,
          features=tfds.features.FeaturesDict(
              features[self.builder_config.name]))

    def _split_generators(self, dl_manager):
      return {split: enumerate(rows) for split, rows in
              records[self.builder_config.name].items()}

    def _generate_examples(self):
      raise AssertionError  # the splits are given already

  for name in features:
    Builder(data_dir=folder, config=name,
            file_format='array_record').download_and_prepare()
  return ','.join(os.path.join(folder, 'tiny', name, '1.0.0')
                  for name in features)


def write_ir_datasets(folder, first):
  """A set per split, registered under names with the folder in them."""
  ir_datasets = pytest.importorskip('ir_datasets')
  write_msmarco(folder, first)
  path = lambda name: os.path.join(folder, name)
  name = f'{folder.strip("/")}/{{}}'.format
  if name('test') not in ir_datasets.registry:
    docs = ir_datasets.create_dataset(
        docs_tsv=path('collection.tsv')).docs_handler()
    for split in ROWS:
      judged = ir_datasets.create_dataset(
          queries_tsv=path(f'queries.{split}.tsv'),
          qrels_trec=path(f'qrels.{split}.tsv'))
      pairs = ir_datasets.formats.TsvDocPairs(
          ir_datasets.util.LocalDownload(
              path('qidpidtriples.train.full.2.tsv')))
      ir_datasets.registry.register(name(split), ir_datasets.Dataset(
          docs, judged.queries_handler(), judged.qrels_handler(),
          pairs if split == 'train' else None))
  return ','.join(map(name, ROWS))


def write_wordnet(folder, first):
  """The copy of a WordNet that has one split: set `wordnet_files.SPLITS`."""
  from retrieval_jax.data.readers import wordnet_tfds
  shutil.rmtree(folder, ignore_errors=True)
  synsets = fakes.write_wordnet(os.path.join(folder, 'wordnet'))
  path = os.path.join(synsets, 'data.noun')
  with open(path, encoding='utf-8') as file:
    nouns = file.read()
  fakes.write(path, nouns.replace('a tangible thing', first))
  wordnet_tfds.build(folder, synsets)
  return folder


WRITERS = {
    'beir': write_beir,
    'beir, answers': write_beir_answers,
    'dpr': write_dpr,
    'hf': write_saved,
    'hf, parquet': write_parquet,
    'ir_datasets': write_ir_datasets,
    'msmarco': write_msmarco,
    'pairs': write_pairs,
    'pairs, tsv': write_triples,
    'questions': write_questions,
    'tevatron': write_tevatron,
    'tevatron, ids': write_tevatron_ids,
    'tfds': write_tfds,
    'trec': write_trec,
    'wordnet': write_wordnet,
}
"""'FORMAT' or 'FORMAT, what is special' -> writer; each format has one."""


def make_reader(name, folder, first=FIRST):
  """Writes the dataset in format `name` to `folder`; returns its reader."""
  return factory.make_reader(
      name.split(',')[0], WRITERS[name](folder, first), folder)
