"""Runs that learn from answers, from the data to results.json."""

import os

import jax
import numpy as np
import pytest

from configs import qa
from experiments.benchmarks import answers
from retrieval_jax import trained as trained_lib
from retrieval_jax.factory import readers
from retrieval_jax.factory import run_folder
from retrieval_jax.jobs import diagnose
from retrieval_jax.jobs import train
from tests.experiments import tiny
from tests.experiments import train_test


@pytest.fixture(scope='module')
def questions(tmp_path_factory):
  """Returns the folder of a tiny set of questions with answers."""
  return tiny.write_questions(str(tmp_path_factory.mktemp('data') / 'asked'))


@pytest.fixture(scope='module')
def make_qa(questions, cache):
  """Returns variant, **overrides -> tiny config on it."""
  return lambda variant='tiny', **overrides: tiny.config(
      f'qa:{variant}', questions, cache, **overrides)


@pytest.mark.parametrize('name', [
    pytest.param(f'{kind}_tiny', marks=[] if kind == 'stale' else (
        pytest.mark.slow)) for kind in qa.KINDS
    if kind not in ('', 'corrector')])
def test_every_variant_trains_and_evaluates(name, make_qa, tmp_path):
  workdir = str(tmp_path / name)
  results = train.run(make_qa(name), workdir, num_devices=1)
  assert list(results['measures']) == ['dev']
  assert results['measures']['dev']['Answer@20'] >= 0
  meter = results['meter']
  config = results['config']
  pairs = (results['steps'] * config['batch_size']
           * config['sampler']['num_negatives'])
  assert meter['reader_calls'] == pairs
  assert meter['flops_reading'] > 0
  assert meter['seconds']['rows'] > 0
  # No positive is encoded; a retriever that stays as it is encodes nothing.
  assert meter['target_encoder_calls_in_step'] == (
      0 if name == 'frozen_tiny' else pairs)
  losses = tiny.losses(workdir)
  assert list(losses) == [2, 4]
  assert np.isfinite(list(losses.values())).all()
  last = tiny.read_metrics(workdir)
  assert any(line.get('train/answerable', 0) > 0.1 for line in last)
  experiment = trained_lib.open(workdir).experiment
  moved = jax.tree.map(
      lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max() > 0,
      trained_lib.open(workdir).params, first_params(make_qa(name)))
  assert any(jax.tree.leaves(moved['reader']))
  assert any(jax.tree.leaves(moved['tower'])) == (name != 'frozen_tiny')
  assert experiment.method.reader == experiment.reader.reader


def test_an_arm_is_the_variant_of_its_name():
  for overrides in qa.arms():
    name = overrides.pop('name').removesuffix(f'-seed{overrides["seed"]}')
    config, arm = qa.get_config(name), qa.get_config()
    config.seed = overrides['seed']
    arm.update_from_flattened_dict(overrides)
    assert arm.to_dict() == config.to_dict()


def test_other_variants_are_refused():
  for variant in ('_tiny', 'tiny_corrector', 'big'):
    with pytest.raises(ValueError, match="':emdr2_tiny'"):
      qa.get_config(variant)


def first_params(config):
  return train.factory.build(config, num_devices=1).params


@pytest.mark.slow
def test_goes_on_where_it_was_interrupted(make_qa, tmp_path):
  straight, workdir = str(tmp_path / 'straight'), str(tmp_path / 'resumed')
  options = dict(refresh__write_back=True, log__every=1)
  results = train.run(
      make_qa('write_back_tiny', **options), straight, num_devices=1)
  with train_test.stop_after(2):
    assert train.run(make_qa('write_back_tiny', **options), workdir,
                     num_devices=1) is None
  resumed = train.run(
      make_qa('write_back_tiny', **options), workdir, num_devices=1)
  assert tiny.losses(workdir) == tiny.losses(straight)
  assert resumed['measures'] == results['measures']
  assert resumed['meter']['reader_calls'] == results['meter']['reader_calls']
  jax.tree.map(np.testing.assert_array_equal,
               trained_lib.open(workdir).params,
               trained_lib.open(straight).params)


@pytest.mark.parametrize('variant, others', [
    ('tiny', {'two': 2, 'sharded': 4}), ('fused_tiny', {'sharded': 4})])
@pytest.mark.slow
def test_devices_do_not_change_it(variant, others, make_qa, tmp_path):
  losses = {}
  for name, devices in ({'one': 1} | others).items():
    workdir = str(tmp_path / name)
    # Two steps: what Adam makes of a gradient near 0 is not to be compared.
    train.run(make_qa(
        variant, log__every=1, num_steps=2, evaluation__baselines=False,
        sharding__min_size=64 if name == 'sharded' else None), workdir,
              num_devices=devices)
    losses[name] = list(tiny.losses(workdir).values())
  for name in others:
    np.testing.assert_allclose(losses[name], losses['one'], rtol=1e-5)


