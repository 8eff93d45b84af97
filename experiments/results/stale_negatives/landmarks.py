"""What ridge regression makes of a run's memory from a few fresh rows.

  python -m experiments.results.stale_negatives.landmarks --workdir=DIR

Encodes the whole corpus with the run's last checkpoint, fits a linear map from
remembered to fresh rows on n of them (landmarks, drawn uniformly; three draws),
and compares the memory seen through the map with brute force on the sample of
dev queries that experiments.diagnose takes. Prints a Markdown table, one row
for each n, of means and ranges over the draws. The first row is the memory as
it is, the second as the run's own corrector sees it, and the last has as many
landmarks as there are targets.
"""

import functools
import statistics

from absl import app
from absl import flags

from retrieval_jax import correctors
from retrieval_jax import trained
from retrieval_jax.evaluation import diagnostics
from retrieval_jax.jobs import diagnose

NUM_LANDMARKS = (256, 512, 1024, 2048, 8192)
DRAWS = range(3)
SHOWN = {'kl': 'KL', 'tv': 'TV', 'top_k_overlap': 'top-100 overlap',
         'gradient_cosine': 'gradient cosine', 'drift_after': 'drift'}

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_RIDGE = flags.DEFINE_float('ridge', 1e-2, 'Penalty, as corrector.ridge.')
flags.mark_flag_as_required('workdir')


def looks(workdir, ridge):
  """Yields (label, what `diagnostics.approximation` found at each draw)."""
  experiment, state = trained.load_state(workdir)
  fresh = experiment.targets_of(state.params, state.table.embeddings)
  look = functools.partial(
      diagnose.against_brute_force, experiment, state, fresh)
  linear = correctors.Linear(
      fit='ridge', ridge=ridge, decay=1.0, num_anchors=0, use_after=0,
      keep_norm=experiment.config.model.normalize, reset_on_refresh=False)
  untouched = linear.init(None, state.table)
  yield 'none', [look(functools.partial(linear.apply, untouched))]
  yield "the run's corrector", [look(functools.partial(
      experiment.method.corrector.apply, state.corrector))]
  for num_rows in (*NUM_LANDMARKS, len(fresh)):
    fits = (diagnostics.fit_to_all(
        linear, state.table, fresh, num_steps=1, num_rows=num_rows, seed=seed)
            for seed in DRAWS)
    yield f'{num_rows:,}', [look(functools.partial(linear.apply, fit))
                            for fit in fits]


def cell(values):
  """Returns 'mean (least..greatest)', or the one value."""
  mean = f'{statistics.mean(values):.2f}'
  if len(values) == 1:
    return mean
  return f'{mean} ({min(values):.2f}..{max(values):.2f})'


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  print('| landmarks | ' + ' | '.join(SHOWN.values()) + ' |')
  print('| ---: |' + ' ---: |' * len(SHOWN))
  for label, found in looks(_WORKDIR.value, _RIDGE.value):
    print(f'| {label} | ' + ' | '.join(
        cell([look[name] for look in found]) for name in SHOWN) + ' |',
          flush=True)


if __name__ == '__main__':
  app.run(main)
