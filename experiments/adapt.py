r"""Fits adapters to frozen embeddings and measures what they gain.

  python -m experiments.embed --config=configs/minilm.py --out=embeddings/minilm
  python -m experiments.adapt --embeddings=embeddings/minilm --out=adapted

No backward pass and no model: --embeddings is a folder of vectors from
anywhere (retrieval_jax/data/embeddings.py says which files). Constants (lambda,
k and w of PEFA, gamma of NUDGE) are chosen on the dev split, in one pass over a
grid; the test split is looked at once, with the chosen ones. Writes

  OUT/METHOD/            an index, for experiments.search and .evaluate --index
  OUT/results.json, results.md, grid.csv, recall_over_lambda.png
"""

import csv
import dataclasses
import io
import itertools
import json
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

from absl import app
from absl import flags
import jax
import numpy as np
import rich.console
import rich.markdown

from experiments import frozen
from experiments import plots
from experiments import process
from retrieval_jax import adapters
from retrieval_jax.adapters import nudge
from retrieval_jax.adapters import pefa_xl
from retrieval_jax.adapters import store
from retrieval_jax.data import dataset as datasets
from retrieval_jax.evaluation import measures as measures_lib
from retrieval_jax.evaluation import retrieval
from retrieval_jax.evaluation import runs
from retrieval_jax.evaluation import trec
from retrieval_jax.indexes import exact

MEASURES = ('R@10', 'R@20', 'R@100', 'RR@10', 'nDCG@10')
METHODS = ('xs', 'xl', 'nudge_m', 'nudge_n')
NAMES = {'encoder': 'encoder', 'xs': '+XS', 'xl': '+XL', 'nudge_m': '+NUDGE-M',
         'nudge_n': '+NUDGE-N'}
LAMBDAS = tuple(round(0.1 * i, 1) for i in range(1, 11))
NUM_TIMED = 50  # queries searched one by one for the latency


@dataclasses.dataclass(frozen=True)
class Options:
  """What the flags of the same names say; see `define_flags`.

  Raises:
    ValueError: where an option is out of range.
  """
  embeddings: str
  out: str
  qrels: str | None = None
  train_split: str = 'train'
  dev_split: str = 'dev'
  test_split: str = 'test'
  dev_share: float = 0.
  method: Sequence[str] = METHODS
  pairs: Sequence[str] = ()
  share: float = 1.
  normalize: bool = False
  lambdas: Sequence[float] = LAMBDAS
  neighbours: Sequence[int] = (16, 32, 64)
  normalisations: Sequence[str] = pefa_xl.NORMALISATIONS
  gammas: Sequence[float] = nudge.GAMMAS
  keep_uncovered: bool = False
  missing: str = 'zero'
  depth: int = 500
  knn: str = 'exact'
  choose_by: str = 'RR@10'
  max_dev_queries: int = 2000
  chunk_rows: int = 4096
  num_devices: int | None = None
  seed: int = 0

  def __post_init__(self):
    for option in ('lambdas', 'neighbours', 'normalisations', 'gammas',
                   'method'):
      if not getattr(self, option):
        raise ValueError(f'--{option} is empty; give at least one value.')
    for option, allowed in (
        ('method', METHODS), ('choose_by', MEASURES),
        ('normalisations', pefa_xl.NORMALISATIONS),
        ('missing', pefa_xl.MISSING), ('knn', tuple(store.QUERY_INDEXES))):
      given = getattr(self, option)
      for value in (given,) if isinstance(given, str) else given:
        if value not in allowed:
          raise ValueError(f'--{option}={value} is not one of {list(allowed)}.')
    if self.max_dev_queries < 1:
      raise ValueError(
          f'--max_dev_queries={self.max_dev_queries} must be at least 1.')
    if os.path.exists(self.out):
      raise ValueError(
          f'--out={self.out} exists; name a new folder or remove it.')


