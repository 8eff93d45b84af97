"""Reads the training sets of Tevatron, of both generations.

  DIR/SPLIT.jsonl[.gz]
      now:    {"query_id": str, "query_text": str,
               "positive_document_ids": [str], "negative_document_ids": [str]}
      before: {"query_id": str, "query": str,
               "positive_passages": [{"docid": str, "title": str, "text": str}],
               "negative_passages": [...]}
  DIR/corpus.jsonl[.gz]
      now:    {"docid": str, "document_text": str}
      before: {"docid": str, "title": str, "text": str}, optional: without it
              the corpus is all passages of the rows

"answers", a list of strings, may be in a row; other fields are ignored. Ids may
be integers; the text of a passage is 'title text'. One file in place of a
folder will do where rows have passages.
"""

from retrieval_jax.data.readers import answers
from retrieval_jax.data.readers import examples
from retrieval_jax.data.readers import lines

FIELDS = ('positive_document_ids', 'positive_passages')


def make_reader(path: str) -> examples.ExamplesReader:
  """Returns the reader of a folder or of a file."""
  return examples.ExamplesReader(examples.FileRows(path, 'tevatron'), parse)


def parse(where: str, row: examples.Row) -> examples.Example:
  """Returns the Example of a row of either generation."""
  return examples.Example(
      lines.identifier(where, row, 'query_id'),
      lines.string(where, row, 'query_text', 'query'),
      _passages(where, row, 'positive'), _passages(where, row, 'negative'),
      answers.read(where, row, required=False))


def _passages(where: str, row: examples.Row, kind: str
              ) -> list[examples.Passage]:
  found = []
  for name in examples.listed(where, row, f'{kind}_document_ids'):
    name = lines.identifier(where, {f'{kind}_document_ids': name},
                               f'{kind}_document_ids')
    found.append(examples.Passage(name, None))
  for passage in examples.listed_records(where, row, f'{kind}_passages'):
    text = lines.string(where, passage, 'text')
    found.append(examples.Passage(
        lines.identifier(where, passage, 'docid'),
        lines.titled(where, passage, text)))
  return found
