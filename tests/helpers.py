"""A toy encoder, corpus and batches on which the step is exact and quick."""

import jax
from jax import numpy as jnp
import numpy as np
import optax

from retrieval_jax import correctors
from retrieval_jax import distillation as distillations
from retrieval_jax import method as methods
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.training import step as steps

NUM_TARGETS, LENGTH, DIM, VOCABULARY = 56, 4, 8, 40
BATCH, CHUNK_ROWS = 8, 64  # CHUNK_ROWS = scoring.BLOCK_ROWS * n


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


def gumbel(mesh, num_negatives=2):
  return samplers.Gumbel(num_negatives, CHUNK_ROWS, mesh)


def method(sampler, *, memory='corpus', estimator='truncated_softmax',
           columns='own', num_candidates=0, ceiling=None, distillation='none',
           **refresh):
  return methods.Method(
      memory=memory, corrector=correctors.Identity(), sampler=sampler,
      estimator=estimator, columns=columns, refresh=methods.Refresh(**refresh),
      num_candidates=num_candidates, ceiling=ceiling,
      distillation=distillations.Distillation(distillation))


def _own_part(array):
  """Returns the rows of a global batch that this process contributes."""
  size = len(array) // jax.process_count()
  return array[jax.process_index() * size:(jax.process_index() + 1) * size]


def train(method_, mesh, *, num_steps, start=None, start_step=0, seed=0,
          optimizer=None, stale_params=None, table_=None, each=None,
          encoders=ENCODERS, first_params=None):
  """Returns (state, list of metrics) of steps run by hand."""
  optimizer = optimizer or optax.adam(0.05)
  train_step = steps.make_train_step(
      encoders, method_, optimizer, mesh=mesh, seed=seed)
  state = start
  if state is None:
    state = train_step.init_state(
        first_params or params(),
        table_ if table_ is not None else table(mesh, stale_params))
  put = lambda tree: sharding.put_batch(jax.tree.map(_own_part, tree), mesh)
  history = []
  for step in range(start_step, num_steps):
    on_device = put(
        batch(step, num_candidates=method_.num_candidates))
    proposal, probe_rows, negative_ids, probe_ids = train_step.propose(
        state, on_device)
    if each:
      each(state, proposal, probe_rows)
    state, metrics = train_step.update(
        state, on_device, proposal, probe_rows, put(gather(negative_ids)),
        put(gather(probe_ids)))
    jax.block_until_ready(state)
    history.append(jax.device_get(metrics))
  return state, history
