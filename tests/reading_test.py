"""From texts to rows, and from what is read to an answer."""

from absl.testing import absltest
import jax
import numpy as np
import pytest

from retrieval_jax import data
from retrieval_jax import reading
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.models import t5
from retrieval_jax.models import t5_decoder
from retrieval_jax.models import transformer
from retrieval_jax.models.readers import extractive
from retrieval_jax.models.readers import seq2seq

PASSAGES = ['Rome: Rome is the capital of Italy, not Paris.',
            'Paris is the capital of France. Paris, France!', '']
LENGTH = 32


def texts(max_width=10, row_length=LENGTH):
  tokenizer = data.train_tokenizer(PASSAGES * 3 + ['what is it?'] * 3, 120)
  config = transformer.TransformerConfig(
      vocab_size=tokenizer.vocab_size, hidden_size=8, num_layers=1, num_heads=2,
      intermediate_size=12, max_positions=row_length, type_vocab_size=2)
  return reading.ExtractiveTexts(
      extractive.Extractive(config, row_length, max_width), tokenizer)


def marked(made, row):
  """Returns the texts that a row marks as answers, as its tokens spell them."""
  found, encoder = [], made.tokenizer._of_length(None)
  for start in range(len(row)):
    for width in range(1, 13):
      if row[start] >= 0 and row[start] >> (18 + width) & 1:
        found.append(encoder.decode(
            (row[start:start + width] & (2**18 - 1)).tolist()))
  return found


class Given:
  """Texts whose passages answer what is written down."""

  def __init__(self, *guesses):
    self._guesses = guesses

  def guesses(self, params, questions, passages):
    assert len(questions) == len(passages) == len(self._guesses)
    return [[reading._Guess(text, np.log(p), (0, 1)) for text, p in guesses]
            for guesses in self._guesses]


class RowsTest(absltest.TestCase):

  def test_mark_every_occurrence_of_every_alias(self):
    made = texts()
    rows = made.rows(['what is it?'] * 3, PASSAGES, [
        ['Rome', 'capital of italy'], ['paris france', 'The France'], ['Rome']])
    self.assertEqual(rows.shape, (3, LENGTH))
    self.assertEqual(marked(made, rows[0]), [
        'rome', 'rome', 'the capital of italy', 'capital of italy'])
    self.assertEqual(marked(made, rows[1]), [
        'france', 'paris, france', 'france'])
    self.assertEqual(marked(made, rows[2]), [])

  def test_hold_question_then_passage(self):
    made = texts()
    row, = made.rows(['what is it?'], PASSAGES[:1])
    inside = row[row >= 0]
    encoder = made.tokenizer._of_length(None)
    decode = lambda part: encoder.decode((part & (2**18 - 1)).tolist())
    of_passage = inside >> 18 & 1 > 0
    self.assertEqual(decode(inside[of_passage]),
                     'rome : rome is the capital of italy, not paris.')
    self.assertEqual(decode(inside[~of_passage]), 'what is it?')
    self.assertEqual(marked(made, row), [])
    np.testing.assert_array_equal(
        np.sort(row >= 0)[::-1], row >= 0)  # padding is at the end

  def test_leave_out_what_is_cut_off_or_too_wide(self):
    made = texts(max_width=2)
    rows = made.rows(['what is it?'], PASSAGES[:1], [['capital of Italy']])
    self.assertEqual(marked(made, rows[0]), [])
    made = texts(row_length=14)
    rows = made.rows(['what is it?'], PASSAGES[:1], [['Rome', 'Paris']])
    self.assertNotIn('paris', marked(made, rows[0]))
    self.assertIn('rome', marked(made, rows[0]))

  def test_are_gathered_for_the_draws_of_a_step(self):
    made = texts()
    seen, questions = [], ['what is it?', 'is it?', 'what?']
    for devices in (1, 4):
      gather = reading.Gather(
          made, questions, {0: ['Rome'], 2: ['France']}.get, PASSAGES,
          sharding.batch(sharding.make_mesh(devices)), LENGTH)
      with jax.transfer_guard('disallow'):
        rows, lengths = gather(
            jax.device_put(np.array([2, 0])), jax.device_put(
                np.array([1, -1, 0, 1])))
      seen.append(np.asarray(rows))
    np.testing.assert_array_equal(*seen)
    alone, _ = gather(np.array([2]), np.array([1, -1, 0, 1]))
    np.testing.assert_array_equal(
        alone[2], made.rows(['what?'], PASSAGES[:1], [['France']])[0])
    rows, = seen[:1]
    np.testing.assert_array_equal(lengths, (rows >= 0).sum(axis=1))
    self.assertEqual(lengths[1], 0)
    wanted = made.rows(['what?', 'what is it?', 'what is it?'],
                       [PASSAGES[1], PASSAGES[0], PASSAGES[1]],
                       [['France'], ['Rome'], ['Rome']])
    np.testing.assert_array_equal(rows[[0, 2, 3]], wanted)


