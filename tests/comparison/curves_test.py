"""What is said of a learning curve, worked out by hand."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax.comparison import curves
from retrieval_jax.comparison import runs as runs_lib


def run(points, seed=0, name='a', **config):
  """Returns a run with these evaluations, step -> quality, the last its end."""
  return runs_lib.FinishedRun(
      f'{name}{seed}', {'seed': seed, 'measures': {'dev': {
          'RR@10': list(points.values())[-1]}}}, config,
      tuple({'step': step, 'dev/RR@10': quality, 'train/nll': 1.}
            for step, quality in points.items()), ())


def restarts(number, every):
  return {'episodes': {'restart': True, 'number': number},
          'refresh': {'reencode_every': every}}


class NoiseTest(parameterized.TestCase):

  def test_three_evaluations(self):
    # 0.2 is half-way between the others; weights 1/2, 1/2 and 1.
    found = curves.noise(run({10: 0.1, 20: 0.4, 30: 0.3}), 'RR@10')
    self.assertAlmostEqual(found, math.sqrt(0.2**2 / (1 / 4 + 1 / 4 + 1)))

  def test_evaluations_that_are_not_equally_far_apart(self):
    # The line is at 0.4 after 20 of 30 steps, then at 0.45 after 10 of 20.
    found = curves.noise(run({0: 0., 20: 0.3, 30: 0.6, 40: 0.6}), 'RR@10')
    squares = (0.1**2 / (1 / 9 + 4 / 9 + 1), 0.15**2 / (1 / 4 + 1 / 4 + 1))
    self.assertAlmostEqual(found, math.sqrt(sum(squares) / 2))

  def test_a_line_has_none(self):
    line = {step: 0.1 + step / 100 for step in (0, 5, 20, 21, 40)}
    self.assertAlmostEqual(curves.noise(run(line), 'RR@10'), 0)

  def test_it_is_the_standard_deviation_of_noise_on_a_trend(self):
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 9, 4000))
    curve = steps / steps[-1] + 0.03 * rng.normal(size=4000)
    found = curves.noise(
        run(dict(zip(steps.tolist(), curve.tolist()))), 'RR@10')
    # Four standard errors of 1.6%; differences of successive ones say 0.042.
    self.assertAlmostEqual(found / 0.03, 1, delta=0.064)

  def test_a_restart_is_no_noise(self):
    saw = {10: 0.1, 20: 0.2, 30: 0.3, 40: 0.1, 50: 0.2, 60: 0.3, 70: 0.4}
    straight = curves.noise(run(saw, **restarts(2, 30)), 'RR@10')
    self.assertAlmostEqual(straight, 0)
    self.assertGreater(curves.noise(run(saw), 'RR@10'), 0.05)
    goes_on = restarts(2, 30)
    goes_on['episodes']['restart'] = False
    self.assertGreater(curves.noise(run(saw, **goes_on), 'RR@10'), 0.05)

  @parameterized.parameters((3, True), (0, False))
  def test_the_last_episode_goes_on(self, number, three_in_one):
    """To the end where their number is set; else it is one of 20 steps, too."""
    points = dict.fromkeys(range(10, 80, 10), 0.1)
    found = curves.noise(run(points, **restarts(number, 20)), 'RR@10')
    self.assertEqual(found is not None, three_in_one)

  def test_too_few_have_none(self):
    self.assertIsNone(curves.noise(run({10: 0.1, 20: 0.4}), 'RR@10'))
    self.assertIsNone(curves.noise(run({10: 0.1, 20: 0.4}), 'nDCG@10'))

  def test_the_dev_split_has_the_name_that_the_config_says(self):
    of_others = runs_lib.FinishedRun(
        'a', {}, {'data': {'dev_split': 'links_dev'}},
        ({'step': 4, 'links_dev/RR@10': 0.2, 'dev/RR@10': 0.3},
         {'step': 2, 'links_dev/RR@10': 0.1}, {'step': 3}), ())
    self.assertEqual(list(curves.evaluations(of_others, 'RR@10').items()),
                     [(2, 0.1), (4, 0.2)])


class StepsToTest(parameterized.TestCase):

  def steps(self, method, **groups):
    found = curves.columns(groups, 'RR@10', method)
    return {name: of_run[f'steps to {method}']
            for name, of_run in found.items()}

  def test_the_first_that_is_as_good(self):
    curve = run({10: 0.1, 20: 0.3, 30: 0.2, 40: 0.4})
    self.assertEqual([curves.steps_to(curve, 'RR@10', least) for least in (
        0.3, 0.31, 0.4, 0.5)], [20, 40, 40, None])

  def test_seeds_are_held_against_their_own(self):
    found = self.steps(
        'b', a=[run({10: 0.2, 20: 0.6}, seed) for seed in (0, 1)],
        b=[run({10: 0.1, 20: 0.2}, 1, 'b'), run({10: 0.3, 20: 0.6}, 0, 'b')])
    self.assertEqual(found, {'a0': 20, 'a1': 10, 'b1': 20, 'b0': 20})

  def test_other_seeds_are_held_against_the_mean(self):
    found = self.steps(
        'b', a=[run({10: 0.39, 20: 0.5}, 1), run({10: 0.4, 20: 0.1}, 7)],
        b=[run({10: 0.2}, 1, 'b'), run({10: 0.6}, 2, 'b')])  # 0.4
    self.assertEqual(found, {'a1': 20, 'a7': 10, 'b1': 10, 'b2': 10})

  def test_no_method_no_column(self):
    found = curves.columns({'a': [run({10: 0.2, 20: 0.6})]}, 'RR@10')
    self.assertEqual(found, {'a0': {'curve noise': None}})
    self.assertEqual(curves.sentences(found, 'MRR@10'), [])


if __name__ == '__main__':
  absltest.main()
