"""Tells from the fields of a row which format it is in."""

from retrieval_jax.data.readers import answers
from retrieval_jax.data.readers import dpr
from retrieval_jax.data.readers import examples
from retrieval_jax.data.readers import pairs
from retrieval_jax.data.readers import questions
from retrieval_jax.data.readers import tevatron


def parse(where: str, row: examples.Row) -> examples.Example:
  """Returns the Example of a row of DPR, Tevatron, questions or pairs.

  A row with "answers", or with an "answer" that is no single text, and without
  passages is a question.
  """
  if 'positive_ctxs' in row:
    return dpr.parse(where, row)
  if any(name in row for name in tevatron.FIELDS):
    return tevatron.parse(where, row)
  if answers.are_listed(row) and not pairs.has_passages(row):
    return questions.parse(where, row)
  return pairs.parse(where, row)
