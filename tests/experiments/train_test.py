"""Every config trains, resumes, and says what is wrong with its options."""

import glob
import json
import os
import shutil
import sys
from unittest import mock

from absl import flags
import jax
import ml_collections
import numpy as np
import pytest

from experiments import process
from experiments import train as train_script
from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax import files
from retrieval_jax import trained as trained_lib
from retrieval_jax.evaluation import measures
from retrieval_jax.evaluation import report
from retrieval_jax.jobs import evaluate
from retrieval_jax.jobs import train
from retrieval_jax.training import checkpoint
from retrieval_jax.training import cost
from retrieval_jax.training import signals
from tests import disks
from tests.experiments import tiny

CONFIGS = sorted(
    os.path.basename(path)[:-3] for path in glob.glob('configs/*.py')
    if not path.endswith(('__init__.py', 'qa.py'))) + [  # see qa_test
        'negative_cache:full_tiny', 'corrector:refreshed_tiny',
        'corrector:write_back_tiny', 'corrector:ring_tiny',
        'corrector:linear_tiny', 'corrector:nystrom_tiny',
        'dynamic_index:static_tiny', 'dynamic_index:nystrom_tiny',
        'dynamic_index:host_tiny']


def stop_after(step):
  """Returns a patch under which a signal seems to come during `step`."""
  return mock.patch.object(
      signals.StopSignal, '__call__', lambda self, now: now >= step)


def final_state(workdir):
  """Returns the TrainState of a run's last checkpoint."""
  config = trained_lib.read_config(workdir)
  experiment = factory.build(config, num_devices=1)
  abstract = trained_lib.abstract_state(experiment, experiment.make_step()[0])
  with checkpoint.Checkpoints(os.path.join(workdir, 'checkpoints')) as kept:
    return kept.restore(abstract)[0]


def run_main(*arguments):
  """Calls the script's main as the command line would."""
  values = flags.FlagValues()
  train_script.define_flags(values)
  # ml_collections looks for its overrides in sys.argv, wherever flags are from.
  with mock.patch.object(sys, 'argv', ['train', *arguments]):
    with mock.patch.object(
        process.app, 'parse_flags_with_usage', side_effect=values):
      train_script.main(process.parse_flags(sys.argv), values)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[] if name in (
        'base', 'quickstart', 'corrector') else pytest.mark.slow)
    for name in CONFIGS])
def test_every_config_trains_and_evaluates(name, make_config, tmp_path):
  workdir = str(tmp_path / name)
  results = train.run(make_config(name), workdir, num_devices=1)
  for of_split in (results['measures'], results['bm25'], results['untrained']):
    assert list(of_split) == ['dev', 'test']
    for values in of_split.values():
      assert list(values) == list(measures.MEASURES)
      assert all(0 <= value <= 1 for value in values.values())
  # One word of six is shared, and stands in an eighth of the targets.
  assert results['bm25']['test']['R@20'] > 0.5
  meter = results['meter']
  steps, batch = results['steps'], results['config']['batch_size']
  # To propose, where anything is scored for that, for the loss, and to mine by.
  sampler = results['config']['sampler']['name']
  passes = 1 if sampler in ('none', 'pool') else 2
  mined = 3 * tiny.NUM_QUERIES['train'] if sampler == 'pool' else 0
  assert meter['query_encoder_calls'] == passes * steps * batch + mined
  assert meter['seconds']['total'] > 0
  with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as f:
    assert json.load(f)['measures'] == results['measures']
  with open(os.path.join(workdir, 'config.json'), encoding='utf-8') as f:
    assert json.load(f)['batch_size'] == batch
  for split in ('dev', 'test'):
    with open(os.path.join(workdir, f'{split}.run'), encoding='utf-8') as f:
      assert len(f.readlines()) == tiny.NUM_QUERIES[split] * 100
  losses = tiny.losses(workdir)
  assert list(losses) == [2, 4]
  assert np.isfinite(list(losses.values())).all()
  assert tiny.read_metrics(workdir)[-1]['test/RR@10'] == (
      results['measures']['test']['RR@10'])


