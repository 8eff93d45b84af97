"""What the documents say is so: commands, options, links, tables, sizes.

A command is whatever stands in code after `python -m experiments`. It must
parse as its script would parse it; nothing is run.
"""

import ast
import copy
import importlib
import importlib.util
import inspect
import itertools
import pathlib
import re
import shlex
import sys
from unittest import mock

from absl import flags
import pytest

from configs import base
from experiments.dev import flag_tables
from experiments.results.stale_negatives import costs
import retrieval_jax
from retrieval_jax import indexes
from retrieval_jax import runtime
from retrieval_jax.factory import registries
from retrieval_jax.mining import formats
from retrieval_jax.objectives import estimators

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md',
             *sorted((ROOT / 'docs').glob('*.md')),
             *sorted((ROOT / 'experiments' / 'results').rglob('README.md'))]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
SCRIPTS = sorted((ROOT / 'experiments').rglob('*.py'))
OPTIONS = {name: set(base.get_config()[name].keys())
           for name, value in base.get_config().items()
           if hasattr(value, 'keys')}
HOMES = {'retrieval_jax': retrieval_jax,
         'retriever': retrieval_jax.TrainedRetriever}
FILES = ('json', 'jsonl', 'npy', 'safetensors')  # `targets.npy` is no option

_FENCED = re.compile(r'^```.*?\n(.*?)^```', re.S | re.M)
_INDENTED = re.compile(r'(?:(?<=\n\n)|^)((?:    .*\n)+)', re.M)
_INLINE = re.compile(r'(?<!`)`([^`]+)`(?!`)')
_COMMAND = re.compile(r'python3? -m (experiments[\w.{},]*)([^\n]*)')
_VARIABLE = re.compile(r'^\s*(\w+)=(".*?"|\S+)$', re.S | re.M)
_OPTION = re.compile(r'(?:--config\.)?([a-z_]+)\.([a-z_][a-z_0-9]*)(?:=.*)?')
_FILE = re.compile(
    r'(?:retrieval_jax|experiments|configs|tests|docs|colab)/[a-z_0-9/.]+')
PYTHON = re.compile(r'^```python\n(.*?)^```', re.S | re.M)
_LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)|<img [^>]*src="([^"]+)"')

