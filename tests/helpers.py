"""A toy encoder, corpus and batches on which the step is exact and quick."""

import jax
from jax import experimental
from jax import numpy as jnp
import numpy as np
import optax

from retrieval_jax import correctors
from retrieval_jax import memories
from retrieval_jax import method as methods
from retrieval_jax import objectives
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.training import step as steps

NUM_TARGETS, LENGTH, DIM, VOCABULARY = 56, 4, 8, 40
BATCH, CHUNK_ROWS = 8, 64  # CHUNK_ROWS = scoring.BLOCK_ROWS * n


def float64():
  """Returns the context in which jax computes in float64."""
  if hasattr(jax, 'enable_x64'):  # not in jax 0.7
    return jax.enable_x64(True)
  return experimental.enable_x64()


def encode(params, tokens):
  """Returns the normalised mean of token vectors, [n, L] -> [n, D]."""
  mean = params['words'][tokens].mean(axis=1)
  return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


ENCODERS = steps.Encoders(encode, encode, lambda params: jnp.float32(5.0))


def params(seed=0):
  key = jax.random.key(seed)
  return {'words': jax.random.normal(key, (VOCABULARY, DIM))}


def corpus_tokens():
  return np.random.default_rng(1).integers(
      0, VOCABULARY, (NUM_TARGETS, LENGTH)).astype(np.int32)


def batch(step, size=BATCH, num_candidates=0):
  """Returns a host Batch: queries are corrupted copies of their targets."""
  rng = np.random.default_rng([2, step])
  target_ids = rng.integers(0, NUM_TARGETS, size).astype(np.int32)
  tokens = corpus_tokens()[target_ids]
  query_tokens = tokens.copy()
  query_tokens[:, 0] = rng.integers(0, VOCABULARY, size)
  second = np.where(rng.random(size) < 0.3, (target_ids + 1) % NUM_TARGETS, -1)
  return types.Batch(
      query_tokens=query_tokens, target_tokens=tokens,
      query_ids=np.arange(size, dtype=np.int32), target_ids=target_ids,
      known_positives=np.stack([target_ids, second], 1).astype(np.int32),
      candidates=candidates(step, target_ids, num_candidates))


def candidates(step, target_ids, number):
  """Returns Candidates that are no positives; some are missing, or unscored."""
  if not number:
    return None
  rng = np.random.default_rng([3, step])
  offsets = rng.permuted(
      np.tile(np.arange(2, NUM_TARGETS), (len(target_ids), 1)), axis=1)
  ids = (target_ids[:, None] + offsets[:, :number]) % NUM_TARGETS
  ids[0, -1] = -1
  scores = 0.3 * rng.normal(size=ids.shape)
  scores[1, 0] = scores[0, -1] = np.nan
  positive_scores = 6 + 0.3 * rng.normal(size=len(target_ids))
  positive_scores[2] = np.nan
  return types.Candidates(
      ids=ids.astype(np.int32), scores=scores.astype(np.float32),
      positive_scores=positive_scores.astype(np.float32))


def gather(ids):
  tokens = corpus_tokens()[np.maximum(np.asarray(ids), 0)]
  return np.where(np.asarray(ids)[:, None] >= 0, tokens, 0)


def table(mesh, stale_params=None, dtype='float32'):
  """Returns the corpus table, encoded with `stale_params`."""
  return tables.from_embeddings(
      np.asarray(encode(stale_params or params(), corpus_tokens())), mesh=mesh,
      chunk_rows=CHUNK_ROWS, dtype=dtype)


def gumbel(num_negatives=2):
  return samplers.Gumbel(num_negatives)


def ring(capacity=CHUNK_ROWS, chunk_rows=CHUNK_ROWS, *, prefill=False):
  return memories.Ring(capacity, 'lru', prefill, 'float32', chunk_rows)


MEMORIES = {'none': memories.Nothing(), 'ring': ring(),
            'corpus': memories.Corpus(NUM_TARGETS, 'float32', CHUNK_ROWS)}