@pytest.mark.slow
def test_training_learns(make_config, tmp_path):
  results = train.run(
      make_config('in_batch', num_steps=24, log__every=4,
                  encoding__chunk_size=0), str(tmp_path), num_devices=1)
  losses = list(tiny.losses(str(tmp_path)).values())
  assert losses[-1] < 0.7 * losses[0]
  assert (results['measures']['test']['RR@10']
          > results['untrained']['test']['RR@10'])


@pytest.mark.slow
def test_the_first_positive_alone_is_trained_on(beir, make_config, tmp_path):
  folder = tmp_path / 'judged_twice'
  shutil.copytree(beir, folder)
  with open(folder / 'qrels' / 'train.tsv', 'r+', encoding='utf-8') as f:
    f.writelines([f'{line.split()[0]}\td0\t1\n'
                  for line in f.readlines()[1:] if line.split()[1] != 'd0'])
  config = make_config('stale', data__path=str(folder), data__positive='first')
  experiment = factory.build(config, num_devices=1)
  batches = experiment.make_batches()
  found = [batches.batch(step).target_ids for step in range(4)]
  np.testing.assert_array_equal(found, 0)


@pytest.mark.slow
def test_starts_from_the_encoder_of_another_run(trained, make_config, tmp_path):
  folder, _ = trained
  theirs = jax.device_get(final_state(folder).params['tower'])
  for tied in (True, False):
    config = make_config('stale', model__start_from=folder, model__tied=tied,
                         model__learn_scale=True)
    params = factory.build(config, num_devices=1).params
    towers = ['tower'] if tied else ['query_tower', 'target_tower']
    assert sorted(params) == sorted([*towers, 'log_scale'])
    for name in towers:
      jax.tree.map(np.testing.assert_array_equal, params[name], theirs)
  # And a run from there re-embeds the memory with that encoder.
  config = make_config('stale', model__start_from=folder, num_steps=1,
                       evaluation__baselines=False)
  workdir = str(tmp_path / 'on')
  train.run(config, workdir, num_devices=1)
  experiment = factory.build(config, num_devices=1)
  np.testing.assert_array_equal(
      np.asarray(final_state(workdir).table.embeddings)[:tiny.NUM_TARGETS],
      experiment.embed_targets(experiment.params))


def test_only_the_same_encoder_can_be_started_from(
    trained, make_config, tmp_path):
  folder, _ = trained
  config = make_config('stale', model__start_from=folder, model__num_layers=1)
  with pytest.raises(ValueError, match=(
      r'(?s)start_from=.*another encoder.*model\.num_layers: saved 2, now 1')):
    factory.build(config, num_devices=1)
  config = make_config('stale', model__start_from=str(tmp_path))
  with pytest.raises(FileNotFoundError, match='start_from=.* no checkpoints'):
    factory.build(config, num_devices=1)


def test_a_finished_run_returns_at_once(trained, make_config):
  workdir, results = trained
  with mock.patch.object(
      factory, 'build', side_effect=AssertionError('built again')):
    again = train.run(make_config('stale', **tiny.MOVING), workdir)
  assert again == json.loads(json.dumps(results))


def test_a_stopped_and_resumed_run_equals_a_straight_one(
    trained, make_config, tmp_path, capfd):
  straight, results = trained
  config = make_config('stale', **tiny.MOVING)
  workdir = str(tmp_path / 'stopped')
  with stop_after(3):
    assert train.run(config, workdir, num_devices=1) is None
  assert 'Stopped after step 3 of 4' in capfd.readouterr().err
  assert not os.path.exists(os.path.join(workdir, 'results.json'))
  resumed = train.run(config, workdir, num_devices=1)
  assert 'Resumed at step 3 of 4' in capfd.readouterr().err
  jax.tree.map(np.testing.assert_array_equal, final_state(workdir),
               final_state(straight))
  assert tiny.losses(workdir) == tiny.losses(straight)
  for part in ('measures', 'bm25', 'untrained'):
    assert resumed[part] == results[part]
  # On jax 0.7 the shards of a restored array outlive its donation.
  measured = {'seconds'} | (
      {'device_bytes'} if jax.__version_info__ < (0, 8) else set())
  for name, count in results['meter'].items():
    if name not in measured:
      assert resumed['meter'][name] == count, name


