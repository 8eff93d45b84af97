"""Mining from a run, a config, embeddings, a run file and BM25."""

import dataclasses
import gzip
import json
import os
import shutil
import sys
from unittest import mock

from absl import app
from absl import flags
import numpy as np
import pytest

from configs import base
from experiments import embed
from experiments import mine
from retrieval_jax import data
from retrieval_jax import trained as trained_lib
from retrieval_jax.evaluation import trec
from retrieval_jax.jobs import mine as mine_job
from tests.experiments import tiny

_CONFIG = os.path.join(os.path.dirname(os.path.dirname(base.__file__)),
                       'configs', 'stale.py')


def call(script, *arguments):
  """Calls a script's main with flags, as its command line would."""
  argv = [script.__name__, *map(str, arguments)]
  with mock.patch.object(sys, 'argv', argv):  # read for --config.X=...
    values = flags.FlagValues()
    script.define_flags(values)
    script.main(values(argv), values)


@pytest.fixture(name='data_flags', scope='module')
def fixture_data_flags(beir, cache):
  """Returns the flags of a config on the tiny data set."""
  return [f'--config={_CONFIG}:tiny', '--config.data.source=beir',
          f'--config.data.path={beir}', f'--config.data.cache={cache}',
          '--config.data.num_targets=0']


@pytest.fixture(name='run', scope='module')
def fixture_run(trained, tmp_path_factory):
  """Returns the workdir of a finished run that tests may write to."""
  return shutil.copytree(
      trained[0], str(tmp_path_factory.mktemp('mine') / 'run'))


@pytest.fixture(name='embeddings', scope='module')
def fixture_embeddings(data_flags, tmp_path_factory):
  """Returns the folder that experiments.embed wrote of the config."""
  out = str(tmp_path_factory.mktemp('embed') / 'embeddings')
  call(embed, *data_flags, f'--out={out}')
  return out


def read(*path):
  with open(os.path.join(*path), encoding='utf-8') as f:
    return f.read()


def candidates(*path):
  """Returns {query id: {corpus id: score or None}} of a candidates file."""
  found = {}
  header, *lines = read(*path).splitlines()
  assert header == 'query-id\tcorpus-id\tscore'
  for line in lines:
    query_id, corpus_id, score = line.split('\t')
    found.setdefault(query_id, {})[corpus_id] = float(score) if score else None
  return found


def answers(beir, split):
  """Returns {query id: corpus ids} of the judgements."""
  found = {}
  for line in read(beir, 'qrels', f'{split}.tsv').splitlines()[1:]:
    query_id, corpus_id, _ = line.split('\t')
    found.setdefault(query_id, set()).add(corpus_id)
  return found


@pytest.mark.slow
def test_a_run_and_its_embeddings_give_the_same_from_every_index(
    run, beir, data_flags, tmp_path, capsys):
  pytest.importorskip('faiss')
  embeddings = str(tmp_path / 'embeddings')
  call(embed, f'--workdir={run}', f'--out={embeddings}')
  rules = ['--num_negatives=4', '--relative_margin=0.01', '--splits=train,dev']
  call(mine, f'--workdir={run}', f'--out={tmp_path}/run', *rules,
       '--batch_size=7')
  printed = capsys.readouterr().out
  for name, index in (('exact', 'exact'), ('faiss', 'faiss_flat'),
                      ('hnsw', 'faiss_hnsw')):
    call(mine, f'--embeddings={embeddings}', f'--index={index}', *data_flags,
         f'--out={tmp_path}/{name}', *rules)
  for split in ('train', 'dev'):
    mined = candidates(tmp_path, 'run', 'candidates', f'{split}.tsv')
    for name in ('exact', 'faiss', 'hnsw'):  # 120 targets: hnsw sees them all
      other = candidates(tmp_path, name, 'candidates', f'{split}.tsv')
      assert other.keys() == mined.keys()
      for query_id, scored in mined.items():
        # The run's queries were embedded in other batches.
        assert list(other[query_id]) == list(scored)
        assert other[query_id] == pytest.approx(scored, abs=1e-5)
    for query_id, right in answers(beir, split).items():
      scored = mined[query_id]
      assert right <= scored.keys() and len(scored) <= len(right) + 4
      for corpus_id in scored.keys() - right:
        least = min(scored[one] for one in right)
        assert scored[corpus_id] <= least - 0.01 * abs(least) + 1e-6
  facts = json.loads(read(tmp_path, 'run', 'mining.json'))
  assert facts['splits']['train']['queries'] == tiny.NUM_QUERIES['train']
  assert facts['rules']['relative_margin'] == 0.01
  number = facts['splits']['train']['removed']['relative_margin']
  assert f'relative_margin {number:,}' in printed and 'mean score' in printed