class AnswersTest(absltest.TestCase):

  @pytest.mark.slow
  def test_guesses_are_pieces_of_the_passage(self):
    made = texts()
    params = made.reader.init(jax.random.key(1))
    found = made.guesses(params, ['what is it?'] * 3, PASSAGES)
    for guesses, passage in zip(found[:2], PASSAGES):
      self.assertLen(guesses, 8)  # num_spans
      self.assertEqual(sorted(
          (guess.log_prob for guess in guesses), reverse=True),
                       [guess.log_prob for guess in guesses])
      for guess in guesses:
        self.assertEqual(guess.text, passage[slice(*guess.span)])
        self.assertTrue(guess.text.strip())
    self.assertEqual(found[2], [])

  def test_passages_that_agree_win(self):
    """P(Rome) = .3 * .5 + .3 * .6 = .33 beats P(Oslo) = .4 * .8 = .32."""
    found, = reading.read(
        Given([('Oslo', 0.8)], [('Rome', 0.5), ('Oslo!', 1e-9)],
              [('The Rome', 0.6)]), {}, ['where?'], [['a', 'b', 'c', '']],
        np.array(
            [[np.log(0.4), np.log(0.3), np.log(0.3), -np.inf]]))
    self.assertEqual(found.answer, 'The Rome')  # its likeliest form
    np.testing.assert_allclose(
        found.posterior, [0, 0.15 / 0.33, 0.18 / 0.33, 0], rtol=1e-5)
    np.testing.assert_allclose(found.prior, [0.4, 0.3, 0.3, 0], rtol=1e-5)
    self.assertEqual(found.texts, ['Oslo', 'Rome', 'The Rome', ''])
    self.assertIsNone(found.spans[3])
    np.testing.assert_allclose(
        found.log_probs, [np.log(0.8), np.log(0.5), np.log(0.6), -np.inf],
        rtol=1e-5)

  def test_without_a_guess_there_is_no_answer(self):
    for guesses in ((), (('the', 0.9),)):  # an article is no answer
      found, = reading.read(Given(list(guesses)), {}, ['where?'], [['a']],
                            np.zeros((1, 1)))
      self.assertEqual(found.answer, '')
      np.testing.assert_array_equal(found.posterior, [0])


class FusedTest(absltest.TestCase):

  def test_an_answer_ends_before_its_padding(self):
    tokenizer = data.train_tokenizer(PASSAGES * 3 + ['what is it?'] * 3, 40)
    tokens = tokenizer.encode_batch(['is it Paris?'], 24)[0][0]
    self.assertEqual(tokens[-1], -1)
    made = reading.Seq2SeqTexts(None, tokenizer, num_beams=2)
    (guess,), = made._decoded(np.array(  # a beam of one
        [[-0.5, types.NO_ANSWER, *tokens, *tokens]], np.float32))
    self.assertEqual(guess, reading._Guess(
        tokenizer.decode(tokens[tokens >= 0]), -0.5, None))
    self.assertNotEmpty(guess.text)

  @pytest.mark.slow
  def test_answers_are_those_of_all_passages_together(self):
    """Greedily, by the likelihoods of every next token after those before."""
    tokenizer = data.train_tokenizer(PASSAGES * 3 + ['what is it?'] * 3, 40)
    size = tokenizer.vocab_size
    reader = seq2seq.Seq2Seq(t5_decoder.Seq2SeqConfig(
        t5.T5Config(vocab_size=size, hidden_size=8, num_layers=1, num_heads=2,
                    head_size=4, intermediate_size=12,
                    pad_id=tokenizer.pad_id),
        1, eos_id=int(tokenizer.encode_batch([''], 4)[0].max())),
        text_length=24, answer_length=4, fuses=True)
    params = jax.tree.map(lambda x: 2 * x, reader.init(jax.random.key(8)))
    made = reading.Seq2SeqTexts(reader, tokenizer, num_beams=1)
    questions, passages = ['what is it?', 'is it Paris?', 'what?'], [
        PASSAGES[:2] + [''], [PASSAGES[1], '', PASSAGES[0]], ['', '', '']]
    log_prior = np.log(np.array([[.5, .3, .2], [.8, 0, .2], [0, 0, 0]]),
                       where=[[1, 1, 1], [1, 0, 1], [0, 0, 0]],
                       out=np.full((3, 3), -np.inf))
    found = reading.read(made, params, questions, passages, log_prior,
                         batch_tokens=80, buckets=(8, 16))
    for i in (0, 1):
      there = np.isfinite(log_prior[i])
      texts_ = made.rows([questions[i]] * 3, passages[i])[:, 4:]
      answer = []
      while len(answer) < 4 and reader.config.eos_id not in answer:
        longer = np.full((size, 4), -1)
        longer[:, :len(answer) + 1] = [[*answer, one] for one in range(size)]
        rows = np.stack([np.where(there[:, None], reader.pack(
            np.tile(tokens, (3, 1)), texts_), -1).ravel() for tokens in longer])
        answer.append(int(reader.read_fused(params, rows)[:, 0].argmax()))
      self.assertEqual(found[i].answer, tokenizer.decode(answer))
      self.assertNotEmpty(found[i].answer)
      likelihood = np.asarray(reader.read(params, made.rows(
          [questions[i]] * 3, passages[i], [[found[i].answer]] * 3)))[:, 0]
      np.testing.assert_allclose(
          found[i].log_probs[there], likelihood[there], atol=1e-4)
      np.testing.assert_allclose(
          found[i].posterior, jax.nn.softmax(np.where(
              there, log_prior[i] + likelihood, -np.inf)), atol=1e-5)
      np.testing.assert_allclose(
          found[i].prior, np.exp(log_prior[i]), rtol=1e-5)
    self.assertEqual(found[1].posterior[1], 0)
    self.assertNotAlmostEqual(found[0].posterior[0], found[0].prior[0])
    self.assertEqual(found[0].spans, [None] * 3)
    self.assertEqual(found[0].texts, [''] * 3)
    np.testing.assert_array_equal(found[2].posterior, 0)  # nothing to read


if __name__ == '__main__':
  absltest.main()