@pytest.mark.slow
def test_a_run_goes_on_before_a_damaged_checkpoint(
    trained, make_config, tmp_path, capfd):
  straight, _ = trained
  workdir = str(tmp_path / 'damaged')
  config = make_config('stale', **tiny.MOVING, checkpoint__every=1,
                       checkpoint__keep=3)
  with stop_after(3):
    train.run(config, workdir, num_devices=1)
  folder = os.path.join(workdir, 'checkpoints', '3')
  disks.damage(max(disks.files_in(folder), key=os.path.getsize), 'changed')
  with pytest.warns(UserWarning, match=r'checkpoints/3.*other bytes.*before'):
    train.run(config, workdir, num_devices=1)
  assert 'Resumed at step 2 of 4' in capfd.readouterr().err
  jax.tree.map(np.testing.assert_array_equal, final_state(workdir),
               final_state(straight))
  assert tiny.losses(workdir) == tiny.losses(straight)
  assert [line['step'] for line in tiny.read_metrics(workdir)
          if 'train/nll' in line] == [1, 2, 3, 4]


def test_what_uses_a_run_takes_the_checkpoint_before_a_damaged_one(
    trained, tmp_path):
  workdir = str(tmp_path / 'copy')
  shutil.copytree(trained[0], workdir)
  for step in '24':
    shutil.copytree(os.path.join(trained[0], 'checkpoints', '4'),
                    os.path.join(workdir, 'checkpoints', step),
                    dirs_exist_ok=True)
  disks.damage(os.path.join(
      workdir, 'checkpoints', '4', 'state', 'manifest.ocdbt'), 'empty')
  with pytest.warns(UserWarning, match=r'checkpoints/4.*manifest.*has 0 bytes'):
    retriever = trained_lib.open(workdir)
  assert retriever.step == 2
  shutil.rmtree(os.path.join(workdir, 'checkpoints', '2', 'state'))
  with pytest.raises(OSError, match=(
      r'(?s)No checkpoint in .*copy/checkpoints can be read')):
    trained_lib.open(workdir)


@pytest.mark.parametrize('name', ['config.json', 'results.json',
                                  'baselines.json'])
@pytest.mark.parametrize('content', ['', '{"a":', '[]', '{"config": 3}'])
def test_a_damaged_file_of_a_run_is_named(
    name, content, trained, make_config, tmp_path):
  workdir = str(tmp_path / 'copy')
  shutil.copytree(trained[0], workdir)
  path = os.path.join(workdir, name)
  with open(path, 'w', encoding='utf-8') as f:
    f.write(content)
  read = {'config.json': trained_lib.read_config,
          'results.json': report.read_results,
          'baselines.json': trained_lib.read_baselines}[name]
  if content == '{"config": 3}' and name != 'results.json':
    read(workdir)  # options and measures may come and go
    return
  with pytest.raises(ValueError, match=f'copy/{name}'):
    read(workdir)
  if name == 'results.json':
    with pytest.raises(ValueError, match=f'copy/{name}'):
      train.run(make_config('stale', **tiny.MOVING), workdir, num_devices=1)


