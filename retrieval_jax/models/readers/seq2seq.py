"""A reader that writes the answer: T5, per passage or all of them together.

  log P(a | x, y) = sum_t log P(a_t | a_1 ... a_{t-1}, x, y)

the sum, not the mean, over the tokens of one alias and the end. A reader that
fuses encodes each passage with the question and lets the decoder attend to all
of them, which gives log P(a | x, y_1 ... y_K).

A row is the answer in A places, behind it the text of question and passage:

  [a_1 ... a_n V ... V  text ...]    V, one above all tokens, fills the places

and the row of a reader that fuses is K of these.

Source: Lewis et al., NeurIPS 2020 (RAG-sequence), Izacard and Grave, EACL 2021
  (fusion in decoder).
"""

import dataclasses

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import types
from retrieval_jax.models import t5_decoder


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
  """A `types.Reader`; parameters are those of a Seq2SeqConfig.

  Attributes:
    config: a t5_decoder.Seq2SeqConfig.
    text_length: tokens of question and passage.
    answer_length: A, tokens of the longest answer, its end among them.
    fuses: whether it also reads all passages of a question together.
  """
  config: t5_decoder.Seq2SeqConfig
  text_length: int
  answer_length: int = 16
  fuses: bool = False

  def __post_init__(self):
    for name in ('text_length', 'answer_length'):
      if getattr(self, name) < 1:
        raise ValueError(
            f'The reader has {name}={getattr(self, name)}, expected at least '
            '1 token.')

  @property
  def row_length(self) -> int:
    """L, of a row of one passage."""
    return self.answer_length + self.text_length

  def pack(self, answers: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Returns rows [n, L] int32.

    Args:
      answers: [n, A] int32, -1 behind the end of each.
      texts: [n, text_length] int32, likewise.
    """
    nothing = np.int32(self.config.encoder.vocab_size)
    return np.concatenate(
        [np.where(answers >= 0, answers, nothing), texts], axis=1)

  def init(self, key: jax.Array) -> types.Params:
    """Returns random parameters, float32."""
    return self.config.init(key)

  def read(self, params: types.Params, rows: jax.Array) -> jax.Array:
    """Returns [n, 2] float32, see `types.Reader`; the second number is 0."""
    log_p = self._log_p(params, *self._unpack(rows))
    return jnp.stack([log_p, jnp.zeros_like(log_p)], axis=1)

  def read_fused(self, params: types.Params, rows: jax.Array) -> jax.Array:
    """Returns log P(answer | question, all passages), [B, 1] float32.

    Args:
      params: of the reader.
      rows: [B, K * L] int32; a row of padding is no passage.
    """
    answers, texts = self._unpack(rows.reshape(-1, self.row_length))
    answers = answers.reshape(len(rows), -1, self.answer_length).max(axis=1)
    return self._log_p(params, answers, texts)[:, None]

  def flops(self, length: int) -> float:
    """Returns the FLOPs of a row, answer included.

    Fused passages count as if each had a decoder of its own.
    """
    text = max(length - self.answer_length, 0)
    return self.config.encoder.flops(text) + self.config.flops(
        self.answer_length, text)

  def context(self, params: types.Params, texts: jax.Array, num_questions: int
              ) -> tuple[jax.Array, jax.Array]:
    """Returns what is attended to, [B, K * L, H], and where it is there.

    Args:
      params: of the reader.
      texts: [B * K, L] int32, -1 for padding.
      num_questions: B.
    """
    encoded = self.config.encode(params['encoder'], texts)
    return (encoded.reshape(num_questions, -1, encoded.shape[-1]),
            texts.reshape(num_questions, -1) >= 0)

  def _unpack(self, rows):
    """Returns answers [n, A], -1 behind their end, and texts [n, >= 1]."""
    missing = max(self.row_length - self.text_length + 1 - rows.shape[1], 0)
    rows = jnp.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
    answers = rows[:, :self.answer_length]
    return (jnp.where(answers < self.config.encoder.vocab_size, answers, -1),
            rows[:, self.answer_length:])

  def _log_p(self, params, answers, texts):
    context, mask = self.context(params, texts, len(answers))
    before = jnp.pad(answers[:, :-1], ((0, 0), (1, 0)),
                     constant_values=self.config.start_id)
    log_p = self.config.decode(
        params, params['encoder']['token_table'], before, context, mask)
    taken = jnp.take_along_axis(
        log_p, jnp.maximum(answers, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(answers >= 0, taken, 0.0).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Decode:
  """The likeliest answers, as an `encode`, so that `embedding.embed` runs it.

  A beam of the `num_beams` likeliest beginnings; one is greedy. An answer ends
  at the end token or after A tokens, and its log-probability is not divided by
  its length, since that is what P(a | x, y) is.

  The decoder goes over the whole beginning at every token: answers are short.

  Attributes:
    reader: a Seq2Seq.
    num_beams: W.
    fused: whether rows hold all passages of a question.
  """
  reader: Seq2Seq
  num_beams: int
  fused: bool = False

  def __call__(self, params: types.Params, rows: jax.Array) -> jax.Array:
    """Returns [n, W * (A + 1)] float32: W log P, then W answers of A tokens.

    The likeliest first; -1 follows the end.

    Args:
      params: of the reader.
      rows: [n, L] int32, whose answers are not read; [n, K * L] fused.
    """
    reader = self.reader
    each = rows.reshape(-1, reader.row_length) if self.fused else rows
    texts = reader._unpack(each)[1]
    context, mask = reader.context(params, texts, len(rows))
    log_p, tokens = _beam(
        reader.config, params, context, mask, self.num_beams,
        reader.answer_length)
    return jnp.concatenate(
        [log_p, tokens.reshape(len(rows), -1).astype(jnp.float32)], axis=1)


def _beam(config, params, context, mask, num_beams, length):
  """Returns log P [n, W] and tokens [n, W, T] of the likeliest answers."""
  n, table = len(context), params['encoder']['token_table']
  repeat = lambda x: jnp.repeat(x, num_beams, axis=0)
  context, mask = repeat(context), repeat(mask)
  vocabulary = table.shape[0]
  flat = lambda x: x.reshape(n * num_beams, -1)
  # Beams are equal at first: all but one wait.
  going = jnp.where(jnp.arange(num_beams)[None] == 0, 0.0, types.NO_ANSWER)
  going = jnp.broadcast_to(going, (n, num_beams))
  done = jnp.full((n, num_beams), types.NO_ANSWER)
  nothing = jnp.full((n, num_beams, length), -1, jnp.int32)

  def step(i, carry):
    going, beams, done, finished = carry
    before = jnp.pad(flat(beams)[:, :-1], ((0, 0), (1, 0)),
                     constant_values=config.start_id)
    log_p = config.decode(params, table, before, context, mask, place=i)
    every = going[..., None] + log_p.reshape(n, num_beams, vocabulary)
    best, places = jax.lax.top_k(
        every.reshape(n, -1), 2 * num_beams)  # so many that W go on
    parents, tokens = jnp.divmod(places, vocabulary)
    grown = jnp.take_along_axis(beams, parents[..., None], axis=1)
    grown = grown.at[:, :, i].set(tokens.astype(jnp.int32))
    ends = tokens == config.eos_id
    # What ends is kept if it is among the W best, as the reference does.
    first = jnp.arange(2 * num_beams)[None] < num_beams
    done, finished = _best(
        num_beams, jnp.concatenate([done, jnp.where(
            ends & first, best, types.NO_ANSWER)], axis=1),
        jnp.concatenate([finished, grown], axis=1))
    going, beams = _best(
        num_beams, jnp.where(ends, types.NO_ANSWER, best), grown)
    return going, beams, done, finished

  going, beams, done, finished = jax.lax.fori_loop(
      0, length, step, (going, nothing, done, nothing))
  return _best(num_beams, jnp.concatenate([done, going], axis=1),
               jnp.concatenate([finished, beams], axis=1))


def _best(number, scores, beams):
  """Returns the `number` best scores of each row, and their beams."""
  scores, places = jax.lax.top_k(scores, number)
  return scores, jnp.take_along_axis(beams, places[..., None], axis=1)
