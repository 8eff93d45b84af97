"""Tokenizers, and tokenised texts as memory-mapped arrays."""

import collections
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from retrieval_jax import files
from retrieval_jax.data import cache
from retrieval_jax.data import errors
from retrieval_jax.data import progress as progress_lib
from retrieval_jax.data import settings as settings_lib

_FORMAT = 1  # part of every key: a change here tokenises all texts afresh
_CHUNK = 4096  # texts tokenised at a time: bounds memory, keeps threads busy
_HEAD = 7  # characters per token; English text has 4 to 5, its space included
_LONGEST_WORD = 100  # characters, what WordPiece reads; more are cut in parts
_PAD_TOKENS = ('[PAD]', '<pad>', '<|pad|>', '<|endoftext|>')
_SPECIAL_TOKENS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]')


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A tokenizer.json with lengths and padding of our own.

  Attributes:
    definition: the JSON text, without padding, and without truncation unless
      that leaves out the beginning of a text.
    pad_id: the id that pads where others read the file; here it is -1, so that
      this may be a token of the texts, their end for instance.
    prompt: put before every text as it is, so with its space: 'query: '.
  """
  definition: str = dataclasses.field(repr=False)
  pad_id: int
  prompt: str = ''

  @functools.cached_property
  def vocab_size(self) -> int:
    """One above the largest id: the rows an embedding table needs."""
    vocabulary = self._of_length(None).get_vocab(with_added_tokens=True)
    return max(vocabulary.values()) + 1

  @property
  def pad_token(self) -> str:
    """The token with id `pad_id`."""
    return self._of_length(None).id_to_token(self.pad_id)

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash of everything that decides the ids of a text."""
    facts = json.dumps([self.definition, self.pad_id, self.prompt]).encode()
    return hashlib.blake2b(facts, digest_size=12).hexdigest()

  def encode_batch(self, texts: Sequence[str], max_length: int
                   ) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids [n, L] int32 padded with -1, and lengths [n] int32.

    L is `max_length`; longer texts are cut, special tokens kept, at their end
    or where the definition says so at their beginning. The prompt counts like
    the text that it becomes part of.
    """
    texts = [self.prompt + text for text in texts]
    encoder = self._of_length(max_length)
    heads = ([_head(text, _HEAD * max_length) for text in texts]
             if self._splits_at_spaces else texts)
    ids = [e.ids for e in encoder.encode_batch_fast(heads)]
    short = [i for i, (text, head) in enumerate(zip(texts, heads))
             if len(head) < len(text) and len(ids[i]) < max_length]
    for i, e in zip(short, encoder.encode_batch_fast(
        [texts[i] for i in short])):
      ids[i] = e.ids
    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    tokens = np.full([len(ids), max_length], -1, np.int32)
    tokens[np.arange(max_length) < lengths[:, None]] = np.fromiter(
        itertools.chain.from_iterable(ids), np.int32, lengths.sum())
    return tokens, lengths

  def encode_pairs(self, first: Sequence[str], second: Sequence[str],
                   max_length: int) -> list[Any]:
    """Returns a tokenizers.Encoding of each pair of texts, read as one.

    It has `ids`; `sequence_ids`, 0 or 1, None for a special token; `offsets`
    into the text that a token is of. Of a pair that is too long the longer text
    is cut. No prompt is put before either.
    """
    return self._of_length(max_length).encode_batch(list(zip(first, second)))

  def decode(self, ids: ArrayLike) -> str:
    """Returns the text of ids [n], without special tokens."""
    return self._of_length(None).decode(np.asarray(ids).tolist())

  def save(self, path: str, max_length: int | None = None) -> None:
    """Writes tokenizer.json; `path` is that file or its folder.

    With `max_length` the file says that texts are cut there, as those need who
    find the length nowhere else.
    """
    if not path.endswith('.json'):
      path = os.path.join(path, 'tokenizer.json')
    encoder = _from_definition(self.definition)
    # Padding is written down so that loading finds the same pad token.
    encoder.enable_padding(pad_id=self.pad_id, pad_token=self.pad_token)
    if max_length is not None:
      encoder.enable_truncation(max_length)
    files.write_text(path, encoder.to_str(pretty=True))

  @functools.cached_property
  def _splits_at_spaces(self) -> bool:
    """Whether what follows a space cannot change the tokens before it.

    Then a head of a long text that fills max_length does for the whole, which
    the library would tokenise to its end before cutting.
    """
    parts = json.loads(self.definition)
    kind = lambda name: (parts.get(name) or {}).get('type')
    return (not parts['truncation'] and parts.get('pre_tokenizer') in (
                {'type': 'BertPreTokenizer'}, _in_json(_words_of_letters()))
            and kind('normalizer') in (None, 'BertNormalizer', 'Lowercase')
            and kind('model') == 'WordPiece'
            and not any(' ' in token['content']
                        for token in parts['added_tokens']))

  @functools.cached_property
  def _encoders(self) -> dict[int | None, Any]:
    return {}

  def _of_length(self, max_length: int | None) -> Any:
    """Returns the tokenizer that cuts at `max_length`.

    One object per length, since cutting is a state of the object and another
    thread may be using it with another length.
    """
    if max_length not in self._encoders:
      encoder = _from_definition(self.definition)
      truncation = encoder.truncation or {'direction': 'right'}
      encoder.no_truncation()
      if max_length is not None:
        special = encoder.num_special_tokens_to_add(False)
        if max_length <= special:
          raise ValueError(
              f'max_length={max_length} must exceed the {special} special '
              'tokens that the tokenizer adds to each text.')
        encoder.enable_truncation(
            max_length, direction=truncation['direction'])
      self._encoders[max_length] = encoder
    return self._encoders[max_length]

  def __getstate__(self) -> dict[str, Any]:
    return {field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)}

  def __setstate__(self, state: dict[str, Any]) -> None:
    for name, value in state.items():
      object.__setattr__(self, name, value)


def _head(text: str, length: int) -> str:
  """Returns at least `length` characters, up to a space if there is one."""
  end = text.find(' ', length)
  return text if end < 0 else text[:end]


def _from_definition(definition: str) -> Any:
  import tokenizers
  return tokenizers.Tokenizer.from_str(definition)


def _wrap(encoder: Any, pad_token: str | None, origin: str,
          cut: str | None = None) -> Tokenizer:
  """Strips padding, and truncation on the right, and finds the pad token.

  Args:
    encoder: of the tokenizers library.
    pad_token: None for the encoder's own or the usual.
    origin: of the encoder, for errors.
    cut: the side on which long texts are cut; None for the encoder's.
  """
  padding, truncation = encoder.padding, encoder.truncation
  cut = cut or (truncation['direction'] if truncation else 'right')
  candidates = [pad_token] if pad_token else [
      *([padding['pad_token']] if padding else []), *_PAD_TOKENS]
  encoder.no_truncation()
  encoder.no_padding()
  if cut == 'left':  # the length is the last that others cut at
    encoder.enable_truncation(
        truncation['max_length'] if truncation else 512, direction=cut)
  for token in candidates:
    pad_id = encoder.token_to_id(token)
    if pad_id is not None:
      return Tokenizer(definition=encoder.to_str(), pad_id=pad_id)
  raise ValueError(
      f'{origin}: expected a vocabulary with a padding token, looked for '
      f'{", ".join(candidates)}; name it with pad_token=.')


def load_tokenizer(path: str, *, pad_token: str | None = None,
                   special_tokens: bool = True) -> Tokenizer:
  """Loads a tokenizer.json, or the one in a folder.

  The lengths and padding baked into the file are dropped (all-MiniLM's is 128,
  say): lengths are given where texts are encoded, and padding comes behind.
  Which side of a long text is cut stays as the folder says.

  Args:
    path: the file, or the folder of a model in Hugging Face's layout.
    pad_token: which token pads; by default what tokenizer_config.json in the
      folder says, then tokenizer.json, then the usual.
    special_tokens: whether those that the file puts around a text are; not
      where static embeddings are looked up, which have none.

  Raises:
    FileNotFoundError: where there is no such file.
    ValueError: where it is not a tokenizer, or has no padding token.
  """
  import tokenizers
  file = os.path.join(path, 'tokenizer.json') if os.path.isdir(path) else path
  if not os.path.isfile(file):
    raise FileNotFoundError(
        f'{file}: no such file; expected a tokenizer.json in the format of '
        'the tokenizers library. Give its path, or train one on the corpus '
        'with train_tokenizer.')
  try:
    encoder = tokenizers.Tokenizer.from_file(file)
  except Exception as error:  # The library raises bare Exception.
    raise ValueError(
        f'{file}: expected a tokenizer.json in the format of the tokenizers '
        f'library: {error}.') from error
  recorded, cut = _recorded(path)
  if not special_tokens:
    parts = json.loads(encoder.to_str())
    encoder = _from_definition(json.dumps(parts | {'post_processor': None}))
  return _wrap(encoder, pad_token or recorded, file, cut)


def _recorded(folder: str) -> tuple[str | None, str | None]:
  """Returns what a folder's tokenizer_config.json says, None where nothing.

  It is the padding token, and the side on which long texts are cut.
  """
  file = os.path.join(folder, 'tokenizer_config.json')
  if not os.path.isfile(file):
    return None, None
  settings = settings_lib.Settings(files.read_json(file), file)
  cut = settings.read('truncation_side', str, None)
  if cut not in (None, 'left', 'right'):
    raise ValueError(
        f'{file}: truncation_side is {cut!r}, expected \'left\' or \'right\'.')
  if isinstance(settings.values.get('pad_token'), dict):
    token = settings_lib.Settings(settings.values['pad_token'], file)
    return token.read('content', str, None), cut
  return settings.read('pad_token', str, None), cut


def train_tokenizer(texts: Iterable[str], vocab_size: int, *,
                    min_frequency: int = 2) -> Tokenizer:
  """Trains lowercasing WordPiece as BERT has it: '[CLS] text [SEP]'.

  Equal texts give an equal tokenizer, which the library's trainer alone does
  not: it numbers the pieces of one character in the order of a randomly seeded
  hash map, and numbers break ties between merges. So these are numbered here.

  What has no space for 100 characters, in a script without them or by accident,
  is cut every 100, as words of their own: WordPiece takes longer ones for
  [UNK], and the trainer's time grows with the square of a word.

  Args:
    texts: read twice.
    vocab_size: at most so many tokens, the four special ones included.
    min_frequency: a pair that occurs less often is not merged.

  Returns:
    A tokenizer with [PAD]=0, [UNK]=1, [CLS]=2, [SEP]=3.
  """
  import tokenizers
  from tokenizers import decoders
  from tokenizers import models
  from tokenizers import normalizers
  from tokenizers import processors
  from tokenizers import trainers
  if vocab_size < len(_SPECIAL_TOKENS) + 2:
    raise ValueError(
        f'vocab_size={vocab_size} must exceed the {len(_SPECIAL_TOKENS)} '
        'special tokens and hold some pieces; a few thousand is usual.')
  if isinstance(texts, Iterator):
    raise ValueError(
        'texts are read twice: give a sequence, not an iterator.')
  normalizer = normalizers.BertNormalizer(lowercase=True)
  characters = _characters(texts, normalizer, vocab_size)
  first = [*_SPECIAL_TOKENS, *characters, *(f'##{c}' for c in characters)]
  trained = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
  trained.normalizer = normalizer
  trained.pre_tokenizer = _words_of_letters()
  trained.train_from_iterator(texts, trainers.WordPieceTrainer(
      vocab_size=vocab_size, min_frequency=min_frequency,
      # "Special" gives them the first numbers, in this order.
      special_tokens=first, initial_alphabet=characters,
      limit_alphabet=len(characters), show_progress=False))
  # A new object, in which the pieces of one character are not special tokens.
  vocabulary = dict(sorted(trained.get_vocab().items(), key=lambda x: x[1]))
  encoder = tokenizers.Tokenizer(
      models.WordPiece(vocabulary, unk_token='[UNK]'))
  encoder.normalizer = normalizer
  encoder.pre_tokenizer = trained.pre_tokenizer
  encoder.decoder = decoders.WordPiece()
  encoder.add_special_tokens(list(_SPECIAL_TOKENS))
  encoder.post_processor = processors.TemplateProcessing(
      single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1',
      special_tokens=[(token, encoder.token_to_id(token))
                      for token in ('[CLS]', '[SEP]')])
  return _wrap(encoder, '[PAD]', 'the trained tokenizer')


def _words_of_letters() -> Any:
  """Returns BERT's pre-tokenizer with words cut every `_LONGEST_WORD`."""
  import tokenizers
  from tokenizers import pre_tokenizers
  every = tokenizers.Regex(f'.{{{_LONGEST_WORD}}}')
  return pre_tokenizers.Sequence([
      pre_tokenizers.BertPreTokenizer(),
      pre_tokenizers.Split(every, 'isolated')])


