"""A reader that points at the answer in the passage.

Every token of '[CLS] question [SEP] passage [SEP]' gets two numbers, u as the
start of an answer and v as its end. With the spans A that are an answer and all
spans E of at most W tokens of the passage,

  log P(a | x, y) = log sum_{(i, j) in A} exp(u_i + v_j)
                    - log sum_{(i, j) in E + null} exp(u_i + v_j)

where the null span, from [CLS] to [CLS], says that there is no answer here.

A row is one int32 for each token, -1 behind the last:

  bits 0 to 17    the token
  bit 18          whether it is of the passage
  bits 19 to 30   bit w - 1 of these: a span of w tokens that begins here is an
                  answer

Source: Lee et al., ACL 2019 (ORQA), and Guu et al., ICML 2020 (REALM), for the
  sum over occurrences. Deviation: u + v in place of a network over the two ends
  of a span, the null span, and that spans compete within one passage alone.
"""

import dataclasses
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import types
from retrieval_jax.models import transformer

_TOKEN_BITS, MAX_WIDTH = 18, 12
_INIT_STDDEV = 0.02  # BERT's


def pack(ids: np.ndarray, is_passage: np.ndarray,
         answers: list[tuple[int, int]]) -> np.ndarray:
  """Returns the row [l] int32 of one question and passage.

  Args:
    ids: [l], tokens of both.
    is_passage: [l] bool, which are of the passage.
    answers: (i, w), where a span of w tokens that is an answer begins.
  """
  row = (np.asarray(ids, np.int32)
         | np.asarray(is_passage, np.int32) << _TOKEN_BITS)
  for start, width in answers:
    row[start] |= 1 << (_TOKEN_BITS + width)
  return row


def _tokens(rows):
  """Returns the tokens of rows [n, L], -1 for padding."""
  return jnp.where(rows >= 0, rows & ((1 << _TOKEN_BITS) - 1), -1)


@dataclasses.dataclass(frozen=True)
class _Read:
  """An `encode` of rows that `chunking` can take apart, as a `Tower`."""
  reader: 'Extractive'

  def __call__(self, params: types.Params, rows: jax.Array) -> jax.Array:
    table, rest = self.split(params)
    return self.body(
        rest, transformer.look_up(table, self.ids(rows)), rows)

  def ids(self, rows: jax.Array) -> jax.Array:
    return _tokens(rows)

  def split(self, params: types.Params) -> tuple[jax.Array, types.Params]:
    inner = dict(params['transformer'])
    table = inner.pop('token_table')
    return table, {**params, 'transformer': inner}

  def merge(self, table: jax.Array, rest: types.Params) -> types.Params:
    return {**rest, 'transformer': {
        **rest['transformer'], 'token_table': table}}

  def body(self, rest: types.Params, token_vectors: jax.Array,
           rows: jax.Array) -> jax.Array:
    return self.reader.masses(*self.reader.scores(rest, token_vectors, rows),
                              rows)