def test_a_second_run_in_a_workdir_is_refused_before_it_writes(
    trained, make_config, tmp_path):
  workdir = str(tmp_path / 'copy')
  shutil.copytree(trained[0], workdir)
  os.makedirs(os.path.join(workdir, 'checkpoints/5.orbax-checkpoint-tmp'))
  with files.lock_folder(workdir):
    before = {path: os.stat(path).st_mtime_ns
              for path in disks.files_in(workdir)}
    with pytest.raises(OSError, match=(
        rf'copy is in use by process {os.getpid()} on .*another folder')):
      train.run(make_config('stale', **tiny.MOVING, num_steps=6), workdir,
                num_devices=1)
    assert {path: os.stat(path).st_mtime_ns
            for path in disks.files_in(workdir)} == before
    assert len(os.listdir(os.path.join(workdir, 'checkpoints'))) == 2
  train.run(make_config('stale', **tiny.MOVING), workdir, num_devices=1)
  assert not os.path.exists(os.path.join(workdir, '.lock'))


def test_another_method_is_refused_by_name(trained, make_config):
  workdir, _ = trained
  config = make_config('refresh', **tiny.MOVING, num_steps=6)
  with pytest.raises(
      ValueError, match=r'(?s)saved values.*num_steps: saved 4, now 6.*'
      r"sampler\.name: saved 'gumbel', now 'top_k'"):
    train.run(config, workdir, num_devices=1)


def test_what_changes_no_number_may_change(trained, make_config):
  workdir, results = trained
  config = make_config('stale', **tiny.MOVING)
  config.log.every, config.checkpoint.keep = 3, 2
  assert train.run(config, workdir)['measures'] == results['measures']


@pytest.mark.slow
def test_tokens_on_the_device_give_the_same_losses(
    trained, make_config, tmp_path):
  train.run(make_config('stale', **tiny.MOVING, data__tokens_on_device=True,
                        evaluation__baselines=False),
            str(tmp_path), num_devices=1)
  assert tiny.losses(str(tmp_path)) == tiny.losses(trained[0])


@pytest.mark.parametrize('chunk_size', [
    0, pytest.param(16, marks=pytest.mark.slow)])
def test_four_devices_give_the_losses_of_one(
    chunk_size, make_config, tmp_path):
  options = {'evaluation__baselines': False, 'log__every': 1}
  # One bucket: it changes no number, and compiles in half the time.
  few = {'encoding__chunk_size': chunk_size, 'encoding__buckets': (24,)}
  losses = []
  for num_devices, more in ((1, {}), (4, few)):
    workdir = str(tmp_path / str(num_devices))
    train.run(make_config('stale', **options, **more), workdir,
              num_devices=num_devices)
    losses.append(list(tiny.losses(workdir).values()))
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.slow
def test_a_ring_with_cache_gradients_is_a_matter_of_options(
    make_config, tmp_path):
  config = make_config(
      'stale', memory__kind='ring', memory__capacity=64, refresh__push=True,
      refresh__write_back=True, estimator__name='cache_gradient',
      estimator__columns='own', diagnostics__every=2, log__every=1)
  results = train.run(config, str(tmp_path), num_devices=1)
  assert 'memory=Ring(capacity=64,' in results['method']
  # A ring begins empty: nothing to embed for it, and no draw in step 1.
  assert results['meter']['target_encoder_calls_reembedding'] == 0
  lines = tiny.read_metrics(str(tmp_path))
  columns = [line['train/columns'] for line in lines
             if 'train/columns' in line]
  assert columns == [0, 1, 1, 1]
  assert all(np.isfinite(value) for line in lines for value in line.values())


@pytest.mark.slow
def test_a_prefilled_ring_starts_with_random_targets(make_config, tmp_path):
  config = make_config('negative_cache', memory__prefill=True, num_steps=2,
                       memory__replacement='fifo', log__every=1,
                       evaluation__baselines=False)
  experiment = factory.build(config, num_devices=1)
  ids = experiment.first_ids()
  assert len(set(ids)) == config.memory.capacity
  assert not np.array_equal(ids, np.arange(len(ids)))
  table = experiment.make_table(
      experiment.embed_targets(experiment.params, ids))
  np.testing.assert_array_equal(table.ids, ids)
  np.testing.assert_allclose(
      table.embeddings, experiment.embed_targets(experiment.params)[ids],
      atol=1e-5)
  with config.unlocked():
    config.seed = 1
  other = factory.build(config, num_devices=1).first_ids()
  assert not np.array_equal(ids, other)
  results = train.run(config, str(tmp_path), num_devices=1)
  assert results['meter']['target_encoder_calls_reembedding'] == len(ids)
  columns = [line['train/columns'] for line in tiny.read_metrics(str(tmp_path))
             if 'train/columns' in line]
  assert columns == [1, 1]  # draws from step 0 on


