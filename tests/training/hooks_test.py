"""Progress and profiles."""

import glob
import io
from unittest import mock

from absl.testing import absltest

from retrieval_jax import training
from retrieval_jax.training import hooks
from tests.training import toy


class Terminal(io.StringIO):

  def isatty(self):
    return True


class HooksTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path

  def train(self, *hooks, num_steps=6):
    with training.MetricWriter(self.folder, tensorboard=False) as writer:
      training.train(
          toy.make_state(), toy.batches(0), toy.make_step(), hooks,
          start_step=0, num_steps=num_steps, meter=training.Meter(),
          writer=writer)

  def test_progress_is_plain_lines_where_there_is_no_terminal(self):
    stream = io.StringIO()
    self.train(training.LogHook(3), training.ProgressHook(3, stream=stream))
    first, second = stream.getvalue().splitlines()
    self.assertRegex(
        first, r'^step 3/6  [\d.e+]+ steps/s  0:00:\d\d left  nll=[\d.]+$')
    self.assertStartsWith(second, 'step 6/6 ')

  def test_progress_tells_the_rate_of_the_last_period(self):
    """3 steps of 20 s and 20 steps of 0.5 s; 7,177 are left, about an hour."""
    stream = io.StringIO()
    run = mock.Mock(num_steps=7200, start_step=0, started=100.0,
                    latest={'train/nll': 1.23456, 'dev/RR@10': 0.5})
    hook = training.ProgressHook(1, stream=stream)
    for run.step, now in ((3, 160.0), (23, 170.0), (23, 170.0)):
      with mock.patch.object(hooks.time, 'monotonic', lambda now=now: now):
        hook(run)
    self.assertEqual(stream.getvalue().splitlines(), [
        'step 3/7200  0.05 steps/s  39:59:00 left  nll=1.235',
        'step 23/7200  2 steps/s  0:59:48 left  nll=1.235',
        'step 23/7200  0 steps/s  ? left  nll=1.235'])

  def test_when_hooks_are_due(self):
    """every, at_finish, at_stop; in between, on a multiple, at end and stop."""
    for options, wanted in (
        ((3, True, False), [False, True, True, False]),
        ((3, False, True), [False, True, False, True]),
        ((0, True, True), [False, False, True, True]),
        ((0, False, False), [False] * 4)):
      hook = mock.Mock()
      hook.every, hook.at_finish, hook.at_stop = options
      due = [hooks.is_due(hook, mock.Mock(
          step=step, finished=finished, stopped=stopped))
             for step, finished, stopped in (
                 (4, False, False), (6, False, False), (7, True, False),
                 (5, False, True))]
      self.assertEqual(due, wanted, options)
    at_stop = {kind.__name__ for kind in (
        training.LogHook, training.ProgressHook, training.CheckpointHook,
        training.EvaluateHook, training.DiagnosticsHook, training.ReencodeHook,
        training.ProfileHook) if kind.at_stop}
    self.assertEqual(at_stop, {
        'LogHook', 'ProgressHook', 'CheckpointHook', 'ProfileHook'})

  def test_the_last_checkpoint_is_waited_for(self):
    for finished, stopped in ((True, False), (False, True), (False, False)):
      checkpoints = mock.Mock()
      run = mock.Mock(step=3, finished=finished, stopped=stopped,
                      meter=training.Meter())
      with mock.patch.object(hooks, 'fetch_metrics'):
        training.CheckpointHook(checkpoints, 3)(run)
      self.assertEqual(checkpoints.save.call_args.args[0], 3)
      self.assertEqual(checkpoints.wait.called, finished or stopped)

  def test_progress_is_a_bar_on_a_terminal(self):
    stream = Terminal()
    self.train(training.LogHook(3), training.ProgressHook(1, stream=stream))
    self.assertRegex(stream.getvalue(), r'6/6 \[.*nll=')
    self.assertEndsWith(stream.getvalue(), '\n')  # closed

  def test_profile_writes_one_trace(self):
    self.train(training.ProfileHook(self.folder, first_step=2, num_steps=2))
    self.assertLen(glob.glob(
        self.folder + '/plugins/profile/*/*.xplane.pb'), 1)

  def test_profile_of_a_short_run_ends_with_it(self):
    self.train(training.ProfileHook(self.folder, first_step=5, num_steps=9))
    self.assertLen(glob.glob(
        self.folder + '/plugins/profile/*/*.xplane.pb'), 1)

  def test_re_encoding_is_left_out_after_the_last_step(self):
    steps = []
    def reencode(state):
      steps.append(int(state.step))
      return state
    self.train(training.ReencodeHook(reencode, 2))
    self.assertEqual(steps, [2, 4])
    self.train(training.ReencodeHook(reencode, 4))
    self.assertEqual(steps, [2, 4, 4])  # on multiples alone

  def test_maintaining_is_left_to_what_renews_the_memory(self):
    steps = []
    def maintain(state):
      steps.append(int(state.step))
      return state
    for until, wanted in ((None, [1, 3, 5]), (2, [1, 3, 4, 5])):
      renews = training.ReencodeHook(lambda state: state, 2, until)
      self.train(renews, hooks.MaintainHook(maintain, 1, renewed_by=renews))
      self.assertEqual(steps, wanted)
      steps.clear()
    self.train(hooks.MaintainHook(maintain, 2))
    self.assertEqual(steps, [2, 4])

  def test_diagnostics_are_timed_apart_from_evaluation(self):
    meter = training.Meter()
    diagnose = training.DiagnosticsHook(lambda state: {'diagnostics/tv': 0}, 4)
    with training.MetricWriter(self.folder, tensorboard=False) as writer:
      training.train(
          toy.make_state(), toy.batches(0), toy.make_step(), [diagnose],
          start_step=0, num_steps=4, meter=meter, writer=writer)
    seconds = meter.as_dict()['seconds']
    self.assertGreater(seconds['diagnostics'], 0)
    self.assertEqual(seconds['evaluate'], 0)


if __name__ == '__main__':
  absltest.main()