@dataclasses.dataclass(frozen=True)
class Extractive:
  """A `types.Reader`; parameters are {'transformer', 'head'}.

  Attributes:
    config: a transformer.TransformerConfig.
    row_length: L, tokens of question and passage.
    max_width: W, tokens of the longest answer, at most MAX_WIDTH.
  """
  config: Any
  row_length: int
  max_width: int = 10

  fuses = False

  def __post_init__(self):
    if not 1 <= self.max_width <= MAX_WIDTH:
      raise ValueError(
          f'reader.max_width={self.max_width} must lie in [1, {MAX_WIDTH}], in '
          'tokens: a row has a bit for each width.')
    if self.config.vocab_size > 1 << _TOKEN_BITS:
      raise ValueError(
          f'The reader has {self.config.vocab_size} tokens, but a row has room '
          f'for {1 << _TOKEN_BITS}; use one with fewer.')
    if self.config.max_positions < self.row_length:
      raise ValueError(
          f'reader.row_length={self.row_length} exceeds the '
          f'{self.config.max_positions} positions of the reader; lower it.')

  def init(self, key: jax.Array) -> types.Params:
    """Returns random parameters, float32."""
    inner, head = jax.random.split(key)
    tokens = jnp.zeros((1, 1), jnp.int32)
    kernel = jax.random.normal(head, (self.config.hidden_size, 2))
    return {'transformer': self.config.module().init(inner, tokens)['params'],
            'head': {'kernel': _INIT_STDDEV * kernel, 'bias': jnp.zeros(2)}}

  @property
  def read(self) -> _Read:
    """(params, rows [n, L]) -> [n, 2] float32, see `types.Reader`."""
    return _Read(self)

  @property
  def read_fused(self) -> types.Encode:
    """It does not read passages together."""
    raise NotImplementedError('An extractive reader fuses nothing.')

  def flops(self, length: int) -> float:
    """Returns the matmul FLOPs of reading one row of `length` tokens."""
    return self.config.flops(length) + 4. * length * self.config.hidden_size

  def scores(self, params: types.Params, token_vectors: jax.Array,
             rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns u_i + v_j of all spans, and of the null span.

    Args:
      params: the reader's; the token table is not read.
      token_vectors: [n, L, H] float32, rows of that table.
      rows: [n, L] int32.

    Returns:
      [n, L, W], of the spans that begin at i and have w = 1, 2 ... W tokens,
      NO_ANSWER for those that do not lie in the passage; and [n].
    """
    in_passage = (rows >= 0) & (rows >> _TOKEN_BITS & 1 > 0)
    hidden = self.config.module().apply(
        {'params': params['transformer']}, _tokens(rows), token_vectors,
        # What follows the first token of the passage belongs to it, [SEP] too.
        jax.lax.cummax(in_passage.astype(jnp.int32), axis=1)
        if self.config.type_vocab_size > 1 else None)
    head = params['head']
    ends = hidden @ head['kernel'] + head['bias'][None, None]
    # The passage is one run of tokens: where its ends are inside, a span is.
    spans = ends[..., :1] + self._later(ends[..., 1])
    valid = in_passage[..., None] & self._later(in_passage)
    return (jnp.where(valid, spans, types.NO_ANSWER),
            ends[:, 0].sum(axis=-1))

  def _later(self, array):
    """Returns [n, L, W], of [n, L] what stands 0, 1 ... W - 1 places on."""
    length = array.shape[1]
    padded = jnp.pad(array, ((0, 0), (0, self.max_width)))
    return jnp.stack([padded[:, later:later + length]
                      for later in range(self.max_width)], axis=-1)

  def masses(self, spans: jax.Array, null: jax.Array, rows: jax.Array
             ) -> jax.Array:
    """Returns log masses [n, 2] of the answer, and of all spans and null."""
    widths = 1 + jnp.arange(self.max_width)
    is_answer = (rows >= 0)[..., None] & (
        rows[..., None] >> (_TOKEN_BITS + widths)[None, None] & 1 > 0)
    is_answer &= spans > types.NO_ANSWER / 2
    total = lambda values: jax.nn.logsumexp(values, axis=(1, 2))
    answer = total(jnp.where(is_answer, spans, types.NO_ANSWER))
    answer = jnp.where(is_answer.any(axis=(1, 2)), answer, types.NO_ANSWER)
    return jnp.stack([answer, jnp.logaddexp(total(spans), null)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Decode:
  """The best spans of each row, as an `encode`, so that `embed` can run it.

  Attributes:
    reader: an Extractive.
    num_spans: how many.
  """
  reader: Extractive
  num_spans: int

  def __call__(self, params: types.Params, rows: jax.Array) -> jax.Array:
    """Returns [n, 3 * num_spans] float32: first tokens, widths, log P.

    The likeliest first. Where a passage has fewer spans, their widths are 0.
    """
    table = params['transformer']['token_table']
    spans, null = self.reader.scores(
        params, transformer.look_up(table, _tokens(rows)), rows)
    everything = self.reader.masses(spans, null, rows)[:, 1]
    flat = spans.reshape(len(spans), -1)
    num_spans = min(self.num_spans, flat.shape[1])
    best, places = jax.lax.top_k(flat, num_spans)
    exists = best > types.NO_ANSWER / 2
    starts, widths = jnp.divmod(places, self.reader.max_width)
    found = (jnp.where(exists, starts, 0), jnp.where(exists, 1 + widths, 0),
             jnp.where(exists, best - everything[:, None], types.NO_ANSWER))
    fill = ((0, 0), (0, self.num_spans - num_spans))
    return jnp.concatenate([
        jnp.pad(part.astype(jnp.float32), fill, constant_values=constant)
        for part, constant in zip(found, (0, 0, types.NO_ANSWER))], axis=1)
