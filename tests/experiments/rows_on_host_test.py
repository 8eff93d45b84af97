"""Rows on the host train as rows on the devices do, and go on after a stop."""

import contextlib
import gc
import os
from unittest import mock

import jax
import numpy as np
import pytest

from retrieval_jax import host_table
from retrieval_jax import memories
from retrieval_jax import table as tables
from retrieval_jax import trained
from retrieval_jax import training
from retrieval_jax import tree_building
from retrieval_jax.jobs import diagnose
from retrieval_jax.jobs import train
from retrieval_jax.training import checkpoint
from retrieval_jax.training import meter as meters
from tests.experiments import tiny
from tests.experiments import train_test

pytestmark = pytest.mark.slow  # each trains

OPTIONS = tiny.MOVING | {
    'sampler__name': 'tree', 'sampler__num_negatives': 2,
    'sampler__leaf_size': 8, 'sampler__opened': 2,
    'refresh__reencode_every': 4, 'num_steps': 6, 'checkpoint__every': 100,
    'evaluation__baselines': False, 'memory__chunk_rows': 64}


def make(make_config, place='host', **options):
  return make_config('stale', **(
      OPTIONS | {'memory__place': place} | options))


def rows(state, count=tiny.NUM_TARGETS):
  return [np.asarray(array)[:count] for array in (
      state.table.embeddings, state.table.written, state.sampler.leaf_of,
      state.sampler.rows)]


@pytest.mark.parametrize('options', [
    {}, {'memory__dtype': 'bfloat16', 'sampler__beam': 2},
    {'sampler__name': 'uniform'}, {'sampler__name': 'stochastic'},
    {'corrector__name': 'linear', 'corrector__num_anchors': 4,
     'corrector__keep_norm': False},
    {'corrector__name': 'mlp', 'corrector__num_anchors': 4},
    {'corrector__name': 'nystrom', 'corrector__num_anchors': 4,
     'corrector__num_landmarks': 16, 'refresh__write_back': False,
     'refresh__push': False, 'refresh__fraction': 0.0}], ids=str)
def test_the_place_of_rows_changes_no_step(options, make_config, tmp_path):
  if options.get('sampler__name', 'tree') != 'tree':
    options = {'sampler__leaf_size': 128, 'sampler__opened': 32} | options
  places = {}
  for place in ('device', 'host'):
    workdir = str(tmp_path / place)
    gc.collect()
    before = meters.live_bytes()
    meter = train.run(make(make_config, place, **options), workdir,
                      num_devices=1)['meter']
    places[place] = (tiny.losses(workdir), train_test.final_state(workdir),
                     meter | {'alive': meter['device_bytes'] - before})
  (losses, state, meter), (on_host, host_state, host_meter) = places.values()
  np.testing.assert_allclose(
      list(losses.values()), list(on_host.values()), rtol=1e-5)
  assert isinstance(host_state.table, host_table.HostTable)
  for one, other in zip(jax.tree.leaves(state.params),
                        jax.tree.leaves(host_state.params)):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
  if 'sampler__name' not in options:
    for one, other in zip(rows(state), rows(host_state)):
      np.testing.assert_allclose(
          one.astype(np.float32), other.astype(np.float32),
          atol=1e-2 if 'memory__dtype' in options else 1e-4)
    assert host_meter['host_bytes'] > meter['host_bytes'] == 0
    assert meter['flops_indexing'] > 0
    # What is on the host is on no device; all else that is, is the same.
    gone = meters.num_bytes((state.table, [getattr(
        state.sampler, name) for name in ('rows', 'leaf_of', 'start')]))
    np.testing.assert_allclose(
        meter['alive'] - host_meter['alive'], gone, rtol=0.1)
  for name in ('target_encoder_calls_in_step', 'flops_correcting',
               'target_encoder_calls_reembedding', 'flops_indexing'):
    assert meter.get(name) == host_meter.get(name), name


class Killed(BaseException):
  """What nothing catches."""


@contextlib.contextmanager
def killed_after_rows_of(step):
  """Kills a run when it has written the rows of a checkpoint, and no more."""
  save = checkpoint._RowsHandler.save

  def save_and_die(self, directory, args):
    save(self, directory, args)
    if f'{step}.' in str(directory):
      raise Killed

  with mock.patch.object(checkpoint._RowsHandler, 'save', save_and_die):
    with pytest.raises(Killed):
      yield


@pytest.mark.parametrize('killed', (False, True))
def test_an_interrupted_run_goes_on_to_the_same_end(killed, make_config,
                                                    tmp_path):
  """Rows are those of the last whole checkpoint, wherever they are mapped."""
  config, where = make(make_config), lambda name: str(tmp_path / name)
  mapped = lambda folder: make(
      make_config, memory__folder=where(folder), checkpoint__every=2)
  train.run(config, where('straight'), num_devices=1)
  if killed:
    with killed_after_rows_of(4):
      train.run(mapped('map'), where('again'), num_devices=1)
    config = mapped('other')
  else:
    with train_test.stop_after(3):
      assert train.run(config, where('again'), num_devices=1) is None
  train.run(config, where('again'), num_devices=1)
  end, again = (
      train_test.final_state(where(name)) for name in ('straight', 'again'))
  jax.tree.map(np.testing.assert_array_equal, again, end)
  assert tiny.losses(where('again')) == tiny.losses(where('straight'))
  assert len(set(end.table.written)) > 1  # there was something to lose
  assert isinstance(again.table.embeddings, np.memmap) == killed
  if killed:
    assert not os.listdir(where('map')) and not os.listdir(where('other'))
    assert not [name for name in os.listdir(where('again') + '/checkpoints')
                if 'tmp' in name]


