"""The reader that a config names: from scratch, a folder or the run itself."""

from collections.abc import Callable
import dataclasses
import functools
from typing import NamedTuple

import jax
from ml_collections import config_dict
import numpy as np

from retrieval_jax import data
from retrieval_jax import keys
from retrieval_jax import reading
from retrieval_jax import types
from retrieval_jax.factory import encoders
from retrieval_jax.factory import registries
from retrieval_jax.factory import run_folder
from retrieval_jax.models import pretrained
from retrieval_jax.models import readers
from retrieval_jax.models import t5
from retrieval_jax.models import t5_decoder
from retrieval_jax.models import transformer


class Made(NamedTuple):
  """A reader, and what belongs to it.

  Attributes:
    reader: a types.Reader.
    tokenizer: of its own.
    params: on the host; zeros where they are in a run's checkpoints.
  """
  reader: types.Reader
  tokenizer: data.Tokenizer
  params: types.Params

  @property
  def texts(self) -> reading.Texts:
    """What turns texts into its rows, and rows into answers."""
    if isinstance(self.reader, readers.Seq2Seq):
      return reading.Seq2SeqTexts(self.reader, self.tokenizer)
    assert isinstance(self.reader, readers.Extractive)
    return reading.ExtractiveTexts(self.reader, self.tokenizer)


def make(config: config_dict.ConfigDict,
         make_tokenizer: Callable[[], data.Tokenizer], workdir: str | None
         ) -> Made | None:
  """Returns the reader of a config, None where it names none.

  Args:
    config: as `settled` returns it.
    make_tokenizer: returns that of the run, which a reader from scratch reads
      by.
    workdir: of a run, whose reader it is; None for a new one.

  Raises:
    FileNotFoundError: if there is no such folder, or the run keeps no reader.
    ValueError: for options that cannot work.
  """
  options = config.reader
  kinds = {'none': None, 'extractive': _extractive, 'seq2seq': _seq2seq}
  make_new = registries.choose(kinds, 'reader.name', options.name)
  if make_new is None:
    registries.warn_unread('reader', options, "reader.name='none'", {'name'})
    return None
  if workdir is not None:
    reader, tokenizer = run_folder.read_reader(workdir)
    reader = _computing_by(config.model, reader)
    shapes = jax.eval_shape(reader.init, jax.random.key(0))
    return Made(reader, tokenizer, jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), shapes))
  return make_new(config, make_tokenizer)


def _computing_by(options, reader):
  """Returns the reader with the numbers and memory that options ask."""
  computing = functools.partial(encoders.computing_by, options)
  if isinstance(reader, readers.Extractive):
    return dataclasses.replace(reader, config=computing(reader.config))
  return dataclasses.replace(reader, config=dataclasses.replace(
      reader.config, encoder=computing(reader.config.encoder)))


def _extractive(config, make_tokenizer):
  options = config.reader
  registries.warn_unread(
      'reader', options, "reader.name='extractive'",
      set(options) - {'answer_length', 'fused'})
  weights = None
  if options.pretrained:
    folder = pretrained.tower_folders(options.pretrained)[-1]
    architecture, weights, _ = pretrained.load_pretrained(
        folder, num_layers=options.num_layers or None)
    if not isinstance(architecture, transformer.TransformerConfig):
      raise ValueError(
          f"--config.reader.name='extractive' points at tokens of a BERT-type "
          f'encoder, but {options.pretrained!r} is of type '
          f'{architecture.model_type!r}.')
    tokenizer = pretrained.load_tokenizer(folder)
  else:
    tokenizer = make_tokenizer()
    architecture = transformer.TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=config.model.hidden_size,
        num_layers=options.num_layers or config.model.num_layers,
        num_heads=config.model.num_heads,
        intermediate_size=config.model.intermediate_size, type_vocab_size=2,
        pad_id=tokenizer.pad_id, max_positions=options.row_length)
  reader = _computing_by(config.model, readers.Extractive(
      architecture, options.row_length, options.max_width))
  params = reader.init(keys.of_phase(config.seed, 'reader'))
  if weights is not None:
    params = {**params, 'transformer': weights}
  return Made(reader, tokenizer, jax.device_get(params))


def _seq2seq(config, make_tokenizer):
  options, model = config.reader, config.model
  registries.warn_unread(
      'reader', options, "reader.name='seq2seq'", set(options) - {'max_width'})
  weights = None
  if options.pretrained:
    registries.warn_unread(
        'reader', options, f'reader.pretrained={options.pretrained!r}',
        set(options) - {'num_layers'})
    folder = pretrained.resolve_folder(options.pretrained)
    shape, weights = pretrained.load_seq2seq(folder)
    tokenizer = data.load_tokenizer(folder)
  else:
    tokenizer = make_tokenizer()
    num_layers = options.num_layers or model.num_layers
    shape = t5_decoder.Seq2SeqConfig(t5.T5Config(
        vocab_size=tokenizer.vocab_size, hidden_size=model.hidden_size,
        num_layers=num_layers, num_heads=model.num_heads,
        head_size=model.hidden_size // model.num_heads,
        intermediate_size=model.intermediate_size, pad_id=tokenizer.pad_id),
        num_layers, eos_id=int(tokenizer.encode_batch([''], 4)[0].max()))
  reader = _computing_by(model, readers.Seq2Seq(
      shape, options.row_length, options.answer_length, options.fused))
  params = weights or reader.init(keys.of_phase(config.seed, 'reader'))
  return Made(reader, tokenizer, jax.device_get(params))
