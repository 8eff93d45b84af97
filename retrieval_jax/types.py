"""The vocabulary of the package: dimension letters, records and protocols.

Dimension letters, the same everywhere:

  B  queries per step            L  tokens per text
  K  negatives drawn per query   C  table rows per scanned chunk
  J  columns a query's loss sees S  shards of the table (mesh axis 'data')
  P  probe rows re-encoded       E  known positives listed per query (padded)
  M  table rows                  N  corpus targets
  D  embedding dimension         n  number of texts, or candidates per query

`M@data` means: sharded over mesh axis 'data'. Three integers are never mixed
up: `row` indexes the table, `id` the corpus, `query_id` the query list; -1
stands for "none" in all three. `logits` are scaled scores (beta * <q, g>),
`scores` unscaled ones.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

Params = Any
"""A pytree of model parameters."""

Encode = Callable[[Params, jax.Array], jax.Array]
"""(params, tokens [n, L] int32) -> embeddings [n, D] float32."""


def register(cls):
  """Registers a frozen dataclass as a pytree; `static=True` metadata is meta.

  Fields declared `dataclasses.field(metadata={'static': True})` become part of
  the tree structure (hashable, compared by value), all others are children.
  """
  fields = dataclasses.fields(cls)
  static = [f.name for f in fields if f.metadata.get('static')]
  return jax.tree_util.register_dataclass(
      cls, [f.name for f in fields if f.name not in static], static)


@register
@dataclasses.dataclass(frozen=True)
class TargetTable:
  """Remembered target embeddings, one row per remembered target.

  Attributes:
    embeddings: [M@data, D] float32 or bfloat16.
    ids: [M@data] int32, corpus id of the row, -1 where the row is empty. An id
      stands in at most one row.
    written: [M@data] int32, step of the last write; a row's age at `step` is
      `step - written`, so nothing but the written rows changes in a step.
    rows_are_ids: static; True when row i holds corpus id i (memory 'corpus',
      M >= N), which makes looking up an id's row free.
  """
  embeddings: jax.Array
  ids: jax.Array
  written: jax.Array
  rows_are_ids: bool = dataclasses.field(metadata={'static': True})


@register
@dataclasses.dataclass(frozen=True)
class QueueTable(TargetTable):
  """A table whose targets leave in the order in which they came (FIFO).

  Attributes:
    inserted: [M@data] int32, step at which the row's target came in, which
      rewriting its embedding does not change.
  """
  inserted: jax.Array


class View(NamedTuple):
  """How a sampler sees the memory, without a corrected copy of the table.

  Attributes:
    table: the stale rows.
    correct: maps any slice of the table (a TargetTable whose arrays have
      leading shape [...]) to its present embeddings [..., D] float32.
    scale: [] float32, beta: fixed or learned.
    positive_rows: [B] int32, the row of each query's positive, -1 where it is
      not remembered; None where nobody asks for it.
  """
  table: TargetTable
  correct: Callable[[TargetTable], jax.Array]
  scale: jax.Array
  positive_rows: jax.Array | None = None


@register
@dataclasses.dataclass(frozen=True)
class Proposal:
  """The rows that a sampler chose for each query, and how it saw them.

  A step appends a query's explicit candidates to its draws (`with_candidates`):
  they have no probability, and a row only where the memory holds them.

  Attributes:
    rows: [B, K] int32, table rows, -1 where masked.
    ids: [B, K] int32, corpus ids of those rows, -1 where masked.
    logits: [B, K] float32, corrected logits at the time of the draw.
    log_q: [B, K] float32, log probability of the row under one draw.
    log_z: [B] float32, log partition over the rows that could be drawn; nan
      where the sampler never scored the whole table.
    mask: [B, K] bool, False where no row could be drawn.
  """
  rows: jax.Array
  ids: jax.Array
  logits: jax.Array
  log_q: jax.Array
  log_z: jax.Array
  mask: jax.Array


@register
@dataclasses.dataclass(frozen=True)
class Candidates:
  """Explicit negatives of a batch's queries, and what a teacher made of them.

  Attributes:
    ids: [B, n] int32, corpus ids, -1 where a query has fewer.
    scores: [B, n] float32, the teacher's, nan where it gave none.
    positive_scores: [B] float32, the teacher's of the batch's positives,
      likewise.
  """
  ids: jax.Array
  scores: jax.Array
  positive_scores: jax.Array


@register
@dataclasses.dataclass(frozen=True)
class Batch:
  """One training batch as the input pipeline makes it.

  Attributes:
    query_tokens: [B, Lq] int32.
    target_tokens: [B, Lt] int32, tokens of the positives.
    query_ids: [B] int32.
    target_ids: [B] int32, corpus ids of the positives.
    known_positives: [B, E] int32, every corpus id known to be relevant to the
      query (its own positive included), padded with -1.
    candidates: Candidates; None where training takes none.
  """
  query_tokens: jax.Array
  target_tokens: jax.Array
  query_ids: jax.Array
  target_ids: jax.Array
  known_positives: jax.Array
  candidates: Candidates | None = None

  @property
  def num_candidates(self) -> int:
    """n, the candidates per query."""
    return 0 if self.candidates is None else self.candidates.ids.shape[1]


class Observation(NamedTuple):
  """What one step lets a corrector learn from; nothing here has a gradient.

  The rows are those that the step encoded anyway (draws, refreshed rows,
  positives) and the corrector's anchors; one may come several times.

  Attributes:
    stale: TargetTable slice of P rows as they stood before the step's writes.
    fresh: [P, D] float32, the same targets encoded with the step's parameters.
    mask: [P] bool, False where the memory has no such row.
    queries: [B, D] float32.
    scale: [] float32.
    step: [] int32.
  """
  stale: TargetTable
  fresh: jax.Array
  mask: jax.Array
  queries: jax.Array
  scale: jax.Array
  step: jax.Array


class Corrector(Protocol):
  """Moves stale rows to the present. Frozen and hashable; state is a pytree.

  `num_anchors` uniform rows are encoded at each step for `update` alone;
  `reset_on_refresh` asks for a new `init` once the whole table is re-encoded.
  """
  num_anchors: int
  reset_on_refresh: bool

  def init(self, key: jax.Array, dim: int) -> Any:
    """Returns the state for embeddings of dimension `dim`; identity at init."""

  def apply(self, state: Any, rows: TargetTable) -> jax.Array:
    """Returns present embeddings [..., D] float32 of a slice of the table."""

  def update(self, state: Any, observation: Observation
             ) -> tuple[Any, Mapping[str, jax.Array]]:
    """Returns the state after one observation, and scalars to log."""


class Sampler(Protocol):
  """Chooses negatives. Frozen and hashable.

  `num_negatives` is K. `gives_log_q` says whether `log_q` is the log
  probability of a draw that may hit any live row, which `sampled_softmax`
  needs; `gives_log_z` says whether the sampler scores the whole table and draws
  from exp(logits - log_z) one row after the other, without replacement, which
  `cache_gradient` needs.
  """
  num_negatives: int
  gives_log_q: bool
  gives_log_z: bool

  def propose(self, key: jax.Array, queries: jax.Array,
              exclude_rows: jax.Array, view: View) -> Proposal:
    """Returns negatives for queries [B, D]; exclude_rows is [B, E] int32."""


class Estimator(Protocol):
  """Turns fresh logits into a surrogate whose gradient is the method's."""

  def __call__(self, positive: jax.Array, negative: jax.Array,
               mask: jax.Array, proposal: Proposal
               ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Returns the surrogate [B] and metrics [B]; 'nll' is always there.

    Args:
      positive: [B] float32, fresh logits of the true targets.
      negative: [B, J] float32, fresh logits of the columns each query sees.
      mask: [B, J] bool, False for columns that must not count.
      proposal: the draw; nothing in it carries gradient.
    """


def check_shapes(named: Mapping[str, tuple[jax.Array, str]]) -> dict[str, int]:
  """Checks arrays against shapes written in dimension letters.

  Args:
    named: argument name -> (array, letters), e.g. {'queries': (q, 'B D')}; a
      number in place of a letter is a fixed size.

  Returns:
    The size of each letter.

  Raises:
    ValueError: naming the argument, the letter and both sizes.
  """
  sizes, first_seen = {}, {}
  for name, (array, letters) in named.items():
    letters = letters.split()
    if len(array.shape) != len(letters):
      raise ValueError(
          f'{name} has shape {tuple(array.shape)}, expected '
          f'{len(letters)} dimensions [{", ".join(letters)}].')
    for letter, size in zip(letters, array.shape):
      expected = int(letter) if letter.isdigit() else sizes.setdefault(
          letter, size)
      first_seen.setdefault(letter, name)
      if size != expected:
        raise ValueError(
            f'{name} has {letter}={size} (shape {tuple(array.shape)}), but '
            f'{first_seen[letter]} has {letter}={expected}.')
  return sizes