def test_embeddings_alone_do_for_ids(embeddings, tmp_path, capsys):
  call(mine, f'--embeddings={embeddings}', f'--out={tmp_path}/out',
       '--format=trec', '--format=candidates', '--sampling=random')
  assert sorted(os.listdir(tmp_path / 'out')) == [
      'candidates', 'mining.json', 'trec']
  assert 'Copies of positives are not barred' in capsys.readouterr().out
  for form, needs in (('--format=triplet', '--format=triplet'),
                      ('--index=bm25', '--index=bm25')):
    with pytest.raises(SystemExit, match=f'has no texts, which {needs} needs'):
      call(mine, f'--embeddings={embeddings}', f'--out={tmp_path}/no', form)
  assert not os.path.exists(tmp_path / 'no')


def test_bm25_and_its_run_file_give_the_same(data_flags, beir, tmp_path):
  call(mine, *data_flags, '--index=bm25', f'--out={tmp_path}/bm25',
       '--num_negatives=5', '--format=candidates', '--format=n-tuple',
       '--format=trec', '--format=tevatron')
  mined = candidates(tmp_path, 'bm25', 'candidates', 'train.tsv')
  right = answers(beir, 'train')
  run = trec.read_run(str(tmp_path / 'bm25' / 'trec' / 'train.run'))
  lines = []
  for query_id, ids, scores in run.rankings():
    assert not right[query_id] & set(ids)
    assert {one: mined[query_id][one] for one in ids} == pytest.approx(
        dict(zip(ids, scores)))
    # The run file of a search has the positives, too, where they were found.
    scored = {**dict(zip(ids, scores)),
              **{one: mined[query_id][one] for one in right[query_id]
                 if mined[query_id][one] is not None}}
    lines += [f'{query_id} Q0 {one} 0 {score} bm25\n'
              for one, score in scored.items()]
  (tmp_path / 'bm25.run').write_text(''.join(lines), encoding='utf-8')
  call(mine, *data_flags, f'--run={tmp_path}/bm25.run', '--num_negatives=5',
       f'--out={tmp_path}/run')
  again = candidates(tmp_path, 'run', 'candidates', 'train.tsv')
  assert again == mined
  texts = {json.loads(line)['_id']: json.loads(line)['text']
           for line in read(beir, 'queries.jsonl').splitlines()}
  for line in read(tmp_path, 'bm25', 'tevatron', 'train.jsonl').splitlines():
    row = json.loads(line)
    assert row['query_text'] == texts[row['query_id']]
    assert set(row['positive_document_ids']) == right[row['query_id']]


def test_a_config_searches_by_the_encoder_it_starts_from(
    data_flags, embeddings, tmp_path):
  for name, flag in (('config', []),
                     ('folder', [f'--embeddings={embeddings}'])):
    call(mine, *data_flags, *flag, f'--out={tmp_path}/{name}')
  mined, again = (candidates(tmp_path, name, 'candidates', 'train.tsv')
                  for name in ('config', 'folder'))
  assert mined.keys() == again.keys()
  same = [list(mined[q]) == list(again[q]) for q in mined]
  assert np.mean(same) > 0.95  # other batches: near-ties may swap


def test_copies_and_own_ids_are_barred(tmp_path, cache):
  folder = tiny.write_beir(str(tmp_path / 'data'))
  with open(os.path.join(folder, 'corpus.jsonl'), encoding='utf-8') as f:
    texts = {json.loads(line)['_id']: json.loads(line)['text'] for line in f}
  right = answers(folder, 'train')
  with open(os.path.join(folder, 'corpus.jsonl'), 'a', encoding='utf-8') as f:
    for one in sorted(set.union(*right.values())):  # a copy of each positive
      f.write(json.dumps({'_id': f'{one}-copy', 'text': texts[one]}) + '\n')
    # Targets with the queries' ids, which hold their words.
    with open(os.path.join(folder, 'queries.jsonl'), encoding='utf-8') as lines:
      f.writelines(lines)
  options = [f'--config={_CONFIG}:tiny', '--config.data.source=beir',
             f'--config.data.path={folder}', f'--config.data.cache={cache}',
             '--config.data.num_targets=0', '--index=bm25',
             '--num_negatives=100']
  call(mine, *options, f'--out={tmp_path}/kept')
  call(mine, *options, f'--out={tmp_path}/dropped', '--drop_self_matches')
  kept, dropped = (candidates(tmp_path, name, 'candidates', 'train.tsv')
                   for name in ('kept', 'dropped'))
  assert all(query_id in scored for query_id, scored in kept.items())
  for query_id, scored in dropped.items():
    assert query_id not in scored
    assert not {f'{one}-copy' for one in right[query_id]} & scored.keys()
  removed = json.loads(read(tmp_path, 'dropped', 'mining.json'))['splits'][
      'train']['removed']
  assert removed['same id'] == len(right)
  assert removed['same text'] > 0


