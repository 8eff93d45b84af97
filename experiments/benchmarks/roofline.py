"""The least time that a scan can take on a device, by its published figures."""

from absl import flags
import jax

_MEMORY_BANDWIDTH = flags.DEFINE_float(
    'memory_bandwidth', 0., 'Bytes a second of an accelerator; 0: by its name.')
_PEAK_FLOPS = flags.DEFINE_float(
    'peak_flops', 0., 'bfloat16 FLOPs a second, likewise.')

# Part of jax's device_kind -> bytes a second, FLOPs a second in bfloat16 and in
# float32, dense, of one device. Data sheets of the makers; a TPU multiplies
# float32 in six passes of bfloat16 (jax.lax.Precision.HIGHEST).
_PUBLISHED = {
    'H200': (4.8e12, 989e12, 67e12), 'H100': (3.35e12, 989e12, 67e12),
    'A100-SXM4-80GB': (2.04e12, 312e12, 19.5e12),
    'A100': (1.56e12, 312e12, 19.5e12), 'L4': (3e11, 121e12, 30.3e12),
    'T4': (3.2e11, 65e12, 8.1e12),
    'TPU v6': (1.64e12, 918e12, 153e12), 'TPU v5p': (2.77e12, 459e12, 76e12),
    'TPU v5 lite': (8.19e11, 197e12, 33e12),
    'TPU v4': (1.23e12, 275e12, 46e12)}


def least_seconds(num_bytes: float, flops: float, dtype: str) -> float | None:
  """Returns what reading and multiplying take at least, or None.

  Args:
    num_bytes: read once, on one device.
    flops: of matmuls, on one device.
    dtype: 'float32' or 'bfloat16', of what is multiplied.

  Returns:
    The larger of the two; None on a CPU, and on a device that is not known
    unless the flags say what it does.
  """
  kind = jax.devices()[0].device_kind
  bandwidth, half, single = next(
      (numbers for name, numbers in _PUBLISHED.items() if name in kind),
      (0., 0., 0.))
  bandwidth = _MEMORY_BANDWIDTH.value or bandwidth
  if _PEAK_FLOPS.value:
    half, single = _PEAK_FLOPS.value, _PEAK_FLOPS.value / 6
  if jax.default_backend() == 'cpu' or not bandwidth or not half:
    return None
  return max(num_bytes / bandwidth, flops / (
      half if dtype == 'bfloat16' else single))
