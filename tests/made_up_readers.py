"""A reader of bags of words, small enough to write its gradient out."""

import dataclasses

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import types


@dataclasses.dataclass(frozen=True)
class Bag:
  """Finds an answer in a passage by the words of question and passage.

  A row is the question's words, then the passage's; the passage cannot give the
  answer if its first word is odd.

  Attributes:
    vocabulary_size: V.
    row_length: L.
    question_length: how much of L is the question.
    together: whether it also reads all passages of a question at once.
  """
  vocabulary_size: int
  row_length: int = 8
  question_length: int = 4
  together: bool = False

  @property
  def fuses(self):
    return self.together

  def init(self, key):
    return {'words': jax.random.normal(key, (self.vocabulary_size, 2))}

  def read(self, params, rows):
    return masses(params, rows, rows[:, self.question_length])

  def read_fused(self, params, rows):
    both = masses(params, rows, jnp.zeros(len(rows)))
    return both[:, :1] - both[:, 1:]

  def flops(self, length):
    return 2. * length

  def rows(self, question_tokens, passage_tokens):
    """Returns rows [B * K, L] of tokens [B, Lq] and [B * K, Lp]."""
    repeats = len(passage_tokens) // len(question_tokens)
    questions = np.repeat(np.asarray(question_tokens), repeats, axis=0)
    return np.concatenate([questions, np.asarray(passage_tokens)], axis=1)


def masses(params, rows, first_word):
  inside = (rows >= 0)[..., None]
  total = jnp.where(inside, params['words'][rows], 0).sum(axis=1)
  everything = jnp.logaddexp(total[:, 0], total[:, 1])
  answer = jnp.where(first_word % 2 == 0, total[:, 0], types.NO_ANSWER)
  return jnp.stack([answer, everything], axis=-1)
