"""What was left out of data that were read leniently, and how to say so."""

from collections.abc import Mapping
import warnings

Counts = dict[str, int]
"""What was dropped of a split, by the keys of `MEANINGS`."""

MEANINGS = {
    'unknown_queries': 'judgements of unknown queries',
    'unknown_targets': 'judgements of unknown targets',
    'repeated': 'repeated judgements, all but the highest grade of a pair',
    'without_positive': 'queries without a relevant target',
    'unknown_candidates': 'candidates of unknown queries or targets',
    'unknown_answers': 'answers to unknown queries'}
"""Key of the counts -> what it counts, in words."""


def warn(name: str, dropped: Mapping[str, Counts]) -> None:
  """Warns of all that was dropped of the data set `name`."""
  for split, counts in dropped.items():
    text = described(counts)
    if text:
      warnings.warn(f'{name}, split {split!r}, is read leniently: without '
                    f'{text}.', stacklevel=3)


def described(counts: Counts) -> str:
  """Returns what was dropped in words; '' if nothing was."""
  return ', '.join(f'{number:,} {MEANINGS[kind]}'
                   for kind, number in counts.items() if number)
