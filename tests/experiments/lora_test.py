"""Runs that train low-rank adapters, and what is made of them."""

import os
import shutil

import jax
import numpy as np
import pytest

from experiments import export
from experiments import inspect
from retrieval_jax import base_params
from retrieval_jax import factory
from retrieval_jax import trained
from retrieval_jax.data import tensor_files
from retrieval_jax.jobs import train
from retrieval_jax.models import peft
from tests.experiments import episodes_test
from tests.experiments import scripts_test
from tests.experiments import tiny
from tests.experiments import train_test
from tests.models import families_test

STEPS = 4
TEXTS = ['kabel lodor', 'sofin']


@pytest.fixture(name='base', scope='module')
def fixture_base(tmp_path_factory):
  return shutil.copytree(families_test.folder_of('qwen3'), str(
      tmp_path_factory.mktemp('models') / 'qwen3'))


@pytest.fixture(name='config', scope='module')
def fixture_config(make_config, base):
  return make_config(
      'stale', num_steps=STEPS, evaluation__baselines=False,
      model__pretrained=base, model__num_layers=0, model__projection=8,
      lora__rank=2, optimizer__learning_rate=3e-2, data__query_length=16,
      data__target_length=16, **tiny.MOVING)


@pytest.fixture(name='run', scope='module')
def fixture_run(config, tmp_path_factory):
  """Returns the folder of a run that nothing stopped."""
  workdir = str(tmp_path_factory.mktemp('runs') / 'lora')
  train.run(config, workdir, num_devices=1)
  return workdir


@pytest.mark.slow
def test_adapters_learn_and_the_base_does_not(run, config, base):
  state = train_test.final_state(run)
  weights = families_test.pretrained.load_pretrained(base)[1]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(
      state.params[base_params.KEY]['tower']['transformer']), weights)
  tower = state.params['tower']
  assert set(tower) == {'lora', 'projection'}
  pair = tower['lora']['layer_0']['attention']['qkv_kernel']['0']
  assert np.abs(pair['b']).max() > 1e-2
  moments = sum(np.size(x) for x in jax.tree.leaves(state.opt_state))
  learned = sum(np.size(x) for x in jax.tree.leaves(tower))
  assert 2 * learned <= moments <= 2 * learned + 8  # and counts of steps
  for name in os.listdir(os.path.join(run, 'checkpoints', str(STEPS))):
    assert 'token_table' not in name
  losses = tiny.losses(run)
  assert losses[STEPS] < losses[1]
  assert config.lora.rank == 2


@pytest.mark.slow
def test_a_checkpoint_does_not_hold_the_base(run):
  kept = train_test.checkpoint.Checkpoints(
      os.path.join(run, 'checkpoints'), read_only=True)
  with kept:
    saved = kept._saved(STEPS)
  assert set(saved['params']) == {'tower'}
  assert set(saved['params']['tower']) == {'lora', 'projection'}


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_bit_for_bit(run, config, tmp_path):
  with train_test.stop_after(2):
    assert train.run(config, str(tmp_path), num_devices=1) is None
  train.run(config, str(tmp_path), num_devices=1)
  ours, theirs = map(train_test.final_state, (str(tmp_path), run))
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
  np.testing.assert_array_equal(ours.table.embeddings, theirs.table.embeddings)
  assert tiny.losses(str(tmp_path)) == tiny.losses(run)


@pytest.mark.slow
def test_shards_train_as_one_device_does(run, config, tmp_path):
  sharded = config.copy_and_resolve_references()
  sharded.sharding.parameters, sharded.sharding.min_size = 'sharded', 64
  train.run(sharded, str(tmp_path), num_devices=2)
  assert tiny.losses(str(tmp_path)) == pytest.approx(
      tiny.losses(run), rel=1e-3)


@pytest.mark.parametrize('flags', [(), ('--adapters',)])
def test_an_export_embeds_as_the_run_does(flags, run, make_config, base,
                                          tmp_path, capsys):
  out = str(tmp_path / 'out')
  scripts_test.call(export, f'--workdir={run}', f'--out={out}', *flags)
  names = os.listdir(out)
  assert (peft.WEIGHTS in names) == bool(flags)
  assert ('model.safetensors' in names) == (not flags)
  if flags:
    assert peft.base_of(out) == base
    assert 'model.safetensors' not in names
  again = trained.from_config(make_config(
      'stale', model__pretrained=out, model__num_layers=0,
      data__query_length=16, data__target_length=16))
  np.testing.assert_allclose(
      again.embed_queries(TEXTS), trained.open(run).embed_queries(TEXTS),
      atol=1e-5)
  scripts_test.call(inspect, f'--model={out}')
  assert 'qwen3, 2 layers' in capsys.readouterr().out


