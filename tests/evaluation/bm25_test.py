"""The BM25 baseline equals its formula, and bm25s itself."""

import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import bm25s
import numpy as np

from retrieval_jax.evaluation import bm25

_WORDS = ('red', 'green', 'blue', 'cat', 'dog', 'bird', 'tree', 'stone')


def random_texts(num, seed):
  rng = np.random.default_rng(seed)
  return [' '.join(rng.choice(_WORDS, rng.integers(1, 9))) for _ in range(num)]


class Bm25Test(parameterized.TestCase):

  def test_scores_are_the_formula(self):
    corpus = ['red cat', 'red red dog bird', 'stone']
    rows, scores = bm25.bm25_run(
        corpus, ['red dog'], 3, k1=0.9, b=0.4, progress=False)
    mean = 7 / 3
    idf = lambda df: math.log(1 + (3 - df + 0.5) / (df + 0.5))
    part = lambda tf, length: tf / (tf + 0.9 * (0.6 + 0.4 * length / mean))
    np.testing.assert_array_equal(rows, [[1, 0, -1]])
    np.testing.assert_allclose(
        scores[0, :2],
        [idf(2) * part(2, 4) + idf(1) * part(1, 4), idf(2) * part(1, 2)],
        rtol=1e-5)
    self.assertEqual(scores[0, 2], -np.inf)

  @parameterized.parameters('lucene', 'robertson', 'atire')
  def test_every_score_is_that_of_bm25s(self, method):
    corpus, queries = random_texts(60, 0), random_texts(20, 1)
    rows, scores = bm25.bm25_run(
        corpus, queries, 60, method=method, progress=False)
    index = bm25s.BM25(k1=0.9, b=0.4, method=method)
    index.index(bm25s.tokenize(corpus, show_progress=False),
                show_progress=False)
    for i, query in enumerate(queries):
      expected = index.get_scores(query.split())
      found = rows[i] >= 0
      np.testing.assert_allclose(
          scores[i][found], expected[rows[i][found]], rtol=1e-5)
      self.assertEqual(found.sum(), np.count_nonzero(expected))

  def test_equal_scores_are_ordered_by_row_also_at_the_cut(self):
    rows, _ = bm25.bm25_run(
        ['red cat'] * 9 + ['red'], ['red', 'cat'], 4, progress=False)
    np.testing.assert_array_equal(rows, [[9, 0, 1, 2], [0, 1, 2, 3]])

  def test_chunks_do_not_change_the_answers(self):
    corpus, queries = random_texts(50, 2), random_texts(30, 3)
    whole = bm25.bm25_run(corpus, queries, 7, progress=False)
    for bound in (1, 200):
      with mock.patch.object(bm25, '_CHUNK_POSTINGS', bound):
        parts = bm25.bm25_run(corpus, queries, 7, progress=False)
      np.testing.assert_array_equal(whole[0], parts[0])
      np.testing.assert_array_equal(whole[1], parts[1])

  def test_lemmas_count_as_often_as_asked(self):
    corpus = random_texts(40, 4)
    repeated = bm25.bm25_run(
        corpus, ['cat cat cat dog'], 40, progress=False)
    boosted = bm25.bm25_run(
        corpus, ['cat dog'], 40, lemmas=['cat'], lemma_repeats=3,
        progress=False)
    np.testing.assert_array_equal(repeated[0], boosted[0])
    np.testing.assert_allclose(repeated[1], boosted[1], rtol=1e-6)

  def test_queries_without_a_known_word_find_nothing(self):
    for corpus in (['red', 'cat'], ['the', '']):
      rows, scores = bm25.bm25_run(corpus, ['', 'unseen'], 5, progress=False)
      np.testing.assert_array_equal(rows, np.full((2, 2), -1))
      np.testing.assert_array_equal(scores, np.full((2, 2), -np.inf))

  def test_no_queries_give_no_rows(self):
    rows, _ = bm25.bm25_run(['red'], [], 5, progress=False)
    self.assertEqual(rows.shape, (0, 1))

  @parameterized.parameters(
      (dict(method='bm25+'), "method.*got 'bm25\\+'"),
      (dict(k=0), 'k >= 1'),
      (dict(corpus_texts=[]), 'at least one text'),
      (dict(lemmas=['a', 'b']), r'per query \(1\), got 2'),
      (dict(lemma_repeats=0), 'lemma_repeats >= 1'),
  )
  def test_wrong_arguments_are_named(self, changed, message):
    arguments = dict(corpus_texts=['red'], query_texts=['red'], k=1) | changed
    with self.assertRaisesRegex(ValueError, message):
      bm25.bm25_run(**arguments)


if __name__ == '__main__':
  absltest.main()
