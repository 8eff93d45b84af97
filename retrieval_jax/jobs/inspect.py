"""Says what a model folder is, and what would be read of it."""

import os

from retrieval_jax import terminal
from retrieval_jax.models import pretrained

_SHOWN = 6  # names of tensors
_EXAMPLE = 'a dog'
_LENGTH = 32  # tokens of the text whose cost is said


def describe(name: str) -> str:
  """Returns what the folder `name` stands for, in lines.

  Args:
    name: anything that `pretrained.resolve_folder` takes.

  Raises:
    FileNotFoundError: naming what is missing.
    ValueError: naming what is not supported.
  """
  towers = pretrained.tower_folders(name)
  lines = [f'{name}: {pretrained.resolve_folder(name)}']
  surveys = [pretrained.survey(tower) for tower in towers]
  for tower, found, side in zip(
      towers, surveys, ('queries', 'targets') if len(towers) > 1 else
      ('queries and targets',)):
    lines.append(f'one tower for {side}')
    lines += [f'  {label:<14}{value}' for label, value in _tower(tower, found)]
  options = [f'--config.model.pretrained={name}', '--config.model.num_layers=0']
  options += ['--config.model.tied=False'] * (len(towers) > 1)
  length = 0 if surveys[0].head.max_length else 64
  options += [f'--config.data.{side}_length={length}'
              for side in ('query', 'target')]
  lines.append(f'train from it: {" ".join(options)}')
  return '\n'.join(lines)


def _tower(tower, found):
  """Yields (label, value) of one tower and its Survey."""
  config, head = found.config, found.head
  yield 'architecture', (
      f'{config.model_type}, {config.num_layers} layers of width '
      f'{config.hidden_size}, {found.num_params / 1e6:,.1f} M parameters '
      f'({found.num_params * 4 / 2**20:,.0f} MiB as float32)')
  yield 'reads', f'{len(found.read)} tensors'
  if found.ignored:
    more = len(found.ignored) - _SHOWN
    yield 'ignores', (
        f'{len(found.ignored)} that token vectors do not need: '
        f'{", ".join(found.ignored[:_SHOWN])}'
        + (f' and {more} more' if more > 0 else ''))
  says = lambda value: 'the folder does not say' if value is None else value
  yield 'pooling', says(head.pooling)
  if head.dense is not None:
    yield 'dense layer', (
        f'{head.dense.kernel.shape[0]} to {head.dense.kernel.shape[1]}, '
        f'{"without" if head.dense.bias is None else "with"} bias, '
        f'{head.dense.activation}')
  yield 'normalised', says(head.normalize)
  for side, prompt in (('query', head.query_prompt),
                       ('target', head.target_prompt)):
    yield f'{side} prompt', (
        'none' if not prompt else repr(terminal.shown(prompt, 200)))
  yield 'cut at', (f'{head.max_length} tokens' if head.max_length
                   else 'the folder does not say')
  if config.max_positions:
    yield 'reads up to', f'{config.max_positions:,} tokens'
  yield 'cost', (f'{config.flops(_LENGTH) / 1e9:,.2f} GFLOP for a text of '
                 f'{_LENGTH} tokens')
  folder = pretrained.encoder_folder(tower)
  if not os.path.exists(os.path.join(folder, 'tokenizer.json')):
    yield 'tokenizer', 'no tokenizer.json; name one by --config.tokenizer.path'
    return
  tokenizer = pretrained.load_tokenizer(tower)
  yield 'tokenizer', (f'{tokenizer.vocab_size:,} tokens, pads with '
                      f'{tokenizer.pad_token!r} ({tokenizer.pad_id})')
  tokens, lengths = tokenizer.encode_batch([_EXAMPLE], 16)
  yield repr(_EXAMPLE), ' '.join(map(str, tokens[0, :lengths[0]]))
