"""mteb measures our encoders by its own protocol, without an export."""

import json
import os
import shutil

import datasets
import numpy as np
import pytest

import retrieval_jax
from retrieval_jax import data
from retrieval_jax import trained as trained_lib
from retrieval_jax.jobs import train
from tests.experiments import tiny
from tests.models import bert_folder

_PROMPTED = {'model__query_prompt': 'kabel ', 'model__target_prompt': 'lodor '}


@pytest.fixture(scope='module', name='words')
def fixture_words(tmp_path_factory):
  return tiny.write_beir(str(tmp_path_factory.mktemp('data') / 'words'))


@pytest.fixture(scope='module', name='run')
def fixture_run(words, tmp_path_factory):
  """Returns (workdir, results) of a run with prompts and towers of its own."""
  workdir = str(tmp_path_factory.mktemp('runs') / 'words')
  config = tiny.config(
      'in_batch', words, str(tmp_path_factory.mktemp('cache')), num_steps=2,
      evaluation__baselines=False, model__tied=False, **_PROMPTED)
  return workdir, train.run(config, workdir, num_devices=1)


def columns(**of_columns):
  return datasets.Dataset.from_dict(of_columns)


def as_columns(folder):
  """Returns the corpus, queries and test judgements as mteb has them."""
  reader = data.BeirReader(folder)
  ids, texts = zip(*reader.corpus())
  query_ids, query_texts = zip(*reader.queries())
  qrels = {}
  for query, target, grade, _ in reader.qrels('test'):
    qrels.setdefault(query, {})[target] = grade
  judged = [i for i, name in enumerate(query_ids) if name in qrels]
  return (columns(id=ids, title=[''] * len(ids), text=texts),
          columns(id=[query_ids[i] for i in judged],
                  text=[query_texts[i] for i in judged]), qrels)


@pytest.mark.slow
def test_the_search_is_that_of_the_run(run, words):
  workdir, _ = run
  model = retrieval_jax.MtebSearch.of_run(workdir, 1)
  corpus, queries, _ = as_columns(words)
  model.index(corpus, task_metadata=None, encode_kwargs={'batch_size': 2})
  found = model.search(queries, top_k=7, task_metadata=None, num_proc=None)
  assert list(found) == queries['id']
  ours = trained_lib.open(workdir, 1).search(queries['text'], 7)
  for query, ids, scores in zip(queries['id'], ours.ids, ours.scores):
    assert list(found[query]) == ids
    assert list(found[query].values()) == pytest.approx(scores, abs=1e-5)
  # Not more than there are.
  assert all(len(of_query) == tiny.NUM_TARGETS for of_query in model.search(
      queries, top_k=1000).values())


def test_titles_and_instructions_are_part_of_the_text(run):
  model = retrieval_jax.MtebSearch.of_run(run[0], 1)
  score = lambda corpus, queries: model.index(corpus) or model.search(
      queries, top_k=1)['q']['d']
  plain = score(columns(id=['d'], text=['kabel lodor mifin']),
                columns(id=['q'], text=['nugus peham']))
  assert score(columns(id=['d'], title=['kabel'], text=['lodor mifin']),
               columns(id=['q'], text=['nugus'], instruction=['peham'])
               ) == pytest.approx(plain, abs=1e-6)
  assert score(columns(id=['d'], title=[None], text=['kabel lodor mifin']),
               columns(id=['q'], text=['nugus peham'], instruction=[None])
               ) == pytest.approx(plain, abs=1e-6)
  assert score(columns(id=['d'], title=['kabel'], text=['lodor mifin']),
               columns(id=['q'], text=['nugus'])) != pytest.approx(
                   plain, abs=1e-4)


def test_given_targets_are_ranked_and_no_others(run, words):
  model = retrieval_jax.MtebSearch.of_run(run[0], 1)
  corpus, queries, _ = as_columns(words)
  model.index(corpus)
  every = model.search(queries, top_k=1000)
  first = queries['id'][0]
  found = model.search(queries, top_k=2, top_ranked={
      first: ['d3', 'd1', 'd2']})
  expected = sorted(
      ['d1', 'd2', 'd3'], key=lambda name: -every[first][name])[:2]
  assert list(found[first]) == expected
  assert found[first] == pytest.approx(
      {name: every[first][name] for name in expected}, abs=1e-5)
  assert found[queries['id'][1]] == {}


@pytest.mark.parametrize('queries, message', [
    (columns(id=['q'], image=['x']), r"task of texts, got .*'image'"),
    (columns(id=['q'], text=[['first', 'second']]), 'task of conversations')])
def test_what_is_no_text_is_refused(queries, message, run, words):
  model = retrieval_jax.MtebSearch.of_run(run[0], 1)
  model.index(as_columns(words)[0])
  with pytest.raises(ValueError, match=message):
    model.search(queries, top_k=1)


