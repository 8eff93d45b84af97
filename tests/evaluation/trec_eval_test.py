"""Measures are those of trec_eval, called directly, and of MS MARCO's script.

On random runs with everything that makes evaluators differ: equal scores,
queries without results or without judgements, graded and junk judgements,
passages that are the query itself.
"""

import os

import ml_collections
import numpy as np
import pytest

from retrieval_jax import data
from retrieval_jax.evaluation import measures
from retrieval_jax.evaluation import runs
from retrieval_jax.evaluation import trec
from retrieval_jax.jobs import evaluate

pytrec_eval = pytest.importorskip('pytrec_eval')

# Ours -> trec_eval's, which has no reciprocal rank with a cutoff.
NAMES = {
    'nDCG@10': 'ndcg_cut_10', 'nDCG@3': 'ndcg_cut_3', 'nDCG': 'ndcg',
    'R@1': 'recall_1', 'R@20': 'recall_20', 'R@100': 'recall_100',
    'Success@1': 'success_1', 'Success@20': 'success_20', 'P@5': 'P_5',
    'AP': 'map', 'RR': 'recip_rank'}
QUERIES = [f'q{i}' for i in range(14)]
# Ids of both kinds overlap, and order of text and of number differ.
CORPUS = [*QUERIES[:8], *(f'd{i}' for i in range(40))]


def by_trec_eval(answers, qrels):
  """Returns measure -> mean over judged queries, as `trec_eval -c` does."""
  asked = {'ndcg_cut.3,10', 'ndcg', 'recall.1,20,100', 'success.1,20', 'P.5',
           'map', 'recip_rank'}
  found = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(answers)
  return {ours: sum(of_query[theirs] for of_query in found.values())
          / len(qrels) for ours, theirs in NAMES.items()}


def by_msmarco(answers, qrels, cutoff=10):
  """Returns the mean reciprocal rank, equal scores by ascending id."""
  total = 0
  for query, judged in qrels.items():
    ranking = sorted(answers.get(query, {}).items(),
                     key=lambda item: (-item[1], item[0]))
    ranks = [rank for rank, (name, _) in enumerate(ranking[:cutoff], 1)
             if judged.get(name, 0) > 0]
    total += 1 / ranks[0] if ranks else 0
  return total / len(qrels)


def random_run(rng):
  """Returns a run of some queries; half of the scores have an equal one."""
  queries = [q for q in QUERIES if rng.random() < 0.8]
  rows = np.array([rng.permutation(len(CORPUS))[:30] for _ in queries])
  rows = np.where(rng.random(rows.shape) < 0.1, -1, rows)
  scores = rng.choice([0.1, 0.5, 0.7, 1 / 3, 2 / 3], rows.shape)
  scores = np.where(rng.random(rows.shape) < 0.3,
                    rng.normal(size=rows.shape), scores).astype(np.float32)
  return runs.from_rows(queries, rows, scores, CORPUS)


def random_qrels(rng):
  """Returns [J, 3] distinct judgements; every judged query has an answer."""
  grades = {}
  for query in rng.permutation(len(QUERIES))[:11].tolist():
    for row in rng.permutation(len(CORPUS))[:rng.integers(1, 9)].tolist():
      grades[query, row] = int(rng.integers(-1, 4))
    grades[query, row] = int(rng.integers(1, 4))
  return np.array([(*pair, grade) for pair, grade in grades.items()])


def as_dicts(run, qrels):
  answers = {query: dict(zip(ids, scores.astype(float).tolist()))
             for query, ids, scores in run.rankings() if ids}
  judged = measures.qrels_from_rows(*qrels.T, QUERIES, CORPUS)
  return answers, judged


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('drop', [False, True])
def test_random_runs_get_the_numbers_of_trec_eval(seed, drop):
  rng = np.random.default_rng(seed)
  run, qrels = random_run(rng), random_qrels(rng)
  answers, judged = as_dicts(run, qrels)
  if drop:
    answers = {query: {name: score for name, score in found.items()
                       if name != query} for query, found in answers.items()}
  # trec_eval takes junk for a passage that is judged, as good as grade 0.
  expected = by_trec_eval(answers, judged)
  expected['RR@10'] = by_msmarco(answers, judged)
  found = measures.evaluate(
      run, judged, list(expected), drop_self_matches=drop)
  assert found == pytest.approx(expected, abs=1e-6)


def test_the_runs_hold_what_evaluators_differ_in():
  """Otherwise the test above would show little."""
  rng = np.random.default_rng(0)
  run, qrels = random_run(rng), random_qrels(rng)
  answers, judged = as_dicts(run, qrels)
  assert set(judged) - set(answers) and set(answers) - set(judged)
  assert any(query in found for query, found in answers.items())
  expected = by_trec_eval(answers, judged)
  # The order of the output in place of that of the ids; queries left out.
  ranked = {query: {name: -place for place, name in enumerate(
      sorted(found, key=lambda name: -found[name]))}
            for query, found in answers.items()}
  assert by_trec_eval(ranked, judged)['nDCG@10'] != pytest.approx(
      expected['nDCG@10'], abs=1e-4)
  found = {query: judged[query] for query in judged if query in answers}
  assert by_trec_eval(answers, found)['nDCG@10'] != pytest.approx(
      expected['nDCG@10'], abs=1e-4)


@pytest.mark.parametrize('drop', [False, True])
def test_a_run_file_gives_the_numbers_that_are_reported(drop, tmp_path):
  """By trec_eval, from the file and the judgements of the data set."""
  rng = np.random.default_rng(3)
  words = [f'w{a}' for a in 'abcdefghijkl']
  text = lambda: ' '.join(rng.choice(words, 6))
  qrels = random_qrels(rng)
  # Queries are passages of the corpus, as in ArguAna, and find themselves.
  texts = [text() for _ in CORPUS]
  dataset = data.Collection(
      name='', corpus_ids=CORPUS, query_ids=QUERIES, corpus_texts=texts,
      query_texts=[texts[i] if i < 8 else text() for i in range(len(QUERIES))],
      qrels={'test': data.Qrels.from_triples(qrels)})
  config = ml_collections.ConfigDict({
      'data': {'dev_split': '', 'test_split': 'test'},
      'evaluation': {'depth': 12, 'drop_self_matches': drop}})
  experiment = type('Experiment', (), dict(
      config=config, dataset=dataset, own_sets=None))
  reported = evaluate.of_bm25(
      experiment, measures=['nDCG@10', 'R@20', 'AP', 'RR@10'],
      workdir=str(tmp_path))['test']
  with open(os.path.join(tmp_path, 'test.run'), encoding='utf-8') as f:
    answers = pytrec_eval.parse_run(f)
  assert any(query in found for query, found in answers.items()) != drop
  assert max(map(len, answers.values())) == 12
  judged = measures.qrels_from_rows(*qrels.T, QUERIES, CORPUS)
  expected = by_trec_eval(answers, judged)
  assert reported == pytest.approx({
      **{name: expected[name] for name in ('nDCG@10', 'R@20', 'AP')},
      'RR@10': by_msmarco(answers, judged)}, abs=1e-6)
  assert trec.read_run(str(tmp_path / 'test.run')).ids.shape[1] == 12