class Fitting:
  """Chooses, fits and measures the adapters of one Problem."""

  def __init__(self, problem: frozen.Problem, options: Options):
    self.problem, self.options = problem, options
    self.grid = []  # rows of grid.csv
    self._dev = None
    if problem.dev is not None:
      rows = problem.dev.queries()
      if len(rows) > options.max_dev_queries:
        rows = np.sort(np.random.default_rng(options.seed).permutation(rows)[
            :options.max_dev_queries])
      self._dev = rows

  def choose(self, method: str):
    """Returns the index of a method, not built, with its best constants."""
    if method == 'nudge_m':
      return self._step_of_nudge_m()
    grid = self._candidates(method)
    if self._dev is None:
      if len(grid) > 1:
        raise ValueError(
            f'{method} has {len(grid)} settings to choose from and no dev '
            'split; name one by --dev_split, hold one out by --dev_share, or '
            'give one value each of --lambdas, --neighbours, --normalisations '
            'and --gammas.')
      return grid[0][1]
    if method == 'xl':
      values = self._measure_xl(grid)
    else:
      values = [self._measure_dev(index.search, self._build(index)) for
                _, index in grid]
    for (constants, _), value in zip(grid, values):
      self.grid.append({'method': method, **constants, **value})
    best = max(range(len(grid)), key=lambda i: (
        values[i][self.options.choose_by], values[i]['RR@10']))
    return grid[best][1]

  def _candidates(self, method):
    """Returns [(constants, index)] of a method."""
    options = self.options
    inner = exact.ExactIndex(self.problem.mesh, options.chunk_rows)
    if method == 'xs':
      return [({'lambda': weight}, adapters.Moved(adapters.PefaXS(
          weight, options.keep_uncovered), inner))
              for weight in options.lambdas]
    if method == 'nudge_n':
      return [({'gamma': gamma}, adapters.Moved(adapters.NudgeN(gamma), inner))
              for gamma in options.gammas]
    queries = store.QUERY_INDEXES[options.knn](inner)
    return [
        ({'lambda': weight, 'k': k, 'w': normalisation}, adapters.PefaXL(
            inner, queries, weight, k, normalisation, options.missing,
            options.depth))
        for normalisation, k, weight in itertools.product(
            options.normalisations, options.neighbours, options.lambdas)]

  def _build(self, index):
    return index.build(self.problem.targets.vectors, self.problem.pairs)

  def _measure_xl(self, grid):
    """Returns the dev measures of each setting; both indexes search once."""
    widest = max((index for _, index in grid), key=lambda i: i.num_neighbours)
    state = self._build(widest)
    queries = self._vectors(self._dev)
    found = widest.look_up(state, queries, retrieval.NUM_RESULTS)
    values = []
    for _, index in grid:
      search = lambda state, queries, k, exclude, index=index: index.merge(
          state, queries, found, k, exclude)
      if index.weight == 1:
        search = index.search
      values.append(self._measure_dev(search, state))
    return values

  def _step_of_nudge_m(self):
    problem = self.problem
    inner = exact.ExactIndex(problem.mesh, self.options.chunk_rows)
    if self._dev is None:
      raise ValueError(
          'nudge_m finds its step on validation queries; name a split by '
          '--dev_split or hold one out by --dev_share.')
    kept = np.isin(problem.dev.query_rows, self._dev) & (
        problem.dev.grades > 0)
    gamma = nudge.best_step(
        self._vectors(self._dev),
        np.searchsorted(self._dev, problem.dev.query_rows[kept]),
        problem.dev.corpus_rows[kept], problem.targets.vectors, problem.pairs,
        mesh=problem.mesh)
    index = adapters.Moved(adapters.NudgeM(gamma), inner)
    self.grid.append({'method': 'nudge_m', 'gamma': gamma, **self._measure_dev(
        index.search, self._build(index))})
    return index

  def _vectors(self, rows):
    return np.asarray(self.problem.queries.vectors[rows], np.float32)

  def _measure_dev(self, search, state):
    return means(self.per_query(
        search, state, self.problem.dev, self._dev,
        tuple(dict.fromkeys((self.options.choose_by, 'R@100', 'RR@10')))))

  def per_query(self, search, state, qrels, rows, measures=MEASURES):
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

  def report(self, index, build) -> tuple[dict[str, Any], Any]:
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
    for row in rows[:NUM_TIMED]:
      query = self._vectors([row])
      start = time.perf_counter()
      index.search(state, query, retrieval.NUM_RESULTS)
      seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def means(values):
  """Returns the mean of each measure; None of no query."""
  return {measure: float(v.mean()) if len(v) else None
          for measure, v in values.items()}


def index_bytes(state) -> int:
  """Returns the bytes of an index; of faiss's, what it would take on disk."""
  if isinstance(state, pefa_xl.XLState):  # its `rows` are the user's file
    state = state._replace(rows=None)
  total = 0
  for leaf in jax.tree.leaves(state):
    if hasattr(leaf, 'nbytes'):
      total += leaf.nbytes
    elif not isinstance(leaf, int):
      import faiss  # pylint: disable=g-import-not-at-top
      total += faiss.serialize_index(leaf).nbytes
  return total


