r"""What a pass over a corpus needs on the host: through it, or past it.

  python -m experiments.benchmarks.corpus_pass --num_rows=1000000 \
      --num_rows=10000000 [--coordinator=HOST:PORT --num_processes=2 \
      --process_id=0]

Embeds --num_rows synthetic texts of eight tokens, mapped from a file, into a
table [N, --dim] sharded over the devices, by an encoder that adds up vectors of
tokens, which costs next to nothing. `host` brings the embeddings to the host
and makes the table from there; `device` writes them to their rows as they come.

Peak bytes are those of the process at its largest, less what it held before and
less what of the table lies in it: on a CPU the devices' memory is the host's.
With several processes each says its own.
"""

import os
import sys
import tempfile
import time

from absl import app
from absl import flags
import jax
from jax import numpy as jnp
import numpy as np

from experiments import process
from experiments.benchmarks import memory
from retrieval_jax import data
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax.models import embedding

_LENGTH, _VOCABULARY, _CHUNK = 8, 1000, 4096


def define_flags(values):
  flags.DEFINE_multi_integer(
      'num_rows', [1_000_000], 'Texts; may be repeated.', lower_bound=1,
      flag_values=values)
  flags.DEFINE_integer('dim', 128, 'Of an embedding.', lower_bound=1,
                       flag_values=values)
  flags.DEFINE_integer(
      'batch_tokens', 65536, 'Tokens embedded at a time.', lower_bound=_LENGTH,
      flag_values=values)
  process.DEFINE_path(
      'folder', None, 'Folder for the tokens; a temporary one by default.',
      flag_values=values)
  process.DEFINE_processes(values)


def encode(params, tokens):
  """Returns the sum of the vectors of each text's tokens, [n, D]."""
  return jnp.sum(params[jnp.maximum(tokens, 0)], axis=1)


def make_tokens(path, num_rows):
  """Maps [N, L] int16 of random tokens from a file, made if it is not there."""
  if not os.path.exists(path):
    rng = np.random.default_rng(0)
    made = np.lib.format.open_memmap(
        path + '.part', 'w+', np.int16, (num_rows, _LENGTH))
    for start in range(0, num_rows, 2**20):
      part = made[start:start + 2**20]
      part[:] = rng.integers(0, _VOCABULARY, part.shape)
    made.flush()
    os.replace(path + '.part', path)
  return np.load(path, mmap_mode='r')


def through_host(mesh, params, store, options):
  """Returns the table as it is made from an array of the host."""
  found = embedding.embed(encode, params, store, mesh=mesh, **options)
  return tables.from_embeddings(found, mesh, _CHUNK, 'float32')


def past_host(mesh, params, store, options):
  """Returns the same table, written to on the devices."""
  every = np.arange(len(store))
  blank = tables.from_embeddings(
      jax.ShapeDtypeStruct((len(store), params.shape[1]), np.float32), mesh,
      _CHUNK, 'float32')
  return embedding.embed_onto(
      blank.embeddings, encode, params, store, texts=every, rows=every,
      mesh=mesh, **options)


def measure(function, *arguments):
  """Returns (seconds, peak bytes of the host, bytes of the table here)."""
  memory.forget_peak()
  before = memory.resident_bytes('VmRSS')
  started = time.monotonic()
  made = jax.block_until_ready(function(*arguments))
  seconds = time.monotonic() - started
  here = sum(shard.data.nbytes for array in jax.tree.leaves(made)
             for shard in array.addressable_shards)
  peak = memory.resident_bytes('VmHWM') - before
  if jax.default_backend() == 'cpu':
    peak -= here
  return seconds, peak, here


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script(values), tempfile.TemporaryDirectory() as temporary:
    mesh = sharding.make_mesh()
    params = np.random.default_rng(1).normal(
        size=(_VOCABULARY, values.dim)).astype(np.float32)
    options = dict(batch_tokens=values.batch_tokens, buckets=(_LENGTH,))
    folder = values.folder or temporary
    os.makedirs(folder, exist_ok=True)
    print('| rows | through | s | peak on the host, MB | table here, MB |\n'
          '| --- | --- | --- | --- | --- |', file=sys.stderr)
    for num_rows in values.num_rows:
      path = os.path.join(
          folder, f'tokens_{num_rows}_{jax.process_index()}.npy')
      tokens = make_tokens(path, num_rows)
      store = data.TokenStore(tokens, np.full(num_rows, _LENGTH, np.int16))
      for name, function in (('device', past_host), ('host', through_host)):
        function(mesh, params, data.TokenStore(  # compiles
            tokens[:2 * _CHUNK], store.lengths[:2 * _CHUNK]), options)
        seconds, peak, here = measure(function, mesh, params, store, options)
        print(f'| {num_rows:,} | {name} | {seconds:.1f} | {peak / 1e6:,.0f} | '
              f'{here / 1e6:,.0f} |', file=sys.stderr, flush=True)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
