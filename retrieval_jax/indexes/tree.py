"""Search along a tree: near leaves are chosen, their targets scored exactly."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import products
from retrieval_jax import scoring
from retrieval_jax import tree as trees
from retrieval_jax import tree_building
from retrieval_jax import types
from retrieval_jax.indexes import exact


@types.register
@dataclasses.dataclass(frozen=True)
class TreeState:
  """Attributes: table, of all targets, target i in row i; tree, over it."""
  table: types.TargetTable
  tree: trees.Tree

  @property
  def embeddings(self) -> jax.Array:
    """[M@data, D], those of the table."""
    return self.table.embeddings


@dataclasses.dataclass(frozen=True)
class TreeIndex(exact.ExactIndex):
  """Search of the leaves whose centres have the largest inner products.

  Scores are exact; what is in no opened leaf is not found. With no limits it
  finds what `ExactIndex` finds.

  Attributes: those of `ExactIndex`, and
    leaf_size: the most targets of a leaf.
    opened: leaves whose targets are scored for a query; 0: all.
    beam: parents of the best centres, whose leaves are looked at; 0: all.

  Source: the beam search of Monath et al., AISTATS 2023, in a tree of two
    levels.
  """
  leaf_size: int = 64
  opened: int = 64
  beam: int = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    for name, least in (('leaf_size', 2), ('opened', 0), ('beam', 0)):
      if getattr(self, name) < least:
        raise ValueError(
            f'{name} is {getattr(self, name)}, expected at least {least}.')

  def build(self, targets: np.ndarray) -> TreeState:
    """Returns the state for targets [N, D], numpy or memory-mapped."""
    table = super().build(targets)
    return TreeState(table, jax.jit(
        lambda table: tree_building.build(
            jax.random.key(0), tree_building.OnDevice(self._view(table)),
            leaf_size=self.leaf_size, rank=0))(table))

  def _found(self, queries, state, exclude, k):
    return _search(queries, state, exclude, k=k, index=self)


@functools.partial(jax.jit, static_argnames=('k', 'index'))
def _search(queries, state, exclude, *, k, index):
  tree = state.tree
  leaves = _near(queries, tree, index.beam)
  scores = products.inner(
      'bd,bnd->bn', queries, tree.leaves.centres[jnp.maximum(leaves, 0)]
  ) if index.beam else products.inner(
      'bd,nd->bn', queries, tree.leaves.centres)
  size = min(index.opened or scores.shape[1], scores.shape[1])
  in_use = (leaves >= 0) & (tree.leaves.counts[jnp.maximum(leaves, 0)] > 0)
  best, at = jax.lax.top_k(jnp.where(in_use, scores, -jnp.inf), size)
  opened = jnp.take_along_axis(leaves, at, axis=1)
  rows = jnp.where((best > -jnp.inf)[:, :, None], trees.rows_of(
      tree, jnp.maximum(opened, 0)), -1)
  found = scoring.logits_of(
      queries, index._view(state.table), rows, exclude_rows=exclude)
  # Equal scores come by lowest row, whatever leaf they are in.
  return exact.sorted_best(found, rows, k)


def _near(queries, tree, beam):
  """Returns leaves [B, n] of the best parents; without a beam, all."""
  if not beam:
    return jnp.broadcast_to(
        jnp.arange(tree.num_leaves, dtype=jnp.int32)[None],
        (len(queries), tree.num_leaves))
  scores = products.inner('bd,nd->bn', queries, tree.parents.centres)
  _, parents = jax.lax.top_k(
      jnp.where((tree.parents.counts > 0)[None], scores, -jnp.inf),
      min(beam, tree.num_parents))
  return trees.leaves_of(tree, parents).reshape(len(queries), -1)
