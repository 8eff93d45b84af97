"""Fits adapters to frozen embeddings, measures them, writes their indexes."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import time
from typing import Any

from retrieval_jax import files
from retrieval_jax import processes
from retrieval_jax.adapters import fitting as fitting_lib
from retrieval_jax.adapters import methods
from retrieval_jax.adapters import nudge
from retrieval_jax.adapters import pefa_xl
from retrieval_jax.adapters import pefa_xs
from retrieval_jax.adapters import problem as problems
from retrieval_jax.adapters import store
from retrieval_jax.comparison import plots
from retrieval_jax.comparison import tables
from retrieval_jax.data import embeddings as embeddings_lib


@dataclasses.dataclass(frozen=True)
class Options:
  """What to fit, choose and measure; see the flags of experiments.adapt.

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
  method: Sequence[str] = tuple(methods.ADAPTERS)
  pairs: Sequence[str] = ()
  share: float = 1.
  normalize: bool = False
  lambdas: Sequence[float] = pefa_xs.LAMBDAS
  neighbours: Sequence[int] = pefa_xl.NEIGHBOURS
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
  lenient: bool = False

  def __post_init__(self):
    for option in ('lambdas', 'neighbours', 'normalisations', 'gammas',
                   'method'):
      if not getattr(self, option):
        raise ValueError(f'--{option} is empty; give at least one value.')
    for option, allowed in (
        ('method', tuple(methods.ADAPTERS)),
        ('choose_by', fitting_lib.MEASURES),
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

  def read_problem(self) -> problems.Problem:
    """Returns what there is to fit to and to measure by."""
    return problems.read(
        self.embeddings, qrels=self.qrels, train_split=self.train_split,
        dev_split=self.dev_split, test_split=self.test_split, share=self.share,
        dev_share=self.dev_share, pairs=self.pairs, normalize=self.normalize,
        num_devices=self.num_devices, seed=self.seed, lenient=self.lenient)

  def make_fitting(self, problem: problems.Problem) -> fitting_lib.Fitting:
    """Returns what chooses among the values that are asked for."""
    return fitting_lib.Fitting(
        problem, values={
            'weight': self.lambdas, 'num_neighbours': self.neighbours,
            'normalisation': self.normalisations, 'gamma': self.gammas},
        fixed={'keep_uncovered': self.keep_uncovered, 'missing': self.missing,
               'depth': self.depth},
        knn=self.knn, choose_by=self.choose_by,
        max_dev_queries=self.max_dev_queries, chunk_rows=self.chunk_rows,
        seed=self.seed)


def run(options: Options, *, say: Callable[[str], None] = print
        ) -> dict[str, Any]:
  """Fits, measures and writes options.out; returns what results.json holds.

  Args:
    options: see there.
    say: takes a line of progress.
  """
  problem = options.read_problem()
  if 'xl' in options.method:
    options = _with_enough_queries(options, len(problem.pairs.queries), say)
  fitting = options.make_fitting(problem)
  for method in options.method:  # all, before hours are spent on the first
    fitting.check(method)
  origin = embeddings_lib.read_origin(options.embeddings)
  results: dict[str, Any] = {}
  baseline: fitting_lib.Values = {}
  with processes.new_folder(options.out) as folder:
    for method in ('encoder', *options.method):
      start = time.perf_counter()
      if method == 'encoder':
        index: Any = fitting.encoder
        build = lambda index=index: index.build(problem.targets.vectors)
      else:
        index = fitting.choose(method)
        build = lambda index=index: index.build(
            problem.targets.vectors, problem.final_pairs)
      choosing = time.perf_counter() - start
      report, by_query = fitting.report(index, build)
      if method == 'encoder':
        baseline = by_query
      else:
        report |= {
            'constants': fitting_lib.as_in_papers(methods.constants(index)),
            'choose_seconds': choosing,
            'gain': fitting_lib.gains(by_query, baseline)}
        store.save(os.path.join(folder, method), index,
                   problem.targets.vectors, problem.final_pairs,
                   problem.targets.ids,
                   {'method': method, 'embeddings': options.embeddings,
                    'origin': origin},
                   options.knn)
      results[method] = report
      say(f'{label(method)}: {report.get("constants", "")} R@100 '
          f'{report["test"]["R@100"]:.4f}')
    facts = {
        'num_targets': len(problem.targets.ids),
        'num_train_queries': len(problem.final_pairs.queries),
        'num_pairs': len(problem.final_pairs.query_rows),
        'covered_targets': int(problem.final_pairs.covered(
            len(problem.targets.ids)).sum()),
        'num_test_queries': len(problem.test.queries()),
        'dropped': problem.dropped,
        'options': dataclasses.asdict(options), 'methods': results}
    table = markdown(results)
    files.write_json(os.path.join(folder, 'results.json'), facts)
    files.write_text(os.path.join(folder, 'results.md'), table)
    files.write_text(os.path.join(folder, 'grid.csv'),
                     tables.to_csv(fitting.grid))
    _plot_recall(os.path.join(folder, 'recall_over_lambda.png'), fitting.grid)
  return facts


def _with_enough_queries(options: Options, num_queries: int,
                         say: Callable[[str], None]) -> Options:
  """Returns the options with no more neighbours than training queries."""
  fewer = tuple(dict.fromkeys(min(k, num_queries) for k in options.neighbours))
  if fewer == tuple(options.neighbours):
    return options
  say(f'--neighbours={",".join(map(str, options.neighbours))}: there are only '
      f'{num_queries} training queries to choose on, so it becomes '
      f'{",".join(map(str, fewer))}.')
  return dataclasses.replace(options, neighbours=fewer)


def markdown(results: Mapping[str, Any]) -> str:
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
    cells = [label(method),
             *(f'{report["test"][m]:.4f}' for m in shown),
             _gain(*gain['R@100']) if gain else '',
             *('–' if report[part]['R@100'] is None
               else f'{report[part]["R@100"]:.4f}'
               for part in ('test_covered', 'test_uncovered')),
             f'{report["index_bytes"] / 2**20:.0f}',
             f'{report["choose_seconds"]:.1f}' if gain else '',
             f'{report["fit_seconds"]:.2f}', f'{report["latency_ms"]:.1f}']
    lines.append('| ' + ' | '.join(cells) + ' |')
    if gain:
      chosen += f'- {label(method)}: ' + ', '.join(
          f'{name} = {value:g}' if isinstance(value, float)
          else f'{name} = {value}'
          for name, value in report['constants'].items()) + '\n'
  return '\n'.join(lines) + f'\n\nConstants:\n\n{chosen}'


def label(method: str) -> str:
  """Returns what tables and figures call a method, such as '+NUDGE-M'."""
  if method == 'encoder':
    return method
  return '+' + method.upper().replace('_', '-')


def _gain(mean: float, error: float | None) -> str:
  return f'{mean:+.4f}' + ('' if error is None else f' ± {error:.4f}')


def _plot_recall(path, grid):
  """Draws dev Recall@100 over lambda, a line for each method and setting."""
  curves = {}
  for row in grid:
    if 'lambda' in row:
      name = label(row['method']) + (
          f' k={row["k"]}, w={row["w"]}' if 'k' in row else '')
      curves.setdefault(name, []).append((row['lambda'], row['R@100']))
  if curves:
    plots.lines(path, curves, 'lambda (1: the encoder alone)',
                'Recall@100, dev')
