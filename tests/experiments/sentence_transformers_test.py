"""The benchmark beside sentence-transformers compares what it says."""

import json
import os
import sys
from unittest import mock

from absl import flags
import numpy as np
import pytest

from experiments.benchmarks import sentence_transformers as beside
from retrieval_jax import data
from retrieval_jax.data.readers import wordnet_files
from tests.models import bert_folder


def parse(*arguments):
  """Returns the script's flags as a command line gives them."""
  values = flags.FlagValues()
  beside.define_flags(values)
  values(['beside', *arguments])
  return values


@pytest.fixture(name='model')
def fixture_model(tmp_path):
  """Returns a tiny model folder that both libraries load."""
  tokenizer = data.train_tokenizer(
      [target for _, target in beside.make_pairs('random', 50, 20)],
      bert_folder.SETTINGS['vocab_size'])
  folder = bert_folder.write(tmp_path / 'model')
  tokenizer.save(folder)
  with open(os.path.join(folder, 'tokenizer_config.json'), 'w',
            encoding='utf-8') as f:
    json.dump({'tokenizer_class': 'PreTrainedTokenizerFast',
               'pad_token': '[PAD]', 'unk_token': '[UNK]',
               'cls_token': '[CLS]', 'sep_token': '[SEP]'}, f)
  return folder


@pytest.mark.slow
def test_a_first_step_is_the_in_batch_softmax_plain_and_cached(model):
  options = parse(f'--model={model}', '--max_length=12')
  pairs = beside.make_pairs('random', 6, 12)
  experiment = beside.make_experiment(options, pairs)
  queries, targets = (experiment.embed_texts(experiment.params, list(texts))
                      for texts in zip(*pairs))
  logits = 20 * queries @ targets.T
  expected = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
  found = []
  for chunk_size in (0, 4):
    trainer = beside.OurTrainer(options, pairs, chunk_size)
    batch = trainer.prepare(pairs)
    found.append(trainer.step(batch))
    assert trainer.step(batch)[0] < expected  # it has learnt
  np.testing.assert_allclose([loss for loss, _ in found], expected, rtol=1e-5)
  assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
  assert found[0][1] > 0


@pytest.mark.parametrize('ours, theirs, relative', [
    (1., 1.1, False), (float('nan'), 1., False), (1e-5, 2e-5, True),
    (np.zeros(2), np.array([0., .1]), False)])
def test_a_difference_is_refused(ours, theirs, relative):
  with pytest.raises(ValueError, match='The loss differs .* more than 0.01'):
    beside.check_close('The loss', ours, theirs, .01, relative=relative)


def test_a_small_difference_is_returned():
  assert beside.check_close('', 2., 2.5, 1.) == .5
  assert beside.check_close('', 2., 2.5, 1., relative=True) == .2


@pytest.mark.parametrize('theirs', [
    [[2, 5]], [[2, 6, 3]], [[2, 5, 3, 0, 0]], [[2, 5, 0]]])
def test_other_tokens_are_refused(theirs):
  with pytest.raises(ValueError, match='tokenise the same texts differently'):
    beside.check_same_tokens(
        np.array([[2, 5, 3, -1]]), np.array(theirs), np.sign(theirs))


def test_the_same_tokens_may_be_padded_less():
  beside.check_same_tokens(
      np.array([[2, 5, 3, -1, -1]]), np.array([[2, 5, 3, 3]]),
      np.array([[1, 1, 1, 0]]))


def test_arms_take_turns_and_rates_are_of_the_same_round():
  order = []
  seconds = beside.time_in_turns(
      {'a': lambda: order.append('a'), 'b': lambda: order.append('b')}, 3)
  assert order == list('abbaab')
  assert seconds['a'].shape == (3, 2) and (seconds['a'][:, 0] > 0).all()
  row = beside.describe(
      'x', np.array([[1, 1], [2, 1], [4, 1.]]),
      np.array([[3, 2], [4, 2], [4, 2.]]), 8)
  assert row['wall'] == {
      'ours': 4., 'theirs': 2., 'ratio': 2., 'ratio_range': [1., 3.]}
  assert row['cpu'] == {
      'ours': 8., 'theirs': 4., 'ratio': 2., 'ratio_range': [2., 2.]}
  assert '| x | wall | 4.0 | 2.0 | 2.00 | 1.00 to 3.00 |' in (
      beside.to_markdown([row]))


def test_pairs_of_wordnet_are_examples_and_distinct_targets():
  synset = lambda i, text, *examples: wordnet_files.Synset(
      f'{i}-n', ('bank', 'depot'), text, examples)
  synsets = [synset(0, 'one', 'a', 'b'), synset(1, 'two'),
             synset(2, 'three', 'c'), synset(3, 'three', 'd')]
  with mock.patch.object(wordnet_files, 'find_wordnet'), mock.patch.object(
      wordnet_files, 'read_synsets', lambda folder: iter(synsets)):
    assert sorted(beside.make_pairs('wordnet', 2, 32)) == [
        ('bank: a', 'bank, depot: one'), ('bank: d', 'bank, depot: three')]
    with pytest.raises(ValueError, match='has 2 synsets .* fewer than the 3'):
      beside.make_pairs('wordnet', 3, 32)


def test_a_missing_library_says_what_to_install():
  with mock.patch.dict(sys.modules, {'torch': None}):
    with pytest.raises(ImportError, match='pip install torch'):
      beside.import_theirs()


@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity'), reason='Linux only')
@pytest.mark.parametrize('num_threads', [0, 10_000])
def test_threads_that_are_not_there_are_refused(num_threads):
  with pytest.raises(ValueError, match=f'--threads={num_threads} must be 1'):
    beside.limit_threads(None, num_threads)


def test_the_script_beside_the_library(model, tmp_path):
  pytest.importorskip('sentence_transformers')
  out = str(tmp_path / 'out.json')
  beside.main(['beside'], parse(
      f'--model={model}', '--texts=random', '--max_length=12',
      '--batch_size=6', '--chunk_size=4', '--num_texts=9', '--rounds=1',
      f'--out={out}'))
  with open(out, encoding='utf-8') as f:
    results = json.load(f)
  assert [row['task'] for row in results['speed']] == [
      'training, float32, plain loss, queries/s',
      'training, float32, cached loss, queries/s',
      'encoding, float32, their batch 32, texts/s',
      'encoding, float32, their batch 64, texts/s']
  for first in results['first_step'].values():
    assert first['later_loss'] == pytest.approx(
        first['their_later_loss'], abs=1e-3)
