"""One training step, the same for every method: propose, gather, update.

The batch and all fresh embeddings are sharded over mesh axis 'data' by query;
the table by row; parameters and optimizer as a `sharding.Layout` says;
everything else is replicated.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
import numpy as np
import optax

from retrieval_jax import base_params
from retrieval_jax import data
from retrieval_jax import keys
from retrieval_jax import method as methods
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.models import dual_encoder
from retrieval_jax.training import state as states


class Encoders(NamedTuple):
  """The model as the step sees it.

  Attributes:
    queries: (params, tokens [n, L]) -> [n, D] float32.
    targets: (params, tokens [n, L]) -> [n, D] float32.
    scale: params -> [] float32, beta.
    read: (params, rows [n, L]) -> [n, 2] as `types.Reader.read` says; None
      without a reader.
    read_fused: likewise; None unless it reads a question's passages together.
  """
  queries: types.Encode
  targets: types.Encode
  scale: Callable[[types.Params], jax.Array]
  read: types.Encode | None = None
  read_fused: types.Encode | None = None


class Draws(NamedTuple):
  """What `propose` chose, and whose tokens it asks for.

  Attributes:
    proposal: the sampler's draws, then the batch's candidates; K per query.
    refresh_rows: [P] int32, rows to re-encode; -1 fills up to a multiple of S.
    anchor_rows: [A] int32, rows to encode for the corrector, likewise.
    negative_ids: [B * K] int32, corpus ids of the proposal; [0] where nothing
      reads their tokens or texts.
    probe_ids: [P + A] int32, corpus ids of those rows, -1 for none.
    query_ids: [B] int32, of the batch, for a reader or a teacher's vectors;
      else [0].
    positive_ids: [B] int32, of the batch, for the latter; else [0].
  """
  proposal: types.Proposal
  refresh_rows: jax.Array
  anchor_rows: jax.Array
  negative_ids: jax.Array
  probe_ids: jax.Array
  query_ids: jax.Array
  positive_ids: jax.Array


class TrainStep(NamedTuple):
  """The functions of a step; see `make_train_step`.

  Attributes:
    init_state: (params, table) -> TrainState, sharded over the mesh. It takes
      over the table: do not use it afterwards.
    propose: (state, batch) -> Draws.
    update: (state, batch, draws, negative_tokens [B * K, L], probe_tokens
      [P + A, L], rows=None, teacher=None) -> (state, metrics). Donates the
      state. `rows` are [B * K, L'] of a reader: each query with each of its
      draws; `teacher` is the types.TeacherVectors of the same texts.
    refreshed: (state, table, embed_queries=, embed_targets=, known_positives=,
      pools=, compared=) -> state, with the table replaced by a new one of the
      present parameters, and corrector and sampler rebuilt; the rest is as of a
      types.Episode. A table that is None leaves that of the state and its
      corrector as they are.
  """
  init_state: Callable[..., states.TrainState]
  propose: Callable[..., Draws]
  update: Callable[..., tuple[states.TrainState, dict[str, jax.Array]]]
  refreshed: Callable[..., states.TrainState]


def make_train_step(
    encoders: Encoders, method: methods.Method,
    optimizer: optax.GradientTransformation, *, mesh: jax.sharding.Mesh,
    seed: int, layout: sharding.Layout | None = None,
    first_of_text: np.ndarray | None = None,
    sets: data.Sets | None = None) -> TrainStep:
  """Returns the functions that train `encoders` by `method`.

  A step is
    draws = propose(state, batch)
    negative_tokens, probe_tokens = tokens of draws.negative_ids, .probe_ids
    rows = of draws.query_ids and draws.negative_ids, where there is a reader
    teacher = vectors of draws.query_ids, draws.positive_ids and
        draws.proposal.ids, where the objective needs them
    state, metrics = update(
        state, batch, draws, negative_tokens, probe_tokens, rows, teacher)
  and is split there so that token arrays may live on the host. A sampler on the
  host, or one of rows on the host, runs between two compiled parts of
  `propose`; rows that a step observes are then gathered before `update`, and
  written after it.

  Args:
    encoders: the model.
    method: the point of the design space.
    optimizer: of the parameters.
    mesh: mesh with axis 'data'.
    seed: step t draws from keys.of_step(seed, t), so nothing random is part of
      the state.
    layout: of the parameters and of what the optimizer keeps of them, the one
      that `encoders` know; None replicates both.
    first_of_text: [N] int, which target stands for each in training, for a
      sampler that draws corpus ids, copies among them; None for itself.
    sets: of which each batch has one; its draws are of that set's targets
      alone. None where all targets may be drawn.
  """
  memory, sampler, objective = method.memory, method.sampler, method.objective
  layout = layout or sharding.Layout(mesh)
  scan = types.Scan(mesh, memory.chunk_rows)
  encodes_targets = method.targets.source == 'encoder'
  reads = method.reader is not None
  asks_for_tokens = encodes_targets or objective.reads_tokens or reads
  reads_teacher = 'teacher_vectors' in objective.needs
  has_own_params = bool(jax.tree.leaves(
      jax.eval_shape(objective.init, jax.random.key(0))))
  replicated = sharding.replicated(mesh)
  on_host = sampler.on_host or memory.on_host

  # --- What a sampler sees.

  def view_of(state, apply=method.corrector.apply):
    fold = None
    if method.corrector.folds:
      fold = jax.tree_util.Partial(method.corrector.fold, state.corrector)
    return types.View(
        table=state.table, scale=encoders.scale(state.params), scan=scan,
        correct=jax.tree_util.Partial(apply, state.corrector), fold=fold)

  def drawn_from(view, batch):
    """Returns the view of the targets that a batch may draw."""
    if sets is None:
      return view
    of_set = jnp.searchsorted(jnp.asarray(sets.query_starts, jnp.int32),
                              batch.query_ids[0], side='right') - 1
    starts = jnp.asarray(sets.corpus_starts, jnp.int32)
    return view._replace(table=tables.only(
        view.table, starts[of_set], starts[of_set + 1]))

  def request_of(state, batch):
    excluded = batch.known_positives
    if batch.candidates is not None:
      excluded = jnp.concatenate([excluded, batch.candidates.ids], axis=1)
    return types.Request(
        queries=encoders.queries(state.params, batch.query_tokens),
        query_ids=batch.query_ids,
        exclude_rows=memory.rows_of(state.table, excluded),
        exclude_ids=excluded,
        positive_rows=memory.rows_of(state.table, batch.target_ids),
        step=state.step)

  # --- The initial state, and what a refresh rebuilds.

  def init_state(params, table):
    if has_own_params:
      params = {**params,
                'objective': objective.init(keys.of_phase(seed, 'objective'))}

    def first_corrector(table):
      return method.corrector.init(keys.of_phase(seed, 'corrector'), table)

    def build(params, table):
      state = states.TrainState(
          step=jnp.zeros([], jnp.int32), params=params,
          opt_state=optimizer.init(base_params.split(params)[0]),
          table=table, sampler=(),
          corrector=() if memory.on_host else first_corrector(table))
      if not on_host:
        state = dataclasses.replace(state, sampler=sampler.init(
            keys.of_phase(seed, 'sampler'), view_of(state)))
      return dataclasses.replace(state, table=None)  # it is not to be copied

    # Parameters are placed first: a device that is to hold a shard of one never
    # holds it whole.
    params = sharding.put(params, layout.shardings(params))
    on_devices = None if memory.on_host else table
    shape = jax.eval_shape(build, params, on_devices)
    state = dataclasses.replace(
        jax.jit(build, out_shardings=state_shardings(shape))(
            params, on_devices), table=table)
    if memory.on_host:
      state = dataclasses.replace(state, corrector=jax.device_put(
          first_corrector(table), replicated))
    if on_host:
      state = dataclasses.replace(state, sampler=sampler.init(
          keys.of_phase(seed, 'sampler'), view_of(state, correct_on_host)))
    return state

  def state_shardings(state):
    return dataclasses.replace(
        sharding.state_shardings(state, mesh),
        params=layout.shardings(state.params),
        opt_state=layout.shardings(state.opt_state))

  def refreshed(state, table, *, embed_queries=None, embed_targets=None,
                known_positives=None, pools=None, compared=None):
    step = int(state.step)
    key = keys.of_rebuild(seed, step)
    corrector_key = keys.of_phase(seed, 'corrector')
    if table is not None:
      if memory.on_host:
        corrector = jax.device_put(method.corrector.rebuild(
            state.corrector, corrector_key, table), replicated)
      else:
        corrector = jax.jit(
            lambda corrector, table: method.corrector.rebuild(
                corrector, corrector_key, table), out_shardings=replicated)(
                    state.corrector, table)
      state = dataclasses.replace(state, table=table, corrector=corrector)
    return dataclasses.replace(state, sampler=sampler.rebuild(
        state.sampler, key, types.Episode(
            step, view_of(state, correct_on_host), embed_queries,
            embed_targets, known_positives, pools, compared)))

  # --- Propose.

  def propose(state, batch):
    request = request_of(state, batch)
    view = drawn_from(view_of(state), batch)
    draw_key, _ = step_keys(state)
    return complete(state, batch, sampler.propose(
        state.sampler, draw_key, request, view))

  def step_keys(state):
    return jax.random.split(keys.of_step(seed, state.step))

  def complete(state, batch, proposal):
    """Returns Draws: adds the candidates, and the rows to encode besides."""
    table = state.table
    if not sampler.draws_from_memory:
      if first_of_text is not None:
        ids = jnp.asarray(first_of_text)[proposal.ids]
        mask = proposal.mask & ~jnp.any(
            ids[:, :, None] == batch.known_positives[:, None, :], axis=-1)
        proposal = dataclasses.replace(
            proposal, ids=jnp.where(mask, ids, -1), mask=mask)
      rows = memory.rows_of(table, proposal.ids)
      proposal = dataclasses.replace(
          proposal, rows=jnp.where(proposal.mask, rows, -1))
    candidates = batch.candidates
    proposal = with_candidates(
        proposal, candidates,
        None if candidates is None else memory.rows_of(table, candidates.ids))
    refresh_key, anchor_key = jax.random.split(step_keys(state)[1])
    refresh_rows = padded(tables.systematic_rows(
        refresh_key, table, method.refresh.num_rows(memory.num_slots)))
    anchor_rows = padded(method.corrector.anchor_rows(
        state.corrector, anchor_key, table, state.step))
    return Draws(
        proposal, refresh_rows, anchor_rows,
        proposal.ids.reshape(-1)[:None if asks_for_tokens else 0],
        tables.ids_of(table, jnp.concatenate([refresh_rows, anchor_rows])),
        batch.query_ids[:None if reads or reads_teacher else 0],
        batch.target_ids[:None if reads_teacher else 0])

  def padded(rows):
    missing = -len(rows) % sharding.num_shards(mesh)
    return jnp.pad(rows, (0, missing), constant_values=-1)

  # --- Update.

  def update(state, batch, draws, negative_tokens, probe_tokens, rows=None,
             teacher=None, *, stale=None):
    """Returns (state, metrics, what the step observed of the memory).

    `stale` is the slice of the observed rows, of rows on the host; these are
    not written here.
    """
    proposal = draws.proposal
    num_queries, num_negatives = proposal.rows.shape
    num_positives = num_queries if method.has_positives else 0
    target_ids = batch.target_ids[:num_positives]
    positive_rows = memory.rows_of(state.table, target_ids)
    used_rows = vectors = None
    if not encodes_targets:
      used_rows, place = distinct_rows(positive_rows, proposal)
      vectors = memory.take(state.table, used_rows).embeddings.astype(
          jnp.float32)

    trained, base = base_params.split(state.params)

    def encode(trained, vectors):
      params = base_params.join(trained, base)
      if encodes_targets:
        targets = encoders.targets(params, jnp.concatenate(
            [batch.target_tokens, negative_tokens])
                                   if num_positives else negative_tokens)
      else:
        targets = vectors[place]
      scale = encoders.scale(params)
      queries = encoders.queries(params, batch.query_tokens)
      return types.Fresh(
          queries=queries, positives=targets[:num_positives],
          negatives=targets[num_positives:].reshape(
              num_queries, num_negatives, targets.shape[-1]), scale=scale,
          read=read_each(params), fused=read_together(params))

    def read_each(params):
      if encoders.read is None:
        return None
      if encoders.read_fused is not None:  # which trains the reader
        params = jax.lax.stop_gradient(params)
      return encoders.read(params, rows).reshape(num_queries, num_negatives, 2)

    def read_together(params):
      if encoders.read_fused is None:
        return None
      return encoders.read_fused(params, rows.reshape(num_queries, -1))[:, 0]

    def mean_loss(own, fresh):
      if objective.reads_tokens:
        fresh = fresh._replace(negative_tokens=negative_tokens.reshape(
            num_queries, num_negatives, negative_tokens.shape[-1]))
      fresh = fresh._replace(teacher=teacher)
      loss, info = objective(own, fresh, batch, proposal)
      return loss.mean(), info

    # The loss is one of embeddings, whose gradient the encoders pull back.
    fresh, pull_back = jax.vjp(encode, trained, vectors)
    own = state.params['objective'] if has_own_params else {}
    (loss, info), (own_gradient, of_fresh) = jax.value_and_grad(
        mean_loss, argnums=(0, 1), has_aux=True)(own, fresh)
    gradient, row_gradient = pull_back(of_fresh)
    if has_own_params:
      gradient = {**gradient, 'objective': own_gradient}
    updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
    metrics = {**info, **proposal.metrics, 'loss': loss, 'scale': fresh.scale,
               'gradient_norm': optax.tree.norm(gradient)}

    # What the step saw of the memory's drift, before any row is overwritten.
    probe_rows = jnp.concatenate([draws.refresh_rows, draws.anchor_rows])
    num_refreshed = len(draws.refresh_rows)
    probes = jnp.zeros((0, fresh.queries.shape[-1]))
    if len(probe_rows):
      probes = encoders.targets(state.params, probe_tokens)
    encoded = types.Encoded(
        drawn=types.EncodedRows(
            proposal.rows.reshape(-1),
            fresh.negatives.reshape(-1, fresh.negatives.shape[-1])),
        refreshed=types.EncodedRows(draws.refresh_rows, probes[:num_refreshed]),
        anchors=types.EncodedRows(draws.anchor_rows, probes[num_refreshed:]),
        positives=types.EncodedRows(positive_rows, fresh.positives))
    observation = observed(state, encoded, fresh, stale)
    corrector, table = state.corrector, state.table
    if memory.num_slots:
      metrics |= staleness(
          method.corrector, corrector, observation.stale, observation.fresh,
          observation.mask & (jnp.arange(len(observation.mask))
                              < len(observation.mask) - num_positives),
          state.step)
      corrector, of_corrector = method.corrector.update(corrector, observation)
      metrics |= of_corrector

    # Then the writes: what was trained, encoded for the loss, re-encoded, and
    # last the positives, which take the oldest rows of a ring. Rows on the host
    # are written there, from the observation, in the same order.
    if not memory.on_host:
      read = functools.partial(tables.after, slices=observation.stale)
      write = lambda table, rows, fresh: memory.write(
          table, read(rows), fresh, state.step)
      if method.targets.source == 'rows':
        table = write(table, used_rows, descend(
            vectors, row_gradient, method.targets))
      if method.refresh.write_back:
        table = write(table, *encoded.drawn)
      if num_refreshed:
        table = write(table, *encoded.refreshed)
      if method.refresh.push:
        table = memory.push(
            table, read(target_ids), encoded.positives.fresh, state.step)
    params = base_params.join(optax.apply_updates(trained, updates), base)
    return states.TrainState(
        step=state.step + 1, params=params, opt_state=opt_state, table=table,
        corrector=corrector, sampler=state.sampler), metrics, observation

  def observed(state, encoded, fresh, stale):
    rows, embeddings = (jnp.concatenate(parts) for parts in zip(*encoded))
    if stale is None:
      stale = memory.take(state.table, rows)
    none = lambda rows: jnp.full_like(rows, -1)
    written_rows = jnp.concatenate([
        rows if is_written else none(rows) for rows, is_written in (
            (encoded.drawn.rows, method.refresh.write_back),
            (encoded.refreshed.rows, True), (encoded.anchors.rows, False),
            (encoded.positives.rows, method.refresh.push))])
    return types.Observation(
        stale=stale, fresh=jax.lax.stop_gradient(embeddings),
        mask=stale.ids >= 0, queries=fresh.queries, scale=fresh.scale,
        step=state.step, written_rows=written_rows)

  # Outputs are pinned to the shardings of the inputs: a second step then finds
  # what the first one found and compiles nothing.
  def pinned(state):
    return jax.lax.with_sharding_constraint(state, state_shardings(state))

  def update_on_device(state, *arguments):
    new, metrics, observation = update(state, *arguments)
    sampler_state, of_sampler = sampler.update(state.sampler, observation)
    new = dataclasses.replace(new, sampler=sampler_state)
    return pinned(new), {**metrics, **of_sampler}

  if not on_host:
    correct_on_host = method.corrector.apply
    return TrainStep(
        init_state, jax.jit(propose, out_shardings=replicated),
        jax.jit(update_on_device, donate_argnums=0), refreshed)

  # --- The same around a sampler or rows on the host, which no jit sees.

  correct_on_host = jax.jit(method.corrector.apply)

  def bare(state):
    """Returns the state without what is on the host, and what is known of it.

    The latter is not to be donated, so it is no part of the former.
    """
    table, outline = state.table, None
    if memory.on_host:
      table, outline = None, table.outline
    return dataclasses.replace(state, table=table, sampler=()), outline

  def whole(state, outline):
    if not memory.on_host:
      return state
    return dataclasses.replace(state, table=outline)

  def request_and_key(state, outline, batch):
    state = whole(state, outline)
    return request_of(state, batch), step_keys(state)[0]

  def complete_on_host(state, outline, *arguments):
    return complete(whole(state, outline), *arguments)

  def update_and_observe(state, outline, stale, *arguments):
    new, metrics, observation = update(
        whole(state, outline), *arguments, stale=stale)
    if memory.on_host:
      new = dataclasses.replace(new, table=None)
    return pinned(new), metrics, jax.lax.with_sharding_constraint(
        observation, replicated)

  request_jit = jax.jit(request_and_key, out_shardings=replicated)
  complete_jit = jax.jit(complete_on_host, out_shardings=replicated)
  update_jit = jax.jit(update_and_observe, donate_argnums=0)

  def propose_on_host(state, batch):
    with jax.transfer_guard('allow'):  # moving arrays is what it does
      known = bare(state)
      request, key = request_jit(*known, batch)
      proposal = sampler.propose(
          state.sampler, key, request, view_of(state, correct_on_host))
      proposal = jax.device_put(proposal, replicated)
    return complete_jit(*known, batch, proposal)

  def update_on_host(state, batch, draws, *tokens):
    with jax.transfer_guard('allow'):
      known, table, stale = bare(state), state.table, None
      if memory.on_host:
        target_ids = batch.target_ids if method.has_positives else ()
        stale = table.take(np.concatenate([
            np.asarray(rows, np.int32).reshape(-1) for rows in (
                draws.proposal.rows, draws.refresh_rows, draws.anchor_rows,
                table.rows_of(target_ids))]), replicated)
    new, metrics, observation = update_jit(
        *known, stale, batch, draws, *tokens)
    with jax.transfer_guard('allow'):
      sampler_state, of_sampler = sampler.update(state.sampler, observation)
      of_sampler = jax.device_put(dict(of_sampler), replicated)
      if memory.on_host:
        table.write(observation.written_rows, observation.fresh,
                    observation.step)
        new = dataclasses.replace(new, table=table)
    return (dataclasses.replace(new, sampler=sampler_state),
            {**metrics, **of_sampler})

  return TrainStep(init_state, propose_on_host, update_on_host, refreshed)


def with_candidates(proposal: types.Proposal,
                    candidates: types.Candidates | None, rows: jax.Array | None
                    ) -> types.Proposal:
  """Returns the proposal with explicit candidates behind its draws.

  From here on they are treated as draws are: encoded, columns of the loss,
  written back where the memory holds them.

  Args:
    proposal: K draws.
    candidates: None for the proposal itself.
    rows: [B, n] int32, where the memory has them, -1 where it does not.

  Returns:
    K + n of them; the logits and log_q of candidates, which no sampler saw, are
    nan.
  """
  if candidates is None:
    return proposal
  unseen = jnp.full(candidates.ids.shape, jnp.nan)
  join = lambda *parts: jnp.concatenate(parts, axis=1)
  return dataclasses.replace(
      proposal,
      rows=join(proposal.rows, rows),
      ids=join(proposal.ids, candidates.ids),
      logits=join(proposal.logits, unseen), log_q=join(proposal.log_q, unseen),
      mask=join(proposal.mask, candidates.ids >= 0))


def distinct_rows(positive_rows: jax.Array, proposal: types.Proposal
                  ) -> tuple[jax.Array, jax.Array]:
  """Returns the rows of the table that a step's loss reads, each once.

  Args:
    positive_rows: [B] int32.
    proposal: the draws, K per query.

  Returns:
    rows: [B + B * K] int32, the distinct rows of the positives and the draws,
      then -1; -1 also stands for draws that are masked.
    place: [B + B * K] int32, where in `rows` each positive, then each draw is.
      A loss over `vectors[place]` gives a row that is used several times the
      sum of its gradients.
  """
  rows = jnp.concatenate([positive_rows, proposal.rows.reshape(-1)])
  return jnp.unique(
      rows, size=rows.shape[0], fill_value=-1, return_inverse=True)


def descend(vectors: jax.Array, gradient: jax.Array, targets: methods.Targets
            ) -> jax.Array:
  """Returns rows after a step of plain SGD, g - eta dL/dg, [P, D] float32.

  L is the mean over the batch, as for all parameters. With
  `targets.normalize` the result is brought back to length one (ours).

  Args:
    vectors: [P, D] float32.
    gradient: [P, D] float32, dL/dg.
    targets: with the rate.

  Source: direct gradients on cached targets, AAAI 2026.
  """
  assert targets.row_learning_rate is not None  # of source 'rows'
  moved = vectors - targets.row_learning_rate * gradient
  return dual_encoder.normalise(moved) if targets.normalize else moved


def staleness(corrector: types.Corrector, state: Any,
              stale: types.TargetTable, fresh: jax.Array, mask: jax.Array,
              step: jax.Array) -> dict[str, jax.Array]:
  """Returns the drift of the rows seen in a step, before and after correction.

  Args:
    corrector: of the run.
    state: the corrector's.
    stale: slice of P rows.
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
