"""Measures are those of ir-measures, over every judged query."""

import math
import os

from absl.testing import absltest
from absl.testing import parameterized
import ir_measures
import numpy as np

from retrieval_jax.evaluation import measures
from retrieval_jax.evaluation import runs
from retrieval_jax.evaluation import trec


def make_run(**answers):
  width = max(map(len, answers.values()))
  ids = np.full((len(answers), width), '', dtype=object)
  scores = np.zeros((len(answers), width), np.float32)
  for row, ranking in enumerate(answers.values()):
    for column, (corpus_id, score) in enumerate(ranking.items()):
      ids[row, column], scores[row, column] = corpus_id, score
  return runs.Run(tuple(answers), ids, scores)


class MeasuresTest(parameterized.TestCase):

  def test_closed_forms_on_one_query(self):
    run = make_run(q={'x': 3, 'a': 2, 'y': 1, 'b': 0})
    values = measures.evaluate(run, {'q': {'a': 2, 'b': 1}})
    self.assertEqual(set(values), set(measures.MEASURES))
    self.assertEqual(values['RR@10'], 1 / 2)
    self.assertEqual(values['R@1'], 0)
    self.assertEqual(values['R@20'], 1)
    self.assertEqual(values['Success@1'], 0)
    self.assertEqual(values['Success@20'], 1)
    found = 2 / math.log2(3) + 1 / math.log2(5)
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    self.assertAlmostEqual(values['nDCG@10'], found / ideal, places=6)

  def test_queries_without_results_count_zero(self):
    run = make_run(q={'a': 1}, none={})
    qrels = {'q': {'a': 1}, 'none': {'a': 1}, 'absent': {'b': 1}}
    values = measures.evaluate(run, qrels)
    self.assertAlmostEqual(values['RR@10'], 1 / 3)
    self.assertAlmostEqual(values['R@100'], 1 / 3)
    self.assertEqual(
        measures.per_query(run, qrels)['R@1'],
        {'q': 1.0, 'none': 0.0, 'absent': 0.0})

  def test_queries_that_are_not_judged_are_ignored(self):
    run = make_run(q={'a': 1}, other={'b': 1})
    self.assertEqual(measures.evaluate(run, {'q': {'a': 1}})['RR@10'], 1)

  def test_a_constant_scorer_gains_nothing_from_the_order_of_its_output(self):
    # Ties go by id: ascending in RR@k, descending elsewhere.
    passages = [f'{i:02d}' for i in range(40)]
    for order in (passages, passages[::-1], passages[17:] + passages[:17]):
      run = make_run(q=dict.fromkeys(order, 0.5))
      for relevant in ('00', '17', '39'):
        values = measures.evaluate(run, {'q': {relevant: 1}})
        rank = int(relevant) + 1
        self.assertEqual(values['RR@10'], 1 / rank if rank <= 10 else 0)
        self.assertEqual(values['Success@1'], float(relevant == '39'))
        self.assertEqual(values['R@20'], float(int(relevant) >= 20))

  @parameterized.parameters(-1, -2, 0)
  def test_junk_keeps_its_rank_like_a_passage_that_is_not_judged(self, grade):
    # 'x' and 'y' are ranked first and third; 'z' is not found.
    run = make_run(q={'x': 3, 'a': 2, 'y': 1, 'b': 0})
    relevant = {'a': 2, 'b': 1}
    junk = relevant | dict.fromkeys('xyz', grade)
    values = measures.evaluate(run, {'q': junk})
    self.assertEqual(values, measures.evaluate(run, {'q': relevant}))
    self.assertEqual(values['RR@10'], 1 / 2)  # 1 if 'x' were taken out

  def test_self_matches_are_dropped_only_when_asked(self):
    run = make_run(a={'a': 3, 'b': 2}, q={'c': 1})
    qrels = {'a': {'b': 1}, 'q': {'c': 1}}
    self.assertEqual(measures.evaluate(run, qrels)['RR@10'], 0.75)
    self.assertEqual(
        measures.evaluate(run, qrels, drop_self_matches=True)['RR@10'], 1)

  def test_the_written_files_give_the_same_numbers_on_the_command_line(self):
    rng = np.random.default_rng(0)
    ids = np.array([rng.permutation(30)[:12] for _ in range(9)])
    scores = rng.integers(0, 5, ids.shape).astype(np.float32)  # many ties
    query_ids = [f'q{i}' for i in range(9)]
    corpus_ids = [f'c{i}' for i in range(30)]
    run = runs.from_rows(query_ids, ids, scores, corpus_ids)
    qrels = measures.qrels_from_rows(
        np.repeat(np.arange(9), 3), rng.integers(0, 30, 27),
        rng.integers(0, 3, 27), query_ids, corpus_ids)
    folder = self.create_tempdir().full_path
    run_path, qrels_path = (os.path.join(folder, x) for x in ('run', 'qrels'))
    trec.write_run(run_path, run)
    trec.write_qrels(qrels_path, qrels)
    expected = ir_measures.calc_aggregate(
        [ir_measures.parse_measure(m) for m in measures.MEASURES],
        ir_measures.read_trec_qrels(qrels_path),
        ir_measures.read_trec_run(run_path))
    self.assertEqual(
        measures.evaluate(run, qrels),
        {str(measure): value for measure, value in expected.items()})

  def test_an_unknown_measure_is_named(self):
    with self.assertRaisesRegex(ValueError, "spelling of ir-measures.*'MR@1'"):
      measures.evaluate(make_run(q={'a': 1}), {'q': {'a': 1}}, ['MR@1'])

  def test_nothing_judged_is_an_error(self):
    with self.assertRaisesRegex(ValueError, 'at least one query, got none'):
      measures.evaluate(make_run(q={'a': 1}), {})

  def test_a_query_twice_in_a_run_is_an_error(self):
    run = runs.Run(
        ('q', 'q'), np.array([['a'], ['b']], object), np.ones((2, 1)))
    with self.assertRaisesRegex(ValueError, '2 rows of 1 queries'):
      measures.evaluate(run, {'q': {'a': 1}})


