"""One point of the design space: which memory, corrector, sampler, loss."""

import dataclasses

from retrieval_jax import compatibility
from retrieval_jax import types

SOURCES = ('encoder', 'frozen', 'rows')


@dataclasses.dataclass(frozen=True)
class Refresh:
  """Which remembered rows are re-encoded, and when.

  Attributes:
    write_back: the drawn negatives, encoded anyway for the loss, overwrite
      their rows (free; NeurIPS 2021). So do explicit candidates, where the
      memory holds them.
    push: the batch's positives, likewise encoded anyway, enter the memory.
    fraction: rho, the share of rows re-encoded on top in each step, in [0, 1);
      every row is hit with probability rho per step, so the mean age under
      this policy alone is (1 - rho) / rho steps.
    reencode_every: R, all rows are re-encoded every R steps, and the sampler
      may be rebuilt; 0 means never.
  """
  write_back: bool = False
  push: bool = False
  fraction: float = 0.0
  reencode_every: int = 0

  def __post_init__(self):
    if not 0 <= self.fraction < 1:
      raise ValueError(
          f'refresh.fraction={self.fraction} must lie in [0, 1); to re-encode '
          'everything in every step use refresh.reencode_every=1.')
    if self.reencode_every < 0:
      raise ValueError(
          f'refresh.reencode_every={self.reencode_every} must be a number of '
          'steps, or 0 for never.')

  @property
  def is_off(self) -> bool:
    """Whether no row is ever re-encoded."""
    return self == Refresh()

  def num_rows(self, num_slots: int) -> int:
    """Returns P, the rows that `fraction` of a memory re-encodes per step.

    Raises:
      ValueError: if that is less than one row.
    """
    num_rows = round(self.fraction * num_slots)
    if self.fraction and not num_rows:
      raise ValueError(
          f'refresh.fraction={self.fraction} of {num_slots} remembered rows is '
          f'less than one row per step; take at least {1 / num_slots:.2g}, '
          'or 0 for none.')
    return num_rows


@dataclasses.dataclass(frozen=True)
class Targets:
  """Where the loss finds the embeddings of positives and negatives.

  Attributes:
    source: 'encoder' (encoded afresh by the target tower, which is trained),
      'frozen' (read from the table, which the initial target tower filled and
      nothing changes: STAR/ADORE, SIGIR 2021) or 'rows' (read from the table,
      whose rows are themselves trained, by SGD, in place of the tower: direct
      gradients, AAAI 2026). The last two train no target tower.
    row_learning_rate: of the rows, constant; for 'rows' only.
    normalize: give a trained row length one again after its step. The paper
      does not mention it; ours, where the model's embeddings have length one,
      because scores would otherwise stop being cosines.
  """
  source: str = 'encoder'
  row_learning_rate: float | None = None
  normalize: bool = False

  def __post_init__(self):
    if self.source not in SOURCES:
      raise ValueError(
          f'targets.source={self.source!r} is not one of {list(SOURCES)}.')
    rate = self.row_learning_rate
    if (self.source == 'rows') != (rate is not None) or rate is not None and (
        rate <= 0):
      raise ValueError(
          f'targets.row_learning_rate={rate} with targets.source='
          f"{self.source!r}: source 'rows' needs a positive rate, and the "
          'others train no rows and take none.')


@dataclasses.dataclass(frozen=True)
class Method:
  """A training method, static and printable; `repr` is its configuration.

  Parts that do not go together are refused, see `compatibility`.

  Attributes:
    memory: a types.Memory.
    corrector: a types.Corrector.
    sampler: a types.Sampler.
    objective: a types.Objective.
    refresh: a Refresh.
    targets: a Targets.
    num_candidates: explicit candidates per query and step.
    reader: a types.Reader, where questions have answers in place of positives.
    teacher_dim: D', the dimension of another encoder's vectors of the same
      data; 0 where there are none.
  """
  memory: types.Memory
  corrector: types.Corrector
  sampler: types.Sampler
  objective: types.Objective
  refresh: Refresh = dataclasses.field(default_factory=Refresh)
  targets: Targets = dataclasses.field(default_factory=Targets)
  num_candidates: int = 0
  reader: types.Reader | None = None
  teacher_dim: int = 0

  def __post_init__(self):
    compatibility.check_method(self)

  @property
  def has_positives(self) -> bool:
    """Whether a training query comes with a positive."""
    return 'answers' not in self.objective.needs

  @property
  def num_negatives(self) -> int:
    """The targets encoded per query besides its positive."""
    return self.sampler.num_negatives + self.num_candidates
