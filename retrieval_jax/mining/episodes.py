"""Pools of negatives mined between episodes of training.

An episode trains on what the encoder of the one before has found:

  neighbours  of the query by the query tower: what ANCE trains on
  lookahead   of the query's positive by the target tower, which stands for
              where the query will be
  momentum    the pool of the episode before

Everything here is a function of its arguments: random choices are hashes of
(seed, episode, purpose, query row), whatever queries come in a batch.

Source: Sun et al., EMNLP 2022 (ANCE-Tele), and its public code where the two
  differ: 'concatenated' is the code's, 'weighted' the paper's.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import numpy as np

from retrieval_jax.data import hashing
from retrieval_jax.indexes import arguments

FIRST = ('encoder', 'bm25')
LATER = ('encoder', 'memory')
POSITIVES = ('first', 'all')
COMBINATIONS = ('concatenated', 'weighted')

# What a hash is for; those of data.pipeline are smaller.
_NEIGHBOURS, _LOOKAHEAD, _MOMENTUM, _POOL = 11, 12, 13, 14
_BLOCK = 16384  # queries whose hashes are in memory at a time


@dataclasses.dataclass(frozen=True)
class Plan:
  """What episodes there are, and what each of them mines.

  A refresh, every `refresh.reencode_every` steps, ends an episode.

  Attributes:
    number: of episodes, the last of which goes on to the end of the run; 0: as
      many as there are periods.
    restart: whether each begins with the encoder that the run began with, and
      with a learning rate's schedule as long as the longest of them, in which
      the others stop early; else training goes on.
    early_negatives: K of all episodes but the last; 0: `sampler.num_negatives`,
      as that has.
    first: what the first pool is of, 'encoder' or 'bm25'. The latter is a list
      of neighbours, without lookahead.
    later: what finds the pools of later episodes: 'encoder' embeds the corpus,
      which renews the memory too; 'memory' takes the remembered embeddings as
      the corrector moves them, and renews nothing.
    depth: neighbours that a list is chosen from.
    per_list: n, how many of them are chosen at random.
    lookahead: whether there is a list of neighbours of the positive.
    positives: whose, of a query with several: 'first' in the order of the
      corpus, or 'all', each with `depth` neighbours.
    momentum: whether the pool of the episode before is part of the next.
    combine: 'concatenated' joins the lists and that pool, so that what is in
      several of them is drawn more often; the pool grows. 'weighted' makes
      pools of 2 n ids by alpha and beta.
    alpha: share of a weighted pool that is from the pool before.
    beta: share of the rest that is from the lookahead list. So, with alpha =
      beta = 1 / 2, a quarter are neighbours of the query. The paper names the
      two weights; that the second is one of the rest is our reading, for it
      tries pairs whose sum exceeds 1.
    relative_margin: leaves out what scores above the lowest positive's score
      less this share of it; None: nothing (see `negatives.Rules`).
    bar_answers: whether passages that have an answer to the query are left out,
      see `evaluation.answers`.
  """
  number: int
  restart: bool
  early_negatives: int
  first: str
  later: str
  depth: int
  per_list: int
  lookahead: bool
  positives: str
  momentum: bool
  combine: str
  alpha: float
  beta: float
  relative_margin: float | None
  bar_answers: bool

  def __post_init__(self):
    for name, choices in (('first', FIRST), ('later', LATER),
                          ('positives', POSITIVES),
                          ('combine', COMBINATIONS)):
      if getattr(self, name) not in choices:
        raise ValueError(
            f'episodes.{name}={getattr(self, name)!r} is not one of '
            f'{list(choices)}.')
    for name, least in (('number', 0), ('early_negatives', 0),
                        ('per_list', 1)):
      if getattr(self, name) < least:
        raise ValueError(
            f'episodes.{name}={getattr(self, name)} must be at least {least}.')
    for name in ('alpha', 'beta'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(
            f'episodes.{name}={getattr(self, name)} must lie in [0, 1].')
    if self.depth < self.list_size:
      raise ValueError(
          f'episodes.depth={self.depth} neighbours are fewer than the '
          f'{self.list_size} that a list is to hold; raise it, or lower '
          f'episodes.per_list={self.per_list}.')
    margin = self.relative_margin
    if margin is not None and not margin >= 0:
      raise ValueError(
          f'episodes.relative_margin={margin} must be at least 0.')
    if self.combine == 'weighted' and (
        (self.alpha > 0) != self.momentum or (self.beta > 0) != self.lookahead):
      raise ValueError(
          f"episodes.combine='weighted' takes alpha={self.alpha} from the pool "
          f'before (momentum={self.momentum}) and beta={self.beta} of the rest '
          f'from the lookahead list (lookahead={self.lookahead}); a weight is '
          'positive exactly where its part is switched on.')

  @property
  def list_size(self) -> int:
    """Ids of a list: n, or 2 n where a pool may be of one list alone."""
    return self.per_list * (1 if self.combine == 'concatenated' else 2)

  def num_episodes(self, num_steps: int, every: int) -> int:
    """Returns how many a run has with a refresh every so many steps."""
    if not every:
      return 1
    return self.number or -(-num_steps // every)

  def longest(self, num_steps: int, every: int) -> int:
    """Returns the steps of the longest episode."""
    last = num_steps - (self.num_episodes(num_steps, every) - 1) * every
    return max(last, every if last < num_steps else 0)

  def capacity(self, num_episodes: int) -> int:
    """Returns P, the most ids of a pool in so many episodes."""
    if self.combine == 'weighted':
      return self.list_size
    lists = 2 if self.lookahead else 1
    return self.per_list * lists * (num_episodes if self.momentum else 1)


class Lists(NamedTuple):
  """What was mined for n queries; -1 behind a list that is shorter.

  Attributes:
    neighbours: [n, list_size] int32, of the query, in random order.
    lookahead: the same of its positive; None without.
  """
  neighbours: np.ndarray
  lookahead: np.ndarray | None


class Corpus(NamedTuple):
  """Embedded targets, and how they are searched.

  Attributes:
    ids: [m] int, corpus ids in rising order.
    embeddings: [m, D] float32, numpy.
    search: (vectors [b, D], depth) -> corpus ids [b, depth] int32, best first,
      -1 where there are fewer.
  """
  ids: np.ndarray
  embeddings: np.ndarray
  search: Callable[[np.ndarray, int], np.ndarray]

  def take(self, ids: np.ndarray) -> np.ndarray:
    """Returns the embeddings [..., D] of corpus ids; of -1, any."""
    return self.embeddings[np.searchsorted(self.ids, np.maximum(ids, 0))]


Unfit = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(query rows [b], corpus ids [b, k]) -> [b, k] bool, what is no negative."""


