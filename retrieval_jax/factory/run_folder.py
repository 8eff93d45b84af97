"""What a run keeps of its encoder besides the parameters: two files.

  WORKDIR/tokenizer.json   cuts every text of the run
  WORKDIR/encoder.json     the fields of models.DualEncoder

Whatever the parameters were trained with is read from here ever after, never
made again from data or folders that may have changed since.
"""

import dataclasses
import os

from ml_collections import config_dict

from retrieval_jax import data
from retrieval_jax import files
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import t5
from retrieval_jax.models import transformer

_TOKENIZER, _ENCODER = 'tokenizer.json', 'encoder.json'
_ARCHITECTURES = {kind.__name__: kind for kind in (
    transformer.TransformerConfig, t5.T5Config)}


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


def facts(model: dual_encoder.DualEncoder) -> dict:
  """Returns everything but the parameters that makes the model what it is."""
  return {'architecture': type(model.config).__name__,
          **dataclasses.asdict(model)}


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
  path = _existing(workdir, _ENCODER)
  saved = files.read_json(path)
  try:
    config = _ARCHITECTURES[saved.pop('architecture')](**saved.pop('config'))
    return dual_encoder.DualEncoder(config, **saved)
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
