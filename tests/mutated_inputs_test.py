"""Inputs with a changed byte, line or value are read rightly or refused."""

import os

import pytest

from tests import mutated_inputs


def check(examples, inputs):
  seen, wrong = set(), []

  def see(name, found, text):
    seen.add((name, found))
    if found.isupper():
      wrong.append(f'{name}: {found}: {text}')

  mutated_inputs.run(examples, see, inputs)
  assert not wrong
  assert {found for _, found in seen} == {'as before', 'read', 'refused'}
  assert {name for name, _ in seen} == set(inputs)


@pytest.mark.slow
def test_texts_embeddings_runs_and_models():
  check(200, [name for name in mutated_inputs.INPUTS
              if name not in mutated_inputs.BINARY])


@pytest.mark.slow
def test_what_libraries_read(tmp_path, monkeypatch):
  datasets = pytest.importorskip('datasets')
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path)
  check(150, mutated_inputs.BINARY)


@pytest.mark.parametrize('name, path, old, new, message', [
    ('beir', 'corpus.jsonl', b'third', b'fourth', 'has the text'),
    ('run', 'a.run', b'0.5', b'0.25', 'expected'),
    ('embeddings', 'targets.npy', None, None, 'other numbers'),
    ('model', 'model.safetensors', None, None, 'not in the file')])
def test_other_values_than_those_of_the_files_are_noticed(
    name, path, old, new, message, tmp_path):
  folder = str(tmp_path / 'input')
  value = mutated_inputs.build(name, folder)()
  assert not mutated_inputs.wrongly_read(name, folder, value)
  path = os.path.join(folder, path)
  with open(path, 'rb') as file:
    content = bytearray(file.read())
  if old is None:
    content[len(content) * 3 // 4] ^= 1
  else:
    content = content.replace(old, new)
  with open(path, 'wb') as file:
    file.write(content)
  assert message in mutated_inputs.wrongly_read(name, folder, value)
