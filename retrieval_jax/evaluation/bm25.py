"""The BM25 baseline, indexed by bm25s."""

from collections.abc import Iterator, Sequence
import importlib
import logging
import sys
import time
from typing import Any

import numpy as np
import scipy.sparse
import tqdm

_METHODS = ('lucene', 'robertson', 'atire')
_CHUNK_POSTINGS = 20_000_000


def _bm25s() -> Any:
  """Returns the module, which starts jax's backend when it is imported.

  Processes that are to find each other must do so before.
  """
  logging.getLogger('bm25s').setLevel(logging.WARNING)  # logs each index
  return importlib.import_module('bm25s')


def bm25_run(corpus_texts: Sequence[str], query_texts: Sequence[str], k: int,
             *, k1: float = 0.9, b: float = 0.4, method: str = 'lucene',
             lemmas: Sequence[str] | None = None, lemma_repeats: int = 3,
             stopwords: str | Sequence[str] | None = 'english',
             progress: bool | None = None
             ) -> tuple[np.ndarray, np.ndarray]:
  """Returns the k best passages of each query by BM25.

    score(q, y) = sum over t in q of tf_q(t) idf(t)
                  tf / (tf + k1 (1 - b + b |y| / mean |y|))

  Words are lower-cased runs of two or more letters or digits, unstemmed.
  bm25s builds the index (a sparse matrix of term impacts); queries are then
  multiplied with it in chunks as a sparse product, which touches only the
  postings of their words: the full score matrix never exists, and memory is
  that of the index plus a chunk of at most 20 million postings.

  Args:
    corpus_texts: N texts; read once, in order.
    query_texts: n texts.
    k: passages per query.
    k1: saturation of the term frequency. 0.9 is Anserini's default.
    b: length normalisation. 0.4 is Anserini's default.
    method: 'lucene', 'robertson' or 'atire', the variants of bm25s that score
      only passages which share a word with the query.
    lemmas: n texts or None; words that the query is about. They count
      `lemma_repeats` times in total when the query text has them once.
    lemma_repeats: see `lemmas`.
    stopwords: a language of bm25s, a list of words, or None for none.
    progress: whether to show progress; None shows a bar on a terminal and
      plain lines elsewhere; False is silent.

  Returns:
    rows: [n, min(k, N)] int32, corpus rows, best first; equal scores by lowest
      row; -1 where fewer passages share a word with the query.
    scores: [n, min(k, N)] float32; -inf where the row is -1.

  Raises:
    ValueError: for an empty corpus, an unknown method, a k below 1, or lemmas
      of another number than queries.
  """
  if method not in _METHODS:
    raise ValueError(
        f'Expected method to be one of {", ".join(_METHODS)}, got {method!r}; '
        'the others score passages without any word of the query.')
  if k < 1:
    raise ValueError(f'Expected k >= 1 passages per query, got {k}.')
  if lemma_repeats < 1:
    raise ValueError(
        f'Expected lemma_repeats >= 1 (1 changes nothing), got '
        f'{lemma_repeats}.')
  if not len(corpus_texts):
    raise ValueError('Expected a corpus of at least one text, got none.')
  if lemmas is not None and len(lemmas) != len(query_texts):
    raise ValueError(
        f'Expected one lemma text per query ({len(query_texts)}), got '
        f'{len(lemmas)}.')
  bar = sys.stderr.isatty() if progress is None else progress
  lines = progress is None and not bar
  start = time.perf_counter()
  tokens = _bm25s().tokenize(
      corpus_texts, stopwords=stopwords or [], show_progress=bar)
  if not tokens.vocab:
    # bm25s cannot index a corpus without a single word.
    shape = len(query_texts), min(k, len(corpus_texts))
    return (np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32))
  index = _bm25s().BM25(k1=k1, b=b, method=method)
  index.index(tokens, show_progress=bar, create_empty_token=False)
  impacts = scipy.sparse.csr_array(  # [V, N]; bm25s stores its columns
      (index.scores['data'], index.scores['indices'],
       index.scores['indptr']), shape=(len(tokens.vocab), len(corpus_texts)))
  vocab = tokens.vocab
  del tokens, index
  if lines:
    print(f'bm25: indexed {len(corpus_texts)} texts, {len(vocab)} words, in '
          f'{time.perf_counter() - start:.1f} s', file=sys.stderr)
  start = time.perf_counter()
  queries = _count_words(
      query_texts, lemmas, lemma_repeats, vocab, stopwords)
  rows, scores = _search(queries, impacts, k, bar)
  if lines:
    print(f'bm25: answered {len(query_texts)} queries in '
          f'{time.perf_counter() - start:.1f} s', file=sys.stderr)
  return rows, scores


