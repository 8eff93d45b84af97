"""Writes the data of any reader as a folder in BEIR layout.

The folder gets corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv and, where the
reader has such, candidates/SPLIT.tsv and answers/SPLIT.jsonl; `readers.beir`
says what is in them and reads them again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
import json
import os

from retrieval_jax import files
from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data import progress

_HEADER = 'query-id\tcorpus-id\tscore\n'


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
    of_kind = lambda name: getattr(reader, name, lambda split: ())
    for split in reader.splits:
      for kind, what, ending, header, lines in (
          ('answers', 'answers', 'jsonl', '',
           _answers(of_kind('answers')(split), ids)),
          ('qrels', 'judgements', 'tsv', _HEADER,
           _pairs(reader.qrels(split), ids)),
          ('candidates', 'candidates', 'tsv', _HEADER,
           _pairs(of_kind('candidates')(split), ids))):
        path = os.path.join(folder, kind, f'{split}.{ending}')
        count = _write(path, header, lines)
        # The file of judgements says that there is such a split.
        if count or kind == 'qrels' and f'{split} answers' not in counts:
          counts[f'{split} {what}'] = count
        else:
          os.remove(path)
    for kind in ('qrels', 'candidates', 'answers'):
      path = os.path.join(folder, kind)
      if os.path.isdir(path) and not os.listdir(path):
        os.rmdir(path)
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
    _check_known(query_id, 'queries', ids, where)
    _check_known(corpus_id, 'corpus', ids, where)
    shown = '' if value is None else repr(value)
    yield f'{query_id}\t{corpus_id}\t{shown}\n'


def _answers(records: Iterable[tuple[str, Sequence[str], str]],
             ids: Mapping[str, Set[str]]) -> Iterator[str]:
  """Yields JSON lines of (query id, answers, where), checked."""
  for query_id, texts, where in records:
    _check_known(query_id, 'queries', ids, where)
    record = {'_id': query_id, 'answers': list(texts)}
    yield json.dumps(record, ensure_ascii=False) + '\n'


def _check_known(name: str, column: str, ids: Mapping[str, Set[str]],
                 where: str) -> None:
  """Raises DataError unless an id is of the column."""
  if name not in ids[column]:
    raise errors.DataError(
        f'{where}: id {name!r} is not in the {column} ({len(ids[column])} '
        f'ids).{errors.lookalike(name, ids[column])} Add the record to the '
        f'{column} or remove this line.')
