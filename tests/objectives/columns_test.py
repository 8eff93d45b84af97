"""The columns of the loss: which, masked by what, on any device count."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import table as tables
from retrieval_jax import types
from retrieval_jax.objectives import columns as columns_lib
from retrieval_jax.training import step as steps
from tests import helpers

ENCODE = helpers.encode
# A batch in which two queries have the same target, others' known positives
# and candidates among their columns.
STEP = 14


def listed(kind, b, batch, draws):
  """Returns [(source, id)] of the columns of query b, ids of none left out.

  Args:
    kind: of the columns.
    b: the query.
    batch: a host types.Batch.
    draws: [B, K], ids of the draws.
  """
  number = len(batch.target_ids)
  own = lambda i: [('drawn', d) for d in draws[i]] + (
      [] if batch.candidates is None else
      [('candidates', c) for c in batch.candidates.ids[i]])
  positives = [('in_batch', batch.target_ids[i]) for i in range(number)]
  shared = [pair for i in range(number) for pair in own(i)]
  pairs = {'own': own(b), 'positives': own(b) + positives,
           'all': positives + shared, 'draws': shared}[kind]
  return [(source, int(i)) for source, i in pairs if i >= 0]


def slow(kind, batch, draws, params=None, ceiling=None):
  """Returns the means of nll and counts of columns, by plain loops."""
  params = params or helpers.params()
  queries = np.asarray(ENCODE(params, batch.query_tokens), np.float64)
  targets = np.asarray(ENCODE(params, helpers.corpus_tokens()), np.float64)
  losses, counts = [], []
  for b, target in enumerate(batch.target_ids):
    count = dict.fromkeys(('in_batch', 'drawn', 'candidates', 'masked'), 0)
    scores, positive = targets @ queries[b], targets[target] @ queries[b]
    total = np.exp(5 * positive)
    for source, i in listed(kind, b, batch, draws):
      near = ceiling is not None and scores[i] > positive - ceiling
      if i in batch.known_positives[b] or near:
        count['masked'] += i != target
      else:
        count[source] += 1
        total += np.exp(5 * scores[i])
    losses.append(np.log(total) - 5 * positive)
    counts.append(count)
  return np.mean(losses), {
      f'columns_{name}': np.mean([count[name] for count in counts])
      for name in counts[0]}


class ColumnsTest(parameterized.TestCase):

  def test_the_batch_has_what_must_be_masked(self):
    batch = helpers.batch(STEP, num_candidates=3)
    self.assertLess(len(set(batch.target_ids)), helpers.BATCH)
    known = set(batch.known_positives[:, 1]) - {-1}
    self.assertTrue(known & set(batch.target_ids))
    self.assertTrue(known & set(batch.candidates.ids.ravel()))

  def test_masked_probability_drops_with_in_batch_duplicates(self):
    """A column that is a known positive of the query never counts."""
    batch = helpers.batch(0)
    batch = types.Batch(
        query_tokens=batch.query_tokens, target_tokens=batch.target_tokens,
        query_ids=batch.query_ids,
        target_ids=np.zeros_like(batch.target_ids),
        known_positives=np.zeros_like(batch.known_positives))
    proposal = samplers.NoNegatives().propose((), None, helpers.request(
        jnp.zeros((8, 3)), helpers.table(sharding.make_mesh(1))), None)
    mask = columns_lib.make(
        'positives', types.Fresh(
            jnp.ones((8, 3)), jnp.ones((8, 3)), jnp.ones((8, 0, 3)),
            jnp.float32(1.0)), batch, proposal).mask
    self.assertEqual(mask.shape, (8, 8))
    self.assertFalse(bool(mask.any()))

  @parameterized.product(
      kind=('own', 'positives', 'all', 'draws'), num_candidates=(0, 3))
  @pytest.mark.slow
  def test_columns_are_what_they_are_called(self, kind, num_candidates):
    mesh = sharding.make_mesh(1)
    table = helpers.table(mesh)
    host = helpers.batch(STEP, num_candidates=num_candidates)
    batch = sharding.put_batch(host, mesh)
    queries = ENCODE(helpers.params(), batch.query_tokens)
    draws = helpers.gumbel().propose(
        (), jax.random.key(0), helpers.request(
            queries, table, exclude=batch.known_positives),
        types.View(table, lambda rows: rows.embeddings, jnp.float32(5.0),
                   helpers.scan(mesh)))
    candidates = batch.candidates
    proposal = steps.with_candidates(
        draws, candidates,
        candidates and tables.rows_of(table, candidates.ids))
    negatives = ENCODE(
        helpers.params(), helpers.gather(proposal.ids.reshape(-1)))
    fresh = types.Fresh(
        queries, ENCODE(helpers.params(), batch.target_tokens),
        negatives.reshape(8, 2 + num_candidates, -1), jnp.float32(5.0))
    columns, once = (
        columns_lib.make(kind, fresh, batch, proposal, distinct=distinct)
        for distinct in (False, True))
    np.testing.assert_array_equal(columns.logits, once.logits)
    repeated = 0
    self.assertEqual(columns.mask.shape[1],
                     columns_lib.number(kind, 8, 2 + num_candidates))
    names = {columns_lib.IN_BATCH: 'in_batch', columns_lib.DRAWN: 'drawn',
             columns_lib.CANDIDATE: 'candidates'}
    for b, ids in enumerate(np.asarray(columns.ids)):
      self.assertEqual(
          [(names[source], i) for source, i in zip(columns.sources, ids)
           if i >= 0], listed(kind, b, host, np.asarray(draws.ids)))
      counts = (ids >= 0) & ~np.isin(ids, host.known_positives[b])
      np.testing.assert_array_equal(columns.mask[b], counts)
      first = [i not in ids[:place] for place, i in enumerate(ids)]
      np.testing.assert_array_equal(once.mask[b], counts & first)
      repeated += (counts & ~np.array(first)).sum()
    # A query's own draws are without replacement, its candidates distinct.
    self.assertTrue(repeated > 0 or kind == 'own')
    fresh = ENCODE(helpers.params(), helpers.gather(columns.ids.reshape(-1)))
    wanted = 5.0 * np.einsum(
        'bd,bjd->bj', queries, fresh.reshape(*columns.ids.shape, -1))
    np.testing.assert_allclose(
        np.where(columns.ids >= 0, columns.logits, 0),
        np.where(columns.ids >= 0, wanted, 0), atol=1e-5)

  @parameterized.parameters(
      ((0.9, None), [True, False, True, True, True, False]),
      ((None, 0.3), [True, False, True, True, False, False]),
      ((0.9, 0.3), [True, False, True, True, False, False]))
  def test_columns_too_near_the_positive_are_masked(self, options, keep):
    """Row 0: s+ = 1, at most 0.9 or 0.7; row 1: s+ = -1, at most -1.1, -1.3."""
    scores = jnp.array([[0.6, 0.95, -2.0], [-1.4, -1.2, -0.9]])
    columns = columns_lib.Columns(
        2 * scores, jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3), bool),
        np.zeros(3, int))
    ceiling = samplers.Ceiling(*options, 'estimator')
    found = columns_lib.below(
        columns, ceiling, jnp.array([2.0, -2.0]), jnp.float32(2))
    np.testing.assert_array_equal(found.mask, np.reshape(keep, (2, 3)))
    hidden = columns._replace(mask=jnp.zeros((2, 3), bool))
    self.assertFalse(columns_lib.below(
        hidden, ceiling, jnp.array([2.0, -2.0]), jnp.float32(2)).mask.any())

  @parameterized.product(devices=(1, 4, 8), kind=('own', 'all'))
  def test_every_query_meets_its_own_targets_on_any_number_of_devices(
      self, devices, kind):
    """Loss and breakdown equal loops over ids: the layout of the labels."""
    mesh = sharding.make_mesh(devices)
    seen = []
    _, history = helpers.train(
        helpers.method(helpers.gumbel(), columns=kind, num_candidates=3,
                       ceiling=samplers.Ceiling(None, 0.2)),
        mesh, start_step=STEP, num_steps=STEP + 1, optimizer=optax.sgd(0.0),
        stale_params=helpers.params(5),
        each=lambda state, proposal, probes: seen.append(
            np.asarray(proposal.ids)[:, :2]))
    batch = helpers.batch(STEP, num_candidates=3)
    nll, counts = slow(kind, batch, seen[0], ceiling=0.2)
    np.testing.assert_allclose(history[0]['nll'], nll, rtol=1e-5)
    self.assertGreater(counts['columns_candidates'], 0)
    self.assertGreater(counts['columns_masked'], 0)
    for name, value in counts.items():
      np.testing.assert_allclose(history[0][name], value, rtol=1e-6,
                                 err_msg=name)


if __name__ == '__main__':
  absltest.main()