def test_a_revision_is_of_all_that_changes_embeddings(run, tmp_path):
  """mteb returns the results that it keeps under a name and a revision."""
  workdir, _ = run
  first = retrieval_jax.MtebSearch.of_run(workdir, 1)
  moved = str(shutil.copytree(workdir, tmp_path / 'moved'))
  again = retrieval_jax.MtebSearch.of_run(moved, 1)
  assert first.revision == again.revision
  assert (first.name, again.name) == (
      'retrieval_jax/words', 'retrieval_jax/moved')
  seen = {first.revision}
  for name, section, option, value in (
      ('config', 'model', 'query_prompt', 'other '),
      ('config', 'model', 'target_prompt', 'other '),
      ('config', 'data', 'query_length', 12),
      ('config', 'data', 'target_length', 12),
      ('encoder', 'config', 'layer_norm_eps', 1e-3)):
    path = os.path.join(moved, f'{name}.json')
    with open(path, encoding='utf-8') as f:
      saved = json.load(f)
    with open(path, 'w', encoding='utf-8') as f:
      json.dump({**saved, section: {**saved[section], option: value}}, f)
    seen.add(retrieval_jax.MtebSearch.of_run(moved, 1).revision)
    with open(path, 'w', encoding='utf-8') as f:
      json.dump(saved, f)
  assert len(seen) == 6
  other = retrieval_jax.MtebSearch(
      again.name, again._config, again._tokenizer, again._model,
      {'query_tower': again._params['target_tower'],
       'target_tower': again._params['query_tower']}, again._mesh)
  assert other.revision not in seen


def test_a_folder_of_a_model_needs_no_data(tmp_path):
  folder = bert_folder.write(tmp_path / 'model')
  data.train_tokenizer(
      ['kabel lodor', 'mifin nugus'], bert_folder.SETTINGS['vocab_size']
  ).save(folder)
  model = retrieval_jax.MtebSearch.of_folder(str(folder), num_devices=1)
  assert model.name == 'retrieval_jax/model'
  model.index(columns(id=['a', 'b'], text=['kabel lodor', 'mifin nugus']))
  found = model.search(columns(id=['q'], text=['mifin nugus']), top_k=2)
  assert list(found['q']) == ['b', 'a']
  assert found['q']['b'] == pytest.approx(1, abs=1e-5)
  # Both lengths are the folder's; another is an option, and another revision.
  shorter = retrieval_jax.MtebSearch.of_folder(
      str(folder), {'data.query_length': 8}, 1)
  shorter.index(columns(id=['b'], text=['mifin nugus']))
  [[score]] = [of_query.values() for of_query in shorter.search(
      columns(id=['q'], text=['mifin nugus']), top_k=1).values()]
  assert score < 0.99 and shorter.revision != model.revision


@pytest.mark.slow
def test_rows_of_a_table_can_search_no_other_corpus(words, tmp_path):
  config = tiny.config('direct_gradient', words, str(tmp_path / 'cache'),
                       num_steps=1, evaluation__baselines=False)
  train.run(config, str(tmp_path / 'run'), num_devices=1)
  with pytest.raises(ValueError, match="targets.source='rows'"):
    retrieval_jax.MtebSearch.of_run(str(tmp_path / 'run'), 1)


def test_mteb_gives_the_measures_of_the_run(run, words, tmp_path):
  mteb = pytest.importorskip('mteb')
  from mteb.abstasks.retrieval import AbsTaskRetrieval
  from mteb.abstasks.task_metadata import TaskMetadata

  corpus, queries, qrels = as_columns(words)

  class Words(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name='Words', description='A query is one word and five backwards.',
        reference=None, dataset={'path': 'none', 'revision': '1'},
        type='Retrieval', category='t2t', modalities=['text'],
        eval_splits=['test'], eval_langs=['eng-Latn'], main_score='ndcg_at_10',
        date=None, domains=None, task_subtypes=None, license=None,
        annotations_creators=None, dialect=None, sample_creation=None,
        bibtex_citation=None)

    def load_data(self, **options):
      del options
      self.dataset = {'default': {'test': {
          'corpus': corpus, 'queries': queries, 'relevant_docs': dict(qrels),
          'top_ranked': None}}}
      self.data_loaded = True

  workdir, results = run
  model = retrieval_jax.MtebSearch.of_run(workdir, 1)
  assert isinstance(model, mteb.SearchProtocol)
  [found] = mteb.evaluate(
      model, Words(), cache=mteb.ResultCache(str(tmp_path / 'cache')),
      co2_tracker=False).task_results
  [scores] = found.scores['test']
  expected = results['measures']['test']
  for theirs, ours in (
      ('ndcg_at_10', 'nDCG@10'), ('mrr_at_10', 'RR@10'),
      ('recall_at_1', 'R@1'), ('recall_at_20', 'R@20'),
      ('recall_at_100', 'R@100')):
    assert scores[theirs] == pytest.approx(expected[ours], abs=1e-4), theirs
  meta = model.mteb_model_meta
  assert (meta.name, meta.revision) == (model.name, model.revision)
  assert (meta.embed_dim, meta.use_instructions) == (32, True)
  assert np.isclose(scores['main_score'], expected['nDCG@10'], atol=1e-4)


def test_without_mteb_the_message_says_what_to_install(run):
  try:
    import mteb  # noqa: F401
    pytest.skip('mteb is there')
  except ModuleNotFoundError:
    pass
  with pytest.raises(ModuleNotFoundError, match=r'retrieval_jax\[mteb\]'):
    retrieval_jax.MtebSearch.of_run(run[0], 1).mteb_model_meta  # noqa: B018
