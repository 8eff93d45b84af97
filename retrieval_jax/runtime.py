"""Settings of the process, to be made before jax is imported.

`configure_allocator` is called at the top of scripts; this module must
therefore not import jax at its own top level.
"""

import ctypes
import platform

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def configure_allocator() -> bool:
  """Keeps freed buffers in the process instead of handing them back.

  XLA's CPU backend frees its buffers after every call. glibc unmaps large
  ones at once, so that every step pays tens of thousands of page faults to
  map them again: 1.2 to 1.5 times the time of a training step. The price is
  that resident memory stays at its peak. Call it before jax is imported; all
  three settings are needed.

  Returns:
    True where the settings were made; False where there is no glibc (macOS,
    Windows, musl), where nothing is done.
  """
  if platform.system() != 'Linux' or platform.libc_ver()[0] != 'glibc':
    return False
  libc = ctypes.CDLL(None)
  if not hasattr(libc, 'mallopt'):
    return False
  settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1),
              (_M_ARENA_MAX, 1))
  done = [libc.mallopt(*setting) == 1 for setting in settings]  # every one
  return all(done)


def configure_compilation_cache(folder: str,
                                min_compile_seconds: float = 0.3) -> None:
  """Keeps compiled programs in `folder`, so that a second run starts faster.

  Args:
    folder: created when absent; may be shared by runs and processes.
    min_compile_seconds: programs that compile faster are not kept.
  """
  import jax  # Late: see the module's docstring.
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs',
                    min_compile_seconds)


def multiplies_bfloat16_natively() -> bool:
  """Returns whether this machine's jax devices are faster in bfloat16.

  True for GPU and TPU, and for x86 CPUs with AVX512_BF16 or AMX instructions
  (as Linux reports); other CPUs emulate bfloat16, slower than float32.
  """
  import jax  # Late: see the module's docstring.
  if jax.default_backend() != 'cpu':
    return True
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as f:
      features = f.read()
  except OSError:
    return False
  return 'avx512_bf16' in features or 'amx_bf16' in features
