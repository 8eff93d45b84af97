r"""Mutates a byte, a line or a value of inputs of every kind and reads them.

  python -m tests.mutated_inputs --examples=1000 --out=mutated.json

Each is to be read rightly or refused: by a ValueError or OSError whose message
names a file of the input. Rightly means: with the values that a short reader of
our own, which knows nothing of the product, finds in the mutated files; for
model folders, that every tensor is one of the file. Hypothesis draws the
mutations, by a fixed seed, and shrinks what fails.
"""

import argparse
import atexit
import collections
import functools
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import types
import warnings

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np

from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax import files
from retrieval_jax.data import embeddings
from retrieval_jax.evaluation import trec
from retrieval_jax.models import pretrained
from tests.data import formats
from tests.models import bert_folder

TEXTS = ('beir', 'dpr', 'msmarco', 'pairs', 'pairs, tsv', 'tevatron',
            'tevatron, ids', 'trec')
BINARY = ('hf', 'hf, parquet', 'tfds')  # read by the libraries of that name
INPUTS = (*TEXTS, *BINARY, 'embeddings', 'run', 'model')
_PIECES = (
    b'\x00', b'\xff', b'\xc3', b'\xef\xbb\xbf', b'\t', b'\n', b'\r', b' ', b'"',
    b'{', b']', b',', b'-1', b'nan', b'1e999', b'null', b'\\',
    '\u2028'.encode(), b'9' * 30)
_VALUES = (None, True, -1, 0, 1.5, 10**30, float('nan'), '', 'x', [], {}, [1],
           {'a': 1}, [[]])


def build(name, folder):
  """Writes an input; returns a function that reads it."""
  if name in BINARY:
    written = _written_once(name)
    shutil.copytree(written.folder, folder)
    path = written.path.replace(written.folder, folder)
    return lambda: _read_data(name.split(',')[0], path, folder)
  os.makedirs(folder)
  if name in TEXTS:
    path = formats.WRITERS[name](folder, formats.FIRST)
    return lambda: _read_data(name.split(',')[0], path, folder)
  if name == 'embeddings':
    rng = np.random.default_rng(0)
    for side, number in (('targets', 6), ('queries', 3)):
      np.save(f'{folder}/{side}.npy', rng.standard_normal((number, 4)))
      ids = [f'{side[0]}{i}\n' for i in range(number)]
      files.write_text(f'{folder}/{embeddings._IDS[side]}', ''.join(ids))
    files.write_text(f'{folder}/qrels/test.tsv',
                     'query-id\tcorpus-id\tscore\nq0\tt1\t1\nq2\tt5\t2\n')
    return lambda: _read_embeddings(folder)
  if name == 'run':
    files.write_text(f'{folder}/a.run', ''.join(
        f'q{i} Q0 d{j} {j + 1} {1 / (1 + i + j)} tag\n'
        for i in range(3) for j in range(4)))
    return lambda: _read_run(f'{folder}/a.run')
  assert name == 'model'
  bert_folder.write(folder)
  for file in ('tokenizer.json', 'tokenizer_config.json'):
    shutil.copy(f'tests/models/families/bert/{file}', folder)
  return lambda: _read_model(folder)


@functools.cache
def _written_once(name):
  """Returns the folder and path of a data set that takes long to write."""
  folder = tempfile.mkdtemp(prefix='written_')
  atexit.register(shutil.rmtree, folder)
  folder = os.path.join(folder, 'input')
  os.makedirs(folder)
  return types.SimpleNamespace(
      folder=folder, path=formats.WRITERS[name](folder, formats.FIRST))


def _read_data(source, path, folder):
  with tempfile.TemporaryDirectory() as cache:
    read = data.prepare(
        factory.make_reader(source, path, folder), cache, progress=False)
    names = lambda ids, rows: [ids[int(row)] for row in rows]
    return {
        'corpus': list(zip(read.corpus_ids, read.corpus_texts)),
        'queries': list(zip(read.query_ids, read.query_texts)),
        'qrels': {split: sorted(zip(
            names(read.query_ids, one.query_rows),
            names(read.corpus_ids, one.corpus_rows), one.grades.tolist()))
                  for split, one in read.qrels.items()},
        'candidates': {split: sorted(zip(
            names(read.query_ids, one.query_rows),
            names(read.corpus_ids, one.corpus_rows)))
                       for split, one in read.candidates.items()}}


def _read_embeddings(folder):
  targets, queries = embeddings.read_both(folder)
  read = embeddings.read_collection(
      folder, query_ids=queries.ids, corpus_ids=targets.ids)
  return {'targets': np.array(targets.vectors).tolist(), 'ids': targets.ids,
          'queries': np.array(queries.vectors).tolist(),
          'query_ids': queries.ids, 'qrels': {
              split: sorted(zip(one.query_rows.tolist(),
                                one.corpus_rows.tolist(), one.grades.tolist()))
              for split, one in read.qrels.items()}}


def _read_run(path):
  run = trec.read_run(path)
  return {query: {name: float(score) for name, score in zip(ids, scores)}
          for query, ids, scores in run.rankings()}


