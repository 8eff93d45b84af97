"""What a user imports, and which way the imports of the package point."""

import ast
import graphlib
import os
import pathlib
import subprocess
import sys
import tomllib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

import retrieval_jax
from retrieval_jax.factory import defaults

_ROOT = pathlib.Path(__file__).parents[1]


class PublicNamesTest(parameterized.TestCase):

  @parameterized.parameters(retrieval_jax.__all__)
  def test_is_there_and_says_what_it_is(self, name):
    self.assertTrue(getattr(retrieval_jax, name).__doc__)
    self.assertIn(name, dir(retrieval_jax))

  def test_others_are_refused(self):
    with self.assertRaisesRegex(AttributeError, "no attribute 'trian'"):
      retrieval_jax.trian  # noqa: B018

  def test_importing_the_package_is_cheap(self):
    code = ('import sys, retrieval_jax; '
            'print(*sorted(set(sys.modules) & {"jax", "numpy", "absl"}))')
    found = subprocess.run(
        [sys.executable, '-c', code], cwd=_ROOT, text=True, check=True,
        stdout=subprocess.PIPE).stdout
    self.assertEqual(found.strip(), '')

  def test_there_is_one_version(self):
    with open(os.path.join(_ROOT, 'pyproject.toml'), 'rb') as file:
      project = tomllib.load(file)
    self.assertNotIn('version', project['project'])
    self.assertEqual(project['tool']['setuptools']['dynamic']['version'],
                     {'attr': 'retrieval_jax.__version__'})
    self.assertRegex(retrieval_jax.__version__, r'^\d+\.\d+\.\d+')


class LoadConfigTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    before = os.getcwd()
    self.addCleanup(os.chdir, before)
    self.path = self.create_tempfile('mine.py', (
        'from retrieval_jax.factory import defaults\n'
        'STEPS = 7\n'
        'def get_config(variant=""):\n'
        '  config = defaults.get_config()\n'
        '  config.num_steps = len(variant) or STEPS\n'
        '  return config\n')).full_path

  def test_takes_a_file_and_a_variant_as_the_command_line_does(self):
    self.assertEqual(defaults.load_config(self.path).num_steps, 7)
    self.assertEqual(defaults.load_config(self.path + ':tiny').num_steps, 4)
    os.chdir(os.path.dirname(self.path))
    self.assertEqual(defaults.load_config('mine.py').num_steps, 7)

  def test_finds_installed_configs_from_anywhere(self):
    os.chdir(self.create_tempdir().full_path)
    with mock.patch.object(sys, 'path', [str(_ROOT), *sys.path]):
      self.assertEqual(
          defaults.load_config('configs/quickstart.py:tiny').num_steps, 4)

  def test_a_missing_file_is_named(self):
    with self.assertRaisesRegex(FileNotFoundError, "'configs/nowhere.py'"):
      defaults.load_config('configs/nowhere.py')


class ImportsTest(absltest.TestCase):

  def test_scripts_and_configs_stay_out_of_the_package(self):
    outside = {'experiments', 'configs', 'tests'}
    for path in sorted(_ROOT.glob('retrieval_jax/**/*.py')):
      roots = {name.split('.')[0] for name in imported(path)}
      self.assertFalse(roots & outside, path)

  def test_no_script_imports_another(self):
    shared = {'experiments.process', 'experiments.benchmarks.hlo',
              'experiments.benchmarks.memory',
              'experiments.benchmarks.roofline',
              'experiments.benchmarks.shapes'}
    for path in sorted(_ROOT.glob('experiments/**/*.py')):
      found = {name for name in imported(path)
               if name.startswith('experiments.')}
      self.assertLessEqual(found, shared, path)

  def test_what_is_below_imports_nothing_above(self):
    """... < training < factory < trained < jobs, and no circle anywhere."""
    graph = {}
    for path in _ROOT.glob('retrieval_jax/**/*.py'):
      part = path.relative_to(_ROOT / 'retrieval_jax').with_suffix('').parts[0]
      found = {name.split('.')[1] for name in imported(path)
               if name.startswith('retrieval_jax.')}
      graph.setdefault(part, set()).update(found - {part})
    for above, importers in (
        ('jobs', set()), ('trained', {'jobs'}),
        ('factory', {'trained', 'jobs'}),
        ('training', {'factory', 'trained', 'jobs'})):
      found = {part for part, below in graph.items() if above in below}
      self.assertLessEqual(found, importers, above)
    list(graphlib.TopologicalSorter(graph).static_order())  # or a CycleError


def imported(path):
  """Returns the dotted names that a file imports, for types alone left out."""
  names, nodes = [], [ast.parse(path.read_text('utf-8'))]
  while nodes:
    node = nodes.pop()
    if isinstance(node, ast.Import):
      names += [name.name for name in node.names]
    elif isinstance(node, ast.ImportFrom):
      names += [f'{node.module}.{name.name}' for name in node.names]
    elif not (isinstance(node, ast.If)
              and ast.unparse(node.test).endswith('TYPE_CHECKING')):
      nodes += ast.iter_child_nodes(node)
  return names


if __name__ == '__main__':
  absltest.main()
