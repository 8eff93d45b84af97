"""Questions and passages as texts: rows for a reader, and answers from it."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from retrieval_jax import data
from retrieval_jax import processes
from retrieval_jax import types
from retrieval_jax.evaluation import answers as answers_lib
from retrieval_jax.models import embedding
from retrieval_jax.models.readers import extractive
from retrieval_jax.models.readers import seq2seq


class Reading(NamedTuple):
  """What was read of one question in its K passages.

  Attributes:
    answer: the likeliest over all passages, '' where none was found.
    prior: [K] float32, of the passages, by the retriever; 0 where there is
      none.
    posterior: [K] float32, of the passages, given the answer.
    spans: K (start, stop), in characters of each passage: its own best answer;
      None where it has none or does not point at it.
    texts: K, these answers as they are written there; '' for none, as by a
      reader that fuses passages.
    log_probs: [K] float32, the log-likelihoods of `texts`; by a reader that
      fuses, those of `answer` given each passage alone.
  """
  answer: str
  prior: np.ndarray
  posterior: np.ndarray
  spans: list[tuple[int, int] | None]
  texts: list[str]
  log_probs: np.ndarray


class _Guess(NamedTuple):
  """An answer that one passage gives, with its span where it points at one."""
  text: str
  log_prob: float
  span: tuple[int, int] | None


class Texts(Protocol):
  """What a reader does with texts."""

  def rows(self, questions: Sequence[str], passages: Sequence[str],
           answers: Sequence[Sequence[str]] | None = None) -> np.ndarray:
    """Returns rows [n, L] int32, see `types.Reader`.

    Args:
      questions: n.
      passages: n, of each question one.
      answers: of each question, all that are right; None where that is asked.
    """

  def guesses(self, params: types.Params, questions: Sequence[str],
              passages: Sequence[str], **options: Any) -> list[list[_Guess]]:
    """Returns what each passage answers, the likeliest first.

    Args:
      params: the reader's.
      questions: n.
      passages: n.
      **options: of `embedding.embed`.
    """


@dataclasses.dataclass(frozen=True)
class ExtractiveTexts:
  """`Texts` of a reader that points.

  Attributes:
    reader: a models.readers.Extractive.
    tokenizer: of its own.
    num_spans: guesses per passage.
  """
  reader: extractive.Extractive
  tokenizer: data.Tokenizer
  num_spans: int = 8

  def rows(self, questions: Sequence[str], passages: Sequence[str],
           answers: Sequence[Sequence[str]] | None = None) -> np.ndarray:
    """Returns rows [n, L] int32, with every occurrence of an answer marked.

    An answer that is cut off, or is longer than the reader's widest span, is
    not.
    """
    return self._rows(self._encode(questions, passages), passages, answers)

  def guesses(self, params: types.Params, questions: Sequence[str],
              passages: Sequence[str], **options: Any) -> list[list[_Guess]]:
    """Returns the best spans of each passage."""
    pairs = self._encode(questions, passages)
    rows = self._rows(pairs, passages, None)
    found = embedding.embed(
        extractive.Decode(self.reader, self.num_spans), params,
        data.TokenStore(rows, (rows >= 0).sum(axis=1)), **options)
    guesses = []
    for pair, text, numbers in zip(pairs, passages, found):
      of_passage = []
      for start, width, log_prob in numbers.reshape(3, -1).T:
        if width:
          first, last = int(start), int(start + width) - 1
          span = (pair.offsets[first][0], pair.offsets[last][1])
          of_passage.append(_Guess(
              text[slice(*span)], float(log_prob), span))
      guesses.append(of_passage)
    return guesses

  def _encode(self, questions, passages):
    return self.tokenizer.encode_pairs(
        questions, passages, self.reader.row_length)

  def _rows(self, pairs, passages, answers):
    rows = np.full((len(pairs), self.reader.row_length), -1, np.int32)
    for i, (row, pair) in enumerate(zip(rows, pairs)):
      of_passage = np.array([part == 1 for part in pair.sequence_ids], bool)
      marked = []
      if answers is not None and answers[i]:
        marked = self._places(
            pair, of_passage, answers_lib.spans(answers[i], passages[i]))
      row[:len(pair.ids)] = extractive.pack(pair.ids, of_passage, marked)
    return rows

  def _places(self, pair, of_passage, spans):
    """Returns (first token, number of tokens) of spans of characters."""
    tokens = np.flatnonzero(of_passage)
    if not len(tokens):
      return []
    starts, stops = np.array(pair.offsets)[tokens].T
    found = []
    for start, stop in spans:
      first = np.searchsorted(stops, start, side='right')
      last = np.searchsorted(starts, stop, side='left') - 1
      width = int(last - first) + 1
      if stop <= stops[-1] and 1 <= width <= self.reader.max_width:
        found.append((int(tokens[first]), width))
    return found


@dataclasses.dataclass(frozen=True)
class Seq2SeqTexts:
  """`Texts` of a reader that writes.

  A text is 'question: QUESTION context: PASSAGE', cut at its end. Of several
  right answers the first is learned.

  Attributes:
    reader: a models.readers.Seq2Seq.
    tokenizer: of its own.
    num_beams: guesses per passage; 1 is greedy.
  """
  reader: seq2seq.Seq2Seq
  tokenizer: data.Tokenizer
  num_beams: int = 4

  def rows(self, questions: Sequence[str], passages: Sequence[str],
           answers: Sequence[Sequence[str]] | None = None) -> np.ndarray:
    """Returns rows [n, L] int32; without answers, of nothing but text."""
    reader = self.reader
    texts, _ = self.tokenizer.encode_batch(
        [f'question: {question} context: {passage}'
         for question, passage in zip(questions, passages)],
        reader.text_length)
    written = np.full((len(texts), reader.answer_length), -1, np.int32)
    if answers is not None:
      written, _ = self.tokenizer.encode_batch(
          [of_question[0] for of_question in answers], reader.answer_length)
    return reader.pack(written, texts)

  def guesses(self, params: types.Params, questions: Sequence[str],
              passages: Sequence[str], **options: Any) -> list[list[_Guess]]:
    """Returns the answers of a beam from each passage."""
    rows = self.rows(questions, passages)
    return self._decoded(embedding.embed(
        seq2seq.Decode(self.reader, self.num_beams), params,
        data.TokenStore(rows, (rows >= 0).sum(axis=1)), **options))

  def guesses_together(
      self, params: types.Params, questions: Sequence[str],
      passages: Sequence[Sequence[str]], exists: np.ndarray, **options: Any
      ) -> list[list[_Guess]]:
    """Returns what all passages of each question together answer.

    Args:
      params: the reader's.
      questions: n.
      passages: K of each.
      exists: [n, K] bool, which of these are there.
      **options: as of `guesses`.
    """
    n, k = exists.shape
    each = np.full((n, k, self.reader.row_length), -1, np.int32)
    each[exists] = self.rows(*_pairs(questions, passages, exists))
    rows, mesh = each.reshape(n, -1), options.get('mesh')
    width = rows.shape[1]  # padding is inside of a row, none may be cut
    options |= {'buckets': (width,), 'batch_tokens': max(
        options.get('batch_tokens', 0), width * (mesh.size if mesh else 1))}
    return self._decoded(embedding.embed(
        seq2seq.Decode(self.reader, self.num_beams, fused=True), params,
        data.TokenStore(rows, np.full(n, width)), **options))

  def log_probs(self, params: types.Params, questions: Sequence[str],
                passages: Sequence[str], answers: Sequence[str],
                **options: Any) -> np.ndarray:
    """Returns log P [n] of an answer to each question in one passage."""
    rows = self.rows(questions, passages, [[answer] for answer in answers])
    return embedding.embed(
        self.reader.read, params,
        data.TokenStore(rows, (rows >= 0).sum(axis=1)), **options)[:, 0]

  def _decoded(self, found):
    """Returns the guesses of what `Decode` returns."""
    log_probs = found[:, :self.num_beams]
    tokens = found[:, self.num_beams:].astype(np.int32).reshape(
        len(found), self.num_beams, -1)
    return [[_Guess(self.tokenizer.decode(beam[beam >= 0]), float(log_prob),
                    None)
             for log_prob, beam in zip(of_row, beams)
             if log_prob > types.NO_ANSWER / 2]
            for of_row, beams in zip(log_probs, tokens)]


def read(texts: Texts, params: types.Params, questions: Sequence[str],
         passages: Sequence[Sequence[str]], log_prior: np.ndarray,
         **options: Any) -> list[Reading]:
  """Returns a Reading of each question.

    P(a | x) = sum_k P(y_k | x) P(a | x, y_k)

  over the guesses a of all passages; two are one answer if they are equal when
  normalised. A reader that fuses passages answers by P(a | x, y_1 ... y_K), and
  the posterior is that of what it reads in each passage alone.

  Args:
    texts: of the reader.
    params: the reader's.
    questions: n.
    passages: K of each.
    log_prior: [n, K] float32, log P(y_k | x); -inf where there is no passage.
    **options: of `embedding.embed`.
  """
  exists = np.isfinite(log_prior)
  if isinstance(texts, Seq2SeqTexts) and texts.reader.fuses:
    return _read_together(
        texts, params, questions, passages, log_prior, **options)
  guesses = iter(texts.guesses(
      params, *_pairs(questions, passages, exists), **options))
  return [_combined([next(guesses) if is_there else [] for is_there in there],
                    np.where(there, np.exp(prior), 0).astype(np.float32))
          for prior, there in zip(log_prior, exists)]


def _read_together(texts: Seq2SeqTexts, params: types.Params,
                   questions: Sequence[str], passages: Sequence[Sequence[str]],
                   log_prior: np.ndarray, **options: Any) -> list[Reading]:
  """Returns what `read` does, by a reader that fuses passages."""
  exists = np.isfinite(log_prior)
  answers = [_combined([guesses], np.ones(1, np.float32)).answer
             for guesses in texts.guesses_together(
                 params, questions, passages, exists, **options)]
  log_probs = np.full(exists.shape, -np.inf, np.float32)
  read_by = exists & (np.array(answers, object) != '')[:, None]
  log_probs[read_by] = texts.log_probs(
      params, *_pairs(questions, passages, read_by),
      answers=[answers[i] for i in np.nonzero(read_by)[0]], **options)
  found = []
  for answer, prior, likelihood in zip(answers, log_prior, log_probs):
    joint = prior + likelihood
    top = joint.max(initial=-np.inf)
    weights = np.exp(joint - top) if np.isfinite(top) else np.zeros(len(joint))
    found.append(Reading(
        answer=answer, prior=np.exp(prior).astype(np.float32),
        posterior=(weights / max(weights.sum(), 1)).astype(np.float32),
        spans=[None] * len(joint), texts=[''] * len(joint),
        log_probs=likelihood))
  return found


def _pairs(questions: Sequence[str], passages: Sequence[Sequence[str]],
           there: np.ndarray) -> tuple[list[str], list[str]]:
  """Returns the questions and the passages of all pairs that are there.

  Args:
    questions: n.
    passages: K of each.
    there: [n, K] bool, which pairs to return, one question after the other.
  """
  places = np.argwhere(there)
  return ([questions[i] for i, _ in places],
          [passages[i][k] for i, k in places])


def _combined(guesses: Sequence[Sequence[_Guess]], prior: np.ndarray
              ) -> Reading:
  """Returns the Reading of the guesses of K passages."""
  joint: dict[str, np.ndarray] = {}  # normalised answer -> [K]
  written: dict[str, tuple[float, str]] = {}  # ... -> its likeliest form
  for k, of_passage in enumerate(guesses):
    for guess in of_passage:
      name = answers_lib.normalize(guess.text)
      share = float(prior[k]) * np.exp(guess.log_prob)
      joint.setdefault(name, np.zeros(len(guesses)))[k] += share
      written[name] = max(
          written.get(name, (-1., '')), (float(share), guess.text))
  joint.pop('', None)
  best = max(joint, key=lambda name: joint[name].sum(), default=None)
  total = 0. if best is None else joint[best].sum()
  first = [of_passage[0] if of_passage else _Guess('', -np.inf, None)
           for of_passage in guesses]
  return Reading(
      answer='' if best is None else written[best][1], prior=prior,
      posterior=(joint[best] / total if best is not None and total > 0
                 else np.zeros(len(guesses))).astype(np.float32),
      spans=[guess.span for guess in first],
      texts=[guess.text for guess in first],
      log_probs=np.array([guess.log_prob for guess in first], np.float32))


class Gather:
  """Makes the rows that a step reads, on the host.

  It waits for the ids to come off the device; each process makes its own rows.
  """

  def __init__(self, texts: Texts, questions: Sequence[str],
               answers: Callable[[int], Sequence[str]], passages: Sequence[str],
               sharding: jax.sharding.NamedSharding, row_length: int):
    """Keeps what rows are made of.

    Args:
      texts: of the reader.
      questions: by query id.
      answers: from a query id to all that are right.
      passages: by corpus id.
      sharding: of the rows.
      row_length: L.
    """
    self._texts, self._questions, self._answers = texts, questions, answers
    self._passages, self._sharding = passages, sharding
    self._row_length = row_length

  def __call__(self, query_ids: jax.Array, ids: jax.Array
               ) -> tuple[jax.Array, np.ndarray]:
    """Returns rows [B * K, L] int32, and the tokens of each, [b] numpy.

    Args:
      query_ids: [B], replicated, as are
      ids: [B * K], corpus ids; -1 gives a row of padding.
    """
    query_ids, ids = jax.device_get((query_ids, ids))
    of_row = np.repeat(query_ids, len(ids) // max(len(query_ids), 1))
    lengths: list[np.ndarray] = []
    made: dict[tuple[int | None, int | None], np.ndarray] = {}

    def rows(index):
      part = index[0].start, index[0].stop
      if part not in made:  # a replicated axis asks once for each device
        made[part] = self._make(of_row[index[0]], ids[index[0]])
        lengths.append((made[part] >= 0).sum(axis=1))
      return made[part]

    with jax.transfer_guard('allow'):  # the transfer is what this is for
      array = jax.make_array_from_callback(
          (len(ids), self._row_length), self._sharding, rows)
    return array, processes.joined(np.concatenate(lengths))

  def _make(self, query_ids, ids):
    rows = np.full((len(ids), self._row_length), -1, np.int32)
    there = np.flatnonzero(ids >= 0)
    if len(there):
      queries = [int(row) for row in query_ids[there]]
      rows[there] = self._texts.rows(
          [self._questions[row] for row in queries],
          [self._passages[int(row)] for row in ids[there]],
          [self._answers(row) for row in queries])
    return rows
