"""What a reader answers, as JSON lines, and how often it is right.

  SPLIT.predictions.jsonl
      {"id": str, "question": str, "prediction": str, "passages": [
          {"id": str, "prior": float, "posterior": float, "answer": str,
           "span": [start, stop] or null}]}

"id" and "prediction" are what measures read, "question" and "prediction" those
of EfficientQA. "prior" is the retriever's probability of a passage, "posterior"
that given the prediction, "answer" what the passage alone says, '' by a reader
that fuses passages, and "span" where, in characters of its text.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
from typing import Any

from retrieval_jax import files
from retrieval_jax.data import errors
from retrieval_jax.data.readers import lines
from retrieval_jax.evaluation import answers as answers_lib

MEASURES = {'EM': answers_lib.exact_match, 'F1': answers_lib.f1}
"""Name -> (prediction, answers) -> value in [0, 1]."""


def evaluate(predictions: Mapping[str, str],
             answers: Mapping[str, Sequence[str]],
             measures: Iterable[str] = tuple(MEASURES)) -> dict[str, float]:
  """Returns the mean of each measure over the questions of `answers`.

  Args:
    predictions: query id -> what was answered; '' and a question that is not
      there count as wrong.
    answers: query id -> all that are right.
    measures: of MEASURES.

  Raises:
    ValueError: if there is no question, or no prediction is of one.
  """
  if not predictions.keys() & answers.keys():
    raise ValueError(
        f'Expected predictions of some of {len(answers)} questions, got '
        f'{len(predictions)} of others; are they of the same split?')
  return {name: sum(
      MEASURES[name](predictions.get(query_id, ''), of_query)
      for query_id, of_query in answers.items()) / len(answers)
          for name in measures}


def record(query_id: str, question: str, ids: Sequence[str], reading: Any
           ) -> dict[str, Any]:
  """Returns the record of a question, as above.

  Args:
    query_id: its id.
    question: its text.
    ids: K, of the passages, '' for none.
    reading: `reading.Reading` of them.
  """
  return {
      'id': query_id, 'question': question, 'prediction': reading.answer,
      'passages': [
          {'id': name, 'prior': float(prior), 'posterior': float(posterior),
           'answer': text, 'span': span and list(span)}
          for name, prior, posterior, text, span in zip(
              ids, reading.prior, reading.posterior, reading.texts,
              reading.spans) if name]}


def write(path: str, records: Iterable[Mapping[str, Any]]) -> None:
  """Writes records as above; the file appears complete or not at all."""
  with files.replacing(path) as f:
    f.writelines(json.dumps(record, ensure_ascii=False) + '\n'
                 for record in records)


def read(path: str) -> dict[str, str]:
  """Returns query id -> prediction of a file, which may be of others.

  Raises:
    DataError: with file and line, for a malformed line or a repeated id.
  """
  found: dict[str, str] = {}
  for line, record in lines.json_lines(path):
    where = f'{path}:{line}'
    name = lines.identifier(where, record, 'id', '_id', 'question_id')
    if name in found:
      raise errors.DataError(
          f'{where}: question {name!r} is answered further up. Keep one of the '
          'lines.')
    found[name] = lines.string(where, record, 'prediction')
  return found
