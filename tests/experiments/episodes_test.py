"""Episodes end, mine and start again inside one run, and resume exactly."""

import contextlib
import json
import os
import shutil
from unittest import mock
import warnings

import jax
import numpy as np
import pytest

from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax.evaluation import answers
from retrieval_jax.jobs import compare
from retrieval_jax.jobs import episodes
from retrieval_jax.jobs import train
from retrieval_jax.training import cost
from tests.experiments import tiny
from tests.experiments import train_test


def make(make_config, **options):
  """Returns a config of three episodes: 2 + 2 + 3 steps."""
  return make_config('ance_tele', **({
      'refresh__reencode_every': 2, 'num_steps': 7, 'log__every': 1,
      'checkpoint__every': 1, 'evaluation__baselines': False} | options))


@pytest.fixture(scope='module')
def straight(make_config, tmp_path_factory):
  """Returns (workdir, results) of a run that nothing interrupts."""
  workdir = str(tmp_path_factory.mktemp('straight'))
  return workdir, train.run(make(make_config), workdir, num_devices=1)


def check_same(workdir, straight):
  """Checks that a run has come to the end of the other."""
  jax.tree.map(np.testing.assert_array_equal,
               train_test.final_state(workdir),
               train_test.final_state(straight))
  assert tiny.losses(workdir) == tiny.losses(straight)
  assert forgotten(workdir) == forgotten(straight)


def forgotten(workdir):
  with open(os.path.join(workdir, 'forgetting.json'), encoding='utf-8') as f:
    return json.load(f)


def counts(workdir):
  with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as f:
    meter = json.load(f)['meter']
  del meter['seconds']
  # Of this process, in which a run that was killed may not be gone yet.
  del meter['device_bytes']
  return meter


def killed_in_mining(number):
  """Returns a patch under which the process dies in some mining of its own."""
  mine, calls = episodes.mine_pools, []

  def dies(*args, **kwargs):
    calls.append(None)
    found = mine(*args, **kwargs)
    if len(calls) == number:
      raise KeyboardInterrupt
    return found

  return mock.patch.object(episodes, 'mine_pools', dies)


@pytest.mark.parametrize('number', [1, 2, 3])
@pytest.mark.slow
def test_a_run_that_is_killed_while_it_mines_goes_on(
    number, straight, make_config, tmp_path):
  workdir, config = str(tmp_path), make(make_config)
  with killed_in_mining(number), pytest.raises(KeyboardInterrupt):
    train.run(config, workdir, num_devices=1)
  train.run(config, workdir, num_devices=1)
  check_same(workdir, straight[0])
  assert counts(workdir) == counts(straight[0])


@pytest.mark.parametrize('step', [1, 2, 3, 4])
@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on(step, straight, make_config, tmp_path):
  """After mining too, when the encoder has started again."""
  workdir, config = str(tmp_path), make(make_config)
  with train_test.stop_after(step):
    assert train.run(config, workdir, num_devices=1) is None
  train.run(config, workdir, num_devices=1)
  check_same(workdir, straight[0])
  assert counts(workdir) == counts(straight[0])


@pytest.mark.slow
def test_another_number_of_devices_draws_the_same(
    straight, make_config, tmp_path):
  workdir, config = str(tmp_path), make(make_config)
  with train_test.stop_after(3):
    train.run(config, workdir, num_devices=1)
  train.run(config, workdir, num_devices=2)
  np.testing.assert_allclose(
      list(tiny.losses(workdir).values()),
      list(tiny.losses(straight[0]).values()), rtol=1e-4)


@pytest.mark.slow
def test_an_episode_begins_with_the_first_encoder(
    straight, make_config, tmp_path):
  config = make(make_config)
  initial = factory.build(config, num_devices=1).params
  with train_test.stop_after(4):
    train.run(config, str(tmp_path), num_devices=1)
  state = train_test.final_state(str(tmp_path))
  jax.tree.map(np.testing.assert_array_equal,
               jax.device_get(state.params), initial)
  assert int(state.step) == 4
  for leaf in jax.tree.leaves(state.opt_state):
    assert not np.asarray(leaf).any()
  # The schedule is as long as the last episode, and begins with each.
  rates = [line['train/learning_rate']
           for line in tiny.read_metrics(straight[0])
           if 'train/learning_rate' in line]
  full = config.optimizer.learning_rate * np.array([1, 2 / 3, 1 / 3])
  np.testing.assert_allclose(rates, [*full[:2], *full[:2], *full], rtol=1e-5)


