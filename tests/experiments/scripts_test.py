"""The scripts after training do their work on a run's folder."""

import io
import json
import os
import re
import shutil
import sys
from unittest import mock

from absl import flags
import numpy as np
import pytest

from experiments import compare
from experiments import diagnose
from experiments import embed
from experiments import evaluate
from experiments import search
from experiments import sweep
from experiments import train as train_script
import retrieval_jax
from retrieval_jax.evaluation import diagnostics
from retrieval_jax.jobs import sweep as sweep_job
from retrieval_jax.jobs import train
from retrieval_jax.training import signals
from tests.experiments import tiny


def call(script, *arguments):
  """Calls a script's main with flags, as its command line would."""
  values = flags.FlagValues()
  script.define_flags(values)
  script.main(values([script.__name__, *arguments]), values)


@pytest.fixture(name='run_copy')
def fixture_run_copy(trained, tmp_path):
  """Returns the workdir of a finished run that a test may write to."""
  return shutil.copytree(trained[0], str(tmp_path / 'run'))


def read_json(*path):
  with open(os.path.join(*path), encoding='utf-8') as f:
    return json.load(f)


def read_scores(workdir, split):
  """Returns {(query id, target id): score} of a TREC run file."""
  with open(os.path.join(workdir, f'{split}.run'), encoding='utf-8') as f:
    rows = [line.split() for line in f]
  return {(row[0], row[2]): float(row[4]) for row in rows}


def test_evaluate_repeats_what_training_measured(run_copy, trained, capsys):
  os.remove(os.path.join(run_copy, 'test.run'))
  call(evaluate, f'--workdir={run_copy}')
  assert read_json(run_copy, 'results.json') == read_json(
      trained[0], 'results.json')
  # Eight devices here, one there: the last digit of a score may differ.
  again, before = (read_scores(folder, 'test')
                   for folder in (run_copy, trained[0]))
  assert again == pytest.approx(before, rel=1e-5)
  rr = trained[1]['measures']['test']['RR@10']
  assert f'test at step 4: RR@10 {rr:.4f}' in capsys.readouterr().out


def test_evaluate_takes_splits_and_measures(run_copy, trained):
  call(evaluate, f'--workdir={run_copy}', '--splits=train',
       '--measures=nDCG@5,R@3')
  found = read_json(run_copy, 'results.json')['measures']
  assert list(found['train']) == ['nDCG@5', 'R@3']
  assert found['test'] == trained[1]['measures']['test']


@pytest.mark.slow
def test_evaluating_an_unfinished_run_does_not_finish_it(
    make_config, tmp_path):
  config = make_config('stale', **tiny.MOVING)
  with mock.patch.object(
      signals.StopSignal, '__call__', lambda self, step: step >= 2):
    assert train.run(config, str(tmp_path), num_devices=1) is None
  call(evaluate, f'--workdir={tmp_path}', '--splits=dev')
  results = read_json(tmp_path, 'results.json')
  assert results['steps'] == 2
  assert list(results['measures']) == ['dev']
  assert results['untrained'] == read_json(tmp_path, 'baselines.json')[
      'untrained']
  assert results['meter']['query_encoder_calls'] == 2 * 2 * config.batch_size
  [trial] = sweep_job.trials('x.py', [{}], '')
  trial = sweep_job.Trial(str(tmp_path), {}, trial.command)
  assert not trial.finished()
  assert train.run(config, str(tmp_path), num_devices=1)['steps'] == 4
  assert trial.finished()


