"""Layers whose parameters are gathered while they run, as any others."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import hlo
from retrieval_jax import base_params
from retrieval_jax import sharding
from retrieval_jax.models import chunking
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import embedding
from retrieval_jax.models import lora
from retrieval_jax.models import modern
from retrieval_jax.models import t5
from retrieval_jax.models import transformer

SIZES = dict(vocab_size=40, hidden_size=16, num_heads=2, intermediate_size=32)
LENGTH = 12


def config(name, **options):
  if name == 'bert':
    return transformer.TransformerConfig(
        max_positions=LENGTH, **SIZES | {'num_layers': 3} | options)
  if name == 't5':
    return t5.T5Config(
        head_size=8, gated=True, **SIZES | {'num_layers': 3} | options)
  # Two kinds in no order, and a first layer of other parameters.
  return modern.ModernConfig(
      num_kv_heads=1, head_size=8, max_positions=LENGTH, norm='layer',
      norm_at='before', norm_eps=1e-5, first_norm=False, activation='gelu',
      theta=1e4, local_theta=1e2, global_layers=(0, 2, 3), window=2,
      model_type='modernbert', **SIZES | {'num_layers': 5} | options)


def model_of(name, **options):
  adapters = lora.Lora(2, 2.) if name == 'lora' else None
  return dual_encoder.DualEncoder(
      config('modern' if name == 'lora' else name, **options), scale=5.,
      lora=adapters)


def initial(model):
  """Returns params none of which is zero, as B of an adapter is at first."""
  params = jax.jit(model.init)(jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(tree, [
      leaf + .1 * rng.normal(size=leaf.shape).astype(np.float32)
      for leaf in leaves])


def texts(num):
  rng = np.random.default_rng(1)
  lengths = rng.integers(1, LENGTH + 1, num)
  return np.where(np.arange(LENGTH) < lengths[:, None],
                  rng.integers(0, 40, (num, LENGTH)), -1).astype(np.int32)


def by_layer(devices, min_size=1):
  return sharding.Layout(sharding.make_mesh(devices), min_size, by_layer=True)


def loss(encode, base, learned, tokens):
  out = encode(base_params.join(learned, base), tokens)
  return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape))


class LayersTest(parameterized.TestCase):

  def check(self, name, devices, chunk_size, **options):
    model, layout = model_of(name, **options), by_layer(devices)
    params, tokens = initial(model), texts(8)
    learned, base = base_params.split(params)
    encode = chunking.chunked(
        model.encode_targets, chunk_size=chunk_size, buckets=(8,),
        layout=layout)
    wanted = jax.jit(jax.value_and_grad(
        functools.partial(loss, model.encode_targets, base)))(learned, tokens)
    put = lambda tree: jax.device_put(tree, layout.shardings(tree))
    found = jax.jit(jax.value_and_grad(
        functools.partial(loss, encode), argnums=1))(
            put(base), put(learned), sharding.put_batch(tokens, layout.mesh))
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(
        ours, theirs, rtol=1e-3, atol=2e-5), found, wanted)
    # Each layer has a gradient that says something.
    for path, leaf in jax.tree_util.tree_leaves_with_path(found[1]):
      if 'layer_' in jax.tree_util.keystr(path) and 'kernel' in str(path):
        self.assertGreater(np.abs(leaf).max(), 1e-4, path)

  def test_trains_as_whole_parameters_do(self):
    self.check('bert', 2, 4)

  @parameterized.product(
      name=('bert', 't5', 'modern', 'lora'), devices_and_chunk=(
          (2, None), (4, 4)))
  @pytest.mark.slow
  def test_every_block_trains_as_whole_parameters_do(
      self, name, devices_and_chunk):
    self.check(name, *devices_and_chunk)

  def test_an_encoder_without_layers_is_left_alone(self):
    self.check('bert', 2, 4, num_layers=0)

  def test_embeds_from_shards(self):
    model, layout = model_of('modern'), by_layer(4)
    params, tokens = initial(model), texts(9)

    class Store:
      pass

    Store.tokens, Store.lengths = tokens, (tokens >= 0).sum(axis=1)
    encode = chunking.chunked(
        model.encode_targets, chunk_size=None, layout=layout)
    found = embedding.embed(encode, params, Store, mesh=layout.mesh,
                            layout=layout, buckets=(LENGTH,))
    np.testing.assert_allclose(
        found, jax.jit(model.encode_targets)(params, tokens), atol=1e-5)

  @parameterized.parameters('bert', 'modern')
  @pytest.mark.slow
  def test_a_device_holds_one_layer_at_a_time(self, name):
    """Beside its shards, stacked: of twelve layers on eight devices 1.5."""
    model = model_of(name, num_layers=12, hidden_size=128,
                     intermediate_size=256)
    params = initial(model)
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    layers = params['tower']['transformer']
    layer = size(layers['layer_1'])
    tokens = texts(8)
    temporary, gathered = {}, {}
    for which in (False, True):
      layout = sharding.Layout(
          sharding.make_mesh(8), 1024, by_layer=which)
      encode = jax.jit(chunking.chunked(
          model.encode_targets, chunk_size=8, buckets=(LENGTH,),
          layout=layout))
      compiled = encode.lower(
          jax.device_put(params, layout.shardings(params)),
          sharding.put_batch(tokens, layout.mesh)).compile()
      temporary[which] = (
          compiled.memory_analysis().temp_size_in_bytes / layer)
      gathered[which] = sum(
          times for (kind, shape), times in hlo.collectives(compiled).items()
          if kind == 'all-gather' and shape.startswith('f32[256,128]'))
    self.assertGreater(temporary[False], 12)
    self.assertLess(temporary[True], 12 / 8 + 2.5)
    self.assertEqual(gathered[True], 12)  # each once, none in advance


if __name__ == '__main__':
  absltest.main()