class RunTest(absltest.TestCase):

  def test_rows_become_ids_and_missing_rows_empty(self):
    run = runs.from_rows(['q'], np.array([[2, 0, -1]]), np.zeros((1, 3)), 'abc')
    np.testing.assert_array_equal(runs.to_rows(run, 'abc'), [[2, 0, -1]])
    with self.assertRaisesRegex(ValueError, "1 ids of another, such as 'c'"):
      runs.to_rows(run, 'ab')
    self.assertEqual(run.ids.tolist(), [['c', 'a', '']])
    [(query_id, ids, _)] = run.rankings()
    self.assertEqual((query_id, ids), ('q', ['c', 'a']))

  def test_top_cuts_columns(self):
    run = runs.from_rows(['q'], np.array([[2, 0]]), np.zeros((1, 2)), 'abc')
    self.assertEqual(run.top(1).ids.tolist(), [['c']])

  def test_dropping_self_matches_keeps_the_order_of_the_rest(self):
    run = make_run(a={'b': 3, 'a': 2, 'c': 1})
    self.assertEqual(
        runs.drop_self_matches(run).ids.tolist(), [['b', 'c', '']])

  def test_wrong_shapes_are_named(self):
    with self.assertRaisesRegex(ValueError, r'n=1 queries, got ids \(2, 1\)'):
      runs.Run(('q',), np.full((2, 1), '', object), np.zeros((2, 1)))

  def test_scores_that_are_not_finite_are_an_error(self):
    for value in ('nan', 'inf', '-inf'):
      with self.assertRaisesRegex(ValueError, f'got {value};'):
        make_run(q={'a': 1., 'b': float(value)})


if __name__ == '__main__':
  absltest.main()