def test_embeddings_line_up_with_their_ids(run_copy, tmp_path, capsys):
  out = str(tmp_path / 'embeddings')
  call(embed, f'--workdir={run_copy}', f'--out={out}')
  targets, queries = (
      np.load(os.path.join(out, f'{name}.npy')) for name in
      ('targets', 'queries'))
  ids = []
  for name in ('target', 'query'):
    with open(os.path.join(out, f'{name}_ids.txt'), encoding='utf-8') as f:
      ids.append(f.read().split())
  assert targets.shape == (tiny.NUM_TARGETS, 32)
  assert len(ids[0]) == tiny.NUM_TARGETS
  assert queries.shape == (sum(tiny.NUM_QUERIES.values()), 32)
  facts = read_json(out, 'embeddings.json')
  assert (facts['step'], facts['num_targets'], facts['dim']) == (4, 120, 32)
  assert '120 targets and 88 queries' in capsys.readouterr().out
  # The run file of the training run names the same best targets.
  # The run file of the training run has the same scores.
  scores = read_scores(run_copy, 'test')
  assert len(scores) == tiny.NUM_QUERIES['test'] * 100
  for (query_id, target_id), score in list(scores.items())[::50]:
    assert score == pytest.approx(
        queries[ids[1].index(query_id)] @ targets[ids[0].index(target_id)],
        abs=1e-5)


def test_embed_writes_half_precision_and_overwrites_nothing(
    run_copy, tmp_path):
  out = str(tmp_path / 'half')
  call(embed, f'--workdir={run_copy}', f'--out={out}', '--dtype=float16')
  assert np.load(os.path.join(out, 'targets.npy')).dtype == np.float16
  with pytest.raises(SystemExit, match='half exists; name a new folder'):
    call(embed, f'--workdir={run_copy}', f'--out={out}')


def test_search_prints_the_best_passages(run_copy, beir, capsys):
  with open(os.path.join(beir, 'corpus.jsonl'), encoding='utf-8') as f:
    passage = json.loads(f.readline())['text']
  call(search, f'--workdir={run_copy}', f'--query={passage}', '--k=3')
  lines = capsys.readouterr().out.splitlines()
  assert lines[:2] == ['', passage]
  # One tower and no word order: a passage is its own best answer.
  assert lines[2].split() == ['1.0000', 'd0', *passage.split()]
  assert len(lines) == 5
  # The second call reads the corpus's embeddings, and its queries from stdin.
  kept = os.path.join(run_copy, 'targets', 'vectors.npy')
  embedded = os.stat(kept).st_mtime_ns
  with mock.patch.object(sys, 'stdin', io.StringIO(f'{passage}\n\nkabel\n')):
    call(search, f'--workdir={run_copy}', '--k=1000')
  again = capsys.readouterr().out.splitlines()
  assert again[1:4] == lines[1:4]
  assert len(again) == 2 * (2 + tiny.NUM_TARGETS)
  assert os.stat(kept).st_mtime_ns == embedded


def test_an_encoder_that_a_config_starts_from_is_used_like_a_run(make_config):
  retriever = retrieval_jax.from_config(make_config('in_batch'), num_devices=1)
  assert (retriever.step, retriever.workdir) == (0, None)
  targets, texts = retriever.embed_targets(), retriever.dataset.corpus_texts
  np.testing.assert_array_equal(retriever.stored_targets(), targets)
  queries = retriever.embed_queries(['kabel lodor', 'mifin'])
  ids, scores, found = retriever.search(['kabel lodor', 'mifin'], 1000)
  for query, *of_query in zip(queries, ids, scores, found):
    order = np.argsort(-(targets @ query), kind='stable')
    assert list(map(len, of_query)) == [tiny.NUM_TARGETS] * 3
    np.testing.assert_allclose(
        of_query[1], (targets @ query)[order], atol=1e-5)
    assert of_query[0][0] == f'd{order[0]}'
    assert of_query[2] == [texts[int(name[1:])] for name in of_query[0]]


def test_the_corpus_is_put_on_the_device_once(make_config):
  retriever = retrieval_jax.from_config(make_config('in_batch'), num_devices=1)
  with mock.patch.object(
      type(retriever), 'embed_targets', autospec=True,
      side_effect=type(retriever).embed_targets) as embed_targets:
    first = retriever.search(['kabel'], 3)
    assert retriever.search(['kabel'], 3) == first
    assert embed_targets.call_count == 1


def test_a_run_or_a_config_is_opened_not_both_or_neither(run_copy):
  with pytest.raises(SystemExit, match='one of the two, got neither'):
    call(search)
  with pytest.raises(SystemExit, match='one of the two, got both'):
    call(embed, f'--workdir={run_copy}', '--out=x',
         '--config=configs/in_batch.py:tiny')


