"""Which of a query's search results become its hard negatives.

A result is barred outright if it is a known answer, a copy of one or the query
itself. The rest are ranked from 0, and those of ranks range_min to
range_max - 1 are the candidates. A candidate is dropped if it scores too near
the positive, or outside of given bounds; of those left, the best or random ones
are taken.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from retrieval_jax.indexes import arguments

REFERENCES = ('lowest', 'highest')
SAMPLINGS = ('top', 'random')


@dataclasses.dataclass(frozen=True)
class Rules:
  """How negatives are chosen. None switches a filter off.

  Attributes:
    num_negatives: wanted per query.
    range_min: results that are skipped first, after the barred ones.
    range_max: end of the window of ranks; None: range_min + num_negatives, or
      range_min + 10 num_negatives if candidates may be dropped or are sampled.
    absolute_margin: a negative scores at most positive - absolute_margin.
    relative_margin: at most positive - relative_margin |positive|. Taken as a
      share of the magnitude, so that the bound is below a negative score too.
    margin_to: the positive of both margins, where a query has several:
      'lowest', the one of lowest score, is the safe choice: nothing near any
      positive is taken, but one hard positive costs a query its hard
      negatives, which 'highest' keeps.
    max_score: a negative scores at most this.
    min_score: at least this.
    sampling: 'top' takes the best ones that are left, 'random' any.
    seed: of 'random'.

  Source: relative_margin=0.05, 'top', is TopK-PercPos (95%) of Moreira et al.
    2024 (NV-Retriever), absolute_margin its TopK-MarginPos. The rules are those
    of mine_hard_negatives of sentence-transformers 6.0, 'lowest' included, but
    for two: there range_min skips candidates that the filters left, here the
    best results, as its documentation says, and its number of candidates
    grows with the most positives that any query has, here it does not.
  """
  num_negatives: int
  range_min: int = 0
  range_max: int | None = None
  absolute_margin: float | None = None
  relative_margin: float | None = None
  margin_to: str = 'lowest'
  max_score: float | None = None
  min_score: float | None = None
  sampling: str = 'top'
  seed: int = 0

  def __post_init__(self):
    for name, least in (('num_negatives', 1), ('range_min', 0), ('seed', 0),
                        ('absolute_margin', 0), ('relative_margin', 0)):
      value = getattr(self, name)
      if value is not None and not value >= least:  # refuses nan, too
        raise ValueError(
            f'--{name}={value}, expected at least {least}.')
    for name, choices in (('margin_to', REFERENCES), ('sampling', SAMPLINGS)):
      if getattr(self, name) not in choices:
        raise ValueError(
            f'--{name}={getattr(self, name)!r} is not one of {list(choices)}.')
    if self.end - self.range_min < self.num_negatives:
      raise ValueError(
          f'--range_max={self.range_max} leaves {self.end - self.range_min} '
          f'results after --range_min={self.range_min}, fewer than '
          f'--num_negatives={self.num_negatives}; widen the window.')
    if (self.max_score is not None and self.min_score is not None
        and not self.min_score <= self.max_score):
      raise ValueError(
          f'--min_score={self.min_score} is above --max_score='
          f'{self.max_score}; nothing would be left.')

  @property
  def end(self) -> int:
    """The rank after the window."""
    if self.range_max is not None:
      return self.range_max
    filters = (self.absolute_margin, self.relative_margin, self.max_score,
               self.min_score)
    spare = self.sampling == 'random' or any(x is not None for x in filters)
    return self.range_min + self.num_negatives * (10 if spare else 1)


class Chosen(NamedTuple):
  """Negatives of n queries.

  Attributes:
    ids: [n, num_negatives] int32, by falling score, -1 where there are fewer.
    scores: [n, num_negatives] float32, -inf where there are fewer.
    removed: filter -> results that it removed, of the results that come before
      the window's end. One that several filters would remove counts for the
      first, in the order barred, range_min, margins, scores.
  """
  ids: np.ndarray
  scores: np.ndarray
  removed: Mapping[str, int]


def choose(ids: np.ndarray, scores: np.ndarray, *,
           barred: Mapping[str, np.ndarray], positive_scores: np.ndarray,
           query_ids: Sequence[str], rules: Rules) -> Chosen:
  """Returns the negatives of n queries, of which each is chosen by itself.

  Whatever the order or the batch that a query comes in, and however many
  results beyond the window come with it, its negatives are the same.

  Args:
    ids: [n, k] int, search results, best first, -1 for none. Those of a query
      are enough if k is rules.end + the number of its barred ids.
    scores: [n, k] float32.
    barred: why -> [n, E] int, ids that must not become negatives, -1 for
      none.
    positive_scores: [n, P] float32, scores of the positives, nan where there
      is none, -inf where the search did not return it: then it scores below
      everything that came out, and the margins leave no candidate.
    query_ids: n strings; a query's random choice depends on the seed, its id
      and the candidates left, only.
    rules: see there.
  """
  ids, scores = np.asarray(ids), np.asarray(scores, np.float32)
  alive, removed = ids >= 0, {}

  def remove(why, where):
    removed[why] = alive & where
    alive[where] = False

  for why, lists in barred.items():
    remove(why, arguments.listed(ids, lists))
  # A barred result has the rank of the next one that is not.
  rank: np.ndarray = np.cumsum(alive, axis=1) - alive
  inside = rank < rules.end
  alive &= inside
  remove('range_min', rank < rules.range_min)
  reference = _reference(positive_scores, rules.margin_to)[:, None]
  if rules.absolute_margin is not None:
    remove('absolute_margin', scores > reference - rules.absolute_margin)
  if rules.relative_margin is not None:
    size = np.where(np.isfinite(reference), np.abs(reference), 0)
    remove('relative_margin', scores > reference - rules.relative_margin * size)
  if rules.max_score is not None:
    remove('max_score', scores > rules.max_score)
  if rules.min_score is not None:
    remove('min_score', scores < rules.min_score)
  kept = _draw(alive, query_ids, rules) if rules.sampling == 'random' else alive
  order = np.argsort(~kept, axis=1, kind='stable')[:, :rules.num_negatives]
  pad = ((0, 0), (0, rules.num_negatives - order.shape[1]))
  live = np.take_along_axis(kept, order, axis=1)
  return Chosen(
      np.pad(np.where(live, np.take_along_axis(ids, order, axis=1), -1), pad,
             constant_values=-1).astype(np.int32),
      np.pad(np.where(live, np.take_along_axis(scores, order, axis=1),
                      -np.inf), pad, constant_values=-np.inf),
      {why: int((gone & inside).sum()) for why, gone in removed.items()})


def _reference(positive_scores: np.ndarray, margin_to: str) -> np.ndarray:
  """Returns [n] float64, the score that margins are taken from."""
  scores = np.asarray(positive_scores, np.float64)
  if margin_to == 'lowest':
    return np.min(np.where(np.isnan(scores), np.inf, scores), axis=1)
  return np.max(np.where(np.isnan(scores), -np.inf, scores), axis=1)


def _draw(alive: np.ndarray, query_ids: Sequence[str], rules: Rules
          ) -> np.ndarray:
  """Returns `alive` with at most num_negatives random ones left per query."""
  kept = np.zeros_like(alive)
  for row, query_id in enumerate(query_ids):
    places = np.flatnonzero(alive[row])
    digest = hashlib.blake2b(query_id.encode(), digest_size=8).digest()
    rng = np.random.default_rng([rules.seed, int.from_bytes(digest)])
    kept[row, rng.permutation(places)[:rules.num_negatives]] = True
  return kept
