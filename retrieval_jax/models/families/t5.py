"""T5 encoders; a decoder in the same checkpoint is ignored."""

from retrieval_jax.models import t5
from retrieval_jax.models.families import family

_SETTINGS = {  # field of T5Config -> key of config.json
    'vocab_size': 'vocab_size', 'hidden_size': 'd_model',
    'num_layers': 'num_layers', 'num_heads': 'num_heads', 'head_size': 'd_kv',
    'intermediate_size': 'd_ff'}
_FEED_FORWARD = {False: 'relu', True: 'gated-gelu'}
_LAYER = 'encoder.block.{}'


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


def _tensors(config):
  """Returns a family.Tensor per parameter."""
  hidden, wide = config.hidden_size, config.intermediate_size
  inner = config.num_heads * config.head_size

  def weight(ours, *theirs, shape, **options):
    return family.Tensor(
        ours, tuple(f'{name}.weight' for name in theirs), shape, **options)

  found = [
      weight('token_table', 'shared', shape=(config.vocab_size, hidden)),
      weight('relative_bias', _LAYER.format(0)
             + '.layer.0.SelfAttention.relative_attention_bias',
             shape=(config.relative_buckets, config.num_heads)),
      weight('final_norm_scale', 'encoder.final_layer_norm', shape=(hidden,))]
  for i in range(config.num_layers):
    ours, theirs = f'layer_{i}', _LAYER.format(i)
    attention = f'{theirs}.layer.0.SelfAttention'
    mlp = f'{theirs}.layer.1.DenseReluDense'
    up = {'up': 'wi_1', 'gate': 'wi_0'} if config.gated else {'up': 'wi'}
    found += [
        weight(f'{ours}/attention/norm_scale', f'{theirs}.layer.0.layer_norm',
               shape=(hidden,)),
        weight(f'{ours}/attention/qkv_kernel',
               *(f'{attention}.{name}' for name in 'qkv'),
               shape=(inner, hidden), transposed=True),
        weight(f'{ours}/attention/out_kernel', f'{attention}.o',
               shape=(hidden, inner), transposed=True),
        weight(f'{ours}/mlp/norm_scale', f'{theirs}.layer.1.layer_norm',
               shape=(hidden,)),
        *(weight(f'{ours}/mlp/{mine}_kernel', f'{mlp}.{name}',
                 shape=(wide, hidden), transposed=True)
          for mine, name in up.items()),
        weight(f'{ours}/mlp/down_kernel', f'{mlp}.wo', shape=(hidden, wide),
               transposed=True)]
  return found


FAMILY = family.Family(
    _read_config, _write_config, _tensors, _LAYER,
    # One array under two names, of which a file may hold either.
    renamed=((r'^encoder\.embed_tokens\.', 'shared.'),),
    unused=r'decoder\..*|lm_head\..*')
