"""What the runs of runs.csv cost in all, by a model of the FLOPs; differences.

  python -m experiments.results.stale_negatives.costs

The meter of these runs counted the encoder's passes only, and among them one
over the corpus after the last step, which nothing used. Added here, per step:
the queries' pass before the draws, 2 B M D for the scores, and for correctors
what they multiply over all M rows (4 D H for the network, 2 D^2 for the linear
map) and, of the network, its training (three times that over the 2 B rows it
sees, four times a step). Prints the tables of this folder's README that come
from runs.csv; experiments.compare, which wrote that file, judges as here.
"""

import collections
import csv
import pathlib
import statistics

from absl import app

from retrieval_jax.comparison import differences
from retrieval_jax.comparison import runs as runs_lib
from retrieval_jax.comparison import tables

RUNS = pathlib.Path(__file__).with_name('runs.csv')
ROWS, CAPACITY = 117_659, 61_440  # M of the corpus and, padded, of the ring
DIM = HIDDEN = 128  # D and H
STEPS, BATCH = 240, 128  # B
REENCODED_AT_THE_END = (
    'corrector_refreshed', 'reencode_2', 'reencode_4', 'reencode_8', 'oracle')
CORRECTED = {'corrector': 4 * DIM * HIDDEN, 'linear': 2 * DIM * DIM}
PAIRS = (
    ('corrector', 'stale'), ('corrector_kept', 'stale'),
    ('corrector_kept', 'kept'), ('ring', 'uniform'), ('cache_ring', 'uniform'),
    ('ring', 'in_batch'), ('cache_ring', 'in_batch'), ('linear', 'corrector'))
ENCODERS = {  # layers, width, tokens
    'this one, 19 tokens on average': None,
    'MiniLM, 6 layers, 48 tokens': (6, 384, 48),
    'BERT-base, 12 layers, 128 tokens': (12, 768, 128)}


def read_runs():
  """Returns arm -> its runs, each a dict of runs.csv."""
  arms = collections.defaultdict(list)
  with RUNS.open(encoding='utf-8', newline='') as f:
    for run in csv.DictReader(f):
      arms[run['method']].append(run)
  return arms


def mean(runs, column):
  """Returns the mean of a column over runs."""
  return statistics.mean(float(run[column]) for run in runs)


def flops_of_texts(arms):
  """Returns (FLOPs of encoding a query, of a target), from the runs' own."""
  total = lambda arm: mean(arms[arm], 'encoder TFLOP') * 1e12
  target = (total('stale') - total('ring')) / ROWS
  return total('in_batch') / (3 * STEPS * BATCH) - target, target


def parts(arm, runs, query, target):
  """Returns TFLOP of (encoder, scores, corrector) of an arm."""
  encoder = mean(runs, 'encoder TFLOP') * 1e12
  if arm in REENCODED_AT_THE_END:
    encoder -= target * ROWS
  if arm == 'in_batch':
    return encoder / 1e12, 0., 0.
  encoder += STEPS * BATCH * query
  rows = CAPACITY if arm in ('ring', 'cache_ring') else ROWS
  scores = 0. if arm == 'uniform' else STEPS * 2 * BATCH * rows * DIM
  corrector = 0.
  for name, per_row in CORRECTED.items():
    if arm.startswith(name):
      seen = 3 * 4 * 2 * BATCH if name == 'corrector' else 0
      corrector = STEPS * per_row * (rows + seen)
  return encoder / 1e12, scores / 1e12, corrector / 1e12


def of_arms():
  """Yields the lines of the table of all arms."""
  arms = read_runs()
  query, target = flops_of_texts(arms)
  yield ('| method | MRR@10 | encoder TFLOP | scores | corrector | in all | '
         'training seconds |')
  yield '| --- | ---: | ---: | ---: | ---: | ---: | ---: |'
  for arm, runs in arms.items():
    found = parts(arm, runs, query, target)
    yield (f'| {arm} | {mean(runs, "RR@10"):.4f} | '
           + ' | '.join(f'{part:.2f}' for part in (*found, sum(found)))
           + f' | {mean(runs, "training seconds"):.0f} |')


def break_even():
  """Yields the lines of the table of steps per refresh saved."""
  _, this = flops_of_texts(read_runs())
  yield ('| encoder | GFLOP per target | H | MFLOP per row and step | '
         'steps for one refresh |')
  yield '| --- | ---: | ---: | ---: | ---: |'
  for name, shape in ENCODERS.items():
    if shape:
      layers, dim, length = shape
      per_target = 2 * length * layers * (12 * dim * dim + 2 * length * dim)
    else:
      dim, per_target = DIM, this
    for hidden in dict.fromkeys((128, dim)):
      per_row = 4 * dim * hidden
      yield (f'| {name} | {per_target / 1e9:.3g} | {hidden} | '
             f'{per_row / 1e6:.3g} | {per_target / per_row:,.0f} |')


def of_differences():
  """Returns the table of differences in MRR@10, first those to the oracle."""
  groups = runs_lib.group_seeds(
      runs_lib.read_table(str(RUNS), 'test', 'RR@10'))
  pairs = [(arm, 'oracle') for arm in groups if arm != 'oracle']
  return tables.differences_markdown([
      differences.difference(groups, *pair, 'test', 'RR@10')
      for pair in (*pairs, *PAIRS)])


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  print('\n'.join([*of_arms(), '', *break_even(), '', of_differences()]))


if __name__ == '__main__':
  app.run(main)