def test_a_compressed_run_of_ranks_is_mined_without_scores(
    data_flags, beir, tmp_path):
  right = min(answers(beir, 'train')['q0'])
  other, third = [f'd{i}' for i in range(9)
                  if f'd{i}' not in answers(beir, 'train')['q0']][:2]
  path = str(tmp_path / 'bm25.tsv.gz')
  with gzip.open(path, 'wt', encoding='utf-8') as f:
    f.write(f'q0\t{third}\t3\nq0\t{other}\t1\nq0\t{right}\t2\n')
  flags_ = [*data_flags, f'--run={path}', '--num_negatives=1',
            f'--out={tmp_path}/out']
  for wrong, name in (('--max_score=1', 'max_score'),
                      ('--format=trec', 'format=trec')):
    with pytest.raises(SystemExit, match=f'no scores .* --{name} needs'):
      call(mine, *flags_, wrong)
  call(mine, *flags_)
  found = candidates(tmp_path, 'out', 'candidates', 'train.tsv')['q0']
  assert set(found) == {other} | answers(beir, 'train')['q0']
  assert set(found.values()) == {None}


def test_bad_inputs_are_named_and_leave_nothing(
    embeddings, data_flags, tmp_path):
  for lines, message in (
      ('q0 Q0 d1 1 2.5 x\nq0 Q0 nope 2 1.5 x\n', r"bad.run:2: 'nope': the "),
      ('q0 Q0 d1\u200b 1 2.5 x\n',
       r"bad.run:1: .* looks the same .*: 'd1', here it is 'd1\\u200b'"),
      ('q0 Q0 d1 1 2.5 x\nq0 Q0 d2 2 -inf x\n',
       r'bad.run:2: expected a finite number as score, got .-inf.'),
      ('x Q0 d1 1 2.5 x\n', 'of 1 queries, but of none of the 64 that'),
      ('q0 Q0 d1 1\n', r'bad.run:1: expected 3 or 6 columns')):
    (tmp_path / 'bad.run').write_text(lines, encoding='utf-8')
    with pytest.raises(SystemExit, match=message):
      call(mine, *data_flags, f'--run={tmp_path}/bad.run',
           f'--out={tmp_path}/out')
  for flag, message in (
      ('--num_negatives=0', '--num_negatives=0, expected at least 1'),
      ('--splits=nope', r"\['nope'\]; .*embeddings has \['dev', 'test', 'tra"),
      ('--chunk_rows=100', 'chunk_rows'),
      (f'--out={tmp_path}', 'exists; name a new folder')):
    with pytest.raises(SystemExit, match=message):
      call(mine, f'--embeddings={embeddings}', f'--out={tmp_path}/out', flag)
  with pytest.raises(SystemExit, match='Expected --workdir .a run., or'):
    call(mine, f'--out={tmp_path}/out')
  for more, message in (
      (['--links=3'], "links is not an option of the index 'exact'"),
      (['--index=faiss_flat', '--links=3'], "option of the index 'faiss_flat'"),
      (['--index=bm25', '--links=3'], '--links .* not to --index=bm25'),
      (['--run=x', '--chunk_rows=64'], '--chunk_rows .* not to --run')):
    with pytest.raises(SystemExit, match=message):
      call(mine, *data_flags, f'--out={tmp_path}/out', *more)
  with pytest.raises(app.UsageError, match='leave --index out'):
    call(mine, f'--embeddings={embeddings}', f'--out={tmp_path}/out',
         '--run=x', '--index=exact')
  assert os.listdir(tmp_path) == ['bad.run']


