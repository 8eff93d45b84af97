"""What describes a family of published encoders."""

from collections.abc import Callable, Iterator
import dataclasses
import re
from typing import Any, NamedTuple

import numpy as np

from retrieval_jax.data import settings as settings_lib

SETTINGS = {
    'vocab_size': 'vocab_size', 'hidden_size': 'hidden_size',
    'num_layers': 'num_hidden_layers', 'num_heads': 'num_attention_heads',
    'intermediate_size': 'intermediate_size',
    'max_positions': 'max_position_embeddings'}
"""Field of our configs -> key of config.json, as most families have it."""


class Tensor(NamedTuple):
  """Where one parameter of ours is in published checkpoints.

  Attributes:
    ours: its path in our params, e.g. 'layer_0/attention/qkv_kernel'.
    theirs: the published names; several are put side by side along our last
      axis.
    shape: of each of theirs.
    transposed: theirs is [outputs, inputs], as torch keeps it.
    first_row: rows of theirs that come before our first.
    widths: of each of theirs, in place of the first number of `shape`; needed
      where they differ.
    halves_swapped: the second half of our last axis is the first of theirs.
  """
  ours: str
  theirs: tuple[str, ...]
  shape: tuple[int, ...]
  transposed: bool = False
  first_row: int = 0
  widths: tuple[int, ...] = ()
  halves_swapped: bool = False

  def read(self, take: Callable[[str, tuple[int, ...]], np.ndarray]
           ) -> np.ndarray:
    """Returns ours; `take` gives theirs by name after checking its shape."""
    widths = self.widths or self.shape[:1] * len(self.theirs)
    parts = [take(name, (width, *self.shape[1:]))
             for name, width in zip(self.theirs, widths)]
    if self.transposed:
      parts = [part.T for part in parts]
    return np.ascontiguousarray(
        self._swapped(np.concatenate(parts, axis=-1))[self.first_row:])

  def write(self, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) of theirs; rows that we lack become zeros."""
    value = np.concatenate([
        np.zeros((self.first_row, *value.shape[1:]), value.dtype), value])
    parts = np.split(
        self._swapped(value),
        np.cumsum(self.widths)[:-1] if self.widths else len(self.theirs),
        axis=-1)
    for name, part in zip(self.theirs, parts):
      yield name, np.ascontiguousarray(part.T if self.transposed else part)

  def _swapped(self, value):
    return (np.roll(value, value.shape[-1] // 2, axis=-1)
            if self.halves_swapped else value)


@dataclasses.dataclass(frozen=True)
class Family:
  """How one published architecture becomes ours, and back.

  Attributes:
    read_config: Settings -> our config, with all layers, float32.
    write_config: our config -> the content of a config.json.
    tensors: our config -> a Tensor per parameter.
    layer: prefix of layer {}'s names; layers left out are found by it.
    renamed: (pattern, replacement) of names that differ between checkpoints of
      one architecture, applied in turn to the names that are found.
    unused: pattern of names that do not reach the token vectors.
    reads_types: whether the encoder takes token_type_ids.
    constants: our config -> published tensors of which ours has no parameter.
  """
  read_config: Callable[[settings_lib.Settings], Any]
  write_config: Callable[[Any], dict]
  tensors: Callable[[Any], list[Tensor]]
  layer: str
  renamed: tuple[tuple[str, str], ...]
  unused: str
  reads_types: bool = False
  constants: Callable[[Any], dict[str, np.ndarray]] = lambda config: {}

  def canonical(self, name: str) -> str:
    """Returns the name that `tensors` knows a found tensor by."""
    for pattern, replacement in self.renamed:
      name = re.sub(pattern, replacement, name)
    return name
