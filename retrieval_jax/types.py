"""The vocabulary of the package: dimension letters, records and protocols.

Dimension letters, the same everywhere:

  B  queries per step            L  tokens per text
  K  negatives drawn per query   C  table rows per scanned chunk
  J  columns a query's loss sees S  shards of the table (mesh axis 'data')
  P  rows re-encoded on top      E  known positives listed per query (padded)
  M  table rows                  N  corpus targets
  D  embedding dimension         n  number of texts, or candidates per query

`M@data` means: sharded over mesh axis 'data'. Three integers are never mixed
up: `row` indexes the table, `id` the corpus, `query_id` the query list; -1
stands for "none" in all three, and among tokens for padding, which follows a
text: whatever a tokenizer pads with may be a token of the text, too. `logits`
are scaled scores (beta * <q, g>), `scores` unscaled ones.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple, Protocol, TypeVar

import jax

T = TypeVar('T', bound=type[Any])

Params = Any
"""A pytree of model parameters."""

Encode = Callable[[Params, jax.Array], jax.Array]
"""(params, tokens [n, L] int32, -1 for padding) -> [n, D] float32."""


def register(cls: T) -> T:
  """Registers a frozen dataclass as a pytree; `static=True` metadata is meta.

  Fields declared `dataclasses.field(metadata={'static': True})` become part of
  the tree structure (hashable, compared by value), all others are children.
  """
  fields = dataclasses.fields(cls)
  static = [f.name for f in fields if f.metadata.get('static')]
  return jax.tree_util.register_dataclass(
      cls, [f.name for f in fields if f.name not in static], static)


class ByRow:
  """Marks a state all of whose arrays are sharded over their first axis.

  A sampler whose state is too large for every device returns a registered
  dataclass that inherits this; its first axes must be multiples of S.
  """


@register
@dataclasses.dataclass(frozen=True)
class CoarseRows(ByRow):
  """Copies of rows in fewer bytes, and how near they are; see `coarse`.

  Attributes:
    codes: [M@data, D] int8, or uint16, the bits of bfloat16; None where the
      rows themselves serve, which are bfloat16 then.
    scale: [M@data] float32, what the codes of a row are multiplied by; None
      for 1.
    residual: [M@data] float32, no less than the distance of row and copy.
    norm: [M@data] float32, the larger of the norms of row and copy.
  """
  codes: jax.Array | None
  scale: jax.Array | None
  residual: jax.Array
  norm: jax.Array


@register
@dataclasses.dataclass(frozen=True)
class TargetTable(ByRow):
  """Remembered target embeddings, one row per remembered target.

  Attributes:
    embeddings: [M@data, D] float32 or bfloat16; where an index holds them
      quantised, int8 or packed bits.
    ids: [M@data] int32, corpus id of the row, -1 where the row is empty. An id
      is in at most one row.
    written: [M@data] int32, step of the last write; a row's age at `step` is
      `step - written`, so nothing but the written rows changes in a step.
    rows_are_ids: static; True when row i holds corpus id i or nothing (memory
      'corpus', M >= N), which makes looking up an id's row free.
    capacity: static; rows that can hold a target. Those above are padding for
      the mesh and stay empty. None: all M.
    full: static; True when each of these holds a target from the first step on,
      which makes counting them free.
    coarse: the rows in fewer bytes, for scans; None: scans read `embeddings`.
  """
  embeddings: jax.Array
  ids: jax.Array
  written: jax.Array
  rows_are_ids: bool = dataclasses.field(metadata={'static': True})
  capacity: int | None = dataclasses.field(
      default=None, metadata={'static': True})
  full: bool = dataclasses.field(default=False, metadata={'static': True})
  coarse: CoarseRows | None = dataclasses.field(default=None, kw_only=True)

  @property
  def num_slots(self) -> int:
    """The number of rows that can hold a target."""
    return self.ids.shape[0] if self.capacity is None else self.capacity


@register
@dataclasses.dataclass(frozen=True)
class QueueTable(TargetTable):
  """A table whose targets leave in the order in which they came (FIFO).

  Attributes:
    inserted: [M@data] int32, step at which the row's target came in, which
      rewriting its embedding does not change.
  """
  inserted: jax.Array = dataclasses.field(kw_only=True)


class Scan(NamedTuple):
  """How a table is scanned; made once per run.

  Attributes:
    mesh: the mesh whose axis 'data' shards the table's rows.
    chunk_rows: C, rows scored at a time on each shard; divides its rows.
  """
  mesh: jax.sharding.Mesh
  chunk_rows: int


class View(NamedTuple):
  """How a sampler sees the memory, without a corrected copy of the table.

  Attributes:
    table: the stale rows; a `host_table.HostTable`, concrete, where they are on
      the host.
    correct: maps any slice of the table (a TargetTable whose arrays have
      leading shape [...]) to its present embeddings [..., D] float32. This and
      `fold` are jax.tree_util.Partials where the table is on the host.
    scale: [] float32, beta: fixed or learned.
    scan: how to go over the rows.
    fold: where `correct` is affine, a function of queries x [B, D] that returns
      x' [B, D] and c [B] with <x, correct(row)> = <x', row> + c, so that no row
      has to be moved; else None.
  """
  table: TargetTable
  correct: Callable[[TargetTable], jax.Array]
  scale: jax.Array
  scan: Scan
  fold: Callable[[jax.Array], tuple[jax.Array, jax.Array]] | None = None


class Request(NamedTuple):
  """What a step asks a sampler for.

  Attributes:
    queries: [B, D] float32, by the present parameters.
    query_ids: [B] int32.
    exclude_rows: [B, E] int32, rows that must not be drawn for the query (its
      known positives and explicit candidates), -1 for none.
    exclude_ids: [B, E] int32, the corpus ids of the same, for samplers that
      draw ids.
    positive_rows: [B] int32, the row of each query's positive, -1 where it is
      not remembered.
    step: [] int32, number of finished steps.
  """
  queries: jax.Array
  query_ids: jax.Array
  exclude_rows: jax.Array
  exclude_ids: jax.Array
  positive_rows: jax.Array
  step: jax.Array


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
    metrics: scalars that say what the draws took, for the log.
  """
  rows: jax.Array
  ids: jax.Array
  logits: jax.Array
  log_q: jax.Array
  log_z: jax.Array
  mask: jax.Array
  metrics: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


