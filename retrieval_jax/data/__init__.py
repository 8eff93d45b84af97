"""Corpora, queries, judgements, tokenisation and the input pipeline."""

from typing import Any

from retrieval_jax.data.copies import NONE as NO_COPIES
from retrieval_jax.data.dataset import Answers
from retrieval_jax.data.dataset import CandidatePairs
from retrieval_jax.data.dataset import Collection
from retrieval_jax.data.dataset import load
from retrieval_jax.data.dataset import prepare
from retrieval_jax.data.dataset import Qrels
from retrieval_jax.data.dataset import Reader
from retrieval_jax.data.dataset import RetrievalDataset
from retrieval_jax.data.errors import DataError
from retrieval_jax.data.lenient import Lenient
from retrieval_jax.data.mixture import Mixture
from retrieval_jax.data.readers import BeirReader
from retrieval_jax.data.readers import dpr
from retrieval_jax.data.readers import hugging_face
from retrieval_jax.data.readers import IrDatasetsReader
from retrieval_jax.data.readers import MsMarcoReader
from retrieval_jax.data.readers import pairs
from retrieval_jax.data.readers import questions
from retrieval_jax.data.readers import tevatron
from retrieval_jax.data.readers import tfds
from retrieval_jax.data.readers import WordNetReader
from retrieval_jax.data.readers.passages import OverPassages
from retrieval_jax.data.sets import Sets
from retrieval_jax.data.strings import Part
from retrieval_jax.data.strings import Prefixed
from retrieval_jax.data.strings import StringArray
from retrieval_jax.data.strings import write_strings
from retrieval_jax.data.subset import Subset
from retrieval_jax.data.tokenization import load_tokenizer
from retrieval_jax.data.tokenization import tokenize
from retrieval_jax.data.tokenization import Tokenizer
from retrieval_jax.data.tokenization import TokenStore
from retrieval_jax.data.tokenization import train_tokenizer

__all__ = [
    'Answers', 'BeirReader', 'CandidatePairs', 'Collection', 'DataError', 'dpr',
    'hugging_face', 'IrDatasetsReader', 'Lenient', 'load', 'load_tokenizer',
    'Mixture', 'MsMarcoReader', 'NO_COPIES', 'OverPassages', 'pairs', 'Part',
    'Prefixed', 'prepare', 'Qrels', 'QuestionBatches', 'questions', 'Reader',
    'RetrievalDataset', 'Sets', 'StringArray', 'Subset', 'tevatron', 'tfds',
    'tokenize', 'Tokenizer', 'TokenStore', 'TrainBatches', 'train_tokenizer',
    'WordNetReader', 'write_strings',
]


def __getattr__(name: str) -> Any:
  """Imports batches late: they alone need jax, for `types.Batch`."""
  if name in ('QuestionBatches', 'TrainBatches'):
    from retrieval_jax.data import pipeline
    return getattr(pipeline, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
