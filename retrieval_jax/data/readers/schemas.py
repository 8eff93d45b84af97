"""Tells from the fields of a row which format it is in."""

from retrieval_jax.data.readers import dpr
from retrieval_jax.data.readers import examples
from retrieval_jax.data.readers import pairs
from retrieval_jax.data.readers import tevatron


def parse(where: str, row: examples.Row) -> examples.Example:
  """Returns the Example of a row in the format of DPR, Tevatron or pairs."""
  if 'positive_ctxs' in row:
    return dpr.parse(where, row)
  if any(name in row for name in tevatron.FIELDS):
    return tevatron.parse(where, row)
  return pairs.parse(where, row)
