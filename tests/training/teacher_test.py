"""A step under a teacher's vectors: gradients, lookups, chunks and devices."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from retrieval_jax import ceiling as ceilings
from retrieval_jax import keys
from retrieval_jax import method as methods
from retrieval_jax import objectives
from retrieval_jax import samplers
from retrieval_jax import sharding
from retrieval_jax import types
from retrieval_jax.data import embeddings
from retrieval_jax.data import teachers
from retrieval_jax.models import chunking
from retrieval_jax.objectives import columns
from retrieval_jax.training import step as steps
from retrieval_jax.training import teacher_vectors
from tests import helpers
from tests.training import candidates_test

TEACHER_DIM, RATE, WEIGHT, MARGIN = 5, .5, .4, .2
SAMPLERS = {
    'gumbel': helpers.gumbel(3), 'top_k': samplers.TopK(3),
    'none': samplers.NoNegatives(),
    'pool': samplers.Pool(3, 'rotating', 4, helpers.BATCH, helpers.BATCH)}
KINDS = {'host': teacher_vectors.HostVectors,
         'device': teacher_vectors.DeviceVectors}


def make_teacher():
  """Returns a Teacher whose files have other rows in another order."""
  def side(seed, size):
    random = np.random.default_rng(seed)
    stored = random.normal(size=(size + 3, TEACHER_DIM)).astype(np.float16)
    return teachers.Vectors(
        embeddings.Embeddings(stored, [], ''), random.permutation(size + 3)[
            :size].astype(np.int64))
  return teachers.Teacher(side(1, helpers.BATCH), side(2, helpers.NUM_TARGETS))


def of_step(teacher, batch, ids):
  """Returns TeacherVectors, looked up the plain way."""
  targets = teacher.targets.stored.vectors[teacher.targets.rows]
  queries = teacher.queries.stored.vectors[teacher.queries.rows]
  found = np.where(np.asarray(ids)[..., None] >= 0, targets[ids], 0)
  return types.TeacherVectors(*(
      np.asarray(x, np.float32) for x in (
          queries[batch.query_ids], targets[batch.target_ids], found)))


def make_objective(kind='mse', columns_='all', by='embeddings', pairs=()):
  """Returns a guided loss, mixed with a distance to the teacher's vectors."""
  objective = objectives.Contrastive(
      'truncated_softmax', columns_, pairs=pairs, guide=objectives.Guide(
          by, ceilings.Ceiling(None, MARGIN, 'guide'), TEACHER_DIM))
  return objectives.EmbeddingDistilled(
      objective, kind, WEIGHT, True, TEACHER_DIM, helpers.DIM)


def exact_loss(params, own, targets, batch, ids, teacher):
  """Returns the mean loss of columns 'all', written out.

  Args:
    params: of the encoder.
    own: of the objective.
    targets: embeddings [N, D] of the corpus.
    batch: the step's.
    ids: [B, K], the draws, -1 where masked.
    teacher: TeacherVectors.
  """
  queries = helpers.encode(params, batch.query_tokens)
  every = np.concatenate([batch.target_ids, ids.reshape(-1)])
  theirs = np.concatenate([
      teacher.positives, teacher.negatives.reshape(-1, TEACHER_DIM)])
  scores, logits = teacher.queries @ theirs.T, 5. * queries @ targets[every].T
  of_positive = np.sum(teacher.queries * teacher.positives, 1)
  known = np.any(every[None, :, None] == batch.known_positives[:, None], -1)
  keep = (every >= 0) & ~known & (scores <= (of_positive - MARGIN)[:, None])
  positive = 5. * jnp.sum(queries * targets[batch.target_ids], 1)
  nll = jax.nn.logsumexp(jnp.concatenate([positive[:, None], jnp.where(
      keep, logits, -jnp.inf)], 1), 1) - positive
  square = lambda x, t: jnp.square(x @ own['projection'] - t).sum(-1)
  parts = [square(queries, teacher.queries),
           square(targets[batch.target_ids], teacher.positives)]
  live = ids >= 0
  if live.any():
    of_draws = jnp.where(live, square(targets[ids], teacher.negatives), 0)
    parts.append(of_draws.sum(1) / np.maximum(live.sum(1), 1))
  term = sum(parts) / (2 + live.any(1))
  share = 1 - keep.sum() / ((every >= 0) & ~known).sum()
  return ((1 - WEIGHT) * nll + WEIGHT * term).mean(), share