@pytest.mark.slow
def test_another_run_starts_from_the_adapted_encoder(
    run, config, make_config, tmp_path):
  options = {name: config.model[name] for name in (
      'pretrained', 'num_layers', 'projection')}
  for rank in (0, 3):
    started = make_config(
        'stale', num_steps=1, evaluation__baselines=False,
        data__query_length=16, data__target_length=16,
        model__start_from=run, lora__rank=rank,
        **{f'model__{name}': value for name, value in options.items()})
    wanted = trained.open(run).embed_queries(TEXTS)
    np.testing.assert_allclose(
        trained.from_config(started).embed_queries(TEXTS), wanted, atol=1e-5)
    workdir = str(tmp_path / str(rank))
    train.run(started, workdir, num_devices=1)
    found = trained.open(workdir)
    assert ('lora' in found.params['tower']) == bool(rank)
    assert np.abs(found.embed_queries(TEXTS) - wanted).max() > 0
  with pytest.raises(SystemExit, match='belong to the encoder of the run'):
    scripts_test.call(export, f'--workdir={workdir}',
                      f'--out={tmp_path}/out', '--adapters')


@pytest.mark.slow
def test_an_episode_begins_with_the_first_adapters(
    make_config, base, tmp_path):
  """At step 2 of three episodes; the base stays, and is not kept with them."""
  workdir = str(tmp_path)
  config = episodes_test.make(
      make_config, model__pretrained=base, model__num_layers=0, lora__rank=2,
      data__query_length=16, data__target_length=16,
      optimizer__learning_rate=3e-2)
  with train_test.stop_after(2):
    train.run(config, workdir, num_devices=1)
  first = jax.device_get(factory.build(config, num_devices=1).params)
  jax.tree.map(np.testing.assert_array_equal,
               jax.device_get(train_test.final_state(workdir).params), first)
  with train_test.checkpoint.Checkpoints(
      os.path.join(workdir, 'start'), read_only=True) as kept:
    assert set(kept._saved(0)['params']) == {'tower'}
  train.run(config, workdir, num_devices=2)
  last = train_test.final_state(workdir).params
  moved = jax.tree.map(
      lambda old, new: np.abs(old - new).max(), first, jax.device_get(last))
  assert max(jax.tree.leaves(moved['tower']['lora'])) > 1e-2
  assert not max(jax.tree.leaves(moved[base_params.KEY]))


@pytest.mark.slow
def test_another_base_is_refused(config, tmp_path):
  """Which the run cannot know but by its digest."""
  base = shutil.copytree(config.model.pretrained, str(tmp_path / 'base'))
  ours = config.copy_and_resolve_references()
  ours.model.pretrained, ours.num_steps = base, 1
  workdir = str(tmp_path / 'run')
  train.run(ours, workdir, num_devices=1)
  trained.open(workdir)
  path = os.path.join(base, 'model.safetensors')
  tensors = tensor_files.read_all(path)
  tensors['norm.weight'] = tensors['norm.weight'] + 1
  tensor_files.write(path, tensors, {'format': 'pt'})
  with pytest.raises(ValueError, match='no longer those that they were'):
    trained.open(workdir)


@pytest.mark.slow
def test_what_cannot_be(make_config, config, run, tmp_path):
  scratch = make_config('stale', lora__rank=2, model__pretrained='')
  with pytest.raises(ValueError, match='lora.rank=2 adapts an encoder that st'):
    train.run(scratch, str(tmp_path / 'a'), num_devices=1)
  wrong = config.copy_and_resolve_references()
  wrong.lora.base_dtype = 'float16'
  with pytest.raises(ValueError, match="lora.base_dtype='float16'"):
    train.run(wrong, str(tmp_path / 'b'), num_devices=1)
  fewer = config.copy_and_resolve_references()
  fewer.model.num_layers, fewer.num_steps = 1, 1
  workdir = str(tmp_path / 'c')
  train.run(fewer, workdir, num_devices=1)
  with pytest.raises(SystemExit, match='keeps 1 of the 2 layers'):
    scripts_test.call(export, f'--workdir={workdir}',
                      f'--out={tmp_path}/out', '--adapters')
  assert not os.path.exists(tmp_path / 'out')
