"""AdamW as encoders are trained with it: warm-up, decay, clipping."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array | int], jax.Array]
"""Step, [] int32 -> learning rate, [] float32."""

SCHEDULES = ('linear', 'cosine', 'constant')

_UNDECAYED = ('bias', 'scale', 'log_scale')


def make_schedule(*, learning_rate: float, warmup_steps: int, total_steps: int,
                  schedule: str) -> Schedule:
  """Returns step [] int32 -> learning rate [] float32.

  With W warm-up steps of T, the rate is learning_rate * r(t),
    r(t) = (t + 1) / W                        for t < W,
    r(t) = d((t - W) / (T - W))               for W <= t < T, and d(1) after,
  where d(x) is 1 - x ('linear'), (1 + cos(pi x)) / 2 ('cosine') or 1
  ('constant'). No step before T has rate 0.

  Raises:
    ValueError: for an unknown schedule or a warm-up as long as the run.
  """
  if schedule not in SCHEDULES:
    raise ValueError(f'schedule must be one of {", ".join(SCHEDULES)}; got '
                     f'{schedule!r}.')
  if not 0 <= warmup_steps < total_steps:
    raise ValueError(
        f'warmup_steps={warmup_steps} must be at least 0 and less than '
        f'total_steps={total_steps}; warm up for about a tenth of the run.')
  shape = {
      'linear': lambda x: 1 - x,
      'cosine': lambda x: 0.5 * (1 + jnp.cos(jnp.pi * x)),
      'constant': jnp.ones_like,
  }[schedule]

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    past = jnp.clip((step - warmup_steps) / (total_steps - warmup_steps), 0, 1)
    warm = (step + 1) / max(warmup_steps, 1)
    return learning_rate * jnp.where(step < warmup_steps, warm, shape(past))

  return rate


def make_optimizer(*, learning_rate: float, warmup_steps: int, total_steps: int,
                   schedule: str, weight_decay: float, b1: float, b2: float,
                   eps: float, max_grad_norm: float | None,
                   scale_learning_rate: float | None = None,
                   frozen: Sequence[str] = ()
                   ) -> tuple[optax.GradientTransformation, Schedule]:
  """Returns AdamW with clipping, and its learning-rate schedule.

  Biases, layer norms and the log temperature are not decayed: arrays of rank
  below 2 and those named bias, scale or log_scale.

  Args:
    learning_rate: peak rate of all parameters.
    warmup_steps: steps of linear warm-up.
    total_steps: steps of the whole run; sets the end of the decay.
    schedule: 'linear', 'cosine' or 'constant', after the warm-up.
    weight_decay: decoupled decay per unit of learning rate.
    b1: decay rate of Adam's first moment.
    b2: decay rate of Adam's second moment.
    eps: Adam's denominator offset.
    max_grad_norm: largest global norm of a gradient, None for no clipping.
    scale_learning_rate: peak rate of the parameter named log_scale, which
      follows the same schedule; None for the rate of all others.
    frozen: names of top-level entries of the params that stay as they are and
      for which no moments are kept.

  Returns:
    An optax.GradientTransformation (its state is a dict by stage name), and
    the schedule of `learning_rate`.

  Raises:
    ValueError: for an unknown schedule or numbers out of range.
  """
  if max_grad_norm is not None and max_grad_norm <= 0:
    raise ValueError(f'max_grad_norm={max_grad_norm} must be positive, or '
                     'None for no clipping.')

  def schedule_to(peak):
    return make_schedule(learning_rate=peak, warmup_steps=warmup_steps,
                         total_steps=total_steps, schedule=schedule)

  rate = schedule_to(learning_rate)
  stages = [
      ('adam', optax.scale_by_adam(b1=b1, b2=b2, eps=eps)),
      ('decay', optax.add_decayed_weights(weight_decay, mask=_is_decayed)),
  ]
  if max_grad_norm is not None:
    stages.insert(0, ('clip', optax.clip_by_global_norm(max_grad_norm)))
  if scale_learning_rate is None:
    stages.append(('rate', optax.scale_by_learning_rate(rate)))
  else:
    stages.append(('rate', optax.partition({
        'encoder': optax.scale_by_learning_rate(rate),
        'scale': optax.scale_by_learning_rate(
            schedule_to(scale_learning_rate)),
    }, _label)))
  chain = optax.named_chain(*stages)
  if frozen:
    chain = optax.partition(
        {'trained': chain, 'frozen': optax.set_to_zero()},
        lambda params: {
            name: 'frozen' if name in frozen else 'trained' for name in params})
  return chain, rate


def _name(path):
  """Returns the last name on a parameter's path."""
  return jax.tree_util.keystr(path[-1:], simple=True)


def _is_decayed(params):
  # The names matter where layers are stacked: a scanned bias has rank 2.
  return jax.tree_util.tree_map_with_path(
      lambda path, x: x.ndim >= 2 and _name(path) not in _UNDECAYED, params)


def _label(params):
  return jax.tree_util.tree_map_with_path(
      lambda path, _: 'scale' if _name(path) == 'log_scale' else 'encoder',
      params)
