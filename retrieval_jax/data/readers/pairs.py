"""Reads rows of texts alone, as sentence-transformers and FlagEmbedding train.

  SPLIT.jsonl[.gz], SPLIT.json[.gz]
      {"query": str, "positive": str, "negative": str}   negatives are optional;
      several as "negative_1", "negative_2" ... or as a list; "anchor" or
      "question" for "query", "pos" or "answer" for "positive", "neg" for
      "negative"; "pos_scores" and "neg_scores" are a teacher's, one per text
  SPLIT.tsv[.gz]
      query <tab> positive <tab> negative ...   without a header or with the
      names above; MS MARCO's triples of texts are such a file. A first line of
      other words that usually name columns is refused

The path is a folder of such files or one of them. Nothing has an id here, so
ids are hashes of the texts: equal texts are one query or one target. The
corpus is all passages of all splits.
"""

from collections.abc import Iterator, Sequence
import re

from retrieval_jax.data import errors
from retrieval_jax.data.readers import examples
from retrieval_jax.data.readers import lines

# A first line of such words alone is a header, though of columns unknown here.
_WORDS = ('quer(y|ies)|questions?|anchors?|positives?|pos|negatives?|neg|'
          'answers?|passages?|documents?|docs?|texts?|sentences?|titles?|'
          'labels?|scores?|premise|hypothesis|source|target|url|body|[pqd]?id')
_COLUMN = re.compile(rf'({_WORDS})([_-]({_WORDS}))*([_-]?\d+|_[ab])?')
_QUERY = ('query', 'anchor', 'question')
_POSITIVE = re.compile('positives?|pos|answer')
_NEGATIVE = re.compile(r'(negatives?|neg)(_\d+)?')


def make_reader(path: str) -> examples.ExamplesReader:
  """Returns the reader of a folder or of a file."""
  return examples.ExamplesReader(
      examples.FileRows(path, 'pairs', _read_columns), parse)


def parse(where: str, row: examples.Row) -> examples.Example:
  """Returns the Example of a row."""
  query = lines.string(where, row, *_QUERY)
  positives = _passages(where, row, _POSITIVE, 'pos_scores')
  if not positives:
    raise errors.DataError(
        f'{where}: expected a text in field "positive" (or "pos", "answer"); '
        f'the row has {", ".join(sorted(row))}. Add it or remove the row.')
  return examples.Example(
      examples.content_id(query), query, positives,
      _passages(where, row, _NEGATIVE, 'neg_scores'))


def has_passages(row: examples.Row) -> bool:
  """Returns whether a row has a field of passages, "answer" aside."""
  return any(_POSITIVE.fullmatch(name) or _NEGATIVE.fullmatch(name)
             for name in row if name != 'answer')


def _passages(where: str, row: examples.Row, names: re.Pattern[str],
              scores: str) -> list[examples.Passage]:
  """Returns the passages of the fields that `names` matches, with scores."""
  texts = []
  for name, value in row.items():
    if names.fullmatch(name):
      for item in value if isinstance(value, list) else [value]:
        if item is not None and item != '':  # rows with fewer than others
          texts.append(lines.text(where, name, item))
  values = examples.listed(where, row, scores)
  if values and len(values) != len(texts):
    raise errors.DataError(
        f'{where}: expected as many "{scores}" as texts ({len(texts)}), got '
        f'{len(values)}.')
  values = [lines.number(where, value) for value in values]
  return [examples.Passage(examples.content_id(text), text, score)
          for text, score in zip(texts, values or [None] * len(texts))]


def _read_columns(path: str) -> Iterator[tuple[str, examples.Row]]:
  """Yields the rows of a file of tabs."""
  header = None
  for number, line in lines.read(path):
    fields = line.split('\t')
    if number == 1:
      header = _header(f'{path}:1', fields)
      if header:
        continue
    names = header or ['query', 'positive', *(
        f'negative_{i}' for i in range(1, len(fields) - 1))]
    if len(fields) != len(names):
      raise errors.DataError(
          f'{path}:{number}: expected {len(names)} columns separated by tabs '
          f'({", ".join(names)}), got {len(fields)} in {lines.shown(line)}.')
    yield f'{path}:{number}', dict(zip(names, fields))


def _header(where: str, fields: Sequence[str]) -> list[str] | None:
  """Returns the names of the columns if a first line holds such, else None.

  Raises:
    DataError: where it holds names of columns, but none for the query.
  """
  names = [field.strip().lower() for field in fields]
  named = all(map(_COLUMN.fullmatch, names))
  if names[0] in _QUERY or (named and set(names) & set(_QUERY)):
    return names
  if named and len(names) > 1:
    raise errors.DataError(
        f'{where}: expected texts or names of columns, got '
        f'{lines.shown(" ".join(fields))}. Name the columns query, positive '
        'and negative, or remove the line.')
  return None