def mine(plan: Plan, corpus: Corpus, queries: np.ndarray,
         query_rows: np.ndarray, *, positives: np.ndarray, known: np.ndarray,
         seed: int, episode: int, unfit: Unfit | None = None,
         batch_size: int = 1024,
         progress: Callable[[int], object] = lambda num: None) -> Lists:
  """Returns the lists of n queries by the encoder that embedded them.

  Args:
    plan: what is mined.
    corpus: every text once: a known positive is then never met as a copy.
    queries: [n, D] float32.
    query_rows: [n] int.
    positives: [n, E] int, corpus ids, the first first, -1 behind them.
    known: [n, F] int, corpus ids that are no negatives, -1 for none.
    seed: of the run.
    episode: number of the episode that trains on these, from 1.
    unfit: what else is no negative, such as passages that hold an answer.
    batch_size: queries at a time; changes nothing but memory and time.
    progress: called with the number of queries done since the last call.
  """
  found: list[list[np.ndarray]] = [[], []]
  ahead = positives[:, :1] if plan.positives == 'first' else positives
  depth = min(plan.depth, len(corpus.ids))
  for start in range(0, len(query_rows), batch_size):
    part = slice(start, start + batch_size)
    lists = [corpus.search(queries[part], depth)]
    if plan.lookahead:
      lists.append(np.concatenate([
          np.where(ids[:, None] >= 0, corpus.search(corpus.take(ids), depth),
                   -1) for ids in ahead[part].T], axis=1))
    for kept, ids, purpose in zip(found, lists, (_NEIGHBOURS, _LOOKAHEAD)):
      allowed = ~arguments.listed(ids, known[part])
      if unfit is not None:
        allowed &= ~unfit(query_rows[part], ids)
      if plan.relative_margin is not None:
        allowed &= _below_margin(
            plan.relative_margin, corpus, queries[part], ids, positives[part])
      kept.append(_drawn(
          np.where(allowed, ids, -1), plan.list_size, seed, episode, purpose,
          query_rows[part]))
    progress(len(query_rows[part]))
  empty = np.zeros((0, plan.list_size), np.int32)
  joined = [np.concatenate([empty, *parts]) for parts in found]
  return Lists(joined[0], joined[1] if plan.lookahead else None)