def _read_model(folder):
  config, params, head = pretrained.load_pretrained(folder)
  tokenizer = data.load_tokenizer(folder)
  tokens, lengths = tokenizer.encode_batch(['hello world', ''], 8)
  return {'config': repr(config), 'head': repr(head),
          'tensors': [np.asarray(leaf) for leaf in jax.tree.leaves(params)],
          'tokens': tokens.tolist(), 'lengths': lengths.tolist()}


def _strings(folder):
  """Returns all strings of JSON and all fields of lines below a folder."""
  found = set()

  def walk(value):
    if isinstance(value, str):
      found.add(value)
    elif isinstance(value, dict):
      for item in value.values():
        walk(item)
    elif isinstance(value, list):
      for item in value:
        walk(item)
    else:
      found.add(str(value))

  for parent, _, names in os.walk(folder):
    for name in names:
      with open(os.path.join(parent, name), 'rb') as file:
        text = file.read().removeprefix(b'\xef\xbb\xbf').decode('utf-8')
      if name.endswith('.json'):
        walk(json.loads(text))
        continue
      for line in text.split('\n'):
        if name.endswith('.jsonl'):
          if line.strip():
            walk(json.loads(line))
        else:
          line = line.removesuffix('\r')
          found.update(line.split('\t'))
          found.update(line.split())
  return found


def wrongly_read(name, folder, value):
  """Returns what of a value that was read is not in the files; '' if all is."""
  if name in TEXTS:
    there = _strings(folder)
    titled = lambda text: text in there or any(
        text[:cut] in there and text[cut + 1:] in there
        for cut in range(len(text)) if text[cut] == ' ')
    for column in ('corpus', 'queries'):
      for _, text in value[column]:
        if not titled(text):
          return f'{column} has the text {text!r}'
    if name not in ('dpr', 'pairs', 'pairs, tsv'):  # else ids are made
      for column in ('corpus', 'queries'):
        for one, _ in value[column]:
          if one not in there:
            return f'{column} has the id {one!r}'
    if name == 'beir':
      with open(f'{folder}/corpus.jsonl', encoding='utf-8') as file:
        number = sum(bool(line.strip()) for line in file.read().split('\n'))
      if number != len(value['corpus']):
        return f'{len(value["corpus"])} of {number} targets'
  if name == 'run':
    wanted = collections.defaultdict(dict)
    with open(f'{folder}/a.run', 'rb') as file:
      for line in file.read().split(b'\n'):
        fields = line.decode('utf-8').removeprefix('\ufeff').split()
        if len(fields) == 6:
          wanted[trec.decode_id(fields[0])][trec.decode_id(fields[2])] = (
              float(fields[4]))
        elif fields:
          wanted[trec.decode_id(fields[0])][trec.decode_id(fields[1])] = (
              -float(fields[2]))
    if wanted != value:
      return f'read {value}, expected {dict(wanted)}'
  if name == 'embeddings':
    for side in ('targets', 'queries'):
      with open(f'{folder}/{side}.npy', 'rb') as file:
        content = file.read()
      count = np.size(value[side])
      kind = {b'f8': 'f8', b'f4': 'f4', b'f2': 'f2'}[
          re.search(rb"descr': '[<>|=]?(f\d)'", content)[1]]
      order = '>' if b"'>f" in content[:128] else '<'
      width = int(kind[1])
      start = 10 + int.from_bytes(content[8:10], 'little')
      raw = np.frombuffer(
          content[start:start + count * width], order + kind)
      if sorted(raw.tolist()) != sorted(np.ravel(value[side]).tolist()):
        return f'{side} are other numbers'
  if name == 'model':
    # Some tensors are cut into one for each head, which keeps the numbers.
    there = {number for one in _tensors(f'{folder}/model.safetensors')
             for number in one.tolist()}
    for tensor in value['tensors']:
      if not there.issuperset(tensor.ravel().tolist()):
        return f'a tensor {tensor.shape} that is not in the file'
  return ''


