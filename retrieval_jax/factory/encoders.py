"""The encoder that a config names: from scratch, a folder or another run."""

import dataclasses
import math
import os
import warnings

import jax
from ml_collections import config_dict
import numpy as np

from retrieval_jax import base_params
from retrieval_jax import data
from retrieval_jax import keys
from retrieval_jax import runtime
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.data import teachers
from retrieval_jax.factory import registries
from retrieval_jax.factory import run_folder
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import lora
from retrieval_jax.models import pretrained
from retrieval_jax.models import sentence_modules
from retrieval_jax.models import transformer
from retrieval_jax.training import checkpoint


def make_layout(config: config_dict.ConfigDict,
                mesh: jax.sharding.Mesh) -> sharding.Layout:
  """Returns where the parameters and the optimizer's moments live."""
  options = config.sharding
  min_sizes = dict.fromkeys(('sharded', 'by_layer'), options.min_size)
  return sharding.Layout(
      mesh, registries.choose({'replicated': None, **min_sizes},
                              'sharding.parameters', options.parameters),
      by_layer=options.parameters == 'by_layer')


def make_model(config: config_dict.ConfigDict, tokenizer: data.Tokenizer
               ) -> tuple[dual_encoder.DualEncoder, types.Params]:
  """Returns (DualEncoder, params), the initial parameters on the host."""
  return _with_adapters(config, *_make_whole(config, tokenizer))


def base_option(config: config_dict.ConfigDict) -> str:
  """Returns the option that says where the parameters of a base are from."""
  name = 'start_from' if config.model.start_from else 'pretrained'
  return f'--config.model.{name}={config.model[name]}'


def _with_adapters(config, model, params):
  """Returns (model, params) with the low-rank adapters of a config, if any."""
  options = config.lora
  if not options.rank:
    registries.warn_unread('lora', options, 'lora.rank=0', {'rank'})
    return model, params
  if not (config.model.pretrained or config.model.start_from):
    raise ValueError(
        f'--config.lora.rank={options.rank} adapts an encoder that stays as it '
        'is, but this one starts from scratch; name one by '
        '--config.model.pretrained or --config.model.start_from.')
  model = dataclasses.replace(model, lora=lora.Lora(
      options.rank, options.alpha, options.targets))
  params = jax.device_get(model.lora.adapt(
      model.config, params, model.tower_names,
      keys.of_phase(config.seed, 'lora')))
  return model, base_params.rounded(params, registries.choose(
      {dtype: dtype for dtype in transformer.DTYPES}, 'lora.base_dtype',
      options.base_dtype))


def _make_whole(config, tokenizer):
  """Returns (model, params) without adapters.

  The tokenizer may be None where the encoder is not from scratch, and was
  compared with it before.
  """
  options = config.model
  if options.start_from:
    return _started(config)
  towers, dense = (), None
  if options.pretrained:
    architecture, towers, dense = _pretrained_towers(options)
    if tokenizer is not None:
      _check_tokens(config, tokenizer, architecture)
    _check_lengths(config, architecture, f'--config.model.pretrained='
                   f'{options.pretrained!r}')
  else:
    architecture = transformer.TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=options.hidden_size,
        num_layers=options.num_layers, num_heads=options.num_heads,
        intermediate_size=options.intermediate_size,
        pad_id=tokenizer.pad_id,
        max_positions=max(
            config.data.query_length, config.data.target_length))
  model = dual_encoder.DualEncoder(
      computing_by(options, architecture), pooling=options.pooling,
      projection=dense.kernel.shape[1] if dense else options.projection or None,
      projection_bias=dense is not None and dense.bias is not None,
      projection_activation=dense.activation if dense else 'identity',
      normalize=options.normalize,
      tied=options.tied, scale=options.scale, learn_scale=options.learn_scale)
  params = model.init(keys.of_phase(config.seed, 'model'))
  if towers:
    params = model.with_pretrained(params, *towers)
  return model, jax.device_get(params)


def read_model(config: config_dict.ConfigDict, workdir: str
               ) -> tuple[dual_encoder.DualEncoder, types.Params]:
  """Returns (DualEncoder, params) of a run, the parameters being all zeros.

  They are in its checkpoints, but for `base_params`, which are read where the
  run has read them.

  Args:
    config: ConfigDict of the run.
    workdir: its folder.

  Raises:
    ValueError: if the base is no longer what it was; and as of `make_model`.
  """
  saved = run_folder.read_model(workdir)
  model = dataclasses.replace(
      saved, config=computing_by(config.model, saved.config))
  shapes, base = base_params.split(
      jax.eval_shape(model.init, jax.random.key(0)))
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  if base:
    _, found = _with_adapters(config, *_make_whole(config, None))
    _, base = base_params.split(found)
    run_folder.check_base(workdir, base_option(config), base)
  return model, base_params.join(params, base)


def computing_by(options, architecture):
  """Returns the architecture with the numbers and memory that options ask."""
  dtype = options.dtype
  if dtype == 'auto':
    dtype = ('bfloat16' if runtime.multiplies_bfloat16_natively()
             else 'float32')
  return dataclasses.replace(architecture, dtype=dtype, remat=options.remat)


