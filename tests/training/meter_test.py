"""The meter counts, extrapolates and continues."""

import json
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax import sharding
from retrieval_jax import training
from retrieval_jax.training import meter as meter_lib


class MeterTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.on_device = jnp.sum(jnp.ones(5, jnp.int32))

  def test_counts_texts_and_flops(self):
    meter = training.Meter()
    for _ in range(3):
      meter.count_step(targets=10, queries=4, target_flops=2., query_flops=3.)
    meter.count_reembedding(targets=100, target_flops=0.5)
    meter.table_bytes = training.num_bytes({'x': jnp.zeros((4, 2))})
    got = meter.as_dict()
    self.assertEqual(got['target_encoder_calls_in_step'], 30)
    self.assertEqual(got['target_encoder_calls_reembedding'], 100)
    self.assertEqual(meter.target_encoder_calls, 130)
    self.assertEqual(got['query_encoder_calls'], 12)
    self.assertEqual(got['flops_in_step'], 3 * (10 * 2. + 4 * 3.))
    self.assertEqual(got['flops_reembedding'], 50.)
    self.assertEqual(got['table_bytes'], 32)
    self.assertEqual(got['index_bytes'], 0)
    self.assertContainsSubset(
        ('propose', 'gather', 'update', 'refresh', 'evaluate', 'prepare',
         'total'), got['seconds'])

  def test_counts_the_bytes_of_what_is_alive(self):
    before = meter_lib.live_bytes()
    since = lambda: meter_lib.live_bytes() - before
    mesh = sharding.make_mesh(2)
    rows = jax.device_put(np.ones((6, 5), np.float16), sharding.rows(mesh))
    self.assertEqual(since(), 60)
    copied = jax.device_put(
        np.ones(7, np.float32), sharding.replicated(mesh))
    self.assertEqual(since(), 60 + 2 * 28)
    shards = [shard.data for shard in rows.addressable_shards]
    self.assertEqual(since(), 60 + 2 * 28)  # the same buffers
    del shards
    rows.delete()
    self.assertEqual(since(), 2 * 28)
    del copied
    self.assertEqual(since(), 0)
    self.assertEqual(meter_lib.num_host_bytes(
        {'host': np.ones(3, np.float32), 'device': self.on_device}), 12)

  def test_counts_of_the_device_are_fetched_when_they_are_read(self):
    meter = training.Meter()
    with jax.transfer_guard('disallow'):
      meter.count_step(targets=self.on_device, queries=4, target_flops=2.)
    meter.count_reembedding(targets=self.on_device, target_flops=0.5)
    meter.count('flops_scoring', 3, 7.)
    meter.count('flops_correcting', 2, 11.)
    state = json.loads(json.dumps(meter.state_dict()))
    self.assertEqual(state['counts'], {
        'target_encoder_calls_in_step': 5,
        'target_encoder_calls_reembedding': 5, 'query_encoder_calls': 4,
        'flops_in_step': 10., 'flops_reembedding': 2.5, 'flops_scoring': 21.,
        'flops_correcting': 22.})
    self.assertEqual(meter.target_encoder_calls, 10)  # not fetched twice
    self.assertNotIn('reader_calls', state['counts'])  # there is no reader
    meter.count('flops_reading', 2, 3.)
    meter.count('reader_calls', 2)
    self.assertNotIn('flops_indexing', meter.counts())  # nor a tree
    meter.count('flops_indexing', 2, 4.)
    state = meter.state_dict()
    self.assertEqual((state['counts']['reader_calls'],
                      state['counts']['flops_reading']), (2, 6.))
    meter.load_state_dict(state)
    self.assertEqual(meter.counts()['flops_reading'], 12.)
    self.assertEqual(set(meter_lib.FLOPS), {
        name for name in state['counts'] if name.startswith('flops')})

  def test_sums_do_not_depend_on_when_they_are_read(self):
    often, once = training.Meter(), training.Meter()
    for each in (0.1, 1e16, 0.3, -1e16):
      for meter in (often, once):
        meter.count('flops_in_step', self.on_device, each)
        meter.count('flops_in_step', 1, each)
      often.counts()
    self.assertEqual(often.counts(), once.counts())

  def test_an_unknown_count_is_named(self):
    with self.assertRaisesRegex(ValueError, "'flops' is not one of .*scoring"):
      training.Meter().count('flops', 1)

  def test_phases_add_up_and_survive_errors(self):
    meter = training.Meter(sample_every=1)
    for _ in range(2):
      with meter.phase('propose') as hold:
        self.assertEqual(hold(jnp.ones(3)).shape, (3,))
        time.sleep(0.02)
    with self.assertRaises(KeyError):
      with meter.phase('gather'):
        raise KeyError
    seconds = meter.as_dict()['seconds']
    self.assertBetween(seconds['propose'], 0.04, 1)
    self.assertGreater(seconds['gather'], 0)
    self.assertGreaterEqual(seconds['total'], seconds['propose'])

  def test_sampled_phases_stand_for_the_others(self):
    """First 5 s with compilation, then 1 s in each sampled entry."""
    meter = training.Meter(sample_every=4)
    now = 0.
    with mock.patch.object(meter_lib.time, 'monotonic', lambda: now):
      for entry in range(9):
        with meter.phase('update') as hold:
          hold(())
          now += 5. if entry == 0 else 1. if entry % 4 == 1 else 0.001
    self.assertAlmostEqual(meter.as_dict()['seconds']['update'], 5. + 8 * 1.)

  @parameterized.parameters(('cpu', 5.0), ('gpu', 3.0), ('tpu', 3.0))
  def test_accelerators_are_waited_for_once_in_32_entries(
      self, backend, seconds):
    """The last of three entries, of 1, 1 and 3 s, counts as the second."""
    now = 0.
    with mock.patch.object(meter_lib.jax, 'default_backend', lambda: backend):
      meter = training.Meter()
    with mock.patch.object(meter_lib.time, 'monotonic', lambda: now):
      for duration in (1., 1., 3.):
        with meter.phase('update') as hold:
          hold(())
          now += duration
    self.assertAlmostEqual(meter.as_dict()['seconds']['update'], seconds)

  def test_resumed_meter_goes_on(self):
    first = training.Meter()
    first.count_step(targets=10, queries=4)
    with first.phase('update'):
      time.sleep(0.01)
    state = json.loads(json.dumps(first.state_dict()))
    second = training.Meter()
    with second.phase('prepare'):
      time.sleep(0.01)
    second.load_state_dict(state)
    second.count_step(targets=1, queries=1)
    self.assertEqual(second.target_encoder_calls, 11)
    self.assertGreaterEqual(second.seconds, state['seconds']['total'])
    self.assertEqual(second.as_dict()['seconds']['update'],
                     state['seconds']['update'])
    self.assertGreater(second.as_dict()['seconds']['prepare'], 0.01)


if __name__ == '__main__':
  absltest.main()
