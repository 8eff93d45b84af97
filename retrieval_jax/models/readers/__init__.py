"""Readers: how likely is an answer, given a question and a passage?"""

from retrieval_jax.models.readers.extractive import Extractive
from retrieval_jax.models.readers.seq2seq import Seq2Seq
