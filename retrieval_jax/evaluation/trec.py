"""TREC run and qrels files: the exchange format of retrieval experiments.

A run line is `query_id Q0 corpus_id rank score tag`, a qrels line
`query_id 0 corpus_id grade`, both separated by white space; those that are
read may be compressed. The format cannot hold an id with white space in it, so
such a character is written as its code point, in hexadecimal between `%{` and
`}`: 'a b' as 'a%{20}b'. A `%` before a `{` is written the same way, as `%{25}`,
so different ids are never written alike; reading undoes both. Every other id is
written as it is, so files agree with other people's, whose ids may well hold
'%20' (URLs).
"""

import codecs
import collections
from collections.abc import Iterator, Mapping, Sequence
import itertools
import re

import numpy as np

from retrieval_jax import files
from retrieval_jax.data.readers import lines
from retrieval_jax.evaluation import runs

Judgements = Mapping[str, Mapping[str, int]]
"""query id -> corpus id -> grade; grades above 0 are relevant."""

_RUN = 'query-id Q0 corpus-id rank score tag or query-id corpus-id rank'
_NOT_PLAIN = re.compile(r'\s|%(?={)')
_ESCAPE = re.compile(r'%{([0-9A-F]{1,5})}')


def encode_id(text: str) -> str:
  """Returns an id as TREC files hold it, without white space.

  Raises:
    ValueError: if the id is empty, which no TREC file can hold.
  """
  if not text:
    raise ValueError(
        'Expected a non-empty id for a TREC file, got an empty string; give '
        'that query or passage an id.')
  return _NOT_PLAIN.sub(lambda found: f'%{{{ord(found[0]):X}}}', text)


def decode_id(text: str) -> str:
  """Returns the id that `encode_id` made `text` of."""
  return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)


def _encoded_unique(query_id: str, ids: Sequence[str]) -> list[str]:
  if len(set(ids)) != len(ids):
    [(twice, _)] = collections.Counter(ids).most_common(1)
    raise ValueError(
        f'Query {query_id!r} has the id {twice!r} more than once; a file lists '
        'each passage at most once per query.')
  return [encode_id(name) for name in ids]


def write_run(path: str, run: runs.Run, *, tag: str = 'retrieval_jax') -> None:
  """Writes a run, best first, ranks from 1; the file appears complete or not.

  Scores are written with the digits that read back as the same float32.

  Raises:
    ValueError: if an id is empty or occurs twice for one query.
  """
  tag = encode_id(tag)
  with files.replacing(path) as f:
    for query_id, ids, scores in run.rankings():
      q = encode_id(query_id)
      f.writelines(
          f'{q} Q0 {i} {rank} {score!s} {tag}\n'
          for rank, (i, score) in enumerate(
              zip(_encoded_unique(query_id, ids), scores), 1))


def write_qrels(path: str, qrels: Judgements) -> None:
  """Writes relevance judgements; the file appears complete or not at all."""
  with files.replacing(path) as f:
    for query_id, grades in qrels.items():
      q = encode_id(query_id)
      encoded = _encoded_unique(query_id, list(grades))
      f.writelines(
          f'{q} 0 {i} {int(grade)}\n'
          for i, grade in zip(encoded, grades.values()))


def _fields(path: str, layout: str) -> Iterator[tuple[str, list[str]]]:
  """Yields ('file:line', fields) of a file, maybe compressed.

  A `layout` may be several, separated by ' or '; the first line chooses.
  """
  counts = {len(columns.split()) for columns in layout.split(' or ')}
  # Binary: only ASCII white space separates, and only \n ends a line.
  with files.reading(path) as f:
    for number, line in enumerate(f, 1):
      if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
      fields = line.split()
      if not fields:
        continue
      where = f'{path}:{number}'
      if len(fields) not in counts:
        raise ValueError(
            f'{where}: expected '
            f'{" or ".join(map(str, sorted(counts)))} columns separated '
            f'by white space ({layout}), got {len(fields)}; fix that line.')
      counts = {len(fields)}
      try:
        yield where, [x.decode('utf-8') for x in fields]
      except UnicodeDecodeError as error:
        raise ValueError(
            f'{where}: expected UTF-8 text ({error}); convert the file.'
        ) from error


def run_lines(path: str) -> Iterator[tuple[str, str, str, float]]:
  """Yields ('file:line', query id, corpus id, score) of each line of a run.

  In MS MARCO's runs, which have three columns, it is minus the rank.

  Raises:
    ValueError: file and line of a malformed entry; a score that is not finite
      is one.
  """
  for where, fields in _fields(path, _RUN):
    if len(fields) == 3:
      query_id, corpus_id, rank = fields
      score = -float(lines.integer(where, rank))
    else:
      query_id, _, corpus_id, _, score_text, _ = fields
      score = lines.number(where, score_text)
    yield where, decode_id(query_id), decode_id(corpus_id), score


def has_scores(path: str) -> bool:
  """Returns whether a run has TREC's columns, not MS MARCO's without scores."""
  return any(len(fields) == 6 for _, fields in itertools.islice(
      _fields(path, _RUN), 1))


def read_run(path: str) -> runs.Run:
  """Returns the run of a file, each query's passages by descending score.

  Ranks in the file are ignored, as in trec_eval: the score decides. Queries
  keep the order of their first line.

  Raises:
    ValueError: file and line of the first malformed or repeated entry.
  """
  results: dict[str, dict[str, float]] = {}
  for where, query_id, corpus_id, score in run_lines(path):
    scored = results.setdefault(query_id, {})
    if corpus_id in scored:
      raise ValueError(
          f'{where}: passage {corpus_id!r} occurs twice for query '
          f'{query_id!r}; keep one of the lines.')
    scored[corpus_id] = score
  width = max((len(scored) for scored in results.values()), default=0)
  ids = np.full((len(results), width), '', object)
  scores = np.full((len(results), width), -np.inf, dtype=np.float64)
  for row, scored in enumerate(results.values()):
    ordered = sorted(scored.items(), key=lambda item: -item[1])
    for column, (corpus_id, score) in enumerate(ordered):
      ids[row, column] = corpus_id
      scores[row, column] = score
  return runs.Run(tuple(results), ids, scores)


def read_qrels(path: str) -> dict[str, dict[str, int]]:
  """Returns the judgements of a file as query id -> corpus id -> grade.

  Raises:
    ValueError: file and line of the first malformed or repeated entry.
  """
  qrels: dict[str, dict[str, int]] = {}
  for where, fields in _fields(path, 'query-id 0 corpus-id grade'):
    query_id, corpus_id = decode_id(fields[0]), decode_id(fields[2])
    grades = qrels.setdefault(query_id, {})
    if corpus_id in grades:
      raise ValueError(
          f'{where}: passage {corpus_id!r} is judged twice for query '
          f'{query_id!r}; keep one of the lines.')
    grades[corpus_id] = lines.integer(where, fields[3])
  return qrels
