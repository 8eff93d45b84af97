"""How good the remembered distribution is, against brute force.

Nothing here is cheap: all N targets have to be encoded afresh first. It is run
on a probe batch, now and then, to see what staleness does and what a corrector
makes up for.
"""

from collections.abc import Iterator, Sequence
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import sharding
from retrieval_jax import types

_TINY = 1e-30


def sample_queries(query_ids: Sequence[str], num_queries: int) -> np.ndarray:
  """Returns which queries to look at, [n] int, n at most `num_queries`.

  Those whose ids have the smallest hashes: a sample that is the same in every
  look and every run, and does not depend on the order of the queries, which
  many data sets sort by kind.

  Args:
    query_ids: of all queries to choose from.
    num_queries: how many to choose.
  """
  digests = [hashlib.blake2b(name.encode(), digest_size=8).digest()
             for name in query_ids]
  order = sorted(range(len(digests)), key=lambda i: (digests[i], query_ids[i]))
  return np.sort(np.array(order[:num_queries], np.int64))


def approximation(queries: jax.Array | np.ndarray, fresh: np.ndarray,
                  view: types.View, *,
                  known_positives: np.ndarray | None = None,
                  positive_ids: np.ndarray | None = None,
                  proposal: types.Proposal | None = None,
                  copies: np.ndarray | None = None, k: int = 100,
                  mesh: jax.sharding.Mesh | None = None,
                  chunk_rows: int = 16384) -> dict[str, float]:
  """Compares the softmax over remembered targets with the one over fresh ones.

  For query x with embedding q, over the targets y that are not excluded,

    s(y) = beta <q, g(y)>         P(y)     = exp(s(y)) / Z
    s'(y) = beta <q, h(g'(y))>    P_hat(y) = exp(s'(y)) / Z_hat

  with g fresh, g' remembered and h the corrector; P_hat is 0 for a target that
  is not remembered (a ring), R is the set of those that are. The gradient of
  the full softmax loss -log P(y+ | x) with respect to q, and its estimate by
  drawing from P_hat and encoding what was drawn are

    exact     = beta (1 - p+)     (E_P[g]     - g(y+))
    estimated = beta (1 - p_hat+) (E_P_hat[g] - g(y+))

  with p+ = sigmoid(s(y+) - log Z) and p_hat+ = sigmoid(s(y+) - log Z_hat).
  Without `positive_ids` they are beta E_P[g] and beta E_P_hat[g], the part of
  the gradient that the negatives contribute.

  Two bounds hold, with eps = max_y |s'(y) - s(y)| and everything remembered:
  tv <= tanh(eps / 2) and kl <= eps^2 / 2. Without `positive_ids`,
  gradient_bias <= 2 tv beta max_y ||g(y)||; with them,
  gradient_bias <= 2 tanh(eps / 2) beta max_y ||g(y)||.

  Both passes over the targets go in chunks: at no time does more than
  [B, chunk_rows] of the scores exist.

  Args:
    queries: [B, D] float32, fresh query embeddings.
    fresh: [N, D] float, fresh embeddings of all targets, in corpus order; may
      be a memory-mapped array.
    view: the memory as the sampler sees it.
    known_positives: [B, E] int, corpus ids left out of both distributions,
      padded with -1 (`Batch.known_positives`).
    positive_ids: [B] int, corpus ids of the true targets; they should be among
      the known positives.
    proposal: a draw made for the same queries and view; adds the 'draw_' keys.
    copies: [c] int, corpus ids left out of both distributions for all queries:
      a memory holds a text once.
    k: size of the compared top lists (at most N of them).
    mesh: spreads each chunk of fresh embeddings over axis 'data'; needed when
      `view` is committed to more than one device.
    chunk_rows: targets scored at a time; a multiple of the mesh's size.

  Returns:
    Means over the B queries, as Python floats:
      tv: 1/2 sum_y |P(y) - P_hat(y)|, over all targets.
      kl: KL(P(. | R) || P_hat); plain KL(P || P_hat) if all are remembered.
      coverage: P(R), 1 if all targets are remembered.
      top_k_overlap: share of the k best targets under s that are among the k
        best under s'.
      log_z_error: |log Z_hat - log Z|.
      gradient_cosine: cosine between estimated and exact.
      gradient_bias: ||estimated - exact||.
      gradient_bias_relative: mean gradient_bias / mean ||exact||.
      drift_before, drift_after: mean over remembered targets of
        ||v - g||^2 / ||g||^2 with v = g' and v = h(g').
    With `proposal`:
      draw_mass: P of the drawn rows together.
      draw_overlap: share of the drawn rows that are among the k best under s.
      draw_log_z_error: |proposal.log_z - log Z|; nan if it has none.
    With `proposal` and `positive_ids`:
      draw_gradient_cosine: cosine between exact and the gradient of the
        softmax truncated to y+ and the drawn rows.

  Raises:
    ValueError: for shapes that do not fit, nothing remembered, or a table that
      remembers ids beyond N.

  Source: the corrected softmax is that of Monath et al., ICML 2024; the
    (1 - p+) form of the gradient that of Lindgren et al., NeurIPS 2021. The
    bounds and the choice of numbers are ours.
  """
  arguments: dict[str, tuple[Any, str]] = {
      'queries': (queries, 'B D'), 'fresh': (fresh, 'N D'),
      'table.embeddings': (view.table.embeddings, 'M D')}
  if known_positives is not None:
    arguments['known_positives'] = (known_positives, 'B E')
  if positive_ids is not None:
    arguments['positive_ids'] = (positive_ids, 'B')
  if proposal is not None:
    arguments['proposal.ids'] = (proposal.ids, 'B K')
  sizes = types.check_shapes(arguments)
  num_queries, num_targets = sizes['B'], sizes['N']
  num_devices = 1 if mesh is None else mesh.size
  if chunk_rows % num_devices or chunk_rows < 1:
    raise ValueError(
        f'Expected chunk_rows to be a positive multiple of the '
        f'{num_devices} devices of the mesh, got {chunk_rows}; try '
        f'{-(-max(chunk_rows, 1) // num_devices) * num_devices}.')
  # The probe moves numbers between host and device on purpose, whatever guard
  # the training loop has set.
  with jax.transfer_guard('allow'):
    if known_positives is None:
      known_positives = np.full((num_queries, 1), -1, np.int32)
    probe = _Probe(queries, fresh, view, np.asarray(known_positives), copies,
                   mesh,
                   _shrink(chunk_rows, num_targets, num_devices),
                   min(k, num_targets))
    first = probe.first_pass()
    second = probe.second_pass(first)
    return _summary(probe, first, second, positive_ids, proposal)


