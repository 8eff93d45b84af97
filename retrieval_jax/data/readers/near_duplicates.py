"""Groups near-duplicate sentences, so that a split never cuts a group."""

import collections
from collections.abc import Iterable, Mapping, Sequence
import hashlib
import re

_WORD = re.compile(r'[^\W_]+')
_STOP_WORDS = frozenset(_WORD.findall(
    'a an and are at be been for had has have he her his i in is it its my of '
    'on or our she that the their they this to was we were with you your'))
_STEM = 5  # letters kept of a word: 'contract', 'contracts', 'contracted'


def _stem(word: str) -> str:
  return (word[:-1] if len(word) > 3 and word[-1] == 's' else word)[:_STEM]


def stems(sentence: str) -> frozenset[str]:
  """Returns the set of content words without 's', cut to five letters.

  Case, punctuation, order, repetition and inflection by suffix do not count,
  nor do stop words, unless the sentence has no other words.
  """
  found = _WORD.findall(sentence.lower().replace("'", ''))
  content = [word for word in found if word not in _STOP_WORDS]
  return frozenset(map(_stem, content or found))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
  """Returns |a & b| / |a | b|, 1 for two empty sets."""
  return len(a & b) / len(a | b) if a or b else 1.0


def group(sets: Sequence[frozenset[str]]) -> list[int]:
  """Returns a group label per set; near-duplicates share one.

  Two sets are near-duplicates if their Jaccard similarity is at least 1/2;
  groups are the connected components. Exact: if J(a, b) >= 1/2 then a and b
  share one of the rarest |a| - ceil(|a| / 2) + 1 members of a, and of b
  (prefix filtering), so only sets that meet in one of those are compared.

  Args:
    sets: from `stems`; an empty set is a near-duplicate of empty ones only.

  Returns:
    The index of the first set of the group, for each set.

  Source: Chaudhuri, Ganti and Kaushik, ICDE 2006 (prefix filtering).
  """
  distinct: dict[frozenset[str], int] = {}
  for i, members in enumerate(sets):
    distinct.setdefault(members, i)
  parent = list(range(len(sets)))

  def root(i: int) -> int:
    while parent[i] != i:
      parent[i] = parent[parent[i]]
      i = parent[i]
    return i

  frequency = collections.Counter(
      member for members in distinct for member in members)
  holders: dict[str, list[tuple[frozenset[str], int]]] = (
      collections.defaultdict(list))  # member -> [(set, its index)]
  for members, i in distinct.items():
    size = len(members)
    rarest = sorted(members, key=lambda m: (frequency[m], m))
    compared: set[int] = set()
    for member in rarest[:size - (size + 1) // 2 + 1]:
      for other, j in holders[member]:
        if j in compared:
          continue
        compared.add(j)
        shared = len(members & other)
        if 2 * shared >= size + len(other) - shared:
          a, b = sorted((root(i), root(j)))
          parent[b] = a
      holders[member].append((members, i))
  return [root(distinct[members]) for members in sets]


def split(sentences: Iterable[str], shares: Mapping[str, float]) -> list[str]:
  """Assigns sentences to splits by hash; near-duplicates stay together.

  A group is hashed by the smallest of its stem sets, written out sorted, so
  the assignment depends neither on the order of the sentences nor on a seed.

  Args:
    sentences: any sentences, repetitions allowed.
    shares: split name -> expected share of the groups, summing to 1.

  Returns:
    The split's name for each sentence.
  """
  sets = [stems(sentence) for sentence in sentences]
  labels = group(sets)
  smallest: dict[int, str] = {}
  for members, label in zip(sets, labels):
    key = ' '.join(sorted(members))
    smallest[label] = min(smallest.get(label, key), key)
  names = {label: _pick(key, shares) for label, key in smallest.items()}
  return [names[label] for label in labels]


def _pick(key: str, shares: Mapping[str, float]) -> str:
  """Returns the split on whose share of [0, 1) the hash of `key` falls."""
  digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
  place = int.from_bytes(digest, 'big') / 2**64
  for name, share in shares.items():
    place -= share
    if place < 0:
      return name
  return name  # Rounding may leave the sum of the shares just below 1.
