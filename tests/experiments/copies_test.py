"""A corpus with copies trains as the same corpus without them."""

import json
import os
from unittest import mock

import jax
import numpy as np
import pytest

from retrieval_jax import factory
from retrieval_jax import sharding
from retrieval_jax import trained
from retrieval_jax.factory import registries
from retrieval_jax.jobs import diagnose
from retrieval_jax.jobs import train
from tests import made_up_samplers
from tests.experiments import remembered_pools_test
from tests.experiments import tiny
from tests.experiments import train_test

NUM_COPIES = 2  # of each target, behind all of them
RING = {'memory__kind': 'ring', 'memory__capacity': 64, 'memory__prefill': True,
        'memory__chunk_rows': 64, 'refresh__push': True}


@pytest.fixture(scope='module', name='both')
def make_both(tmp_path_factory, cache):
  """Returns make(config's name, **overrides) -> configs (without, with copies).

  Both have the same tokenizer. With copies, judgements and candidates name a
  target of the text by turns, and every third query judges two of them.
  """
  folder = tmp_path_factory.mktemp('copied')
  data = {}
  for name in ('without', 'with'):
    data[name] = tiny.write_beir(str(folder / name))
    _judge(data[name], copied=name == 'with')
  tokenizer = str(folder / 'tokenizer.json')
  factory.build(tiny.config('stale', data['without'], cache),
                num_devices=1).tokenizer.save(tokenizer)
  return lambda name, **overrides: [
      tiny.config(name, data[kind], cache, **({
          'tokenizer__path': tokenizer, 'evaluation__baselines': False,
          'log__every': 1} | overrides)) for kind in ('without', 'with')]


def _judge(folder, *, copied):
  """Adds candidates, and copies of all targets if `copied`."""
  name = lambda target, i: (
      f'{target}-{i % 3}' if copied and i % 3 else target)
  judgements = os.path.join(folder, 'qrels', 'train.tsv')
  with open(judgements, encoding='utf-8') as f:
    header, *lines = f.read().splitlines()
  candidates, judged = [header], [header]
  for i, line in enumerate(lines):
    query, target, _ = line.split('\t')
    judged.append(f'{query}\t{name(target, i)}\t1')
    if copied and not i % 3:
      judged.append(f'{query}\t{name(target, i + 1)}\t2')
    # The last of four is the positive, which no candidate may be.
    for j in (1, 2, 3, 0):
      other = f'd{(int(target[1:]) + j) % tiny.NUM_TARGETS}'
      candidates.append(f'{query}\t{name(other, i + j)}\t{5 - j}')
  os.makedirs(os.path.join(folder, 'candidates'))
  for path, content in ((judgements, judged), (os.path.join(
      folder, 'candidates', 'train.tsv'), candidates)):
    with open(path, 'w', encoding='utf-8') as f:
      f.write('\n'.join(content) + '\n')
  if copied:
    corpus = os.path.join(folder, 'corpus.jsonl')
    with open(corpus, encoding='utf-8') as f:
      records = [json.loads(line) for line in f]
    with open(corpus, 'a', encoding='utf-8') as f:
      for i in range(1, NUM_COPIES + 1):
        f.writelines(json.dumps(record | {'_id': f'{record["_id"]}-{i}'}) + '\n'
                     for record in records)


def first_draws(config):
  """Returns the Draws of a run's first step."""
  experiment = factory.build(config, num_devices=1)
  step, _ = experiment.make_step()
  ids = experiment.first_ids()
  table = experiment.make_table(
      experiment.embed_targets(experiment.params, ids))
  if config.memory.kind == 'corpus':  # where the copies' rows stay empty
    assert int((np.asarray(table.ids) >= 0).sum()) == tiny.NUM_TARGETS
  state = step.init_state(experiment.params, table)
  batch = experiment.make_batches().batch(0)
  draws = step.propose(state, sharding.put_batch(batch, experiment.mesh))
  return batch, jax.device_get(draws)


