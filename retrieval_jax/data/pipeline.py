"""Training batches: deterministic in (seed, step), sharded by process.

The visits to the queries form one endless stream: epoch after epoch, each in
an order of its own. Step t takes visits [t * B, (t + 1) * B), so batches run
over the ends of epochs and none is short. Everything random is a hash of
(seed, epoch, query), so any batch can be made without those before it, on any
number of processes, under any version of numpy. Of several data sets each has
a stream of its own, from which its turns take their batches.
"""

from collections.abc import Generator
import contextlib
import functools
from typing import Any

import numpy as np

from retrieval_jax import types
from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data import hashing
from retrieval_jax.data import tokenization
from retrieval_jax.data import turns as turns_lib

POSITIVES = ('random', 'rotating', 'first')

_ORDER, _PICK, _CANDIDATE = 1, 2, 3  # what a hash is for


def check_positive(positive: str) -> None:
  """Raises a ValueError for what is none of POSITIVES."""
  if positive not in POSITIVES:
    raise ValueError(
        f'data.positive={positive!r} is not one of {list(POSITIVES)}.')


class _Visits:
  """The endless stream of visits to some queries, cut into batches.

  Args:
    queries: [Q], rows of the queries, each once per epoch.
    batch_size: B, over all processes.
    seed: any int that fits 64 bits.
    num_shards: number of processes.
    shard_index: this process; it gets rows [p * B / P, (p + 1) * B / P).
    turns: which set each batch is of; None for one data set.

  Raises:
    ValueError: where the sizes do not fit each other.
  """

  def __init__(self, queries: np.ndarray, *, batch_size: int, seed: int,
               num_shards: int, shard_index: int,
               turns: turns_lib.Turns | None = None):
    if batch_size < 1 or batch_size % num_shards:
      raise ValueError(
          f'batch_size={batch_size} must be a positive multiple of the '
          f'{num_shards} processes, each of which gets an equal share.')
    if not 0 <= shard_index < num_shards:
      raise ValueError(
          f'shard_index={shard_index} must be in [0, {num_shards}), the '
          'number of processes.')
    self.batch_size = batch_size
    self.seed = seed
    self.num_shards = num_shards
    self.shard_index = shard_index
    self._queries, self._turns = queries, turns
    places = np.arange(len(queries))
    # Of each set the places in queries of those that are its own.
    self._members = [places] if turns is None else np.split(
        places, np.searchsorted(queries, turns.starts[1:-1]))
    # An argsort per epoch; prefetching threads may straddle two epochs.
    self._order = functools.lru_cache(maxsize=2 + len(self._members))(
        self._make_order)

  @property
  def num_queries(self) -> int:
    """Queries per epoch."""
    return len(self._queries)

  def __repr__(self) -> str:
    return (f'{type(self).__name__}({self.num_queries} queries, '
            f'batch_size={self.batch_size}, seed={self.seed}, '
            f'shard {self.shard_index} of {self.num_shards})')

  def batch(self, step: int) -> types.Batch:
    """Returns this process's rows of the batch of a step, numpy arrays."""
    raise NotImplementedError

  def _visited(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the epochs [b] of the visits of a step, and places in queries."""
    if step < 0:
      raise ValueError(f'step={step} must not be negative.')
    of_set, turn = (0, step) if self._turns is None else self._turns.at(step)
    share = self.batch_size // self.num_shards
    first = turn * self.batch_size + self.shard_index * share
    epochs, places = np.divmod(
        first + np.arange(share), len(self._members[of_set]))
    items = np.empty([share], np.int64)
    for epoch in np.unique(epochs):
      chosen = epochs == epoch
      items[chosen] = self._order(of_set, int(epoch))[places[chosen]]
    return epochs, items

  def iterate(self, start_step: int, *, num_threads: int = 2, prefetch: int = 8
              ) -> Generator[types.Batch, None, None]:
    """Yields the batches of start_step, start_step + 1, ... for ever.

    Batches are made ahead by grain's threads; equal to calling `batch`. The
    threads end when the generator is closed.
    """
    import grain
    num_steps = 2**62 // self.batch_size  # visits are counted in int64
    steps = grain.MapDataset.range(start_step, num_steps)
    with contextlib.closing(iter(steps.map(self.batch).to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads,
                          prefetch_buffer_size=prefetch)))) as batches:
      yield from batches

  def _make_order(self, of_set: int, epoch: int) -> np.ndarray:
    """Returns the order of the places of a set in an epoch: [Q] int64."""
    members = self._members[of_set]
    ranks = hashing.hashes(self.seed, _ORDER, epoch, members)
    return members[np.argsort(ranks, kind='stable')]


class QuestionBatches(_Visits):
  """Batches of questions whose positives nobody knows.

  Args:
    queries: [Q], rows of the questions, each of them once per epoch.
    query_tokens: by query row.
    batch_size: B, over all processes.
    seed: any int that fits 64 bits.
    num_shards: number of processes.
    shard_index: this process, see `TrainBatches`.
    turns: which set each batch is of; None for one data set.

  Raises:
    DataError: where there is no question.
    ValueError: where the sizes do not fit each other.
  """

  def __init__(self, queries: np.ndarray,
               query_tokens: tokenization.TokenStore, *, batch_size: int,
               seed: int, num_shards: int = 1, shard_index: int = 0,
               turns: turns_lib.Turns | None = None):
    if not len(queries):
      raise errors.DataError(
          'expected questions with answers to train on, got none. Is it the '
          'right split?')
    super().__init__(queries, batch_size=batch_size, seed=seed,
                     num_shards=num_shards, shard_index=shard_index,
                     turns=turns)
    self._query_tokens = query_tokens

  def batch(self, step: int) -> types.Batch:
    """Returns this process's rows of the batch of a step, numpy arrays.

    Positives, their tokens and known positives are -1.
    """
    queries = self._queries[self._visited(step)[1]]
    nothing = np.full([len(queries), 1], -1, np.int32)
    arrays: dict[str, Any] = dict(  # of numpy until they are on devices
        query_tokens=self._query_tokens[queries], target_tokens=nothing,
        query_ids=queries.astype(np.int32), target_ids=nothing[:, 0],
        known_positives=nothing)
    return types.Batch(**arrays)


class TrainBatches(_Visits):
  """Batches of queries with one positive each.

  With several positives, each visit to the query picks one of them. Targets of
  negative grade are never picked but count as known. Likewise each visit picks
  `num_candidates` of the query's candidates at random, without replacement;
  those that are known (relevant or of negative grade) are never among them.

  Args:
    qrels: judgements of the training split; its queries are those with a
      positive, each of them once per epoch.
    query_tokens: by query row.
    target_tokens: by corpus row.
    batch_size: B, over all processes.
    seed: any int that fits 64 bits.
    num_shards: number of processes.
    shard_index: this process; it gets rows [p * B / P, (p + 1) * B / P).
    candidates: of the split; needed where num_candidates is positive.
    num_candidates: per query; a query with fewer has -1 in their place.
    positive: which of several is picked, one of POSITIVES: any, with each epoch
      the next in the order of the corpus from a random one on, or always the
      first in that order.
    turns: which set each batch is of, whose queries then make epochs of their
      own; None for one data set.

  Raises:
    DataError: where a judged query has no positive, or there is no query.
    ValueError: where the sizes do not fit each other.
  """

  def __init__(self, qrels: dataset.Qrels,
               query_tokens: tokenization.TokenStore,
               target_tokens: tokenization.TokenStore, *, batch_size: int,
               seed: int, num_shards: int = 1, shard_index: int = 0,
               candidates: dataset.CandidatePairs | None = None,
               num_candidates: int = 0, positive: str = 'random',
               turns: turns_lib.Turns | None = None):
    _check(qrels, query_tokens, target_tokens)
    super().__init__(qrels.queries(), batch_size=batch_size, seed=seed,
                     num_shards=num_shards, shard_index=shard_index,
                     turns=turns)
    if num_candidates < 0 or num_candidates and candidates is None:
      raise ValueError(
          f'num_candidates={num_candidates} must be 0 where there are no '
          'candidates, and not negative.')
    check_positive(positive)
    self._qrels = qrels
    self._query_tokens = query_tokens
    self._target_tokens = target_tokens
    positives = qrels.padded_positives(self._queries)
    self._num_positives = (positives >= 0).sum(axis=1)
    self._positives = positives
    self._positive = positive
    self._num_candidates = num_candidates
    if num_candidates and candidates is not None:
      self._negatives = candidates.negatives(qrels)
      self._scored = candidates.positives(qrels)

  def batch(self, step: int) -> types.Batch:
    """Returns this process's rows of the batch of a step, numpy arrays."""
    epochs, items = self._visited(step)
    queries = self._queries[items]
    targets = self._positives[items, self._picks(epochs, queries, items)]
    arrays: dict[str, Any] = dict(  # of numpy until they are on devices
        query_tokens=self._query_tokens[queries],
        target_tokens=self._target_tokens[targets],
        query_ids=queries.astype(np.int32),
        target_ids=targets.astype(np.int32),
        known_positives=self._qrels.padded_known(queries))
    return types.Batch(
        **arrays, candidates=self._pick_candidates(epochs, queries, targets))

  def _picks(self, epochs: np.ndarray, queries: np.ndarray, items: np.ndarray
             ) -> np.ndarray:
    """Returns which of its positives each visit picks, [b] int64."""
    if self._positive == 'first':
      return np.zeros(len(items), np.int64)
    counts = self._num_positives[items].astype(np.uint64)
    if self._positive == 'random':
      return (hashing.hashes(self.seed, _PICK, epochs, queries) % counts
              ).astype(np.int64)
    starts = hashing.hashes(self.seed, _PICK, 0, queries) % counts
    return ((starts + epochs.astype(np.uint64)) % counts).astype(np.int64)

  def _pick_candidates(self, epochs: np.ndarray, queries: np.ndarray,
                       targets: np.ndarray) -> types.Candidates | None:
    """Returns the types.Candidates of visits, None where none are asked for.

    Args:
      epochs: [b], of the visits.
      queries: [b], rows of the queries.
      targets: [b], rows of the positives.
    """
    if not self._num_candidates:
      return None
    places = self._negatives.padded_places(queries)  # [b, W]
    ranks = hashing.hashes(
        self.seed, _CANDIDATE, epochs[:, None], queries[:, None],
        np.arange(places.shape[1]))
    chosen = hashing.order_of(ranks, places < 0)[:, :self._num_candidates]
    places = np.take_along_axis(places, chosen, axis=1)
    missing = self._num_candidates - places.shape[1]
    places = np.pad(places, ((0, 0), (0, max(missing, 0))), constant_values=-1)
    listed = places >= 0
    places = np.where(listed, places, 0)
    of = lambda values, default: np.where(
        listed, values[places] if len(values) else default, default)
    arrays: dict[str, Any] = dict(
        ids=of(self._negatives.corpus_rows, np.int32(-1)),
        scores=of(self._negatives.scores, np.float32(np.nan)),
        positive_scores=self._scored.scores_of(queries, targets))
    return types.Candidates(**arrays)


def _check(qrels: dataset.Qrels, query_tokens: tokenization.TokenStore,
           target_tokens: tokenization.TokenStore) -> None:
  """Raises where the judgements cannot be trained on."""
  if not len(qrels.query_rows):
    raise errors.DataError(
        'expected judgements to train on, got none. Is it the right split?')
  without = np.setdiff1d(qrels.query_rows, qrels.queries())
  if len(without):
    listed = ', '.join(map(str, without[:5]))
    raise errors.DataError(
        f'{len(without)} queries of the split have no positive (grade above '
        f'0), the first query rows are {listed}. Remove their judgements or '
        'add a positive.')
  for rows, store, name in ((qrels.query_rows, query_tokens, 'query'),
                            (qrels.corpus_rows, target_tokens, 'target')):
    if rows.max() >= len(store):
      raise ValueError(
          f'{name}_tokens has {len(store)} rows, but the judgements name row '
          f'{rows.max()}: they are of different datasets.')
