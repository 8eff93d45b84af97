"""Writes the data of any reader as a folder in BEIR layout.

The folder gets corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv and, where the
reader has candidates, candidates/SPLIT.tsv; `readers.beir` says what is in them
and reads them again.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
import json
import os

from retrieval_jax import files
from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data import progress


def write(reader: dataset.Reader, out: str) -> dict[str, int]:
  """Streams a reader into the folder `out`, whole or not at all.

  Args:
    reader: of any format.
    out: folder to write. Memory holds the ids of targets and queries.

  Returns:
    {what: number of lines written}.

  Raises:
    DataError: for an id that occurs twice or is unknown, or malformed data.
  """
  counts: dict[str, int] = {}
  ids: dict[str, set[str]] = {}
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
      read = getattr(reader, 'candidates', None)
      if read is None:
        continue
      path = os.path.join(folder, 'candidates', f'{split}.tsv')
      count = _write(path, 'query-id\tcorpus-id\tscore\n',
                     _pairs(read(split), ids))
      if count:
        counts[f'{split} candidates'] = count
      else:
        os.remove(path)
    candidates = os.path.join(folder, 'candidates')
    if os.path.isdir(candidates) and not os.listdir(candidates):
      os.rmdir(candidates)
  return counts


def _write(path: str, header: str, lines: Iterable[str]) -> int:
  """Writes a header and lines; returns the number of these."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  count = 0
  with open(path, 'w', encoding='utf-8', newline='\n') as file:
    file.write(header)
    for line in progress.track(lines, f'writing {os.path.basename(path)}',
                               unit='lines'):
      file.write(line)
      count += 1
  return count


def _records(reader: dataset.Reader, column: str, ids: set[str]
             ) -> Iterator[str]:
  """Yields JSON lines of a column and adds their ids to the set `ids`."""
  for row, (name, text) in enumerate(getattr(reader, column)()):
    if name in ids:
      raise errors.DataError(
          f'{reader.where(column, row)}: id {name!r} occurs again; ids must '
          f'be unique within the {column}. Remove or rename one.')
    ids.add(name)
    record = {'_id': name, 'text': text}
    yield json.dumps(record, ensure_ascii=False) + '\n'


def _pairs(pairs: Iterable[tuple[str, str, float | None, str]],
           ids: Mapping[str, Set[str]]) -> Iterator[str]:
  """Yields lines of (query id, corpus id, grade or score, where), checked."""
  for query_id, corpus_id, value, where in pairs:
    for name, column in ((query_id, 'queries'), (corpus_id, 'corpus')):
      if name not in ids[column]:
        raise errors.DataError(
            f'{where}: id {name!r} is not in the {column} ({len(ids[column])} '
            f'ids).{errors.lookalike(name, ids[column])} Add the record to '
            f'the {column} or remove this line.')
    shown = '' if value is None else repr(value)
    yield f'{query_id}\t{corpus_id}\t{shown}\n'
