"""Answers as strings: whether two are equal, and whether a passage holds one.

There are two usual ways to compare, and both are here. SQuAD's normalisation
takes case, punctuation, articles and spaces away: exact match, F1 and `spans`
compare what is left. DPR's matcher compares words and signs without case, and
is what 'top-k accuracy' of open-domain question answering means: `has_answer`
and `Answer@k`, the share of the questions that have a passage with an answer
among their first k.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
import itertools
import re
import string
import sys
import unicodedata

import numpy as np

from retrieval_jax.evaluation import runs

MEASURES = ('Answer@1', 'Answer@5', 'Answer@20', 'Answer@100')
"""What a split with answers is measured by besides its judgements."""

_NAME = re.compile(r'Answer@([1-9]\d*)')
_ARTICLES = re.compile(r'\b(?:a|an|the)\b')
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)
_SIGNS = f'[{re.escape(string.punctuation)}]*'
_BETWEEN = rf'{_SIGNS}\s+{_SIGNS}(?:(?:an?|the){_SIGNS}\s+{_SIGNS})*'
_ARTICLE_BEFORE = re.compile(rf'(?<![^\W_])(?:an?|the){_SIGNS}\s+{_SIGNS}\Z')
_REACH = 16  # characters in front of an occurrence that may hold an article


def normalize(text: str) -> str:
  """Returns a text in lower case without punctuation, articles, more spaces.

  Source: the evaluation script of SQuAD 1.1. Punctuation is that of ASCII.
  """
  text = text.lower().translate(_NO_PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def exact_match(prediction: str, answers: Iterable[str]) -> float:
  """Returns 1 if a prediction is one of the answers, normalised, else 0."""
  predicted = normalize(prediction)
  return float(any(predicted == normalize(answer) for answer in answers))


def f1(prediction: str, answers: Iterable[str]) -> float:
  """Returns the highest F1 of the normalised words over the answers."""
  predicted = normalize(prediction).split()
  return max((_f1(predicted, normalize(answer).split())
              for answer in answers), default=0.)


def _f1(predicted: Sequence[str], wanted: Sequence[str]) -> float:
  if not predicted or not wanted:
    return float(predicted == wanted)
  common = collections.Counter(predicted) & collections.Counter(wanted)
  return 2 * common.total() / (len(predicted) + len(wanted))


def spans(answers: Iterable[str], text: str) -> list[tuple[int, int]]:
  """Returns where a passage holds an answer: whole words, normalised.

  They are the spans that begin and end at a word (letters and digits) of the
  text and whose normalised form is that of an answer; those that begin with an
  article count besides the same without it, those that end with one do not.
  Answers of which normalisation leaves nothing have no spans.

  Args:
    answers: of one question.
    text: a passage.

  Returns:
    Rising, distinct (start, stop), counted in characters of `text`.
  """
  normal = normalize(text)
  wanted = {normalize(answer) for answer in answers} - {''}
  found = set()
  for answer in wanted:
    if answer not in normal:  # far faster than the pattern
      continue
    pattern, lowered = _pattern(answer), _lower(text)
    match = pattern.search(lowered)
    while match:
      start, stop = match.span()
      found.add((start, stop))
      before = max(start - _REACH, 0)
      article = _ARTICLE_BEFORE.search(lowered[before:start])
      if article:
        found.add((before + article.start(), stop))
      match = pattern.search(lowered, start + 1)
  return sorted(found)


@functools.lru_cache(1 << 16)
def _pattern(answer: str) -> re.Pattern[str]:
  """Returns the pattern of all texts with a normalised form, whole words."""
  words = (_SIGNS.join(map(re.escape, word)) for word in answer.split())
  return re.compile(rf'(?<![^\W_]){_BETWEEN.join(words)}(?![^\W_])')


def _lower(text: str) -> str:
  """Returns a text in lower case, of the same length."""
  lowered = text.lower()
  if len(lowered) == len(text):
    return lowered
  return ''.join(c.lower() if len(c.lower()) == 1 else c for c in text)


def has_answer(text: str, answers: Iterable[str]) -> bool:
  """Returns whether a passage has the words of an answer, one after the other.

  Words are runs of letters, digits and marks, every other sign is a word of its
  own, and case does not count.

  Source: `has_answer` with SimpleTokenizer, uncased, of DPR's code (Karpukhin
    et al., EMNLP 2020). Deviation: the text of a passage here begins with its
    title, which DPR does not look into. An answer without words is in none.
  """
  return matcher(answers)(text)


def matcher(answers: Iterable[str]) -> Callable[[str], bool]:
  """Returns `has_answer` of some answers, which is faster for many passages."""
  wanted = [f' {words} ' for words in map(_words, answers) if words]
  # Most passages lack one of the words, which is found out without all words of
  # theirs. Only of ASCII is the lower case independent of what stands around.
  ascii_words = [[word for word in words.split() if word.isascii()]
                 for words in wanted]

  def has_one(text):
    text = unicodedata.normalize('NFD', text)
    lowered = text.lower()
    if not any(all(word in lowered for word in words) for words in ascii_words):
      return False
    words = f' {_words(text)} '
    return any(answer in words for answer in wanted)

  return has_one


def holders(of: Callable[[int], Sequence[str]], texts: Sequence[str]
            ) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
  """Returns what finds the passages that have an answer to their query.

  It is a function from query rows [n] and corpus rows [n, k], -1 for none, to
  [n, k] bool. Each passage is read once a call.

  Args:
    of: from a query row to its answers, maybe none.
    texts: by corpus row.
  """
  def has_answers(query_rows, rows):
    each, places = np.unique(rows, return_inverse=True)
    read = [texts[row] if row >= 0 else '' for row in each.tolist()]
    found = np.zeros(rows.shape, bool)
    for of_query, there, row in zip(
        found, places.reshape(rows.shape), query_rows.tolist()):
      has_one = matcher(of(row))
      of_query[:] = [has_one(read[i]) for i in there.tolist()]
    return found

  return has_answers


def _words(text: str) -> str:
  """Returns the words of a text in lower case, separated by spaces."""
  return ' '.join(_words_or_signs().findall(
      unicodedata.normalize('NFD', text))).lower()


@functools.cache
def _words_or_signs() -> re.Pattern[str]:
  r"""Returns [\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}], which `re` cannot spell."""
  ranges: dict[str, list[str]] = {'LNM': [], 'ZC': []}
  codes = range(sys.maxunicode + 1)
  for kind, run in itertools.groupby(
      codes, lambda code: unicodedata.category(chr(code))[0]):
    of_kind = list(run)
    for kinds, of_kinds in ranges.items():
      if kind in kinds:
        of_kinds.append(rf'\U{of_kind[0]:08x}-\U{of_kind[-1]:08x}')
  letters, blanks = map(''.join, ranges.values())
  return re.compile(f'[{letters}]+|[^{blanks}]')


def is_measure(name: str) -> bool:
  """Returns whether a measure is an `Answer@k`."""
  return bool(_NAME.fullmatch(name))


def first_ranks(run: runs.Run, answers: Mapping[str, Sequence[str]],
                text_of: Callable[[str], str]) -> dict[str, int | None]:
  """Returns the rank from 1 of the first passage with an answer, or None.

  Args:
    run: what was found; one row per query.
    answers: query id -> its answers; other queries are left out.
    text_of: from a corpus id to its text.
  """
  found: dict[str, int | None] = {}
  for query_id, ids, _ in run.rankings():
    if query_id in answers:
      has_one = matcher(answers[query_id])
      found[query_id] = next(
          (rank for rank, name in enumerate(ids, 1) if has_one(text_of(name))),
          None)
  return found


def evaluate(run: runs.Run, answers: Mapping[str, Sequence[str]],
             text_of: Callable[[str], str],
             measures: Sequence[str] = MEASURES) -> dict[str, float]:
  """Returns each `Answer@k`: the share of questions answered by rank k.

  Passages of equal score are ranked as the run has them.

  Args:
    run: best passages first; a question that is not in it counts as failed.
    answers: query id -> its answers, of all questions that count.
    text_of: from a corpus id to its text.
    measures: names, see `is_measure`.

  Raises:
    ValueError: if there is no question, or for another name.
  """
  if not answers:
    raise ValueError('Expected the answers of at least one question, got none.')
  unknown = [name for name in measures if not is_measure(name)]
  if unknown:
    raise ValueError(
        f'Expected measures such as {", ".join(MEASURES)}, got {unknown[0]!r}.')
  deepest = max((_depth(name) for name in measures), default=0)
  ranks = first_ranks(run.top(deepest), answers, text_of)
  return {name: sum(rank is not None and rank <= _depth(name)
                    for rank in ranks.values()) / len(answers)
          for name in measures}


def _depth(name: str) -> int:
  match = _NAME.fullmatch(name)
  assert match
  return int(match[1])
