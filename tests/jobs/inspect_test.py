"""What experiments.inspect says of a folder."""

import os
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from safetensors import numpy as safetensors_numpy

from retrieval_jax import files
from retrieval_jax.jobs import inspect
from retrieval_jax.models import pretrained
from tests.models import families_test


class InspectTest(parameterized.TestCase):

  @parameterized.parameters(
      ('gemma3_text', ('gemma3_text, 2 layers of width 32',
                       'pooling       mean',
                       'dense layer   32 to 24, without bias, identity',
                       "query prompt  'task: search result | query: '",
                       'cut at        48 tokens', 'reads up to   64 tokens',
                       "pads with '<|endoftext|>' (0)")),
      ('bert', ('ignores       2 that token vectors do not need: '
                'pooler.dense.bias, pooler.dense.weight',
                'query prompt  none', 'reads         37 tensors')),
      ('static', ('static, 0 layers of width 32', "'a dog'       8 83\n",
                  'cut at        16 tokens', 'cost          0.00 GFLOP')))
  def test_says_what_the_folder_has(self, name, wanted):
    found = inspect.describe(families_test.folder_of(name))
    for line in wanted:
      self.assertIn(line, found)
    self.assertIn('--config.model.num_layers=0', found)

  def test_counts_every_parameter_once(self):
    _, params, _ = pretrained.load_pretrained(families_test.folder_of('qwen3'))
    survey = pretrained.survey(families_test.folder_of('qwen3'))
    names = safetensors_numpy.load_file(os.path.join(
        families_test.folder_of('qwen3'), 'model.safetensors'))
    self.assertCountEqual(survey.read, names)
    self.assertEqual(survey.num_params, sum(v.size for v in names.values()))
    self.assertLen(params, 2 + 2)  # layers, table and last norm
    self.assertEqual(survey.ignored, ())

  def test_names_what_the_folder_lacks(self):
    folder = families_test.copied(self, 'bert')
    os.remove(os.path.join(folder, 'tokenizer.json'))
    os.remove(os.path.join(folder, 'modules.json'))
    found = inspect.describe(folder)
    self.assertIn('pooling       the folder does not say', found)
    self.assertIn('no tokenizer.json; name one by', found)
    self.assertIn('--config.data.query_length=64', found)

  def test_what_is_not_supported_is_an_error(self):
    folder = families_test.copied(self, 'llama')
    path = os.path.join(folder, 'config.json')
    files.write_json(path, files.read_json(path) | {
        'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 9.}})
    with self.assertRaisesRegex(ValueError, "rope_type='yarn' is not supp"):
      inspect.describe(folder)
    folder = families_test.copied(self, 'qwen2')
    path = os.path.join(folder, 'model.safetensors')
    safetensors_numpy.save_file(safetensors_numpy.load_file(path) | {
        'layers.0.moe.gate': np.ones(3, np.float32)}, path)
    with self.assertRaisesRegex(ValueError, "'layers.0.moe.gate' are not part"):
      inspect.describe(folder)

  def test_two_towers_are_two(self):
    folder = self.create_tempdir().full_path
    for tower, name in zip(pretrained.TOWERS, ('bert', 'bert')):
      shutil.copytree(families_test.folder_of(name),
                      os.path.join(folder, tower))
    found = inspect.describe(folder)
    self.assertIn('one tower for queries\n', found)
    self.assertIn('one tower for targets\n', found)
    self.assertIn('--config.model.tied=False', found)


if __name__ == '__main__':
  absltest.main()
