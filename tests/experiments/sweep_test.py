"""Sweeps run what is left to run, and report what failed."""

import contextlib
import io
import json
import os
import shlex
import sys
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized

from experiments import sweep

_CONFIG = """
def get_config(variant=None):
  raise AssertionError('a sweep must not need to build the config')

def sweep():
  for k in (1, 4):
    yield {'sampler.k': k, 'sampler.exact': True}

def sweep_named():
  yield {'name': 'big model', 'model.layers': (2, 3)}

def sweep_nothing():
  return iter(())

def sweep_wrong():
  yield [1]

def sweep_twice():
  yield {'a': 1}
  yield {'a': 1}
"""

# Stands in for experiments.train: quality is the override, 0 means failure.
_TRAIN = """
import json, os, sys
arguments = dict(a[2:].split('=', 1) for a in sys.argv[1:])
k = int(arguments['config.sampler.k'])
with open(os.path.join(arguments['workdir'], 'started'), 'a') as f:
  f.write('x')
if k == 0:
  sys.exit(3)
if k > 0:
  with open(os.path.join(arguments['workdir'], 'results.json'), 'w') as f:
    json.dump({'measures': {'dev': {'RR@10': k / 10}}, 'meter': {},
               'steps': 1, 'method': str(k)}, f)
"""


class SweepTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = self.create_tempdir().full_path
    self.workdir = os.path.join(self.root, 'runs')
    self.config = self.write('x.py', _CONFIG)
    self.train = self.write('train.py', _TRAIN)

  def write(self, name, text):
    path = os.path.join(self.root, name)
    with open(path, 'w', encoding='utf-8') as f:
      f.write(text)
    return path

  def main(self, *arguments):
    values = flags.FlagValues()
    sweep.define_flags(values)
    argv = values(['sweep', f'--workdir={self.workdir}', *arguments])
    printed, trials = io.StringIO(), sweep.trials

    def with_the_stand_in(*args):
      for trial in trials(*args):
        yield sweep.Trial(trial.workdir, trial.overrides, (
            sys.executable, '-S', self.train, *trial.command[3:]))

    status = 0
    with contextlib.redirect_stdout(printed), mock.patch.object(
        sweep, 'trials', with_the_stand_in):
      try:
        sweep.main(argv, values)
      except SystemExit as error:
        status = error.code
    return status, printed.getvalue()

  def starts(self, name):
    path = os.path.join(self.workdir, name, 'started')
    return os.path.getsize(path) if os.path.exists(path) else 0

  def test_a_dry_run_prints_commands_and_touches_nothing(self):
    values = flags.FlagValues()
    sweep.define_flags(values)
    argv = values(['sweep', f'--config={self.config}:tiny', '--dry_run',
                   f'--workdir={self.workdir}', '--', '--config.seed=7'])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      sweep.main(argv, values)
    first, _ = map(shlex.split, printed.getvalue().splitlines())
    folder = os.path.join(self.workdir, '000_k=1,exact=true')
    self.assertEqual(first[1:], [
        '-m', 'experiments.train', f'--config={self.config}:tiny',
        f'--workdir={folder}', '--config.seed=7', '--config.sampler.k=1',
        '--config.sampler.exact=true'])
    self.assertFalse(os.path.exists(self.workdir))

  def test_runs_finish_and_are_compared_and_skipped_next_time(self):
    status, printed = self.main(f'--config={self.config}')
    self.assertEqual(status, 0, printed)
    self.assertTrue(os.path.exists(
        os.path.join(self.workdir, 'comparison', 'comparison.png')))
    self.assertIn('| 001_k=4,exact=true |', printed)
    status, printed = self.main(f'--config={self.config}')
    self.assertEqual(status, 0)
    self.assertEqual(printed.count('skipped (finished before)'), 2)
    self.assertEqual(self.starts('000_k=1,exact=true'), 1)

  def test_a_failure_does_not_stop_the_others_and_is_tried_again(self):
    config = self.write('y.py', 'def sweep():\n'
                        '  for k in (0, -1, 5):\n    yield {"sampler.k": k}\n')
    status, printed = self.main(f'--config={config}')
    self.assertEqual(status, 1)
    self.assertRegex(printed, '000_k=0: failed .exit 3.')
    self.assertRegex(printed, '001_k=-1 ended without results.json')
    self.assertRegex(printed, '002_k=5: finished')
    self.main(f'--config={config}')
    self.assertEqual(self.starts('000_k=0'), 2)
    self.assertEqual(self.starts('002_k=5'), 1)

  def test_an_interrupt_stops_the_sweep(self):
    with mock.patch.object(sweep, 'run_trial', side_effect=KeyboardInterrupt):
      status, printed = self.main(f'--config={self.config}')
    self.assertEqual(status, 130)
    self.assertRegex(printed, r'000_\S*: interrupted\n.*001_\S*: not started')

  def test_other_settings_in_the_same_folder_are_refused(self):
    config = self.write(
        'y.py', 'def sweep():\n  yield {"name": "a", "sampler.k": 1}\n')
    self.main(f'--config={config}')
    self.write(
        'y.py', 'def sweep():\n  yield {"name": "a", "sampler.k": 2}\n')
    status, _ = self.main(f'--config={config}')
    self.assertRegex(status, r'(?s)000_a holds a run of other settings.*'
                     r'there: .*k=1.*now: .*k=2.*another --workdir')

  def test_the_overrides_stand_beside_the_run(self):
    self.main(f'--config={self.config}')
    path = os.path.join(self.workdir, '001_k=4,exact=true', 'sweep.json')
    with open(path, encoding='utf-8') as f:
      self.assertEqual(json.load(f)['overrides'],
                       {'sampler.k': 4, 'sampler.exact': True})

  def test_names(self):
    self.assertEqual(sweep.name_of({}), 'base')
    self.assertEqual(sweep.name_of({'a.b': 1e-05}), 'b=1e-05')
    self.assertEqual(sweep.name_of({'a.b': 1, 'c.b': 2}), 'a.b=1,c.b=2')
    [trial] = sweep.trials(
        'x', sweep.load_sweep(self.config, 'sweep_named'), 'w')
    self.assertEqual(trial.workdir, os.path.join('w', '000_big_model'))
    self.assertIn('--config.model.layers=(2, 3)', trial.command)
    self.assertNotIn('name', trial.overrides)

  @parameterized.parameters(
      ('sweep_lr', "function 'sweep_lr' in .*found sweep, sweep_named"),
      ('sweep_nothing', 'yields nothing'),
      ('sweep_wrong', r'to yield dicts .* got \[1\]'),
      ('sweep_twice', "yields {'a': 1} twice"))
  def test_a_wrong_sweep_function_is_named(self, function, message):
    with self.assertRaisesRegex(ValueError, message):
      sweep.load_sweep(self.config, function)

  def test_a_missing_config_is_named(self):
    with self.assertRaisesRegex(FileNotFoundError, "got 'nowhere.py:tiny'"):
      sweep.load_sweep('nowhere.py:tiny', 'sweep')


if __name__ == '__main__':
  absltest.main()
