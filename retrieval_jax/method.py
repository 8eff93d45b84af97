"""One point of the design space: which memory, corrector, sampler, loss."""

import dataclasses

from retrieval_jax import correctors
from retrieval_jax import distillation as distillations
from retrieval_jax import estimators
from retrieval_jax import matryoshka as matryoshkas
from retrieval_jax import samplers
from retrieval_jax import types

MEMORIES = ('none', 'ring', 'corpus')
COLUMNS = ('own', 'positives', 'all', 'draws')
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
    reencode_every: R, all rows are re-encoded every R steps; 0 means never.
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

  def num_probes(self, capacity: int, multiple: int) -> int:
    """Returns P, rows re-encoded per step: rho * M rounded up to `multiple`."""
    return -(-round(self.fraction * capacity) // multiple) * multiple


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
      does not speak of it; ours, where the model's embeddings have length one,
      for scores would else stop being cosines.
  """
  source: str = 'encoder'
  row_learning_rate: float | None = None
  normalize: bool = False

  def __post_init__(self):
    _check_choice('targets.source', self.source, SOURCES)
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

  Attributes:
    memory: 'none', 'ring' (M < N, rows come and go) or 'corpus' (M = N).
    corrector: a types.Corrector.
    sampler: a types.Sampler.
    estimator: a name in `estimators.ESTIMATORS`.
    columns: which fresh targets each query's loss sees besides its positive:
      'own' (its own draws), 'positives' (own draws and the other queries'
      positives), 'all' (all draws and positives of the batch), 'draws' (all
      draws of the batch, no in-batch positives). Explicit candidates go with
      the draws.
    refresh: a Refresh.
    targets: a Targets.
    matryoshka: a matryoshka.Matryoshka.
    num_candidates: explicit candidates per query and step.
    ceiling: a samplers.Ceiling that columns must stay below, by fresh scores;
      None for none.
    distillation: a distillation.Distillation.
  """
  memory: str
  corrector: types.Corrector
  sampler: types.Sampler
  estimator: str
  columns: str
  refresh: Refresh
  targets: Targets = dataclasses.field(default_factory=Targets)
  matryoshka: matryoshkas.Matryoshka = dataclasses.field(
      default_factory=matryoshkas.Matryoshka)
  num_candidates: int = 0
  ceiling: samplers.Ceiling | None = None
  distillation: distillations.Distillation = dataclasses.field(
      default_factory=distillations.Distillation)

  def __post_init__(self):
    _check_choice('memory.kind', self.memory, MEMORIES)
    _check_choice('estimator.name', self.estimator, estimators.ESTIMATORS)
    _check_choice('estimator.columns', self.columns, COLUMNS)
    draws = self.sampler.num_negatives
    if self.memory == 'none' and (draws or self.refresh != Refresh()):
      raise ValueError(
          "memory.kind='none' remembers nothing to draw from or refresh; set "
          "memory.kind='corpus' or 'ring', or sampler.name='none' with all of "
          'refresh off.')
    if self.memory == 'none' and self.corrector != correctors.Identity():
      raise ValueError(
          "memory.kind='none' remembers nothing to correct; set "
          "corrector.name='identity', or memory.kind='corpus' or 'ring'.")
    if self.num_candidates < 0:
      raise ValueError(
          f'data.num_candidates={self.num_candidates} must be a number of '
          'candidates per query, or 0 for none.')
    if not (draws or self.num_candidates) and self.columns in ('own', 'draws'):
      raise ValueError(
          f"sampler.name='none' with estimator.columns={self.columns!r} leaves "
          "the loss without negatives; use columns 'positives', or explicit "
          'candidates by data.num_candidates.')
    if self.estimator != 'truncated_softmax':
      for option, given in (
          ('data.num_candidates', self.num_candidates),
          ('estimator.max_share or min_margin', self.ceiling)):
        if given:
          raise ValueError(
              f'{option} changes the columns of the loss, but estimator.name='
              f'{self.estimator!r} is right for all that was drawn and nothing '
              "else; leave it out, or use estimator.name='truncated_softmax'.")
    if self.distillation.kind != 'none' and not self.num_candidates:
      raise ValueError(
          f'distillation.kind={self.distillation.kind!r} compares the scores '
          "of a query's positive and candidates; it needs "
          'data.num_candidates of at least 1.')
    if not draws and self.refresh.write_back:
      raise ValueError(
          "refresh.write_back=True needs drawn rows, but sampler.name='none'.")
    if self.targets.source != 'encoder' and (
        self.memory != 'corpus' or self.refresh != Refresh()
        or self.corrector != correctors.Identity()):
      raise ValueError(
          f'targets.source={self.targets.source!r} takes the rows of the table '
          "for the targets; it needs memory.kind='corpus', all of refresh off "
          "and corrector.name='identity'.")
    if self.memory == 'ring' and self.refresh.reencode_every:
      raise ValueError(
          'refresh.reencode_every re-encodes a whole corpus; with '
          "memory.kind='ring' use refresh.fraction, push and write_back.")
    if self.memory == 'ring' and not self.refresh.push:
      raise ValueError(
          "memory.kind='ring' takes in the batches' positives: set "
          'refresh.push=True.')
    if self.estimator == 'cache_gradient':
      if not self.sampler.gives_log_z:
        raise ValueError(
            "estimator.name='cache_gradient' needs log Z over the memory; use "
            "sampler.name='gumbel', 'top_k_gumbel' or 'bucketed'.")
      if self.columns != 'own':
        raise ValueError(
            "estimator.name='cache_gradient' weighs each query's own draws; "
            f"set estimator.columns='own' (it is {self.columns!r}).")
    if self.estimator == 'sampled_softmax' and not (
        self.sampler.gives_log_q and self.columns == 'own'):
      raise ValueError(
          "estimator.name='sampled_softmax' needs log q of every column: use "
          "sampler.name='uniform' or 'gumbel' and estimator.columns='own' "
          f'(it is {self.columns!r}).')
    exhaustive = (type(self.sampler).__name__ == 'Exhaustive'
                  and self.columns == 'draws' and self.memory == 'corpus')
    if self.estimator == 'full_softmax' and not exhaustive:
      raise ValueError(
          "estimator.name='full_softmax' is the exact loss over all targets; "
          "it needs memory.kind='corpus', sampler.name='exhaustive' and "
          "estimator.columns='draws'.")


def _check_choice(option, value, choices):
  if value not in choices:
    raise ValueError(f'{option}={value!r} is not one of {list(choices)}.')
