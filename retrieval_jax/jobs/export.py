"""Exports a run's encoder as a folder that sentence-transformers loads."""

from collections.abc import Sequence
import importlib.util
import os
from typing import Any

import numpy as np

from retrieval_jax import files
from retrieval_jax import indexes
from retrieval_jax import processes
from retrieval_jax import quantisation
from retrieval_jax import trained
from retrieval_jax.data import tensor_files
from retrieval_jax.evaluation import report
from retrieval_jax.jobs import embed
from retrieval_jax.jobs import model_card
from retrieval_jax.models import export
from retrieval_jax.models import peft
from retrieval_jax.models import pretrained


def run(out: str, workdir: str, *, embeddings: bool = False,
        adapters: bool = False, precisions: Sequence[str] = ()) -> None:
  """Exports the last checkpoint of a run, whole or not at all.

  Args:
    out: folder to write.
    workdir: folder of the run.
    embeddings: also write OUT/embeddings: what `embed.run` writes, the same as
      embeddings.safetensors and, where faiss is installed, targets.faiss.
    adapters: write low-rank adapters alone, in the layout of PEFT, in place of
      the encoder with them in its kernels.
    precisions: of quantisation.PRECISIONS, the targets in these as well:
      embeddings_int8.safetensors has `targets` [N, D] int8 and `ranges` [2, D]
      float32, embeddings_binary.safetensors `targets` [N, ceil(D / 8)] uint8;
      where faiss is installed, targets_int8.faiss, an IndexScalarQuantizer of
      the same ranges, and targets_binary.faiss, an IndexBinaryFlat.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint in `workdir`.
    ValueError: if `out` exists, or there are no adapters to write, or none that
      have a base to name, for other precisions, or for any of them without
      `embeddings`.
  """
  if os.path.exists(out):
    raise ValueError(f'--out={out} exists; name a new folder or remove it.')
  quantisation.check(precisions, '--precisions')
  if precisions and not embeddings:
    raise ValueError(
        f'--precisions={",".join(precisions)} is of embeddings, which are '
        'exported with --embeddings alone; add it.')
  retriever = trained.open(workdir)
  config, model = retriever.config, retriever.model
  base = _base(workdir, retriever) if adapters else ''
  measured = os.path.exists(os.path.join(workdir, report.RESULTS_FILE))
  with processes.new_folder(os.path.abspath(out)) as folder:
    export.write(
        folder, model, retriever.params, retriever.experiment.tokenizer,
        lengths=(config.data.query_length, config.data.target_length),
        prompts=(config.model.query_prompt, config.model.target_prompt),
        base=base)
    files.write_text(os.path.join(folder, 'README.md'), model_card.write(
        retriever,
        report.read_results(workdir) if measured else None, precisions))
    if embeddings:
      inside = os.path.join(folder, 'embeddings')
      os.makedirs(inside)
      embed.write(retriever, inside, os.path.join(out, 'embeddings'))
      if processes.is_first():
        _write_embeddings(inside, *embed.read(inside), precisions)


def _write_embeddings(folder: str, targets: np.ndarray, queries: np.ndarray,
                      precisions: Sequence[str]) -> None:
  """Writes [N, D] and [Q, D] float32 for other libraries; see `run`."""
  tensor_files.write(os.path.join(folder, 'embeddings.safetensors'), {
      'targets': targets, 'queries': queries})
  if can_write_faiss():
    _write_index(os.path.join(folder, 'targets.faiss'),
                 indexes.FaissFlat().build(targets))
  for precision in precisions:
    _write_quantised(folder, precision, targets)


def _base(workdir, retriever):
  """Returns the name of the encoder that a run's adapters belong to."""
  config = retriever.config
  if retriever.model.lora is None:
    raise ValueError(
        f'--adapters: {workdir} has no low-rank adapters (lora.rank=0); leave '
        'the flag out to write its encoder.')
  if config.model.start_from:
    raise ValueError(
        f'--adapters: those of {workdir} belong to the encoder of the run '
        f'{config.model.start_from}, which no other library can load; export '
        'that first and train from the folder, or leave the flag out to write '
        'the encoder with its adapters.')
  peft.check_names(retriever.model.config.model_type, '--adapters')
  whole = pretrained.num_layers(config.model.pretrained)
  if retriever.model.config.num_layers != whole:
    raise ValueError(
        f'--adapters: {workdir} keeps {retriever.model.config.num_layers} of '
        f'the {whole} layers of {config.model.pretrained}, where other '
        'libraries would use them all; leave the flag out to write the encoder '
        'with its adapters.')
  return config.model.pretrained


def can_write_faiss() -> bool:
  """Returns whether faiss is installed."""
  return importlib.util.find_spec('faiss') is not None


def _write_quantised(folder: str, precision: str, targets: np.ndarray) -> None:
  """Writes targets [N, D] float32 in a precision, and where faiss is its index.

  Raises:
    OSError: naming the file, if it cannot be written.
  """
  path = os.path.join(folder, f'embeddings_{precision}.safetensors')
  if precision == 'int8':
    ranges = quantisation.ranges(targets)
    tensors = {'targets': quantisation.to_int8(targets, ranges),
               'ranges': ranges}
  else:
    tensors = {'targets': quantisation.to_binary(targets)}
  tensor_files.write(path, tensors)
  if not can_write_faiss():
    return
  import faiss
  index: Any
  if precision == 'int8':
    index = faiss.IndexScalarQuantizer(
        targets.shape[1], faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT)
    index.train(targets)  # takes the ranges
    index.add(targets)
  else:
    index = faiss.IndexBinaryFlat(8 * tensors['targets'].shape[1])
    index.add(tensors['targets'])
  _write_index(os.path.join(folder, f'targets_{precision}.faiss'), index)


def _write_index(path: str, index: Any) -> None:
  """Writes an index of faiss, of floats or of bits.

  Raises:
    OSError: naming the file, if it cannot be written.
  """
  import faiss
  write = (faiss.write_index_binary if isinstance(index, faiss.IndexBinary)
           else faiss.write_index)
  try:
    write(index, path)
  except RuntimeError as error:
    raise OSError(f'Cannot write {path}: {error}') from error
