import subprocess
import sys

from absl.testing import absltest

from retrieval_jax import runtime


class RuntimeTest(absltest.TestCase):

  def test_configures_before_jax_is_imported(self):
    program = (
        'import sys; from retrieval_jax import runtime; '
        'runtime.configure_allocator(); '
        'assert "jax" not in sys.modules, "jax was imported too early"')
    subprocess.run([sys.executable, '-c', program], check=True)

  def test_does_nothing_without_glibc(self):
    with absltest.mock.patch.object(
        runtime.platform, 'system', return_value='Darwin'):
      self.assertFalse(runtime.configure_allocator())


if __name__ == '__main__':
  absltest.main()
