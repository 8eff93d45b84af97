"""Every notebook runs at tiny size, and is committed without outputs."""

import ast
import glob
import os

import jax
import nbformat
import pytest

from retrieval_jax import trained
from retrieval_jax.data import errors
from retrieval_jax.data.readers import wordnet_files

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOTEBOOKS = sorted(
    glob.glob(os.path.join(_ROOT, 'colab', '*.ipynb')))
each_notebook = pytest.mark.parametrize(
    'path', NOTEBOOKS, ids=[os.path.basename(path) for path in NOTEBOOKS])

# What the cell 'results' shows, and how many cells draw something.
SHOWN = {'01_quickstart.ipynb': (
    'BM25', 'untrained encoder', 'trained encoder', 'MRR@10'),
         '02_adapters.ipynb': ('encoder', '+XS', '+XL', '+NUDGE-N', 'R@100'),
         '03_answers.ipynb': (
             'BM25', 'trained encoder', 'Answer@20', 'EM', 'passages read'),
         '04_devices.ipynb': ('BM25', 'trained encoder', 'MRR@10')}
PICTURES = {'01_quickstart.ipynb': 2, '02_adapters.ipynb': 1,
            '03_answers.ipynb': 1, '04_devices.ipynb': 1}


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def read(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  return notebook


def index_of(notebook, tag):
  """Returns where the one cell with this tag stands."""
  [index] = [index for index, cell in enumerate(notebook.cells)
             if tag in cell.metadata.get('tags', ())]
  return index


@pytest.fixture(name='needs_wordnet')
def fixture_needs_wordnet():
  try:
    wordnet_files.find_wordnet()
  except errors.DataError as error:
    pytest.skip(str(error))


def test_there_are_notebooks():
  assert NOTEBOOKS


@each_notebook
def test_no_output_is_committed(path):
  for cell in code_cells(read(path)):
    assert not cell.outputs and cell.execution_count is None, cell.source


@each_notebook
def test_a_notebook_only_calls_the_package(path):
  notebook = read(path)
  install = notebook.cells[index_of(notebook, 'install')]
  for cell in code_cells(notebook):
    if cell is install:  # its shell commands are no Python
      continue
    for node in ast.walk(ast.parse(cell.source)):
      assert not isinstance(
          node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)), cell.source
      # Of this repository the package alone, and of that no inner module.
      imported = ([name.name for name in node.names]
                  if isinstance(node, ast.Import) else
                  [node.module] if isinstance(node, ast.ImportFrom) else [])
      for name in imported:
        root, _, inner = name.partition('.')
        assert root not in ('experiments', 'configs', 'tests'), cell.source
        assert root != 'retrieval_jax' or not inner, cell.source
    assert max(map(len, cell.source.splitlines())) <= 80


@each_notebook
@pytest.mark.slow
def test_every_cell_runs_at_tiny_size(
    path, needs_wordnet, tmp_path, tmp_path_factory, monkeypatch):
  del needs_wordnet
  nbclient = pytest.importorskip('nbclient')
  pytest.importorskip('ipykernel')
  monkeypatch.setenv('PYTHONPATH', _ROOT)
  monkeypatch.setenv('MPLBACKEND', 'module://matplotlib_inline.backend_inline')
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '2' if 'devices' in path else '1')
  notebook = read(path)
  workdir = str(tmp_path / 'run')
  overrides = {
      'data.cache': str(tmp_path_factory.mktemp('cache')),
      # Half of the time to compile.
      'encoding.chunk_size': 0, 'encoding.buckets': (24,)}
  notebook.cells.insert(
      index_of(notebook, 'parameters') + 1, nbformat.v4.new_code_cell(
          f'TINY = True\nWORKDIR = {workdir!r}\nOVERRIDES = {overrides!r}'))
  nbclient.NotebookClient(
      notebook, timeout=300, kernel_name='python3',
      resources={'metadata': {'path': str(tmp_path)}}).execute()
  assert os.path.exists(os.path.join(workdir, 'results.json'))
  cells = {cell.id: cell for cell in code_cells(notebook)}
  shown = ''.join(str(output.get('data', output.get('text', '')))
                  for output in cells['results'].outputs)
  for text in SHOWN[os.path.basename(path)]:
    assert text in shown
  pictures = [cell for cell in cells.values() if any(
      'image/png' in output.get('data', {}) for output in cell.outputs)]
  assert len(pictures) == PICTURES[os.path.basename(path)]
  if 'held' in cells:
    check_held(cells['held'].outputs, workdir)
  found = ''.join(output.text for output in cells['search'].outputs
                  if output.get('name') == 'stdout')
  assert len(found.splitlines()) == 5


def check_held(outputs, workdir):
  """Two devices hold the same, and half of all but small parameters."""
  text = ''.join(output.text for output in outputs
                 if output.get('name') == 'stdout')
  held = {line.split()[0]: [float(word) for word in line.split()[1:-1]]
          for line in text.splitlines()}
  assert list(held) == ['table', 'parameters', 'moments']
  for name, (first, second) in held.items():
    assert first == second > 0, name
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(
      trained.open(workdir, num_devices=1).params)) / 2**20
  assert .5 * whole <= held['parameters'][0] < .6 * whole
  assert held['moments'][0] == pytest.approx(
      2 * held['parameters'][0], rel=.02)
