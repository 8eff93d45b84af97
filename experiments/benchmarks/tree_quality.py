"""How near draws along a tree are to the softmax, per row that they score.

  python -m experiments.benchmarks.tree_quality --workdir=runs/quickstart

Takes the targets of a run as its encoder embeds them and the first dev queries,
and prints for each beta, number of opened leaves and length of the chain the
total variation distance between the distribution of a draw and the softmax over
all targets, both exact (`samplers.Tree.diagnose`), the mean over the queries.
Beside it: uniform draws; rows scored per query, among them the leaves' centres
and the rows of the leaves that a chain draws; and 1 / sum P^2, the effective
number of targets. Exact Gumbel draws score all rows and have distance 0.
"""

from absl import app
from absl import flags
import jax
from jax import numpy as jnp
import numpy as np

from experiments import process
from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import trained
from retrieval_jax import types
from retrieval_jax.factory import defaults
from retrieval_jax.factory import registries

_DEFAULTS = defaults.get_config().sampler
_WORKDIR = process.DEFINE_path(
    'workdir', None, 'A finished run.', required=True)
_SCALE = flags.DEFINE_multi_float('scale', [10., 20., 40.], 'beta.')
_OPENED = flags.DEFINE_multi_integer('opened', [0, 32, 128], 'Leaves opened.')
_CHAIN_STEPS = flags.DEFINE_multi_integer(
    'chain_steps', [0, 8, 32, 128], 'Of the chain.')
_LEAF_SIZE = flags.DEFINE_integer(
    'leaf_size', _DEFAULTS.leaf_size, 'Rows of a leaf.')
_MOMENTS = flags.DEFINE_integer(
    'moments', _DEFAULTS.moments, 'Axes of second moments.')
_NUM_QUERIES = flags.DEFINE_integer('num_queries', 64, 'First dev queries.')
_CHUNK_ROWS = 4096


def _sampler(opened, chain_steps):
  return registries.make(registries.SAMPLERS, 'sampler.name', {
      **_DEFAULTS, 'name': 'tree', 'num_negatives': 1,
      'leaf_size': _LEAF_SIZE.value, 'moments': _MOMENTS.value,
      'beam': 0, 'opened': opened, 'chain_steps': chain_steps})


def main(argv):
  del argv
  retriever = trained.open(_WORKDIR.value)
  vectors = np.asarray(retriever.stored_targets(), np.float32)
  dataset = retriever.dataset
  rows = np.unique(dataset.qrels['dev'].query_rows)[:_NUM_QUERIES.value]
  queries = jnp.asarray(
      retriever.embed_queries([dataset.query_texts[row] for row in rows]))
  mesh = sharding.make_mesh(1)
  table = tables.from_embeddings(vectors, mesh, _CHUNK_ROWS, 'float32')
  view = types.View(table, scoring.uncorrected, jnp.float32(1.),
                    types.Scan(mesh, _CHUNK_ROWS))
  none = jnp.full([len(queries)], -1, jnp.int32)
  request = types.Request(
      queries, none, none[:, None], none[:, None], none, jnp.int32(0))
  tree = jax.jit(lambda key, table: _sampler(0, 0).init(
      key, view._replace(table=table)))(jax.random.key(0), table)
  print(f'{len(vectors):,} targets, {tree.num_leaves:,} leaves of at most '
        f'{_LEAF_SIZE.value}; {len(queries)} dev queries\n')
  print('| beta | effective targets | opened | chain | rows scored | of all '
        '| TV |\n| --- | --- | --- | --- | --- | --- | --- |')
  scores = np.asarray(queries, np.float32) @ vectors.T
  for scale in _SCALE.value:
    logits = scale * scores
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    effective = np.median(1 / np.square(share).sum(axis=1))
    uniform = np.abs(share - 1 / len(vectors)).sum(axis=1).mean() / 2
    print(f'| {scale:g} | {effective:,.0f} | uniform draws | | 1 | '
          f'{1 / len(vectors):.5f} | {uniform:.3f} |')
    for opened in _OPENED.value:
      for steps in _CHAIN_STEPS.value:
        sampler = _sampler(opened, steps)
        found = jax.device_get(jax.jit(
            lambda tree, table, scale, sampler=sampler: sampler.diagnose(
                tree, request, view._replace(table=table, scale=scale)))(
                    tree, table, jnp.float32(scale)))
        per_leaf = len(vectors) / tree.num_leaves
        scored = (tree.num_leaves + found['tree_opened'] * len(vectors)
                  + (1 + steps) * per_leaf)
        tv = found['tree_tv_chain'] if steps else found['tree_tv']
        print(f'| {scale:g} | {effective:,.0f} | {opened} | {steps} | '
              f'{scored:,.0f} | {scored / len(vectors):.3f} | {tv:.4f} |',
              flush=True)


if __name__ == '__main__':
  app.run(main)
