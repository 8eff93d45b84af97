"""What a run keeps of its models besides the parameters.

  WORKDIR/tokenizer.json         cuts every text of the run
  WORKDIR/encoder.json           the fields of models.DualEncoder
  WORKDIR/base.json              where `base_params` are from, if there are any
  WORKDIR/reader/tokenizer.json  the same of a reader, where there is one
  WORKDIR/reader/reader.json

Whatever the parameters were trained with is read from here ever after, never
made again from data or folders that may have changed since.
"""

from collections.abc import Callable
import dataclasses
import os
from typing import Any

from ml_collections import config_dict

from retrieval_jax import data
from retrieval_jax import files
from retrieval_jax import origins
from retrieval_jax import types
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import lora
from retrieval_jax.models import modern
from retrieval_jax.models import readers
from retrieval_jax.models import static
from retrieval_jax.models import t5
from retrieval_jax.models import t5_decoder
from retrieval_jax.models import transformer

_TOKENIZER, _ENCODER = 'tokenizer.json', 'encoder.json'
_BASE = 'base.json'
_FOLDER, _READER = 'reader', 'reader.json'
_ARCHITECTURES = {kind.__name__: kind for kind in (
    transformer.TransformerConfig, modern.ModernConfig, static.StaticConfig,
    t5.T5Config, t5_decoder.Seq2SeqConfig)}


_READERS = {kind.__name__: kind for kind in (
    readers.Extractive, readers.Seq2Seq)}


def checkpoints(workdir: str) -> str:
  """Returns the folder of a run's checkpoints."""
  return os.path.join(workdir, 'checkpoints')


def started_from(config: config_dict.ConfigDict) -> str:
  """Returns the folder of the run whose encoder a config starts from.

  Raises:
    FileNotFoundError: if it holds no checkpoints.
  """
  workdir = os.path.expanduser(config.model.start_from)
  if not os.path.isdir(checkpoints(workdir)):
    raise FileNotFoundError(
        f'--config.model.start_from={config.model.start_from} holds no '
        'checkpoints; name the --workdir of a run of experiments.train.')
  return workdir


def write(workdir: str, tokenizer: data.Tokenizer,
          model: dual_encoder.DualEncoder) -> None:
  """Writes both files; `workdir` is made if absent."""
  tokenizer.save(os.path.join(workdir, _TOKENIZER))
  files.write_json(os.path.join(workdir, _ENCODER), facts(model))


def write_base(workdir: str, name: str, base: types.Params) -> None:
  """Writes down which parameters stayed as they are, which no file keeps.

  Args:
    workdir: folder of the run.
    name: the option that says where they are from.
    base: as of `base_params.split`.
  """
  files.write_json(os.path.join(workdir, _BASE), {
      'from': name, 'parameters': origins.digest(base)})


def check_base(workdir: str, name: str, base: types.Params) -> None:
  """Raises unless these are the parameters that `write_base` was given.

  Raises:
    FileNotFoundError: if the run keeps no such file.
    ValueError: if they are others.
  """
  saved = files.read_json(_existing(workdir, _BASE))
  if saved['parameters'] != origins.digest(base):
    raise ValueError(
        f'--workdir={workdir} trained adapters to the encoder of '
        f'{saved["from"]}, whose parameters are no longer those that they were '
        f'trained on ({name} now has others). Bring that encoder back as it '
        'was, or train again.')


def write_reader(workdir: str, reader: types.Reader,
                 tokenizer: data.Tokenizer) -> None:
  """Writes the files of a reader."""
  folder = os.path.join(workdir, _FOLDER)
  tokenizer.save(os.path.join(folder, _TOKENIZER))
  files.write_json(os.path.join(folder, _READER), {
      'reader': type(reader).__name__, **facts(reader)})


def read_reader(workdir: str) -> tuple[types.Reader, data.Tokenizer]:
  """Returns the reader of a run, and its tokenizer.

  Raises:
    FileNotFoundError: if the run keeps none.
    ValueError: naming the file, if it is damaged.
  """
  folder = os.path.join(workdir, _FOLDER)
  return _read(folder, _READER, lambda saved: _READERS[saved.pop('reader')]
               ), data.load_tokenizer(_existing(folder, _TOKENIZER))


def facts(model: Any) -> dict:
  """Returns everything but the parameters that makes the model what it is."""
  found = {'architecture': type(model.config).__name__,
           **dataclasses.asdict(model)}
  return {name: value for name, value in found.items()
          if (name, value) != ('lora', None)}  # as before there were adapters


def read_tokenizer(workdir: str) -> data.Tokenizer:
  """Returns the tokenizer of a run, without prompts.

  Raises:
    FileNotFoundError: if the run keeps none.
    ValueError: naming the file, if it is damaged.
  """
  return data.load_tokenizer(_existing(workdir, _TOKENIZER))


def read_model(workdir: str) -> dual_encoder.DualEncoder:
  """Returns the model of a run, with the dtype and remat it was built with.

  Raises:
    FileNotFoundError: if the run keeps none.
    ValueError: naming the file, if it is damaged.
  """
  return _read(workdir, _ENCODER, lambda saved: dual_encoder.DualEncoder)


def _read(folder: str, name: str, kind: Callable[[dict], Any]) -> Any:
  """Returns the `kind` of model whose `facts` a file holds."""
  path = _existing(folder, name)
  saved = files.read_json(path)
  try:
    make = kind(saved)
    options = saved.pop('config')
    if 'lora' in saved:
      saved['lora'] = lora.Lora(**saved['lora'])
    if 'encoder' in options:  # of an encoder with its decoder
      options['encoder'] = t5.T5Config(**options['encoder'])
    config = _ARCHITECTURES[saved.pop('architecture')](**options)
    return make(config, **saved)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
        f'{path}: expected the fields of an encoder as training writes them '
        f'({type(error).__name__}: {error}); restore the file, or train '
        'again.') from error


def _existing(workdir: str, name: str) -> str:
  path = os.path.join(workdir, name)
  if not os.path.isfile(path):
    raise FileNotFoundError(
        f'{path}: no such file, which training writes at its start. Copy the '
        'whole folder of the run; one made by an older version must be '
        'trained again.')
  return path