def constants(index) -> dict[str, Any]:
  """Returns the constants of an index as they are called in the papers."""
  if isinstance(index, adapters.PefaXL):
    return {'lambda': index.weight, 'k': index.num_neighbours,
            'w': index.normalisation, 'missing': index.missing}
  if isinstance(index.move, adapters.PefaXS):
    return {'lambda': index.move.weight,
            'keep_uncovered': index.move.keep_uncovered}
  return {'gamma': index.move.gamma}


def run(options: Options) -> dict[str, Any]:
  """Fits, measures and writes options.out; returns what results.json holds."""
  problem = frozen.read_problem(options)
  fitting = Fitting(problem, options)
  encoder = exact.ExactIndex(problem.mesh, options.chunk_rows)
  console = rich.console.Console(stderr=True)
  results, baseline = {}, None
  with datasets.atomic_folder(os.path.abspath(options.out)) as folder:
    for method in ('encoder', *options.method):
      start = time.perf_counter()
      if method == 'encoder':
        index = encoder
        build = lambda: encoder.build(problem.targets.vectors)
      else:
        index = fitting.choose(method)
        build = lambda index=index: index.build(
            problem.targets.vectors, problem.final_pairs)
      choosing = time.perf_counter() - start
      report, by_query = fitting.report(index, build)
      if method == 'encoder':
        baseline = by_query
      else:
        report |= {'constants': constants(index), 'choose_seconds': choosing,
                   'gain': gains(by_query, baseline)}
        store.save(os.path.join(folder, method), index,
                   problem.targets.vectors, problem.final_pairs,
                   problem.targets.ids,
                   {'method': method, 'embeddings': options.embeddings},
                   options.knn)
      results[method] = report
      console.print(f'{NAMES[method]}: {report.get("constants", "")} R@100 '
                    f'{report["test"]["R@100"]:.4f}', highlight=False,
                    markup=False)
    facts = {
        'num_targets': len(problem.targets.ids),
        'num_train_queries': len(problem.final_pairs.queries),
        'num_pairs': len(problem.final_pairs.query_rows),
        'covered_targets': int(problem.final_pairs.covered(
            len(problem.targets.ids)).sum()),
        'num_test_queries': len(problem.test.queries()),
        'options': dataclasses.asdict(options), 'methods': results}
    table = markdown(results)
    trec.write_text(os.path.join(folder, 'results.json'),
                    json.dumps(facts, indent=2) + '\n')
    trec.write_text(os.path.join(folder, 'results.md'), table)
    trec.write_text(os.path.join(folder, 'grid.csv'), _csv(fitting.grid))
    _plot(os.path.join(folder, 'recall_over_lambda.png'), fitting.grid)
  return facts


def gains(values, baseline):
  """Returns measure -> (mean difference, its standard error over queries)."""
  found = {}
  for measure, of_query in values.items():
    difference = of_query - baseline[measure]
    found[measure] = (float(difference.mean()), float(
        difference.std() / max(1, len(difference))**0.5))
  return found


def markdown(results) -> str:
  """Returns the table of results.md.

  Covered queries have a positive with a training query; the gain's error is
  the standard error over queries, paired with the encoder.
  """
  shown = ('R@10', 'R@20', 'R@100', 'RR@10')
  lines = ['| | ' + ' | '.join(
      (*shown, 'gain in R@100', 'R@100 covered', 'not covered', 'index MiB',
       'choose s', 'fit s', 'ms / query')) + ' |', '| --- |' + ' --- |' * 11]
  chosen = ''
  for method, report in results.items():
    gain = report.get('gain')
    cells = [NAMES[method],
             *(f'{report["test"][m]:.4f}' for m in shown),
             '{:+.4f} ± {:.4f}'.format(*gain['R@100']) if gain else '',
             *('–' if report[part]['R@100'] is None
               else f'{report[part]["R@100"]:.4f}'
               for part in ('test_covered', 'test_uncovered')),
             f'{report["index_bytes"] / 2**20:.0f}',
             f'{report["choose_seconds"]:.1f}' if gain else '',
             f'{report["fit_seconds"]:.2f}', f'{report["latency_ms"]:.1f}']
    lines.append('| ' + ' | '.join(cells) + ' |')
    if gain:
      chosen += f'- {NAMES[method]}: ' + ', '.join(
          f'{name} = {value:g}' if isinstance(value, float)
          else f'{name} = {value}'
          for name, value in report['constants'].items()) + '\n'
  return '\n'.join(lines) + f'\n\nConstants:\n\n{chosen}'