def one_step(sampler, mesh, *, kind='host', source='encoder',
             encoders=helpers.ENCODERS):
  """Returns (state, metrics, ids drawn) of the first step, by SGD."""
  method = helpers.method(
      SAMPLERS[sampler], memory='none' if sampler == 'none' else 'corpus',
      estimator=make_objective(), targets=methods.Targets(source),
      teacher_dim=TEACHER_DIM)
  train_step = steps.make_train_step(
      encoders, method, optax.sgd(RATE), mesh=mesh, seed=3)
  state = train_step.init_state(
      helpers.params(), helpers.table(mesh) if sampler != 'none' else
      method.memory.create(None, (), dim=helpers.DIM, mesh=mesh))
  if sampler == 'pool':
    pools = np.arange(helpers.BATCH * 4).reshape(helpers.BATCH, 4) % 30 + 2
    pools[1, 1:] = pools[2] = -1
    state = train_step.refreshed(state, None, pools=pools)
  batch = sharding.put_batch(helpers.batch(0), mesh)
  draws = train_step.propose(state, batch)
  teacher = KINDS[kind](make_teacher(), mesh)(
      draws.query_ids, draws.positive_ids, draws.proposal.ids)
  put = lambda ids: sharding.put_batch(helpers.gather(ids), mesh)
  state, metrics = jax.block_until_ready(train_step.update(
      state, batch, draws, put(draws.negative_ids), put(draws.probe_ids), None,
      teacher))
  return state, jax.device_get(metrics), np.asarray(draws.proposal.ids)


