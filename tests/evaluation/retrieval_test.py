"""Full-corpus search returns what brute force returns."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax import sharding
from retrieval_jax.evaluation import retrieval


class BruteForce:
  """An index that follows the protocol."""

  def build(self, targets):
    return np.asarray(targets)

  def search(self, state, queries, k, exclude=None):
    scores = queries @ state.T
    if exclude is not None:
      for row, rows in zip(scores, exclude):
        row[rows[rows >= 0]] = -np.inf
    rows = np.argsort(-scores, axis=1, kind='stable')[:, :k]
    scores = np.take_along_axis(scores, rows, axis=1)
    return scores, np.where(np.isneginf(scores), -1, rows)


class RetrievalTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.queries = rng.normal(size=(7, 4)).astype(np.float32)
    self.targets = rng.normal(size=(11, 4)).astype(np.float32)
    self.names = {'query_ids': [f'q{i}' for i in range(7)],
                  'corpus_ids': [f'c{i}' for i in range(11)]}

  def test_the_run_is_that_of_brute_force(self):
    run = retrieval.search_corpus(
        self.queries, self.targets, **self.names, k=5, index=BruteForce())
    order = np.argsort(-(self.queries @ self.targets.T), axis=1)[:, :5]
    self.assertEqual(
        run.ids.tolist(), [[f'c{i}' for i in row] for row in order])

  def test_excluded_rows_are_not_found(self):
    exclude = np.full((7, 2), -1)
    exclude[3] = [4, 9]
    run = retrieval.search_corpus(
        self.queries, self.targets, **self.names, index=BruteForce(),
        exclude=exclude)
    found = {q: ids for q, ids, _ in run.rankings()}
    self.assertNotIn('c4', found['q3'])
    self.assertNotIn('c9', found['q3'])
    self.assertLen(found['q3'], 9)
    self.assertLen(found['q2'], 11)

  def test_the_exact_index_is_the_default(self):
    arguments = (self.queries, self.targets)
    run = retrieval.search_corpus(
        *arguments, **self.names, mesh=sharding.make_mesh(2), k=5)
    expected = retrieval.search_corpus(
        *arguments, **self.names, k=5, index=BruteForce())
    self.assertEqual(run.ids.tolist(), expected.ids.tolist())
    np.testing.assert_allclose(run.scores, expected.scores, rtol=1e-5)

  def test_an_exact_index_needs_a_mesh(self):
    with self.assertRaisesRegex(ValueError, 'Expected a mesh'):
      retrieval.search_corpus(self.queries, self.targets, **self.names)

  @parameterized.parameters(
      ('queries', r'per query id \(7\), got 6'),
      ('targets', r'per corpus id \(11\), got 10'))
  def test_wrong_numbers_of_rows_are_named(self, which, message):
    setattr(self, which, getattr(self, which)[:-1])
    with self.assertRaisesRegex(ValueError, message):
      retrieval.search_corpus(
          self.queries, self.targets, **self.names, index=BruteForce())


if __name__ == '__main__':
  absltest.main()
