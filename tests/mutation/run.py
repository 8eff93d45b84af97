r"""Mutation testing: how many small breaks of the code do the tests notice?

  pip install cosmic-ray
  python -m tests.mutation.run --per_module=6 --jobs=2
  python -m tests.mutation.run --modules=table.py,scoring.py --per_module=0

Cosmic Ray makes the mutants: another operator, a number one up or down, a
condition turned about, a decorator less. Each is written into a copy of the
checkout, where the tests that guard the module (GUARDS) run up to the first
failure. A mutant that no test notices has survived; either a test is missing,
or the mutant computes the same, which `equivalent.json` then says with the
reason.

What was found is kept in --work, so that the same command goes on after an
interruption. A mutant counts as killed as long as its module is unchanged; one
that survived is tried again when a test that guards it has changed.

Left alone are docstrings, annotations, whole `raise` statements (messages are
text) and `__init__` files.
"""

import argparse
import ast
import collections
import concurrent.futures
import dataclasses
import difflib
import fnmatch
import hashlib
import json
import os
import pathlib
import queue
import random
import shutil
import signal
import subprocess
import sys
import time

from cosmic_ray import ast as trees
from cosmic_ray import mutating
from cosmic_ray import plugins

HERE = pathlib.Path(__file__).resolve().parent

# Module pattern -> arguments of pytest, quickest first. They need not be all
# tests that touch the module: a survivor is looked at by hand anyway. Files
# that a checkout does not have are left out.
_STEP = ('tests/training/one_step_test.py',
         'tests/training/own_parameters_test.py',
         'tests/training/candidates_test.py::CandidatesTest',
         'tests/training/remembered_targets_test.py',
         'tests/training/step_test.py::MemoryTest',
         'tests/correctors/correctors_test.py::InTheStepTest')
_SAMPLERS = ('tests/samplers/samplers_test.py',
             'tests/conformance_test.py::SamplerTest',
             'tests/conformance_test.py::ValueTest',
             'tests/training/cost_test.py', 'tests/method_test.py')
GUARDS = {
    'retrieval_jax/training/step.py': _STEP,
    'retrieval_jax/training/cost.py': ('tests/training/cost_test.py',),
    'retrieval_jax/training/hooks.py': (
        'tests/training/hooks_test.py', 'tests/training/loop_test.py'),
    'retrieval_jax/training/meter.py': (
        'tests/training/meter_test.py', 'tests/training/loop_test.py'),
    'retrieval_jax/table.py': ('tests/table_test.py',),
    'retrieval_jax/host_table.py': ('tests/host_table_test.py',),
    'retrieval_jax/scoring.py': ('tests/scoring_test.py',),
    'retrieval_jax/quantisation.py': ('tests/quantisation_test.py',),
    'retrieval_jax/indexes/quantised.py': ('tests/indexes/quantised_test.py',),
    'retrieval_jax/ceiling.py': ('tests/ceiling_test.py',),
    'retrieval_jax/method.py': ('tests/method_test.py',),
    'retrieval_jax/compatibility.py': ('tests/method_test.py',),
    'retrieval_jax/memories/*.py': (
        'tests/memories', 'tests/table_test.py',
        'tests/conformance_test.py::MemoryTest',
        'tests/conformance_test.py::ValueTest'),
    'retrieval_jax/objectives/columns.py': (
        'tests/objectives/columns_test.py',),
    'retrieval_jax/objectives/marginal.py': (
        'tests/objectives/marginal_test.py',),
    'retrieval_jax/objectives/*.py': (
        'tests/objectives', 'tests/conformance_test.py::ObjectiveTest'),
    'retrieval_jax/samplers/simans.py': (
        'tests/samplers/simans_test.py', *_SAMPLERS),
    'retrieval_jax/samplers/tree.py': (
        'tests/samplers/tree_test.py', *_SAMPLERS),
    'retrieval_jax/samplers/pool*.py': (
        'tests/samplers/pool_test.py', 'tests/samplers/pool_gumbel_test.py',
        *_SAMPLERS),
    'retrieval_jax/samplers/*.py': _SAMPLERS,
    'retrieval_jax/tree_bounds.py': (
        'tests/samplers/tree_test.py::BoundTest',),
    'retrieval_jax/tree*.py': (
        'tests/tree_test.py', 'tests/samplers/tree_test.py'),
    'retrieval_jax/correctors/*.py': (
        'tests/correctors/correctors_test.py::DriftTest',
        'tests/correctors/nystrom_test.py',
        'tests/conformance_test.py::CorrectorTest',
        'tests/conformance_test.py::ValueTest',
        'tests/training/cost_test.py',
        'tests/correctors/correctors_test.py::MapsTest',
        'tests/correctors/correctors_test.py::LinearTest',
        'tests/correctors/correctors_test.py::MlpTest'),
    'retrieval_jax/models/readers/extractive.py': (
        'tests/models/readers/extractive_test.py', 'tests/reading_test.py'),
    'retrieval_jax/reading.py': ('tests/reading_test.py',),
    'retrieval_jax/evaluation/answers.py': (
        'tests/evaluation/answers_test.py',),
    'retrieval_jax/mining/*.py': ('tests/mining',),
    **dict.fromkeys(
        [f'retrieval_jax/adapters/{name}.py'
         for name in ('fitting', 'problem', 'store')],
        ('tests/adapters', 'tests/experiments/adapt_test.py')),
    'retrieval_jax/adapters/*.py': ('tests/adapters',),
}

