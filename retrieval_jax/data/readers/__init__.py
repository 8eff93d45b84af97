"""Readers of the formats that data comes in: each makes a `dataset.Reader`.

A reader is made from one path: a folder, a file or a name, as the format's
module says. A new format is a module here, a line in the registry of readers
(`factory.READERS`) and a fixture in the tests, which then hold it to what every
reader must do.
"""

from retrieval_jax.data.readers import dpr
from retrieval_jax.data.readers import hugging_face
from retrieval_jax.data.readers import pairs
from retrieval_jax.data.readers import passages
from retrieval_jax.data.readers import questions
from retrieval_jax.data.readers import tevatron
from retrieval_jax.data.readers import tfds
from retrieval_jax.data.readers.beir import BeirReader
from retrieval_jax.data.readers.ir_datasets import IrDatasetsReader
from retrieval_jax.data.readers.msmarco import MsMarcoReader
from retrieval_jax.data.readers.wordnet import WordNetReader

__all__ = [
    'BeirReader', 'dpr', 'hugging_face', 'IrDatasetsReader', 'MsMarcoReader',
    'pairs', 'passages', 'questions', 'tevatron', 'tfds', 'WordNetReader',
]
