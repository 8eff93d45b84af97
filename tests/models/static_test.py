"""Static embeddings, as sentence-transformers and model2vec keep them."""

import dataclasses
import os

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from retrieval_jax import files
from retrieval_jax.data import tokenization
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import export
from retrieval_jax.models import pretrained
from retrieval_jax.models import sentence_modules
from tests.models import families_test

FOLDER = families_test.folder_of('static')


def load(folder=FOLDER):
  """Returns (model, params on the device, head)."""
  config, params, head = pretrained.load_pretrained(folder)
  return dual_encoder.DualEncoder(
      config, pooling=head.pooling, normalize=head.normalize
  ), {'tower': {'transformer': jax.device_put(params)}}, head


class StaticTest(parameterized.TestCase):

  def test_equals_the_reference_from_text_to_embedding(self):
    wanted = np.load(os.path.join(FOLDER, 'reference.npz'))
    model, params, head = load()
    tokenizer = tokenization.load_tokenizer(FOLDER, special_tokens=False)
    encode = jax.jit(model.encode_targets)
    for prompt, key in ((head.query_prompt, 'queries'),
                        (head.target_prompt, 'targets')):
      tokens, lengths = dataclasses.replace(
          tokenizer, prompt=prompt or '').encode_batch(
              list(wanted['texts']), head.max_length)
      self.assertEqual(lengths.max(), 16)  # where tokenizer.json cuts
      np.testing.assert_allclose(
          encode(params, tokens), wanted[key], atol=1e-6)
    self.assertGreater(np.abs(wanted['queries'] - wanted['targets']).max(), .01)
    self.assertEqual(model.flops(100), 0)

  def test_special_tokens_would_count(self):
    wanted = np.load(os.path.join(FOLDER, 'reference.npz'))
    model, params, head = load()
    tokens, _ = tokenization.load_tokenizer(FOLDER).encode_batch(
        list(wanted['texts']), head.max_length)
    found = model.encode_targets(params, tokens)
    self.assertGreater(np.abs(found - wanted['targets']).max(), .01)

  def test_what_is_written_is_what_was_read(self):
    model, params, head = load()
    folder = self.create_tempdir().full_path
    export.write(
        folder, model, params,
        tokenization.load_tokenizer(FOLDER, special_tokens=False),
        lengths=(24, 32), prompts=(head.query_prompt, ''))
    self.assertFalse(os.path.exists(os.path.join(folder, 'config.json')))
    kinds = [module['type'].rpartition('.')[2] for module in files.read_json(
        os.path.join(folder, 'modules.json'))]
    self.assertEqual(kinds, ['StaticEmbedding', 'Normalize'])
    again, found, head = load(folder)
    self.assertEqual(again, model)
    self.assertEqual(head.max_length, 32)
    jax.tree.map(np.testing.assert_array_equal, found, params)

  def test_another_pooling_cannot_be_written(self):
    model, params, _ = load()
    with self.assertRaisesRegex(ValueError, "with pooling 'max' cannot be"):
      export.write(
          self.create_tempdir().full_path,
          dataclasses.replace(model, pooling='max'), params,
          tokenization.load_tokenizer(FOLDER), lengths=(9, 9),
          prompts=('', ''))

  @parameterized.parameters(True, False)
  def test_model2vec(self, listed):
    folder = families_test.copied(self, 'static')
    if not listed:
      os.remove(os.path.join(folder, 'modules.json'))
    files.write_json(os.path.join(folder, 'config.json'), {
        'model_type': 'model2vec', 'architectures': ['StaticModel'],
        'normalize': True})
    config, params, _ = pretrained.load_pretrained(FOLDER)
    random = np.random.default_rng(0)
    mapping = random.integers(0, 50, config.vocab_size)
    weights = random.random(config.vocab_size).astype(np.float32)
    safetensors_numpy.save_file(
        {'embeddings': params['token_table'][:50].astype(np.float16),
         'mapping': mapping, 'weights': weights},
        os.path.join(folder, 'model.safetensors'))
    self.assertTrue(sentence_modules.is_static(folder))
    again, found, head = pretrained.load_pretrained(folder)
    self.assertEqual(again, config)
    self.assertTrue(head.normalize)
    self.assertEqual(head.pooling, 'mean')
    np.testing.assert_allclose(
        found['token_table'],
        params['token_table'].astype(np.float16).astype(np.float32)[mapping]
        * weights[:, None], rtol=1e-6)

  @parameterized.parameters(
      ({'table': 2}, 'holds table; expected one of embedding.weight'),
      ({'embeddings': 2, 'embedding.weight': 2}, 'expected one of'),
      ({'embeddings': 1}, r'embeddings has shape \[7\], expected'),
      ({'embeddings': 2, 'weights': 2}, 'weights has shape .* 7 tokens'),
      ({'embeddings': 2, 'mapping': 1}, 'mapping float32 .* must be of rows'))
  def test_what_does_not_fit_is_named(self, shapes, message):
    folder = families_test.copied(self, 'static')
    safetensors_numpy.save_file(
        {name: np.ones((7,) * rank, np.float32)
         for name, rank in shapes.items()},
        os.path.join(folder, 'model.safetensors'))
    with self.assertRaisesRegex(ValueError, message):
      pretrained.load_pretrained(folder)

  def test_layers_that_it_lacks_are_refused(self):
    with self.assertRaisesRegex(
        ValueError, 'num_layers=2 .* 0 layers .*num_layers=0 takes all'):
      pretrained.load_pretrained(FOLDER, num_layers=2)


if __name__ == '__main__':
  absltest.main()