KILLED, TIMED_OUT, SURVIVED = 'killed', 'timed out', 'survived'


@dataclasses.dataclass(frozen=True)
class Mutant:
  """One changed place of a module.

  Attributes:
    module: path from the root of the checkout.
    operator: Cosmic Ray's name of the change.
    source: the module after the change.
    changed: the new lines without their indentation; where lines only
      disappeared, '(removed)' and those. What `equivalent.json` goes by.
    diff: for people.
  """
  module: str
  operator: str
  source: str
  changed: str
  diff: str


def exempt(source):
  """Returns the (start, end) of all that is not to be changed, by position."""
  spans = []
  for node in ast.walk(ast.parse(source)):
    parts = [getattr(node, 'annotation', None), getattr(node, 'returns', None)]
    if isinstance(node, ast.Raise):
      parts.append(node)
    spans += [((part.lineno, part.col_offset),
               (part.end_lineno, part.end_col_offset))
              for part in parts if part is not None]
  return spans


def places_of(source):
  """Returns [((line, column), operator, occurrence)] of all possible changes.

  An operator of Cosmic Ray counts the places where it applies; `occurrence`
  is the number of one of them.
  """
  spans, found, tree = exempt(source), [], trees.get_ast(source)
  for name in sorted(plugins.operator_names()):
    kind = plugins.get_operator(name)
    if kind.arguments():
      continue  # replaces variables that one has to name
    starts = [start for node in trees.ast_nodes(tree)
              for start, _ in kind().mutation_positions(node)]
    found += [(start, name, n) for n, start in enumerate(starts) if not any(
        first <= start < last for first, last in spans)]
  return found


def shuffled(places, seed):
  """Returns the places in a random order that goes round all of them first.

  An arithmetic operator has a dozen changes and must not crowd out the
  conditions: no place comes a second time before each has come once.
  """
  rng, changes = random.Random(seed), collections.defaultdict(list)
  for place in places:
    changes[place[0]].append(place)
  of_places = list(changes.values())
  for of_place in of_places:
    rng.shuffle(of_place)
  rng.shuffle(of_places)
  rounds = range(max(map(len, of_places), default=0))
  return [of_place[n] for n in rounds for of_place in of_places
          if n < len(of_place)]


def mutants_of(module, source, number, seed):
  """Returns `number` Mutants of a module, or all of them for 0."""
  found = []
  for _, name, occurrence in shuffled(places_of(source), seed):
    mutated = mutating.mutate_code(
        source, plugins.get_operator(name)(), occurrence)
    if mutated is None or mutated == source or not compiles(mutated):
      continue  # the star of `def f(a, *, b)` is no product
    lines = list(difflib.unified_diff(
        source.splitlines(), mutated.splitlines(), lineterm='', n=1))[2:]
    new, old = (' '.join(line[1:].strip() for line in lines if line[0] == mark)
                for mark in '+-')
    found.append(Mutant(module, name.removeprefix('core/'), mutated,
                        new or f'(removed) {old}', '\n'.join(lines)))
    if len(found) == number:
      break
  return found


