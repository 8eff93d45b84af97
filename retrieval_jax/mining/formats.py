"""Mined negatives as files that trainers read.

  candidates   candidates/SPLIT.tsv, for the folder of a dataset in BEIR layout:
               header `query-id corpus-id score`, tabs; positives and negatives,
               the score empty where unknown
  tevatron     tevatron/SPLIT.jsonl, Tevatron's ids: query_id, query_text,
               positive_document_ids, negative_document_ids
  tevatron-v1  tevatron-v1/SPLIT.jsonl, the older one with texts: query_id,
               query, positive_passages and negative_passages, which are lists
               of {docid, title, text}
  triplet      triplet/SPLIT.jsonl, sentence-transformers' rows: anchor,
               positive, negative; one for each positive with each negative
  n-tuple      n-tuple/SPLIT.jsonl: anchor, positive, negative_1 .. negative_n;
               one for each positive, of queries that got all n
  trec         trec/SPLIT.run, the negatives alone as a TREC run

Queries without a negative are in `candidates` alone, with their positives.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
import os

import numpy as np

from retrieval_jax.data import dataset as datasets
from retrieval_jax.evaluation import runs
from retrieval_jax.evaluation import trec
from retrieval_jax.mining import results

Writer = Callable[[str, results.Mined, datasets.Collection], None]
"""Writes a file: path, what was mined, ids and texts."""


@dataclasses.dataclass(frozen=True)
class Format:
  """A kind of file.

  Attributes:
    suffix: how its files end.
    write: writes one.
    needs_texts: whether it holds texts, of queries at least.
  """
  suffix: str
  write: Writer
  needs_texts: bool = False


def write(folder: str, split: str, form: str, mined: results.Mined,
          names: datasets.Collection) -> str:
  """Writes one format into `folder`; returns the path of the file.

  Lines stream, so memory is that of `mined`. Not atomic: callers write into a
  temporary folder that they rename.

  Args:
    folder: that the file's folder is made in.
    split: name of the split.
    form: one of `FORMATS`.
    mined: what `results.mine` returned.
    names: what was mined, with texts where the format needs them.

  Raises:
    ValueError: where texts are needed and there are none.
  """
  chosen = FORMATS[form]
  if chosen.needs_texts and (
      names.query_texts is None or names.corpus_texts is None):
    raise ValueError(f'The format {form!r} holds texts, but there are none.')
  path = os.path.join(folder, form, split + chosen.suffix)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  chosen.write(path, mined, names)
  return path


def _write_lines(lines: Callable[..., Iterator[str]]) -> Writer:
  """Returns the writer of a file of `lines(mined, names)`."""
  def write_all(path, mined, names):
    with open(path, 'w', encoding='utf-8', newline='\n') as f:
      f.writelines(line + '\n' for line in lines(mined, names))
  return write_all


def _write_objects(objects: Callable[..., Iterator[dict]]) -> Writer:
  """Returns the writer of a file of `objects(mined, names)`, JSON lines."""
  return _write_lines(lambda mined, names: (
      json.dumps(one, ensure_ascii=False) for one in objects(mined, names)))


def _queries(mined):
  """Yields (query row, positives, their scores, negatives, their scores)."""
  for row, positives, positive_scores, ids, scores in zip(
      mined.query_rows.tolist(), mined.positives, mined.positive_scores,
      mined.ids, mined.scores):
    listed, found = positives >= 0, ids >= 0
    yield (row, positives[listed].tolist(), positive_scores[listed],
           ids[found].tolist(), scores[found])


def _candidates(mined, names):
  yield 'query-id\tcorpus-id\tscore'
  for row, positives, positive_scores, ids, scores in _queries(mined):
    for one, score in zip(positives + ids,
                          np.concatenate([positive_scores, scores])):
      shown = str(score) if np.isfinite(score) else ''
      yield f'{names.query_ids[row]}\t{names.corpus_ids[one]}\t{shown}'


def _tevatron(mined, names):
  for row, positives, _, ids, _ in _queries(mined):
    if ids:
      yield {'query_id': names.query_ids[row],
             'query_text': names.query_texts[row],
             'positive_document_ids': [names.corpus_ids[i] for i in positives],
             'negative_document_ids': [names.corpus_ids[i] for i in ids]}


def _tevatron_texts(mined, names):
  # A title, where there was one, is the beginning of our text.
  passage = lambda i: {'docid': names.corpus_ids[i], 'title': '',
                       'text': names.corpus_texts[i]}
  for row, positives, _, ids, _ in _queries(mined):
    if ids:
      yield {'query_id': names.query_ids[row], 'query': names.query_texts[row],
             'positive_passages': [passage(i) for i in positives],
             'negative_passages': [passage(i) for i in ids]}


def _triplets(mined, names):
  for row, positives, _, ids, _ in _queries(mined):
    for positive in positives:
      for one in ids:
        yield {'anchor': names.query_texts[row],
               'positive': names.corpus_texts[positive],
               'negative': names.corpus_texts[one]}


def _tuples(mined, names):
  for row, positives, _, ids, _ in _queries(mined):
    if len(ids) < mined.ids.shape[1]:
      continue  # a column of a data set has no holes
    for positive in positives:
      yield {'anchor': names.query_texts[row],
             'positive': names.corpus_texts[positive],
             **{f'negative_{number}': names.corpus_texts[one]
                for number, one in enumerate(ids, 1)}}


def _write_run(path, mined, names):
  ids = [names.query_ids[row] for row in mined.query_rows.tolist()]
  trec.write_run(path, runs.from_rows(
      ids, mined.ids, mined.scores, names.corpus_ids))


FORMATS: Mapping[str, Format] = {
    'candidates': Format('.tsv', _write_lines(_candidates)),
    'tevatron': Format('.jsonl', _write_objects(_tevatron), needs_texts=True),
    'tevatron-v1': Format(
        '.jsonl', _write_objects(_tevatron_texts), needs_texts=True),
    'triplet': Format('.jsonl', _write_objects(_triplets), needs_texts=True),
    'n-tuple': Format('.jsonl', _write_objects(_tuples), needs_texts=True),
    'trec': Format('.run', _write_run),
}
"""Formats by name; tests/mining runs over all."""
