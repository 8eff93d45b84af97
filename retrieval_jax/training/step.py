"""One training step, the same for every method: propose, gather, update.

The batch and all fresh embeddings are sharded over mesh axis 'data' by query;
the table by row; parameters and optimizer as a `sharding.Layout` says;
everything else is replicated.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import numpy as jnp
import optax

from retrieval_jax import estimators
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.models import dual_encoder
from retrieval_jax.training import columns as columns_lib
from retrieval_jax.training import state as states


class Encoders(NamedTuple):
  """The model as the step sees it.

  Attributes:
    queries: (params, tokens [n, L]) -> [n, D] float32.
    targets: (params, tokens [n, L]) -> [n, D] float32.
    scale: params -> [] float32, beta.
  """
  queries: types.Encode
  targets: types.Encode
  scale: Callable[[types.Params], jax.Array]


class TrainStep(NamedTuple):
  """The jitted functions of a step; see `make_train_step`."""
  init_state: Callable
  propose: Callable
  update: Callable
  refreshed: Callable


def make_train_step(encoders, method, optimizer, *, mesh, seed, layout=None):
  """Returns the functions that train `encoders` by `method`.

  A step is
    proposal, probe_rows, negative_ids, probe_ids = propose(state, batch)
    negative_tokens, probe_tokens = tokens of those corpus ids
    state, metrics = update(state, batch, proposal, probe_rows,
                            negative_tokens, probe_tokens)
  and is split there so that token arrays may live on the host.

  Args:
    encoders: an Encoders.
    method: a method.Method.
    optimizer: an optax.GradientTransformation.
    mesh: mesh with axis 'data'.
    seed: int; step t draws from fold_in(key(seed), t), so nothing random is
      part of the state.
    layout: sharding.Layout of the parameters and of what the optimizer keeps
      of them, the one that `encoders` know; None replicates both.

  Returns:
    A TrainStep: `init_state(params, table) -> TrainState` sharded over the
    mesh; `propose` and `update` as above, with negative_ids [B * K] and
    probe_ids [P] int32 (-1 where there is nothing to encode) and
    negative_tokens [B * K, L], probe_tokens [P, L] int32, the batch's
    candidates counted in K; where targets are read from the table, negatives
    need no tokens and those two are empty.
    `update` donates the state. `refreshed(state, table) -> TrainState` replaces
    the whole table and lets the corrector start anew if it asks for that.
  """
  shards = mesh.shape['data']
  layout = layout or sharding.Layout(mesh)
  encodes_targets = method.targets.source == 'encoder'

  def init_corrector(dim):
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    return method.corrector.init(key, dim)

  def init_state(params, table):
    def build(params, table):
      return states.TrainState(
          step=jnp.zeros([], jnp.int32), params=params,
          opt_state=optimizer.init(params), table=table,
          corrector=init_corrector(table.embeddings.shape[1]), sampler=())
    # Parameters are put in place first: none is whole on any device that is to
    # hold a shard of it.
    params = jax.device_put(params, layout.shardings(params))
    shape = jax.eval_shape(build, params, table)
    return jax.jit(build, out_shardings=state_shardings(shape))(params, table)

  def state_shardings(state):
    return dataclasses.replace(
        sharding.state_shardings(state, mesh),
        params=layout.shardings(state.params),
        opt_state=layout.shardings(state.opt_state))

  num_anchors = -(-method.corrector.num_anchors // shards) * shards

  def propose(state, batch):
    draw_key, probe_key = jax.random.split(
        jax.random.fold_in(jax.random.key(seed), state.step))
    queries = encoders.queries(state.params, batch.query_tokens)
    view = types.View(
        table=state.table, scale=encoders.scale(state.params),
        correct=functools.partial(method.corrector.apply, state.corrector),
        positive_rows=tables.rows_of(state.table, batch.target_ids))
    excluded = batch.known_positives
    if batch.candidates is not None:
      excluded = jnp.concatenate([excluded, batch.candidates.ids], axis=1)
    proposal = with_candidates(
        method.sampler.propose(
            draw_key, queries, tables.rows_of(state.table, excluded), view),
        batch.candidates, state.table)
    capacity = state.table.ids.shape[0]
    refresh_key, anchor_key = jax.random.split(probe_key)
    probe_rows = jnp.concatenate([
        systematic_rows(refresh_key, capacity,
                        method.refresh.num_probes(capacity, shards)),
        systematic_rows(anchor_key, capacity, num_anchors)])
    probe_ids = tables.take(state.table, probe_rows).ids
    negative_ids = proposal.ids.reshape(-1)[:None if encodes_targets else 0]
    return proposal, probe_rows, negative_ids, probe_ids

  def update(state, batch, proposal, probe_rows, negative_tokens, probe_tokens):
    num_queries, num_negatives = proposal.rows.shape
    used_rows = vectors = None
    if not encodes_targets:
      used_rows, place = distinct_rows(state.table, batch, proposal)
      vectors = tables.take(state.table, used_rows).embeddings.astype(
          jnp.float32)

    def loss_fn(params, vectors):
      if encodes_targets:
        targets = encoders.targets(params, jnp.concatenate(
            [batch.target_tokens, negative_tokens]))
      else:
        targets = vectors[place]
      scale = encoders.scale(params)
      return method.matryoshka.total(
          lambda queries, targets: loss_of(
              method, queries, targets, scale, batch, proposal),
          encoders.queries(params, batch.query_tokens), targets)

    (_, (metrics, *fresh)), (gradient, row_gradient) = jax.value_and_grad(
        loss_fn, argnums=(0, 1), has_aux=True)(state.params, vectors)
    queries, positives, negatives = jax.lax.stop_gradient(fresh)
    metrics['gradient_norm'] = optax.tree.norm(gradient)
    updates, opt_state = optimizer.update(
        gradient, state.opt_state, state.params)

    # What the step saw of the memory's drift, before any row is overwritten:
    # draws, candidates, rows to refresh, anchors of the corrector, positives.
    corrector, table = state.corrector, state.table
    positive_rows = tables.rows_of(table, batch.target_ids)
    rows = jnp.concatenate(
        [proposal.rows.reshape(-1), probe_rows, positive_rows])
    fresh_rows = [negatives.reshape(-1, queries.shape[-1]), positives]
    if probe_rows.shape[0]:
      fresh_rows.insert(1, encoders.targets(state.params, probe_tokens))
    fresh_rows = jnp.concatenate(fresh_rows)
    num_drawn = num_queries * num_negatives
    num_refreshed = num_drawn + probe_rows.shape[0] - num_anchors
    if method.memory != 'none':
      stale = tables.take(table, rows)
      known = stale.ids >= 0
      metrics |= staleness(
          method.corrector, corrector, stale, fresh_rows,
          known.at[-num_queries:].set(False), state.step)  # not the positives
      corrector, corrector_metrics = method.corrector.update(
          corrector, types.Observation(
              stale=stale, fresh=fresh_rows, mask=known, queries=queries,
              scale=metrics['scale'], step=state.step))
      metrics |= corrector_metrics

    if method.targets.source == 'rows':
      table = tables.write(
          table, used_rows, descend(vectors, row_gradient, method.targets),
          state.step)
    if method.refresh.write_back:
      table = tables.write(
          table, rows[:num_drawn], fresh_rows[:num_drawn], state.step)
    if num_refreshed > num_drawn:
      chosen = slice(num_drawn, num_refreshed)
      table = tables.write(table, rows[chosen], fresh_rows[chosen], state.step)
    if method.refresh.push:
      table = tables.push(table, batch.target_ids, positives, state.step)
    return states.TrainState(
        step=state.step + 1, params=optax.apply_updates(state.params, updates),
        opt_state=opt_state, table=table, corrector=corrector,
        sampler=state.sampler), metrics

  # Outputs are pinned to the shardings of the inputs: a second step then finds
  # what the first one found and compiles nothing.
  replicated = sharding.replicated(mesh)

  def update_pinned(state, *arguments):
    new_state, metrics = update(state, *arguments)
    return jax.lax.with_sharding_constraint(
        new_state, state_shardings(new_state)), metrics

  def refreshed(state, table):
    corrector = state.corrector
    if method.corrector.reset_on_refresh:
      corrector = jax.jit(
          init_corrector, static_argnums=0, out_shardings=replicated)(
              table.embeddings.shape[1])
    return dataclasses.replace(state, table=table, corrector=corrector)

  return TrainStep(
      init_state,
      jax.jit(propose, out_shardings=(replicated,) * 4),
      jax.jit(update_pinned, donate_argnums=0), refreshed)


def with_candidates(proposal, candidates, table):
  """Returns the proposal with explicit candidates behind its draws.

  From here on they are treated as draws are: encoded, columns of the loss,
  written back where the memory holds them.

  Args:
    proposal: types.Proposal of K draws.
    candidates: types.Candidates, or None for the proposal itself.
    table: types.TargetTable.

  Returns:
    types.Proposal of K + n; the logits and log_q of candidates, which no
    sampler saw, are nan.
  """
  if candidates is None:
    return proposal
  unseen = jnp.full(candidates.ids.shape, jnp.nan)
  join = lambda *parts: jnp.concatenate(parts, axis=1)
  return dataclasses.replace(
      proposal,
      rows=join(proposal.rows, tables.rows_of(table, candidates.ids)),
      ids=join(proposal.ids, candidates.ids),
      logits=join(proposal.logits, unseen), log_q=join(proposal.log_q, unseen),
      mask=join(proposal.mask, candidates.ids >= 0))


def loss_of(method, queries, targets, scale, batch, proposal):
  """Returns the loss of a batch, and what the step needs besides.

  Args:
    method: a method.Method.
    queries: [B, D] float32.
    targets: [B + B * K, D] float32, of the positives, then of the draws and
      candidates of each query.
    scale: [] float32.
    batch: types.Batch.
    proposal: types.Proposal of the draws and candidates, K per query.

  Returns:
    loss: [] float32, the mean over the batch.
    (metrics, queries, positives [B, D], negatives [B, K, D]).
  """
  num_queries, num_negatives = proposal.rows.shape
  positives = targets[:num_queries]
  negatives = targets[num_queries:].reshape(
      num_queries, num_negatives, targets.shape[-1])
  positive = scale * jnp.einsum('bd,bd->b', queries, positives)
  columns = columns_lib.below(
      columns_lib.make(method.columns, queries, positives, negatives, batch,
                       proposal, scale),
      method.ceiling, positive, scale)
  surrogate, info = estimators.ESTIMATORS[method.estimator](
      positive, columns.logits, columns.mask, proposal)
  candidates = negatives[:, num_negatives - batch.num_candidates:]
  loss, of_teacher = method.distillation.mix(
      surrogate, positive,
      scale * jnp.einsum('bd,bnd->bn', queries, candidates), batch.candidates)
  info = {name: value.mean() for name, value in (info | of_teacher).items()}
  info |= columns_lib.breakdown(columns, batch.target_ids)
  info |= {'loss': loss.mean(), 'positive_logit': positive.mean(),
           'scale': scale}
  return loss.mean(), (info, queries, positives, negatives)


def distinct_rows(table, batch, proposal):
  """Returns the rows of the table that a step's loss reads, each once.

  Args:
    table: types.TargetTable of the whole corpus.
    batch: types.Batch.
    proposal: types.Proposal.

  Returns:
    rows: [B + B * K] int32, the distinct rows of the positives and the draws,
      then -1; -1 also stands for draws that are masked.
    place: [B + B * K] int32, where in `rows` each positive, then each draw is.
      A loss over `vectors[place]` gives a row that is used several times the
      sum of its gradients.
  """
  rows = jnp.concatenate(
      [tables.rows_of(table, batch.target_ids), proposal.rows.reshape(-1)])
  return jnp.unique(
      rows, size=rows.shape[0], fill_value=-1, return_inverse=True)


def descend(vectors, gradient, targets):
  """Returns rows after a step of plain SGD, g - eta dL/dg, [P, D] float32.

  L is the mean over the batch, as for all parameters. With
  `targets.normalize` the result is brought back to length one (ours).

  Args:
    vectors: [P, D] float32.
    gradient: [P, D] float32, dL/dg.
    targets: method.Targets.

  Source: direct gradients on cached targets, AAAI 2026.
  """
  moved = vectors - targets.row_learning_rate * gradient
  return dual_encoder.normalise(moved) if targets.normalize else moved


def staleness(corrector, state, stale, fresh, mask, step):
  """Returns the drift of the rows seen in a step, before and after correction.

  Args:
    corrector: a types.Corrector and its `state`.
    state: the corrector's state.
    stale: types.TargetTable slice of P rows.
    fresh: [P, D] float32, the same targets encoded now.
    mask: [P] bool.
    step: [] int32.

  Returns:
    'drift_before' and 'drift_after', the mean of |g' - g|^2 / |g|^2 and of the
    same with h(g'); 'age', in steps. All [] float32.
  """
  count = jnp.maximum(mask.sum(), 1)
  mean = lambda values: jnp.where(mask, values, 0.0).sum() / count
  return {
      'drift_before': mean(tables.drift(stale.embeddings, fresh)),
      'drift_after': mean(tables.drift(corrector.apply(state, stale), fresh)),
      'age': mean(tables.age(stale, step).astype(jnp.float32))}


def systematic_rows(key, capacity, num_rows):
  """Returns `num_rows` distinct rows, each row equally likely, [P] int32.

  Rows a, a + h, a + 2h, ... modulo M with h = floor(M / P) and a uniform: each
  row has probability P / M, independently from step to step, without sorting
  or permuting M rows (ours).
  """
  if not num_rows:
    return jnp.zeros([0], jnp.int32)
  start = jax.random.randint(key, (), 0, capacity)
  return (start + jnp.arange(num_rows, dtype=jnp.int32)
          * (capacity // num_rows)) % capacity
