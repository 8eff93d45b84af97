"""Progress and profiles."""

import glob
import io

from absl.testing import absltest

from retrieval_jax import training
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

  def test_diagnostics_are_timed_apart_from_evaluation(self):
    meter = training.Meter()
    hooks = [training.DiagnosticsHook(lambda state: {'diagnostics/tv': 0}, 4)]
    with training.MetricWriter(self.folder, tensorboard=False) as writer:
      training.train(
          toy.make_state(), toy.batches(0), toy.make_step(), hooks,
          start_step=0, num_steps=4, meter=meter, writer=writer)
    seconds = meter.as_dict()['seconds']
    self.assertGreater(seconds['diagnostics'], 0)
    self.assertEqual(seconds['evaluate'], 0)


if __name__ == '__main__':
  absltest.main()
