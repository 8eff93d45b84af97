"""The likelihood of an answer, against all spans listed one by one."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import types
from retrieval_jax.models import chunking
from retrieval_jax.models import transformer
from retrieval_jax.models.readers import extractive

CONFIG = transformer.TransformerConfig(
    vocab_size=40, hidden_size=8, num_layers=1, num_heads=2,
    intermediate_size=12, max_positions=24, type_vocab_size=2)
READER = extractive.Extractive(CONFIG, row_length=14, max_width=3)
PASSAGES = ((5, 11), (4, 5), (6, 6), (3, 12))  # first and last place, plus 1
ANSWERS = ([(6, 2), (9, 1), (9, 2)], [(4, 1)], [], [])


def rows(seed=0):
  """Returns rows [4, 14], one with an empty passage, one without answers."""
  rng = np.random.default_rng(seed)
  made = np.full((len(PASSAGES), READER.row_length), -1, np.int32)
  for row, (start, stop), answers in zip(made, PASSAGES, ANSWERS):
    places = np.arange(stop + 1)  # a token, [SEP], follows the passage
    row[:stop + 1] = extractive.pack(
        rng.integers(0, 40, stop + 1), (start <= places) & (places < stop),
        answers)
  return made


def params(seed=0):
  made = jax.jit(READER.init)(jax.random.key(seed))
  made['head']['kernel'] *= 20  # so that spans differ
  return made


def ends(of, made):
  """Returns u and v [n, L], by the transformer as it is."""
  in_passage = np.zeros(made.shape, np.int32)
  for mine, (start, stop) in zip(in_passage, PASSAGES):
    mine[start:] = start < stop
  tokens = np.where(made >= 0, made % 2**18, -1)
  hidden = CONFIG.module().apply(
      {'params': of['transformer']}, tokens, None, in_passage)
  return np.moveaxis(np.asarray(
      hidden @ of['head']['kernel'] + of['head']['bias'][None, None],
      np.float64), -1, 0)


def listed(u, v, start, stop):
  """Returns {(first, width): score} of all spans of one passage."""
  return {(i, j - i + 1): u[i] + v[j] for i in range(start, stop)
          for j in range(i, min(i + READER.max_width, stop))}


class ExtractiveTest(parameterized.TestCase):

  def test_sums_over_all_spans_of_a_passage(self):
    made, of = rows(), params()
    got = jax.jit(READER.read)(of, made)
    for i, (u, v) in enumerate(zip(*ends(of, made))):
      spans = listed(u, v, *PASSAGES[i])
      everything = np.logaddexp.reduce([*spans.values(), u[0] + v[0]])
      np.testing.assert_allclose(got[i, 1], everything, rtol=1e-5)
      if ANSWERS[i]:
        np.testing.assert_allclose(got[i, 0], np.logaddexp.reduce(
            [spans[span] for span in ANSWERS[i]]), rtol=1e-5)
        self.assertLess(got[i, 0], got[i, 1])
      else:
        self.assertEqual(got[i, 0], types.NO_ANSWER)

  def test_its_gradient_is_finite_and_that_of_the_listed_spans(self):
    made, of = rows(), params()
    weights = np.array([[1., -2.], [.5, 1.], [0., 1.], [0., -1.]])
    gradient = jax.jit(jax.grad(lambda of: jnp.sum(
        weights * jnp.maximum(READER.read(of, made), -1e6))))(of)
    step, name = 1e-2, ('head', 'kernel')
    direction = np.random.default_rng(1).normal(size=(8, 2))

    def value(step):
      moved = {**of, 'head': {**of['head'], name[1]: (
          of['head'][name[1]] + step * direction)}}
      total = 0
      for i, (u, v) in enumerate(zip(*ends(moved, made))):
        spans = listed(u, v, *PASSAGES[i])
        total += weights[i, 1] * np.logaddexp.reduce(
            [*spans.values(), u[0] + v[0]])
        if ANSWERS[i]:
          total += weights[i, 0] * np.logaddexp.reduce(
              [spans[span] for span in ANSWERS[i]])
      return total

    np.testing.assert_allclose(
        (value(step) - value(-step)) / (2 * step),
        np.sum(gradient['head']['kernel'] * direction), rtol=2e-3)
    for leaf in jax.tree.leaves(gradient):
      self.assertTrue(np.isfinite(leaf).all())

  @pytest.mark.slow
  def test_in_chunks_of_bounded_length_it_is_the_same(self):
    made, of = rows(), params()
    weights = np.array([[1., -2.], [.5, 1.], [0., 1.], [0., -1.]])
    chunked = chunking.chunked(READER.read, chunk_size=2, buckets=(7, 12))
    loss = lambda read: jax.jit(jax.value_and_grad(lambda of: jnp.sum(
        weights * jnp.maximum(read(of, made), -1e6))))(of)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        loss(chunked), loss(READER.read))

  @pytest.mark.slow
  def test_a_reader_without_types_reads_all_the_same(self):
    reader = dataclasses.replace(
        READER, config=dataclasses.replace(CONFIG, type_vocab_size=0))
    of = reader.init(jax.random.key(0))
    self.assertTrue(np.isfinite(reader.read(of, rows())).all())

  def test_decodes_the_best_spans(self):
    made, of = rows(), params()
    decode = extractive.Decode(READER, num_spans=4)
    found = np.asarray(jax.jit(decode)(of, made)).reshape(len(made), 3, 4)
    for i, (u, v) in enumerate(zip(*ends(of, made))):
      spans = listed(u, v, *PASSAGES[i])
      everything = np.logaddexp.reduce([*spans.values(), u[0] + v[0]])
      best = sorted(spans, key=spans.get, reverse=True)[:4]
      starts, widths, log_probs = found[i][:, :len(best)]
      self.assertEqual(list(zip(starts, widths)), best)
      np.testing.assert_allclose(
          log_probs, [spans[span] - everything for span in best], rtol=1e-4)
      self.assertFalse(found[i][1, len(best):].any())  # there are no more
      np.testing.assert_array_equal(
          found[i][2, len(best):], np.float32(types.NO_ANSWER))

  def test_more_spans_than_a_row_has_are_none(self):
    made, of = rows(), params()
    most = READER.row_length * READER.max_width
    found = np.asarray(extractive.Decode(READER, most + 7)(of, made)).reshape(
        len(made), 3, -1)
    self.assertEqual(found.shape[-1], most + 7)
    np.testing.assert_array_equal(
        (found[:, 1] > 0).sum(axis=1),
        [len(listed(*np.zeros((2, 14)), *place)) for place in PASSAGES])
    np.testing.assert_array_equal(found[:, 1, most:], 0)
    np.testing.assert_array_equal(
        found[:, 2, most:], np.float32(types.NO_ANSWER))

  def test_begins_with_a_small_head(self):
    config = dataclasses.replace(CONFIG, hidden_size=64)
    head = dataclasses.replace(READER, config=config).init(
        jax.random.key(0))['head']
    self.assertEqual(head['kernel'].shape, (64, 2))
    self.assertBetween(float(head['kernel'].std()), 0.015, 0.025)  # BERT: .02
    np.testing.assert_array_equal(head['bias'], 0)

  def test_padding_alone_is_no_answer(self):
    nothing = np.full((1, READER.row_length), -1, np.int32)
    answer, everything = READER.read(params(), nothing)[0]
    self.assertEqual(answer, types.NO_ANSWER)
    self.assertTrue(np.isfinite(everything))

  def test_costs_what_its_encoder_does_and_two_numbers_a_token(self):
    self.assertEqual(READER.flops(10), CONFIG.flops(10) + 2 * 10 * 8 * 2)

  def test_wrong_options_are_refused(self):
    change = lambda **options: dataclasses.replace(READER, **options)
    change(max_width=1)  # these three just fit
    change(max_width=12, row_length=24)
    change(config=dataclasses.replace(CONFIG, vocab_size=2**18))
    for width in (0, 13):
      with self.assertRaisesRegex(
          ValueError, rf'max_width={width} must lie in \[1, 12\]'):
        change(max_width=width)
    with self.assertRaisesRegex(ValueError, 'row_length=99 exceeds the 24 pos'):
      change(row_length=99)
    with self.assertRaisesRegex(ValueError, '300000 tokens, but a row has roo'):
      change(config=dataclasses.replace(CONFIG, vocab_size=300000))
    with self.assertRaisesRegex(NotImplementedError, 'fuses nothing'):
      READER.read_fused  # noqa: B018


if __name__ == '__main__':
  absltest.main()
