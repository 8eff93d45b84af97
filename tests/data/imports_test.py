"""Tests of what importing the package needs."""

import subprocess
import sys

from absl.testing import absltest


class ImportsTest(absltest.TestCase):

  def test_heavy_or_optional_packages_are_imported_late(self):
    late = ('tensorflow_datasets', 'grain', 'tokenizers', 'jax', 'wn',
            'datasets', 'ir_datasets')
    code = ('import sys, retrieval_jax.data as d; d.WordNetReader; '
            f'print([m for m in {late} if m in sys.modules])')
    found = subprocess.run([sys.executable, '-c', code], check=True,
                           capture_output=True, text=True, timeout=60)
    self.assertEqual(found.stdout.strip(), '[]')


if __name__ == '__main__':
  absltest.main()
