"""Padding is what follows a text, not a token: Qwen's pads with its end."""

import dataclasses

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from retrieval_jax import factory
from retrieval_jax.jobs import train
from tests.experiments import tiny

END = '<|endoftext|>'
UNUSED = 2


@pytest.fixture(scope='module', name='build')
def make_build(make_config, tmp_path_factory):
  """Returns **overrides -> Experiment; each text ends with what pads."""
  encoder = tokenizers.Tokenizer(models.WordLevel(
      {'[UNK]': 0, END: 1, 'unused': UNUSED} | {
          x: i for i, x in enumerate('abdefgklmn', UNUSED + 1)}, '[UNK]'))
  # So that texts differ in length.
  encoder.pre_tokenizer = pre_tokenizers.Split(
      tokenizers.Regex('[abdefgklmn]'), 'isolated')
  encoder.post_processor = processors.TemplateProcessing(
      single=f'$A {END}', special_tokens=[(END, 1)])
  encoder.enable_padding(direction='left', pad_id=1, pad_token=END)
  path = str(tmp_path_factory.mktemp('ends') / 'tokenizer.json')
  encoder.save(path)
  return lambda **options: factory.build(make_config('in_batch', **({
      'tokenizer__path': path, 'data__query_length': 40,
      'data__target_length': 40, 'encoding__chunk_size': 4,
      'encoding__buckets': (12, 20, 28), 'evaluation__baselines': False,
      'data__dev_split': '', 'data__test_split': '', 'log__every': 1,
      'num_steps': 1} | options)), num_devices=1)


def alone(experiment, store, rows):
  """Returns embeddings of texts, each without padding, which is no token."""
  model = dataclasses.replace(experiment.model, config=dataclasses.replace(
      experiment.model.config, pad_id=UNUSED))
  encode = jax.jit(model.encode_targets)
  found = []
  for row in rows:
    tokens = store.tokens[row][:store.lengths[row]].astype(np.int32)
    assert tokens[-1] == 1 == experiment.model.config.pad_id
    assert UNUSED not in tokens
    found.append(encode(experiment.params, tokens[None])[0])
  return np.stack(found)


@pytest.mark.parametrize('pooling', ['lasttoken', 'mean'])
@pytest.mark.slow
def test_the_last_token_counts_when_texts_are_embedded(build, pooling):
  experiment = build(model__pooling=pooling)
  assert experiment.tokenizer.pad_token == END
  store, rows = experiment.target_tokens, np.arange(6)
  assert len(set(store.lengths[rows])) > 1  # so that some are padded
  wanted = alone(experiment, store, rows)
  np.testing.assert_allclose(
      experiment.embed_targets(experiment.params, rows), wanted, atol=1e-5)
  np.testing.assert_allclose(
      experiment.embed_texts(
          experiment.params,
          [experiment.dataset.corpus_texts[int(row)] for row in rows]),
      wanted, atol=1e-5)


@pytest.mark.parametrize('pooling, on_device', [
    ('lasttoken', False), ('mean', True)])
@pytest.mark.slow
def test_the_last_token_counts_in_the_loss(build, pooling, on_device, tmp_path):
  """The loss of the first step is that of texts encoded one by one."""
  experiment = build(
      model__pooling=pooling, data__tokens_on_device=on_device,
      memory__kind='corpus', sampler__name='uniform',
      sampler__num_negatives=2, estimator__columns='own',
      estimator__name='truncated_softmax')
  batch = experiment.make_batches().batch(0)
  step, _ = experiment.make_step()
  ids = experiment.first_ids()
  state = step.init_state(experiment.params, experiment.make_table(
      experiment.embed_targets(experiment.params, ids)))
  train.run(experiment.config, str(tmp_path), num_devices=1)
  draws = jax.device_get(step.propose(state, batch)).proposal
  queries = alone(experiment, experiment.query_tokens, batch.query_ids)
  of = lambda ids: alone(experiment, experiment.target_tokens, ids)
  positive = np.sum(queries * of(batch.target_ids), axis=1)
  negative = np.einsum('bd,bkd->bk', queries, of(
      np.maximum(draws.ids, 0).reshape(-1)).reshape(*draws.ids.shape, -1))
  logits = experiment.model.scale * np.concatenate(
      [positive[:, None], np.where(draws.mask, negative, -np.inf)], axis=1)
  losses = np.log(np.exp(logits).sum(axis=1)) - logits[:, 0]
  [found] = tiny.losses(str(tmp_path)).values()
  np.testing.assert_allclose(found, losses.mean(), rtol=1e-4)
