"""What an adapter is fitted to, chosen by and measured by."""

import os

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax.adapters import problem

N = 60


class ProblemTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path
    targets = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    np.save(os.path.join(self.folder, 'targets.npy'), targets)
    np.save(os.path.join(self.folder, 'queries.npy'), targets)
    os.makedirs(os.path.join(self.folder, 'qrels'))
    for split, rows in (('train', range(40)), ('dev', range(40, 50)),
                        ('test', range(50, N))):
      with open(os.path.join(self.folder, 'qrels', f'{split}.tsv'), 'w',
                encoding='utf-8') as f:
        f.writelines(f'{row}\t{row}\t1\n' for row in rows)

  def read(self, **options):
    return problem.read(self.folder, normalize=True, **options)

  def rows(self, pairs):
    """Returns the targets of pairs: each query is that of its own row."""
    self.assertLen(pairs.queries, len(pairs.target_rows))
    return set(pairs.target_rows.tolist())

  def test_dev_queries_are_held_out_of_the_share_that_is_used(self):
    found = self.read(dev_split='', share=0.5, dev_share=0.25)
    fitted, final = self.rows(found.pairs), self.rows(found.final_pairs)
    held_out = set(found.dev.queries().tolist())
    self.assertLen(final, 20)
    self.assertLen(held_out, 5)
    self.assertEqual(fitted | held_out, final)
    self.assertEmpty(fitted & held_out)

  def test_a_dev_split_is_used_whole(self):
    found = self.read(share=0.1)
    self.assertLen(found.dev.queries(), 10)
    self.assertLen(self.rows(found.pairs), 4)
    self.assertIs(found.pairs, found.final_pairs)

  def test_a_smaller_share_is_part_of_a_larger_one(self):
    used = lambda **options: self.rows(self.read(**options).final_pairs)
    self.assertLess(used(share=0.2, seed=3), used(share=0.6, seed=3))
    self.assertLess(used(share=0.6, seed=3), used(seed=3))
    self.assertLen(used(share=0.001), 1)
    self.assertNotEqual(used(share=0.2, seed=3), used(share=0.2, seed=4))

  @parameterized.parameters(
      (dict(share=0.), r'--share=0.0, expected a number in \(0, 1\]'),
      (dict(share=1.5), '--share=1.5, expected'),
      (dict(dev_split='', dev_share=1.), '--dev_share=1.0 must be between'),
      (dict(dev_split='', dev_share=-.1), '--dev_share=-0.1 must be between'),
      (dict(dev_share=0.25), "--dev_share=0.25 .* --dev_split='dev'"))
  def test_bad_shares_are_refused(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      self.read(**options)


if __name__ == '__main__':
  absltest.main()
