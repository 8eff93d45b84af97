"""Sweeps run what is left to run, and report what failed."""

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized

from experiments import sweep as script
from retrieval_jax.jobs import sweep

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
print('k is', k)
if k == 0:
  sys.exit(3)
if k >= 100:  # waits for run k + 1 to wait for it, for at most 20 s
  import time
  open(arguments['workdir'] + '/../waits%d' % k, 'w').close()
  other = arguments['workdir'] + '/../waits%d' % (k ^ 1)
  end = time.monotonic() + 20
  while not os.path.exists(other):
    if time.monotonic() > end:
      sys.exit(4)
    time.sleep(0.01)
if k > 0:
  with open(os.path.join(arguments['workdir'], 'results.json'), 'w') as f:
    json.dump({'measures': {'dev': {'RR@10': k / 10}}, 'meter': {},
               'steps': 1, 'method': str(k),
               'cores': sorted(os.sched_getaffinity(0))}, f)
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
    script.define_flags(values)
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
        script.main(argv, values)
      except SystemExit as error:
        status = error.code
    return status, printed.getvalue()

  def starts(self, name):
    path = os.path.join(self.workdir, name, 'started')
    return os.path.getsize(path) if os.path.exists(path) else 0

  def test_a_dry_run_prints_commands_and_touches_nothing(self):
    values = flags.FlagValues()
    script.define_flags(values)
    argv = values(['sweep', f'--config={self.config}:tiny', '--dry_run',
                   f'--workdir={self.workdir}', '--', '--config.seed=7'])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      script.main(argv, values)
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
    self.assertIn('| k=4,exact=true |', printed)
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
    with mock.patch.object(
        sweep, 'start', side_effect=KeyboardInterrupt):
      status, printed = self.main(f'--config={self.config}')
    self.assertEqual(status, 130)
    self.assertRegex(printed, r'000_\S*: interrupted\n.*001_\S*: not started')

  def test_an_interrupt_waits_for_the_runs_that_save(self):
    # The terminal signals all of its foreground processes at once.
    child = mock.Mock()
    child.poll.side_effect = [None, KeyboardInterrupt]
    with mock.patch.object(sweep, 'start', return_value=child):
      status, printed = self.main(f'--config={self.config}')
    self.assertEqual(status, 130)
    child.wait.assert_called_once_with()
    self.assertRegex(printed, r'000_\S*: interrupted\n.*001_\S*: not started')

  def test_a_run_that_was_interrupted_stops_the_sweep(self):
    with mock.patch.object(sweep, 'start',
                           return_value=mock.Mock(poll=lambda: 130)):
      status, printed = self.main(f'--config={self.config}')
    self.assertEqual(status, 130)
    self.assertRegex(printed, r'000_\S*: interrupted\n.*001_\S*: not started')

  def test_parallel_runs_go_on_together_and_write_logs(self):
    config = self.write(
        'y.py', 'def sweep():\n'
        '  for k in (100, 101, 0):\n    yield {"sampler.k": k}\n')
    cores = [frozenset({core}) for core in
             (sorted(os.sched_getaffinity(0)) * 2)[:2]]
    with mock.patch.object(sweep, 'shares', return_value=cores) as shares:
      status, printed = self.main(f'--config={config}', '--parallel=2')
    shares.assert_called_once_with(2)
    self.assertEqual(status, 1, printed)  # k = 0 fails
    self.assertIn('000_k=100: finished', printed)
    self.assertIn('001_k=101: finished', printed)
    self.assertIn('002_k=0: failed (exit 3)', printed)
    started = [line for line in printed.splitlines() if ' of 3: ' in line]
    self.assertEqual([line.split(':')[1] for line in started],
                     [' run 1 of 3', ' run 2 of 3', ' run 3 of 3'])
    self.assertRegex(printed, r'sweep: k=101 finished after \d+ s\n')
    for name, share in (('000_k=100', cores[0]), ('001_k=101', cores[1])):
      with open(os.path.join(self.workdir, name, 'results.json'),
                encoding='utf-8') as f:
        self.assertEqual(json.load(f)['cores'], list(share))
    # The failed run is tried again, and its log goes on.
    self.main(f'--config={config}', '--parallel=1')
    with mock.patch.object(sweep, 'shares', return_value=cores):
      self.main(f'--config={config}', '--parallel=2')
    with open(os.path.join(self.workdir, '002_k=0', 'log.txt'),
              encoding='utf-8') as f:
      self.assertEqual(f.read(), 'k is 0\n' * 2)
    self.assertEqual(self.starts('002_k=0'), 3)
    self.assertEqual(self.starts('001_k=101'), 1)

  def test_a_run_starts_while_the_sweep_is_on_its_cores(self):
    calls = mock.Mock()
    trial = sweep.Trial(os.path.join(self.workdir, '000_a'), {}, ('x',))
    with mock.patch.object(os, 'sched_setaffinity', calls.pin), (
        mock.patch.object(subprocess, 'Popen', calls.start)):
      sweep.start(trial, frozenset({5}))
    self.assertEqual(calls.mock_calls, [
        mock.call.pin(0, frozenset({5})),
        mock.call.start(('x',), stdout=None, stderr=None),
        mock.call.pin(0, os.sched_getaffinity(0))])

  def test_ctrl_c_waits_for_parallel_runs(self):
    child = ('import signal, sys, time\n'
             'signal.signal(signal.SIGINT, lambda *_: (open(sys.argv[1] + '
             '"/saved", "w").close(), sys.exit(130)))\n'
             'open(sys.argv[1] + "/ready", "w").close()\ntime.sleep(20)')
    parent = (
        'import sys\nfrom retrieval_jax.jobs import sweep\n'
        'folders = sys.argv[2:]\n'
        'found = sweep.run([sweep.Trial(f, {}, (sys.executable, "-S", '
        '"-c", sys.argv[1], f)) for f in folders], (None, None))\n'
        'print(*found.values(), sep=",")')
    folders = [os.path.join(self.workdir, f'00{i}_a') for i in range(3)]
    process = subprocess.Popen(
        [sys.executable, '-c', parent, child, *folders], text=True,
        stdout=subprocess.PIPE, start_new_session=True)
    end = time.monotonic() + 60
    while not all(os.path.exists(os.path.join(folder, 'ready'))
                  for folder in folders[:2]):
      self.assertLess(time.monotonic(), end)
      time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed, _ = process.communicate(timeout=60)
    self.assertEqual(printed.splitlines()[-1],
                     'interrupted,interrupted,not started')
    for folder in folders[:2]:
      self.assertTrue(os.path.exists(os.path.join(folder, 'saved')))

  @parameterized.parameters(
      (2, [{1, 3, 4}, {7, 8, 9}]), (4, [{1}, {3, 4}, {7}, {8, 9}]),
      (1, [None]))
  def test_shares_part_the_cores(self, parallel, expected):
    with mock.patch.object(os, 'sched_getaffinity',
                           return_value={1, 3, 4, 7, 8, 9}):
      self.assertEqual(sweep.shares(parallel), expected)

  def test_more_runs_than_cores_are_refused(self):
    with mock.patch.object(os, 'sched_getaffinity', return_value={0, 1}):
      status, _ = self.main(f'--config={self.config}', '--parallel=3')
    self.assertRegex(status, 'at most the 2 cores .* got 3')

  def test_only_some_are_run_in_their_own_folders(self):
    status, printed = self.main(f'--config={self.config}', '--only=^k=[45]')
    self.assertEqual(status, 0, printed)
    self.assertEqual(self.starts('000_k=1,exact=true'), 0)
    self.assertEqual(self.starts('001_k=4,exact=true'), 1)
    # What is compared in the end is all that there is.
    status, printed = self.main(f'--config={self.config}', '--only=k=1')
    self.assertIn('| k=4,exact=true |', printed)
    self.assertIn('| k=1,exact=true |', printed)

  @parameterized.parameters(
      ('k=7', "got 'k=7'; there is k=1,exact=true, k=4,exact=true"),
      ('k=(', r"regular expression, got 'k=\('"))
  def test_a_wrong_filter_is_named(self, only, message):
    status, _ = self.main(f'--config={self.config}', f'--only={only}')
    self.assertRegex(status, message)

  def test_other_settings_in_the_same_folder_are_refused(self):
    config = self.write(
        'y.py', 'def sweep():\n  yield {"name": "a", "sampler.k": 1}\n')
    self.main(f'--config={config}')
    self.write(
        'y.py', 'def sweep():\n  yield {"name": "a", "sampler.k": 2}\n')
    status, _ = self.main(f'--config={config}')
    self.assertRegex(status, r'(?s)000_a holds a run of other settings.*'
                     r'there: .*k=1.*now: .*k=2.*another --workdir')

  @parameterized.parameters(
      (['--config.sampler.k=7'], "sampler.k, .* k=1,exact=true to 1"),
      (['-config.sampler.k', '7'], "sampler.k, .* k=1,exact=true to 1"),
      (['--noconfig.sampler.exact'], 'sampler.exact, .* k=1,exact=true to tr'),
      (['--config.seed=1', '--workdir=x'], '--workdir'),
      (['--config=x.py'], '--config'))
  def test_an_option_that_the_sweep_sets_is_refused(self, extra, message):
    status, _ = self.main(f'--config={self.config}', '--', *extra)
    self.assertRegex(status, f'after --.* sets {message}')
    self.assertFalse(os.path.exists(self.workdir))

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
    with self.assertRaisesRegex(ValueError, r'a [.]py file, got .*x[.]txt'):
      sweep.load_sweep(self.write('x.txt', ''), 'sweep')


if __name__ == '__main__':
  absltest.main()