@pytest.mark.slow
def test_retriever_and_reader_learn(make_qa, tmp_path):
  """The answer is where it is, which both have to find out from answers."""
  config = make_qa(
      'refreshed_tiny', num_steps=150, log__every=10,
      checkpoint__every=150, refresh__reencode_every=10,
      evaluation__baselines=True,
      # Most of the highest passages have an answer from the first step on.
      sampler__name='gumbel')
  results = train.run(config, str(tmp_path), num_devices=1)
  nll = list(tiny.losses(str(tmp_path)).values())
  assert nll[-1] < 0.5 * nll[0]
  answerable = [line['train/answerable'] for line
                in tiny.read_metrics(str(tmp_path))
                if 'train/answerable' in line]
  assert np.mean(answerable[-3:]) > np.mean(answerable[:3]) + 0.1
  retriever = trained_lib.open(str(tmp_path))
  experiment, dataset = retriever.experiment, retriever.dataset
  answers = dataset.answers['train']
  rows = answers.query_rows[:32]
  queries = experiment.embed_queries(retriever.params, rows)
  scores = queries @ experiment.embed_targets(retriever.params).T
  ids = np.argsort(-scores, axis=1)[:, :5]
  read = experiment.read(
      retriever.params, rows, ids, np.take_along_axis(scores, ids, axis=1))
  right = [reading.answer in answers.of(row)[0].lower()
           for reading, row in zip(read, rows)]
  assert np.mean(right) > 0.3, np.mean(right)
  for reading, of_question in zip(read, ids):
    np.testing.assert_allclose(reading.prior.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(reading.posterior.sum(), 1, rtol=1e-5)
    for span, text, row in zip(reading.spans, reading.texts, of_question):
      assert dataset.corpus_texts[int(row)][slice(*span)] == text
  assert results['measures']['dev']['Answer@5'] > (
      results['untrained']['dev']['Answer@5'])


@pytest.mark.parametrize('variant', ['stale_tiny', 'fused_tiny'])
@pytest.mark.slow
def test_memory_of_a_step_is_that_of_a_chunk_of_pairs(variant, make_qa):
  """Four times the pairs take about as much, not four times."""
  experiment = train.factory.build(make_qa(
      variant, sampler__num_negatives=8, encoding__chunk_size=64,
      corrector__name='identity'), num_devices=1)
  train_step, _ = experiment.make_step()
  state = trained_lib.abstract_state(experiment, train_step)
  few, many = (
      answers.temporary_bytes(answers.compiled(
          experiment, train_step, state, num_pairs, ['update']))['update']
      for num_pairs in (256, 1024))
  assert many < 1.15 * few, (few, many)


def test_a_run_without_a_reader_cannot_answer(trained):
  retriever = trained_lib.open(trained[0])
  with pytest.raises(ValueError, match='has no reader'):
    retriever.experiment.read(
        retriever.params, np.array([0]), np.array([[0]]), np.array([[1.]]))


@pytest.mark.slow
def test_the_memory_is_compared_without_positives(make_qa, tmp_path):
  """No query excludes a target, and gradients are those of the negatives."""
  workdir = str(tmp_path)
  train.run(make_qa('tiny', diagnostics__every=2, log__every=2,
                    evaluation__baselines=False), workdir, num_devices=1)
  logged = {line['step']: line for line in tiny.read_metrics(workdir)
            if 'diagnostics/kl' in line}
  assert sorted(logged) == [2, 4]
  experiment, state = trained_lib.load_state(workdir, num_devices=1)
  found = diagnose.of_state(experiment, state)['this run']
  assert found['kl'] == pytest.approx(logged[4]['diagnostics/kl'], rel=1e-3)
  assert found['kl'] > 0
  dataset = experiment.dataset.by_text
  rows = dataset.answers['dev'].query_rows
  assert not len(dataset.qrels['dev'].grades)
  queries = experiment.embed_queries(state.params, rows)
  table = state.table
  moved = np.asarray(experiment.method.corrector.apply(state.corrector, table))
  ids = np.asarray(table.ids)
  order = np.argsort(ids[ids >= 0])
  hat = moved[ids >= 0][order]
  fresh = experiment.embed_targets(state.params, np.sort(ids[ids >= 0]))
  scale = float(experiment.model.scale_of(state.params))
  log_p, log_q = (jax.nn.log_softmax(scale * queries @ rows.T)
                  for rows in (fresh, hat))
  assert found['kl'] == pytest.approx(
      float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()), rel=1e-2)
  exact, estimated = (scale * np.exp(p) @ fresh for p in (log_p, log_q))
  assert found['gradient_bias'] == pytest.approx(
      np.linalg.norm(estimated - exact, axis=1).mean(), rel=1e-2)


def test_an_opened_reader_computes_as_the_options_say(
    make_qa, tmp_path):
  """As encoders do: a run of another machine may have had other numbers."""
  for variant in ('tiny', 'seq2seq_tiny'):
    config = make_qa(variant)
    made = train.factory.build(config).reader
    run_folder.write_reader(str(tmp_path), *made[:2])
    config.model.dtype = 'bfloat16'
    opened = readers.make(config, None, str(tmp_path)).reader
    assert opened != made.reader
    assert opened == readers.make(
        config, lambda made=made: made.tokenizer, None).reader


def test_options_that_no_reader_reads_give_a_warning(make_qa):
  with pytest.warns(UserWarning, match=r'reader\.answer_length=7 is not read'):
    train.factory.build(make_qa('tiny', reader__answer_length=7))
  with pytest.warns(UserWarning, match=r'reader\.max_width=7 is not read'):
    train.factory.build(make_qa('seq2seq_tiny', reader__max_width=7))
  with pytest.warns(UserWarning, match=r"data\.positive=first is not read"):
    train.factory.build(make_qa('tiny', data__positive='first'))


def test_what_cannot_work_is_refused(make_qa, tmp_path):
  workdir = str(tmp_path)
  for overrides, message in (
      (dict(reader__name='none'), "needs the likelihoods of a reader"),
      (dict(reader__name='generative'), "reader.name='generative' is not one"),
      (dict(objective__name='contrastive'), 'has no judgements'),
      (dict(refresh__push=True), 'without a positive'),
      (dict(reader__fused=True, reader__name='seq2seq'), 'has it read each'),
      (dict(reader__max_width=40), 'max_width=40 must lie in')):
    with pytest.raises(ValueError, match=message):
      train.run(make_qa('tiny', **overrides), workdir, num_devices=1)
  assert not os.path.exists(os.path.join(workdir, 'results.json'))
