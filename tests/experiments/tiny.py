"""A data set in BEIR layout small enough to train on in seconds."""

import importlib
import json
import os

import numpy as np

NUM_TARGETS = 120
NUM_QUERIES = {'train': 64, 'dev': 12, 'test': 12}
_WORDS = [f'{a}{b}' for a in ('ka', 'lo', 'mi', 'nu', 'pe', 'ra', 'so')
          for b in ('bel', 'dor', 'fin', 'gus', 'ham', 'jit', 'kul')]


def write_beir(folder):
  """Writes the data set into `folder`.

  A query is one word of its target and five others spelt backwards, so that
  word overlap finds something and training finds more.
  """
  rng = np.random.default_rng(0)
  texts = [rng.choice(_WORDS, 6) for _ in range(NUM_TARGETS)]
  os.makedirs(os.path.join(folder, 'qrels'))
  _write_lines(os.path.join(folder, 'corpus.jsonl'), [
      {'_id': f'd{i}', 'title': '', 'text': ' '.join(words)}
      for i, words in enumerate(texts)])
  queries = []
  for split, number in NUM_QUERIES.items():
    path = os.path.join(folder, 'qrels', f'{split}.tsv')
    with open(path, 'w', encoding='utf-8') as f:
      f.write('query-id\tcorpus-id\tscore\n')
      for _ in range(number):
        target = int(rng.integers(NUM_TARGETS))
        name = f'q{len(queries)}'
        first, *others = rng.permutation(texts[target])
        queries.append({'_id': name, 'text': ' '.join(
            [first, *(word[::-1] for word in others)])})
        f.write(f'{name}\td{target}\t1\n')
  _write_lines(os.path.join(folder, 'queries.jsonl'), queries)
  return folder


def write_questions(folder):
  """Writes a data set of questions with answers and no judgements.

  A question is the first four words of its passage, and the answer the fifth.
  Half of the passages hold it twice.
  """
  rng = np.random.default_rng(1)
  texts = [list(rng.choice(_WORDS, 9)) for _ in range(NUM_TARGETS)]
  for words in texts[::2]:
    words += [words[4]]
  os.makedirs(os.path.join(folder, 'answers'))
  _write_lines(os.path.join(folder, 'corpus.jsonl'), [
      {'_id': f'd{i}', 'title': '', 'text': ' '.join(words)}
      for i, words in enumerate(texts)])
  queries = []
  for split, number in NUM_QUERIES.items():
    answers = []
    for _ in range(number):
      words = texts[int(rng.integers(NUM_TARGETS))]
      name = f'q{len(queries)}'
      queries.append({'_id': name, 'text': ' '.join(words[:4])})
      answers.append({'_id': name, 'answers': [words[4].title(), 'nowhere']})
    _write_lines(os.path.join(folder, 'answers', f'{split}.jsonl'), answers)
  _write_lines(os.path.join(folder, 'queries.jsonl'), queries)
  return folder


def _write_lines(path, records):
  with open(path, 'w', encoding='utf-8') as f:
    f.writelines(json.dumps(record) + '\n' for record in records)


def config(name, folder, cache, **overrides):
  """Returns configs/NAME.py:tiny on the data set in `folder`.

  Args:
    name: of the config's module; 'NAME:VARIANT' for another variant than tiny.
    folder: as given to `write_beir`.
    cache: folder for prepared data.
    **overrides: option -> value; '__' stands for the dot.
  """
  module, _, variant = name.partition(':')
  made = importlib.import_module(f'configs.{module}').get_config(
      variant or 'tiny')
  made.update_from_flattened_dict({
      'data.source': 'beir', 'data.path': str(folder),
      'data.cache': str(cache), 'data.num_targets': 0,
      'log.tensorboard': False,
      **{key.replace('__', '.'): value for key, value in overrides.items()}})
  return made


def read_metrics(workdir):
  """Returns the lines of metrics.jsonl."""
  with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as f:
    return [json.loads(line) for line in f]


def losses(workdir):
  """Returns {step: train/nll}."""
  return {line['step']: line['train/nll'] for line in read_metrics(workdir)
          if 'train/nll' in line}


# A table that every step changes, so that a resumed run has much to get wrong.
MOVING = {
    'log__every': 1, 'refresh__write_back': True, 'refresh__fraction': 0.1,
    'refresh__push': True}
