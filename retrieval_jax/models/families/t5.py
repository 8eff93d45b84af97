"""T5 encoders, which ignore a decoder in the same checkpoint; and with it."""

from collections.abc import Callable
import dataclasses

from retrieval_jax.models import t5
from retrieval_jax.models import t5_decoder
from retrieval_jax.models.families import family

_SETTINGS = {  # field of T5Config -> key of config.json
    'vocab_size': 'vocab_size', 'hidden_size': 'd_model',
    'num_layers': 'num_layers', 'num_heads': 'num_heads', 'head_size': 'd_kv',
    'intermediate_size': 'd_ff'}
_FEED_FORWARD = {False: 'relu', True: 'gated-gelu'}
_LAYER = 'encoder.block.{}'
# One array under several names, of which a file may hold any.
_RENAMED = ((r'^(encoder|decoder)\.embed_tokens\.', 'shared.'),)


def _read_config(settings):
  feed_forward = settings.expect(
      'feed_forward_proj', *_FEED_FORWARD.values(), default='relu')
  return t5.T5Config(
      **{ours: settings.read(theirs, int)
         for ours, theirs in _SETTINGS.items()},
      gated=feed_forward == _FEED_FORWARD[True],
      relative_buckets=settings.read('relative_attention_num_buckets', int, 32),
      max_distance=settings.read('relative_attention_max_distance', int, 128),
      layer_norm_eps=settings.read('layer_norm_epsilon', float, 1e-6),
      pad_id=settings.read('pad_token_id', int, 0))


def _write_config(config):
  return {
      'model_type': 't5', 'architectures': ['T5EncoderModel'],
      **{theirs: getattr(config, ours) for ours, theirs in _SETTINGS.items()},
      'feed_forward_proj': _FEED_FORWARD[config.gated],
      'relative_attention_num_buckets': config.relative_buckets,
      'relative_attention_max_distance': config.max_distance,
      'layer_norm_epsilon': config.layer_norm_eps,
      'pad_token_id': config.pad_id}


def _weight(ours, *theirs, shape, **options):
  return family.Tensor(
      ours, tuple(f'{name}.weight' for name in theirs), shape, **options)


def _tensors(config):
  """Returns a family.Tensor per parameter."""
  return [
      _weight('token_table', 'shared',
              shape=(config.vocab_size, config.hidden_size)),
      *_stack(config, config.num_layers, 'encoder')]


def _stack(config, num_layers, name):
  """Returns a family.Tensor per parameter of the encoder or the decoder."""
  hidden, wide = config.hidden_size, config.intermediate_size
  inner, weight = config.num_heads * config.head_size, _weight
  layer, last = f'{name}.block.{{}}', 1 if name == 'encoder' else 2
  found = [
      weight('relative_bias', layer.format(0)
             + '.layer.0.SelfAttention.relative_attention_bias',
             shape=(config.relative_buckets, config.num_heads)),
      weight('final_norm_scale', f'{name}.final_layer_norm', shape=(hidden,))]
  for i in range(num_layers):
    ours, theirs = f'layer_{i}', layer.format(i)
    attention = f'{theirs}.layer.0.SelfAttention'
    cross = f'{theirs}.layer.1.EncDecAttention'
    mlp = f'{theirs}.layer.{last}.DenseReluDense'
    up = {'up': 'wi_1', 'gate': 'wi_0'} if config.gated else {'up': 'wi'}
    found += [
        weight(f'{ours}/attention/norm_scale', f'{theirs}.layer.0.layer_norm',
               shape=(hidden,)),
        weight(f'{ours}/attention/qkv_kernel',
               *(f'{attention}.{name}' for name in 'qkv'),
               shape=(inner, hidden), transposed=True),
        weight(f'{ours}/attention/out_kernel', f'{attention}.o',
               shape=(hidden, inner), transposed=True),
        weight(f'{ours}/mlp/norm_scale', f'{theirs}.layer.{last}.layer_norm',
               shape=(hidden,)),
        *(weight(f'{ours}/mlp/{mine}_kernel', f'{mlp}.{name}',
                 shape=(wide, hidden), transposed=True)
          for mine, name in up.items()),
        weight(f'{ours}/mlp/down_kernel', f'{mlp}.wo', shape=(hidden, wide),
               transposed=True)]
    if name == 'decoder':
      found += [
          weight(f'{ours}/cross/norm_scale', f'{theirs}.layer.1.layer_norm',
                 shape=(hidden,)),
          *(weight(f'{ours}/cross/{mine}_kernel',
                   *(f'{cross}.{part}' for part in parts),
                   shape=(inner, hidden), transposed=True)
            for mine, parts in (('q', 'q'), ('kv', 'kv'))),
          weight(f'{ours}/cross/out_kernel', f'{cross}.o',
                 shape=(hidden, inner), transposed=True)]
  return found


FAMILY = family.Family(
    _read_config, _write_config, _tensors, _LAYER,
    renamed=_RENAMED,
    unused=r'decoder\..*|lm_head\..*')


# --- With its decoder, which reads and answers.

UNUSED_BY_SEQ2SEQ = r'decoder\.block\.0\..*EncDec.*relative_attention_bias.*'


def read_seq2seq(settings, has_output: bool) -> t5_decoder.Seq2SeqConfig:
  """Returns the config of encoder and decoder in a config.json.

  Args:
    settings: its data.settings.Settings.
    has_output: whether the folder has an output table beside the token table.
      Where outputs are scaled, as in the first T5, the two are one all the
      same.
  """
  tied = settings.read('tie_word_embeddings', bool, True)
  scaled = settings.read('scale_decoder_outputs', bool, tied)
  encoder = _read_config(settings)
  return t5_decoder.Seq2SeqConfig(
      encoder,
      num_layers=settings.read('num_decoder_layers', int, encoder.num_layers),
      tied_output=scaled or not has_output, scaled_output=scaled,
      eos_id=settings.read('eos_token_id', int, 1))


def write_seq2seq(config: t5_decoder.Seq2SeqConfig) -> dict:
  """Returns the content of a config.json."""
  return {
      **_write_config(config.encoder),
      'architectures': ['T5ForConditionalGeneration'],
      'num_decoder_layers': config.num_layers, 'is_encoder_decoder': True,
      'tie_word_embeddings': config.scaled_output,
      'eos_token_id': config.eos_id, 'decoder_start_token_id': config.start_id}


def seq2seq_tensors(config: t5_decoder.Seq2SeqConfig) -> list[family.Tensor]:
  """Returns a family.Tensor per parameter of encoder and decoder."""
  encoder = config.encoder
  output = [] if config.tied_output else [_weight(
      'output_table', 'lm_head',
      shape=(encoder.vocab_size, encoder.hidden_size))]
  return [tensor._replace(ours=f'{part}/{tensor.ours}')
          for part, tensors in (
              ('encoder', _tensors(encoder)),
              ('decoder', _stack(encoder, config.num_layers, 'decoder')))
          for tensor in tensors] + output


def seq2seq_names(config: t5_decoder.Seq2SeqConfig) -> Callable[[str], str]:
  """Returns from a name in a file to that which `seq2seq_tensors` knows."""
  renamed = (*_RENAMED, *([(r'^lm_head\.', 'shared.')]
                          if config.tied_output else []))
  return dataclasses.replace(FAMILY, renamed=renamed).canonical