def _count_words(texts: Sequence[str], lemmas: Sequence[str] | None,
                 lemma_repeats: int, vocab: dict[str, int],
                 stopwords: str | Sequence[str] | None
                 ) -> scipy.sparse.csr_array:
  """Returns [n, V] float32, how often each query has each indexed word."""
  # Queries go through bm25s's tokenizer too; its words are looked up in the
  # corpus's vocabulary, and unknown ones are dropped.
  def counts(some: list[str]) -> scipy.sparse.csr_array:
    tokens = _bm25s().tokenize(
        some, stopwords=stopwords or [], show_progress=False)
    column = np.full(len(tokens.vocab), -1, np.int64)
    for word, number in tokens.vocab.items():
      column[number] = vocab.get(word, -1)
    lengths = np.fromiter(map(len, tokens.ids), np.int64, len(tokens.ids))
    flat = np.fromiter(
        (number for ids in tokens.ids for number in ids), np.int64,
        int(lengths.sum()))
    column = column[flat] if len(flat) else flat
    row = np.repeat(np.arange(len(lengths)), lengths)
    known = column >= 0
    return scipy.sparse.coo_array(
        (np.ones(int(known.sum()), np.float32), (row[known], column[known])),
        shape=(len(lengths), len(vocab))).tocsr()

  if not len(texts):
    return scipy.sparse.csr_array((0, len(vocab)), dtype=np.float32)
  total = counts(list(texts))
  if lemmas is not None and lemma_repeats > 1:
    total = total + (lemma_repeats - 1) * counts(list(lemmas))
  return total.tocsr().astype(np.float32)


def _chunks(queries: scipy.sparse.csr_array, impacts: scipy.sparse.csr_array
            ) -> Iterator[slice]:
  """Yields ranges of queries whose postings together fit the stated bound."""
  postings = np.diff(impacts.indptr).astype(np.int64)
  of_query = np.concatenate([
      [0], np.cumsum(postings[queries.indices], dtype=np.int64)])
  ends = of_query[queries.indptr]
  start, n = 0, queries.shape[0]
  while start < n:
    stop = int(np.searchsorted(ends, ends[start] + _CHUNK_POSTINGS, 'right'))
    stop = min(max(stop - 1, start + 1), start + 256, n)
    yield slice(start, stop)
    start = stop


def _search(queries: scipy.sparse.csr_array, impacts: scipy.sparse.csr_array,
            k: int, bar: bool) -> tuple[np.ndarray, np.ndarray]:
  """Returns the best rows and scores of `bm25_run`."""
  n, k = queries.shape[0], min(k, impacts.shape[1])
  rows = np.full((n, k), -1, np.int32)
  scores = np.full((n, k), -np.inf, np.float32)
  with tqdm.tqdm(total=n, desc='bm25', unit=' queries', disable=not bar,
                 leave=False) as shown:
    for chunk in _chunks(queries, impacts):
      found = queries[chunk] @ impacts  # [<=256, N] sparse
      for i in range(found.shape[0]):
        span = slice(found.indptr[i], found.indptr[i + 1])
        row, score = found.indices[span], found.data[span]
        if len(score) > k:
          # Everything tied with the k-th score stays in, so that the order
          # below, not the partition, decides which of them are kept.
          least = np.partition(score, len(score) - k)[len(score) - k]
          kept = score >= least
          row, score = row[kept], score[kept]
        best = np.lexsort((row, -score))[:k]
        rows[chunk.start + i, :len(best)] = row[best]
        scores[chunk.start + i, :len(best)] = score[best]
      shown.update(chunk.stop - chunk.start)
  return rows, scores
