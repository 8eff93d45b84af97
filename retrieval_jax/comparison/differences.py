"""How much better one method is than another, over seeds."""

import collections
import dataclasses
import math
import statistics

from scipy import special

from retrieval_jax.comparison import runs as runs_lib


@dataclasses.dataclass(frozen=True)
class Difference:
  """How much better one method is than another, in points (hundredths).

  With as few seeds as are usual, look at all three answers: the interval
  assumes normal differences and is wide (for 3 seeds 2.5 standard deviations to
  either side), the spreads assume nothing and promise no level. An interval is
  about one difference: of twenty between methods that are equally good, one
  excludes 0 by chance.

  Attributes:
    method: the first method.
    against: the second.
    points: mean of the first minus mean of the second.
    paired: whether both have the same seeds. Then differences are taken seed
      by seed, which removes what a seed does to both alike.
    error: standard error of `points`: s / sqrt(n) of the differences if
      paired, else sqrt(s1^2 / n1 + s2^2 / n2). None if a method has one seed.
    interval: 95 % t interval. Degrees of freedom are n - 1, unpaired those of
      the method with fewer seeds: too wide rather than too narrow.
    exceeds_spread: whether |points| is greater than max - min over the seeds
      of the first and greater than that of the second. None as above.
  """
  method: str
  against: str
  points: float
  paired: bool
  error: float | None = None
  interval: tuple[float, float] | None = None
  exceeds_spread: bool | None = None

  @property
  def verdict(self) -> str:
    """What of `exceeds_spread` can be said: 'yes', or 'no' and maybe why.

    It is 'yes' only where the interval excludes 0 as well.
    """
    if self.interval is None:
      return 'one seed'
    if self.exceeds_spread and self.interval[0] <= 0 <= self.interval[1]:
      return 'no: the interval holds 0'
    return 'yes' if self.exceeds_spread else 'no'


def difference(groups: runs_lib.Groups, method: str, against: str, split: str,
               measure: str) -> Difference:
  """Returns the judgement of two methods.

  Raises:
    ValueError: if there is no such method, naming those there are.
  """
  for name in (method, against):
    runs_lib.check_method(groups, name, '--reference and --pairs')
  values = [[100 * run.measure(split, measure) for run in groups[name]]
            for name in (method, against)]
  seeds = [[run.results.get('seed') for run in groups[name]]
           for name in (method, against)]
  points = statistics.fmean(values[0]) - statistics.fmean(values[1])
  paired = None not in seeds[0] and set(seeds[0]) == set(seeds[1])
  fewest = min(map(len, values))
  if fewest < 2:
    return Difference(method, against, points, paired)
  if paired:
    first, second = (dict(zip(s, v)) for s, v in zip(seeds, values))
    error = statistics.stdev(
        first[seed] - second[seed] for seed in first) / math.sqrt(fewest)
  else:
    error = math.sqrt(sum(statistics.variance(v) / len(v) for v in values))
  margin = float(special.stdtrit(fewest - 1, 0.975)) * error
  return Difference(
      method, against, points, paired, error,
      (points - margin, points + margin),
      abs(points) > max(max(v) - min(v) for v in values))


def choose(groups: runs_lib.Groups, split: str, measure: str
           ) -> tuple[runs_lib.Groups, list[str]]:
  """Keeps the best setting of every method.

  Settings of one method have the same 'method' in results.json and differ
  elsewhere, for instance in the learning rate.

  Returns:
    The groups that are kept, and a sentence for each method that had a choice.
  """
  settings: dict[str, dict[str, float]] = collections.defaultdict(dict)
  for name, members in groups.items():
    settings[members[0].results.get('method', name)][name] = statistics.fmean(
        run.measure(split, measure) for run in members)
  kept, sentences = {}, []
  for quality in settings.values():
    best = max(quality, key=quality.__getitem__)
    kept[best] = groups[best]
    if len(quality) > 1:
      others = ', '.join(f'{name} ({value:.4f})'
                         for name, value in quality.items() if name != best)
      sentences.append(f'Chosen by {measure} on {split}: {best} '
                       f'({quality[best]:.4f}) over {others}.')
  return kept, sentences
