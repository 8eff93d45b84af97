"""Comparisons say what the runs' files say."""

import csv
import json
import os
import struct

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized

from experiments import compare


def write_run(folder, *, method='stale', seed=0, quality=0.5, calls=1000,
              seconds=60., curve=True, split='dev', **results):
  os.makedirs(folder)
  with open(os.path.join(folder, 'results.json'), 'w', encoding='utf-8') as f:
    json.dump({
        'measures': {split: {'RR@10': quality, 'R@1': quality / 2}},
        'bm25': {split: {'RR@10': 0.25}}, 'untrained': {},
        'meter': {'target_encoder_calls_in_step': calls,
                  'target_encoder_calls_reembedding': 200,
                  'flops_in_step': 3e12, 'flops_reembedding': 0,
                  'table_bytes': 2**20, 'seconds': {'total': seconds}},
        'steps': 30, 'seed': seed, 'method': method} | results, f)
  with open(os.path.join(folder, 'config.json'), 'w', encoding='utf-8') as f:
    json.dump({'sampler': {'name': method}, 'seed': seed}, f)
  if curve:
    with open(os.path.join(folder, 'metrics.jsonl'), 'w', encoding='utf-8'
              ) as f:
      for step in (0, 10, 20, 30):
        # Counts are logged more often than quality.
        line = {'step': step, 'seconds': seconds * step / 30, 'train/nll': 1.,
                'meter/target_encoder_calls': 200 + calls * step / 30}
        f.write(json.dumps(line) + '\n')
        if step != 10:
          f.write(json.dumps({
              'step': step, f'{split}/RR@10': quality * step / 30}) + '\n')
  return folder


class CompareTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = self.create_tempdir().full_path
    self.out = os.path.join(self.root, 'out')

  def folder(self, name):
    return os.path.join(self.root, name)

  def rows(self):
    with open(os.path.join(self.out, 'comparison.csv'), encoding='utf-8') as f:
      return {row['run']: row for row in csv.DictReader(f)}

  def test_main_writes_table_and_plot(self):
    runs = [write_run(self.folder('stale'), quality=0.5),
            write_run(self.folder('oracle'), method='oracle', quality=0.625,
                      calls=90000, seconds=700.)]
    values = flags.FlagValues()
    compare.define_flags(values)
    argv = values(['compare', f'--workdirs={",".join(runs)}',
                   f'--out={self.out}'])
    compare.main(argv, values)
    rows = self.rows()
    self.assertEqual(list(rows), ['BM25', 'stale', 'oracle'])
    self.assertEqual(rows['BM25']['RR@10'], '0.25')
    self.assertEqual(rows['BM25']['seconds'], '')
    self.assertEqual(rows['oracle']['RR@10'], '0.625')
    self.assertEqual(rows['oracle']['target calls'], '90200')
    self.assertEqual(rows['stale']['table MiB'], '1.0')
    with open(os.path.join(self.out, 'comparison.md'), encoding='utf-8') as f:
      markdown = f.read()
    self.assertIn('| oracle | 0 | 30 | 0.6250 | 0.3125 | 90,000 | 200 | 90,200',
                  markdown)
    with open(os.path.join(self.out, 'comparison.png'), 'rb') as f:
      head = f.read(24)
    self.assertEqual(head[:8], b'\x89PNG\r\n\x1a\n')
    self.assertGreater(struct.unpack('>II', head[16:])[0], 1000)
    self.assertEqual(sorted(os.listdir(self.out)), [
        'comparison.csv', 'comparison.md', 'comparison.png'])

  def test_a_curve_carries_the_counts_that_stand_in_other_lines(self):
    run = compare.read_run(
        write_run(self.folder('a'), quality=0.6, seconds=90.), 'a', 'dev',
        'RR@10')
    self.assertEqual(run.curve, (
        compare.Point(0, 0, 200, 0), compare.Point(20, 60, 200 + 2000 / 3, 0.4),
        compare.Point(30, 90, 1200, 0.6)))

  def test_calls_may_be_logged_in_two_parts(self):
    folder = write_run(self.folder('a'), curve=False)
    with open(os.path.join(folder, 'metrics.jsonl'), 'w', encoding='utf-8'
              ) as f:
      f.write('{"step": 1, "dev/RR@10": 0.5, "seconds": 2, '
              '"meter/target_encoder_calls_in_step": 3, '
              '"meter/target_encoder_calls_reembedding": 4}\n')
    run = compare.read_run(folder, 'a', 'dev', 'RR@10')
    self.assertEqual(run.curve, (compare.Point(1, 2, 7, 0.5),))

  def test_a_run_without_a_curve_is_one_point(self):
    folder = write_run(self.folder('a'), curve=False)
    run = compare.read_run(folder, 'a', 'dev', 'RR@10')
    self.assertEqual(run.curve, (compare.Point(30, 60., 1200, 0.5),))

  def test_runs_that_differ_in_the_seed_are_averaged(self):
    runs = [write_run(self.folder(f'stale_seed{seed}'), seed=seed,
                      quality=quality, split='test')
            for seed, quality in ((0, 0.5), (1, 0.75))]
    runs.append(write_run(self.folder('other'), method='other', split='test'))
    compare.compare(runs, self.out, split='test')
    rows = self.rows()
    mean = rows['stale, mean of 2 seeds']
    self.assertEqual(mean['RR@10'], '0.625')
    self.assertAlmostEqual(
        float(mean['RR@10 ±']), 0.25 / 2**0.5)  # standard deviation of two
    self.assertEqual(rows['stale_seed1']['RR@10'], '0.75')
    self.assertLen(rows, 5)

  def test_baselines_that_differ_are_told_apart(self):
    runs = [write_run(self.folder('a'), method='a'),
            write_run(self.folder('b'), method='b',
                      bm25={'dev': {'RR@10': 0.3}})]
    compare.compare(runs, self.out)
    self.assertContainsSubset(['BM25 (a)', 'BM25 (b)'], self.rows())

  def test_names_are_as_long_as_needed(self):
    self.assertEqual(compare.names_of(['x/a', 'x/b/']), ['a', 'b'])
    self.assertEqual(compare.names_of(['x/a', 'y/a']), ['x/a', 'y/a'])
    with self.assertRaisesRegex(ValueError, 'every workdir once'):
      compare.names_of(['x/a', 'x/a/'])

  def test_nothing_is_written_for_an_unfinished_run(self):
    os.makedirs(self.folder('b'))
    with self.assertRaisesRegex(FileNotFoundError, 'same command resumes'):
      compare.compare(
          [write_run(self.folder('a')), self.folder('b')], self.out)
    self.assertFalse(os.path.exists(self.out))

  def test_a_measure_nobody_computed_is_named(self):
    run = write_run(self.folder('a'))
    with self.assertRaisesRegex(ValueError, 'RR@10 of split .test.*dev: RR@10'):
      compare.compare([run], self.out, split='test')

  def test_a_broken_log_line_is_named(self):
    run = write_run(self.folder('a'))
    with open(os.path.join(run, 'metrics.jsonl'), 'a', encoding='utf-8') as f:
      f.write('{"step": 4')
    with self.assertRaisesRegex(ValueError, r'metrics\.jsonl:8: expected one'):
      compare.compare([run], self.out)


if __name__ == '__main__':
  absltest.main()
