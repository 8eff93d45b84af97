"""What stands in pyproject.toml, CITATION.cff and the change log agrees."""

import ast
import pathlib
import re
import sys
import tomllib

import retrieval_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))

# Names under which a distribution is imported, where they differ from its own.
DISTRIBUTIONS = {
    'absl': 'absl-py', 'faiss': 'faiss-cpu', 'ir_datasets': 'ir-datasets',
    'ir_measures': 'ir-measures', 'ml_collections': 'ml-collections',
    'orbax': 'orbax-checkpoint', 'tensorflow_datasets': 'tensorflow-datasets'}


def sources(folder):
  return sorted((ROOT / folder).rglob('*.py'))


def imported(path):
  """Yields the top-level names of every absolute import in a file."""
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name.split('.')[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
      yield node.module.split('.')[0]


def test_the_version_is_the_same_everywhere():
  cited = re.search(r'^version: (.*)$', (ROOT / 'CITATION.cff').read_text(
      encoding='utf-8'), re.M).group(1)
  released = re.search(r'^## \[(\d.*?)\]', (ROOT / 'CHANGELOG.md').read_text(
      encoding='utf-8'), re.M).group(1)
  assert cited == released == retrieval_jax.__version__


def test_every_folder_of_the_package_is_a_package():
  # One without __init__.py would be left out of what pip installs.
  folders = {path.parent for path in sources('retrieval_jax')}
  assert [str(folder) for folder in sorted(folders)
          if not (folder / '__init__.py').exists()] == []


def test_what_the_package_imports_is_declared():
  project = PROJECT['project']
  extras = project['optional-dependencies']
  declared = {re.match(r'[\w-]+', requirement).group() for requirement in (
      project['dependencies']
      + [each for name in extras if name not in ('dev', 'test')
         for each in extras[name]])}
  names = {name for path in sources('retrieval_jax') for name in imported(path)}
  foreign = names - set(sys.stdlib_module_names) - {'retrieval_jax'}
  assert {DISTRIBUTIONS.get(name, name) for name in foreign} - declared == set()


def test_the_marker_of_types_is_packaged():
  assert (ROOT / 'retrieval_jax' / 'py.typed').exists()
  assert 'py.typed' in PROJECT['tool']['setuptools']['package-data'][
      'retrieval_jax']
