"""What training computes, told to the meter phase by phase.

Components say what they cost:
  sampler.rows_scored(num_queries, capacity) -> (products <query, row> that a
    proposal takes, rows that pass the corrector);
  sampler.rows_compared(capacity) -> the same of what it keeps to draw by, when
    that is built; what rebuilding it took it says itself;
  sampler.reads_embeddings, whether the choice depends on what is remembered;
  corrector.flops_per_row(dim), of `apply`;
  corrector.flops_per_update(num_rows, num_queries, dim), of `update`;
  objective.flops(batch_size, num_negatives, num_candidates, dim), of its
    products, without a gradient.
"""

import dataclasses
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from retrieval_jax.training import meter as meters


@dataclasses.dataclass(frozen=True)
class Cost:
  """Counts on `meter` what the phases of training cost.

  A text's FLOPs are at mean length. Padding, of a probe or of a draw that found
  no row, is not counted as a text; the device counts the texts and the meter
  fetches their number later, so that no step waits.

  Attributes:
    meter: what counts.
    method: a method.Method.
    dim: D, of the embeddings.
    batch_size: B.
    query_flops: of one query's forward pass.
    target_flops: of one target's forward pass.
    passes: forward passes that one text of the loss is worth, see
      `passes_of_gradient`.
  """
  meter: meters.Meter
  method: Any
  dim: int
  batch_size: int
  query_flops: float
  target_flops: float
  passes: int

  @property
  def reads_memory(self) -> bool:
    """Whether anything that is trained depends on remembered embeddings."""
    return (self.method.sampler.reads_embeddings
            or self.method.targets.source != 'encoder')

  def step(self, capacity: int, negative_ids: jax.Array,
           probe_ids: jax.Array) -> None:
    """Counts one training step.

    Args:
      capacity: M, rows of the table.
      negative_ids: [B * K] int32, targets encoded for the loss, -1 for none;
        [0] where it reads targets from the table.
      probe_ids: [P] int32, targets encoded for the memory, likewise.
    """
    sampler = self.method.sampler
    scored, corrected = sampler.rows_scored(self.batch_size, capacity)
    if scored or sampler.on_host:  # else nothing asks for the queries
      self.meter.count_step(targets=0, queries=self.batch_size,
                            query_flops=self.query_flops)
    self.meter.count('flops_scoring', scored, 2. * self.dim)
    self._loss(negative_ids)
    if probe_ids.size:
      self.reembedding(_num_texts(probe_ids))
    self._correcting(
        corrected, self.batch_size * (
            self.method.has_positives + self.method.num_negatives)
        + probe_ids.size)

  def reading(self, lengths: np.ndarray) -> None:
    """Counts the rows that a reader reads for the loss.

    One that fuses them learns from that alone, and reads each besides without
    a gradient.

    Args:
      lengths: [n], tokens of each; 0 for padding, of which none is read.
    """
    reader = self.method.reader
    self.meter.count('reader_calls', int((lengths > 0).sum()))
    for length, number in zip(*np.unique(
        lengths[lengths > 0], return_counts=True)):
      self.meter.count('flops_reading', int(number),
                       (self.passes + reader.fuses)
                       * reader.flops(int(length)))

  def reembedding(self, num_targets: int | jax.Array) -> None:
    """Counts targets encoded for the memory alone."""
    self.meter.count_reembedding(
        targets=num_targets, target_flops=self.target_flops)

  def mining(self, num_queries: int, num_targets: int, searches: int) -> None:
    """Counts queries that are embedded to mine by, and exact searches.

    Args:
      num_queries: embedded.
      num_targets: searched, which are counted where they are embedded.
      searches: queries, and positives to look ahead from.
    """
    self.meter.count('query_encoder_calls', num_queries)
    self.meter.count('flops_reembedding', num_queries, self.query_flops)
    self.meter.count('flops_scoring', searches, 2. * self.dim * num_targets)

  def correcting(self, num_rows: int) -> None:
    """Counts remembered rows that are corrected outside of a step."""
    self.meter.count('flops_correcting', num_rows,
                     self.method.corrector.flops_per_row(self.dim))

  def comparing(self, products: int, num_rows: int) -> None:
    """Counts what building or rebuilding a sampler's state took.

    Args:
      products: of two vectors [D].
      num_rows: that pass the corrector; of one that folds none does.
    """
    if products:
      self.meter.count('flops_indexing', products, 2. * self.dim)
    if not self.method.corrector.folds:
      self.correcting(num_rows)

  def _loss(self, negative_ids):
    encoded = self.method.targets.source == 'encoder'
    self.meter.count_step(
        targets=(self.batch_size if encoded and self.method.has_positives
                 else 0), queries=self.batch_size,
        target_flops=self.passes * self.target_flops,
        query_flops=self.passes * self.query_flops)
    if encoded and negative_ids.size:
      self.meter.count_step(
          targets=_num_texts(negative_ids), queries=0,
          target_flops=self.passes * self.target_flops)
    # A product's gradient is two more, or one where targets have none.
    products = 2 if self.method.targets.source == 'frozen' else 3
    self.meter.count(
        'flops_scoring', products, self.method.objective.flops(
            self.batch_size, self.method.num_negatives,
            self.method.num_candidates, self.dim))

  def _correcting(self, corrected, num_observed):
    """Counts the rows that a proposal corrects and those a step observes."""
    corrector = self.method.corrector
    if corrector.folds and corrected:
      corrected = self.batch_size  # it moves queries in place of rows
    # Observed rows are corrected once more, to log their drift.
    self.meter.count('flops_correcting', corrected + num_observed,
                     corrector.flops_per_row(self.dim))
    self.meter.count('flops_correcting', 1, corrector.flops_per_update(
        num_observed, self.batch_size, self.dim))


def passes_of_gradient(*, chunked: bool, remat: bool, adapters: bool = False
                       ) -> int:
  """Returns the forward passes that a text costs where it has a gradient.

  The backward pass is worth two, one for the gradient of what goes through a
  kernel and one for the kernel's own, which kernels with low-rank adapters do
  not have. Each of gradient caching and `remat` computes the forward pass once
  more.
  """
  return 3 - adapters + chunked + remat


@jax.jit
def _num_texts(ids):
  """Returns how many ids [n] are not -1, [] int32."""
  return jnp.sum(ids >= 0, dtype=jnp.int32)
