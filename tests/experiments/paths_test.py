"""~ is the user's home in everything that names a file or folder."""

import importlib
import os
import pathlib
import re
import shutil
import sys

from absl import flags
import pytest

from configs import base
from configs import in_batch
import experiments
from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax.factory import encoders
from retrieval_jax.jobs import embed
from tests.data import formats

_SCRIPTS = sorted(
    path.stem for path in pathlib.Path(experiments.__path__[0]).glob('*.py')
    if path.stem not in ('__init__', 'process'))
# A config's flag holds what is in the file; a cache is expanded where it is
# used; --sweep of experiments.sweep is a function in a file.
_OTHERS = {('*', 'config'), ('*', 'cache'), ('sweep', 'sweep'),
           ('embed', 'pairs')}


@pytest.fixture(name='home', autouse=True)
def fixture_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  return str(tmp_path)


@pytest.mark.parametrize('script, others', [
    ('embed', ['--out=o']), ('evaluate', []), ('mine', ['--out=o']),
    ('search', []), ('train', ['--workdir=w'])])
def test_the_file_of_a_config_expands_it(script, others, home, monkeypatch):
  shutil.copy('configs/in_batch.py', os.path.join(home, 'mine.py'))
  arguments = ['x', '--config=~/mine.py:tiny', '--config.seed=5', *others]
  monkeypatch.setattr(sys, 'argv', arguments)
  values = flags.FlagValues()
  importlib.import_module(f'experiments.{script}').define_flags(values)
  values(arguments)
  assert values.config.seed == 5
  assert values.config.batch_size == in_batch.get_config('tiny').batch_size


@pytest.mark.parametrize('script', _SCRIPTS)
def test_flags_of_files_and_folders_expand_it(script, home):
  values = flags.FlagValues()
  importlib.import_module(f'experiments.{script}').define_flags(values)
  seen = set()
  for name in values:
    flag = values[name]
    if (re.search(r'\b([Ff]older|[Ff]ile)s?\b', flag.help)
        and not {('*', name), (script, name)} & _OTHERS
        and flag.flag_type() not in ('bool', 'int', 'string enum')):
      flag.parse('~/x')
      expected = os.path.join(home, 'x')
      assert flag.value in (expected, [expected]), name
      seen.add(name)
  assert seen & {'workdir', 'out', 'path', 'model'}


def test_the_path_of_the_data_expands_it(home):
  formats.write_pairs(os.path.join(home, 'data'), formats.FIRST)
  assert list(factory.make_reader('pairs', '~/data', '').queries())


def test_the_run_to_start_from_expands_it(home):
  os.makedirs(os.path.join(home, 'run', 'checkpoints'))
  config = base.get_config('tiny')
  config.model.start_from = '~/run'
  with pytest.raises(FileNotFoundError, match=f'No checkpoint in {home}'):
    encoders._started(config)


def test_files_of_pairs_to_embed_expand_it(home):
  with open(os.path.join(home, 'x.jsonl'), 'w', encoding='utf-8') as f:
    f.write('{"_id": "d1", "title": "a"}\n')
  names = data.Collection(
      name='', corpus_ids=['d1'], query_ids=[], qrels={})
  assert embed._texts('title=~/x.jsonl', names) == (('d1',), ('a',))
