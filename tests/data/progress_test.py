"""Progress is a bar on a terminal and now and then a line elsewhere."""

import contextlib
import io
from unittest import mock

from absl.testing import absltest

from retrieval_jax.data import progress


class _Terminal(io.StringIO):

  def isatty(self):
    return True


def count(stream, **options):
  """Counts 3 of 6 texts a minute apart."""
  clock = iter(range(0, 600, 60))
  with contextlib.redirect_stderr(stream), mock.patch.object(
      progress.time, 'monotonic', lambda: next(clock)):
    with progress.counter('embedding', total=6, **options) as add:
      add(2)
      add(1)
  return stream.getvalue()


class ProgressTest(absltest.TestCase):

  def test_a_counter_prints_lines_into_a_file(self):
    self.assertEqual(count(io.StringIO()), (
        'embedding: 2 of 6 texts, 0/s\nembedding: 3 of 6 texts, 0/s\n'))

  def test_a_counter_shows_a_bar_on_a_terminal(self):
    stream = _Terminal()
    with contextlib.redirect_stderr(stream):
      with progress.counter('embedding', total=6) as add:
        add(2)
    self.assertIn('embedding:   0%', stream.getvalue())

  def test_a_silent_counter_prints_nothing(self):
    self.assertEqual(count(_Terminal(), show=False), '')

  def test_a_pass_yields_its_items_and_counts_them(self):
    stream, clock = io.StringIO(), iter(range(0, 600, 8))
    with contextlib.redirect_stderr(stream), mock.patch.object(
        progress.time, 'monotonic', lambda: next(clock)):
      self.assertEqual(list(progress.track('abcd', 'reading')), list('abcd'))
    # The first look that is more than ten seconds later is the second.
    self.assertEqual(stream.getvalue(), (
        'reading: 2 texts, 0/s\nreading: 4 texts, 0/s\n'))


if __name__ == '__main__':
  absltest.main()