def _tensors(path):
  """Yields the float32 arrays of a safetensors file."""
  with open(path, 'rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    header, body = json.loads(file.read(length)), file.read()
  for name, entry in header.items():
    if name != '__metadata__' and entry['dtype'] == 'F32':
      yield np.frombuffer(body[slice(*entry['data_offsets'])], '<f4')


def mutate(draw, folder):
  """Mutates a file of an input; returns a description."""
  paths = sorted(os.path.join(parent, name)
                 for parent, _, names in os.walk(folder) for name in names)
  path = draw(st.sampled_from(paths))
  with open(path, 'rb') as file:
    content = file.read()
  kinds = ['cut', 'piece', 'bit', 'delete', 'empty', 'gone', 'twice', 'no line']
  if path.endswith(('.json', '.jsonl')):
    kinds += ['value'] * 6
  kind = draw(st.sampled_from(kinds))
  # Headers are where most can go wrong, but few of the bytes.
  size = len(content)
  place = draw(st.one_of(
      st.integers(0, size), st.integers(0, min(size, 400))))
  what = ''
  if kind == 'gone':
    os.remove(path)
    return f'{os.path.basename(path)} gone'
  if kind == 'cut':
    content = content[:place]
  elif kind == 'empty':
    content = b''
  elif kind == 'piece':
    what = draw(st.sampled_from(_PIECES))
    content = content[:place] + what + content[place:]
  elif kind == 'bit' and content:
    place = min(place, size - 1)
    what = draw(st.integers(0, 7))
    content = (content[:place] + bytes([content[place] ^ (1 << what)])
               + content[place + 1:])
  elif kind == 'delete':
    what = draw(st.integers(1, 20))
    content = content[:place] + content[place + what:]
  elif kind in ('twice', 'no line'):
    lines = content.splitlines(keepends=True)
    if lines:
      at = draw(st.integers(0, len(lines) - 1))
      lines[at:at + 1] = [lines[at]] * (2 if kind == 'twice' else 0)
      content = b''.join(lines)
  elif kind == 'value':
    content, what = _with_other_value(draw, path, content)
  with open(path, 'wb') as file:
    file.write(content)
  return f'{os.path.basename(path)} {kind} at {place} {what}'


def _with_other_value(draw, path, content):
  """Replaces, renames or removes a value of a JSON or JSON lines file."""
  lines = ([content] if path.endswith('.json')
           else content.splitlines(keepends=True))
  at = draw(st.integers(0, len(lines) - 1))
  root = {'': json.loads(lines[at])}
  places = []

  def walk(value):
    items = (value.items() if isinstance(value, dict) else
             enumerate(value[:5]) if isinstance(value, list) else ())
    for key, item in list(items)[:60]:
      places.append((value, key))
      walk(item)

  walk(root)
  holder, key = draw(st.sampled_from(places))
  kind = draw(st.sampled_from(['replace', 'replace', 'replace', 'remove']))
  what = f'{kind} {key!r}'
  if kind == 'remove' and holder is not root:
    del holder[key]
  else:
    holder[key] = draw(st.sampled_from(_VALUES))
    what += f' by {holder[key]!r}'
  lines[at] = json.dumps(root[''], ensure_ascii=False).encode() + b'\n'
  return b''.join(lines), what


def outcome(draw, inputs):
  """Mutates and reads one of the inputs.

  Returns:
    (kind of input, 'as before' | 'read' | 'refused' or what is wrong, the
    mutation and the message).
  """
  name = draw(st.sampled_from(inputs))
  with tempfile.TemporaryDirectory(prefix='mutated_') as parent:
    folder = os.path.join(parent, 'input')
    read = build(name, folder)
    before = read()
    mutation = mutate(draw, folder)
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        value = read()
    except (ValueError, OSError) as error:
      named = folder in str(error)
      return name, 'refused' if named else 'UNNAMED', f'{mutation}: {error!r}'
    except BaseException as error:  # Rust's panics are no Exception
      if isinstance(error, KeyboardInterrupt):
        raise
      return name, 'TRACEBACK', f'{mutation}: {error!r}'
    if _same(value, before):
      return name, 'as before', mutation
    try:
      wrong = wrongly_read(name, folder, value)
    except (ValueError, KeyError, TypeError, IndexError) as error:
      wrong = f'should have been refused: {error!r}'
    return (name, 'WRONGLY READ', f'{mutation}: {wrong}') if wrong else (
        name, 'read', mutation)


def _same(a, b):
  return all(np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
             for x, y in zip(*map(jax.tree.leaves, (a, b)))) and (
                 jax.tree.structure(a) == jax.tree.structure(b))


def run(examples, see, inputs=INPUTS):
  """Calls see(kind of input, outcome, text) for that many mutated inputs."""
  @hypothesis.settings(
      max_examples=examples, derandomize=True, deadline=None, database=None,
      suppress_health_check=list(hypothesis.HealthCheck))
  @hypothesis.given(st.data())
  def each(drawn):
    see(*outcome(drawn.draw, inputs))

  each()


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--examples', type=int, default=1000,
                      help='how many inputs')
  parser.add_argument('--out', help='JSON file for the counts')
  values = parser.parse_args()
  # Those of Hugging Face's datasets would be kept, and a bar shown for each.
  os.environ['HF_DATASETS_CACHE'] = tempfile.mkdtemp(prefix='datasets_')
  atexit.register(shutil.rmtree, os.environ['HF_DATASETS_CACHE'])
  os.environ['HF_DATASETS_DISABLE_PROGRESS_BARS'] = '1'
  logging.disable()
  counts = collections.defaultdict(collections.Counter)
  wrong = []

  def see(name, found, text):
    counts[name][found] += 1
    if found.isupper():
      wrong.append(f'{name}: {found}: {text}')

  run(values.examples, see)
  for name in INPUTS:
    print(f'{name}: ' + ', '.join(
        f'{number} {found}' for found, number in sorted(counts[name].items())))
  for line in wrong:
    print(line[:600])
  if values.out:
    files.write_json(values.out, {'counts': counts, 'wrong': wrong})
  sys.exit(f'{len(wrong)} are neither read rightly nor refused by name.'
           if wrong else 0)


if __name__ == '__main__':
  main()