@pytest.mark.parametrize('sampler, options', [
    ('uniform', {}), ('stochastic', {'sampler__pool_size': 40}),
    ('top_k', {}), ('simans', {'sampler__pool_size': 40}), ('gumbel', {}),
    ('top_k_gumbel', {'sampler__shortlist': 40}),
    ('uniform', RING), ('gumbel', RING)])
@pytest.mark.slow
def test_a_sampler_draws_as_without_copies(both, sampler, options):
  without, with_copies = (first_draws(config) for config in both(
      'stale', sampler__name=sampler, sampler__num_negatives=30,
      data__num_candidates=2, **options))
  assert without[1].proposal.mask.sum() > 16 * 10
  for ours, theirs in zip(jax.tree.leaves(with_copies),
                          jax.tree.leaves(without), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize('sampler, options', [
    ('exhaustive', {}), ('bucketed', {'sampler__num_negatives': 40}),
    ('pool', {'sampler__num_negatives': 99, 'memory__kind': 'none'})])
def test_no_sampler_draws_a_copy(both, sampler, options):
  """Whatever the order in which it takes the rows, or draws ids."""
  with (mock.patch.dict(registries.SAMPLERS, pool=made_up_samplers.Pool),
        mock.patch.object(made_up_samplers.Pool, 'size', 100)):
    _, with_copies = both('stale', sampler__name=sampler, **options)
    batch, draws = first_draws(with_copies)
  ids = np.where(draws.proposal.mask, draws.proposal.ids, -1)
  assert ids.max() < tiny.NUM_TARGETS
  np.testing.assert_array_equal(ids, draws.proposal.ids)
  if sampler == 'exhaustive':  # known positives are masked in the loss
    assert sorted(ids[ids >= 0]) == list(range(tiny.NUM_TARGETS))
  else:
    assert not (ids[:, :, None] == batch.target_ids[:, None, None]).any()
    assert (ids >= 0).sum() > 16


@pytest.mark.parametrize('name, options', [
    ('stale', {'refresh__write_back': True, 'refresh__reencode_every': 2}),
    ('stale', RING | {'refresh__write_back': True}),
    ('ance_tele', remembered_pools_test.BY_MEMORY
     | remembered_pools_test.CORRECTORS['mlp']
     | remembered_pools_test.SAMPLERS['softmax']
     | {'forgetting__every': 0, 'episodes__number': 3}),
    ('direct_gradient', {'data__dev_split': 'dev'})])
@pytest.mark.slow
def test_losses_are_those_without_copies(name, options, both, tmp_path, capfd):
  losses = []
  for i, config in enumerate(both(name, num_steps=3, **(
      {'data__dev_split': '', 'data__test_split': ''} | options))):
    train.run(config, str(tmp_path / str(i)), num_devices=1)
    losses.append(list(tiny.losses(str(tmp_path / str(i))).values()))
    assert ('240 targets are copies: 120 texts occur more than once' in
            capfd.readouterr().err) == bool(i)
  assert len(losses[0]) == 3
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
  if name == 'direct_gradient':  # a copy is found by the row of its text
    targets = trained.open(str(tmp_path / '1')).embed_targets()
    np.testing.assert_array_equal(
        targets, np.tile(targets[:tiny.NUM_TARGETS], (NUM_COPIES + 1, 1)))
    rows = np.asarray(
        train_test.final_state(str(tmp_path / '1')).table.embeddings)
    np.testing.assert_array_equal(
        targets[:tiny.NUM_TARGETS], rows[:tiny.NUM_TARGETS])
    found = diagnose.of_state(
        factory.build(config, num_devices=1),
        train_test.final_state(str(tmp_path / '1')))['this run']
    np.testing.assert_allclose(found['coverage'], 1, rtol=1e-6)


def test_embeddings_of_the_memory_give_those_of_the_corpus(both):
  for config in both('stale'):
    experiment = factory.build(config, num_devices=1)
    ids = experiment.first_ids()
    assert len(ids) == tiny.NUM_TARGETS
    np.testing.assert_allclose(
        experiment.of_all_targets(
            experiment.embed_targets(experiment.params, ids)),
        experiment.embed_targets(experiment.params), atol=1e-6)