def choose_random(ids: np.ndarray, count: int, *, known: np.ndarray,
                  query_rows: np.ndarray, seed: int, episode: int
                  ) -> np.ndarray:
  """Returns `count` random ones [n, count] of results that are not known.

  Arguments are as of `choose`; -1 behind those of a query with fewer.
  """
  return _drawn(np.where(arguments.listed(ids, known), -1, ids), count, seed,
                episode, _NEIGHBOURS, query_rows)


def choose(plan: Plan, ids: np.ndarray, query_rows: np.ndarray, *,
           known: np.ndarray, seed: int, unfit: Unfit | None = None) -> Lists:
  """Returns the lists of the first episode from results [n, depth] of a search.

  An id that comes again, as the first of a text does for its copies, counts
  once; other arguments are as of `mine`.
  """
  allowed = ~arguments.listed(ids, known) & ~_repeated(ids)
  if unfit is not None:
    allowed &= ~unfit(query_rows, ids)
  return Lists(_drawn(np.where(allowed, ids, -1), plan.list_size, seed, 1,
                      _NEIGHBOURS, query_rows), None)


def pool(plan: Plan, lists: Lists, previous: np.ndarray | None,
         query_rows: np.ndarray, *, seed: int, episode: int) -> np.ndarray:
  """Returns the pools [n, P] int32 of n queries, in random order, then -1.

  Args:
    plan: how they are made.
    lists: what was mined.
    previous: [n, P'] int32, the pools of the episode before, -1 for none; None
      in the first.
    query_rows: [n] int.
    seed: of the run.
    episode: number of the episode that trains on these, from 1.
  """
  parts = [lists.neighbours]
  if lists.lookahead is not None:
    parts.append(lists.lookahead)
  if plan.momentum and previous is not None:
    parts.append(previous)
  if plan.combine == 'weighted':
    parts = _shares(plan, lists, previous, query_rows, seed, episode)
  joined = np.concatenate(parts, axis=1)
  pools = _drawn(joined, joined.shape[1], seed, episode, _POOL, query_rows)
  longest = int((pools >= 0).sum(axis=1).max(initial=0))
  return pools[:, :longest]


def _shares(plan, lists, previous, query_rows, seed, episode):
  """Returns the parts of a weighted pool of list_size ids."""
  size, parts = plan.list_size, []
  if plan.momentum and previous is not None:
    kept = round(plan.alpha * size)
    parts.append(_drawn(previous, kept, seed, episode, _MOMENTUM, query_rows))
    size -= kept
  if lists.lookahead is not None:
    ahead = round(plan.beta * size)
    parts.append(lists.lookahead[:, :ahead])
    size -= ahead
  return [*parts, lists.neighbours[:, :size]]


def _drawn(ids: np.ndarray, count: int, seed: int, episode: int, purpose: int,
           query_rows: np.ndarray) -> np.ndarray:
  """Returns `count` of ids [n, k] that are not -1, in random order, then -1."""
  drawn = np.full((len(ids), count), -1, np.int32)
  for start in range(0, len(ids), _BLOCK):
    part = slice(start, start + _BLOCK)
    ranks = hashing.hashes(seed, purpose, episode, query_rows[part, None],
                            np.arange(ids.shape[1]))
    order = hashing.order_of(ranks, ids[part] < 0)[:, :count]
    drawn[part, :order.shape[1]] = np.take_along_axis(
        ids[part], order, axis=1)
  return drawn


def _repeated(ids: np.ndarray) -> np.ndarray:
  """Returns [n, k] bool, whether an id stands further left in its row."""
  order = np.argsort(ids, axis=1, kind='stable')
  ranked = np.take_along_axis(ids, order, axis=1)
  again = np.zeros(ids.shape, bool)
  np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1],
                    axis=1)
  return again


def _below_margin(margin: float, corpus: Corpus, queries: np.ndarray,
                  ids: np.ndarray, positives: np.ndarray) -> np.ndarray:
  """Returns [n, k] bool, whether ids score below the margin to positives."""
  score = lambda ids: np.einsum('nd,nkd->nk', queries, corpus.take(ids))
  lowest = np.min(np.where(positives >= 0, score(positives), np.inf), axis=1,
                  keepdims=True)
  return score(ids) <= lowest - margin * np.abs(lowest)