@pytest.mark.slow
def test_a_stopped_and_resumed_fifo_ring_equals_a_straight_one(
    make_config, tmp_path):
  options = {'memory__replacement': 'fifo', 'memory__prefill': True,
             'evaluation__baselines': False, 'num_steps': 6}
  config = make_config('negative_cache', **options)
  straight, stopped = str(tmp_path / 'straight'), str(tmp_path / 'stopped')
  results = train.run(config, straight, num_devices=1)
  with stop_after(3):
    assert train.run(config, stopped, num_devices=1) is None
  resumed = train.run(config, stopped, num_devices=1)
  state = final_state(stopped)
  assert int(state.table.inserted.max()) == 5
  jax.tree.map(np.testing.assert_array_equal, state, final_state(straight))
  assert (resumed['meter']['target_encoder_calls_reembedding']
          == results['meter']['target_encoder_calls_reembedding'] == 64)


@pytest.mark.slow
def test_the_meter_counts_what_a_step_computes(make_config, tmp_path):
  """By hand, but for how many of the drawn rows hold a target."""
  config = make_config(
      'stale', refresh__fraction=0.1, num_steps=1, evaluation__baselines=False,
      corrector__name='linear', corrector__num_anchors=8, log__every=1)
  live = {}
  step = cost.Cost.step

  def spy(self, capacity, negative_ids, probe_ids):
    step(self, capacity, negative_ids, probe_ids)
    live.update(
        capacity=capacity, query_flops=self.query_flops,
        target_flops=self.target_flops,
        negatives=int((jax.device_get(negative_ids) >= 0).sum()),
        probes=int((jax.device_get(probe_ids) >= 0).sum()),
        num_probes=len(probe_ids))

  with mock.patch.object(cost.Cost, 'step', spy):
    found = train.run(config, str(tmp_path), num_devices=1)['meter']
  batch, draws, dim = 16, 1, 32
  assert live['capacity'] == 256 and 0 < live['probes'] <= live['num_probes']
  assert found['query_encoder_calls'] == 2 * batch
  assert found['target_encoder_calls_in_step'] == batch + live['negatives']
  assert found['target_encoder_calls_reembedding'] == (
      tiny.NUM_TARGETS + live['probes'])
  # Four passes: gradient caching encodes twice.
  assert found['flops_in_step'] == pytest.approx(
      5 * batch * live['query_flops']
      + 4 * (batch + live['negatives']) * live['target_flops'])
  assert found['flops_reembedding'] == pytest.approx(
      (tiny.NUM_TARGETS + live['probes']) * live['target_flops'])
  # The scan, which corrects each row once, and a block of 64 rows per query
  # again; then 'all' columns.
  scored, corrected = 256 + 64, 256
  assert found['flops_scoring'] == 2 * dim * batch * (
      scored + 3 * (1 + batch + batch * draws))
  observed = batch * draws + live['num_probes'] + batch
  assert found['flops_correcting'] == pytest.approx(
      2 * dim**2 * (corrected + observed)
      + 2 * observed * 33 * (33 + 32) + 33**3 / 3 + 2 * 33**2 * 32)


@pytest.mark.slow
def test_a_first_pass_that_no_step_reads_is_no_cost_of_training(
    make_config, tmp_path):
  results = train.run(
      make_config('stale', sampler__name='uniform', num_steps=1,
                  evaluation__baselines=False), str(tmp_path), num_devices=1)
  assert results['meter']['target_encoder_calls_reembedding'] == 0
  assert results['meter']['flops_reembedding'] == 0
  assert results['meter']['seconds']['refresh'] == 0


