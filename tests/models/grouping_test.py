from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax import sharding
from retrieval_jax.models import grouping
from tests import helpers
from tests.models import chunking_test

MODEL = chunking_test.MODEL
WIDTH = 18


def texts_of(lengths, seed=0):
  """Returns tokens [n, WIDTH] of texts of these lengths."""
  tokens = np.random.default_rng(seed).integers(0, 40, (len(lengths), WIDTH))
  return np.where(np.arange(WIDTH) < np.asarray(lengths)[:, None], tokens,
                  -1).astype(np.int32)


def assert_equals_direct(encode, direct, params, tokens, dim, tolerance=1e-4):
  """Checks values and gradients, in a random order of the texts."""
  tokens = np.random.default_rng(2).permutation(tokens)
  weights = np.random.default_rng(1).normal(size=(len(tokens), dim)).astype('f')
  np.testing.assert_allclose(jax.jit(encode)(params, tokens),
                             jax.jit(direct)(params, tokens), atol=1e-6)
  ours, plain = (
      chunking_test.value_and_grad(of, tokens, weights)(params)
      for of in (encode, direct))
  assert jax.tree.structure(ours) == jax.tree.structure(plain)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
          a, b, atol=tolerance, rtol=tolerance),
      ours, plain)


# Of what was expected (a third of the texts is longer than 4, a tenth than
# 12), and of what was not: longer, shorter, all the same, and empty ones.
EXPECTED = np.repeat([3, 9, 16], [64, 22, 10])
BATCHES = {
    'as_expected': EXPECTED,
    'longer': np.repeat([3, 9, 16], [40, 30, 26]),
    'all_long': np.full(96, WIDTH),
    'shorter': np.full(96, 2),
    'empty': np.repeat([0, 5], [90, 6]),
    'odd_number': EXPECTED[:-7],
}


