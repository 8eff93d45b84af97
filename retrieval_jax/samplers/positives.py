"""The remembered score of the positive, to judge negatives by."""

import jax
from jax import numpy as jnp

from retrieval_jax import table as tables


def positive_scores(queries, view):
  """Returns each query's score with its positive, as the memory has it.

  Args:
    queries: [B, D] float32.
    view: types.View with `positive_rows` [B].

  Returns:
    scores: [B] float32, unscaled, 0 where unknown.
    known: [B] bool, whether the positive is remembered.

  Raises:
    ValueError: if the view does not say where the positives are.
  """
  if view.positive_rows is None:
    raise ValueError(
        'The sampler compares negatives with the positive, but '
        'view.positive_rows is None; give the row of each positive.')
  known = view.positive_rows >= 0
  positives = view.correct(tables.take(view.table, view.positive_rows))
  scores = jnp.einsum('bd,bd->b', queries, positives,
                      precision=jax.lax.Precision.HIGHEST,
                      preferred_element_type=jnp.float32)
  return jnp.where(known, scores, 0.0), known
