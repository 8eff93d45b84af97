"""Low-rank adaptation: kernels stay, and small products added to them learn.

  W' = W + (alpha / r) A B,   A [I, r], B [r, O]

Source: Hu et al., ICLR 2022, eq. 3 (whose B A is our A B: kernels are [inputs,
outputs] here); initial values and the names of what is adapted are those of the
library PEFT. Deviation: no dropout. An adapter belongs to a module of the
published encoder, so that a kernel of ours which several of those make up, as
queries, keys and values do, has an adapter of its own for each.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import base_params
from retrieval_jax import types
from retrieval_jax.models import families

_WEIGHT = '.weight'


class Place(NamedTuple):
  """Where one adapter belongs.

  Attributes:
    module: published name, e.g. 'layers.0.self_attn.q_proj'.
    kernel: path of our kernel in the encoder's params.
    first: its first column there.
    inputs: I.
    outputs: O.
    halves_swapped: as of `families.Tensor`.
  """
  module: str
  kernel: tuple[str, ...]
  first: int
  inputs: int
  outputs: int
  halves_swapped: bool

  @property
  def path(self) -> tuple[str, ...]:
    """Of the adapter in a tower's entry 'lora'; see `dense.Kernel`."""
    return (*self.kernel, str(self.first))


def places(config: Any) -> Iterator[Place]:
  """Yields where an encoder can have adapters: at each of its kernels.

  Args:
    config: of the encoder; see `families`.
  """
  for tensor in families.FAMILIES[config.model_type].tensors(config):
    if not tensor.transposed:
      continue
    widths = tensor.widths or tensor.shape[:1] * len(tensor.theirs)
    first = 0
    for name, width in zip(tensor.theirs, widths):
      yield Place(name.removesuffix(_WEIGHT), tuple(tensor.ours.split('/')),
                  first, tensor.shape[1], width, tensor.halves_swapped)
      first += width


@dataclasses.dataclass(frozen=True)
class Lora:
  """Which adapters an encoder has.

  Attributes:
    rank: r.
    alpha: the adapters' products are scaled by alpha / r.
    targets: regular expression that matches the whole published name of every
      module that is adapted, as PEFT's `target_modules` does where that is a
      string; '' for all.
  """
  rank: int
  alpha: float
  targets: str = ''

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f'--config.lora.rank={self.rank} must be at least 1, or '
                       '0 for no adapters.')
    if not (self.alpha > 0 and math.isfinite(self.alpha)):
      raise ValueError(
          f'--config.lora.alpha={self.alpha} must be positive and finite; '
          'twice the rank is usual.')
    try:
      re.compile(self.targets)
    except re.error as error:
      raise ValueError(
          f'--config.lora.targets={self.targets!r} is not a regular '
          f'expression: {error}.') from error

  @property
  def scale(self) -> float:
    """What the product of A and B is multiplied by."""
    return self.alpha / self.rank

  def places(self, config: Any) -> list[Place]:
    """Returns where the adapters of an encoder are.

    Raises:
      ValueError: if there are none.
    """
    every = list(places(config))
    found = [place for place in every
             if not self.targets or re.fullmatch(self.targets, place.module)]
    if found:
      return found
    names = ', '.join(dict.fromkeys(
        re.sub(r'\d+', 'N', place.module) for place in every))
    raise ValueError(
        f'--config.lora.targets={self.targets!r} matches no module of the '
        f'{config.model_type} encoder, '
        + (f'whose modules are {names}.' if names else
           'which has no kernels; train it with --config.lora.rank=0.'))

  def init(self, config: Any, key: jax.Array) -> dict[str, Any]:
    """Returns an entry 'lora': A uniform in +- 1 / sqrt(I), B zero."""
    adapters = {}
    for i, place in enumerate(self.places(config)):
      bound = place.inputs ** -0.5
      adapters[*place.path, 'a'] = jax.random.uniform(
          jax.random.fold_in(key, i), (place.inputs, self.rank),
          minval=-bound, maxval=bound)
      adapters[*place.path, 'b'] = jnp.zeros((self.rank, place.outputs))
    return traverse_util.unflatten_dict(adapters)

  def scaled(self, adapters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns adapters whose b is multiplied by `scale`."""
    return traverse_util.unflatten_dict({
        path: leaf * self.scale if path[-1] == 'b' else leaf
        for path, leaf in traverse_util.flatten_dict(adapters).items()})

  def adapt(self, config: Any, params: types.Params,
            tower_names: Sequence[str], key: jax.Array) -> types.Params:
    """Returns params with adapters, the same encoder as without them.

    Args:
      config: of the encoder of every tower.
      params: of a dual encoder without adapters.
      tower_names: of its towers.
      key: of their initial values.
    """
    adapted, base = dict(params), {}
    for name, tower_key in zip(
        tower_names, jax.random.split(key, len(tower_names))):
      tower = dict(params[name])
      base[name] = {'transformer': tower.pop('transformer')}
      adapted[name] = {**tower, 'lora': self.init(config, tower_key)}
    return {**adapted, base_params.KEY: base}

  def merge(self, config: Any, params: types.Params,
            tower_names: Sequence[str]) -> types.Params:
    """Returns params without adapters, their products added to the kernels.

    Args:
      config: of the encoder of every tower.
      params: as of `adapt`.
      tower_names: of the towers.

    Returns:
      Params of the same dual encoder with lora=None, numpy float32.
    """
    params, base = base_params.split(jax.tree.map(np.asarray, params))
    for name in tower_names:
      tower = dict(params[name])
      weights = jax.tree.map(
          lambda x: x.astype(np.float32),
          base[base_params.KEY][name]['transformer'])
      params[name] = {'transformer': self.added(
          config, weights, tower.pop('lora')), **tower}
    return params

  def added(self, config: Any, weights: types.Params,
            adapters: Mapping[str, Any]) -> types.Params:
    """Returns weights of an encoder with the products of adapters added.

    Args:
      config: of the encoder.
      weights: its params, numpy float32.
      adapters: numpy float32; places without one stay as they are.
    """
    flat = traverse_util.flatten_dict(weights)
    pairs = traverse_util.flatten_dict(adapters)
    for place in places(config):
      if (*place.path, 'a') not in pairs:
        continue
      a, b = (pairs[*place.path, name].astype(np.float64) for name in 'ab')
      kernel = flat[place.kernel].copy()
      kernel[:, place.first:place.first + place.outputs] += (
          self.scale * (a @ b)).astype(np.float32)
      flat[place.kernel] = kernel
    return traverse_util.unflatten_dict(flat)
