"""Tests of what importing the package needs."""

import ast
import graphlib
import pathlib
import subprocess
import sys

from absl.testing import absltest

from retrieval_jax import data


def imports_of(path):
  """Yields the modules that a file imports, late or not."""
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.ImportFrom):
      for alias in node.names:
        yield node.module
        yield f'{node.module}.{alias.name}'


class ImportsTest(absltest.TestCase):

  def test_heavy_or_optional_packages_are_imported_late(self):
    late = ('tensorflow_datasets', 'grain', 'tokenizers', 'jax', 'wn',
            'datasets', 'ir_datasets')
    code = ('import sys, retrieval_jax.data as d; d.WordNetReader; '
            f'print([m for m in {late} if m in sys.modules])')
    found = subprocess.run([sys.executable, '-c', code], check=True,
                           capture_output=True, text=True, timeout=60)
    self.assertEqual(found.stdout.strip(), '[]')

  def test_no_module_imports_itself_in_the_end(self):
    folder = pathlib.Path(data.__file__).parent
    modules = {
        '.'.join(('retrieval_jax.data', *path.relative_to(folder).with_suffix(
            '').parts)): path
        for path in folder.rglob('*.py') if path.name != '__init__.py'}
    graph = {name: set(imports_of(path)) & modules.keys()
             for name, path in modules.items()}
    self.assertIn('retrieval_jax.data.readers.wordnet_files',
                  graph['retrieval_jax.data.readers.wordnet_tfds'])
    # Raises CycleError, which names the circle.
    self.assertLen(list(graphlib.TopologicalSorter(graph).static_order()),
                   len(modules))


if __name__ == '__main__':
  absltest.main()
