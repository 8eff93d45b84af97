"""BM25 by script: the lead of a query may count more, or alone."""

import pytest

from experiments import bm25
from tests.experiments import scripts_test


@pytest.fixture(name='folder')
def fixture_folder(tmp_path):
  """Returns a set whose query is answered by its lead and not by the rest."""
  (tmp_path / 'qrels').mkdir()
  (tmp_path / 'corpus.jsonl').write_text(
      '{"_id": "lead", "text": "apple of a kind"}\n'
      '{"_id": "rest", "text": "tall pear tree"}\n'
      '{"_id": "other", "text": "something else"}\n')
  (tmp_path / 'queries.jsonl').write_text(
      '{"_id": "q", "text": "apple: a pear, a tall tree"}\n')
  (tmp_path / 'qrels' / 'test.tsv').write_text(
      'query-id\tcorpus-id\tscore\nq\tlead\t1\n')
  return tmp_path


@pytest.mark.parametrize('options, value', [
    ((), 1 / 2), (('--separator=: ',), 1 / 2),
    (('--separator=: ', '--lead_repeats=5'), 1.),
    (('--separator=: ', '--lead_only'), 1.)])
def test_the_lead_counts_as_asked(folder, tmp_path, capsys, options, value):
  scripts_test.call(bm25, '--source=beir', f'--path={folder}',
                    f'--cache={tmp_path}/cache', '--measures=RR@10', *options)
  assert capsys.readouterr().out == f'RR@10 {value:.4f}\n'


@pytest.mark.parametrize('option, message', [
    ('--split=dev', "'dev' is not a split"),
    ('--lead_only', 'need --separator')])
def test_what_cannot_be_is_refused(folder, tmp_path, option, message):
  with pytest.raises(SystemExit, match=message):
    scripts_test.call(bm25, '--source=beir', f'--path={folder}',
                      f'--cache={tmp_path}/cache', option)