@pytest.mark.slow
def test_pools_grow_and_hold_no_positive(make_config, tmp_path):
  config = make(make_config)
  sizes, previous = [], None
  for step in (1, 2, 4):
    with train_test.stop_after(step):
      train.run(config, str(tmp_path), num_devices=1)
    pools = np.asarray(train_test.final_state(str(tmp_path)).sampler.ids)
    dataset = factory.make_dataset(config)
    qrels = dataset.qrels['train']
    rows = qrels.queries()
    assert not (pools[rows][:, :, None]
                == qrels.padded_known(rows)[:, None]).any()
    sizes.append((pools[rows] >= 0).sum(axis=1).max())
    others = np.setdiff1d(np.arange(len(pools)), rows)
    assert (pools[others] == -1).all()
    if previous is not None:  # momentum: what was there is there
      for row in rows:
        assert set(previous[row]) - {-1} <= set(pools[row])
    previous = pools
  assert sizes == [8, 16, 24]


@pytest.mark.parametrize('first', ['encoder', 'bm25'])
@pytest.mark.slow
def test_passages_with_an_answer_are_barred(
    first, beir, make_config, tmp_path):
  """A word of the positive, which other passages have, too, is the answer."""
  folder = tmp_path / 'asked'
  shutil.copytree(beir, folder)
  reader = data.BeirReader(beir)
  texts = dict(reader.corpus())
  with open(folder / 'answers.jsonl', 'w', encoding='utf-8') as f:
    for query, target, *_ in reader.qrels('train'):
      f.write(json.dumps({
          '_id': query, 'answers': [texts[target].split()[2].upper()]}) + '\n')
  having = {}
  for bars in (False, True):
    config = make(make_config, data__path=str(folder), episodes__first=first,
                  episodes__bar_answers=bars, num_steps=5)
    workdir = str(tmp_path / f'{bars}')
    with train_test.stop_after(1):
      train.run(config, workdir, num_devices=1)
    pools = np.asarray(train_test.final_state(workdir).sampler.ids)
    dataset = factory.make_dataset(config)
    right = dataset.answers['train']
    having[bars] = [
        answers.has_answer(dataset.corpus_texts[i], right.of(row))
        for row in right.query_rows for i in pools[row] if i >= 0]
  assert any(having[False])
  assert having[True] and not any(having[True])


@pytest.mark.parametrize('sampler', ['pool', 'pool_gumbel'])
def test_answers_that_are_to_be_barred_are_there(
    sampler, make_config, tmp_path):
  config = make(make_config, episodes__bar_answers=True, memory__kind='corpus',
                sampler__name=sampler)
  with pytest.raises(ValueError, match="bar_answers=True.*'train' of words"):
    train.run(config, str(tmp_path), num_devices=1)


EARLY = {'episodes__early_negatives': 1}  # of four


@contextlib.contextmanager
def counted_draws():
  """Yields a list that gets how many draws are encoded in each step."""
  count, sizes = cost.Cost.step, []

  def step(self, capacity, negative_ids, probe_ids):
    sizes.append(negative_ids.size)
    return count(self, capacity, negative_ids, probe_ids)

  with mock.patch.object(cost.Cost, 'step', step):
    yield sizes


@pytest.mark.slow
def test_all_episodes_but_the_last_draw_fewer(make_config, tmp_path):
  workdir, batch = str(tmp_path / 'early'), 16
  with counted_draws() as sizes:
    train.run(make(make_config, **EARLY), workdir, num_devices=1)
  assert sizes == [batch] * 4 + [4 * batch] * 3
  found = counts(workdir)
  assert found['target_encoder_calls_in_step'] == 7 * batch + sum(sizes)
  # Until the last they are the episodes of a run that never draws more.
  train.run(make(make_config, sampler__num_negatives=1),
            str(tmp_path / 'one'), num_devices=1)
  losses = [tiny.losses(str(tmp_path / name)) for name in ('early', 'one')]
  assert [step for step in losses[0] if losses[0][step] == losses[1][step]] == [
      1, 2, 3, 4]
  # What a step computes besides is counted by its own number of draws.
  one = counts(str(tmp_path / 'one'))
  columns = lambda draws: batch * (1 + draws)  # of each query
  products = lambda *draws: sum(
      6. * batch * columns(k) * 32 for k in draws)  # D = 32, and a gradient
  assert (found['flops_scoring'] - one['flops_scoring'] == pytest.approx(
      products(4, 4, 4) - products(1, 1, 1)))


