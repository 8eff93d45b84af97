"""Writes a dual encoder as a folder that sentence-transformers loads."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

import jax
import numpy as np

from retrieval_jax import data
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import families
from retrieval_jax.models import peft
from retrieval_jax.models import pretrained
from retrieval_jax.models import sentence_modules
from retrieval_jax.models import static


def write(folder: str, model: dual_encoder.DualEncoder, params: types.Params,
          tokenizer: data.Tokenizer, *, lengths: Sequence[int],
          prompts: Sequence[str], base: str = '') -> None:
  """Writes everything that queries and targets need to become embeddings.

  One tower is one folder. Two towers are the folders `query` and `target`,
  each of which can be loaded by itself, and a router in `folder` that sends
  queries to the one and documents to the other.

  Args:
    folder: exists and is empty.
    model: the dual encoder.
    params: its parameters.
    tokenizer: of both towers, without a prompt.
    lengths: at how many tokens queries and targets are cut. A single tower
      has a single length, the longer one.
    prompts: what is put before queries and before targets.
    base: name of the encoder that low-rank adapters belong to, to write these
      alone, which what loads the folder adds to that; '' for the encoder with
      all adapters in its kernels.
  """
  params = sharding.fetch(params)
  if not base:
    model, params = model.merged(params)
    params = jax.tree.map(np.asarray, params)
  facts: dict[str, Any] = dict(
      pooling=model.pooling, normalize=model.normalize,
      query_prompt=prompts[0], target_prompt=prompts[1],
      scale=float(model.scale_of(params)))
  if model.tied:
    head = sentence_modules.Head(**facts, max_length=max(lengths))
    _write_tower(folder, model, params['tower'], tokenizer, head, base)
    return
  for name, tower, length in zip(
      pretrained.TOWERS, model.tower_names, lengths):
    head = sentence_modules.Head(**facts, max_length=length)
    inside = os.path.join(folder, name)
    os.makedirs(inside)
    _write_tower(inside, model, params[tower], tokenizer, head, base)
  sentence_modules.write_router(
      folder, dict(zip(('query', 'document'), pretrained.TOWERS)))
  sentence_modules.write_prompts(folder, head)


def _write_tower(folder, model, params, tokenizer, head, base):
  """Writes weights or adapters, tokenizer and modules of one tower."""
  config = model.config
  if base:
    peft.write(folder, config, model.lora, params['lora'], base)
  else:
    pretrained.save_pretrained(folder, config, params['transformer'])
  if model.projection is not None:
    head = dataclasses.replace(head, dense=sentence_modules.Dense(
        activation=model.projection_activation, **params['projection']))
  is_static = isinstance(config, static.StaticConfig)
  sentence_modules.write(folder, head, config.hidden_size, static=is_static)
  tokenizer.save(folder, head.max_length if is_static else None)
  family = families.FAMILIES[config.model_type]
  sentence_modules.write_json(folder, 'tokenizer_config.json', {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'pad_token': tokenizer.pad_token, 'padding_side': 'right',
      'model_max_length': head.max_length,
      'model_input_names': [
          'input_ids', *(['token_type_ids'] if family.reads_types else []),
          'attention_mask']})