@register
@dataclasses.dataclass(frozen=True)
class Candidates:
  """Explicit negatives of a batch's queries, and a teacher's scores of them.

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
    query_tokens: [B, Lq] int32, padded with -1.
    target_tokens: [B, Lt] int32, tokens of the positives, likewise.
    query_ids: [B] int32.
    target_ids: [B] int32, corpus ids of the positives; -1, and tokens of
      padding, where questions have answers in place of positives.
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


class EncodedRows(NamedTuple):
  """Some targets of a step: where the memory has them, and what they are now.

  Attributes:
    rows: [P] int32, -1 where the memory does not hold the target.
    fresh: [P, D] float32, encoded with the step's parameters.
  """
  rows: jax.Array
  fresh: jax.Array


class Encoded(NamedTuple):
  """All targets that a step encodes, by purpose.

  Attributes:
    drawn: B * K draws and explicit candidates, for the loss.
    refreshed: rows that are re-encoded to renew the memory.
    anchors: rows that are encoded for the corrector to learn from.
    positives: B, the batch's.
  """
  drawn: EncodedRows
  refreshed: EncodedRows
  anchors: EncodedRows
  positives: EncodedRows


class Observation(NamedTuple):
  """What one step lets correctors and samplers learn from; without gradient.

  The rows are all those of `Encoded`, in its order; one may occur several
  times.

  Attributes:
    stale: TargetTable slice of P rows as they were before the step's writes.
    fresh: [P, D] float32, the same targets encoded with the step's parameters.
    mask: [P] bool, False where the memory has no such row.
    queries: [B, D] float32.
    scale: [] float32.
    step: [] int32.
    written_rows: [P] int32, the rows that this step overwrites with `fresh`,
      the last of equal rows winning, -1 where the memory keeps what it holds;
      None where nobody says.
  """
  stale: TargetTable
  fresh: jax.Array
  mask: jax.Array
  queries: jax.Array
  scale: jax.Array
  step: jax.Array
  written_rows: jax.Array | None = None


class Episode(NamedTuple):
  """What a sampler may rebuild itself from once the memory has been renewed.

  Lives on the host. What is embedded is counted by the meter. All but the step,
  the view and `compared` is None where the memory is as it was.

  Attributes:
    step: int, number of finished steps.
    view: View of the new table, encoded with the present parameters; or of the
      old one, as `maintain_every` steps have left it.
    embed_queries: query ids [n] int -> [n, D] float32 numpy.
    embed_targets: corpus ids [n] int -> [n, D] float32 numpy.
    known_positives: query ids [n] int -> [n, E] int32 corpus ids, padded
      with -1.
    pools: [Q, P] int32 numpy, corpus ids mined for each query id, -1 behind
      them; None where nothing was mined.
    compared: to be called with what the rebuilding took, as
      `Sampler.rows_compared` returns it, for the meter; None where nobody
      counts.
  """
  step: int
  view: View
  embed_queries: Callable[[Any], Any] | None = None
  embed_targets: Callable[[Any], Any] | None = None
  known_positives: Callable[[Any], Any] | None = None
  pools: Any = None
  compared: Callable[[int, int], None] | None = None


class TeacherVectors(NamedTuple):
  """What another encoder makes of a step's texts; constants.

  Attributes:
    queries: [B, D'] float32, D' its dimension.
    positives: [B, D'] float32.
    negatives: [B, K, D'] float32, of the draws, then of the candidates; zeros
      where there is none.
  """
  queries: jax.Array
  positives: jax.Array
  negatives: jax.Array


class Fresh(NamedTuple):
  """What a step encoded for its loss; gradients flow through all of it.

  But for the teacher's vectors, which are constants.

  Attributes:
    queries: [B, D] float32.
    positives: [B, D] float32; [0, D] where questions have answers in place of
      positives.
    negatives: [B, K, D] float32, of the draws, then of the candidates.
    scale: [] float32, beta.
    negative_tokens: [B, K, L] int32 where the objective reads tokens, else
      None. Those of queries and positives are in the batch.
    read: [B, K, 2] float32, what `Reader.read` says of the question's answer
      and each of its draws; None where the method has no reader.
    fused: [B] float32, log P(answer | question, all draws), by a reader that
      takes them together; None by one that does not.
    teacher: TeacherVectors where the objective needs 'teacher_vectors', else
      None.
  """
  queries: jax.Array
  positives: jax.Array
  negatives: jax.Array
  scale: jax.Array
  negative_tokens: jax.Array | None = None
  read: jax.Array | None = None
  fused: jax.Array | None = None
  teacher: TeacherVectors | None = None


class Memory(Protocol):
  """Which targets are remembered, and where. Frozen and hashable.

  Its state is a TargetTable in the TrainState, which the other methods take and
  return.

  Attributes:
    kind: its name in the config.
    num_slots: rows that can hold a target, over all devices.
    holds_corpus: whether every target is remembered, target i in row i.
    chunk_rows: C of its scans.
    scan_dtype: what they read, of `coarse.DTYPES`.
    on_host: whether its state is a `host_table.HostTable` instead, which
      changes in place and is seen by no jit: the sampler runs between two
      compiled parts of a step, and `write` and `push` are not called.
  """
  @property
  def kind(self) -> str: ...
  @property
  def num_slots(self) -> int: ...
  @property
  def holds_corpus(self) -> bool: ...
  @property
  def chunk_rows(self) -> int: ...
  @property
  def scan_dtype(self) -> str: ...
  @property
  def on_host(self) -> bool: ...

  def first_ids(self, num_targets: int, seed: int) -> Any:
    """Returns the ids [n] that it holds before step 0, numpy, rising.

    They are of targets 0 .. num_targets - 1, which are the corpus without
    copies.
    """

  def create(self, embeddings: Any, ids: Any, *, dim: int,
             mesh: jax.sharding.Mesh, step: int = 0) -> TargetTable:
    """Returns the table that holds `ids` [n] with `embeddings` [n, dim]."""

  def take(self, table: TargetTable, rows: jax.Array) -> TargetTable:
    """Returns the slice at rows [...], with id -1 where a row is -1."""

  def rows_of(self, table: TargetTable, ids: jax.Array) -> jax.Array:
    """Returns the rows [...] of corpus ids [...], -1 where there is none."""

  def write(self, table: TargetTable, rows: jax.Array, embeddings: jax.Array,
            step: jax.Array) -> TargetTable:
    """Overwrites rows [P] with embeddings [P, D]; -1 is ignored."""

  def push(self, table: TargetTable, ids: jax.Array, embeddings: jax.Array,
           step: jax.Array) -> TargetTable:
    """Remembers corpus ids [P] with embeddings [P, D]; -1 is ignored."""


class Corrector(Protocol):
  """Moves stale rows to the present. Frozen and hashable; state is a pytree.

  At each step `num_anchors` rows, its `anchor_rows`, are encoded for `update`
  alone.
  """
  @property
  def num_anchors(self) -> int: ...

  def init(self, key: jax.Array, table: TargetTable) -> Any:
    """Returns the state before step 0 for this table; identity at init."""

  def anchor_rows(self, state: Any, key: jax.Array, table: TargetTable,
                  step: jax.Array) -> jax.Array:
    """Returns the rows [num_anchors] int32 to encode at `step`, -1 for none."""

  def apply(self, state: Any, stale: TargetTable) -> jax.Array:
    """Returns present embeddings [..., D] float32 of a slice of the table."""

  @property
  def folds(self) -> bool: ...

  def fold(self, state: Any, queries: jax.Array
           ) -> tuple[jax.Array, jax.Array]:
    """Returns what `View.fold` does; only where `folds` says that it can."""

  def update(self, state: Any, observation: Observation
             ) -> tuple[Any, Mapping[str, jax.Array]]:
    """Returns the state after one observation, and scalars to log.

    An observation whose mask is all False leaves an identity the identity.
    """

  def rebuild(self, state: Any, key: jax.Array, table: TargetTable) -> Any:
    """Returns the state to go on with after the whole table was re-encoded."""

  def flops_per_row(self, dim: int) -> float:
    """Returns the FLOPs of `apply` per row, or of `fold` per query."""

  def flops_per_update(self, num_rows: int, num_queries: int, dim: int
                       ) -> float:
    """Returns the FLOPs of `update` on so many observed rows."""


class Sampler(Protocol):
  """Chooses negatives. Frozen and hashable; `samplers.Stateless` has defaults.

  Attributes:
    num_negatives: K.
    gives: what its Proposals hold, of
      'log_q': the log probability of a draw that may hit any live row;
      'log_z': it scores the whole table and draws from exp(logits - log_z) one
        row after the other, without replacement;
      'every_row': the batch's draws together cover every row.
    draws_from_memory: False for one that draws corpus ids, with rows -1 (the
      step looks them up, and takes the first target of a text for a copy).
    draws_from_pools: whether it draws from `Episode.pools`, which are then
      mined before each episode; its state is then that of any num_negatives.
    on_host: True for one that runs on the host between two compiled parts of a
      step: its state is numpy, never traced or donated, its request and view
      hold concrete arrays, and its proposal may be numpy.
    reads_embeddings: whether its choice depends on what is remembered.
    takes_few_rows: whether `propose` asks the memory for a few rows, by
      `table.take`, rather than to scan it; rows on the host need that.
    maintain_every: steps after which it is rebuilt from the memory as that is,
      besides whenever the memory is renewed; 0: never.
  """
  @property
  def num_negatives(self) -> int: ...
  @property
  def gives(self) -> frozenset[str]: ...
  @property
  def draws_from_memory(self) -> bool: ...
  @property
  def draws_from_pools(self) -> bool: ...
  @property
  def on_host(self) -> bool: ...
  @property
  def reads_embeddings(self) -> bool: ...
  @property
  def takes_few_rows(self) -> bool: ...
  @property
  def maintain_every(self) -> int: ...

  def init(self, key: jax.Array, view: View) -> Any:
    """Returns the state before step 0: a pytree, replicated but for `ByRow`."""

  def propose(self, state: Any, key: jax.Array, request: Request, view: View
              ) -> Proposal:
    """Returns K negatives for each query of the request."""

  def update(self, state: Any, observation: Observation
             ) -> tuple[Any, Mapping[str, jax.Array]]:
    """Returns the state after a step's observation, and scalars to log."""

  def rebuild(self, state: Any, key: jax.Array, episode: Episode) -> Any:
    """Returns the state to go on with once the memory has been renewed."""

  def diagnose(self, state: Any, request: Request, view: View
               ) -> Mapping[str, jax.Array]:
    """Returns scalars that say how its draws compare with the exact softmax.

    It may look at every row; {} where there is nothing to say.
    """

  def rows_scored(self, num_queries: int, capacity: int) -> tuple[int, int]:
    """Returns what one `propose` over M = capacity rows costs, for the meter.

    Returns:
      The products <query, row> that it takes, and the rows that it corrects.
    """

  def rows_compared(self, capacity: int) -> tuple[int, int]:
    """Returns what `init` over M = capacity rows costs, for the meter.

    Returns:
      The products of two vectors [D] that it takes, and the rows that it
      corrects.
    """


class Objective(Protocol):
  """What fresh embeddings become: a loss. Frozen and hashable.

  Attributes:
    needs: what must be given to it, such as 'log_q', 'log_z' or 'every_row' by
      the sampler, 'own_columns', 'negatives', 'teacher' (its scores),
      'teacher_vectors' or 'answers' by the data or the method;
      `compatibility.NEEDS` has all. One that needs answers reads no positive.
    reads_tokens: whether it needs the tokens of the draws besides their
      embeddings.
  """
  @property
  def needs(self) -> frozenset[str]: ...
  @property
  def reads_tokens(self) -> bool: ...

  def init(self, key: jax.Array) -> Params:
    """Returns its own parameters, trained with the encoders'; {} for none."""

  def flops(self, batch_size: int, num_negatives: int, num_candidates: int,
            dim: int) -> float:
    """Returns the FLOPs of the loss of a batch, without a gradient.

    Args:
      batch_size: B.
      num_negatives: K, draws and candidates of a query.
      num_candidates: n of them are candidates.
      dim: D.
    """

  def __call__(self, params: Params, fresh: Fresh, batch: Batch,
               proposal: Proposal
               ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Returns the loss [B] float32, and scalars [] float32 to log.

    Args:
      params: its own.
      fresh: what the step encoded.
      batch: the step's.
      proposal: the draws and candidates; nothing in it carries gradient.
    """


class Reader(Protocol):
  """Says how likely an answer is, given a question and a passage.

  Frozen and hashable; its parameters are the entry 'reader' of a run's. A row
  holds question, passage and answers in one array, as its module says, padded
  at its end with -1: to `chunking` it is a text, and the reader an encoder with
  D = 2.

  Attributes:
    row_length: L of its rows.
    fuses: whether it also reads all passages of a question together.
  """
  @property
  def row_length(self) -> int: ...
  @property
  def fuses(self) -> bool: ...

  def init(self, key: jax.Array) -> Params:
    """Returns random parameters, float32."""

  @property
  def read(self) -> Encode:
    """(params, rows [n, L]) -> [n, 2] float32, two log masses.

    The first is that of the answer, at most NO_ANSWER / 2 where the passage
    cannot give it; the second is that of everything the reader could say of
    the passage. Their difference is log P(answer | question, passage).
    """

  @property
  def read_fused(self) -> Encode:
    """(params, fused rows [B, K * L]) -> [B, 1], log P; where it fuses."""

  def flops(self, length: int) -> float:
    """Returns the matmul FLOPs of reading one row of `length` tokens."""


NO_ANSWER = -1e30
"""The log mass of an answer that a passage does not hold; finite, so that no
gradient is nan."""


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
  sizes: dict[str, int] = {}
  first_seen: dict[str, str] = {}
  for name, (array, shape) in named.items():
    letters = shape.split()
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