@pytest.mark.parametrize('sampler', ('tree', 'stochastic'))
def test_two_devices_draw_what_one_does(sampler, make_config, tmp_path):
  one, two = str(tmp_path / 'one'), str(tmp_path / 'two')
  config = make(make_config, sampler__name=sampler, num_steps=4)
  train.run(config, one, num_devices=1)
  train.run(config, two, num_devices=2)
  np.testing.assert_allclose(
      list(tiny.losses(one).values()), list(tiny.losses(two).values()),
      rtol=1e-5)


def test_no_whole_table_is_ever_on_a_device(make_config, tmp_path):
  """Not when it is filled, renewed, saved, or restored."""
  config = make(make_config, num_steps=5, evaluation__every=0)
  sizes = []
  put = jax.device_put

  def watched(x, *args, **kwargs):
    sizes.extend(np.shape(leaf) for leaf in jax.tree.leaves(x))
    return put(x, *args, **kwargs)

  # Else one parent of the tree has them all.
  few = mock.patch.multiple(tree_building, _FLAT=4, _SAMPLE=8)
  with few, mock.patch.object(jax, 'device_put', watched), mock.patch.object(
      tables, 'create', side_effect=AssertionError('a table on devices')):
    for step in (3, 4):
      with train_test.stop_after(step):
        assert train.run(config, str(tmp_path), num_devices=1) is None
  assert sizes
  # Lists of a leaf for each query, and what a step observed, are smaller.
  shape = (tiny.NUM_TARGETS, config.model.hidden_size)
  assert shape not in sizes
  live = [array.shape for array in jax.live_arrays()]
  assert shape not in live


def test_what_is_saved_is_what_was_there_then(tmp_path):
  """A step that comes while a checkpoint is written does not get into it.

  And what was damaged since is not read.
  """
  table = host_table.create(
      5, 3, live=np.ones(5, bool), dtype='bfloat16', step=2)
  table.embeddings[:] = np.arange(15).reshape(5, 3)
  state = training.TrainState(
      step=jax.numpy.int32(2), params={}, opt_state=(), table=table,
      corrector=(), sampler=())
  with training.Checkpoints(str(tmp_path)) as kept:
    kept.save(2, state, {})
    table.embeddings[:] = -1
    table.written[:] = 9
    kept.wait()
    restored, _ = kept.restore(training.abstract(state))
    assert restored.table is table
    np.testing.assert_array_equal(
        table.embeddings.astype(np.float32), np.arange(15).reshape(5, 3))
    np.testing.assert_array_equal(table.written, 2)
    other = host_table.create(6, 3, live=np.ones(6, bool), dtype='bfloat16')
    with pytest.raises(ValueError, match=r'saved \(5, 3\), expected \(6, 3\)'):
      kept.restore(training.abstract(
          training.TrainState(state.step, {}, (), other, (), ())))
  path = os.path.join(tmp_path, '2', 'rows', 'embeddings.npy')
  with open(path, 'r+b') as file:
    file.seek(-1, os.SEEK_END)
    file.write(b'?')
  with training.Checkpoints(str(tmp_path)) as kept:
    with pytest.raises(checkpoint.DamagedError, match='embeddings.npy'):
      kept.restore(training.abstract(state))


def test_is_diagnosed_as_rows_on_devices_are(make_config, tmp_path):
  found = {}
  for place in ('device', 'host'):
    workdir = str(tmp_path / place)
    with train_test.stop_after(3):
      train.run(make(make_config, place), workdir, num_devices=1)
    found[place] = diagnose.of_state(
        *trained.load_state(workdir, num_devices=1))['this run']
  assert found['device'].keys() == found['host'].keys()
  for name, value in found['device'].items():
    np.testing.assert_allclose(value, found['host'][name], rtol=1e-3,
                               atol=1e-4, err_msg=name)


@pytest.mark.parametrize('options, message', [
    ({'sampler__name': 'gumbel'},
     "Gumbel goes over all of them; use sampler.name='tree'"),
    ({'sampler__name': 'top_k'}, 'goes over all of them'),
    ({'memory__place': 'disk'}, "'disk' is not one of"),
    ({'memory__place': 'device', 'memory__folder': '/tmp/x'},
     'is of rows on the host'),
    ({'targets__source': 'frozen', 'model__tied': False,
      'refresh__write_back': False, 'refresh__push': False,
      'refresh__fraction': 0.0, 'refresh__reencode_every': 0},
     "needs memory.place='device'")], ids=str)
@pytest.mark.filterwarnings('ignore:--config')
def test_what_needs_all_rows_is_refused(options, message, make_config,
                                        tmp_path):
  with pytest.raises(ValueError, match=message):
    train.run(make(make_config, **options), str(tmp_path))


def test_several_processes_are_refused():
  memory = memories.Corpus(4, 'float32', 64, 'host')
  with mock.patch.object(jax, 'process_count', lambda: 2):
    with pytest.raises(ValueError, match='2 processes.*place=.device'):
      memory.create(np.zeros((4, 2)), range(4), dim=2, mesh=None)
