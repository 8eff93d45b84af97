"""Settings of the process, to be made before jax is imported.

`configure_allocator` is called at the top of scripts; this module must
therefore not import jax at its own top level.
"""

import ctypes
import importlib
import importlib.metadata
import importlib.util
import pkgutil
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


class NoAccelerator(RuntimeError):
  """An accelerator was to be had, and jax runs on the CPU."""


def accelerator_plugins() -> dict[str, str]:
  """Returns name -> version of the installed plugins for accelerators.

  Found as jax finds them: modules of the namespace package `jax_plugins`, entry
  points of the group of that name, and libtpu. A version is '' where the
  distribution cannot be told.
  """
  found = {}
  if importlib.util.find_spec('jax_plugins') is not None:
    package = importlib.import_module('jax_plugins')
    for module in pkgutil.iter_modules(package.__path__):
      found[module.name] = _version(module.name.replace('xla_', 'jax-')
                                    + '-plugin')
  for point in importlib.metadata.entry_points(group='jax_plugins'):
    if point.dist is not None:
      found.setdefault(point.name, point.dist.version)
  if importlib.util.find_spec('libtpu') is not None:
    found['libtpu'] = _version('libtpu') or _version('libtpu-nightly')
  return found


def describe_devices(devices) -> str:
  """Returns a line on jax's devices, such as '8 x TPU v5 lite (tpu)'."""
  kinds = sorted({device.device_kind for device in devices})
  return (f'{len(devices)} x {", ".join(kinds)} '
          f'({", ".join(sorted({d.platform for d in devices}))})')


def check_accelerator(allow_cpu: bool = False) -> None:
  """Refuses the CPU where an accelerator's plugin is installed, too.

  jax falls back to the CPU, with a warning at most, when a plugin does not
  match its own version or finds no device: a run would take days for hours.

  Args:
    allow_cpu: whether the CPU is meant; so it is with JAX_PLATFORMS=cpu.

  Raises:
    NoAccelerator: if it is not.
  """
  import jax  # Late: see the module's docstring.
  platforms = jax.config.jax_platforms or ''  # type: ignore[attr-defined]
  is_meant = allow_cpu or 'cpu' in platforms.split(',')
  if is_meant or jax.default_backend() != 'cpu':
    return
  plugins = accelerator_plugins()
  if not plugins:
    return
  names = ', '.join(f'{name} {version}'.strip()
                    for name, version in sorted(plugins.items()))
  backend, extra = ('tpu', 'tpu') if 'libtpu' in plugins else (
      'cuda', 'cuda12' if any('cuda12' in name for name in plugins)
      else 'cuda13')
  raise NoAccelerator(
      f'jax {jax.__version__} runs on the CPU, though a plugin for an '
      f'accelerator is installed ({names}): it did not start. To see why: '
      f'JAX_PLATFORMS={backend} python -c "import jax; '
      'jax.devices()". Most often its version is not that of jax: reinstall '
      f"both, as by pip install -U 'jax[{extra}]', and restart the notebook "
      'or program. To use the CPU all the same: --allow_cpu, or '
      'JAX_PLATFORMS=cpu.')


def _version(distribution):
  try:
    return importlib.metadata.version(distribution)
  except importlib.metadata.PackageNotFoundError:
    return ''