def _shrink(chunk_rows: int, num_targets: int, num_devices: int) -> int:
  """Returns the chunk size, no larger than the corpus needs."""
  return min(chunk_rows, -(-num_targets // num_devices) * num_devices)


def fit_to_all(corrector: types.Corrector, table: types.TargetTable,
               fresh: np.ndarray, *, num_steps: int, num_rows: int = 4096,
               seed: int = 0) -> Any:
  """Returns the state of a corrector fitted to fresh embeddings of all targets.

  No run can afford this. It bounds what a corrector of this kind can get out of
  the remembered rows; the rest of the error is beyond it (ours).

  Args:
    corrector: whose `update` looks at rows only, not at queries.
    table: the memory; live rows are drawn uniformly.
    fresh: [N, D] float, fresh embeddings of all targets, in corpus order.
    num_steps: updates.
    num_rows: rows that each of them sees.
    seed: of the draws and of the corrector's first state.
  """
  rng = np.random.default_rng(seed)
  ids = sharding.fetch(table.ids)
  live = np.flatnonzero(ids >= 0)
  dim = table.embeddings.shape[1]
  update = jax.jit(corrector.update)
  with jax.transfer_guard('allow'):
    state = corrector.init(jax.random.key(seed), table)
    for step in range(num_steps):
      rows = rng.choice(live, num_rows).astype(np.int32)
      state, _ = update(state, types.Observation(
          stale=_take(table, rows),
          fresh=jnp.asarray(fresh[ids[rows]], jnp.float32),
          mask=jnp.ones(num_rows, bool), queries=jnp.zeros((1, dim)),
          scale=jnp.float32(1.0), step=jnp.int32(step)))
  return state


class _Probe:
  """The arrays that both passes go over, chunk by chunk."""

  def __init__(self, queries, fresh, view, known_positives, copies, mesh,
               chunk_rows, k):
    self.fresh, self.view, self.mesh = fresh, view, mesh
    self.chunk_rows, self.k = chunk_rows, k
    self.queries = self._everywhere(np.asarray(queries, np.float32))
    self.scale = self._everywhere(np.asarray(view.scale, np.float32))
    self.known_positives = self._everywhere(known_positives.astype(np.int32))
    self.ids = np.arange(len(fresh), dtype=np.int32)
    self.row_of_id = _rows_of_all_ids(
        sharding.fetch(view.table.ids), len(fresh))
    if copies is not None:
      self.ids[copies] = self.row_of_id[copies] = -1

  def _everywhere(self, array):
    return self._put(array, jax.sharding.PartitionSpec())

  def _put(self, array, spec):
    if self.mesh is None:
      return jax.device_put(array)  # uncommitted: follows the table
    return sharding.put(
        array, jax.sharding.NamedSharding(self.mesh, spec))

  def _chunks(self) -> Iterator[tuple[jax.Array, ...]]:
    """Yields ids [C], fresh [C, D], stale [C, D], moved [C, D], live [C].

    Ids of padding and copies are -1; `live` says which targets are remembered.
    """
    rows_spec = jax.sharding.PartitionSpec('data')
    for start in range(0, len(self.fresh), self.chunk_rows):
      stop = min(start + self.chunk_rows, len(self.fresh))
      padding = self.chunk_rows - (stop - start)
      ids = np.pad(self.ids[start:stop], (0, padding), constant_values=-1)
      fresh = np.pad(np.asarray(self.fresh[start:stop], np.float32),
                     ((0, padding), (0, 0)))
      rows = np.pad(self.row_of_id[start:stop], (0, padding),
                    constant_values=-1)
      stale = _take(self.view.table, self._put(rows, rows_spec))
      moved = self.view.correct(stale)
      yield (self._put(ids, rows_spec), self._put(fresh, rows_spec),
             stale.embeddings, moved, self._put(rows >= 0, rows_spec))

  def first_pass(self) -> dict[str, np.ndarray]:
    """Returns partition functions, top lists and drift."""
    num_queries = self.queries.shape[0]
    shape = (num_queries, self.k)
    carry = {
        name: self._everywhere(np.full(*full)) for name, full in {
            'log_z': (num_queries, -np.inf, np.float32),
            'log_z_live': (num_queries, -np.inf, np.float32),
            'log_z_hat': (num_queries, -np.inf, np.float32),
            'best': (shape, -np.inf, np.float32),
            'best_ids': (shape, -1, np.int32),
            'best_hat': (shape, -np.inf, np.float32),
            'best_ids_hat': (shape, -1, np.int32)}.items()}
    drift = []
    for chunk in self._chunks():
      carry, of_chunk = _accumulate_partition(
          carry, self.queries, self.scale, self.known_positives, *chunk)
      drift.append(jax.device_get(of_chunk))  # also keeps one chunk in flight
    totals = np.sum(np.asarray(drift, np.float64), axis=0)
    return jax.device_get(carry) | {'drift': totals[:2] / totals[2]}

  def second_pass(self, first: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns sums over all targets that need the partition functions."""
    log_z, log_z_live, log_z_hat = (
        self._everywhere(first[name])
        for name in ('log_z', 'log_z_live', 'log_z_hat'))
    totals: dict[str, np.ndarray] = {}
    for chunk in self._chunks():
      sums = jax.device_get(_sums_given_partition(
          self.queries, self.scale, self.known_positives, log_z, log_z_live,
          log_z_hat, *chunk))
      for name, value in sums.items():
        totals[name] = totals.get(name, 0) + np.asarray(value, np.float64)
    return totals


def _rows_of_all_ids(ids: np.ndarray, num_targets: int) -> np.ndarray:
  """Returns [N] int32, the table row that remembers each target, or -1."""
  live = np.flatnonzero(ids >= 0)
  if not len(live):
    raise ValueError(
        'Expected a table that remembers at least one target, got an empty '
        'one; compare after the first push or after filling the table.')
  if ids.max() >= num_targets:
    raise ValueError(
        f'Expected ids below N={num_targets}, the number of fresh embeddings, '
        f'but the table remembers id {ids.max()}; embed the whole corpus.')
  rows = np.full(num_targets, -1, np.int32)
  rows[ids[live]] = live
  return rows


@jax.jit
def _take(table: types.TargetTable, rows: jax.Array) -> types.TargetTable:
  """Returns the slice of the table at rows [C]; -1 gives an empty row."""
  at = jnp.maximum(rows, 0)
  return types.TargetTable(
      embeddings=table.embeddings[at],
      ids=jnp.where(rows < 0, -1, table.ids[at]), written=table.written[at],
      rows_are_ids=False)


def _logits(queries, scale, known_positives, ids, embeddings, live):
  """Returns [B, C] float32 logits, -inf where a target does not count."""
  scores = jnp.einsum('bd,cd->bc', queries, embeddings.astype(jnp.float32),
                      preferred_element_type=jnp.float32,
                      precision=jax.lax.Precision.HIGHEST)
  # One column at a time: [B, E, C] would be E times the score matrix.
  excluded = jax.lax.fori_loop(
      0, known_positives.shape[1],
      lambda e, so_far: so_far | (
          jax.lax.dynamic_slice_in_dim(known_positives, e, 1, axis=1)
          == ids[None, :]),
      jnp.zeros(scores.shape, bool))
  return jnp.where(excluded | ~live[None, :], -jnp.inf, scale * scores)


def _merge_top(best, best_ids, logits, ids):
  """Returns the running top list after one more chunk."""
  k = best.shape[1]
  some, at = jax.lax.top_k(logits, min(k, logits.shape[1]))
  both = jnp.concatenate([best, some], axis=1)
  both_ids = jnp.concatenate(
      [best_ids, jnp.where(jnp.isneginf(some), -1, ids[at])], axis=1)
  top, at = jax.lax.top_k(both, k)
  return top, jnp.take_along_axis(both_ids, at, axis=1)


@functools.partial(jax.jit, donate_argnums=0)
def _accumulate_partition(carry, queries, scale, known_positives, ids, fresh,
                          stale, moved, live):
  """Returns the carry after one chunk, and [3]: drift sums and their count."""
  mask = functools.partial(_logits, queries, scale, known_positives, ids)
  exact = mask(fresh, ids >= 0)
  exact_live = jnp.where(live[None, :], exact, -jnp.inf)
  approximate = mask(moved, live)
  best, best_ids = _merge_top(carry['best'], carry['best_ids'], exact, ids)
  best_hat, best_ids_hat = _merge_top(
      carry['best_hat'], carry['best_ids_hat'], approximate, ids)
  add = lambda log_z, logits: jnp.logaddexp(
      log_z, jax.nn.logsumexp(logits, axis=1))
  norm = jnp.maximum(jnp.sum(fresh**2, axis=1), _TINY)
  drift = lambda vectors: jnp.sum(jnp.where(live, jnp.sum(
      (vectors.astype(jnp.float32) - fresh)**2, axis=1) / norm, 0))
  return {
      'log_z': add(carry['log_z'], exact),
      'log_z_live': add(carry['log_z_live'], exact_live),
      'log_z_hat': add(carry['log_z_hat'], approximate),
      'best': best, 'best_ids': best_ids,
      'best_hat': best_hat, 'best_ids_hat': best_ids_hat,
  }, jnp.stack([drift(stale), drift(moved), live.sum().astype(jnp.float32)])


@jax.jit
def _sums_given_partition(queries, scale, known_positives, log_z, log_z_live,
                          log_z_hat, ids, fresh, stale, moved, live):
  """Returns one chunk's share of every sum that needs normalised weights."""
  del stale  # its drift is known by now
  mask = functools.partial(_logits, queries, scale, known_positives, ids)
  exact = mask(fresh, ids >= 0)
  approximate = mask(moved, live)
  p = jnp.exp(exact - log_z[:, None])
  p_hat = jnp.exp(approximate - log_z_hat[:, None])
  log_p = exact - log_z_live[:, None]
  log_p_hat = approximate - log_z_hat[:, None]
  both = jnp.isfinite(log_p) & jnp.isfinite(log_p_hat)
  # sum of p (log p - log p_hat) - p + p_hat: the same total, as the last two
  # sum to 1 each, but every term is >= 0, so rounding cannot make it negative.
  ratio = jnp.where(both, log_p - log_p_hat, 0)
  p_live = jnp.where(both, jnp.exp(log_p), 0)
  expect = lambda weights: jnp.einsum(
      'bc,cd->bd', weights, fresh, preferred_element_type=jnp.float32,
      precision=jax.lax.Precision.HIGHEST)
  return {
      'tv': 0.5 * jnp.sum(jnp.abs(p - p_hat), axis=1),
      'kl': jnp.sum(p_live * (ratio + jnp.expm1(-ratio)), axis=1),
      'coverage': jnp.sum(jnp.where(live[None, :], p, 0), axis=1),
      'mean': expect(p), 'mean_hat': expect(p_hat),
  }


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns [B] cosines; two zero vectors agree."""
  norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  equal = np.all(a == b, axis=1)
  return np.where(equal, 1., np.sum(a * b, axis=1) / np.maximum(norms, _TINY))


def _overlap(lists: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Returns [B], the share of the ids in `lists` that occur in `others`."""
  shares = []
  for ids, among in zip(lists, others):
    ids = ids[ids >= 0]
    shares.append(np.isin(ids, among).mean() if len(ids) else np.nan)
  return np.array(shares)


def _summary(probe: _Probe, first: dict[str, np.ndarray],
             second: dict[str, np.ndarray], positive_ids: np.ndarray | None,
             proposal: types.Proposal | None) -> dict[str, float]:
  """Returns the means that `approximation` documents."""
  queries = np.asarray(probe.queries, np.float64)
  scale = float(probe.scale)
  log_z = np.asarray(first['log_z'], np.float64)
  log_z_hat = np.asarray(first['log_z_hat'], np.float64)
  exact, estimated = scale * second['mean'], scale * second['mean_hat']
  if positive_ids is not None:
    positives = np.asarray(
        probe.fresh[np.asarray(positive_ids)], np.float64)  # [B, D]
    logits = scale * np.sum(queries * positives, axis=1)
    exact, estimated = (
        _sigmoid(log_total - logits)[:, None] * (gradient - scale * positives)
        for log_total, gradient in ((log_z, exact), (log_z_hat, estimated)))
  bias = np.linalg.norm(estimated - exact, axis=1)
  values = {
      'tv': second['tv'],
      'kl': second['kl'],
      'coverage': second['coverage'],
      'top_k_overlap': _overlap(first['best_ids'], first['best_ids_hat']),
      'log_z_error': np.abs(log_z_hat - log_z),
      'gradient_cosine': _cosine(estimated, exact),
      'gradient_bias': bias,
      'gradient_bias_relative': np.mean(bias) / max(
          np.mean(np.linalg.norm(exact, axis=1)), _TINY),
      'drift_before': first['drift'][0],
      'drift_after': first['drift'][1],
  }
  if proposal is not None:
    values |= _of_draw(probe, first, positive_ids, exact, proposal)
  return {name: float(np.mean(value)) for name, value in values.items()}


def _of_draw(probe: _Probe, first: dict[str, np.ndarray],
             positive_ids: np.ndarray | None, exact: np.ndarray,
             proposal: types.Proposal) -> dict[str, np.ndarray]:
  """Returns what one draw, not the distribution, makes of the softmax."""
  mask = np.asarray(proposal.mask)
  ids = np.where(mask, np.asarray(proposal.ids), -1)  # [B, K]
  drawn = np.asarray(probe.fresh[np.maximum(ids, 0)], np.float64)  # [B, K, D]
  queries = np.asarray(probe.queries, np.float64)
  scale = float(probe.scale)
  logits = np.where(
      mask, scale * np.einsum('bd,bkd->bk', queries, drawn), -np.inf)
  log_z = np.asarray(first['log_z'], np.float64)
  repeated = np.array([
      [i in row[:j] for j, i in enumerate(row)] for row in ids.tolist()])
  values = {
      'draw_mass': np.sum(
          np.where(repeated, 0, np.exp(logits - log_z[:, None])), axis=1),
      'draw_overlap': _overlap(ids, first['best_ids']),
      'draw_log_z_error': np.abs(
          np.asarray(proposal.log_z, np.float64) - log_z),
  }
  if positive_ids is not None:
    positives = np.asarray(probe.fresh[np.asarray(positive_ids)], np.float64)
    own = scale * np.sum(queries * positives, axis=1)
    columns = np.concatenate([own[:, None], logits], axis=1)
    weights = np.exp(columns - columns.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    mean = weights[:, :1] * positives + np.einsum(
        'bk,bkd->bd', weights[:, 1:], drawn)
    values['draw_gradient_cosine'] = _cosine(
        scale * (mean - positives), exact)
  return values


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return np.exp(-np.logaddexp(0, -x))
