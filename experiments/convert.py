r"""Writes data of any format that we read as a folder in BEIR layout.

  python -m experiments.convert --source=msmarco --path=msmarco --out=beir
  python -m experiments.convert --source=hf --path=NAME --out=data/mine
  python -m experiments.convert --source=wordnet --out=data/wordnet

The sources are those of --config.data.source; `beir` is one of them. OUT gets
corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv and, where the source has hard
negatives or scores, candidates/SPLIT.tsv (query-id, corpus-id, score; the last
may be empty). A title is part of the text already.
"""

import json
import os

from absl import app
from absl import flags

from experiments import process
from retrieval_jax import factory
from retrieval_jax import files
from retrieval_jax.data import errors
from retrieval_jax.data import progress


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  flags.DEFINE_enum(
      'source', None, sorted(factory.READERS), 'Format of the data.',
      flag_values=values)
  flags.DEFINE_string(
      'path', '', 'Folder, file or name of the data, as --config.data.path.',
      flag_values=values)
  flags.DEFINE_string(
      'out', None, 'Folder to write; must not exist.', flag_values=values)
  flags.DEFINE_string(
      'cache', '~/.cache/retrieval_jax', 'Where wordnet keeps its copy.',
      flag_values=values)
  flags.mark_flags_as_required(['source', 'out'], flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script():
    if os.path.exists(values.out):
      raise ValueError(
          f'--out={values.out} exists; name a new folder or remove it.')
    reader = factory.make_reader(
        values.source, values.path, os.path.expanduser(values.cache))
    counts = write(reader, values.out)
    print(f'{values.out}: ' + ', '.join(
        f'{count:,} {name}' for name, count in counts.items()) + '.')


def write(reader, out):
  """Streams a reader into the folder `out`, whole or not at all.

  Args:
    reader: any dataset.Reader.
    out: folder to write. Memory holds the ids of targets and queries.

  Returns:
    {what: number of lines written}.

  Raises:
    DataError: for an id that occurs twice or is unknown, or malformed data.
  """
  counts, ids = {}, {}
  with files.new_folder(out) as folder:
    for column in ('corpus', 'queries'):
      ids[column] = set()
      counts['targets' if column == 'corpus' else column] = _write(
          os.path.join(folder, f'{column}.jsonl'), '',
          _records(reader, column, ids[column]))
    for split in reader.splits:
      counts[f'{split} judgements'] = _write(
          os.path.join(folder, 'qrels', f'{split}.tsv'),
          'query-id\tcorpus-id\tscore\n', _pairs(reader.qrels(split), ids))
      if not hasattr(reader, 'candidates'):
        continue
      path = os.path.join(folder, 'candidates', f'{split}.tsv')
      count = _write(path, 'query-id\tcorpus-id\tscore\n',
                     _pairs(reader.candidates(split), ids))
      if count:
        counts[f'{split} candidates'] = count
      else:
        os.remove(path)
    candidates = os.path.join(folder, 'candidates')
    if os.path.isdir(candidates) and not os.listdir(candidates):
      os.rmdir(candidates)
  return counts


def _write(path, header, lines):
  """Writes a header and lines, which it returns the number of."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  count = 0
  with open(path, 'w', encoding='utf-8', newline='\n') as file:
    file.write(header)
    for line in progress.track(lines, f'writing {os.path.basename(path)}',
                               unit='lines'):
      file.write(line)
      count += 1
  return count


def _records(reader, column, ids):
  """Yields JSON lines of a column and adds their ids to the set `ids`."""
  for row, (name, text) in enumerate(getattr(reader, column)()):
    if name in ids:
      raise errors.DataError(
          f'{reader.where(column, row)}: id {name!r} occurs again; ids must '
          f'be unique within the {column}. Remove or rename one.')
    ids.add(name)
    record = {'_id': name, 'text': text}
    yield json.dumps(record, ensure_ascii=False) + '\n'


def _pairs(pairs, ids):
  """Yields lines of (query id, corpus id, grade or score, where), checked."""
  for query_id, corpus_id, value, where in pairs:
    for name, column in ((query_id, 'queries'), (corpus_id, 'corpus')):
      if name not in ids[column]:
        raise errors.DataError(
            f'{where}: id {name!r} is not in the {column} ({len(ids[column])} '
            f'ids). Add the record to the {column} or remove this line.')
    value = '' if value is None else repr(value)
    yield f'{query_id}\t{corpus_id}\t{value}\n'


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