def _in_json(pre_tokenizer: Any) -> Any:
  """Returns a pre-tokenizer as tokenizer.json holds it."""
  return json.loads(pre_tokenizer.__getstate__())


def _characters(texts: Iterable[str], normalizer: Any, vocab_size: int
                ) -> list[str]:
  """Returns the most frequent characters after normalisation, sorted.

  A 16th of the vocabulary or 96, whichever is more, so that the rare signs of
  a multilingual corpus do not fill a small vocabulary; the rest is [UNK].
  """
  raw: collections.Counter[str] = collections.Counter()
  for text in texts:
    raw.update(text)
  counts: collections.Counter[str] = collections.Counter()
  for character, count in raw.items():
    for part in normalizer.normalize_str(character):
      if not part.isspace():
        counts[part] += count
  limit = min(max(vocab_size // 16, 96),
              (vocab_size - len(_SPECIAL_TOKENS)) // 2)
  return sorted(sorted(counts, key=lambda c: (-counts[c], c))[:limit])


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStore:
  """The tokens of many texts, usually memory-mapped.

  Attributes:
    tokens: [n, L] uint16 or int32; what follows a text means nothing.
    lengths: [n] int32, tokens of each text.
  """
  tokens: np.ndarray
  lengths: np.ndarray

  def __len__(self) -> int:
    return len(self.lengths)

  def __getitem__(self, rows: slice | ArrayLike) -> np.ndarray:
    """Returns tokens [..., L] int32, padded with -1; row -1 is all padding."""
    rows = (np.arange(*rows.indices(len(self))) if isinstance(rows, slice)
            else np.asarray(rows))
    if rows.size and (rows.min() < -1 or rows.max() >= len(self)):
      raise IndexError(
          f'rows {rows.min()} to {rows.max()} were asked for, expected -1 to '
          f'{len(self) - 1}.')
    lengths = np.where(rows >= 0, self.lengths[rows], 0)
    inside = np.arange(self.tokens.shape[1]) < lengths[..., None]
    return np.where(inside, self.tokens[rows], np.int32(-1))


def tokenize(texts: Sequence[str], tokenizer: Tokenizer, max_length: int,
             cache_folder: str, key: str, *, progress: bool = True
             ) -> TokenStore:
  """Tokenises texts once into a memory-mapped array in a cache folder.

  Args:
    texts: any sequence; read in order, in chunks.
    tokenizer: what to encode with.
    max_length: L; longer texts are cut.
    cache_folder: made if absent. Folders in it may be deleted at any time.
    key: names the texts and must change when they do, e.g.
      f'{dataset.fingerprint}/corpus'.
    progress: shows progress on stderr.

  Returns:
    The store; uint16 on disk where the vocabulary allows.
  """
  facts = json.dumps([_FORMAT, key, tokenizer.fingerprint, max_length])
  name = hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()
  folder = os.path.join(cache_folder, f'tokens-{name}')
  cache.folder(folder, lambda temporary: _write_tokens(
      texts, tokenizer, max_length, temporary, key, progress))
  tokens = np.load(os.path.join(folder, 'tokens.npy'), mmap_mode='r')
  lengths = np.load(os.path.join(folder, 'lengths.npy'))
  if len(lengths) != len(texts):
    raise errors.DataError(
        f'{folder} holds {len(lengths)} texts under key {key!r}, but '
        f'{len(texts)} were given: the key must change with the texts. Use the '
        'dataset\'s fingerprint in it, or delete that folder.')
  return TokenStore(tokens, lengths)


def _write_tokens(texts: Sequence[str], tokenizer: Tokenizer, max_length: int,
                  folder: str, key: str, progress: bool) -> None:
  """Writes tokens.npy and lengths.npy, a chunk of texts at a time."""
  n = len(texts)
  dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
  lengths = np.zeros([n], np.int32)
  chunks = progress_lib.track(
      range(0, n, _CHUNK), f'tokenising {key.rpartition("/")[2]}',
      total=-(-n // _CHUNK), unit=f'chunks of {_CHUNK} texts', show=progress)
  with files.new_array(
      os.path.join(folder, 'tokens.npy'), dtype, (n, max_length)) as tokens:
    for start in chunks:
      stop = min(start + _CHUNK, n)
      tokens[start:stop], lengths[start:stop] = tokenizer.encode_batch(
          texts[start:stop], max_length)
  files.save_array(os.path.join(folder, 'lengths.npy'), lengths)