class GroupedTest(parameterized.TestCase):

  @parameterized.product(
      name=tuple(BATCHES), has_parts=(True, False))
  @pytest.mark.slow
  def test_equals_direct_values_and_gradients(self, name, has_parts):
    tower = MODEL.encode_targets
    direct = tower if has_parts else lambda p, t: tower(p, t)
    encode = grouping.grouped(direct, [EXPECTED], buckets=(4, 12))
    assert_equals_direct(
        encode, direct, jax.jit(MODEL.init)(jax.random.key(0)),
        texts_of(BATCHES[name]), dim=8)

  @parameterized.parameters(*BATCHES)
  def test_equals_direct_in_float64(self, name):
    with helpers.float64():
      random = np.random.default_rng(0)
      params = {'table': random.normal(size=(40, 6)),
                'out': random.normal(size=(6, 3))}
      encode = grouping.grouped(
          chunking_test.bag, [EXPECTED], buckets=(4, 12))
      assert_equals_direct(encode, chunking_test.bag, params,
                           texts_of(BATCHES[name]), dim=3, tolerance=1e-12)

  @parameterized.product(
      num_devices=(2, 4), parameters=('replicated', 'sharded'),
      name=('as_expected', 'longer'))
  @pytest.mark.slow
  def test_on_devices(self, num_devices, parameters, name):
    devices = chunking_test.mesh(num_devices)
    layout = sharding.Layout(
        devices, min_size=None if parameters == 'replicated' else 16)
    params = jax.jit(MODEL.init)(jax.random.key(0))
    placed = jax.device_put(params, layout.shardings(params))
    encode = grouping.grouped(
        MODEL.encode_targets, [EXPECTED], buckets=(4, 12), layout=layout)
    tokens = jax.device_put(
        texts_of(BATCHES[name]), sharding.batch(devices))
    weights = np.random.default_rng(1).normal(size=(96, 8)).astype('f')
    ours = chunking_test.value_and_grad(encode, tokens, weights)(placed)
    plain = chunking_test.value_and_grad(
        MODEL.encode_targets, np.asarray(tokens), weights)(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4),
        ours, plain)

  def test_texts_are_padded_to_the_length_of_their_group(self):
    seen = []

    def encode(params, tokens):
      seen.append(tokens.shape)
      return chunking_test.bag(params, tokens)

    params = {'table': jnp.ones((40, 6)), 'out': jnp.ones((6, 3))}
    jax.jit(grouping.grouped(encode, [EXPECTED], buckets=(4, 12)))(
        params, texts_of(EXPECTED))
    # Sizes by hand: 96 p + sqrt(96 p (1 - p)) for p = 10 / 96 and 32 / 96 are
    # 12.99 and 36.6. Chunks of three are for texts without a place.
    self.assertEqual(set(seen), {
        (59, 4), (24, 12), (13, WIDTH), (3, WIDTH)})

  def test_texts_without_a_place_alone_are_encoded_behind(self):
    """In chunks of three, whose texts are counted where one is run.

    'longer' has 13 texts of 16 tokens too many, and of 9 tokens 6.
    """
    chunks = []

    def encode(params, tokens):
      if tokens.shape[0] == 3:
        jax.debug.callback(lambda tokens: chunks.append(
            (tokens >= 0).any(1).sum()), tokens)
      return chunking_test.bag(params, tokens)

    params = {'table': jnp.ones((40, 6)), 'out': jnp.ones((6, 3))}
    run = jax.jit(grouping.grouped(encode, [EXPECTED], buckets=(4, 12)))
    for name, expected in (('as_expected', []), ('shorter', []),
                           ('longer', [1] + 6 * [3])):
      chunks.clear()
      run(params, texts_of(BATCHES[name]))
      jax.effects_barrier()
      self.assertEqual(sorted(map(int, chunks)), expected, name)

  def test_other_lengths_do_not_recompile(self):
    params = {'table': jnp.ones((40, 6)), 'out': jnp.ones((6, 3))}
    traces = []

    def counted(params, tokens):
      traces.append(tokens.shape)
      return chunking_test.bag(params, tokens)

    step = jax.jit(jax.grad(lambda p, t: jnp.sum(grouping.grouped(
        counted, [EXPECTED], buckets=(4, 12))(p, t))))
    step(params, texts_of(BATCHES['as_expected']))
    before = len(traces)
    for name in ('longer', 'all_long', 'empty'):
      step(params, texts_of(BATCHES[name]))
    self.assertLen(traces, before)

  def test_texts_of_one_length_are_encoded_at_once(self):
    tokens = texts_of(np.full(96, WIDTH))
    params = {'table': jnp.ones((40, 6)), 'out': jnp.ones((6, 3))}
    encode = grouping.grouped(
        chunking_test.bag, [np.full(9, WIDTH)], buckets=(4, 12))
    self.assertEqual(
        str(jax.make_jaxpr(encode)(params, tokens)),
        str(jax.make_jaxpr(chunking_test.bag)(params, tokens)))

  def test_the_longest_set_makes_room(self):
    """A batch has texts of one set alone, which must have a place."""
    of_sets = grouping.grouped(
        chunking_test.bag, [np.full(100, 3), EXPECTED], buckets=(4, 12))
    self.assertEqual(of_sets, grouping.grouped(
        chunking_test.bag, [EXPECTED], buckets=(4, 12)))

  def test_buckets_must_ascend(self):
    with self.assertRaisesRegex(ValueError, 'ascending'):
      grouping.grouped(chunking_test.bag, [EXPECTED], buckets=(12, 4))


class GroupSizesTest(parameterized.TestCase):

  @parameterized.product(
      num_texts=(1, 7, 96, 384), num_devices=(1, 4),
      shares=((0.9, 0.5, 0.), (0.3, 0.01, 0.), (1., 1., 0.), (0., 0., 0.)))
  def test_all_texts_have_room(self, num_texts, num_devices, shares):
    sizes = grouping.group_sizes(num_texts, shares, num_devices)
    self.assertGreaterEqual(sum(sizes), num_texts)
    self.assertLess(sum(sizes), num_texts + num_devices)
    for i, (size, share) in enumerate(zip(sizes, shares)):
      self.assertEqual(size % num_devices, 0)
      # And those that are expected in a longer bucket, in those.
      self.assertGreaterEqual(
          sum(sizes[i + 1:]) + 8 * num_devices * (len(sizes) - i - 1),
          min(num_texts * share, num_texts))

  def test_most_batches_fit(self):
    random = np.random.default_rng(0)
    lengths = random.poisson(14, 10_000)
    shares = [np.mean(lengths > bucket) for bucket in (10, 14, 18)] + [0.]
    sizes = grouping.group_sizes(384, shares)
    without = []
    for _ in range(200):
      batch = random.choice(lengths, 384)
      room = np.cumsum(sizes[::-1])[:-1][::-1]
      longer = np.array([np.sum(batch > bucket) for bucket in (10, 14, 18)])
      without.append(np.max(np.maximum(longer - room, 0)))
    self.assertLess(np.mean(without), 0.01 * 384)


if __name__ == '__main__':
  absltest.main()