def _pretrained_towers(options):
  """Returns (architecture, one entry of params per tower, Dense or None).

  Raises:
    ValueError: if the towers of the folder are not of one architecture.
  """
  loaded = [
      pretrained.load_pretrained(folder, num_layers=options.num_layers or None)
      for folder in pretrained.tower_folders(options.pretrained)]
  # An explicit projection is a new layer; `settled` warns of that.
  denses = [None if options.projection else head.dense for _, _, head in loaded]
  shapes = [(architecture, dense and (dense.activation, [
      (name, value.shape) for name, value in dense.params().items()]))
            for (architecture, *_), dense in zip(loaded, denses)]
  if shapes[0] != shapes[-1]:
    raise ValueError(
        f'--config.model.pretrained={options.pretrained!r} holds towers of '
        f'different architectures: {shapes[0]} and {shapes[-1]}.')
  towers = [{'transformer': weights,
             **({'projection': dense.params()} if dense else {})}
            for (_, weights, _), dense in zip(loaded, denses)]
  return loaded[0][0], towers, denses[0]


def _check_tokens(config, tokenizer, architecture):
  """Raises where the tokenizer's tokens are not those the encoder knows."""
  path, encoder = (f'--config.tokenizer.path={config.tokenizer.path!r}',
                   f'--config.model.pretrained={config.model.pretrained!r}')
  if tokenizer.vocab_size > architecture.vocab_size:
    raise ValueError(
        f'{path} has {tokenizer.vocab_size} tokens, but the encoder at '
        f'{encoder} has {architecture.vocab_size}; use the tokenizer of the '
        'encoder.')
  if architecture.pad_id not in (None, tokenizer.pad_id):
    raise ValueError(
        f'{path} pads with token {tokenizer.pad_id}, but the encoder at '
        f'{encoder} with {architecture.pad_id}; use the tokenizer of the '
        'encoder.')


def _check_lengths(config, architecture, encoder):
  """Raises where texts are longer than the encoder named can read."""
  for option in ('query_length', 'target_length'):
    if (architecture.max_positions or math.inf) < config.data[option]:
      raise ValueError(
          f'--config.data.{option}={config.data[option]} exceeds the '
          f'{architecture.max_positions} positions of the encoder at '
          f'{encoder}; lower it.')


def settled(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """Returns a copy of a config without options that say "as the folder has it".

  These are tokenizer.path, pooling, normalize, query_prompt, target_prompt and
  scale of model, and query_length and target_length of data. An option that
  differs from the folder at model.pretrained wins, with a warning. So is
  teacher.dim, of which the folder is teacher.folder.

  Args:
    config: ConfigDict; options that it lacks (an older run's) stay absent.

  Raises:
    ValueError: for an option left to a folder that says nothing about it; a
      DataError for a folder without a teacher's vectors.
  """
  config = config.copy_and_resolve_references()
  name = config.model.pretrained
  heads = [pretrained.read_head(folder)
           for folder in (pretrained.tower_folders(name) if name else ())
           ] or [sentence_modules.Head()]
  queries, targets = heads[0], heads[-1]
  # option, value that leaves it to the folder, the folder's, else the default
  for option, left_open, found, usual in (
      ('tokenizer.path', 'auto', name, ''),
      ('model.pooling', 'auto', queries.pooling, 'mean'),
      ('model.normalize', None, queries.normalize, True),
      ('model.query_prompt', 'auto', queries.query_prompt, ''),
      ('model.target_prompt', 'auto', targets.target_prompt, ''),
      ('model.scale', 0., queries.scale, None),
      ('data.query_length', 0, queries.max_length, None),
      ('data.target_length', 0, targets.max_length, None)):
    section, key = option.split('.')
    if key not in config[section]:
      continue
    given = config[section][key]
    if given == left_open:
      value = usual if found is None else found
      if value is None:
        raise ValueError(
            f'--config.{option}={given} leaves it to '
            f'--config.model.pretrained={name!r}, which does not say; give a '
            'number.')
      config[section][key] = value
    elif section == 'model' and key != 'scale' and found not in (None, given):
      warnings.warn(
          f'--config.{option}={given!r} takes the place of {found!r}, which '
          f'{name} was made with.', stacklevel=2)
  if config.model.projection and queries.dense:
    warnings.warn(
        f'--config.model.projection={config.model.projection}, a new layer, '
        f'takes the place of the dense layer that {name} was made with.',
        stacklevel=2)
  if 'teacher' in config and config.teacher.folder and not config.teacher.dim:
    config.teacher.dim = teachers.read_dim(
        os.path.expanduser(config.teacher.folder))
  return config


def _started(config):
  """Returns (model, params) with the towers of the run at model.start_from.

  Raises:
    FileNotFoundError: if that folder holds no checkpoint.
    ValueError: if its encoder or its tokens differ, naming the options.
  """
  workdir = run_folder.started_from(config)
  with checkpoint.Checkpoints(
      run_folder.checkpoints(workdir), read_only=True) as saved:
    theirs, ours = saved.restore_meta()['config'], config.to_dict()
    try:
      checkpoint.check_same_config(
          {name: theirs[name] for name in ('model', 'tokenizer')},
          {name: ours[name] for name in ('model', 'tokenizer')},
          ignore=['model.' + name for name in (
              'start_from', 'tied', 'scale', 'learn_scale', 'dtype', 'remat')])
    except ValueError as error:
      raise ValueError(
          f'--config.model.start_from={config.model.start_from}: another '
          f'encoder. {error}') from error
    options = config.model
    source, zeros = read_model(config_dict.ConfigDict(theirs), workdir)
    _check_lengths(config, source.config, f'--config.model.start_from='
                   f'{options.start_from!r}')
    model = dataclasses.replace(
        source, config=computing_by(options, source.config), lora=None,
        tied=options.tied, scale=options.scale, learn_scale=options.learn_scale)
    params = model.init(keys.of_phase(config.seed, 'model'))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    changed, base = base_params.split(zeros)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        changed)
    return model, jax.device_get(model.with_towers_of(
        params, *source.merged(
            saved.restore_params(base_params.join(shapes, base)))))
