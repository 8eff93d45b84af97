"""Whom the memory is compared for."""

import types
from unittest import mock

from absl.testing import absltest
import numpy as np

from retrieval_jax import data
from retrieval_jax import memories
from retrieval_jax import sharding
from retrieval_jax.evaluation import diagnostics
from retrieval_jax.jobs import diagnose


class DiagnoseTest(absltest.TestCase):

  def test_the_probe_is_a_sample_of_the_dev_queries(self):
    """Not the first, which in many data sets are of one kind."""
    ids = [f'q{i}' for i in range(40)]
    asked = np.arange(5, 40)  # the others are of other splits
    qrels = data.Qrels(asked, asked + 100, np.ones(35, np.int32))
    config = types.SimpleNamespace(
        data=types.SimpleNamespace(dev_split='dev'),
        diagnostics=types.SimpleNamespace(num_queries=8))
    experiment = mock.Mock(config=config, mesh=None)
    experiment.embed_queries.return_value = np.zeros((8, 2), np.float32)
    experiment.method.memory = memories.Corpus(200, 'float32', 64)
    experiment.method.sampler.diagnose.return_value = {'of_draws': 0.5}
    state = mock.Mock(sampler=(), table=memories.Corpus(
        200, 'float32', 64).create(
            np.zeros((200, 2)), np.arange(200), dim=2,
            mesh=sharding.make_mesh(1)))
    experiment.dataset.by_text = types.SimpleNamespace(
        qrels={'dev': qrels}, query_ids=ids, copies=data.NO_COPIES)
    with mock.patch.object(
        diagnostics, 'approximation', return_value={}) as compare:
      found = diagnose.against_brute_force(experiment, state, None, None)
    self.assertEqual(found, {'of_draws': 0.5})
    _, request, _ = experiment.method.sampler.diagnose.call_args.args
    self.assertEqual(request.queries.shape, (8, 2))
    [rows] = experiment.embed_queries.call_args.args[1:]
    wanted = asked[diagnostics.sample_queries([ids[i] for i in asked], 8)]
    np.testing.assert_array_equal(rows, wanted)
    self.assertFalse(np.array_equal(rows, asked[:8]))
    np.testing.assert_array_equal(
        compare.call_args.kwargs['positive_ids'], wanted + 100)


if __name__ == '__main__':
  absltest.main()
