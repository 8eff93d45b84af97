"""Reads the training sets of DPR.

  DIR/SPLIT.json[.gz]   an array of
      {"question": str, "answers": [str], "positive_ctxs": [CTX],
       "hard_negative_ctxs": [CTX]}
      with CTX = {"passage_id" or "psg_id": str, "title": str, "text": str}
  DIR/psgs_w100.tsv[.gz]   optional: id <tab> text <tab> title, the corpus

Names such as biencoder-nq-train.json are fine (see `examples.FileRows`), and
so is one file in place of a folder. Without psgs_w100.tsv the corpus is all
passages of the files, which is easier than the real one. Questions have no ids:
theirs is a hash of the text, as is that of a passage without one. The text of a
passage is 'title text'. The field "score" is not read: its meaning changes from
file to file (BM25, title matches, 1000 for a gold passage). Questions without a
positive stay out of the judgements, as in DPR; "answers" may be left out.

Source: Karpukhin et al., EMNLP 2020, and the data of its public code.
"""

from collections.abc import Iterator
import csv

from retrieval_jax.data import errors
from retrieval_jax.data.readers import answers
from retrieval_jax.data.readers import examples
from retrieval_jax.data.readers import lines

_IDS = ('passage_id', 'psg_id')


def make_reader(path: str) -> examples.ExamplesReader:
  """Returns the reader of a folder or of a file."""
  return examples.ExamplesReader(
      examples.FileRows(path, 'dpr', read_passages, 'psgs_w100'), parse)


def parse(where: str, row: examples.Row) -> examples.Example:
  """Returns the Example of a question."""
  question = lines.string(where, row, 'question')
  positives, negatives = (
      [_passage(where, ctx)
       for ctx in examples.listed_records(where, row, name)]
      for name in ('positive_ctxs', 'hard_negative_ctxs'))
  return examples.Example(
      examples.content_id(question), question, positives, negatives,
      answers.read(where, row, required=False))


def _passage(where: str, ctx: examples.Row) -> examples.Passage:
  text = lines.titled(where, ctx, lines.string(where, ctx, 'text'))
  if ctx.get(lines.first(ctx, _IDS)) is None:
    return examples.Passage(examples.content_id(text), text)
  return examples.Passage(lines.identifier(where, ctx, *_IDS), text)


def read_passages(path: str) -> Iterator[tuple[str, examples.Row]]:
  """Yields the rows of psgs_w100.tsv, where quotes are doubled as in CSV."""
  for number, line in lines.read(path):
    fields = next(csv.reader([line], delimiter='\t'))
    if number == 1 and fields[0] == 'id':
      continue
    if len(fields) != 3:
      raise errors.DataError(
          f'{path}:{number}: expected 3 columns separated by tabs (id, text, '
          f'title), got {len(fields)} in {lines.shown(line)}.')
    yield f'{path}:{number}', dict(zip(('id', 'text', 'title'), fields))
