"""Mining: the same negatives from every index, in bounded memory."""

import dataclasses
import json
import os
import tracemalloc

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from retrieval_jax import data
from retrieval_jax import indexes
from retrieval_jax import mining
from retrieval_jax import sharding
from retrieval_jax.evaluation import trec
from retrieval_jax.mining import formats

_RULES = mining.Rules(3, range_min=1, relative_margin=0.05, max_score=0.9)


def _unit(seed, *shape):
  vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@dataclasses.dataclass
class _Slow:
  """An index in numpy, which remembers what it was asked for."""
  asked: list = dataclasses.field(default_factory=list)

  def build(self, targets):
    return targets

  def search(self, state, queries, k, exclude=None):
    self.asked.append((len(queries), k, exclude))
    scores = queries @ state.T
    ids = np.argsort(-scores, axis=1)[:, :k]
    return np.take_along_axis(scores, ids, axis=1), ids.astype(np.int32)


def _world(num_queries, num_targets=300, dim=16):
  """Returns targets, queries near their positives, and judgements."""
  targets = _unit(0, num_targets, dim)
  rng = np.random.default_rng(1)
  triples = []
  for row in range(num_queries):
    # One to four positives, so that the most are not everybody's.
    triples += [(row, target, 1) for target in rng.choice(
        num_targets, 1 + row % 4, replace=False)]
  qrels = data.Qrels.from_triples(triples)
  queries = np.stack([targets[qrels.positives(row)[0]]
                      for row in range(num_queries)])
  return targets, queries + 0.5 * _unit(2, num_queries, dim), qrels


def _mine(index, world, *, rules=_RULES, batch_size=8, **options):
  targets, queries, qrels = world
  results = mining.IndexResults(index, queries, targets, index.build(targets))
  return mining.mine(results, qrels, [f'q{i}' for i in range(len(queries))],
                     rules, batch_size=batch_size, **options)


class MineTest(parameterized.TestCase):

  def assert_same(self, found, expected):
    for one, other in zip(found, expected):
      if isinstance(one, dict):
        self.assertEqual(one, other)
      else:
        np.testing.assert_array_equal(one, other)

  @parameterized.parameters('exact on 1', 'exact on 4', 'faiss')
  def test_every_index_gives_the_same_negatives_bit_for_bit(self, name):
    world = _world(40)
    if name == 'faiss':
      pytest.importorskip('faiss')
      index = indexes.FaissFlat(batch_size=16)
    else:
      index = indexes.ExactIndex(
          sharding.make_mesh(int(name[-1])), 64, batch_size=16)
    expected = _mine(_Slow(), world)
    self.assert_same(_mine(index, world), expected)
    self.assertGreater(expected.removed['relative_margin'], 0)

  def test_batches_and_sampling_change_nothing(self):
    world = _world(23)
    for rules in (_RULES, dataclasses.replace(_RULES, sampling='random')):
      whole = _mine(_Slow(), world, rules=rules, batch_size=100)
      for batch_size in (1, 7):
        self.assert_same(
            _mine(_Slow(), world, rules=rules, batch_size=batch_size), whole)

  def test_no_known_target_comes_out_and_the_window_is_full(self):
    targets, queries, qrels = _world(40)
    rules = mining.Rules(5)
    # What is barred stands on top of the results of every query.
    best = np.argsort(-queries @ targets.T, axis=1)
    junk, own = best[:, :3], best[:, 4]
    triples = {(q, t): -1 for q in range(40) for t in junk[q]} | {
        (int(q), int(t)): 1 for q, t in zip(qrels.query_rows,
                                            qrels.corpus_rows)}
    qrels = data.Qrels.from_triples([(*pair, g) for pair, g in triples.items()])
    index = _Slow()
    found = _mine(index, (targets, queries, qrels), rules=rules, own=own,
                  twins={int(t): np.asarray([5, 6]) for t in range(300)})
    barred = np.concatenate([qrels.padded_known(np.arange(40)),
                             own[:, None], np.full((40, 2), [5, 6])], 1)
    for row in range(40):
      expected = [t for t in best[row] if t not in barred[row]][:5]
      self.assertEqual(found.ids[row].tolist(), expected)
    most = (qrels.padded_known([0]).shape[1] + 1
            + 2 * qrels.padded_positives([0]).shape[1])
    self.assertEqual({k for _, k, _ in index.asked}, {5 + most})
    self.assertGreater(found.removed['same text'], 0)
    self.assertGreater(found.removed['same id'], 0)

  def test_a_copy_of_a_positive_scores_exactly_as_it(self):
    targets, queries, qrels = _world(8, dim=50)
    targets = np.concatenate([targets, targets[qrels.padded_positives(
        np.arange(8))[:, 0]]])  # at other places, of other alignment
    found = _mine(indexes.ExactIndex(sharding.make_mesh(2), 64),
                  (targets, queries, qrels), rules=mining.Rules(
                      1, range_max=5, max_score=2., margin_to='highest'))
    np.testing.assert_array_equal(found.ids[:, 0], 300 + np.arange(8))
    np.testing.assert_array_equal(
        found.scores[:, 0], np.nanmax(found.positive_scores, axis=1))

  def test_memory_is_that_of_a_batch_and_of_the_answer(self):
    def peak(num_queries, batch_size):
      world = _world(num_queries, num_targets=500, dim=64)
      tracemalloc.start()
      try:
        mined = _mine(_Slow(), world, batch_size=batch_size)
        answer = sum(x.nbytes for x in mined[:-1])
        return tracemalloc.get_traced_memory()[1] - answer
      finally:
        tracemalloc.stop()
    rows = _RULES.end + 4  # known positives
    # A batch's embeddings are gathered, and the slow index has 500 scores.
    for batch_size in (16, 64):
      one_batch = batch_size * (rows * 64 + 3 * 500) * 4
      self.assertLess(peak(1000, batch_size), 2 * one_batch + 2**18)
    self.assertGreater(peak(1000, 1000), 1000 * rows * 64 * 4)

  def test_listed_results_know_the_scores_of_the_positives_among_them(self):
    results = mining.Listed(
        np.asarray([[3, 1, -1], [0, 2, 4]], np.int32),
        np.asarray([[5, 4, -np.inf], [3, 2, 1]], np.float32))
    np.testing.assert_array_equal(
        results.score(np.asarray([1, 0]), np.asarray([[2, 3], [1, -1]])),
        [[2, -np.inf], [4, np.nan]])
    qrels = data.Qrels.from_triples([(0, 1, 1), (1, 2, 1), (1, 3, 1)])
    found = mining.mine(results, qrels, ['a', 'b'], mining.Rules(2),
                        batch_size=1)
    np.testing.assert_array_equal(found.ids, [[3, -1], [0, 4]])
    np.testing.assert_array_equal(found.scores, [[5, -np.inf], [3, 1]])


class FormatsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    nothing, unknown = np.nan, -np.inf
    self.mined = mining.Mined(
        query_rows=np.asarray([0, 2, 3]),
        positives=np.asarray([[0, 1], [2, -1], [3, -1]]),
        positive_scores=np.float32(
            [[.75, unknown], [.5, nothing], [.1, nothing]]),
        ids=np.asarray([[4, 3], [0, -1], [-1, -1]]),
        scores=np.float32([[.3, .25], [.2, unknown], [unknown, unknown]]),
        removed={})
    self.names = data.Collection(
        name='', qrels={}, query_ids=['qä', 'q1', 'q2', 'q3'],
        corpus_ids=['d0', 'd1', 'd2', 'd 3', 'd4'],
        query_texts=['Ä?', 'one?', 'two?', 'three?'],
        corpus_texts=['zero', 'one', 'two', 'thr\nee', '4'])

  def read(self, form):
    path = formats.write(self.create_tempdir().full_path, 'train', form,
                         self.mined, self.names)
    self.assertEqual(os.path.basename(os.path.dirname(path)), form)
    with open(path, encoding='utf-8') as f:
      return path, f.read()

  @parameterized.parameters(*formats.FORMATS)
  def test_every_format_writes_lines_and_says_what_it_needs(self, form):
    path, text = self.read(form)
    chosen = formats.FORMATS[form]
    self.assertEqual(os.path.basename(path), f'train{chosen.suffix}')
    self.assertTrue(text.endswith('\n'))
    self.assertNotIn('q1', text)  # was not mined
    if chosen.suffix == '.jsonl':
      self.assertIn('Ä', text)  # readable, not escaped
      for line in text.splitlines():
        self.assertIsInstance(json.loads(line), dict)
    without = dataclasses.replace(
        self.names, query_texts=None, corpus_texts=None)
    folder = self.create_tempdir().full_path
    if chosen.needs_texts:
      with self.assertRaisesRegex(ValueError, f'{form}. holds texts'):
        formats.write(folder, 'train', form, self.mined, without)
      self.assertEmpty(os.listdir(folder))
    else:
      again = formats.write(folder, 'train', form, self.mined, without)
      with open(again, encoding='utf-8') as f:
        self.assertEqual(f.read(), text)

  def test_candidates_hold_positives_and_negatives_with_scores(self):
    self.assertEqual(
        self.read('candidates')[1],
        'query-id\tcorpus-id\tscore\nqä\td0\t0.75\nqä\td1\t\nqä\td4\t0.3\n'
        'qä\td 3\t0.25\nq2\td2\t0.5\nq2\td0\t0.2\nq3\td 3\t0.1\n')

  @parameterized.parameters(
      ('tevatron', [
          dict(query_id='qä', query_text='Ä?',
               positive_document_ids=['d0', 'd1'],
               negative_document_ids=['d4', 'd 3']),
          dict(query_id='q2', query_text='two?', positive_document_ids=['d2'],
               negative_document_ids=['d0'])]),
      ('tevatron-v1', [
          dict(query_id='qä', query='Ä?', positive_passages=[
              dict(docid='d0', title='', text='zero'),
              dict(docid='d1', title='', text='one')], negative_passages=[
                  dict(docid='d4', title='', text='4'),
                  dict(docid='d 3', title='', text='thr\nee')]),
          dict(query_id='q2', query='two?', positive_passages=[
              dict(docid='d2', title='', text='two')], negative_passages=[
                  dict(docid='d0', title='', text='zero')])]),
      ('triplet', [
          dict(anchor='Ä?', positive='zero', negative='4'),
          dict(anchor='Ä?', positive='zero', negative='thr\nee'),
          dict(anchor='Ä?', positive='one', negative='4'),
          dict(anchor='Ä?', positive='one', negative='thr\nee'),
          dict(anchor='two?', positive='two', negative='zero')]),
      ('n-tuple', [
          dict(anchor='Ä?', positive='zero', negative_1='4',
               negative_2='thr\nee'),
          dict(anchor='Ä?', positive='one', negative_1='4',
               negative_2='thr\nee')]))
  def test_lines_are_those_of(self, form, expected):
    found = [json.loads(line) for line in self.read(form)[1].splitlines()]
    self.assertEqual(found, expected)
    self.assertEqual([list(x) for x in found], [list(x) for x in expected])

  def test_a_trec_run_holds_the_negatives(self):
    run = trec.read_run(self.read('trec')[0])
    self.assertEqual(run.query_ids, ('qä', 'q2'))
    self.assertEqual(run.ids.tolist(), [['d4', 'd 3'], ['d0', '']])


if __name__ == '__main__':
  absltest.main()
