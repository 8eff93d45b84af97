"""Answers queries with a trained run: the top passages and their scores.

  python -m experiments.search --workdir=runs/stale --query="bank: a muddy bank"
  python -m experiments.search --workdir=runs/stale            # reads stdin

The corpus is embedded once per checkpoint and kept in WORKDIR/targets-STEP.npy.
With --index=DIR, which experiments.adapt wrote, that index is searched instead;
then --config=configs/minilm.py may stand for the encoder of a run.
"""

import os
import sys

from absl import app
from absl import flags
import jax
from ml_collections import config_flags
import numpy as np

from experiments import process
from retrieval_jax import trained
from retrieval_jax.indexes import exact


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values)
  config_flags.DEFINE_config_file(
      'config', None, 'Config file, in place of a run: the encoder it starts '
      'from.', flag_values=values)
  flags.DEFINE_string('index', None, 'Folder of an adapted index.',
                      flag_values=values)
  flags.DEFINE_multi_string(
      'query', [], 'A query; may be repeated. Without it, standard input.',
      flag_values=values)
  flags.DEFINE_integer('k', 5, 'Passages per query.', lower_bound=1,
      flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script():
    searcher = Searcher(values.workdir, values.config, values.index)
    for query in values.query or _lines():
      print(f'\n{query}')
      for score, name, text in searcher(query, values.k):
        print(f'  {score:7.4f}  {name:>16}  {text}')


def _lines():
  if sys.stdin.isatty():
    print('One query per line; end with Ctrl-D.', file=sys.stderr)
  return (line.strip() for line in sys.stdin if line.strip())


def stored_targets(workdir, experiment, params, rows, step):
  """Returns a run's targets [N, D], mapped; embeds them if it has not yet.

  Args:
    workdir: folder of the run.
    experiment: of the run; this and the rest are what `trained.load` returned.
    params: of its last checkpoint.
    rows: of its table, or None.
    step: of the checkpoint.
  """
  path = os.path.join(workdir, f'targets-{step}.npy')
  if not os.path.exists(path):
    print('Embedding the corpus (once per checkpoint).', file=sys.stderr)
    temporary = f'{path}.{os.getpid()}.tmp.npy'
    np.save(temporary, experiment.targets_of(params, rows))
    os.replace(temporary, path)
  return np.load(path, mmap_mode='r')


class Searcher:
  """An encoder over its corpus, held in memory."""

  def __init__(self, workdir, config=None, index=None):
    """Loads the last checkpoint; embeds the corpus if it was not yet.

    Args:
      workdir: folder of a run; None with `config`.
      config: ConfigDict in its place; needs `index`.
      index: folder of an adapted index; None searches the corpus itself.
    """
    if config and not index:
      raise ValueError(
          '--config needs --index=DIR; without one, train a run and name it by '
          '--workdir.')
    self.experiment, self._params, rows, step = trained.load_encoder(
        workdir, config)
    if index:
      self._index, self._state = trained.load_index(index, self.experiment)
    else:
      self._index = exact.ExactIndex(
          self.experiment.mesh, self.experiment.config.memory.chunk_rows)
      self._state = self._index.build(stored_targets(
          workdir, self.experiment, self._params, rows, step))
    self._encode = jax.jit(self.experiment.model.encode_queries)

  def __call__(self, query, k):
    """Returns the k best as (score, corpus id, text), best first."""
    experiment = self.experiment
    tokens, _ = experiment.tokenize_queries([query])
    vector = np.asarray(self._encode(self._params, tokens))
    k = min(k, len(experiment.dataset.corpus_ids))
    scores, rows = self._index.search(self._state, vector, k)
    return [(float(score), experiment.dataset.corpus_ids[int(row)],
             experiment.dataset.corpus_texts[int(row)])
            for score, row in zip(scores[0], rows[0]) if row >= 0]


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
