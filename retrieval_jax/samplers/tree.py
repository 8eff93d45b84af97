"""Draws from the softmax over all remembered targets, along a tree."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax import host_table
from retrieval_jax import products
from retrieval_jax import scoring
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import tree as trees
from retrieval_jax import tree_bounds
from retrieval_jax import tree_building
from retrieval_jax import types

ACCEPT = ('metropolis', 'resampling', 'rejection')
_NEVER = -jnp.inf


class _Cells(NamedTuple):
  """Disjoint sets of rows that together are all that may be drawn.

  Leaves, of all parents or of those in the beam, then the other parents.

  Attributes:
    log_mass: [B, F] float32, estimated, -inf where no row is left.
    nodes: [B, F] int32, leaf or parent, -1 for none.
    num_leaves: how many of them are leaves.
    counts: [B, K] int32, rows of each leaf that may be drawn for the query.
  """
  log_mass: jax.Array
  nodes: jax.Array
  num_leaves: int
  counts: jax.Array


class _Rows(NamedTuple):
  """What is known of the rows below before any is scored.

  Attributes:
    live: [K] int32, live rows of each leaf.
    gone: [B, E] bool, which of the excluded rows take one away.
    leaf: [B, E] int32, the leaf of each.
  """
  live: jax.Array
  gone: jax.Array
  leaf: jax.Array


class _Draft(NamedTuple):
  """Leaves whose rows are to be scored, R drawn ones and T opened ones.

  Attributes:
    lists: [B, R + T] int32, -1 for none.
    num_lists: [] int32, behind so many there are none.
    log_mass: [B, R] float32, see `_Draws`.
    log_rest: [B] float32, likewise.
  """
  lists: jax.Array
  num_lists: jax.Array
  log_mass: jax.Array
  log_rest: jax.Array


class _Draws(NamedTuple):
  """Rows that were proposed, before a chain has chosen among them.

  Attributes:
    rows: [B, R + T, leaf_size] int32, of the R leaves drawn, then of the opened
      ones, -1 for none.
    logits: [B, R + T, leaf_size] float32, -inf for rows that may not be drawn.
    log_mass: [B, R] float32, the estimated mass e_C of each leaf drawn.
    log_sum: [B, R] float32, its true mass Z_C.
    in_opened: [B, R] bool, whether the proposal is one of the opened rows
      instead.
    log_opened: [B] float32, the mass Z_O of the opened rows.
    log_rest: [B] float32, the estimated mass of all others.
  """
  rows: jax.Array
  logits: jax.Array
  log_mass: jax.Array
  log_sum: jax.Array
  in_opened: jax.Array
  log_opened: jax.Array
  log_rest: jax.Array

  @property
  def log_weight(self) -> jax.Array:
    """The log of w = P / Q of each proposal, up to a common factor, [B, R]."""
    return jnp.where(self.in_opened, 0., self.log_sum - self.log_mass)

  @property
  def log_z(self) -> jax.Array:
    """The log of an unbiased estimate of Z, [B], from all R leaves drawn."""
    count = self.log_sum.shape[1]
    mean = jax.nn.logsumexp(
        self.log_sum - self.log_mass, axis=1) - jnp.log(count)
    return jnp.logaddexp(self.log_opened, jnp.where(
        self.log_rest > _NEVER, self.log_rest + mean, _NEVER))


@dataclasses.dataclass(frozen=True)
class Tree:
  """Draws K rows per query, independently, by the masses of a tree's leaves.

  The T leaves of largest estimated mass are *opened*: all their rows are
  scored. Of the others, leaves are drawn by their estimated mass e_C, and a
  row of a leaf by the exact scores of its rows. With Z_O the mass of the opened
  rows and E the sum of e_C over all other leaves, this proposal is

    Q(y) = exp(s_y) / (Z_O + E)               for a row y of an opened leaf
    Q(y) = e_C / (Z_O + E) exp(s_y) / Z_C     for y in another leaf C

  and w = P / Q is, up to a factor, 1 and Z_C / e_C. Each draw is the end of a
  chain of its own: the first of 1 + t n proposals, then t steps that see n
  further ones each. As proposals do not depend on where a chain is, all leaves
  are drawn and scored at once; what follows are comparisons of numbers.

    metropolis   moves to its proposal with probability min(1, w' / w); n = 1
    resampling   takes one of itself and n proposals in proportion to w
    rejection    takes the first of 1 + t n proposals that is accepted, with
                 probability Z_C / e_C, where e_C is an upper bound of Z_C (see
                 `tree`) rather than an estimate. Exact draws, but at the
                 temperatures of retrieval the bound is far too high: for tests
                 and for small beta. A draw that was never accepted is masked.

  Exclusions are exact: a leaf's count is less by its excluded rows, none of
  which is drawn when it is scored. Whatever the tree knows, w is that of the
  rows as they are corrected now: how well it fits them decides how near Q is to
  P, and nothing else. With t = 0 log_q is the exact log Q; of the end of a
  chain it is not known. Z is estimated without bias (`estimate_log_z`), log Z
  is not, and draws are with replacement: `log_z` would not be what estimators
  rely on.

  In a step the tree follows what the memory overwrites. With a corrector that
  folds it is over the rows as they are remembered, and queries are moved; with
  another that learns it stays one of the rows as they were corrected when it
  was built. Written rows stay in their leaves, and the axes of second moments
  as they were, so that a tree whose rows move degrades: when the memory is
  renewed, and every `maintain_every` steps, it is brought up to date by
  `tree_building.maintain`.

  Source: Monath et al., AISTATS 2023 (sampling clusters of a dynamic index, by
    rejection or Metropolis-Hastings). Its public code draws something else, so
    this follows the mathematics. Ours: the exact row of a leaf where the paper
    takes a uniform one, masses to second order, opened leaves, k-means in place
    of a cover tree. Resampling is i-SIR (Andrieu, Lee and Vihola 2018).

  Attributes:
    num_negatives: K.
    leaf_size: the most rows of a leaf.
    moments: axes of a leaf's second moments; 0: masses to first order.
    beam: parents of largest estimated mass, whose leaves are weighed; of other
      parents, once one is drawn. 0: the leaves of all.
    opened: T, the most leaves that are opened for a query.
    open_until: leaves are opened until this share of the estimated mass is
      left; 0: all T.
    accept: one of ACCEPT.
    chain_steps: t.
    step_proposals: n.
    move_margin: when the memory is renewed, a row moves to another leaf that is
      nearer by this share of the distance.
    regrow_share: then, too, leaves are grown anew where their rows have come
      to lie further apart by this share (see `tree_building`); 0 builds the
      whole tree anew, whatever has changed.
    maintain_every: steps after which both are done with the memory as it is:
      rows that were written back, or that a corrector has moved; 0: when it is
      renewed alone.
  """
  num_negatives: int
  leaf_size: int
  moments: int
  beam: int
  opened: int
  open_until: float
  accept: str
  chain_steps: int
  step_proposals: int
  move_margin: float
  regrow_share: float
  maintain_every: int = 0
  draws_from_memory = True
  draws_from_pools = False
  on_host = False
  reads_embeddings = True
  takes_few_rows = True

  def __post_init__(self):
    for name, least in (
        ('num_negatives', 1), ('leaf_size', 2), ('moments', 0), ('beam', 0),
        ('opened', 0), ('chain_steps', 0), ('step_proposals', 1),
        ('regrow_share', 0), ('maintain_every', 0)):
      if getattr(self, name) < least:
        raise ValueError(
            f'sampler.{name}={getattr(self, name)} must be at least {least}.')
    for name in ('open_until', 'move_margin'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
            f'sampler.{name}={getattr(self, name)} must lie in [0, 1).')
    if self.accept not in ACCEPT:
      raise ValueError(
          f'sampler.accept={self.accept!r} is not one of {list(ACCEPT)}.')
    if self.accept == 'metropolis' and self.step_proposals != 1:
      raise ValueError(
          f'sampler.step_proposals={self.step_proposals} with '
          "sampler.accept='metropolis', which sees one proposal a step; raise "
          "sampler.chain_steps, or use accept='resampling'.")
    if self.accept == 'rejection' and (self.beam or self.moments):
      raise ValueError(
          f'sampler.beam={self.beam} and sampler.moments={self.moments} with '
          "sampler.accept='rejection', which bounds the mass of every leaf by "
          'its radius; set both to 0.')
    if self.open_until and not self.opened:
      raise ValueError(
          f'sampler.open_until={self.open_until} with sampler.opened=0 opens '
          'nothing; set how many leaves may be opened at most.')

  @property
  def gives(self) -> frozenset[str]:
    """log_q where a draw is a proposal itself, not the end of a chain."""
    exact = not self.chain_steps and self.accept != 'rejection'
    return frozenset({'log_q'} if exact else ())

  @property
  def _length(self) -> int:
    """Proposals of a chain."""
    return 1 + self.chain_steps * self.step_proposals

  # --- The state.

  def init(self, key: jax.Array, view: types.View) -> trees.Tree:
    """Returns a tree over the rows of the memory, as they are corrected."""
    return _placed(view, tree_building.build(
        key, _source(view), leaf_size=self.leaf_size, rank=self.moments))

  def update(self, state: trees.Tree, observation: types.Observation
             ) -> tuple[trees.Tree, Mapping[str, jax.Array]]:
    """Returns the tree after the memory's writes, and its mean scatter."""
    if isinstance(state.leaf_of, np.ndarray):
      leaves = None
      if observation.written_rows is not None:
        leaves = state.leaf_of[np.maximum(observation.written_rows, 0)]
      new, scatter = _rewritten(_levels(state), observation, leaves)
      state = dataclasses.replace(
          new, rows=state.rows, leaf_of=state.leaf_of, start=state.start)
    else:
      state, scatter = _rewritten(state, observation, None)
    return state, {'leaf_scatter': scatter}

  def rebuild(self, state: trees.Tree, key: jax.Array,
              episode: types.Episode) -> trees.Tree:
    """Returns the tree brought up to date with the new memory.

    Where more than half of the parents had to be grown anew, these have
    degraded as well, and all is built anew.
    """
    view, num_rows = episode.view, episode.view.table.num_slots
    tell = episode.compared or (lambda products, rows: None)
    if self.regrow_share:
      new, grown = self._maintained(state, key, view)
      tell(*tree_building.cost_of_maintenance(
          num_rows, self.leaf_size, self.moments,
          round(grown * state.num_parents)))
      if grown <= 0.5:
        return _placed(view, new)
    tell(*self.rows_compared(num_rows))
    if isinstance(view.table, host_table.HostTable):
      return self.init(key, view)
    return jax.jit(
        _built, static_argnums=(0, 1), out_shardings=_shardings(state))(
            self, view.scan, key, *_arguments(view))

  def _maintained(self, state, key, view):
    """Returns `tree_building.maintain`'s tree, and the share that was grown."""
    if isinstance(view.table, host_table.HostTable):
      new, info = _maintained(
          self, view.scan, key, state, view.table, view.correct, view.fold)
    else:
      new, info = jax.jit(
          _maintained, static_argnums=(0, 1),
          out_shardings=(_shardings(state), None))(
              self, view.scan, key, state, *_arguments(view))
    return new, float(info['grown'])

  # --- A proposal.

  def propose(self, state: trees.Tree, key: jax.Array, request: types.Request,
              view: types.View) -> types.Proposal:
    """Returns K draws; log_z is nan, and log_q 0 where it is not known."""
    draw_key, *keys = jax.random.split(key, 3)
    if isinstance(view.table, host_table.HostTable):
      return _chosen(self, keys, *self._draw_on_host(
          state, draw_key, request, view))
    request, constants = _with_queries_moved(request, view.scale, view.fold)
    draws = self._draw(state, draw_key, request, _unmoved(view))
    proposal = self._choose(keys, draws, constants)
    ids = tables.take(view.table, proposal.rows).ids
    return dataclasses.replace(
        proposal, ids=jnp.where(proposal.mask, ids, -1))

  def _choose(self, keys, draws, constants):
    """Returns the Proposal of rows at which chains end; rows stand for ids."""
    accept_key, row_key = keys
    at, found = self._ends(accept_key, draws)
    pick = lambda array: jnp.take_along_axis(array, at, axis=1)  # [B, K]
    in_opened = pick(draws.in_opened)
    shape, num_drawn = at.shape, draws.log_mass.shape[1]
    flat = lambda array: array[:, num_drawn:].reshape(shape[0], -1)
    of_leaf = lambda array: jnp.take_along_axis(
        array[:, :num_drawn], at[:, :, None], axis=1)  # [B, K, leaf_size]

    uniform = jax.random.uniform(row_key, shape)
    leaf_logits = of_leaf(draws.logits)
    column = _inverse(leaf_logits, uniform[:, :, None])[:, :, 0]
    take = lambda array: jnp.take_along_axis(
        array, column[:, :, None], axis=2)[:, :, 0]
    rows, logits = take(of_leaf(draws.rows)), take(leaf_logits)
    if self.opened:
      place = _inverse(flat(draws.logits), uniform)
      choose = lambda array, other: jnp.where(
          in_opened, jnp.take_along_axis(flat(array), place, axis=1), other)
      rows = choose(draws.rows, rows)
      logits = choose(draws.logits, logits)
    mask = found & (logits > _NEVER)
    log_q = jnp.zeros(shape)
    if self.gives:
      total = jnp.logaddexp(draws.log_opened, draws.log_rest)
      log_q = logits - total[:, None] - pick(draws.log_weight)
    rows = jnp.where(mask, rows, -1)
    return types.Proposal(
        rows=rows, ids=rows,
        logits=jnp.where(mask, logits + constants[:, None], _NEVER),
        log_q=jnp.where(mask, log_q, 0.),
        log_z=jnp.full(shape[:1], jnp.nan), mask=mask)

  def estimate_log_z(self, state: trees.Tree, key: jax.Array,
                     request: types.Request, view: types.View) -> jax.Array:
    """Returns the log of an unbiased estimate of Z, [B], by all proposals."""
    if isinstance(view.table, host_table.HostTable):
      draws, constants = self._draw_on_host(state, key, request, view)
      return draws.log_z + constants
    request, constants = _with_queries_moved(request, view.scale, view.fold)
    return self._draw(
        state, key, request, _unmoved(view)).log_z + constants

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns (products <query, vector>, rows corrected) of one `propose`.

    The most that it can be: `open_until` opens fewer leaves, and a beam's
    other parents are entered when drawn alone (not counted).
    """
    shape = tree_building.shape_of(capacity, self.leaf_size)
    weighed = shape.num_leaves
    if self.beam:
      weighed = shape.num_parents + shape.arity * min(
          self.beam, shape.num_parents)
    lists = self.num_negatives * self._length + min(
        self.opened, shape.num_leaves)
    rows = num_queries * lists * self.leaf_size
    return num_queries * weighed * (1 + self.moments) + rows, rows

  def rows_compared(self, capacity: int) -> tuple[int, int]:
    """Returns (products <row, vector>, rows corrected) of `init`."""
    return tree_building.cost_of_build(capacity, self.leaf_size, self.moments)

  def _draw(self, tree, key, request, view):
    """Returns the _Draws of a request."""
    draft_key, opened_key = _draw_keys(key)
    draft = self._draft(
        tree, draft_key, request, view.scale,
        _rows_known(tree, request.exclude_rows, view.table))
    rows = jnp.where(draft.lists[:, :, None] >= 0, trees.rows_of(
        tree, jnp.maximum(draft.lists, 0)), -1)
    return self._weighed(opened_key, draft, rows, scoring.logits_of(
        request.queries, view, rows, exclude_rows=request.exclude_rows,
        num_lists=draft.num_lists))

  def _draw_on_host(self, tree, key, request, view):
    """Returns arguments of `_choose`, of rows that the host gathers.

    One list of each query after the other goes to the devices, which share the
    queries: the next is gathered while one is scored.
    """
    table, mesh = view.table, view.scan.mesh
    excluded = np.asarray(request.exclude_rows)
    at = np.maximum(excluded, 0)
    draft_key, opened_key = _draw_keys(key)
    request, draft, constants = _drafted(
        self, _levels(tree), draft_key, request, view.scale, view.fold,
        table.live[at], tree.leaf_of[at])
    lists, num_lists = jax.device_get((draft.lists, draft.num_lists))
    start = np.where(lists >= 0, tree.start[lists], 0)[:, :, None]
    place = start + np.arange(self.leaf_size)
    inside = (lists >= 0)[:, :, None] & (
        place < tree.start[lists + 1][:, :, None])
    rows = np.where(inside, tree.rows[np.where(inside, place, 0)], -1)
    by_query = sharding.batch(mesh)
    correct = _argument(_unmoved(view).correct)
    logits = []
    for slot in range(num_lists):
      logits.append(_scored(
          correct, request.queries, view.scale, request.exclude_rows,
          jax.device_put(rows[:, slot], by_query),
          table.take(rows[:, slot], by_query)))
      jax.block_until_ready(logits[-2:-1])  # few lists wait at a time
    missing = rows.shape[1] - num_lists  # one shape, one program
    stacked = jnp.pad(
        jnp.stack(logits, axis=1), ((0, 0), (0, missing), (0, 0)),
        constant_values=_NEVER)
    return _weighed(self, opened_key, draft, rows, stacked), constants

  def _draft(self, tree, key, request, scale, known):
    """Returns the _Draft of a request, of a tree whose rows may be away."""
    leaf_key, child_key = key
    queries = request.queries.astype(jnp.float32) * scale
    num_queries, num_drawn = len(queries), self.num_negatives * self._length
    cells = self._weigh(tree, queries, known)
    opened, is_open, log_rest_mass = self._open(cells)
    log_rest = jax.nn.logsumexp(log_rest_mass, axis=1)
    at = _inverse(log_rest_mass, jax.random.uniform(
        leaf_key, (num_queries, num_drawn)))
    leaves = jnp.take_along_axis(cells.nodes, at, axis=1)
    log_mass = jnp.take_along_axis(log_rest_mass, at, axis=1)
    if self.beam:
      leaves, log_mass = self._descend(
          tree, queries, cells, child_key, leaves, log_mass,
          at >= cells.num_leaves)
    lists = jnp.concatenate([
        jnp.where(log_mass > _NEVER, leaves, -1),
        jnp.where(is_open, opened, -1)], axis=1)
    return _Draft(lists, num_drawn + is_open.sum(axis=1).max(), log_mass,
                  log_rest)

  def _weighed(self, key, draft, rows, logits):
    """Returns the _Draws of a draft, from the logits of its lists' rows."""
    num_queries, num_drawn = draft.log_mass.shape
    sums = jax.nn.logsumexp(logits, axis=2)
    log_opened = jnp.full(num_queries, _NEVER)
    if self.opened:
      log_opened = jax.nn.logsumexp(sums[:, num_drawn:], axis=1)
    chance = jnp.exp(log_opened - jnp.logaddexp(log_opened, draft.log_rest))
    return _Draws(
        rows, logits, draft.log_mass, sums[:, :num_drawn],
        jax.random.uniform(key, draft.log_mass.shape) < chance[:, None],
        log_opened, draft.log_rest)

  def _weigh(self, tree, queries, known):
    """Returns the _Cells of queries [B, D], x = beta q."""
    num_queries, live = len(queries), known.live
    counts, without = _counts(tree, known)
    if self.accept == 'rejection':
      # Of all live rows, of whose mean the bound is; excluded ones only add.
      high = trees.log_mass_bounds(tree.leaves, queries)[1]
      log_mass = _times(high, jnp.where(counts > 0, live[None], 0))
      return _Cells(log_mass, _every(num_queries, tree.num_leaves),
                    tree.num_leaves, counts)
    if not self.beam:
      return _Cells(
          _times(trees.log_mass(tree.leaves, queries), counts),
          _every(num_queries, tree.num_leaves), tree.num_leaves, counts)
    beam = min(self.beam, tree.num_parents)
    ends = jnp.append(0, jnp.cumsum(live))[tree.first]
    tops = jnp.diff(ends)[None] - without
    log_parents = _times(trees.log_mass(tree.parents, queries), tops)
    _, best = jax.lax.top_k(log_parents, beam)
    weigh = functools.partial(_weigh_leaves, tree, queries, counts)
    nodes, log_leaves = jax.lax.map(weigh, best.T)  # [beam, B, arity]
    flat = lambda array: jnp.swapaxes(array, 0, 1).reshape(num_queries, -1)
    others = log_parents.at[jnp.arange(num_queries)[:, None], best].set(_NEVER)
    return _Cells(
        jnp.concatenate([flat(log_leaves), others], axis=1),
        jnp.concatenate(
            [flat(nodes), _every(num_queries, tree.num_parents)], axis=1),
        beam * tree.arity, counts)

  def _open(self, cells):
    """Returns leaves [B, T], which are opened, and other masses [B, F]."""
    size = min(self.opened, cells.num_leaves)
    mass, at = jax.lax.top_k(cells.log_mass[:, :cells.num_leaves], size)
    is_open = mass > _NEVER
    if self.open_until:
      share = jnp.exp(mass - jnp.where(
          is_open, jax.nn.logsumexp(cells.log_mass, axis=1, keepdims=True), 0.))
      is_open &= 1 - (jnp.cumsum(share, axis=1) - share) > self.open_until
    rest = cells.log_mass.at[jnp.arange(len(mass))[:, None], at].set(
        jnp.where(is_open, _NEVER, mass))
    return jnp.take_along_axis(cells.nodes, at, axis=1), is_open, rest

  def _descend(self, tree, queries, cells, key, nodes, log_mass, is_parent):
    """Returns leaves [B, R] and their masses, of nodes some of which are none.

    Of a parent's leaves one is drawn by their masses, which are scaled so that
    they sum to the parent's.
    """
    uniform = jax.random.uniform(key, nodes.shape)
    order = jnp.argsort(~is_parent, axis=1, stable=True)

    def enter(slot, carry):
      leaves, masses = carry
      at = jax.lax.dynamic_slice_in_dim(order, slot, 1, axis=1)  # [B, 1]
      one = lambda array: jnp.take_along_axis(array, at, axis=1)[:, 0]
      here = one(is_parent)
      below, weights = _weigh_leaves(
          tree, queries, cells.counts, jnp.where(here, one(nodes), 0))
      which = _inverse(weights, one(uniform)[:, None])
      pick = lambda array: jnp.take_along_axis(array, which, axis=1)[:, 0]
      mass = one(masses) + pick(weights) - jax.nn.logsumexp(weights, axis=1)
      put = lambda array, value: array.at[
          jnp.arange(len(queries)), at[:, 0]].set(
              jnp.where(here, value, one(array)))
      return put(leaves, pick(below)), put(masses, mass)

    return jax.lax.fori_loop(
        0, is_parent.sum(axis=1).max(), enter, (nodes, log_mass))

  def _ends(self, key, draws):
    """Returns at which proposal each chain ends, [B, K], and if it does."""
    num_queries, steps = len(draws.log_opened), self.chain_steps
    chains = (num_queries, self.num_negatives, self._length)
    weights = draws.log_weight.reshape(chains)
    first = jnp.arange(self.num_negatives, dtype=jnp.int32) * self._length
    uniform = jax.random.uniform(key, chains)
    if self.accept == 'rejection':
      accepted = uniform < jnp.exp(weights)
      return (first[None] + jnp.argmax(accepted, axis=2).astype(jnp.int32),
              accepted.any(axis=2))
    offered = weights[:, :, 1:].reshape(
        *chains[:2], steps, self.step_proposals)
    noise = uniform[:, :, 1:].reshape(offered.shape)

    def step(carry, offer):
      at, weight, number = carry
      new, uniform = offer  # [B, K, n]
      if self.accept == 'metropolis':
        chosen = jnp.where(jnp.log(uniform[:, :, 0]) < new[:, :, 0] - weight,
                           0, -1)
      else:
        every = jnp.concatenate([weight[:, :, None], new], axis=2)
        chosen = _inverse(every, uniform[:, :, :1])[:, :, 0] - 1
      taken = jnp.take_along_axis(
          new, jnp.maximum(chosen, 0)[:, :, None], axis=2)[:, :, 0]
      moves = chosen >= 0
      return (jnp.where(moves, number + chosen, at),
              jnp.where(moves, taken, weight),
              number + self.step_proposals), None

    start = (jnp.zeros(chains[:2], jnp.int32), weights[:, :, 0], jnp.int32(1))
    (at, _, _), _ = jax.lax.scan(
        step, start, jax.tree.map(
            lambda array: jnp.moveaxis(array, 2, 0), (offered, noise)))
    return first[None] + at, jnp.ones(chains[:2], bool)

  # --- Against brute force.

  def diagnose(self, state: trees.Tree, request: types.Request,
               view: types.View) -> dict[str, jax.Array]:
    """Returns how far proposals and chains are from the softmax, and bounds.

    Scores every row. The bounds are of a tree measured from the rows as they
    are corrected now; the proposal is that of the state.

    Returns:
      Means over the B queries, [] float32:
        tree_tv, tree_tv_bound: total variation of the proposal.
        tree_tv_chain, tree_tv_chain_bound: after the t steps of a chain; for
          'metropolis' alone.
        tree_log_ratio, tree_log_ratio_bound: log of the largest P / Q.
        tree_log_z_low, tree_log_z_high: how far the bounds of log Z are below
          and above it.
        tree_opened: share of the rows that were opened.
    """
    request, _ = _with_queries_moved(request, view.scale, view.fold)
    view = _unmoved(view)
    queries = request.queries.astype(jnp.float32) * view.scale
    num_queries, num_leaves = len(queries), state.num_leaves
    every = jnp.arange(num_queries)[:, None]
    logits = scoring.map_rows(
        lambda vectors, live, queries: jnp.where(
            live[:, None], products.inner('cd,bd->cb', vectors, queries),
            _NEVER), view, queries)[:len(state.rows)].T  # [B, M]
    excluded = _once(request.exclude_rows)
    place = jnp.where(excluded >= 0, excluded, len(state.rows))
    left_out = jnp.full(logits.shape, _NEVER).at[every, place].set(
        logits.at[every, place].get(mode='fill', fill_value=_NEVER),
        mode='drop')
    logits = logits.at[every, place].set(_NEVER, mode='drop')
    per_leaf = functools.partial(_sum_by, state.leaf_of, num_leaves)
    truth, gone = per_leaf(logits), per_leaf(left_out)

    cells = self._weigh(state, queries, _rows_known(
        state, request.exclude_rows, view.table))
    opened, is_open, _ = self._open(cells)
    open_leaf = jnp.zeros((num_queries, num_leaves), bool).at[
        every, jnp.where(is_open, opened, num_leaves)].set(True, mode='drop')
    mass = jnp.where(
        open_leaf, truth, self._masses_of_leaves(state, queries, cells))
    measured, _ = tree_building.maintain(
        jax.random.key(0), state, tree_building.OnDevice(view), margin=1.,
        degraded=jnp.inf)
    low, high = _mass_bounds(measured.leaves, queries, cells.counts, gone)
    low, high = (jnp.where(open_leaf, truth, side) for side in (low, high))
    bounds = tree_bounds.bounds(mass, low, high)
    log_z = jax.nn.logsumexp(truth, axis=1)
    log_p, log_q = (a - jax.nn.logsumexp(a, axis=1, keepdims=True)
                    for a in (truth, mass))
    found = {
        'tree_tv': tree_bounds.total_variation(truth, mass),
        'tree_tv_bound': bounds.tv,
        'tree_log_ratio': jnp.max(
            jnp.where(mass > _NEVER, log_p - log_q, _NEVER), axis=1),
        'tree_log_ratio_bound': bounds.log_ratio,
        'tree_log_z_low': log_z - bounds.log_z_low,
        'tree_log_z_high': bounds.log_z_high - log_z,
        'tree_opened': jnp.sum(
            jnp.where(open_leaf, cells.counts, 0), axis=1) / jnp.maximum(
                cells.counts.sum(axis=1), 1)}
    if self.accept == 'metropolis':
      ends = tree_bounds.after_metropolis(mass, truth, self.chain_steps)
      found['tree_tv_chain'] = 0.5 * jnp.sum(jnp.abs(
          ends - jnp.exp(log_p)), axis=1)
      found['tree_tv_chain_bound'] = bounds.tv_after(self.chain_steps)
    return jax.tree.map(jnp.mean, found)

  def _masses_of_leaves(self, tree, queries, cells):
    """Returns the mass [B, K] with which each leaf is drawn, e_C."""
    if not self.beam:
      return cells.log_mass
    every = jnp.arange(len(queries))[:, None]
    parents = trees.parent_of(tree, jnp.arange(tree.num_leaves))
    leaves = _times(trees.log_mass(tree.leaves, queries), cells.counts)
    together = _sum_by(parents, tree.num_parents, leaves)
    of_parent = cells.log_mass[:, cells.num_leaves:]  # -inf in the beam
    scaled = leaves + jnp.where(
        together > _NEVER, of_parent - together, 0.)[:, parents]
    beam = cells.nodes[:, :cells.num_leaves]
    in_beam = jnp.zeros(leaves.shape, bool).at[
        every, jnp.where(beam >= 0, beam, tree.num_leaves)].set(
            True, mode='drop')
    return jnp.where(in_beam, leaves, scaled)


def _argument(function):
  """Returns a function, or None, as what a jit takes for an argument."""
  if function is None or isinstance(function, jax.tree_util.Partial):
    return function
  return jax.tree_util.Partial(function)


def _arguments(view):
  """Returns what a jit takes of a view besides its scan; beta is not read."""
  return view.table, _argument(view.correct), _argument(view.fold)


def _shardings(tree):
  return jax.tree.map(lambda array: array.sharding, tree)


def _built(sampler, scan, key, table, correct, fold):
  """Returns `init` of these; a function of all that it reads is traced once."""
  return sampler.init(
      key, types.View(table, correct, jnp.float32(1), scan, fold))


def _maintained(sampler, scan, key, tree, table, correct, fold):
  view = types.View(table, correct, jnp.float32(1), scan, fold)
  return tree_building.maintain(
      key, tree, _source(view), margin=sampler.move_margin,
      degraded=sampler.regrow_share)


def _unmoved(view):
  """Returns the view whose rows the tree is over.

  Where a corrector is affine, that is of rows as they are remembered, which no
  step of the corrector moves, and queries are moved in place of them.
  """
  if view.fold is None:
    return view
  return view._replace(correct=scoring.uncorrected, fold=None)


def _with_queries_moved(request, scale, fold):
  """Returns (request, c [B]), whose logits of `_unmoved` rows differ by c.

  Args:
    request: of the queries as they are.
    scale: beta.
    fold: of the view, or None, which moves nothing.
  """
  if fold is None:
    return request, jnp.zeros(len(request.queries))
  queries, constants = fold(request.queries.astype(jnp.float32))
  return request._replace(queries=queries), scale * constants


def _weigh_leaves(tree, queries, counts, parents):
  """Returns the leaves [B, arity] of parents [B], and their log masses."""
  nodes = trees.leaves_of(tree, parents)
  count = jnp.where(nodes >= 0, jnp.take_along_axis(
      counts, jnp.maximum(nodes, 0), axis=1), 0)
  return nodes, _times(
      trees.log_mass(trees.take(tree.leaves, nodes), queries), count)


def _rows_known(tree, exclude_rows, table):
  """Returns the _Rows of a tree over a table on the devices."""
  live = table.ids[:len(tree.rows)] >= 0
  counts = jax.ops.segment_sum(
      live.astype(jnp.int32), tree.leaf_of, tree.num_leaves)
  excluded = _once(exclude_rows)
  at = jnp.maximum(excluded, 0)
  return _Rows(counts, (excluded >= 0) & live[at], tree.leaf_of[at])


def _counts(tree, known):
  """Returns rows that are left of each leaf, [B, K], and gone of parents."""
  num_queries = len(known.gone)
  every = jnp.arange(num_queries)[:, None]
  without = lambda node, count: jnp.zeros(
      (num_queries, count), jnp.int32).at[every, node].add(
          known.gone.astype(jnp.int32))
  return (known.live[None] - without(known.leaf, tree.num_leaves),
          without(trees.parent_of(tree, known.leaf), tree.num_parents))


# --- The same for rows on the host.


def _source(view):
  """Returns the rows that the tree is over, wherever they are."""
  on_host = isinstance(view.table, host_table.HostTable)
  kind = tree_building.OnHost if on_host else tree_building.OnDevice
  return kind(_unmoved(view))


def _placed(view, tree):
  """Returns a tree whose arrays over rows are where the rows are."""
  if not isinstance(view.table, host_table.HostTable):
    return tree
  tree = dataclasses.replace(tree, **{
      name: np.array(getattr(tree, name))
      for name in ('rows', 'leaf_of', 'start')})
  everywhere = sharding.replicated(view.scan.mesh)
  levels = jax.device_put(_levels(tree), everywhere)
  return dataclasses.replace(
      levels, rows=tree.rows, leaf_of=tree.leaf_of, start=tree.start)


def _levels(tree):
  """Returns a tree without the arrays that lie on the host."""
  return dataclasses.replace(tree, rows=None, leaf_of=None, start=None)


def _draw_keys(key):
  """Returns ((key of leaves, of leaves of drawn parents), of opened rows)."""
  leaf_key, child_key, opened_key = jax.random.split(key, 3)
  return (leaf_key, child_key), opened_key


@functools.partial(jax.jit, static_argnums=0)
def _drafted(sampler, tree, keys, request, scale, fold, live, leaf):
  """Returns (request, _Draft, c [B]), of queries that were moved.

  Args:
    sampler: Tree.
    tree: without its arrays over rows.
    keys: see `_draw_keys`.
    request: of the queries as they are.
    scale: beta.
    fold: of the view, a jax.tree_util.Partial, or None.
    live: [B, E] bool, of the excluded rows; of -1 anything.
    leaf: [B, E] int32, likewise.
  """
  request, constants = _with_queries_moved(request, scale, fold)
  excluded = request.exclude_rows
  order = jnp.argsort(excluded, axis=1, stable=True)
  along = lambda array: jnp.take_along_axis(array, order, axis=1)
  known = _Rows(tree.leaves.counts, (_once(excluded) >= 0) & along(live),
                along(leaf))
  return request, sampler._draft(tree, keys, request, scale, known), constants


@jax.jit
def _scored(correct, queries, scale, exclude_rows, rows, part):
  """Returns the logits [B, g] of one list of rows of each query.

  Args:
    correct: of the view, a jax.tree_util.Partial.
    queries: [B, D].
    scale: beta.
    exclude_rows: [B, E].
    rows: [B, g] int32.
    part: slice of the table, [B, g, D].
  """
  scaled = queries.astype(jnp.float32) * scale
  found = products.inner('bgd,bd->bg', correct(part), scaled)
  excluded = jnp.any(rows[:, None, :] == exclude_rows[:, :, None], axis=1)
  return jnp.where((part.ids >= 0) & ~excluded, found, _NEVER)


@functools.partial(jax.jit, static_argnums=0)
def _weighed(sampler, key, draft, rows, logits):
  """Returns the _Draws of a draft from the logits of its lists' rows."""
  return sampler._weighed(key, draft, rows, logits)


@functools.partial(jax.jit, static_argnums=0)
def _chosen(sampler, keys, draws, constants):
  """Returns the Proposal of _Draws."""
  return sampler._choose(keys, draws, constants)


@jax.jit
def _rewritten(tree, observation, leaves):
  """Returns the tree after the memory's writes, and its mean scatter."""
  if observation.written_rows is not None:
    stale = observation.stale.embeddings
    tree = trees.rewrite(
        tree, observation.written_rows, stale,
        jnp.asarray(observation.fresh, stale.dtype), leaves)
  level = tree.leaves
  return tree, jnp.sum(level.scatter * level.counts) / jnp.maximum(
      level.counts.sum(), 1)


def _once(rows):
  """Returns rows [B, E] in rising order, -1 for all but one of equal ones."""
  rows = jnp.sort(rows, axis=1)
  again = jnp.pad(rows[:, 1:] == rows[:, :-1], ((0, 0), (1, 0)))
  if not rows.shape[1]:
    return rows
  return jnp.where(again, -1, rows)


def _times(log_mean, counts):
  """Returns log masses of means of exp and counts, -inf of no row."""
  return jnp.where(counts > 0, log_mean + jnp.log(
      jnp.maximum(counts, 1).astype(jnp.float32)), _NEVER)


def _every(num_queries, count):
  """Returns [B, count] int32, all numbers for each query."""
  return jnp.broadcast_to(
      jnp.arange(count, dtype=jnp.int32)[None], (num_queries, count))


def _inverse(logits, uniform):
  """Returns draws in proportion to exp(logits), by the inverse of their sums.

  Args:
    logits: [..., F] float32.
    uniform: [..., n] float32, in [0, 1).

  Returns:
    [..., n] int32; of sums of 0 anything.
  """
  shape = logits.shape[:-1]
  top = jnp.max(logits, axis=-1, keepdims=True)
  sums = jnp.cumsum(jnp.exp(
      logits - jnp.where(top > _NEVER, top, 0.)), axis=-1)
  at = uniform * sums[..., -1:]
  find = functools.partial(jnp.searchsorted, side='right')
  found = jax.vmap(find)(sums.reshape(-1, sums.shape[-1]),
                         at.reshape(-1, at.shape[-1]))
  found = jnp.minimum(found, logits.shape[-1] - 1)
  return found.reshape(*shape, uniform.shape[-1]).astype(jnp.int32)


def _sum_by(groups, count, logs):
  """Returns log-sum-exps [B, count] of logs [B, n] over groups [n]."""
  def of_query(logs):
    top = jax.ops.segment_max(logs, groups, count)
    safe = jnp.where(top > _NEVER, top, 0.)
    return safe + jnp.log(jax.ops.segment_sum(
        jnp.exp(logs - safe[groups]), groups, count))
  return jax.lax.map(of_query, logs)


def _mass_bounds(leaves, queries, counts, gone):
  """Returns logs of bounds of what leaves weigh without excluded rows, [B, K].

  That is what all rows weigh at least or most, less what is known of the
  excluded ones, or what so many rows within the radius weigh, if nearer.

  Args:
    leaves: Level.
    queries: [B, D], x = beta q.
    counts: [B, K], rows that are not excluded.
    gone: [B, K], log mass of those that are.
  """
  low, high = (_times(side, leaves.counts[None])
               for side in trees.log_mass_bounds(leaves, queries))
  reach = jnp.linalg.norm(queries, axis=1, keepdims=True) * leaves.radii[None]
  centre = _times(trees.log_mass(dataclasses.replace(
      leaves, axes=leaves.axes[:0], spread=leaves.spread[:0]), queries), counts)
  # The log of a difference; of nothing where the bound is below what is gone.
  less = lambda side: jnp.where(side > gone, side + jnp.log1p(
      -jnp.exp(jnp.where(side > gone, gone - side, _NEVER))), _NEVER)
  any_gone = gone > _NEVER
  low = jnp.where(any_gone, jnp.maximum(less(low), centre - reach), low)
  high = jnp.where(any_gone, jnp.minimum(less(high), centre + reach), high)
  some = counts > 0
  return jnp.where(some, low, _NEVER), jnp.where(some, high, _NEVER)
