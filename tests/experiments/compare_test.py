"""Comparisons say what the runs' files say."""

import contextlib
import csv
import io
import math
import os

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments import compare
from retrieval_jax.comparison import differences
from retrieval_jax.comparison import runs as runs_lib
from retrieval_jax.comparison import tables
from retrieval_jax.jobs import compare as compare_job
from tests.comparison import made_up


class CompareTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = self.create_tempdir().full_path
    self.out = os.path.join(self.root, 'out')

  def folder(self, name):
    return os.path.join(self.root, name)

  def main(self, *arguments):
    """Returns (exit status, stdout, stderr) of the command."""
    values = flags.FlagValues()
    compare.define_flags(values)
    argv = values(['compare', f'--out={self.out}', *arguments])
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      try:
        compare.main(argv, values)
      except SystemExit as error:
        status = error.code
    return status, out.getvalue(), err.getvalue()

  def table(self, name='comparison.csv', key='method'):
    with open(os.path.join(self.out, name), encoding='utf-8') as f:
      return {row[key]: row for row in csv.DictReader(f)}

  def markdown(self):
    with open(os.path.join(self.out, 'comparison.md'), encoding='utf-8') as f:
      return f.read()

  def groups(self, **methods):
    """Returns groups of runs with these (seed, quality) pairs."""
    return {name: [runs_lib.FinishedRun(
        f'{name}{seed}', {'measures': {'dev': {'RR@10': quality}},
                          'seed': seed}, {}, (), ())
                   for seed, quality in pairs]
            for name, pairs in methods.items()}

  def test_one_command_judges_a_sweep(self):
    sweep = made_up.write_sweep(self.folder('sweep'), {
        'oracle': (0.625, 0.75, 0.6875), 'stale': (0.5, 0.625, 0.5),
        'in_batch': (0.25, 0.5, 0.375)}, split='test',
        diagnostics={'diagnostics/kl': (1., 0.1, 0.01)})
    made_up.write_config(os.path.join(sweep, '009_never-seed0'), {})
    status, out, err = self.main(
        f'--sweep={sweep}', '--split=test', '--reference=oracle,in_batch',
        '--pairs=stale:in_batch', '--curves=diagnostics/kl')
    self.assertEqual(status, 0, err)
    self.assertIn('009_never-seed0 has not finished and is left out', err)
    self.assertIn('| stale | 3 | 0.5417 ± 0.0722 (0.5000..0.6250) |', out)
    self.assertIn('## Differences in MRR@10 on test, in points', out)
    differences = [line.split(' | ')[:3] for line in out.splitlines()
                   if line.startswith('| ') and ' | oracle | ' in line
                   or ' | in_batch | ' in line]
    self.assertEqual(differences, [
        ['| stale', 'oracle', '-14.58'], ['| in_batch', 'oracle', '-31.25'],
        ['| oracle', 'in_batch', '+31.25'], ['| stale', 'in_batch', '+16.67']])
    self.assertTrue(self.markdown().startswith('# Comparison on test\n'))
    self.assertEqual(sorted(os.listdir(self.out)), [
        'comparison.csv', 'comparison.md', 'comparison.png', 'curves.png',
        'runs.csv'])
    self.assertIn('(comparison.png)', self.markdown())
    self.assertIn('(curves.png)', self.markdown())

  def test_a_table_of_runs_is_compared_as_its_runs_were(self):
    sweep = made_up.write_sweep(self.folder('sweep'), {
        'oracle': (0.625, 0.75, 0.6875), 'stale': (0.5, 0.625, 0.5)},
                                split='test')
    arguments = ['--split=test', '--reference=oracle']
    self.assertEqual(self.main(f'--sweep={sweep}', *arguments)[0], 0)
    of_folders = self.markdown(), self.table()
    table = os.path.join(self.create_tempdir().full_path, 'runs.csv')
    os.rename(os.path.join(self.out, 'runs.csv'), table)
    status, _, err = self.main(f'--runs={table}', *arguments)
    self.assertEqual(status, 0, err)
    found = self.table()
    self.assertEqual(list(found), ['oracle', 'stale'])  # not the baseline
    for method in found:
      for column, value in of_folders[1][method].items():
        if column != 'method' and not column.startswith('curve noise'):
          self.assertAlmostEqual(
              float(found[method][column]), float(value), places=9, msg=column)
    differences = lambda text: text[text.index('## Differences'):]
    self.assertEqual(differences(self.markdown()), differences(of_folders[0]))
    for broken, message in (
        ('run,method,seed,RR@10\na,a,0,high\n', r'runs.csv:2: .*high'),
        ('run,method,seed,R@1\na,a,0,0.5\n', 'runs.csv:2: .*RR@10')):
      with open(table, 'w', encoding='utf-8') as f:
        f.write(broken)
      status, _, _ = self.main(f'--runs={table}', '--split=test')
      self.assertRegex(status, message)
    with open(table, 'w', encoding='utf-8') as f:
      f.write('run,method\n')
    status, _, _ = self.main(f'--runs={table}')
    self.assertIn('expected a runs.csv of experiments.compare', status)

  def test_methods_show_quality_and_cost(self):
    runs = [made_up.write_run(self.folder('stale')),
            made_up.write_run(self.folder('oracle'), method='oracle',
                              quality=0.625, calls=90000, seconds=700.)]
    status, _, err = self.main(f'--workdirs={",".join(runs)}')
    self.assertEqual(status, 0, err)
    rows = self.table()
    self.assertEqual(list(rows), ['BM25', 'stale', 'oracle'])
    self.assertEqual(rows['BM25']['RR@10'], '0.25')
    self.assertEqual(rows['BM25']['total seconds'], '')
    self.assertEqual(rows['oracle']['RR@10'], '0.625')
    self.assertEqual(rows['oracle']['target calls, step'], '90000.0')
    self.assertEqual(rows['oracle']['re-embedded targets'], '200.0')
    self.assertAlmostEqual(float(rows['oracle']['TFLOP, step']), 270)
    self.assertAlmostEqual(float(rows['oracle']['TFLOP, re-embedding']), 0.2)
    self.assertAlmostEqual(float(rows['oracle']['TFLOP']), 270.2)
    self.assertAlmostEqual(
        float(rows['oracle']['training seconds']), 700 * 2 / 3)
    self.assertEqual(rows['stale']['table MiB'], '1.0')
    self.assertEqual(rows['stale']['device MiB'], '4.0')
    self.assertNotIn('RR@10 sd', rows['stale'])  # one seed has no spread
    self.assertIn('| method | seeds | MRR@10 | Recall@1 | nDCG@10 | curve '
                  'noise | target calls, step |', self.markdown())
    self.assertIn('| oracle | 1 | 0.6250 | 0.3125 | 0.1562 | 0.0000 | 90,000 | '
                  '200 | 270.0 | 0.2 | 270.2 | 467 | 700 | 1 | 4 |',
                  self.markdown())

  def test_seeds_become_mean_and_spread_and_every_run_is_kept(self):
    runs = [made_up.write_run(
        self.folder(f'stale_seed{seed}'), seed=seed, quality=quality,
        seconds=seconds, split='test')
            for seed, quality, seconds in ((0, 0.5, 60), (1, 0.75, 90))]
    runs.append(made_up.write_run(
        self.folder('other'), method='other', split='test'))
    compare_job.run(runs, self.out, split='test')
    mean = self.table()['stale']
    self.assertEqual(mean['RR@10'], '0.625')
    self.assertAlmostEqual(
        float(mean['RR@10 sd']), 0.25 / 2**0.5)  # standard deviation of two
    self.assertEqual((mean['RR@10 min'], mean['RR@10 max']), ('0.5', '0.75'))
    self.assertEqual(mean['total seconds'], '75.0')
    self.assertIn('| 1,000 | 200 |', self.markdown())  # the same in each seed
    self.assertIn('| 75 ± 21 (60..90) |', self.markdown())
    every = self.table('runs.csv', 'run')
    self.assertEqual(list(every), ['stale_seed0', 'stale_seed1', 'other'])
    self.assertEqual(every['stale_seed1']['RR@10'], '0.75')
    self.assertEqual(every['stale_seed1']['method'], 'stale')
    self.assertEqual(every['stale_seed1']['nDCG@10'], '0.1875')

  def test_all_flops_that_were_counted_are_shown_and_add_up(self):
    meter = {'target_encoder_calls_in_step': 10, 'flops_in_step': 4e12,
             'target_encoder_calls_reembedding': 0, 'flops_reembedding': 0}
    runs = [
        made_up.write_run(self.folder('new'), meter={
            **meter, 'flops_scoring': 2e12, 'flops_correcting': 1e12}),
        made_up.write_run(self.folder('old'), method='old', meter=meter)]
    printed = compare_job.run(runs, self.out)
    for part in ('scoring', 'correcting'):
      self.assertIn(f'The TFLOP of old leave out {part}, which', printed)
    self.assertNotIn('The TFLOP', compare_job.run(runs[1:], self.out))
    compare_job.run(runs, self.out)
    parts = ('TFLOP, step', 'TFLOP, re-embedding', 'TFLOP, scoring',
             'TFLOP, correcting', 'TFLOP')
    for table, key in (('comparison.csv', 'method'), ('runs.csv', 'run')):
      rows = self.table(table, key)
      self.assertEqual([rows['new'][part] for part in parts],
                       ['4.0', '0.0', '2.0', '1.0', '7.0'])
      self.assertEqual([rows['old'][part] for part in parts],
                       ['4.0', '0.0', '', '', '4.0'])

  def test_every_run_has_the_commit_of_its_code(self):
    runs = [made_up.write_run(self.folder('a'), commit='1f3a'),
            made_up.write_run(self.folder('b'), method='b')]
    for compared in (runs, runs[1:]):
      compare_job.run(compared, self.out)
      commits = {name: row['commit']
                 for name, row in self.table('runs.csv', 'run').items()}
      self.assertEqual(commits.pop('b'), '')
      self.assertEqual(commits, {'a': '1f3a'} if len(compared) == 2 else {})

  def test_curves_are_those_of_dev_whatever_split_is_shown(self):
    runs = [made_up.write_run(
        self.folder(f'{name}-seed{seed}'), method=name, seed=seed,
        quality=quality, measures={'dev': {'RR@10': quality},
                                   'test': {'RR@10': 0.25}})
            for name, seed, quality in (
                ('ance', 0, 0.3), ('ance', 1, 0.6), ('tele', 0, 0.45),
                ('tele', 1, 0.9), ('late', 0, 0.29), ('late', 1, 0.9))]
    status, printed, err = self.main(
        f'--workdirs={",".join(runs)}', '--split=test', '--steps_to=ance')
    self.assertEqual(status, 0, err)
    # At 20 of 30 steps two thirds of 0.45 and 0.9 are there: 0.3 and 0.6. The
    # first seed of the last never gets to 0.3.
    every = self.table('runs.csv', 'run')
    self.assertEqual({name: row['steps to ance'] for name, row in every.items()
                      }, {'ance-seed0': '30', 'ance-seed1': '30',
                          'tele-seed0': '20', 'tele-seed1': '20',
                          'late-seed0': '', 'late-seed1': '20'})
    rows = self.table()
    self.assertEqual([rows[name]['steps to ance'] for name in (
        'ance', 'tele', 'late')], ['30.0', '20.0', ''])
    self.assertAlmostEqual(float(rows['tele']['curve noise']), 0)  # a line
    self.assertIn('| tele | 2 | 0.2500 | 0.0000 | 20 |', printed)
    self.assertIn('`curve noise` is the standard deviation of MRR@10', printed)
    self.assertIn('`steps to ance` is the first dev evaluation', printed)
    self.main(f'--workdirs={",".join(runs)}', '--split=test')
    self.assertNotIn('steps to', self.markdown())

  def test_a_setting_that_was_not_chosen_keeps_its_row_among_the_runs(self):
    runs = []
    for name, quality in (('low', 0.25), ('high', 0.5)):
      runs.append(made_up.write_run(self.folder(name), quality=quality))
      made_up.write_config(runs[-1], {'learning_rate': name})
    compare_job.run(runs, self.out, choose_on='dev')
    self.assertEqual(list(self.table()), ['BM25', 'high'])
    self.assertEqual(list(self.table('runs.csv', 'run')), ['low', 'high'])

  def test_a_plotted_measure_gets_its_column(self):
    run = made_up.write_run(self.folder('a'))
    compare_job.run([run], self.out, measure='nDCG@10')
    self.assertEqual(self.table()['a']['nDCG@10'], '0.125')

  def test_a_paired_difference(self):
    groups = self.groups(a=((0, 0.50), (1, 0.61), (2, 0.72)),
                         b=((2, 0.70), (0, 0.49), (1, 0.58)))
    found = differences.difference(groups, 'a', 'b', 'dev', 'RR@10')
    # 1, 3 and 2 points seed by seed: mean 2, standard deviation 1.
    self.assertTrue(found.paired)
    self.assertAlmostEqual(found.points, 2)
    self.assertAlmostEqual(found.error, 1 / math.sqrt(3))
    for end, sign in zip(found.interval, (-1, 1)):
      self.assertAlmostEqual(
          end, 2 + sign * 4.302653 / math.sqrt(3), places=5)
    self.assertFalse(found.exceeds_spread)  # 22 and 21 points

  def test_a_difference_of_unlike_seeds(self):
    groups = self.groups(a=((0, 0.50), (1, 0.52)),
                         b=((5, 0.40), (6, 0.41), (7, 0.42)))
    found = differences.difference(groups, 'a', 'b', 'dev', 'RR@10')
    self.assertFalse(found.paired)
    error = math.sqrt(2 / 2 + 1 / 3)  # variances over numbers of seeds
    self.assertAlmostEqual(found.points, 10)
    self.assertAlmostEqual(found.error, error)
    self.assertAlmostEqual(found.interval[0], 10 - 12.706205 * error, places=5)
    self.assertTrue(found.exceeds_spread)

  @parameterized.parameters((0.49, False), (0.51, True))
  def test_a_difference_must_exceed_the_wider_spread(self, quality, exceeds):
    groups = self.groups(a=((0, quality), (1, quality)),
                         b=((0, 0.35), (1, 0.45)))  # 10 points around 40
    for pair in (('a', 'b'), ('b', 'a')):
      found = differences.difference(groups, *pair, 'dev', 'RR@10')
      self.assertEqual(found.exceeds_spread, exceeds)

  @parameterized.parameters(
      # 11 points, a spread of 10, but an interval of 5 * 12.7 to each side.
      ((0.51, 0.51), (0.35, 0.45), 'no: the interval holds 0'),
      ((0.70, 0.72), (0.35, 0.38), 'yes'),  # 33 and 34 points
      ((0.41, 0.43), (0.40, 0.42), 'no'),  # 1 and 1: certain, but small
      ((0.5, 0.6), (0.5, 0.6), 'no'))
  def test_a_difference_stands_out_where_both_answers_agree(
      self, first, second, verdict):
    groups = self.groups(a=enumerate(first), b=enumerate(second))
    for pair in (('a', 'b'), ('b', 'a')):
      found = differences.difference(groups, *pair, 'dev', 'RR@10')
      line = tables.differences_markdown([found]).splitlines()[-1]
      self.assertTrue(line.endswith(f'| yes | {verdict} |'), line)

  def test_one_seed_has_a_difference_and_no_error(self):
    groups = self.groups(a=((0, 0.5),), b=((0, 0.25), (1, 0.5)))
    found = differences.difference(groups, 'a', 'b', 'dev', 'RR@10')
    self.assertEqual(
        found, differences.Difference('a', 'b', 12.5, paired=False))
    self.assertEqual(
        tables.differences_markdown([found]).splitlines()[-1],
        '| a | b | +12.50 |  |  | no | one seed |')

  @parameterized.parameters(2, 3, 10, 20)
  def test_the_interval_is_that_of_student(self, num_seeds):
    rng = np.random.default_rng(num_seeds)
    groups = self.groups(a=enumerate(rng.uniform(size=num_seeds)),
                         b=enumerate(rng.uniform(size=num_seeds)))
    found = differences.difference(groups, 'a', 'b', 'dev', 'RR@10')
    # The distribution function of Student's t at the quantile, integrated.
    df = num_seeds - 1
    norm = math.gamma((df + 1) / 2) / (
        math.gamma(df / 2) * math.sqrt(df * math.pi))
    quantile = (found.interval[1] - found.points) / found.error
    count = 20000
    step = quantile / count
    density = lambda t: norm * (1 + t * t / df) ** (-(df + 1) / 2)
    area = step * sum(density((i + 0.5) * step) for i in range(count))
    self.assertAlmostEqual(area, 0.475, places=6)

  def test_the_best_setting_of_a_method_is_chosen_on_another_split(self):
    runs = []
    for name, method, dev, test in (
        ('low', 'stale', 0.5, 0.75), ('high', 'stale', 0.625, 0.25),
        ('alone', 'oracle', 0.125, 0.125)):
      runs.append(made_up.write_run(
          self.folder(name), method=method, curve=False,
          measures={'dev': {'RR@10': dev}, 'test': {'RR@10': test}}))
      made_up.write_config(runs[-1], {'learning_rate': name})
    printed = compare_job.run(runs, self.out, split='test', choose_on='dev')
    self.assertEqual(list(self.table()), ['high', 'alone'])
    self.assertIn('Chosen by RR@10 on dev: high (0.6250) over low (0.5000).',
                  printed)
    with self.assertRaisesRegex(ValueError, "split 'train'.*has dev: RR@10"):
      compare_job.run(runs, self.out, split='test', choose_on='train')

  def test_baselines_that_differ_are_told_apart(self):
    runs = [made_up.write_run(self.folder('a'), method='a'),
            made_up.write_run(self.folder('b'), method='b',
                              bm25={'dev': {'RR@10': 0.3}})]
    compare_job.run(runs, self.out)
    self.assertContainsSubset(['BM25 (a)', 'BM25 (b)'], self.table())

  def test_nothing_is_written_for_an_unfinished_run(self):
    os.makedirs(self.folder('b'))
    with self.assertRaisesRegex(FileNotFoundError, 'same command resumes'):
      compare_job.run([made_up.write_run(self.folder('a')), self.folder('b')],
                      self.out)
    self.assertFalse(os.path.exists(self.out))

  @parameterized.parameters(
      ('--reference=orakel', "name methods, got 'orakel'; there is a, b"),
      ('--pairs=a:c', "got 'c'; there is a, b"),
      ('--steps_to=c', "Expected --steps_to to name methods, got 'c'"),
      ('--pairs=a', "Expected --pairs=A:B,..., got 'a'"),
      ('--curves=train/nll,kl',
       "got 'kl'; there is dev/RR@10, meter/target_encoder_calls, seconds, "
       'train/nll'))
  def test_what_does_not_exist_is_refused(self, argument, message):
    runs = [made_up.write_run(self.folder(name), method=name) for name in 'ab']
    status, _, _ = self.main(f'--workdirs={",".join(runs)}', argument)
    self.assertIn(message, status)
    self.assertFalse(os.path.exists(self.out))

  def test_nothing_to_compare_is_refused(self):
    self.assertIn('--sweep=DIR or --workdirs=A,B', self.main()[0])
    os.makedirs(self.folder('empty'))
    self.assertIn('found 0 unfinished and 0 entries',
                  self.main(f'--sweep={self.folder("empty")}')[0])


if __name__ == '__main__':
  absltest.main()
