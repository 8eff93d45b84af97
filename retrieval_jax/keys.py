"""The random keys of a run: one per phase, all of them from its seed.

Step t draws from fold_in(key(seed), t), so nothing random is part of a state.
What happens once, before the first step, folds in a number that no step
reaches.
"""

import jax

_PHASES = ('corrector', 'model', 'sampler', 'objective', 'rebuild', 'reader',
           'lora')


def of_step(seed: int, step: jax.Array | int) -> jax.Array:
  """Returns the key of training step `step`, [] int32."""
  return jax.random.fold_in(jax.random.key(seed), step)


def of_phase(seed: int, phase: str) -> jax.Array:
  """Returns the key of what happens once, one of `_PHASES`."""
  return jax.random.fold_in(
      jax.random.key(seed), 2**31 - 1 - _PHASES.index(phase))


def of_rebuild(seed: int, step: int) -> jax.Array:
  """Returns the key for what is rebuilt after `step` finished steps."""
  return jax.random.fold_in(of_phase(seed, 'rebuild'), step)