def test_re_encoding_makes_room_before_it_makes_the_new_table(make_config):
  experiment = factory.build(make_config('refresh'), num_devices=1)
  old = experiment.make_table(None)
  meter = mock.Mock()
  with mock.patch.object(
      factory.Experiment, 'embed_targets', side_effect=AssertionError):
    found = train.reencode(
        experiment, mock.Mock(refreshed=lambda state, table, **_: table),
        meter, mock.Mock(
            table=old, step=np.int32(3), params=experiment.params))
  assert old.embeddings.is_deleted()  # overwritten, on the devices
  meter.reembedding.assert_called_once_with(tiny.NUM_TARGETS)
  jax.tree.map(
      np.testing.assert_array_equal, found, experiment.make_table(
          experiment.embed_targets(experiment.params), step=3))


@pytest.mark.parametrize('name, overrides, message', [
    ('stale', {'data.path': ''}, 'needs --config.data.path=DIR'),
    ('stale', {'data.path': '/nowhere'}, '/nowhere'),
    ('stale', {'data.source': 'bier'},
     r"data.source='bier' is not one of \['beir', 'dpr', .*'wordnet'\]"),
    ('stale', {'data.dev_split': 'validation'},
     r"dev_split='validation' is not a split .* \['dev', 'test', 'train'\]"),
    ('stale', {'batch_size': '15', 'num_devices': '2'},
     'batch_size=15 must be a multiple of the 2 devices'),
    ('stale', {'sampler.name': 'gumble'}, "sampler.name='gumble' is not one"),
    ('stale', {'memory.kind': 'ring', 'memory.capacity': '32'},
     'set refresh.push=True'),
    ('stale', {'memory.kind': 'ring', 'refresh.push': 'true'},
     'memory.capacity=0 must be the number of targets'),
    ('stale', {'memory.kind': 'ring', 'refresh.push': 'true',
               'memory.capacity': '8'},
     r'memory.capacity=8 rows must hold .* 16 \(--config.batch_size\)'),
    ('negative_cache', {'memory.replacement': 'lifo'},
     r"memory.replacement='lifo' is not one of \['lru', 'fifo'\]"),
    ('negative_cache', {'memory.prefill': 'true', 'memory.capacity': '121'},
     'memory.capacity=121 rows cannot be filled with 120 targets'),
    ('negative_cache', {'sampler.name': 'bucketed', 'sampler.shortlist': '0'},
     'sampler.shortlist=0 is smaller than'),
    ('in_batch', {'sampler.name': 'uniform', 'sampler.num_negatives': '1'},
     "memory.kind='none' remembers nothing"),
    ('stale', {'model.pooling': 'sum'}, "pooling='sum' must be one of"),
    ('stale', {'corrector.name': 'mpl'}, "corrector.name='mpl' is not one of"),
    ('corrector', {'corrector.hidden': '0'}, 'corrector.hidden=0 must be'),
    ('in_batch', {'corrector.name': 'linear'}, 'nothing to correct'),
    ('corrector', {'corrector.name': 'nystrom', 'corrector.num_anchors': '8',
                   'corrector.num_landmarks': '121'},
     'num_landmarks=121 exceeds the 120 rows'),
    ('corrector', {'model.normalize': 'false'},
     'set --config.corrector.keep_norm=False'),
    ('stale', {'profile.num_steps': '2', 'profile.start': '0'},
     'profile.start=0 must be at least 1'),
    ('stale', {'data.dev_split': '', 'evaluation.every': '2'},
     'evaluation.every looks at the dev queries'),
    ('stale', {'sampler.name': 'uniform', 'sampler.max_share': '0.9'},
     "leave them out with 'uniform'"),
    ('stale', {'sampler.max_share': '1.5'}, 'max_share=1.5 must lie in'),
    ('adore', {'model.tied': 'true'}, 'set --config.model.tied=False'),
    ('direct_gradient', {'memory.dtype': 'bfloat16'},
     'set --config.memory.dtype=float32'),
    ('stale', {'encoding.batch_tokens': '10'}, 'batch_tokens=10 must be'),
    ('stale', {'data.positive': 'last'}, "data.positive='last' is not one of"),
])
def test_a_wrong_option_is_named(
    name, overrides, message, beir, cache, tmp_path):
  overrides = {'data.source': 'beir', 'data.path': beir, 'data.cache': cache,
               'data.num_targets': '0', **overrides}
  num_devices = overrides.pop('num_devices', '1')
  with pytest.raises(SystemExit, match=f'error: .*{message}'):
    run_main(f'--config=configs/{name}.py:tiny', f'--workdir={tmp_path}',
             f'--num_devices={num_devices}',
             *(f'--config.{key}={value}' for key, value in overrides.items()))