class StepTest(parameterized.TestCase):

  @parameterized.parameters(
      *itertools.product(SAMPLERS, (1, 2, 4), ('host',), ('encoder',)),
      ('gumbel', 4, 'device', 'encoder'), ('gumbel', 1, 'host', 'frozen'))
  def test_takes_the_gradient_of_the_loss_written_out(
      self, sampler, devices, kind, source):
    state, metrics, ids = one_step(
        sampler, sharding.make_mesh(devices), kind=kind, source=source)
    first, batch = helpers.params(), helpers.batch(0)
    own = make_objective().init(keys.of_phase(3, 'objective'))
    teacher = of_step(make_teacher(), batch, ids)
    table = helpers.encode(first, helpers.corpus_tokens())

    def loss(params, own):
      targets = table
      if source == 'encoder':
        targets = helpers.encode(params, helpers.corpus_tokens())
      return exact_loss(params, own, targets, batch, ids, teacher)

    (value, share), (of_encoder, of_own) = jax.value_and_grad(
        loss, argnums=(0, 1), has_aux=True)(first, own)
    self.assertBetween(share, .2, .8)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
    np.testing.assert_allclose(metrics['guided'], share, rtol=1e-5)
    self.assertGreater(np.abs(of_own['projection']).max(), 1e-2)
    np.testing.assert_allclose(
        state.params['objective']['projection'],
        own['projection'] - RATE * of_own['projection'], atol=1e-6)
    np.testing.assert_allclose(
        state.params['words'], first['words'] - RATE * of_encoder['words'],
        atol=1e-6)

  def test_asks_for_no_ids_without_a_teacher(self):
    mesh = sharding.make_mesh(1)
    train_step = steps.make_train_step(
        helpers.ENCODERS, helpers.method(helpers.gumbel()), optax.sgd(RATE),
        mesh=mesh, seed=0)
    draws = train_step.propose(
        train_step.init_state(helpers.params(), helpers.table(mesh)),
        sharding.put_batch(helpers.batch(0), mesh))
    self.assertEqual(draws.positive_ids.shape, (0,))
    self.assertEqual(draws.query_ids.shape, (0,))

  def test_nothing_is_compiled_after_the_first_step(self):
    mesh = sharding.make_mesh(2)
    method = helpers.method(SAMPLERS['gumbel'], estimator=make_objective(),
                            teacher_dim=TEACHER_DIM)
    train_step = steps.make_train_step(
        helpers.ENCODERS, method, optax.adam(.05), mesh=mesh, seed=0)
    look_up = teacher_vectors.DeviceVectors(make_teacher(), mesh)
    put = lambda ids: sharding.put_batch(helpers.gather(ids), mesh)

    def one(state, step):
      batch = sharding.put_batch(helpers.batch(step), mesh)
      draws = train_step.propose(state, batch)
      return train_step.update(
          state, batch, draws, put(draws.negative_ids), put(draws.probe_ids),
          None, look_up(draws.query_ids, draws.positive_ids,
                        draws.proposal.ids))[0]

    with jax.debug_key_reuse(False):  # it traces on every call
      state = one(train_step.init_state(
          helpers.params(), helpers.table(mesh)), 0)
      with jax.no_tracing():
        state = one(state, 1)
    self.assertEqual(int(state.step), 2)

  @pytest.mark.slow
  def test_chunks_change_no_gradient(self):
    """Every kind, in float64: the loss is one of embeddings."""
    every = [make_objective(kind, columns_, by, pairs)
             for columns_ in columns.KINDS
             for kind, by, pairs in (('mse', 'embeddings', columns.PAIRS),
                                     ('cosine', 'embeddings', ()),
                                     ('mse', 'scores', ()))]
    chunks = chunking.chunked(
        helpers.encode, chunk_size=3, buckets=(helpers.LENGTH,))
    with helpers.float64():
      batch, proposal, tokens = candidates_test.drawn(2, 2)
      teacher = of_step(make_teacher(), batch, np.asarray(proposal.ids))
      own = every[0].init(jax.random.key(0))

      def losses(words, encode):
        queries = encode({'words': words}, batch.query_tokens)
        targets = encode({'words': words}, tokens)
        fresh = types.Fresh(
            queries, targets[:helpers.BATCH], targets[helpers.BATCH:].reshape(
                helpers.BATCH, 4, -1), jnp.float64(5.), teacher=teacher)
        return jnp.stack([objective(own, fresh, batch, proposal)[0].mean()
                          for objective in every])

      words = jnp.asarray(np.asarray(helpers.params()['words'], np.float64))
      plain, cached = (
          jax.jit(jax.jacrev(losses), static_argnums=1)(words, encode)
          for encode in (helpers.encode, chunks))
    self.assertEqual(cached.dtype, np.float64)
    self.assertGreater(np.abs(plain).max(axis=(1, 2)).min(), 1e-3)
    np.testing.assert_allclose(cached, plain, rtol=1e-11, atol=1e-13)


class VectorsTest(parameterized.TestCase):

  @parameterized.product(kind=list(KINDS), devices=(1, 2, 4))
  def test_are_those_of_the_ids(self, kind, devices):
    mesh, teacher = sharding.make_mesh(devices), make_teacher()
    batch = helpers.batch(3)
    ids = np.random.default_rng(0).integers(
        -1, helpers.NUM_TARGETS, (helpers.BATCH, 3)).astype(np.int32)
    self.assertIn(-1, ids)
    found = KINDS[kind](teacher, mesh)(*jax.device_put(
        (batch.query_ids, batch.target_ids, ids), sharding.replicated(mesh)))
    for array in found:
      self.assertEqual(array.sharding, sharding.batch(mesh))
      self.assertEqual(array.dtype, np.float32)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found),
                 of_step(teacher, batch, ids))


if __name__ == '__main__':
  absltest.main()