@pytest.mark.slow
def test_a_run_with_fewer_draws_goes_on(make_config, tmp_path):
  config, straight = make(make_config, **EARLY), str(tmp_path / 'straight')
  train.run(config, straight, num_devices=1)
  for step in (1, 3, 4, 5):
    workdir = str(tmp_path / str(step))
    with train_test.stop_after(step):
      train.run(config, workdir, num_devices=1)
    train.run(config, workdir, num_devices=1)
    check_same(workdir, straight)
    assert counts(workdir) == counts(straight)


@pytest.mark.slow
def test_what_is_embedded_is_counted(straight):
  found, steps, batch = counts(straight[0]), 7, 16
  train_queries = tiny.NUM_QUERIES['train']
  assert found['target_encoder_calls_reembedding'] == 3 * tiny.NUM_TARGETS
  assert found['query_encoder_calls'] == steps * batch + 3 * train_queries
  assert found['table_bytes'] == 0


def test_forgetting_is_looked_at_before_an_episode_starts_again(straight):
  workdir, _ = straight
  found = forgotten(workdir)
  assert found['steps'] == list(range(8))
  # After two steps the encoder is that of two steps, not of none.
  of_first = found['accuracy'][0]
  assert of_first[2] != of_first[0] != of_first[4]
  of_step = {line['step']: line for line in tiny.read_metrics(workdir)
             if 'forgetting/swap' in line}
  assert sorted(of_step) == list(range(1, 8))
  assert of_step[5]['forgetting/swap'] == found['swap'][5]
  assert of_step[5]['forgetting/learned'] == found['learned'][4]


def test_comparing_draws_what_is_forgotten(straight, tmp_path):
  out = str(tmp_path)
  compare.run([straight[0]], out)
  with open(os.path.join(out, 'comparison.md'), encoding='utf-8') as f:
    assert '(forgetting.png)' in f.read()
  assert os.path.getsize(os.path.join(out, 'forgetting.png')) > 10_000


def test_only_looks_after_the_same_steps_have_a_mean():
  found = {'steps': [0, 2], 'accuracy': [[.5, .7], [None, .2]]}
  other = {'steps': [0, 2], 'accuracy': [[.3, .9], [None, .4]]}
  group = lambda *of: [mock.Mock(forgetting=one) for one in of]
  drawn = compare.of_forgetting({
      'two': group(found, other), 'none': group({}),
      'others': group(found, {**other, 'steps': [0, 3]})})
  assert list(drawn) == ['two']
  steps, matrix = drawn['two']
  assert steps == [0, 2]
  np.testing.assert_allclose(matrix[0], [.4, .8])
  assert matrix[1][0] is None
  np.testing.assert_allclose(matrix[1][1], .3)


@pytest.mark.slow
def test_other_methods_are_looked_at_too(make_config, tmp_path):
  config = make_config('stale', forgetting__every=2, num_steps=5,
                       evaluation__baselines=False)
  train.run(config, str(tmp_path), num_devices=1)
  found = forgotten(str(tmp_path))
  assert found['steps'] == [0, 2, 4, 5]
  meter = counts(str(tmp_path))  # a look is no part of training
  assert meter['target_encoder_calls_reembedding'] == tiny.NUM_TARGETS


@pytest.mark.slow
def test_a_memory_is_embedded_once_for_both(
    straight, make_config, tmp_path):
  config = make(make_config, memory__kind='corpus')
  train.run(config, str(tmp_path), num_devices=1)
  np.testing.assert_allclose(  # of another program
      list(tiny.losses(str(tmp_path)).values()),
      list(tiny.losses(straight[0]).values()), rtol=1e-6)
  found, wanted = counts(str(tmp_path)), counts(straight[0])
  assert found.pop('table_bytes') > wanted.pop('table_bytes') == 0
  assert {**found, 'flops_correcting': 0} == {**wanted, 'flops_correcting': 0}


