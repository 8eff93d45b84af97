"""T5 with its decoder, against the reference and against itself."""

import dataclasses
import functools
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from retrieval_jax import sharding
from retrieval_jax.models import chunking
from retrieval_jax.models import pretrained
from retrieval_jax.models.readers import seq2seq

FOLDER = pathlib.Path(__file__).parent
CASES = ('t5', 't5_gated')
BEAMS = 3  # of the reference


@functools.cache
def load(case):
  """Returns (Seq2Seq, params, reference)."""
  config, params = pretrained.load_seq2seq(str(FOLDER / case))
  params = jax.tree.map(jnp.asarray, params)
  reference = dict(np.load(FOLDER / case / 'reference.npz'))
  return (seq2seq.Seq2Seq(config, reference['texts'].shape[1],
                          reference['answers'].shape[1]), params, reference)


def rows_of(reader, answers, texts):
  return jnp.asarray(reader.pack(np.asarray(answers), np.asarray(texts)))


def by_reference(reference):
  """Returns log P [n] of the answers, summed from the reference's numbers."""
  answers = reference['answers']
  taken = np.take_along_axis(
      reference['log_probs'], np.maximum(answers, 0)[..., None], axis=-1)
  return np.where(answers >= 0, taken[..., 0], 0).sum(axis=1)


class ReferenceTest(parameterized.TestCase):

  @parameterized.parameters(*CASES)
  @pytest.mark.slow
  def test_log_probabilities(self, case):
    reader, params, reference = load(case)
    config, texts = reader.config, reference['texts']
    before = np.pad(np.maximum(reference['answers'], 0), ((0, 0), (1, 0)))
    context = config.encode(params['encoder'], texts)
    got = jax.jit(config.decode)(
        params, params['encoder']['token_table'], before[:, :-1], context,
        texts >= 0)
    there = np.cumprod(reference['answers'] >= 0, axis=1) > 0
    there = np.pad(there, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    np.testing.assert_allclose(
        got[there], reference['log_probs'][there], atol=1e-4)

  @parameterized.parameters(*CASES)
  def test_the_likelihood_is_their_sum(self, case):
    reader, params, reference = load(case)
    rows = rows_of(reader, reference['answers'], reference['texts'])
    got = jax.jit(reader.read)(params, rows)
    np.testing.assert_allclose(got[:, 0], by_reference(reference), atol=1e-4)
    np.testing.assert_array_equal(got[:, 1], 0)

  @parameterized.product(case=CASES, kind=('greedy', 'beam'))
  @pytest.mark.slow
  def test_decodes_what_the_reference_does(self, case, kind):
    reader, params, reference = load(case)
    wanted = reference[kind]
    reader = dataclasses.replace(reader, answer_length=6)
    nothing = np.full((len(wanted), 6), -1)
    found = np.asarray(jax.jit(seq2seq.Decode(
        reader, 1 if kind == 'greedy' else BEAMS))(
            params, rows_of(reader, nothing, reference['texts'])))
    num_beams = 1 if kind == 'greedy' else BEAMS
    log_probs, tokens = found[:, :num_beams], found[:, num_beams:].reshape(
        len(wanted), num_beams, 6)
    np.testing.assert_array_equal(tokens[:, 0, :wanted.shape[1]], wanted)
    np.testing.assert_array_equal(tokens[:, 0, wanted.shape[1]:], -1)
    if kind == 'beam':
      self.assertIn(reader.config.eos_id, wanted)  # some end early
      np.testing.assert_allclose(
          log_probs[:, 0], reference['beam_scores'], atol=1e-4)
    self.assertTrue((np.diff(log_probs, axis=1) <= 0).all())
    # Each is what the reader itself says of the answer.
    for beam in range(num_beams):
      rows = rows_of(reader, tokens[:, beam].astype(np.int32),
                     reference['texts'])
      np.testing.assert_allclose(
          reader.read(params, rows)[:, 0], log_probs[:, beam], atol=1e-4)

  @parameterized.parameters(*CASES)
  def test_weights_come_back_as_they_went(self, case):
    reader, params, _ = load(case)
    folder = self.create_tempdir().full_path
    pretrained.save_seq2seq(folder, reader.config, params)
    config, again = pretrained.load_seq2seq(folder)
    self.assertEqual(config, reader.config)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    random = jax.eval_shape(config.init, jax.random.key(0))
    self.assertEqual(jax.tree.map(lambda x: x.shape, random),
                     jax.tree.map(lambda x: x.shape, params))
    self.assertEqual(config.tied_output, case == 't5')


class Seq2SeqTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_one_passage_fused_is_that_passage(self):
    reader, params, reference = load('t5')
    rows = rows_of(reader, reference['answers'], reference['texts'])
    np.testing.assert_allclose(
        reader.read_fused(params, rows)[:, 0], reader.read(params, rows)[:, 0],
        atol=1e-5)

  @pytest.mark.slow
  def test_fused_passages_are_attended_to_together(self):
    """The decoder by hand over both encodings, one after the other."""
    reader, params, reference = load('t5')
    texts, answers = reference['texts'], reference['answers'][:2]
    rows = rows_of(reader, np.repeat(answers, 2, axis=0), texts)
    got = reader.read_fused(params, rows.reshape(2, -1))
    config = reader.config
    encoded = config.encode(params['encoder'], texts)
    for i in range(2):
      context = jnp.concatenate([
          encoded[j][texts[j] >= 0] for j in (2 * i, 2 * i + 1)])[None]
      answer = answers[i][answers[i] >= 0]
      log_p = config.decode(
          params, params['encoder']['token_table'],
          np.array([[0, *answer[:-1]]]), context,
          np.ones(context.shape[:2], bool))[0]
      np.testing.assert_allclose(
          got[i, 0], log_p[np.arange(len(answer)), answer].sum(), atol=1e-4)
    # A missing passage, even the first, is none.
    without = rows.reshape(2, 2, -1).at[:, 0].set(-1).reshape(2, -1)
    np.testing.assert_allclose(
        reader.read_fused(params, without)[:, 0],
        reader.read(params, rows)[1::2, 0], atol=1e-4)

  @parameterized.parameters(None, 1, 2)
  @pytest.mark.slow
  def test_in_chunks_it_is_the_same(self, devices):
    reader, params, reference = load('t5_gated')
    layout = devices and sharding.Layout(sharding.make_mesh(devices))
    rows = rows_of(reader, reference['answers'], reference['texts'])
    rows = rows.at[3].set(-1)  # nothing was drawn
    weights = jnp.array([1., -2., .5, 0.])
    loss = lambda read: jax.jit(jax.value_and_grad(
        lambda params: jnp.sum(weights * read(params, rows)[:, 0])))(params)
    chunked = chunking.chunked(
        reader.read, chunk_size=2, buckets=(2, 9), layout=layout)
    direct = loss(reader.read)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-4, atol=1e-5), loss(chunked), direct)
    self.assertTrue(all(
        np.isfinite(x).all() for x in jax.tree.leaves(direct)))

  def test_its_flops_grow_with_text_and_answer(self):
    reader, _, _ = load('t5')
    self.assertGreater(reader.flops(12), reader.flops(10))

  def test_wrong_options_are_refused(self):
    reader, _, _ = load('t5')
    with self.assertRaisesRegex(ValueError, 'answer_length=0, expected at le'):
      dataclasses.replace(reader, answer_length=0)
    with self.assertRaisesRegex(ValueError, 'num_layers=0 must be at least 1'):
      dataclasses.replace(reader.config, num_layers=0)


if __name__ == '__main__':
  absltest.main()
