"""The loop: order of hooks, resume, stops."""

import dataclasses
import json
import os

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from retrieval_jax import training
from tests.training import toy


@dataclasses.dataclass
class Recorder(training.Hook):
  """Notes at which steps it was called."""
  every: int
  at_finish: bool = True
  at_stop: bool = False
  steps: list = dataclasses.field(default_factory=list)
  closed: bool = False

  def __call__(self, run):
    self.steps.append(run.step)

  def close(self):
    self.closed = True


class LoopTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path

  def train(self, hooks=(), *, state=None, start_step=0, num_steps=6,
            step_fn=None, resume_step=None, meter=None, devices=1,
            **kwargs):
    with training.MetricWriter(self.folder, resume_step=resume_step,
                               tensorboard=False) as writer:
      return training.train(
          state or toy.make_state(devices), toy.batches(start_step, devices),
          step_fn or toy.make_step(devices), hooks,
          start_step=start_step, num_steps=num_steps,
          meter=meter or training.Meter(), writer=writer, **kwargs)

  def lines(self):
    with open(os.path.join(self.folder, 'metrics.jsonl')) as file:
      return [json.loads(line) for line in file]

  def test_hooks_run_every_so_many_steps_and_at_the_end(self):
    periodic, at_end = Recorder(4), Recorder(0)
    inner = Recorder(3, at_finish=False)
    state = self.train([periodic, at_end, inner], num_steps=10)
    self.assertEqual(periodic.steps, [4, 8, 10])
    self.assertEqual(at_end.steps, [10])
    self.assertEqual(inner.steps, [3, 6, 9])
    self.assertEqual(int(state.step), 10)

  def test_stop_runs_only_the_hooks_that_save(self):
    evaluate, save = Recorder(0), Recorder(0, at_stop=True)
    state = self.train([evaluate, save], stop=lambda step: step == 3)
    self.assertEqual(evaluate.steps, [])
    self.assertEqual(save.steps, [3])
    self.assertEqual(int(state.step), 3)

  def test_hooks_are_closed_when_a_step_fails(self):
    recorder = Recorder(1)
    def fail(state, batch):
      raise RuntimeError('boom')
    with self.assertRaisesRegex(RuntimeError, 'boom'):
      self.train([recorder], step_fn=fail)
    self.assertTrue(recorder.closed)

  def test_finished_run_does_nothing(self):
    recorder = Recorder(1)
    self.train([recorder], start_step=6)
    self.assertEqual(recorder.steps, [])

  def test_implicit_transfer_in_the_step_is_an_error(self):
    toy_step = toy.make_step()
    def careless(state, batch):
      return toy_step(state, np.ones((4, toy.DIM), np.float32))
    with self.assertRaisesRegex(Exception, 'Disallowed host-to-device'):
      self.train(step_fn=careless)
    self.train(step_fn=careless, transfer_guard='allow')

  def test_log_is_the_mean_over_the_period(self):
    each, toy_step = [], toy.make_step()
    def step_fn(state, batch):
      state, metrics = toy_step(state, batch)
      each.append(float(metrics['nll']))
      return state, metrics
    schedule = toy.adam()[1]
    self.train([training.LogHook(4, schedule)], step_fn=step_fn)
    first, last = self.lines()
    self.assertEqual((first['step'], last['step']), (4, 6))
    self.assertAlmostEqual(first['train/nll'], np.mean(each[:4]), places=6)
    self.assertAlmostEqual(last['train/nll'], np.mean(each[4:]), places=6)
    self.assertAlmostEqual(first['train/learning_rate'],
                           0.1 * (1 - 1 / 18), places=6)
    self.assertIn('seconds', first)
    self.assertEqual(first['meter/target_encoder_calls'], 0)

  # The key-reuse checker keeps jit off its fast path and traces again.
  @jax.debug_key_reuse(False)
  def test_step_compiles_once(self):
    state = self.train(num_steps=1, devices=8)
    with jax.no_tracing():
      self.train(state=state, start_step=1, num_steps=4, devices=8)

  def test_nan_stops_the_run_and_is_not_saved(self):
    def step_fn(state, batch):
      state, metrics = toy_step(state, batch)
      seventh = each.append(None) or len(each) == 7
      return state, metrics | {'norm': bad if seventh else metrics['nll']}
    # Not in the loop, which allows no transfers.
    toy_step, bad = toy.make_step(), jax.device_put(np.float32(np.nan))
    each = []
    with training.Checkpoints(self.folder + '/ckpt') as checkpoints:
      with self.assertRaisesRegex(
          FloatingPointError, r"'norm' is nan at step 7 \(steps 5 to 8 were"):
        self.train([training.LogHook(4),
                    training.CheckpointHook(checkpoints, 4)],
                   step_fn=step_fn, num_steps=12)
      self.assertEqual(checkpoints.latest_step(), 4)

  def test_nan_is_not_saved_between_logs(self):
    def step_fn(state, batch):
      state, metrics = toy_step(state, batch)
      return state, metrics | {'nll': metrics['nll'] * bad}
    toy_step, bad = toy.make_step(), jax.device_put(np.float32(np.inf))
    with training.Checkpoints(self.folder + '/ckpt') as checkpoints:
      with self.assertRaisesRegex(
          FloatingPointError, r"'nll' is inf at step 1 \(steps 1 to 2 were"):
        self.train([training.LogHook(4),
                    training.CheckpointHook(checkpoints, 2)], step_fn=step_fn)
      self.assertIsNone(checkpoints.latest_step())

  def test_sampled_phases_pass_the_transfer_guard(self):
    def step_fn(state, batch):
      with meter.phase('update') as hold:
        return hold(toy_step(state, batch))
    toy_step, meter = toy.make_step(), training.Meter(sample_every=3)
    self.train(step_fn=step_fn, meter=meter)
    self.assertGreater(meter.as_dict()['seconds']['update'], 0)

  def test_evaluation_is_written_with_its_cost(self):
    meter = training.Meter()
    meter.count_step(targets=7, queries=2, target_flops=3., query_flops=5.)
    self.train([training.EvaluateHook(lambda state: {'dev/RR@10': 0.5}, 3)],
               meter=meter)
    self.assertEqual([line['step'] for line in self.lines()], [3, 6])
    self.assertEqual(self.lines()[0]['dev/RR@10'], 0.5)
    self.assertEqual(self.lines()[0]['meter/target_encoder_calls'], 7)
    self.assertEqual(self.lines()[0]['meter/flops'], 7 * 3. + 2 * 5.)
    self.assertGreater(meter.as_dict()['seconds']['evaluate'], 0)

  @parameterized.parameters((8, 8), (8, 4), (1, 8))
  def test_resumed_run_equals_the_straight_one(self, before, after):
    """Bit for bit, and on another number of devices."""
    def reencode(state):
      table = dataclasses.replace(
          state.table, embeddings=state.table.embeddings * 2)
      return dataclasses.replace(state, table=table)

    def hooks(checkpoints):
      return [training.ReencodeHook(reencode, 5), training.LogHook(2),
              training.CheckpointHook(checkpoints, 0, {'k': 1})]

    with training.Checkpoints(self.folder + '/straight') as checkpoints:
      straight = self.train(hooks(checkpoints), num_steps=12, devices=before)
    straight_lines = self.lines()
    meter = training.Meter()
    meter.count_step(targets=10, queries=5)
    with training.Checkpoints(self.folder + '/resumed') as checkpoints:
      self.train(hooks(checkpoints), num_steps=12, devices=before,
                 stop=lambda step: step == 10, meter=meter)
    # The interrupted process had gone on logging after its last checkpoint.
    with open(os.path.join(self.folder, 'metrics.jsonl'), 'a') as file:
      file.write('{"step": 11, "train/nll": 99}\n{"step": 12, "tra')
    with training.Checkpoints(self.folder + '/resumed') as checkpoints:
      shapes = jax.eval_shape(toy.init, jax.random.key(0))
      wanted = training.abstract(jax.tree.map(
          lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
          shapes, toy.shardings(shapes, after)))
      state, meta = checkpoints.restore(wanted)
      self.assertEqual(int(state.step), 10)
      self.assertLen(state.table.embeddings.sharding.device_set, after)
      meter = training.Meter()
      meter.load_state_dict(meta['meter'])
      resumed = self.train(
          hooks(checkpoints), state=state, start_step=10, num_steps=12,
          resume_step=10, devices=after, meter=meter)
    self.assertEqual(meter.target_encoder_calls, 10)
    jax.tree.map(np.testing.assert_array_equal, straight,
                 resumed)
    # A metric that sums over shards may round differently on fewer of them.
    self.assertEqual([line['step'] for line in self.lines()],
                     [line['step'] for line in straight_lines])
    for name in ('train/nll', 'train/table_norm'):
      np.testing.assert_allclose(
          [line[name] for line in self.lines()],
          [line[name] for line in straight_lines],
          rtol=0 if before == after else 1e-6)


if __name__ == '__main__':
  absltest.main()