@pytest.mark.parametrize('script', [evaluate, search, embed])
def test_a_folder_without_a_run_is_named(script, tmp_path):
  arguments = [f'--workdir={tmp_path}']
  if script is embed:
    arguments.append(f'--out={tmp_path}/out')
  with pytest.raises(SystemExit, match='not the folder of a run'):
    call(script, *arguments)


def test_a_run_without_a_checkpoint_is_named(run_copy):
  for name in os.listdir(os.path.join(run_copy, 'checkpoints')):
    shutil.rmtree(os.path.join(run_copy, 'checkpoints', name))
  with pytest.raises(SystemExit, match='holds no checkpoint'):
    call(evaluate, f'--workdir={run_copy}')


def test_an_unknown_split_or_measure_is_named(run_copy):
  with pytest.raises(SystemExit, match=r"\['nope'\]; .* \['dev', 'test'"):
    call(evaluate, f'--workdir={run_copy}', '--splits=nope')
  with pytest.raises(SystemExit, match='error: .*MRR@ten'):
    call(evaluate, f'--workdir={run_copy}', '--measures=MRR@ten')


@pytest.mark.slow
def test_diagnose_prints_what_the_hook_measures(run_copy, capsys):
  fit = diagnostics.fit_to_all  # not to the end: here only its place matters
  with mock.patch.object(
      diagnostics, 'fit_to_all', lambda *args, num_steps: fit(
          *args, num_steps=min(num_steps, 3))):
    call(diagnose, f'--workdir={run_copy}', '--bounds')
  printed = capsys.readouterr().out
  assert 'best linear' in printed and 'wide network' in printed
  assert 'memory against brute force' in printed
  for name in ('tv', 'kl', 'top_k_overlap', 'drift_before'):
    assert name in printed


def test_compare_reads_what_training_wrote(run_copy, trained, tmp_path, capsys):
  out = str(tmp_path / 'out')
  call(compare, f'--workdirs={trained[0]},{run_copy}', f'--out={out}',
       '--split=test', '--measure=nDCG@10')
  assert sorted(os.listdir(out)) == [
      'comparison.csv', 'comparison.md', 'comparison.png', 'runs.csv']
  printed = capsys.readouterr().out
  for name in ('BM25', 'untrained', 'moving'):
    assert f'| {name} |' in printed
  calls = trained[1]['meter']['target_encoder_calls_in_step']
  assert f'| {calls} |' in printed


@pytest.mark.slow
def test_sweep_runs_training_with_the_seeds_of_a_config(
    beir, cache, tmp_path, capsys):
  commands = []

  def train_here(trial, *args, **kwargs):
    del args, kwargs  # cores and where the output goes
    values = flags.FlagValues()
    train_script.define_flags(values)
    arguments = list(trial.command[2:])  # without python -m
    with mock.patch.object(sys, 'argv', arguments):
      train_script.main(values(arguments)[:1], values)
    commands.append(arguments)
    return mock.Mock(poll=lambda: 0)

  arguments = (
      '--config=configs/in_batch.py:tiny', '--sweep=seeds',
      f'--workdir={tmp_path}', '--', '--num_devices=1',
      '--config.data.source=beir', f'--config.data.path={beir}',
      f'--config.data.cache={cache}', '--config.data.num_targets=0',
      '--config.num_steps=2', '--config.evaluation.baselines=false',
      '--config.encoding.chunk_size=0', '--config.encoding.buckets=(24,)')
  with mock.patch.object(sweep_job, 'start', side_effect=train_here):
    call(sweep, *arguments)
  assert len(commands) == 3
  printed = capsys.readouterr().out
  assert re.search(r'\| [^|]+ \| 3 \| 0\.\d{4}', printed)  # three seeds
  for seed in range(3):
    folder = tmp_path / f'00{seed}_seed={seed}'
    assert read_json(folder, 'results.json')['seed'] == seed
  call(sweep, *arguments[:3], '--dry_run', *arguments[3:])
  assert capsys.readouterr().out.count('# finished') == 3
