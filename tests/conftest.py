"""Makes the whole suite strict and gives it eight virtual CPU devices."""

import importlib.metadata
import os
import tempfile

# XLA:CPU needs at least as many pool threads as virtual devices, or
# collectives starve and abort the process (jax 0.10.2 on two cores). It reads
# NPROC when its backend starts, so this stands before the import of jax.
os.environ.setdefault('NPROC', '32')

# One folder of compiled programs for the whole run. pytest-xdist's workers and
# the processes that tests start inherit it; whoever sets it keeps it, so that
# the next run compiles nothing anew. jax reads it when it is imported.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _programs = tempfile.TemporaryDirectory(prefix='jax_programs_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _programs.name
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

# Tests compile much and run little of it: without LLVM's optimisations and the
# newer of XLA:CPU's code generators they take a third of the time. A jaxlib
# that no longer has a flag would end the process. With XLA_FLAGS set, be it
# empty, the programs are what a user's are.
_FLAGS = ['--xla_backend_optimization_level=0']
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ.setdefault('XLA_FLAGS', ' '.join(_FLAGS))

from absl import flags
import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_debug_key_reuse', True)


@pytest.fixture(scope='session', autouse=True)
def parsed_flags():
  """Marks absl flags as parsed: grain reads one when it starts workers."""
  flags.FLAGS.mark_as_parsed()
