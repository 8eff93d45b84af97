"""Chooses constants of adapters on dev queries, and measures what they gain.

Constants come from a grid, in one pass over it; test queries are searched once,
by what was chosen.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import statistics
import time
from typing import Any

import jax
import numpy as np

from retrieval_jax.adapters import methods
from retrieval_jax.adapters import pefa_xl
from retrieval_jax.adapters import problem as problems
from retrieval_jax.adapters import store
from retrieval_jax.data import dataset as datasets
from retrieval_jax.evaluation import measures as measures_lib
from retrieval_jax.evaluation import retrieval
from retrieval_jax.evaluation import runs
from retrieval_jax.indexes import exact

MEASURES = ('R@10', 'R@20', 'R@100', 'RR@10', 'nDCG@10')
SYMBOLS = {'weight': 'lambda', 'num_neighbours': 'k', 'normalisation': 'w'}
"""What the papers call a constant that has another name here."""

_NUM_TIMED = 50  # queries searched one by one for the latency

Values = dict[str, np.ndarray]
Search = Callable[..., tuple[np.ndarray, np.ndarray]]


class Fitting:
  """Chooses, fits and measures the adapters of one Problem.

  Attributes:
    problem: what there is to fit to.
    encoder: the index without an adapter.
    grid: what was measured on dev, a record per setting: method, constants,
      measures.
  """

  def __init__(self, problem: problems.Problem, *,
               values: Mapping[str, Sequence[Any]],
               fixed: Mapping[str, Any], knn: str = 'exact',
               choose_by: str = 'RR@10', max_dev_queries: int = 2000,
               chunk_rows: int = 4096, seed: int = 0):
    """Draws the dev queries.

    Args:
      problem: see there.
      values: of constants, in place of those that an adapter's GRID tries.
      fixed: options that are not chosen, passed to the adapters that have them.
      knn: one of store.QUERY_INDEXES.
      choose_by: measure that constants are chosen by.
      max_dev_queries: the most dev queries to choose on, drawn at random.
      chunk_rows: targets scored at a time on each device.
      seed: of the choice of dev queries.
    """
    self.problem = problem
    self.grid: list[dict[str, Any]] = []
    self.encoder = exact.ExactIndex(problem.mesh, chunk_rows)
    self._values, self._fixed, self._choose_by = values, fixed, choose_by
    self._query_index = store.QUERY_INDEXES[knn](self.encoder)
    self._dev = None
    if problem.dev is not None:
      rows = problem.dev.queries()
      if len(rows) > max_dev_queries:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[
            :max_dev_queries])
      self._dev = rows

  def check(self, method: str) -> None:
    """Finds out before anything is fitted whether `choose` can.

    Raises:
      ValueError: where there is something to choose, but no dev split; for
        constants out of range.
    """
    adapter = methods.ADAPTERS[method]
    if hasattr(adapter, 'fitted'):
      if self._dev is None:
        raise ValueError(
            f'{method} finds its step on validation queries; name a split by '
            '--dev_split or hold one out by --dev_share.')
      return
    grid = self._grid(method)
    if self._dev is None and len(grid) > 1:
      raise ValueError(
          f'{method} has {len(grid)} settings to choose from and no dev split; '
          'name one by --dev_split, hold one out by --dev_share, or give one '
          'value each of --lambdas, --neighbours, --normalisations and '
          '--gammas.')

  def choose(self, method: str) -> Any:
    """Returns the index of a method, not built, with its best constants.

    Raises:
      ValueError: as `check`.
    """
    self.check(method)
    adapter = methods.ADAPTERS[method]
    if hasattr(adapter, 'fitted'):
      return self._fit(method, adapter)
    grid = self._grid(method)
    if self._dev is None:
      return grid[0][1]
    measured = self._measure_settings([index for _, index in grid])
    for (constants, _), value in zip(grid, measured):
      self.grid.append({'method': method, **as_in_papers(constants), **value})
    best = max(range(len(grid)), key=lambda i: (
        measured[i][self._choose_by], measured[i]['RR@10']))
    return grid[best][1]

  def _grid(self, method):
    """Returns (constants, index) of each setting of a method's grid."""
    usual = methods.ADAPTERS[method].GRID
    values = [self._values.get(name, of_method)
              for name, of_method in usual.items()]
    settings = [dict(zip(usual, setting))
                for setting in itertools.product(*values)]
    return [(constants, self._make(method, constants))
            for constants in settings]

  def _make(self, method, constants):
    fixed = methods.options(methods.ADAPTERS[method], self._fixed)
    return methods.make(
        method, self.encoder, self._query_index, **fixed, **constants)

  def _fit(self, method, adapter):
    """Returns the index of an adapter that finds its constants itself."""
    problem = self.problem
    kept = np.isin(problem.dev.query_rows, self._dev) & (
        problem.dev.grades > 0)
    found = adapter.fitted(
        self._vectors(self._dev),
        np.searchsorted(self._dev, problem.dev.query_rows[kept]),
        problem.dev.corpus_rows[kept], problem.targets.vectors, problem.pairs,
        mesh=problem.mesh)
    index = self._make(method, dataclasses.asdict(found))
    self.grid.append({
        'method': method, **as_in_papers(methods.constants(index)),
        **self._measure_dev(index.search, self._build(index))})
    return index

  def _measure_settings(self, indexes):
    """Returns the dev measures of each setting."""
    if not isinstance(indexes[0], pefa_xl.PefaXL):
      return [self._measure_dev(index.search, self._build(index))
              for index in indexes]
    # Both searches are the same for all settings.
    widest = max(indexes, key=lambda index: index.num_neighbours)
    state = self._build(widest)
    queries = self._vectors(self._dev)
    found = widest.look_up(state, queries, retrieval.NUM_RESULTS)
    measured = []
    for index in indexes:
      search = lambda state, queries, k, exclude, index=index: index.merge(
          state, queries, found, k, exclude)
      if index.weight == 1:
        search = index.search
      measured.append(self._measure_dev(search, state))
    return measured

  def _build(self, index):
    return index.build(self.problem.targets.vectors, self.problem.pairs)

  def _vectors(self, rows):
    return np.asarray(self.problem.queries.vectors[rows], np.float32)

  def _measure_dev(self, search, state):
    return means(self.per_query(
        search, state, self.problem.dev, self._dev,
        tuple(dict.fromkeys((self._choose_by, 'R@100', 'RR@10')))))

  def per_query(self, search: Search, state: Any, qrels: datasets.Qrels,
                rows: np.ndarray, measures: Sequence[str] = MEASURES) -> Values:
    """Returns measure -> [n] values of the queries `rows` of a split."""
    problem = self.problem
    scores, found = search(
        state, self._vectors(rows),
        min(retrieval.NUM_RESULTS, len(problem.targets.ids)), None)
    names = [problem.queries.ids[row] for row in rows]
    run = runs.from_rows(names, found, scores, problem.targets.ids)
    kept = (qrels.grades > 0) & np.isin(qrels.query_rows, rows)
    values = measures_lib.per_query(run, measures_lib.qrels_from_rows(
        qrels.query_rows[kept], qrels.corpus_rows[kept], qrels.grades[kept],
        problem.queries.ids, problem.targets.ids), measures)
    return {measure: np.array([of_query[name] for name in names])
            for measure, of_query in values.items()}

  def report(self, index: Any, build: Callable[[], Any]
             ) -> tuple[dict[str, Any], Values]:
    """Returns what is reported of an index, and its values per test query.

    Args:
      index: with `search`.
      build: returns the state of the index; it is timed.
    """
    start = time.perf_counter()
    state = jax.block_until_ready(build())
    seconds = time.perf_counter() - start
    test = self.problem.test
    rows = test.queries()
    values = self.per_query(index.search, state, test, rows)
    covered = self.problem.final_pairs.covered(len(self.problem.targets.ids))
    seen = np.array([covered[test.positives(row)].any() for row in rows])
    return {
        'test': means(values),
        'test_covered': means({m: v[seen] for m, v in values.items()}),
        'test_uncovered': means({m: v[~seen] for m, v in values.items()}),
        'index_bytes': index_bytes(state), 'fit_seconds': seconds,
        'latency_ms': self._latency(index, state, rows)}, values

  def _latency(self, index, state, rows):
    """Returns the median milliseconds of a search for one query."""
    seconds = []
    for row in rows[:_NUM_TIMED]:
      query = self._vectors([row])
      start = time.perf_counter()
      index.search(state, query, retrieval.NUM_RESULTS)
      seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def means(values: Values) -> dict[str, float | None]:
  """Returns the mean of each measure; None without queries."""
  return {measure: float(v.mean()) if len(v) else None
          for measure, v in values.items()}


def index_bytes(state: Any) -> int:
  """Returns the bytes of an index; for faiss's, those it would take on disk."""
  if isinstance(state, pefa_xl.XLState):  # its `vectors` are the user's file
    state = state._replace(vectors=None)
  total = 0
  for leaf in jax.tree.leaves(state):
    if hasattr(leaf, 'nbytes'):
      total += leaf.nbytes
    elif not isinstance(leaf, int):
      import faiss
      total += faiss.serialize_index(leaf).nbytes
  return total


def gains(values: Values, baseline: Values
          ) -> dict[str, tuple[float, float | None]]:
  """Returns measure -> (mean difference, its standard error over queries).

  The error, s / sqrt(n) of the differences, is None for fewer than two queries.
  """
  found = {}
  for measure, of_query in values.items():
    difference = of_query - baseline[measure]
    error = None
    if len(difference) > 1:
      error = float(difference.std(ddof=1) / len(difference)**0.5)
    found[measure] = float(difference.mean()), error
  return found


def as_in_papers(constants: Mapping[str, Any]) -> dict[str, Any]:
  """Returns constants under the names that the papers give them."""
  return {SYMBOLS.get(name, name): value for name, value in constants.items()}
