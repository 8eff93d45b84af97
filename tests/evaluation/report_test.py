"""Reports are strict JSON and readable tables."""

import io
import json
import os
from unittest import mock

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np
import rich.console

from retrieval_jax.evaluation import report

_RESULTS = {
    'measures': {'test': {'RR@10': 0.6543, 'R@1': 0.5, 'R@20': 0.9,
                          'R@100': 0.99}},
    'bm25': {'test': {'RR@10': 0.3424, 'R@1': 0.2, 'R@20': 0.5}},
    'untrained': {},
    'meter': {
        'target_encoder_calls_in_step': 76800,
        'target_encoder_calls_reembedding': 117659,
        'query_encoder_calls': 38400, 'flops_in_step': 2.5e12,
        'flops_reembedding': 1e12, 'flops_scoring': 4.56e12,
        'flops_correcting': 7.89e12, 'table_bytes': 3 * 2**20, 'index_bytes': 0,
        'device_bytes': 5 * 2**20, 'host_bytes': 7 * 2**19,
        'seconds': {'propose': 1.25, 'total': 61.0}}}


def printed(table):
  console = rich.console.Console(width=100, record=True, file=io.StringIO())
  console.print(table)
  return console.export_text()


class ReportTest(absltest.TestCase):

  def test_results_read_back_as_plain_numbers(self):
    workdir = self.create_tempdir().full_path
    path = report.write_results(workdir, {
        'measures': {'dev': {'RR@10': np.float32(0.5), 'R@1': jnp.ones([])}},
        'steps': np.int64(3), 'config': {'hidden': (1, 2)}, 'kl': np.inf,
        'none': None, 'flag': True})
    self.assertEqual(path, os.path.join(workdir, 'results.json'))
    self.assertEqual(report.read_results(workdir), {
        'measures': {'dev': {'RR@10': 0.5, 'R@1': 1.0}}, 'steps': 3,
        'config': {'hidden': [1, 2]}, 'kl': None, 'none': None, 'flag': True})

  def test_an_interrupted_write_keeps_the_old_results(self):
    workdir = self.create_tempdir().full_path
    report.write_results(workdir, {'steps': 1})
    with mock.patch.object(os, 'replace', side_effect=KeyboardInterrupt):
      with self.assertRaises(KeyboardInterrupt):
        report.write_results(workdir, {'steps': 2})
    self.assertEqual(report.read_results(workdir), {'steps': 1})
    self.assertEqual(os.listdir(workdir), ['results.json'])

  def test_reading_an_unfinished_run_says_how_to_finish_it(self):
    with self.assertRaisesRegex(FileNotFoundError, 'same command resumes'):
      report.read_results(self.create_tempdir().full_path)

  def test_the_table_has_a_row_for_each_system_that_was_evaluated(self):
    text = printed(report.results_table(_RESULTS))
    for word in ('MRR@10', 'Recall@1', 'Recall@20', 'Recall@100', 'BM25',
                 '0.342', 'trained encoder', '0.654', '0.990', '-'):
      self.assertIn(word, text)
    self.assertNotIn('untrained', text)

  def test_the_table_shows_what_the_split_was_measured_by(self):
    text = printed(report.results_table({
        'measures': {'dev': {'Answer@20': 0.5, 'EM': 0.25}},
        'bm25': {'dev': {'Answer@20': 0.125}}}, 'dev'))
    for word in ('Answer@20', 'EM', '0.500', '0.250', '0.125'):
      self.assertIn(word, text)
    for word in ('MRR@10', 'F1', 'Answer@1 '):
      self.assertNotIn(word, text)

  def test_a_split_that_was_not_evaluated_is_named(self):
    with self.assertRaisesRegex(ValueError, r"split 'dev'.*\['test'\]"):
      report.results_table(_RESULTS, 'dev')

  def test_the_meter_table_shows_every_count(self):
    text = printed(report.meter_table(_RESULTS))
    for word in ('76,800', '117,659', '38,400', '2.50', '4.56', '7.89', '3.0',
                 '5.0', '3.5', 'propose', '1.2', 'total', '61.0'):
      self.assertIn(word, text)

  def test_the_file_is_strict_json(self):
    workdir = self.create_tempdir().full_path
    path = report.write_results(workdir, {'x': [float('nan'), -np.inf]})
    refuse = mock.Mock(side_effect=AssertionError)
    with open(path, encoding='utf-8') as f:
      self.assertEqual(json.load(f, parse_constant=refuse), {'x': [None, None]})


if __name__ == '__main__':
  absltest.main()
