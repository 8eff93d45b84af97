"""Dense layers of encoders: a kernel, and what low-rank adapters add to it.

Adapters are not among the parameters of a module: they are variables of a
collection of their own, so that a module without any is what it always was.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

ADAPTERS = 'lora'
"""The collection of adapters."""


class Kernel(NamedTuple):
  """What a dense layer multiplies by.

  Attributes:
    weight: [I, O].
    adapters: first column -> {'a': [I, r], 'b': [r, width]}: the product of the
      two is added to columns [first, first + width) of the weight. Keys are
      decimal numbers.
  """
  weight: jax.Array
  adapters: Mapping[str, Mapping[str, jax.Array]]


def param(module: nn.Module, name: str, init: Callable[..., Any],
          shape: tuple[int, int]) -> Kernel:
  """Returns the parameter `name` of a module, with its adapters."""
  weight = module.param(name, init, shape)
  has_some = module.has_variable(ADAPTERS, name)
  return Kernel(
      weight, module.get_variable(ADAPTERS, name) if has_some else {})


def apply(x: jax.Array, kernel: Kernel, dtype: Any,
          bias: jax.Array | None = None) -> jax.Array:
  """Returns x [..., I] times a kernel [I, O], plus a bias [O], in float32.

  Adapters are applied one after the other, (x a) b: added to the weight first,
  they would have a gradient as expensive as the weight's own.

  Args:
    x: [..., I] float32.
    kernel: of the layer.
    dtype: of the operands.
    bias: added where there is one.
  """
  x = x.astype(dtype)
  y = matmul(x, kernel.weight.astype(dtype))
  if kernel.adapters:
    y = y + _added(x, kernel, dtype)
  return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def _added(x, kernel, dtype):
  """Returns what adapters add, [..., O]."""
  parts, end = [], 0
  nothing = lambda width: jnp.zeros((*x.shape[:-1], width), jnp.float32)
  for first, pair in sorted(
      (int(first), pair) for first, pair in kernel.adapters.items()):
    if first > end:
      parts.append(nothing(first - end))
    low = matmul(x, pair['a'].astype(dtype)).astype(dtype)
    parts.append(matmul(low, pair['b'].astype(dtype)))
    end = first + pair['b'].shape[1]
  if kernel.weight.shape[1] > end:
    parts.append(nothing(kernel.weight.shape[1] - end))
  return jnp.concatenate(parts, axis=-1)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns x [..., I] @ kernel [I, O] with float32 results.

  The gradient is written out for two reasons. The one that jax derives
  contracts the leading axes unflattened, and XLA's CPU backend (jax 0.10.2)
  then takes 1.7 times as long for the feed-forward layers' backward pass. And
  in bfloat16 it would multiply float32 cotangents with bfloat16 operands,
  which no hardware does fast; ours are rounded to `dtype` like the inputs.
  """
  return _contract(x, kernel, x.ndim - 1, 0)


def _contract(a, b, a_axis, b_axis):
  return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())),
                             preferred_element_type=_result_dtype(a.dtype))


def _result_dtype(dtype):
  return jnp.promote_types(dtype, jnp.float32)  # float64 stays, in tests.


def _matmul_forward(x, kernel):
  return matmul(x, kernel), (x, kernel)


def _matmul_backward(saved, cotangent):
  x, kernel = saved
  cotangent = cotangent.astype(x.dtype)
  x_grad = _contract(cotangent, kernel, cotangent.ndim - 1, 1)
  flatten = lambda a: a.reshape(-1, a.shape[-1])
  kernel_grad = _contract(flatten(x), flatten(cotangent), 0, 0)
  return x_grad.astype(x.dtype), kernel_grad.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)
