"""Tiny datasets that the tests of data write for themselves."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import sys
import types
from unittest import mock
import zlib

CORPUS = [('d1', 'A title', 'the first text'), ('d,2', '', 'second'),
          ('d"3"', None, 'third text, with ünïcode'), ('d4', 'T', 'x')]
QUERIES = [('q1', 'which is first?'), ('q 2', 'second or third'),
           ('q"é"', 'the last')]
TRAIN = [('q1', 'd1', 1), ('q 2', 'd,2', 2), ('q 2', 'd"3"', 1),
         ('q 2', 'd1', 0), ('q 2', 'd4', -1)]
TEST = [('q"é"', 'd4', 1)]
CANDIDATES = [('q1', 'd4', -1.5), ('q1', 'd1', 7.0), ('q 2', 'd4', 3.0),
              ('q 2', 'd1', None)]


def write(path: str, text: str, zipped: bool = False):
  """Writes a text file, making its folder."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  opener = gzip.open if zipped else open
  with opener(path + '.gz' * zipped, 'wt', encoding='utf-8',
              newline='') as file:
    file.write(text)


def compress(path: str, ending: str) -> str:
  """Replaces a file by a compressed one; returns its path.

  Nothing here writes .zst: it is zlib's form, which `zstandard` takes.
  """
  pack = {'.gz': gzip.compress, '.bz2': bz2.compress, '.xz': lzma.compress,
          '.zst': zlib.compress}[ending]
  with open(path, 'rb') as file:
    content = file.read()
  os.remove(path)
  with open(path + ending, 'wb') as file:
    file.write(pack(content))
  return path + ending


@contextlib.contextmanager
def zstandard():
  """Puts a module in the place of the one that reads .zst."""

  def opened(path, mode):
    assert mode == 'rb'
    with open(path, 'rb') as file:
      return io.BytesIO(zlib.decompress(file.read()))

  module = types.SimpleNamespace(open=opened)
  with mock.patch.dict(sys.modules, {'compression.zstd': module}):
    yield


def write_candidates(folder: str, *, zipped: bool = False):
  """Writes the candidates above, of split 'train', into a BEIR folder."""
  lines = ['query-id\tcorpus-id\tscore', *(
      f'{query}\t{target}\t{"" if score is None else score}'
      for query, target, score in CANDIDATES)]
  write(os.path.join(folder, 'candidates', 'train.tsv'),
        '\n'.join(lines) + '\n', zipped)


def write_beir(folder: str, *, zipped: bool = False) -> str:
  """Writes the dataset above in BEIR's layout; returns the folder."""
  corpus = []
  for name, title, text in CORPUS:
    record = {'_id': name, 'text': text}
    corpus.append({**record, 'title': title} if title is not None else record)
  write(os.path.join(folder, 'corpus.jsonl'), jsonl(corpus), zipped)
  write(os.path.join(folder, 'queries.jsonl'),
        jsonl({'_id': name, 'text': text} for name, text in QUERIES), zipped)
  for split, qrels in (('train', TRAIN), ('test', TEST)):
    lines = ['query-id\tcorpus-id\tscore',
             *('\t'.join(map(str, line)) for line in qrels)]
    write(os.path.join(folder, 'qrels', f'{split}.tsv'), '\n'.join(lines))
  return folder


def jsonl(records) -> str:
  return ''.join(json.dumps(record, ensure_ascii=False) + '\n'
                 for record in records)


WORDNET = {
    'data.noun': [
        '00001740 03 n 02 object 0 physical_object 0 000 | a tangible thing; '
        '"full of balls and other objects"; "an Object of art"',
        '00002000 03 n 01 pony 0 000 | a small horse; "he bet on the ponies"',
        '00002100 03 n 01 coat 0 000 | an outer garment; '
        '"he took off his coat"'],
    'data.verb': [
        '00003000 29 v 02 take_off 0 doff 0 000 01 + 02 00 | remove clothes; '
        '"he took off his coat"; "doff your hat"',
        '00003100 29 v 01 doff 0 000 01 + 02 00 | lift a hat; "doff your hat"'],
    'data.adj': [
        '00004000 00 s 01 afraid(p) 0 000 | filled with fear; '
        '"afraid of snakes"'],
    'data.adv': [],
}


def write_wordnet(folder: str) -> str:
  """Writes a WordNet of six synsets; returns the folder."""
  for name, lines in WORDNET.items():
    write(os.path.join(folder, name), ''.join(
        f'{line}\n' for line in ['  1 This software is provided', *lines]))
  return folder
