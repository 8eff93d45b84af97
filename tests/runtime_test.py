import importlib.metadata
import subprocess
import sys
import types

from absl.testing import absltest
import jax

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


class Plugin:
  """An entry point, as a plugin of jax for CUDA has."""
  name = 'xla_cuda12'
  dist = types.SimpleNamespace(version='0.7.2')


class AcceleratorTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.plugins = [Plugin()]
    self.platforms, self.backend = None, 'cpu'
    for module, name, value in (
        (importlib.metadata, 'entry_points', lambda group: self.plugins),
        (jax, 'default_backend', lambda: self.backend)):
      self.enter_context(absltest.mock.patch.object(module, name, value))
    before = jax.config.jax_platforms
    self.addCleanup(jax.config.update, 'jax_platforms', before)
    jax.config.update('jax_platforms', None)

  def test_a_plugin_that_did_not_start_is_refused_by_name(self):
    with self.assertRaisesRegex(
        runtime.NoAccelerator,
        r"xla_cuda12 0\.7\.2.*pip install -U 'jax\[cuda12\]'.*--allow_cpu"):
      runtime.check_accelerator()

  def test_the_cpu_may_be_meant(self):
    runtime.check_accelerator(allow_cpu=True)
    jax.config.update('jax_platforms', 'cpu')
    runtime.check_accelerator()

  def test_without_a_plugin_there_is_only_the_cpu(self):
    self.plugins = []
    if not runtime.accelerator_plugins():
      runtime.check_accelerator()

  def test_a_plugin_that_started_is_what_is_wanted(self):
    self.backend = 'gpu'
    runtime.check_accelerator()

  def test_devices_are_told_by_kind(self):
    device = lambda kind: types.SimpleNamespace(
        device_kind=kind, platform='tpu')
    self.assertEqual(runtime.describe_devices([device('TPU v5 lite')] * 8),
                     '8 x TPU v5 lite (tpu)')


if __name__ == '__main__':
  absltest.main()
