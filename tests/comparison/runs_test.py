"""Runs are read, found in sweeps and grouped as their files say."""

import os

from absl.testing import absltest
from absl.testing import parameterized

from retrieval_jax.comparison import runs as runs_lib
from retrieval_jax.training import meter
from tests.comparison import made_up


class FinishedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = self.create_tempdir().full_path

  def folder(self, name):
    return os.path.join(self.root, name)

  def read(self, name, **options):
    folder = made_up.write_run(self.folder(name), **options)
    return runs_lib.read_run(folder, name, options.get('split', 'dev'), 'RR@10')

  def test_a_curve_carries_the_counts_that_stand_in_other_lines(self):
    run = self.read('a', quality=0.6, seconds=90.)
    first, middle, last = run.curve
    self.assertEqual(first, runs_lib.Point(0, 0, 200, 200e9, 0))
    # 2/3 of the calls in steps at 3 GFLOP, the 200 of the memory at 1 GFLOP.
    self.assertEqual((middle.step, middle.seconds, middle.quality),
                     (20, 60, 0.4))
    self.assertAlmostEqual(middle.calls, 200 + 2000 / 3)
    self.assertAlmostEqual(middle.flops / 1e9, 200 + 2000)
    self.assertEqual(last, runs_lib.Point(30, 90, 1200, 3200e9, 0.6))

  def test_flops_without_reembedding(self):
    run = self.read('a', meter={
        'target_encoder_calls_in_step': 1200, 'flops_in_step': 600,
        'target_encoder_calls_reembedding': 0, 'flops_reembedding': 0})
    self.assertEqual([point.flops for point in run.curve], [0, 400, 600])

  def test_flops_that_the_log_states_are_taken(self):
    folder = made_up.write_run(self.folder('a'), curve=False)
    with open(os.path.join(folder, 'metrics.jsonl'), 'w', encoding='utf-8'
              ) as f:
      f.write('{"step": 10, "meter/flops": 3, "seconds": 2}\n'
              '{"step": 20, "dev/RR@10": 0.5, "meter/target_encoder_calls": 7}'
              '\n')
    run = runs_lib.read_run(folder, 'a', 'dev', 'RR@10')
    self.assertEqual(run.curve, (runs_lib.Point(20, 2, 7, 3, 0.5),))

  def test_scoring_and_correcting_cost_the_same_in_every_step(self):
    run = self.read('a', meter={
        'target_encoder_calls_in_step': 1200, 'flops_in_step': 600,
        'target_encoder_calls_reembedding': 0, 'flops_reembedding': 0,
        'flops_scoring': 60, 'flops_correcting': 30})
    self.assertEqual([point.flops for point in run.curve], [0, 460, 690])
    run = self.read('b', curve=False, meter={
        'flops_in_step': 600, 'flops_reembedding': 5, 'flops_scoring': 60})
    self.assertEqual([point.flops for point in run.curve], [665])

  def test_every_count_of_the_meter_is_part_of_the_sum(self):
    self.assertEqual(set(runs_lib.FLOP_PARTS.values()), set(meter.FLOPS))

  def test_calls_may_be_logged_in_two_parts(self):
    folder = made_up.write_run(self.folder('a'), curve=False)
    with open(os.path.join(folder, 'metrics.jsonl'), 'w', encoding='utf-8'
              ) as f:
      f.write('{"step": 0, "dev/RR@10": 0.5, "seconds": 2, '
              '"meter/target_encoder_calls_in_step": 3, '
              '"meter/target_encoder_calls_reembedding": 4}\n')
    run = runs_lib.read_run(folder, 'a', 'dev', 'RR@10')
    self.assertEqual(run.curve, (runs_lib.Point(0, 2, 7, 7e9, 0.5),))

  def test_a_run_without_a_curve_is_one_point(self):
    run = self.read('a', curve=False)
    self.assertEqual(
        run.curve, (runs_lib.Point(30, 60., 1200, 3200e9, 0.5),))

  def test_training_seconds_leave_out_evaluation(self):
    meter = {'seconds': {'data': 1, 'propose': 2, 'gather': 4, 'update': 8,
                         'refresh': 16, 'evaluate': 32, 'prepare': 64,
                         'diagnostics': 128, 'checkpoint': 256, 'total': 600}}
    self.assertEqual(runs_lib.training_seconds(meter), 31)
    self.assertIsNone(runs_lib.training_seconds({}))

  def test_a_sweep_is_its_finished_runs(self):
    made_up.write_run(self.folder('001_b'))
    made_up.write_run(self.folder('000_a'))
    made_up.write_config(self.folder('002_c'), {})  # started
    made_up.write_run(  # evaluated half-way
        self.folder('003_d'), config={'num_steps': 60})
    os.makedirs(self.folder('comparison'))
    done, unfinished = runs_lib.in_sweep(self.root)
    self.assertEqual(done, [self.folder('000_a'), self.folder('001_b')])
    self.assertEqual(unfinished, [self.folder('002_c'), self.folder('003_d')])

  def test_a_sweep_without_finished_runs_is_refused(self):
    made_up.write_config(self.folder('002_c'), {})
    with self.assertRaisesRegex(
        FileNotFoundError, 'found 1 unfinished and 1 entries'):
      runs_lib.in_sweep(self.root)
    with self.assertRaisesRegex(FileNotFoundError, 'nowhere'):
      runs_lib.in_sweep(self.folder('nowhere'))

  def test_names_are_as_long_as_needed(self):
    self.assertEqual(runs_lib.names_of(['x/a', 'x/b/']), ['a', 'b'])
    self.assertEqual(runs_lib.names_of(['x/a', 'y/a']), ['x/a', 'y/a'])
    with self.assertRaisesRegex(ValueError, 'every workdir once'):
      runs_lib.names_of(['x/a', 'x/a/'])

  def test_groups_are_named_without_number_and_seed(self):
    runs = [self.read('000_stale-seed0'),
            self.read('001_stale-seed1', seed=1),
            self.read('002_oracle-seed0', method='oracle'),  # one so far
            self.read('k_s4', method='k')]  # not a seed
    groups = runs_lib.group_seeds(runs)
    self.assertEqual(
        {name: len(members) for name, members in groups.items()},
        {'stale': 2, 'oracle': 1, 'k_s4': 1})

  def test_what_only_looks_on_is_no_other_method(self):
    runs = []
    for seed, every, rate in ((0, 60, 1), (1, 120, 1), (2, 0, 3)):
      folder = made_up.write_run(self.folder(f'{seed}_a-seed{seed}'), seed=seed)
      made_up.write_config(folder, {
          'seed': seed, 'diagnostics': {'every': every},
          'optimizer': {'learning_rate': rate}})
      runs.append(runs_lib.read_run(folder, f'a-seed{seed}', 'dev', 'RR@10'))
    groups = runs_lib.group_seeds(runs)
    self.assertEqual([len(members) for members in groups.values()], [2, 1])

  def test_a_seed_counts_once_in_a_group(self):
    # A control may have the very config of what it controls.
    runs = [self.read(f'{name}-seed{seed}', seed=seed)
            for seed in (0, 1) for name in ('never', 'stale')]
    groups = runs_lib.group_seeds(runs)
    self.assertEqual(
        {name: [run.name for run in members]
         for name, members in groups.items()},
        {'never': ['never-seed0', 'never-seed1'],
         'stale': ['stale-seed0', 'stale-seed1']})

  @parameterized.parameters(
      (b'{"step": 4', r'metrics\.jsonl:8: expected one'),
      (b'{"\xff": 4}', r'metrics\.jsonl:\d: expected utf-8'))
  def test_a_broken_log_line_is_named(self, line, message):
    folder = made_up.write_run(self.folder('a'))
    with open(os.path.join(folder, 'metrics.jsonl'), 'ab') as f:
      f.write(line)
    with self.assertRaisesRegex(ValueError, message):
      runs_lib.read_run(folder, 'a', 'dev', 'RR@10')

  def test_a_measure_nobody_computed_is_named(self):
    folder = made_up.write_run(self.folder('a'))
    with self.assertRaisesRegex(ValueError, 'RR@10 of split .test.*dev: RR@10'):
      runs_lib.read_run(folder, 'a', 'test', 'RR@10')


if __name__ == '__main__':
  absltest.main()
