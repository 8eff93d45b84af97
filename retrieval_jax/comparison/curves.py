"""What a run's evaluations during training say: its noise, and how soon.

They are those of the dev split that training logs, whatever split is compared,
and so as coarse as `evaluation.every`.
"""

from collections.abc import Iterator
import itertools
import math
import statistics
from typing import Any

from retrieval_jax.comparison import runs as runs_lib

OfRuns = dict[str, dict[str, Any]]
"""The name of a run -> what is said of its curve, by column."""

NOISE = 'curve noise'
STEPS_TO = 'steps to '  # and the name of a method

_SENTENCES = {
    NOISE: (
        '`curve noise` is the standard deviation of {measure} of dev '
        'evaluations during training about the line through the one before and '
        'the one after, restarts left out.'),
    STEPS_TO: (
        '`{column}` is the first dev evaluation during training, in steps of '
        'the run, with a {measure} of at least what {method} has at its end, '
        'of the same seed where both have the same seeds, else in the mean; '
        'empty where a seed never has.')}


def evaluations(run: runs_lib.FinishedRun, measure: str) -> dict[int, float]:
  """Returns step -> a measure of the dev split, in order; maybe none."""
  name = f'{_dev_split(run)}/{measure}'
  found = {int(line['step']): line[name] for line in run.log
           if line.get(name) is not None}
  return dict(sorted(found.items()))


def noise(run: runs_lib.FinishedRun, measure: str) -> float | None:
  """Returns how uneven a learning curve is, in units of the measure.

  The standard deviation s of an evaluation about the trend, for which the line
  through its neighbours is taken: with q_i after t_i steps,

    w_i = (t_{i+1} - t_i) / (t_{i+1} - t_{i-1})
    e_i = w_i q_{i-1} + (1 - w_i) q_{i+1} - q_i
    s^2 = mean_i e_i^2 / (w_i^2 + (1 - w_i)^2 + 1)

  So s^2 is the variance of independent noise on a trend that is straight from
  neighbour to neighbour, 0 on a line, and larger where the trend bends. Where
  episodes start the encoder again, each has a curve of its own: a restart is no
  noise.

  Source: Gasser, Sroka and Jennen-Steinmetz, Biometrika 1986, for the estimate.
    That it is what to call the variance of a learning curve is ours.

  Args:
    run: whose log is read.
    measure: such as 'RR@10'.

  Returns:
    None where no three evaluations follow each other.
  """
  squares = []
  for points in _between_restarts(run, measure):
    for (t0, q0), (t1, q1), (t2, q2) in zip(points, points[1:], points[2:]):
      w = (t2 - t1) / (t2 - t0)
      squares.append((w * q0 + (1 - w) * q2 - q1)**2 / (
          w**2 + (1 - w)**2 + 1))
  return math.sqrt(statistics.fmean(squares)) if squares else None


def steps_to(run: runs_lib.FinishedRun, measure: str, least: float
             ) -> int | None:
  """Returns the first step with an evaluation of at least so much, or None.

  Steps are those of the whole run. What a restart then throws away counts, for
  it was there.
  """
  return next((step for step, quality in evaluations(run, measure).items()
               if quality >= least), None)


def columns(groups: runs_lib.Groups, measure: str, method: str | None = None
            ) -> OfRuns:
  """Returns what tables say of the curve of each run.

  Args:
    groups: runs by method.
    measure: such as 'RR@10'.
    method: one of them, whose final measure on dev others are to reach; a run
      is held against that of its own seed where both methods have the same
      seeds, else against their mean. None leaves the column out.

  Raises:
    ValueError: if there is no such method, or it was not evaluated on dev.
  """
  found: OfRuns = {run.name: {NOISE: noise(run, measure)}
                   for members in groups.values() for run in members}
  if method is None:
    return found
  runs_lib.check_method(groups, method, '--steps_to')
  final = {run.results.get('seed'): run.measure(_dev_split(run), measure)
           for run in groups[method]}
  mean = statistics.fmean(final.values())
  for members in groups.values():
    seeds = {run.results.get('seed') for run in members}
    paired = None not in seeds and seeds == set(final)
    for run in members:
      found[run.name][STEPS_TO + method] = steps_to(
          run, measure, final[run.results['seed']] if paired else mean)
  return found


def sentences(found: OfRuns, measure: str) -> list[str]:
  """Returns how to read each of the `columns` that is not empty."""
  named = dict.fromkeys(
      column for of_run in found.values() for column, value in of_run.items()
      if value is not None)
  return [_SENTENCES[NOISE if column == NOISE else STEPS_TO].format(
      column=column, measure=measure, method=column.removeprefix(STEPS_TO))
          for column in named]


def _dev_split(run: runs_lib.FinishedRun) -> str:
  return run.config.get('data', {}).get('dev_split') or 'dev'


def _between_restarts(run: runs_lib.FinishedRun, measure: str
                      ) -> Iterator[list[tuple[int, float]]]:
  """Yields the evaluations (step, quality) of each start of the encoder."""
  points = evaluations(run, measure).items()
  plan = run.config.get('episodes', {})
  every = run.config.get('refresh', {}).get('reencode_every')
  if not plan.get('restart') or not every:
    yield list(points)
    return
  last = plan['number'] - 1 if plan['number'] else math.inf
  # The evaluation at an episode's end comes before the restart.
  for _, part in itertools.groupby(
      points, lambda point: min((point[0] - 1) // every, last)):
    yield list(part)
