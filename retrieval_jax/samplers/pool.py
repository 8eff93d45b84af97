"""Negatives from a pool of corpus ids for each query, mined beforehand."""

from collections.abc import Mapping
import dataclasses
from typing import ClassVar

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.samplers import proposals

ORDERS = ('rotating', 'uniform', 'softmax')

# As many rows on every mesh whose size divides this, so that a run goes on with
# another number of devices.
_MULTIPLE = 512


@types.register
@dataclasses.dataclass(frozen=True)
class Pools(types.ByRow):
  """The pool of each query.

  Attributes:
    ids: [Q@data, P] int32, corpus ids by query id, in the order in which they
      are drawn, then -1; Q is padded for the mesh. An id may be there several
      times, and is then drawn as often, but by 'softmax'.
  """
  ids: jax.Array


@dataclasses.dataclass(frozen=True)
class Pool:
  """Draws K of the ids that were mined for a query.

    rotating  the K ids from place (e K mod p) on of the p in the query's pool,
              and round its end, where e counts the epochs: without replacement
              in a draw, and each id once before any comes again where K divides
              p
    uniform   any K, without replacement
    softmax   K without replacement from softmax(corrected logits) over the
              distinct ids of the pool, by Gumbel-top-k: how hard they are now
              decides, and not how often they were mined

  The first two need no memory, and draw from a pool of fewer than K ids with
  replacement. 'softmax' needs one that holds the corpus, whose rows it draws;
  K ids or fewer all come out, and the places left are masked. Its log_z is the
  pool's: too small, as a shortlist's is. Of an empty pool nothing is drawn.
  Pools are empty until they are given by `rebuild`.

  Source: Sun et al., EMNLP 2022 (ANCE-Tele), whose public code takes a rotating
    window of a shuffled list. 'softmax' is ours.

  Attributes:
    num_negatives: K.
    pool_order: one of ORDERS.
    pool_capacity: P, the most ids of a query, at least 1.
    num_queries: Q, of all splits.
    epoch_size: queries of an epoch of training, by which visits become epochs
      as in data.TrainBatches.
  """
  num_negatives: int
  pool_order: str
  pool_capacity: int
  num_queries: int
  epoch_size: int
  draws_from_pools: ClassVar[bool] = True
  on_host: ClassVar[bool] = False
  maintain_every: ClassVar[int] = 0
  takes_few_rows: ClassVar[bool] = False

  def __post_init__(self):
    if self.num_negatives < 1:
      raise ValueError(
          f'sampler.num_negatives={self.num_negatives} must be at least 1.')
    if self.pool_order not in ORDERS:
      raise ValueError(
          f'sampler.pool_order={self.pool_order!r} is not one of '
          f'{list(ORDERS)}.')

  @property
  def gives(self) -> frozenset[str]:
    """Log Z of the pool where it draws by the softmax."""
    return frozenset(['log_z'] if self.reads_embeddings else [])

  @property
  def draws_from_memory(self) -> bool:
    """Whether it draws rows, not ids."""
    return self.reads_embeddings

  @property
  def reads_embeddings(self) -> bool:
    """Whether what is remembered decides."""
    return self.pool_order == 'softmax'

  def init(self, key: jax.Array, view: types.View) -> Pools:
    """Returns pools that are empty."""
    del key, view
    num_rows = -(-self.num_queries // _MULTIPLE) * _MULTIPLE
    return Pools(jnp.full((num_rows, self.pool_capacity), -1, jnp.int32))

  def propose(self, state: Pools, key: jax.Array, request: types.Request,
              view: types.View) -> types.Proposal:
    """Returns ids [B, K]; rows and their scores are known by softmax only."""
    pools = state.ids[request.query_ids]  # [B, P]
    if self.pool_order == 'softmax':
      return self._by_softmax(pools, key, request, view)
    shape = len(pools), self.num_negatives
    again_key, order_key = jax.random.split(key)
    size = jnp.sum(pools >= 0, axis=1, keepdims=True)
    again = jax.random.randint(again_key, shape, 0, jnp.maximum(size, 1))
    if self.pool_order == 'uniform':
      noise = jax.random.uniform(order_key, pools.shape)
      order = jnp.argsort(jnp.where(pools >= 0, noise, 2.), axis=1)
      places = jnp.pad(order, ((0, 0), (0, self.num_negatives)))[
          :, :self.num_negatives]
    else:
      visits = request.step * shape[0] + jnp.arange(shape[0])
      first = (visits // self.epoch_size)[:, None] * self.num_negatives
      places = (first + jnp.arange(self.num_negatives)[None]) % jnp.maximum(
          size, 1)
    places = jnp.where(size < self.num_negatives, again, places)
    ids = jnp.take_along_axis(pools, places, axis=1)
    mask = (ids >= 0) & ~jnp.any(
        ids[:, :, None] == request.exclude_ids[:, None, :], axis=-1)
    return types.Proposal(
        rows=jnp.full(shape, -1, jnp.int32), ids=jnp.where(mask, ids, -1),
        logits=jnp.zeros(shape), log_q=jnp.zeros(shape),
        log_z=jnp.full(shape[:1], jnp.nan), mask=mask)

  def _by_softmax(self, pools, key, request, view):
    """Returns the Proposal of draws from pools [B, P]."""
    missing = max(self.num_negatives - pools.shape[1], 0)
    ids = jnp.pad(jnp.sort(pools, axis=1), ((0, 0), (missing, 0)),
                  constant_values=-1)
    again = jnp.pad(ids[:, 1:] == ids[:, :-1], ((0, 0), (1, 0)))
    rows = tables.rows_of(view.table, jnp.where(again, -1, ids))
    logits = scoring.logits_of(
        request.queries, view, rows[:, None],
        exclude_rows=request.exclude_rows)[:, 0]
    found, places = jax.lax.top_k(
        logits + jax.random.gumbel(key, logits.shape), self.num_negatives)
    take = lambda array: jnp.take_along_axis(array, places, axis=1)
    return proposals.scored(
        jnp.where(found > -jnp.inf, take(rows), -1), take(logits), view,
        jax.nn.logsumexp(logits, axis=1))

  def update(self, state: Pools, observation: types.Observation
             ) -> tuple[Pools, Mapping[str, jax.Array]]:
    """Returns the pools as they are."""
    del observation
    return state, {}

  def rebuild(self, state: Pools, key: jax.Array, episode: types.Episode
              ) -> Pools:
    """Returns the pools that were mined, or these if none were.

    Raises:
      ValueError: if a query has more ids than there is room for.
    """
    del key
    if episode.pools is None:
      return state
    num_queries, width = episode.pools.shape
    if num_queries != self.num_queries or width > self.pool_capacity:
      raise ValueError(
          f'Expected pools of at most {self.pool_capacity} ids for each of '
          f'{self.num_queries} queries, got the shape {episode.pools.shape}.')
    ids = np.full(state.ids.shape, -1, np.int32)
    ids[:num_queries, :width] = episode.pools
    return Pools(sharding.put(ids, state.ids.sharding))

  def diagnose(self, state: Pools, request: types.Request, view: types.View
               ) -> Mapping[str, jax.Array]:
    """Returns nothing: no draw is by the softmax over the memory."""
    del state, request, view
    return {}

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns (products <query, row>, rows corrected) of one `propose`.

    By the softmax those of whole pools, else none.
    """
    del capacity
    if self.pool_order != 'softmax':
      return 0, 0
    return (num_queries * max(self.pool_capacity, self.num_negatives),) * 2

  def rows_compared(self, capacity: int) -> tuple[int, int]:
    """Returns 0 and 0: pools are mined, and that is counted there."""
    del capacity
    return 0, 0