@pytest.mark.parametrize('argument, message', [
    ('--config.sampler.nmae=uniform', 'Did you mean "name"'),
    ('--config.sample.name=uniform', 'sample'),
    ('--config.foo=1', 'foo')])
def test_a_misspelt_option_is_refused(argument, message, tmp_path):
  with pytest.raises(
      SystemExit, match=f'(?s)no such --config .*{message}'):
    run_main('--config=configs/stale.py:tiny', f'--workdir={tmp_path}',
             argument)


def test_a_missing_config_file_is_named(tmp_path):
  with pytest.raises(SystemExit, match='configs/nowhere.py'):
    run_main('--config=configs/nowhere.py', f'--workdir={tmp_path}')


@pytest.mark.slow
def test_a_run_without_evaluation_splits_trains(
    beir, cache, tmp_path, capsys):
  run_main('--config=configs/in_batch.py:tiny', f'--workdir={tmp_path}',
           '--num_devices=1', '--config.data.source=beir',
           f'--config.data.path={beir}', f'--config.data.cache={cache}',
           '--config.data.num_targets=0', '--config.data.dev_split=',
           '--config.data.test_split=')
  printed = capsys.readouterr().out
  assert 'what it cost' in printed and 'Done in' in printed
  with open(tmp_path / 'results.json', encoding='utf-8') as f:
    assert json.load(f)['measures'] == {}


def test_other_options_of_evaluation_measure_again(
    trained, make_config, tmp_path):
  workdir = shutil.copytree(trained[0], str(tmp_path / 'run'))
  config = make_config('stale', **tiny.MOVING, evaluation__depth=5)
  again = train.run(config, workdir, num_devices=1)
  assert again['measures']['test']['R@1'] == (
      trained[1]['measures']['test']['R@1'])
  with open(os.path.join(workdir, 'test.run'), encoding='utf-8') as f:
    assert len(f.readlines()) == tiny.NUM_QUERIES['test'] * 5


def test_a_stopped_run_has_the_exit_code_of_an_interrupt():
  values = flags.FlagValues()
  train_script.define_flags(values)
  values(['train', '--config=configs/stale.py', '--workdir=nowhere'])
  with mock.patch.object(train, 'run', return_value=None):
    with pytest.raises(SystemExit, match='130'):
      train_script.main(['train'], values)


def test_bm25_finds_one_more_where_self_matches_are_dropped():
  config = ml_collections.ConfigDict({
      'data': {'dev_split': '', 'test_split': 'test'},
      'evaluation': {'depth': 1, 'drop_self_matches': True}})
  # The query is target 'a', which it matches best; its answer comes second.
  dataset = data.Collection(
      name='', corpus_ids=['a', 'b'], query_ids=['a'],
      corpus_texts=['red cat', 'red dog'], query_texts=['red cat'],
      qrels={'test': data.Qrels.from_triples([[0, 1, 1]])})
  found = evaluate.of_bm25(mock.Mock(
      config=config, dataset=dataset, own_sets=None))
  assert found['test']['R@1'] == 1