# ml_collections loads configs in a way that Python is giving up.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')
each_document = pytest.mark.parametrize(
    'path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def read(path):
  return path.read_text(encoding='utf-8')


def code(text):
  """Returns (blocks, spans): the code of a Markdown text."""
  blocks = _FENCED.findall(text)
  text = _FENCED.sub('', text)
  blocks += _INDENTED.findall(text)
  text = _INDENTED.sub('', text)
  spans = [' '.join(span.split()) for span in _INLINE.findall(text)]
  return blocks, spans


def commands(text):
  """Returns (module, arguments) of every command in some code."""
  text = text.replace('\\\n', ' ')
  variables = dict(_VARIABLE.findall(text))
  found = []
  for modules, rest in _COMMAND.findall(text):
    for name, value in variables.items():
      rest = re.sub(rf'\${name}\b', ' '.join(value.strip('"').split()), rest)
    # [--flag] may be left out; in a test it is not.
    rest = re.sub(r'\[(-[^\]]*)\]', r'\1', rest)
    words = shlex.split(rest, comments=True)
    arguments = list(itertools.takewhile(
        lambda word: word not in ('&&', '|', '>', ';'), words))
    for module in expand(modules):
      found.append((module, arguments))
  return found


def expand(text):
  """Returns 'a.b' and 'a.c' for 'a.{b,c}'."""
  head, brace, rest = text.partition('{')
  inner, _, tail = rest.partition('}')
  return [head + each + tail for each in inner.split(',')] if brace else [text]


def commands_of(path):
  if path.suffix == '.py':
    return commands(ast.get_docstring(ast.parse(read(path))) or '')
  blocks, spans = code(read(path))
  # Shell variables hold for the rest of a document.
  return commands('\n'.join(blocks)) + [
      command for span in spans for command in commands(span)]


COMMANDS = [
    pytest.param(module, arguments, id=f'{path.name}-{i}-{module}')
    for path in DOCUMENTS + CONFIGS + SCRIPTS
    for i, (module, arguments) in enumerate(commands_of(path))]

_benchmark_flags = {}


def flags_of(module):
  """Returns fresh FlagValues with the flags of a script."""
  own = flags.FlagValues()
  with mock.patch.object(runtime, 'configure_allocator'):
    script = importlib.import_module(module)
  if hasattr(script, 'define_flags'):
    script.define_flags(own)
    return own
  # A benchmark defines its flags when it is imported, under names that other
  # benchmarks have too; so they are taken out of the global ones at once.
  if module not in _benchmark_flags:
    for flag in flags.FLAGS.get_flags_for_module(module):
      own[flag.name] = flag
      delattr(flags.FLAGS, flag.name)
    _benchmark_flags[module] = own
  return copy.deepcopy(_benchmark_flags[module])


def parse(module, arguments):
  """Parses a command line like its script; returns (flags, what is left)."""
  values = flags_of(module)
  # ml_collections finds the overrides of a config in sys.argv.
  with mock.patch.object(sys, 'argv', [module, *arguments]):
    rest = values([module, *arguments])[1:]
  if 'config' in values and values.config is not None:
    getattr(values.config, 'seed', None)  # raises where there is no such file
  return values, rest


def check(module, arguments):
  """Raises where a command would not get past the flags of its script."""
  path = ROOT / (module.replace('.', '/') + '.py')
  if not path.exists():
    raise ValueError(f'{module} is not there')
  values, rest = parse(module, arguments)
  if module == 'experiments.sweep':
    check_sweep(values.config, values.sweep, rest)
  elif rest:
    raise ValueError(f'{rest} are no flags')


def check_sweep(config, function, rest):
  """Raises where a sweep, or what it hands on to its runs, cannot be."""
  path, _, _ = config.partition(':')
  spec = importlib.util.spec_from_file_location('swept', ROOT / path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  for overrides in getattr(module, function)():
    overrides = {name: value for name, value in overrides.items()
                 if name != 'name'}
    module.get_config().update_from_flattened_dict(overrides)
  check('experiments.train', [f'--config={config}', '--workdir=W', *rest])


@pytest.mark.parametrize('module, arguments', COMMANDS)
def test_commands_parse(module, arguments, monkeypatch):
  monkeypatch.chdir(ROOT)
  check(module, arguments)


@pytest.mark.parametrize('command, message', [
    ('python -m experiments.nothing', 'not there'),
    ('python -m experiments.train --config=configs/stale.py', 'workdir'),
    ('python -m experiments.train --config=configs/x.py --workdir=W', 'x.py'),
    ('python -m experiments.train --config=configs/stale.py:x --workdir=W',
     'variant'),
    ('python -m experiments.train --config=configs/stale.py --workdir=W '
     '--config.sampler.k=4', 'k'),
    ('python -m experiments.train --config=configs/stale.py --workdir=W '
     '--config.batch_size=n', 'n'),
    ('python -m experiments.mine --out=DIR --margin=1', 'margin'),
    ('python -m experiments.mine --out=DIR --sampling=best', 'best'),
    ('python -m experiments.mine --out=DIR GRID', 'GRID'),
    ('python -m experiments.sweep --config=configs/stale.py --sweep=no '
     '--workdir=W', 'no'),
    ('python -m experiments.sweep --config=configs/stale.py --sweep=seeds '
     '--workdir=W -- --config.seeds=1', 'seeds'),
    ('python -m experiments.benchmarks.search --rows=1', 'rows'),
    ('python -m experiments.benchmarks.{step,search} --num_targets=1',
     'num_targets'),
])
def test_wrong_commands_do_not(command, message, monkeypatch):
  monkeypatch.chdir(ROOT)
  found = commands(command)
  assert found
  with pytest.raises(Exception, match=message):
    for module, arguments in found:
      check(module, arguments)


def test_other_commands_have_their_options():
  # Of modules that take their options by argparse.
  found = re.findall(r'python -m (tests[\w.]+)([^\n`]*)', '\n'.join(
      read(path) for path in DOCUMENTS))
  assert found
  for module, rest in found:
    source = read(ROOT / (module.replace('.', '/') + '.py'))
    for option in re.findall(r'--\w+', rest):
      assert f"'{option}'" in source, f'{module} has no {option}'


def test_commands_are_found_in_all_kinds_of_code():
  text = ('`python -m experiments.a\n --x=1`, and\n\n'
          '    G="--y=2\n        -z"\n'
          '    python -m experiments.b \\\n      $G [--w=3]\n\n'
          '```bash\na && .venv/bin/python -m experiments.c --v="1 2" && b\n'
          '```\nno `code`: python -m experiments.d\n')
  blocks, spans = code(text)
  assert commands('\n'.join(blocks)) == [
      ('experiments.c', ['--v=1 2']),
      ('experiments.b', ['--y=2', '-z', '--w=3'])]
  assert [each for span in spans for each in commands(span)] == [
      ('experiments.a', ['--x=1'])]


@each_document
def test_options_exist(path):
  text = read(path)
  blocks, spans = code(text)
  named = [_OPTION.fullmatch(span) for span in spans]
  named += [_OPTION.match(word) for block in blocks for word in block.split()
            if word.startswith('--config.')]
  unknown = {found.group() for found in named
             if found and found[1] in OPTIONS and found[2] not in FILES
             and found[2] not in OPTIONS[found[1]]}
  assert not unknown
  for section, name in tabulated(text):
    assert name in OPTIONS[section], f'there is no {section}.{name}'


def tabulated(text):
  """Yields (section, option) of tables headed 'option of `SECTION`'."""
  for table in re.findall(r'(?:^\|.*\n)+', text, re.M):
    section = re.match(r'\| options? of `(\w+)`', table)
    if section:
      for row in table.splitlines()[2:]:
        for name in _INLINE.findall(row.split('|')[1]):
          yield section[1], name


def test_every_option_is_described():
  described = set()
  for path in sorted((ROOT / 'docs').glob('*.md')):
    text = read(path)
    described.update(tabulated(text))
    described.update(
        found.groups() for found in map(_OPTION.fullmatch, code(text)[1])
        if found)
  every = {(section, name) for section, names in OPTIONS.items()
           for name in names}
  assert sorted(every - described) == []


@pytest.mark.parametrize('registry, page, column', [
    (registries.MEMORIES, 'methods.md', 1),
    (registries.SAMPLERS, 'methods.md', 1),
    (registries.CORRECTORS, 'methods.md', 1),
    (estimators.ESTIMATORS, 'methods.md', 1),
    (registries.READERS, 'data.md', 1),
    (indexes.INDEXES, 'mining.md', 2), (formats.FORMATS, 'mining.md', 2)])
def test_every_component_is_described(registry, page, column):
  cells = [row.split(' | ')[column - 1] for row in re.findall(
      r'^\| (.*) \|$', read(ROOT / 'docs' / page), re.M) if ' | ' in row]
  named = {name.rpartition('=')[2] for cell in cells
           for name in _INLINE.findall(cell)}
  assert set(registry) - named == set()


def test_every_config_is_described():
  text = read(ROOT / 'README.md') + read(ROOT / 'docs' / 'methods.md')
  assert [path.name for path in CONFIGS if path.name != '__init__.py'
          and f'configs/{path.name}' not in text] == []


@each_document
def test_files_exist(path):
  # Those that stand for others have capitals: retrieval_jax/models/NAME.py.
  named = [span for span in code(read(path))[1] if _FILE.fullmatch(span)]
  assert [name for name in named if not (ROOT / name).exists()] == []


@each_document
def test_python_code_calls_what_there_is(path):
  for block in PYTHON.findall(read(path)):
    for node in ast.walk(ast.parse(block)):
      if isinstance(node, ast.Import | ast.ImportFrom):
        exec(compile(ast.Module([node], []), 'imports', 'exec'), {})
      if isinstance(node, ast.Call):
        check_call(node)


def check_call(node):
  """Checks a call of a function of HOMES: its name and its arguments."""
  function = node.func
  home = isinstance(function, ast.Attribute) and HOMES.get(
      getattr(function.value, 'id', None))
  if home:
    method = getattr(home, function.attr)
    inspect.signature(method).bind(
        *[None] * (isinstance(home, type) + len(node.args)),  # with self
        **{keyword.arg: None for keyword in node.keywords})
    if function.attr == 'load_config':
      method(str(ROOT / node.args[0].value))


def test_every_public_name_is_described():
  assert set(retrieval_jax.__all__) - set(
      code(read(ROOT / 'docs' / 'python.md'))[1]) == set()


@each_document
def test_links_lead_somewhere(path):
  for found in _LINK.findall(_FENCED.sub('', read(path))):
    link = ''.join(found)
    if re.match(r'\w+:', link):
      continue
    file, _, heading = link.partition('#')
    target = (path.parent / file).resolve() if file else path
    assert target.exists(), f'{link} leads nowhere'
    if heading:
      assert heading in headings(read(target)), f'{link}: no such heading'


def headings(text):
  """Returns the anchors of a document's headings."""
  return {re.sub(r'[^\w\- ]', '', title.lower()).strip().replace(' ', '-')
          for title in re.findall(r'^#+ (.*)$', _FENCED.sub('', text), re.M)}


def test_readme_is_short():
  assert (ROOT / 'README.md').stat().st_size <= 10_000


def test_flag_tables_are_current():
  path = ROOT / flag_tables.FILE
  assert set(re.findall(r'<!-- flags of (\w+) -->', read(path))) == set(
      flag_tables.scripts())
  assert flag_tables.up_to_date(read(path)) == read(path), (
      'run python -m experiments.dev.flag_tables')


def test_every_page_is_linked():
  linked = {''.join(found).partition('#')[0]
            for found in _LINK.findall(read(ROOT / 'README.md'))}
  assert [path.name for path in sorted((ROOT / 'docs').iterdir())
          if path.is_file() and f'docs/{path.name}' not in linked] == []
  clusters = read(ROOT / 'docs' / 'clusters.md')
  assert [path.name for path in (ROOT / 'docs' / 'clusters').iterdir()
          if f'(clusters/{path.name})' not in clusters] == []


def test_costs_are_those_of_the_runs():
  page = read(pathlib.Path(costs.__file__).with_name('README.md'))
  for lines in (costs.of_arms(), costs.break_even()):
    assert '\n' + '\n'.join(lines) + '\n\n' in page
