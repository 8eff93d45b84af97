"""Runs the layers of an encoder, whose parameters may lie in shards.

Whole parameters are used one layer after the other. Of those in shards a device
gathers one layer at a time: the shards of like layers are stacked and a loop
goes over them, since a compiler is free to gather in advance whatever stands
outside of a loop. Nothing gathered is kept for the gradient, where each layer
is gathered, and run, again.
"""

from collections.abc import Callable, Hashable, Sequence
import functools
import itertools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from retrieval_jax import sharding


def run(module: nn.Module, block: type[nn.Module], count: int, x: jax.Array,
        arguments: Callable[[int], Sequence[Any]], *,
        options: Callable[[int], Sequence[Any]], remat: bool = False,
        kind: Callable[[int], Hashable] = lambda i: 0) -> jax.Array:
  """Returns x after the submodules 'layer_0', 'layer_1', ... of a module.

  Source: Rajbhandari et al., SC 2020 (ZeRO, stage 3); Zhao et al., VLDB 2023
    (FSDP), whose units are layers here.

  Args:
    module: whose they are, in its compact method.
    block: class of the layers.
    count: how many there are.
    x: what the first gets, such as [n, L, H].
    arguments: layer -> what it gets besides.
    options: layer -> positional fields of `block`.
    remat: recompute each in the backward pass instead of keeping it; those in
      shards always are.
    kind: layer -> what `arguments` and `options` depend on: layers of one kind
      get the same, and may be run by the first of them.
  """
  variables = {} if module.is_initializing() else module.variables
  own = [{name: variables[name][f'layer_{i}'] for name in variables
          if f'layer_{i}' in variables[name]} for i in range(count)]
  if not any(sharding.has_shards(of_layer) for of_layer in own):
    of = nn.remat(block) if remat else block
    for i in range(count):
      x = of(*options(i), name=f'layer_{i}')(x, *arguments(i))
    return x

  def run_like(x, some):
    kinds = [kind(i) for i in some]
    different = list(dict.fromkeys(kinds))
    firsts = [some[kinds.index(one)] for one in different]

    @functools.partial(jax.checkpoint, prevent_cse=False)  # it is in a loop
    def step(x, of_layer, which):
      whole = sharding.gather_shards(of_layer)
      return jax.lax.switch(which, [
          lambda x, i=i: block(*options(i), parent=None).apply(
              whole, x, *arguments(i)) for i in firsts], x)

    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[own[i] for i in some])
    return jax.lax.scan(
        lambda x, inputs: (step(x, *inputs), None), x,
        (stacked, jnp.array([different.index(one) for one in kinds])))[0]

  for _, some in itertools.groupby(range(count), lambda i: _shape(own[i])):
    x = run_like(x, list(some))
  return x


def _shape(of_layer):
  """Returns what two layers must share to be stacked."""
  return jax.tree.structure(of_layer), tuple(
      (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(of_layer))