def _csv(grid):
  fields = list(dict.fromkeys(name for row in grid for name in row))
  file = io.StringIO()
  writer = csv.DictWriter(file, fields, lineterminator='\n')
  writer.writeheader()
  writer.writerows(grid)
  return file.getvalue()


def _plot(path, grid):
  """Draws dev Recall@100 over lambda, a line for each method and setting."""
  curves = {}
  for row in grid:
    if 'lambda' in row:
      name = NAMES[row['method']] + (
          f' k={row["k"]}, w={row["w"]}' if 'k' in row else '')
      curves.setdefault(name, []).append((row['lambda'], row['R@100']))
  if curves:
    plots.lines(path, curves, 'lambda (1: the encoder alone)',
                'Recall@100, dev')


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  default = {field.name: field.default for field in dataclasses.fields(Options)}
  of = dict(flag_values=values)
  string = lambda name, text: flags.DEFINE_string(
      name, default[name], text, **of)
  listed = lambda name, text: flags.DEFINE_list(
      name, [str(value) for value in default[name]], text, **of)
  number = lambda name, text, least=1: flags.DEFINE_integer(
      name, default[name], text, lower_bound=least, **of)
  flags.DEFINE_string('embeddings', None, 'Folder of targets, queries, ids and '
                      'qrels.', **of)
  flags.DEFINE_string('out', None, 'Folder to write; must not exist.', **of)
  string('qrels', 'Folder of SPLIT.tsv; EMBEDDINGS/qrels by default.')
  string('train_split', 'Split to fit to.')
  string('dev_split', "Split to choose constants on; '': none.")
  string('test_split', 'Split to report.')
  flags.DEFINE_float(
      'dev_share', default['dev_share'], "Without a dev split "
      "(--dev_split=''): share of the training queries held out to choose on; "
      'the chosen adapter is fitted to all of them.', **of)
  listed('method', f'Which of {", ".join(METHODS)}.')
  listed('pairs', 'Extra pairs to fit to: pairs-NAME.npy of the folder as '
         'experiments.embed --pairs makes them, or FILE.npy (.npz, '
         '.safetensors) beside FILE_target_ids.txt.')
  flags.DEFINE_float('share', default['share'],
                     'Share of the training queries to use.', **of)
  flags.DEFINE_bool('normalize', default['normalize'],
                    'Divide all vectors by their norms.', **of)
  listed('lambdas', "Grid of PEFA's lambda.")
  listed('neighbours', "Grid of PEFA-XL's k.")
  listed('normalisations', "Grid of PEFA-XL's w: mean (1/k), sum (1).")
  listed('gammas', "Grid of NUDGE-N's gamma.")
  flags.DEFINE_bool(
      'keep_uncovered', default['keep_uncovered'], 'PEFA-XS: targets without a '
      'training query keep their full row instead of lambda times it.', **of)
  string('missing', "PEFA-XL: the encoder's score of targets that only "
         'training queries found, zero or exact.')
  number('depth', 'PEFA-XL: targets taken from the encoder.')
  string('knn', 'Search of training queries: exact, or hnsw (needs faiss).')
  string('choose_by', 'Measure that constants are chosen by, on dev. R@100, '
         "PEFA's, may be bought with the first ranks.")
  number('max_dev_queries', 'Random dev queries to choose on, at most.', None)
  number('chunk_rows', 'Targets scored at a time on each device.', 64)
  number('num_devices', 'Devices to use; all by default.')
  number('seed', 'Of --share, --dev_share and the choice of dev queries.', None)
  flags.mark_flags_as_required(['embeddings', 'out'], **of)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script():
    given = {field.name: getattr(values, field.name)
             for field in dataclasses.fields(Options)}
    for option, kind in (('lambdas', float), ('neighbours', int),
                         ('gammas', float)):
      given[option] = _numbers(option, given[option], kind)
    run(Options(**given))
    with open(os.path.join(values.out, 'results.md'), encoding='utf-8') as f:
      rich.console.Console(width=110).print(rich.markdown.Markdown(f.read()))


def _numbers(option, texts, kind):
  try:
    return tuple(kind(text) for text in texts)
  except ValueError:
    raise ValueError(
        f'--{option}={",".join(texts)}: expected '
        f'{"whole " if kind is int else ""}numbers separated by commas.'
    ) from None


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
