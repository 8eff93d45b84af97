"""Parameters in shards train as whole ones do, and stay in shards."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import optax
import pytest

from experiments.benchmarks import hlo
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import training
from retrieval_jax.models import chunking
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import transformer
from retrieval_jax.training import step as steps
from tests import helpers

ROWS = 64
MIN_SIZE = 64  # below: biases and norms


def model(dtype='float32'):
  return dual_encoder.DualEncoder(transformer.TransformerConfig(
      vocab_size=helpers.VOCABULARY, hidden_size=16, num_layers=1, num_heads=2,
      intermediate_size=24, max_positions=helpers.LENGTH, dtype=dtype),
      scale=5.0, learn_scale=True)


class Run:
  """A step with all that belongs to it, and its state; use `run`."""

  def __init__(self, devices, min_size, chunk_size, dtype):
    self.mesh = sharding.make_mesh(devices)
    self.layout = sharding.Layout(self.mesh, min_size)
    encoder = model(dtype)
    wrap = lambda encode: chunking.chunked(
        encode, chunk_size=chunk_size, buckets=(helpers.LENGTH,),
        layout=self.layout)
    # A large eps: Adam turns the rounding of gradients that are zero (those of
    # the keys' biases) into steps of full length.
    self.train_step = steps.make_train_step(
        steps.Encoders(wrap(encoder.encode_queries),
                       wrap(encoder.encode_targets), encoder.scale_of),
        helpers.method(samplers.Uniform(2), columns='all', write_back=True),
        optax.chain(optax.clip_by_global_norm(0.5),
                    optax.adam(1e-2, eps=1e-3)),
        mesh=self.mesh, seed=0, layout=self.layout)
    self.state = None

  def start(self):
    """Goes back to step 0."""
    embeddings = np.random.default_rng(3).normal(
        size=(helpers.NUM_TARGETS, 16)).astype(np.float32)
    self.state = self.train_step.init_state(
        first_params(), tables.from_embeddings(
            embeddings, mesh=self.mesh, chunk_rows=ROWS // self.mesh.size,
            dtype='float32'))

  def arguments(self):
    """Returns what `update` takes at the next step."""
    put = lambda tree: sharding.put_batch(tree, self.mesh)
    batch = put(helpers.batch(int(self.state.step)))
    draws = self.train_step.propose(self.state, batch)
    return (self.state, batch, draws, put(helpers.gather(draws.negative_ids)),
            put(helpers.gather(draws.probe_ids)))

  def train(self, num_steps):
    """Returns the losses up to `num_steps`."""
    losses = []
    while int(self.state.step) < num_steps:
      self.state, metrics = jax.block_until_ready(
          self.train_step.update(*self.arguments()))
      losses.append(float(metrics['loss']))
    return losses

  def lowered(self):
    return self.train_step.update.lower(*self.arguments())


@functools.cache
def _run(*options):
  return Run(*options)


def run(devices, min_size, chunk_size=8, dtype='float32'):
  """Returns the Run of these options at step 0; one at a time of each."""
  found = _run(devices, min_size, chunk_size, dtype)
  found.start()
  return found


@functools.cache
def first_params():
  return jax.device_get(jax.jit(model().init)(jax.random.key(0)))


@functools.cache
def on_one_device():
  """Returns (losses, params) of three steps without any sharding."""
  alone = run(1, None)
  return alone.train(3), jax.device_get(alone.state.params)


def assert_close(ours, theirs):
  # Three steps of a network in float32 that sums in another order.
  jax.tree.map(functools.partial(
      np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
      jax.device_get(ours), jax.device_get(theirs))


class TrainingTest(parameterized.TestCase):

  @parameterized.parameters((8, MIN_SIZE, 8), (4, None, 8))
  def test_losses_and_parameters_are_those_of_one_device(self, *options):
    self.check_training(*options)

  # All texts at once in the last; of some kernels, all on every device.
  @parameterized.parameters(
      (2, MIN_SIZE, 8), (4, MIN_SIZE, 8), (8, 500, None))
  @pytest.mark.slow
  def test_other_layouts_train_as_one_device(self, *options):
    self.check_training(*options)

  def check_training(self, *options):
    losses, params = on_one_device()
    ours = run(*options)
    np.testing.assert_allclose(ours.train(3), losses, rtol=1e-5)
    assert_close(ours.state.params, params)

  def test_every_shard_stays_where_it_was_and_is_an_eighth(self):
    ours = run(8, MIN_SIZE)
    first = jax.tree.map(lambda x: x.sharding, ours.state)
    ours.train(2)
    last = jax.tree.map(lambda x: x.sharding, ours.state)
    self.assertTrue(jax.tree.all(jax.tree.map(
        lambda x, a, b: a.is_equivalent_to(b, x.ndim),
        ours.state, first, last)))
    for tree in (ours.state.params, ours.state.opt_state[1][0].mu):
      table = tree['tower']['transformer']['token_table']
      self.assertEqual(tuple(table.sharding.spec), (None, 'data'))

    def bytes_of(tree, device):
      return sum(
          shard.data.nbytes for leaf in jax.tree.leaves(tree)
          for shard in leaf.addressable_shards if shard.device == device)

    def expected(leaf):
      # Of this model every leaf of 64 elements and more divides by 8.
      return 4 * leaf.size // (8 if leaf.size >= MIN_SIZE else 1)

    once = sum(map(expected, jax.tree.leaves(ours.state.params)))
    whole = 4 * sum(x.size for x in jax.tree.leaves(ours.state.params))
    self.assertLess(once, whole / 4)
    for device in ours.mesh.devices:
      self.assertEqual(bytes_of(ours.state.params, device), once)
      # Two moments, and the count of Adam.
      self.assertEqual(bytes_of(ours.state.opt_state, device), 2 * once + 4)

  def test_nothing_is_compiled_after_the_first_step(self):
    ours = run(2, MIN_SIZE)
    with jax.debug_key_reuse(False):
      ours.train(1)
      with jax.no_tracing():
        ours.train(2)

  @pytest.mark.slow
  def test_a_checkpoint_goes_on_in_another_layout(self):
    self.check_checkpoint(4, MIN_SIZE)

  @parameterized.parameters((8, MIN_SIZE), (1, None))
  @pytest.mark.slow
  def test_a_checkpoint_goes_on_in_the_same_layout_or_whole(self, *layout):
    self.check_checkpoint(*layout)

  def check_checkpoint(self, devices, min_size):
    """From 8 shards to `devices`."""
    ours = run(8, MIN_SIZE)
    ours.train(2)
    folder = self.create_tempdir().full_path
    with training.Checkpoints(folder) as saved:
      saved.save(2, ours.state, {})
      ours.train(3)
      straight = jax.device_get(ours.state)
      saved.wait()
      other = run(devices, min_size)
      other.state, _ = saved.restore(training.abstract(other.state))
      table = other.state.params['tower']['transformer']['token_table']
      self.assertLen(table.sharding.device_set, devices)
      other.train(3)
      if devices == 8:
        jax.tree.map(np.testing.assert_array_equal, other.state, straight)
      else:
        assert_close(other.state.params, straight.params)


class CollectivesTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_whole_gradients_are_summed_once_however_many_chunks(self):
    """One sum per kernel and encoder pass: of queries, and of targets."""
    for chunk_size in (4, 8):
      found = hlo.collectives(run(4, None, chunk_size).lowered().compile())
      for shape in ('f32[16,48]', 'f32[16,16]', 'f32[16,24]', 'f32[40,16]'):
        self.assertEqual(found['all-reduce', shape], 2, (chunk_size, shape))

  def test_sharded_gradients_are_never_whole_on_the_wire(self):
    found = hlo.collectives(run(4, MIN_SIZE).lowered().compile())
    # 8 queries and 24 targets, in chunks of 8.
    self.assertEqual(found['reduce-scatter', 'f32[16,12]'], 4)
    # At most once for each of two passes, there and back.
    self.assertLessEqual(found['all-gather', 'f32[16,48]'], 4)
    self.assertNotIn(('all-reduce', 'f32[16,48]'), found)
    for kind, shape in found:
      self.assertNotIn(shape, ('f32[40,16]', 'f32[40,4]'), kind)

  @parameterized.parameters(None, MIN_SIZE)
  def test_bfloat16_keeps_parameters_moments_and_sums_in_float32(
      self, min_size):
    ours = run(2, min_size, dtype='bfloat16')
    lowered = ours.lowered()
    text = lowered.as_text()
    self.assertIn('bf16', text)
    summed = hlo.summed_types(text)
    self.assertIn('f32', summed)
    self.assertNotIn('bf16', summed)
    after, _ = lowered.out_info
    for leaf in jax.tree.leaves((after.params, after.opt_state)):
      self.assertIn(leaf.dtype, (np.float32, np.int32))


if __name__ == '__main__':
  absltest.main()
