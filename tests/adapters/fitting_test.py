"""What an adapter gains over the encoder, query by query."""

from absl.testing import absltest
import numpy as np

from retrieval_jax.adapters import fitting


class GainsTest(absltest.TestCase):

  def test_the_error_is_that_of_paired_differences(self):
    found = fitting.gains(
        {'R@10': np.array([0.5, 1, 1])}, {'R@10': np.array([0.5, 0.75, 0.5])})
    mean, error = found['R@10']
    # Differences 0, 1/4 and 1/2: mean 1/4, standard deviation 1/4.
    self.assertAlmostEqual(mean, 0.25)
    self.assertAlmostEqual(error, 0.25 / 3**0.5)

  def test_one_query_has_no_error(self):
    self.assertEqual(fitting.gains({'R@10': np.ones(1)},
                                   {'R@10': np.zeros(1)}), {'R@10': (1, None)})


if __name__ == '__main__':
  absltest.main()