def compiles(source):
  """Returns whether this is Python."""
  try:
    ast.parse(source)
  except SyntaxError:
    return False
  return True


def guards_of(module, root):
  """Returns the arguments of pytest for a module; the first pattern counts."""
  arguments = next(value for pattern, value in GUARDS.items()
                   if fnmatch.fnmatch(module, pattern))
  there = [a for a in arguments if (root / a.split('::')[0]).exists()]
  if not there:
    raise SystemExit(f'None of the tests that guard {module} is there: '
                     f'{", ".join(arguments)}.')
  return there


def modules_of(root, wanted):
  """Returns the modules of GUARDS that the checkout has.

  Args:
    root: of the checkout.
    wanted: ends of paths, or nothing for all.
  """
  found = {}
  for pattern in GUARDS:
    for path in sorted(root.glob(pattern)):
      name = str(path.relative_to(root))
      if path.name != '__init__.py' and (
          not wanted or name.endswith(tuple(wanted))):
        found[name] = None
  return list(found)


class Copy:
  """A copy of the checkout that one worker changes and tests."""

  def __init__(self, root, folder, cache):
    """Copies what git knows or would add; `cache` is of compiled programs."""
    self.folder = folder
    shutil.rmtree(folder, ignore_errors=True)
    names = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=root,
        check=True, capture_output=True, text=True).stdout.split('\0')
    for name in filter(None, names):
      if (root / name).is_file():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, folder / name)
    # Compiled modules are told apart by size and second, as mutants are not.
    self.environment = dict(
        os.environ, PYTHONDONTWRITEBYTECODE='1',
        JAX_COMPILATION_CACHE_DIR=str(cache))

  def test(self, guards, timeout=None):
    """Returns (outcome, seconds, output) of the tests as the copy stands."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, '-m', 'pytest', '-x', '-q', '-m', '', '-p',
         'no:cacheprovider', '--disable-warnings', *guards], cwd=self.folder,
        env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True)
    try:
      output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.communicate()
      return TIMED_OUT, time.monotonic() - started, ''
    # A mutant that cannot be imported leaves pytest without the tests that were
    # named: that is noticed, too.
    return (KILLED if process.returncode else SURVIVED,
            time.monotonic() - started, output)

  def test_mutant(self, mutant, guards, timeout):
    """Returns the same of the copy with one module changed."""
    path = self.folder / mutant.module
    original = path.read_text(encoding='utf-8')
    try:
      path.write_text(mutant.source, encoding='utf-8')
      return self.test(guards, timeout)
    finally:
      path.write_text(original, encoding='utf-8')


class Results:
  """What was found before, and now; one line of JSON each in a file."""

  def __init__(self, path):
    self._path, self._found = path, {}
    if path.exists():
      for line in path.read_text(encoding='utf-8').splitlines():
        record = json.loads(line)
        self._found[record['mutant']] = record

  def outcome(self, mutant, tests):
    """Returns the outcome, or None if the mutant is to be tested."""
    record = self._found.get(digest(mutant.source))
    if record is None or (
        record['outcome'] == SURVIVED and record['tests'] != tests):
      return None
    return record['outcome']

  def add(self, mutant, tests, outcome, seconds):
    """Keeps an outcome."""
    record = {'mutant': digest(mutant.source), 'tests': tests,
              'module': mutant.module, 'changed': mutant.changed,
              'outcome': outcome, 'seconds': round(seconds, 1)}
    self._found[record['mutant']] = record
    with open(self._path, 'a', encoding='utf-8') as file:
      file.write(json.dumps(record) + '\n')


def digest(*texts):
  """Returns a short name for texts."""
  return hashlib.sha256('\0'.join(texts).encode()).hexdigest()[:16]


def digest_of_tests(root, guards):
  """Returns a name for the test files, the helpers included."""
  files = [root / 'tests/helpers.py']
  for guard in guards:
    path = root / guard.split('::')[0]
    files += sorted(path.rglob('*.py')) if path.is_dir() else [path]
  return digest(*guards, *(f.read_text(encoding='utf-8') for f in files))


def test_module(module, mutants, root, copies, results):
  """Tests the mutants of one module that are not in the results yet."""
  guards = guards_of(module, root)
  tests = digest_of_tests(root, guards)
  left = [m for m in mutants if results.outcome(m, tests) is None]
  if not left:
    return tests
  copy = copies.get()
  outcome, seconds, output = copy.test(guards)
  copies.put(copy)
  if outcome != SURVIVED:
    raise SystemExit(f'The tests of {module} fail without a mutant:\n'
                     f'{output[-3000:]}')
  say(f'{module}: {len(left)} mutants; tests of {seconds:.0f} s')

  def one(mutant):
    copy = copies.get()
    try:
      # Generous: the mutant may have to be compiled where the original was
      # not, on a machine that does other work too.
      return mutant, copy.test_mutant(
          mutant, guards, timeout=max(600, 10 * seconds))
    finally:
      copies.put(copy)

  with concurrent.futures.ThreadPoolExecutor(copies.qsize()) as pool:
    for mutant, (outcome, seconds_, _) in pool.map(one, left):
      results.add(mutant, tests, outcome, seconds_)
      say(f'  {outcome} in {seconds_:.0f} s: {mutant.changed}')
  return tests


def report(found, equivalent):
  """Prints the table and the survivors.

  Args:
    found: {module: [(Mutant, outcome)]}.
    equivalent: {module: {changed: reason}}.
  """
  rows, survivors = [], []
  for module, outcomes in found.items():
    same = [m for m, outcome in outcomes if outcome == SURVIVED
            and m.changed in equivalent.get(module, {})]
    count = collections.Counter(outcome for _, outcome in outcomes)
    survivors += [m for m, outcome in outcomes
                  if outcome == SURVIVED and m not in same]
    rows.append((module, len(outcomes), count[KILLED], count[TIMED_OUT],
                 count[SURVIVED] - len(same), len(same)))
  rows.append(('all', *(sum(row[i] for row in rows) for i in range(1, 6))))
  print(f'{"module":44}{"mutants":>8}{"killed":>8}{"timed out":>10}'
        f'{"survived":>9}{"equivalent":>11}{"score":>7}')
  for name, mutants, killed, late, survived, same in rows:
    score = f'{(killed + late) / (mutants - same):.0%}' * (mutants > same)
    print(f'{name:44}{mutants:8}{killed:8}{late:10}{survived:9}{same:11}'
          f'{score:>7}')
  for mutant in survivors:
    print(f'\n{mutant.module} ({mutant.operator})\n{mutant.diff}')


def say(text):
  """Prints progress, apart from the report."""
  print(text, file=sys.stderr, flush=True)


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--per_module', type=int, default=6,
                      help='mutants of each module, drawn at random; 0: all')
  parser.add_argument('--seed', type=int, default=0, help='of the draw')
  parser.add_argument('--modules', type=lambda text: text.split(','),
                      default=[], help='ends of paths, with commas; all')
  parser.add_argument('--jobs', type=int, default=1, choices=(1, 2),
                      help='mutants tested at a time')
  parser.add_argument('--work', type=pathlib.Path,
                      default=pathlib.Path('runs/mutation'),
                      help='folder of copies, results and compiled programs')
  parser.add_argument('--checkout', type=pathlib.Path, default=HERE.parents[1],
                      help='root of the code and tests; those around this file')
  parser.add_argument('--report_only', action='store_true',
                      help='test nothing, report what is known')
  arguments = parser.parse_args()
  root, work = arguments.checkout.resolve(), arguments.work.resolve()
  work.mkdir(parents=True, exist_ok=True)
  results = Results(work / 'results.jsonl')
  equivalent = json.loads((HERE / 'equivalent.json').read_text('utf-8'))
  copies = queue.Queue()
  if not arguments.report_only:
    for job in range(arguments.jobs):
      copies.put(Copy(root, work / f'copy_{job}', work / 'jax_cache'))
  found = {}
  for module in modules_of(root, arguments.modules):
    mutants = mutants_of(
        module, (root / module).read_text('utf-8'), arguments.per_module,
        f'{arguments.seed} {module}')
    if arguments.report_only:
      tests = digest_of_tests(root, guards_of(module, root))
    else:
      tests = test_module(module, mutants, root, copies, results)
    known = [(m, results.outcome(m, tests)) for m in mutants]
    if any(outcome for _, outcome in known):
      found[module] = [(m, outcome) for m, outcome in known if outcome]
  report(found, equivalent)


if __name__ == '__main__':
  main()