@pytest.mark.slow
def test_ance_and_static_negatives_are_options(make_config, tmp_path):
  """ANCE goes on with what it has learned; static pools stay as they are."""
  plain = {'episodes__restart': False, 'episodes__momentum': False,
           'episodes__lookahead': False}
  ance = make(make_config, episodes__number=0, **plain)
  train.run(ance, str(tmp_path / 'ance'), num_devices=1)
  meter = counts(str(tmp_path / 'ance'))
  assert meter['target_encoder_calls_reembedding'] == 4 * tiny.NUM_TARGETS
  for first, passes in (('encoder', 1), ('bm25', 0)):
    static = make(make_config, refresh__reencode_every=0, episodes__number=0,
                  episodes__first=first, **plain)
    workdir = str(tmp_path / first)
    with train_test.stop_after(1):
      train.run(static, workdir, num_devices=1)
    pools = train_test.final_state(workdir).sampler.ids
    train.run(static, workdir, num_devices=1)
    np.testing.assert_array_equal(
        train_test.final_state(workdir).sampler.ids, pools)
    assert (counts(workdir)['target_encoder_calls_reembedding']
            == passes * tiny.NUM_TARGETS)


@pytest.mark.parametrize('options, message', [
    ({'refresh__reencode_every': 0}, r'number=3.*reencode_every=STEPS'),
    ({'refresh__reencode_every': 4},
     r'3 episodes.*reencode_every=4 steps leave no step of.*num_steps=7'),
    ({'episodes__number': 1}, r'restart=True.*one alone'),
    ({'checkpoint__best': 'dev/RR@10', 'evaluation__every': 1},
     r'checkpoint\.best=.*restart=True throws away'),
    ({'episodes__depth': 2}, r'depth=2'),
    ({'episodes__early_negatives': -1}, r'early_negatives=-1 must be at least'),
    ({'episodes__early_negatives': 2, 'episodes__number': 0,
      'episodes__restart': False, 'refresh__reencode_every': 0},
     r'early_negatives=2 is of all episodes but the last, and there is one'),
    ({'memory__kind': 'corpus', 'sampler__name': 'pool_gumbel',
      'sampler__num_pooled': 2, 'episodes__early_negatives': 2},
     r'early_negatives=2 takes the place.*num_pooled=2.*num_negatives=2'),
    ({'episodes__later': 'bm25'}, r"later='bm25' is not one of.*memory"),
    ({'episodes__later': 'memory'}, r"later='memory' searches.*kind='corpus'"),
    ({'episodes__later': 'memory', 'memory__kind': 'corpus'},
     r"later='memory' mines.*restart=True throws.*later='encoder'"),
    ({'sampler__pool_order': 'softmax'}, r"score mined ids.*kind='corpus'"),
    ({'memory__kind': 'ring', 'memory__capacity': 32, 'refresh__push': True},
     r'reencode_every re-encodes a whole corpus')])
def test_refuses_what_does_not_go_together(
    options, message, make_config, tmp_path):
  with pytest.raises(ValueError, match=f'(?s){message}'):
    train.run(make(make_config, **options), str(tmp_path), num_devices=1)


def test_options_that_nothing_reads_give_a_warning(make_config):
  with pytest.warns(UserWarning, match=r'episodes\.depth=20 is not read'):
    factory.build(make(make_config, sampler__name='gumbel',
                       memory__kind='corpus'), num_devices=1)
  with pytest.warns(UserWarning, match=r'episodes\.beta=0\.25 is not read'):
    factory.build(make(make_config, episodes__beta=0.25), num_devices=1)


def test_such_a_warning_comes_once(make_config):
  config = make(make_config, sampler__name='uniform', memory__kind='corpus',
                episodes__depth=100, episodes__restart=False)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    factory.build(config, num_devices=1).make_step()
  about = [w for w in caught if 'episodes.depth=100 is not' in str(w.message)]
  assert len(about) == 1