@pytest.mark.parametrize('name, content, message', [
    ('target_ids.txt', 'd0\nd1\n', 'target_ids.txt: 2 ids, but .* 120 rows'),
    ('qrels/train.tsv', 'q0\tnope\t1\n', "train.tsv:1: target 'nope' has no"),
    ('targets.npy', np.full((tiny.NUM_TARGETS, 32), np.nan, np.float32),
     'targets.npy: row 0 .* holds nan'),
    ('targets.npy', np.ones((tiny.NUM_TARGETS, 8), np.float32),
     r'targets.npy has 8 dimensions, .*queries.npy 32')])
def test_a_broken_folder_of_embeddings_is_named(
    embeddings, tmp_path, name, content, message):
  folder = shutil.copytree(embeddings, str(tmp_path / 'embeddings'))
  path = os.path.join(folder, name)
  if isinstance(content, np.ndarray):
    np.save(path, content)
  else:
    with open(path, 'w', encoding='utf-8') as f:
      f.write(content)
  with pytest.raises(SystemExit, match=message):
    call(mine, f'--embeddings={folder}', f'--out={tmp_path}/out')
  assert os.listdir(tmp_path) == ['embeddings']


def test_embeddings_that_are_not_finite_are_not_written(
    data_flags, tmp_path, monkeypatch):
  monkeypatch.setattr(
      trained_lib.TrainedRetriever, 'embed_targets',
      lambda retriever, out: out.__setitem__(slice(None), np.full(
          (tiny.NUM_TARGETS, 32), np.nan, np.float32)))
  with pytest.raises(SystemExit, match='out/targets.npy: row 0 .* holds nan'):
    call(embed, *data_flags, f'--out={tmp_path}/out')
  assert not os.listdir(tmp_path)


def test_texts_of_other_data_are_refused(embeddings, tmp_path, cache):
  folder = tiny.write_beir(str(tmp_path / 'data'))
  with open(os.path.join(folder, 'corpus.jsonl'), 'a', encoding='utf-8') as f:
    f.write('{"_id": "more", "text": "more"}\n')
  with pytest.raises(SystemExit, match='the corpus differ .120 and 121'):
    call(mine, f'--embeddings={embeddings}', f'--config={_CONFIG}:tiny',
         '--config.data.source=beir', f'--config.data.path={folder}',
         f'--config.data.cache={cache}', '--config.data.num_targets=0',
         f'--out={tmp_path}/out')


@pytest.mark.parametrize('space', ['\xa0', '\u3000', '\x85'])
def test_a_run_file_may_hold_ids_with_other_spaces_as_they_are(space, tmp_path):
  path = str(tmp_path / 'x.run')
  name = f'd{space}1'
  names = data.Collection(
      name='', qrels={}, query_ids=[f'q{space}'], corpus_ids=['d1', name])
  for written in (f'q{space} Q0 {name} 1 3 x\n',
                  f'{trec.encode_id("q" + space)} Q0 {trec.encode_id(name)} '
                  '1 3 x\n'):
    (tmp_path / 'x.run').write_text(written, encoding='utf-8')
    found = mine_job._from_run(path, names, np.arange(1), 10)
    np.testing.assert_array_equal(found.ids, [[1]])
    assert len(trec.encode_id(name).split()) == 1  # whoever splits where
  with pytest.raises(ValueError, match='x.run:1: .*no such target'):
    mine_job._from_run(
        path, dataclasses.replace(names, corpus_ids=['d1']), np.arange(1), 10)


@pytest.mark.parametrize('spaced', ['d%{20}1', 'd%201'])
def test_a_run_file_may_write_white_space_as_we_do_or_as_urls(
    spaced, tmp_path):
  path = str(tmp_path / 'x.run')
  with open(path, 'w', encoding='utf-8') as f:
    f.write(f'q%202 Q0 {spaced} 1 3 x\nq%202 Q0 d%202 2 2 x\n'
            f'q%{{9}}3 Q0 {spaced} 1 1 x\n')
  names = data.Collection(
      name='', qrels={}, query_ids=['q 2', 'q\t3'],
      corpus_ids=['d 1', 'd 2', 'd%202'])
  found = mine_job._from_run(path, names, np.arange(2), 10)
  # 'd%202' is an id of its own, so it is not 'd 2'.
  np.testing.assert_array_equal(found.ids, [[0, 2], [0, -1]])
