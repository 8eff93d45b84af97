"""Samplers with state of every kind train, stop and go on as if nothing was."""

from unittest import mock

import jax
import numpy as np
import pytest

from retrieval_jax import samplers
from retrieval_jax import trained
from retrieval_jax.factory import registries
from retrieval_jax.jobs import train
from tests import made_up_samplers
from tests.experiments import tiny
from tests.experiments import train_test

pytestmark = pytest.mark.slow  # each trains

KINDS = {
    'tree': (samplers.Tree, tiny.MOVING | {
        'refresh__reencode_every': 4, 'sampler__leaf_size': 8,
        'sampler__opened': 2}),
    'rare': (made_up_samplers.Rare, tiny.MOVING | {
        'refresh__reencode_every': 4}),
    'on_host': (made_up_samplers.OnHost, tiny.MOVING),
    'pool': (made_up_samplers.Pool, {
        'memory__kind': 'none', 'log__every': 1,
        'refresh__reencode_every': 2})}


@pytest.fixture(autouse=True)
def registered():
  """Registers the samplers, as a line each in the registry would."""
  with mock.patch.dict(registries.SAMPLERS, {
      name: kind for name, (kind, _) in KINDS.items()}):
    yield


def make(make_config, kind, **options):
  return make_config('stale', **({
      'sampler__name': kind, 'sampler__num_negatives': 2, 'num_steps': 6,
      'checkpoint__every': 100, 'evaluation__baselines': False,
      'memory__chunk_rows': 64}  # 128 rows on one device, and on two
                                 | KINDS[kind][1] | options))


@pytest.mark.parametrize('kind', KINDS)
def test_a_stopped_run_goes_on_to_the_same_end(kind, make_config, tmp_path):
  """On another number of devices too, up to the order of sums."""
  config = make(make_config, kind)
  straight, stopped = str(tmp_path / 'straight'), str(tmp_path / 'stopped')
  train.run(config, straight, num_devices=1)
  with train_test.stop_after(3):
    assert train.run(config, stopped, num_devices=1) is None
  middle = train_test.final_state(stopped)
  train.run(config, stopped, num_devices=1)
  end = train_test.final_state(straight)
  jax.tree.map(np.testing.assert_array_equal,
               train_test.final_state(stopped), end)
  assert tiny.losses(stopped) == tiny.losses(straight)
  # There is something to keep: the sampler's state moves.
  assert any(not np.array_equal(a, b) for a, b in zip(
      jax.tree.leaves(middle.sampler), jax.tree.leaves(end.sampler)))
  types_of = lambda state: [type(x) for x in jax.tree.leaves(state.sampler)]
  assert types_of(middle) == types_of(end)
  assert all((kind is np.ndarray) == (config.sampler.name == 'on_host')
             for kind in types_of(end))


@pytest.mark.parametrize('kind', KINDS)
def test_another_number_of_devices_draws_the_same(kind, make_config, tmp_path):
  config = make(make_config, kind, num_steps=4)
  one, two = str(tmp_path / 'one'), str(tmp_path / 'two')
  with train_test.stop_after(2):
    train.run(config, one, num_devices=1)
  train.run(config, one, num_devices=2)  # goes on with two
  train.run(config, two, num_devices=1)
  np.testing.assert_allclose(
      list(tiny.losses(one).values()), list(tiny.losses(two).values()),
      rtol=1e-5)


def test_a_pool_pays_for_what_it_embeds(make_config, tmp_path):
  """Forty targets at each of two rebuilds; nothing for a memory."""
  results = train.run(make(make_config, 'pool'), str(tmp_path), num_devices=1)
  meter = results['meter']
  assert meter['target_encoder_calls_reembedding'] == 2 * 40
  assert meter['table_bytes'] == 0
  assert trained.open(str(tmp_path)).step == 6