def objective(estimator='truncated_softmax', columns='own', ceiling=None,
              distillation=None):
  """Returns the Contrastive, under a teacher where a kind of one is given.

  Or `estimator` itself where it is an objective.
  """
  if not isinstance(estimator, str):
    return estimator
  inner = objectives.Contrastive(estimator, columns, ceiling)
  if distillation is None:
    return inner
  return objectives.Distilled(inner, objectives.Distillation(distillation))


def method(sampler, *, memory='corpus', corrector=correctors.Identity(),
           num_candidates=0, estimator='truncated_softmax', columns='own',
           ceiling=None, distillation=None, targets=methods.Targets(),
           reader=None, teacher_dim=0, **refresh):
  return methods.Method(
      memory=MEMORIES.get(memory, memory), corrector=corrector, sampler=sampler,
      objective=objective(estimator, columns, ceiling, distillation),
      refresh=methods.Refresh(**refresh), targets=targets,
      num_candidates=num_candidates, reader=reader, teacher_dim=teacher_dim)


def linear(**options):
  return correctors.Linear(**(dict(
      fit='ridge', ridge=2e-5, decay=1.0, num_anchors=0, use_after=0,
      keep_norm=True, reset_on_refresh=True) | options))


def scan(mesh):
  return types.Scan(mesh, CHUNK_ROWS)


def request(queries, table_, *, exclude=None, positives=None, step=0):
  """Returns the Request of queries [B, D] for rows of a table.

  Args:
    queries: [B, D].
    table_: a TargetTable.
    exclude: [B, E] corpus ids that must not be drawn; none by default.
    positives: [B] corpus ids; not remembered by default.
    step: of the request.
  """
  size = len(queries)
  nothing = np.full((size, 1), -1, np.int32)
  ids = jnp.asarray(nothing if exclude is None else exclude, jnp.int32)
  positives = nothing[:, 0] if positives is None else positives
  return types.Request(
      queries=jnp.asarray(queries), query_ids=jnp.arange(size),
      exclude_rows=tables.rows_of(table_, ids), exclude_ids=ids,
      positive_rows=tables.rows_of(table_, jnp.asarray(positives, jnp.int32)),
      step=jnp.int32(step))


def _own_part(array):
  """Returns the rows of a global batch that this process contributes."""
  size = len(array) // jax.process_count()
  return array[jax.process_index() * size:(jax.process_index() + 1) * size]


def copy(tree):
  """Returns the same arrays in other buffers, as `init_state` takes over."""
  return jax.tree.map(jnp.copy, tree)


def update(train_step, state, on_device, draws, mesh):
  """Returns (state, metrics) after the second half of a step."""
  put = lambda tree: sharding.put_batch(jax.tree.map(_own_part, tree), mesh)
  return jax.block_until_ready(train_step.update(
      state, on_device, draws, put(gather(draws.negative_ids)),
      put(gather(draws.probe_ids))))


def train(method_, mesh, *, num_steps, start=None, start_step=0, seed=0,
          optimizer=None, stale_params=None, table_=None, each=None,
          encoders=ENCODERS, first_params=None):
  """Returns (state, list of metrics) of steps run by hand."""
  optimizer = optimizer or optax.adam(0.05)
  train_step = steps.make_train_step(
      encoders, method_, optimizer, mesh=mesh, seed=seed)
  state = start
  if state is None:
    first = table(mesh, stale_params) if table_ is None else copy(table_)
    state = train_step.init_state(first_params or params(), first)
  put = lambda tree: sharding.put_batch(jax.tree.map(_own_part, tree), mesh)
  history = []
  for step in range(start_step, num_steps):
    on_device = put(
        batch(step, num_candidates=method_.num_candidates))
    draws = train_step.propose(state, on_device)
    if each:
      each(state, draws.proposal, jnp.concatenate(
          [draws.refresh_rows, draws.anchor_rows]))
    state, metrics = update(train_step, state, on_device, draws, mesh)
    history.append(jax.device_get(metrics))
  return state, history
