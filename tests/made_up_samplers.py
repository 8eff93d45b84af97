"""Samplers of each kind that the slots allow, as small as they can be.

They show that a sampler may keep state on the device, run on the host, or draw
corpus ids without any memory: tests/experiments/samplers_with_state_test.py.
"""

import dataclasses

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.samplers import proposals
from retrieval_jax.samplers import stateless


@types.register
@dataclasses.dataclass(frozen=True)
class Counts(types.ByRow):
  """How often each row was seen, [M@data] int32."""
  seen: jax.Array


@dataclasses.dataclass(frozen=True)
class Rare(stateless.Stateless):
  """Draws the rows that were encoded least often; state sharded by row.

  Attributes:
    num_negatives: K.
  """
  num_negatives: int

  def init(self, key, view):
    return Counts(jnp.zeros_like(view.table.ids))

  def propose(self, state, key, request, view):
    shape = request.queries.shape[0], view.table.ids.shape[0]
    rarity = jax.random.uniform(key, shape) - state.seen[None]
    allowed = (view.table.ids >= 0)[None] & ~jnp.any(
        jnp.arange(shape[1])[None, :, None]
        == request.exclude_rows[:, None, :], axis=-1)
    best, rows = jax.lax.top_k(
        jnp.where(allowed, rarity, -jnp.inf), self.num_negatives)
    return proposals.described(
        jnp.where(jnp.isfinite(best), rows, -1).astype(jnp.int32),
        jnp.zeros(rows.shape), request, view)

  def update(self, state, observation):
    ids = observation.stale.ids  # rows of a corpus are ids
    ids = jnp.where(observation.mask, ids, len(state.seen))
    seen = state.seen.at[ids].add(1, mode='drop')
    return Counts(seen), {'most_seen': seen.max()}

  def rebuild(self, state, key, episode):
    return jax.tree.map(jnp.zeros_like, state)

  def rows_scored(self, num_queries, capacity):
    return (num_queries * self.num_negatives,) * 2


@dataclasses.dataclass(frozen=True)
class OnHost(stateless.Stateless):
  """Walks through the rows in steps of its own, in numpy.

  Attributes:
    num_negatives: K.
  """
  num_negatives: int
  on_host = True
  reads_embeddings = False

  def init(self, key, view):
    return {'next': np.zeros([], np.int32),
            'drift': np.zeros([], np.float32)}

  def propose(self, state, key, request, view):
    assert all(isinstance(x, np.ndarray) for x in state.values()), state
    shape = len(request.queries), self.num_negatives
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    rows = (state['next'] + rng.integers(0, 20, shape)) % max(
        int(tables.num_live(view.table)), 1)
    rows = np.where(
        np.isin(rows, np.asarray(request.exclude_rows)), -1, rows)
    return proposals.described(
        jnp.asarray(rows, jnp.int32), jnp.zeros(shape), request, view)

  def update(self, state, observation):
    assert all(isinstance(x, np.ndarray) for x in state.values()), state
    moved = np.asarray(tables.drift(
        observation.stale.embeddings, observation.fresh))
    mask = np.asarray(observation.mask)
    drift = state['drift'] + np.float32(moved[mask].mean())
    return {'next': np.asarray(state['next'] + 3, np.int32),
            'drift': np.asarray(drift)}, {'walked': drift}

  def rows_scored(self, num_queries, capacity):
    return (num_queries * self.num_negatives,) * 2


@types.register
@dataclasses.dataclass(frozen=True)
class Pools(types.ByRow):
  """Corpus ids to draw from, [Q@data, P] int32, padded by queries."""
  ids: jax.Array


@dataclasses.dataclass(frozen=True)
class Pool(stateless.Stateless):
  """Draws corpus ids from a pool for each query, without a memory.

  Attributes:
    num_negatives: K.
    num_targets: N.
    num_queries: Q.
  """
  num_negatives: int
  num_targets: int
  num_queries: int
  draws_from_memory = False
  reads_embeddings = False
  size = 12

  def init(self, key, view):
    padded = -(-self.num_queries // 8) * 8  # as many on 1, 2, 4, 8 devices
    return Pools(jax.random.randint(
        key, (padded, self.size), 0, self.num_targets))

  def propose(self, state, key, request, view):
    start = request.step * self.num_negatives
    window = (start + jnp.arange(self.num_negatives)) % self.size
    ids = state.ids[request.query_ids][:, window]
    mask = ~jnp.any(
        ids[:, :, None] == request.exclude_ids[:, None, :], axis=-1)
    nothing = jnp.full(ids.shape, -1, jnp.int32)
    return types.Proposal(
        rows=nothing, ids=jnp.where(mask, ids, -1),
        logits=jnp.zeros(ids.shape), log_q=jnp.zeros(ids.shape),
        log_z=jnp.full(ids.shape[:1], jnp.nan), mask=mask)

  def rebuild(self, state, key, episode):
    """Neighbours of each query among random targets, its positives left out."""
    some = np.arange(self.num_queries)
    drawn = np.asarray(jax.random.randint(
        key, (40,), 0, self.num_targets))
    logits = episode.embed_queries(some) @ episode.embed_targets(drawn).T
    known = episode.known_positives(some)
    logits[(drawn[None, :, None] == known[:, None, :]).any(-1)] = -np.inf
    best = drawn[np.argsort(-logits, axis=1, kind='stable')[:, :self.size]]
    return Pools(jax.device_put(
        state.ids.at[:self.num_queries].set(best), state.ids.sharding))

  def rows_scored(self, num_queries, capacity):
    return 0, 0
