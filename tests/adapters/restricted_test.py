"""A corpus restricted to the targets that training queries are about."""

import os
import subprocess
import sys

import numpy as np

from retrieval_jax import files
from retrieval_jax.data import embeddings

# Of six targets the first, third and fifth have training queries; query i is
# a unit vector along axis i, target t the same along axis t.
TRAIN = ((0, 0), (1, 0), (2, 2), (3, 4))
TEST = ((4, 0), (5, 1))


def make_folder(folder):
  """Writes six targets, six queries, their judgements and six further pairs."""
  rows = np.eye(6, dtype=np.float32)
  os.makedirs(folder / 'qrels')
  for name in ('targets', 'queries', 'pairs-own'):
    np.save(folder / f'{name}.npy', rows)
  for name, letter in (('target_ids', 't'), ('query_ids', 'q'),
                       ('pairs-own_target_ids', 't')):
    embeddings.write_ids(
        str(folder / f'{name}.txt'), [f'{letter}{i}' for i in range(6)])
  for split, pairs in (('train', TRAIN), ('test', TEST)):
    files.write_text(
        str(folder / 'qrels' / f'{split}.tsv'),
        ''.join(f'q{query}\tt{target}\t1\n' for query, target in pairs))


def restrict(source, out, *options):
  """Runs the script; returns {split: {(query id, target id)}}."""
  subprocess.run(
      [sys.executable, '-m', 'experiments.results.adapters.restricted',
       f'--embeddings={source}', f'--out={out}', *options], check=True)
  targets, queries = embeddings.read_both(str(out))
  found = {}
  for split in ('train', 'test'):
    qrels = embeddings.read_qrels(
        str(out / 'qrels'), split, queries.ids, targets.ids)
    found[split] = {(queries.ids[query], targets.ids[target]) for query, target
                    in zip(qrels.query_rows, qrels.corpus_rows)}
  return found


def test_keeps_covered_targets_and_what_belongs_to_them(tmp_path):
  make_folder(tmp_path / 'all')
  found = restrict(tmp_path / 'all', tmp_path / 'covered')
  assert found == {
      'train': {('q0', 't0'), ('q1', 't0'), ('q2', 't2'), ('q3', 't4')},
      'test': {('q4', 't0')}}
  rows = np.eye(6, dtype=np.float32)
  targets, queries = embeddings.read_both(str(tmp_path / 'covered'))
  assert (targets.ids, queries.ids) == (
      ['t0', 't2', 't4'], ['q0', 'q1', 'q2', 'q3', 'q4'])
  np.testing.assert_array_equal(targets.vectors, rows[[0, 2, 4]])
  np.testing.assert_array_equal(queries.vectors, rows[:5])
  pairs = tmp_path / 'covered' / 'pairs-own'
  assert embeddings.read_ids(f'{pairs}_target_ids.txt') == targets.ids
  np.testing.assert_array_equal(np.load(f'{pairs}.npy'), rows[[0, 2, 4]])


def test_a_share_takes_training_queries_away_and_nothing_else(tmp_path):
  make_folder(tmp_path / 'all')
  whole = restrict(tmp_path / 'all', tmp_path / 'covered')
  part = restrict(tmp_path / 'all', tmp_path / 'third', '--covered_share=0.34')
  assert part['test'] == whole['test']
  assert len({target for _, target in part['train']}) == 1
  # Of the target that keeps its queries it keeps all.
  assert part['train'] == {
      pair for pair in whole['train']
      if pair[1] in {target for _, target in part['train']}}
  targets, _ = embeddings.read_both(str(tmp_path / 'third'))
  assert targets.ids == ['t0', 't2', 't4']
