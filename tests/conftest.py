"""Makes the whole suite strict and gives it eight virtual CPU devices."""

import os

# XLA:CPU needs at least as many pool threads as virtual devices, or
# collectives starve and abort the process (jax 0.10.2 on two cores). It reads
# NPROC when its backend starts, so this stands before the import of jax.
os.environ.setdefault('NPROC', '32')

import jax
import pytest
from absl import flags

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_debug_key_reuse', True)


@pytest.fixture(scope='session', autouse=True)
def parsed_flags():
  """Marks absl flags as parsed: grain reads one when it starts workers."""
  flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope='session', autouse=True)
def compilation_cache(tmp_path_factory):
  """Shares compiled programs between tests, in a folder of this run."""
  folder = tmp_path_factory.mktemp('jax_cache')
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
