"""Writes what libpecos gives for PEFA on a small problem, for our tests.

For development only; needs numpy 1.26, scipy and libpecos 1.2.8, and runs
without this package:

  python experiments/dev/make_pecos_fixture.py tests/adapters/pecos.npz

The file holds the problem: `targets` [N, D], `queries` [m, D] and
`test_queries` [n, D] float32 of norm 1; `query_rows` and `target_rows` [P]
int64, their pairs, of which one stands twice; the options `weights` [W],
`neighbours` [K], `normalisations` [2], `depth`; and the answers:

  xs          [W, N, D] float32, PEFA-XS's rows at each lambda; at 0 they are
              the label embeddings (PIFA) of Y and Q alone
  xl_scores   [W, K, 2, n, N] float32, PEFA-XL's scores, falling
  xl_ids      [W, K, 2, n, N] int32, the targets they belong to

Lists of PEFA-XL hold the union of what its two searches find, so they have
various lengths; the places after their ends hold -inf and -1.

Source: amzn/pecos, examples/pefa-wsdm24, whose steps these are: Y sums pairs
that stand twice, is not normalised, and results are sparse matrices.
"""

import itertools
import sys

import numpy as np
from pecos import xmc
from pecos.ann import hnsw
from pecos.utils import smat_util
import scipy.sparse

NUM_TARGETS, NUM_QUERIES, NUM_TESTS, DIM = 60, 90, 12, 16
SEED = 1  # the first for which `check_cases` holds
NUM_COVERED = 50  # targets from here on have no training query
WEIGHTS = (0., 0.3, 0.9)
NEIGHBOURS = (4, 16)
NORMALISATIONS = ('mean', 'sum')
DEPTH = 40  # with some scores below zero, and some votes for other targets
EF_SEARCH = 300  # published; more than there is to find here


def unit(vectors):
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  return (vectors / norms).astype(np.float32)


def make_problem(rng):
  """Returns targets, training queries, their pairs and test queries."""
  targets = rng.normal(size=(NUM_TARGETS, DIM))
  near = lambda rows: unit(unit(targets)[rows] + 0.3 * rng.normal(
      size=(len(rows), DIM)))
  first = rng.integers(0, NUM_COVERED, NUM_QUERIES)
  queries = near(first)
  # Every third query has three targets; one pair stands twice, and the first
  # test query is near it.
  several = np.repeat(np.arange(0, NUM_QUERIES, 3), 2)
  more = (first[several] + rng.integers(1, NUM_COVERED // 2, len(several))
          + NUM_COVERED // 2 * np.tile([0, 1], len(several) // 2)) % NUM_COVERED
  query_rows = np.concatenate([np.arange(NUM_QUERIES), several, [7]])
  target_rows = np.concatenate([first, more, first[[7]]])
  of_tests = rng.integers(0, NUM_TARGETS, NUM_TESTS)
  of_tests[0] = first[7]
  order = rng.permutation(len(query_rows))
  return (unit(targets), queries, query_rows[order], target_rows[order],
          near(of_tests))


def search(rows, queries, k):
  """Returns the inner products [n, len(rows)] with the k nearest, sparse."""
  graph = hnsw.HNSW.train(rows, train_params=hnsw.HNSW.TrainParams(
      M=32, efC=500, metric_type='ip', threads=1), pred_params=None)
  found = graph.predict(queries, pred_params=hnsw.HNSW.PredParams(
      efS=EF_SEARCH, topk=k, threads=1), ret_csr=True)
  found.data = 1 - found.data  # the distance is 1 - <q, p>
  products = queries @ rows.T
  exact = np.argsort(-products, axis=1, kind='stable')[:, :k]
  ids = found.indices.reshape(-1, k)
  np.testing.assert_array_equal(ids, exact, 'HNSW missed a neighbour')
  np.testing.assert_allclose(
      found.data.reshape(-1, k), np.take_along_axis(products, exact, axis=1),
      atol=1e-6)
  return found


def dense(ranked):
  """Returns scores and ids [n, N] of sorted CSR rows, filled at the end."""
  scores = np.full(ranked.shape, -np.inf, np.float32)
  ids = np.full(ranked.shape, -1, np.int32)
  for row in range(ranked.shape[0]):
    part = slice(*ranked.indptr[row:row + 2])
    scores[row, :part.stop - part.start] = ranked.data[part]
    ids[row, :part.stop - part.start] = ranked.indices[part]
  return scores, ids


def check_cases(labels, of_targets, of_queries, scores):
  """Asserts that the problem holds the cases in which the two could differ."""
  queries_of, targets_of = (labels.getnnz(axis=axis) for axis in (0, 1))
  assert queries_of.min() == 0 and queries_of.max() > 1
  assert targets_of.max() == 3 and (labels.data == 2).sum() == 1
  assert np.isin(of_queries.indices, np.nonzero(labels == 2)[0]).any()
  assert of_targets.data.min() < 0
  # With each lambda but 0 some lists hold targets that only votes have found.
  assert (np.isfinite(scores[1:]).sum(axis=-1) > DEPTH).any(axis=-1).all()
  pairs = np.isfinite(scores[..., 1:])
  gaps = scores[..., :-1][pairs] - scores[..., 1:][pairs]
  # Ties, and no scores so close that rounding could swap them.
  assert (gaps == 0).any() and gaps[gaps > 0].min() > 4e-6


def main(out):
  targets, queries, query_rows, target_rows, test_queries = make_problem(
      np.random.default_rng(SEED))
  labels = scipy.sparse.csr_matrix(
      (np.ones(len(query_rows), np.float32), (query_rows, target_rows)),
      shape=(NUM_QUERIES, NUM_TARGETS))
  pifa = xmc.LabelEmbeddingFactory.create(
      labels, queries, method='pifa', normalized_Y=False)
  xs = np.stack([w * targets + (1 - w) * pifa for w in WEIGHTS])
  of_targets = search(targets, test_queries, DEPTH)
  xl = []
  for weight, k, normalisation in itertools.product(
      WEIGHTS, NEIGHBOURS, NORMALISATIONS):
    of_queries = search(queries, test_queries, k)
    if normalisation == 'mean':
      of_queries.data = of_queries.data / k
    xl.append(dense(smat_util.sorted_csr(
        weight * of_targets + (1 - weight) * of_queries.dot(labels))))
  shape = (len(WEIGHTS), len(NEIGHBOURS), len(NORMALISATIONS),
           NUM_TESTS, NUM_TARGETS)
  scores, ids = (np.stack(a).reshape(shape) for a in zip(*xl))
  check_cases(labels, of_targets, of_queries, scores)
  np.savez_compressed(
      out, targets=targets, queries=queries, test_queries=test_queries,
      query_rows=query_rows, target_rows=target_rows, weights=WEIGHTS,
      neighbours=NEIGHBOURS, normalisations=NORMALISATIONS, depth=DEPTH,
      xs=xs, xl_scores=scores, xl_ids=ids)
  print(f'{out}: {labels.nnz} pairs, {ids.shape} results')


if __name__ == '__main__':
  main(*sys.argv[1:])
