"""Encoders that come from folders, and folders that come from runs."""

import importlib.util
import os
import warnings

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from experiments import export
import retrieval_jax
from retrieval_jax import factory
from retrieval_jax import quantisation
from retrieval_jax import trained
from retrieval_jax.jobs import model_card
from retrieval_jax.jobs import train
from retrieval_jax.models import sentence_modules
from tests.experiments import scripts_test
from tests.experiments import tiny

FAMILIES = os.path.join(
    os.path.dirname(os.path.dirname(__file__)), 'models', 'families')


def family(name):
  return os.path.join(FAMILIES, name)


@pytest.fixture(name='runs', scope='module')
def fixture_runs(make_config, tmp_path_factory):
  """Returns name -> workdir of finished runs, and of their exports."""
  made = {}
  for name, options in (
      ('tied', dict(model__pretrained=family('roberta'), model__scale=7.,
                    model__learn_scale=True)),
      ('two', dict(model__tied=False, model__projection=12,
                   model__pooling='cls', model__target_prompt='kabel ',
                   evaluation__precisions=('int8',)))):
    workdir = str(tmp_path_factory.mktemp('runs') / name)
    config = make_config(
        'stale', num_steps=2, evaluation__baselines=False, **options)
    train.run(config, workdir, num_devices=1)
    out = str(tmp_path_factory.mktemp('out') / name)
    scripts_test.call(
        export, f'--workdir={workdir}', f'--out={out}', '--embeddings',
        *(['--precisions=int8,binary'] if name == 'two' else []))
    made[name] = workdir, out
  return made


def build(make_config, **options):
  return factory.build(make_config('stale', **options), num_devices=1)


def test_a_folder_decides_what_is_left_open(make_config):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    experiment = build(
        make_config, model__pretrained=family('distilbert'),
        data__target_length=0)
  assert experiment.config.data.target_length == 48
  model = experiment.model
  assert (model.pooling, model.normalize, model.dim) == ('cls', False, 12)
  assert (model.projection_bias, model.projection_activation) == (True, 'tanh')
  assert experiment.tokenizer.pad_token == '[PAD]'
  wanted = sentence_modules.read(family('distilbert')).dense
  np.testing.assert_array_equal(
      experiment.params['tower']['projection']['kernel'], wanted.kernel)


def test_prompts_of_the_folder_stand_before_texts_and_queries(make_config):
  experiment = build(make_config, model__pretrained=family('roberta'))
  plain, other = (
      build(make_config, model__pretrained=family('roberta'),
            model__query_prompt=prompt) for prompt in ('', 'other: '))
  encode = lambda text: experiment.tokenizer.encode_batch([text], 24)[0][0]
  for tokens, prompt, texts in (
      (experiment.query_tokens, 'query: ', experiment.dataset.query_texts),
      (experiment.target_tokens, 'passage: ', experiment.dataset.corpus_texts),
      (plain.query_tokens, '', experiment.dataset.query_texts),
      (other.query_tokens, 'other: ', experiment.dataset.query_texts)):
    np.testing.assert_array_equal(tokens[3], encode(prompt + texts[3]))
  np.testing.assert_array_equal(
      experiment.tokenize_queries(['kabel'])[0], [encode('query: kabel')])


@pytest.mark.slow
def test_an_explicit_option_wins_with_a_warning(make_config):
  with pytest.warns(UserWarning) as given:
    experiment = build(
        make_config, model__pretrained=family('t5'), model__projection=5,
        model__pooling='max', model__normalize=False)
  model = experiment.model
  assert (model.pooling, model.normalize, model.dim) == ('max', False, 5)
  assert experiment.params['tower']['projection']['kernel'].shape == (32, 5)
  text = ' '.join(str(w.message) for w in given)
  for part in ("pooling='max' takes the place of 'mean'",
               'normalize=False takes the place of True',
               'projection=5, a new layer'):
    assert part in text


@pytest.mark.parametrize('options, message', [
    ({'tokenizer__path': family('bert')}, 'pads with token 0, but .* with 1'),
    ({'model__scale': 0.}, 'scale=0.0 leaves it .* does not say'),
    ({'data__query_length': 99}, 'query_length=99 exceeds the 62 positions'),
    ({'model__num_layers': 9}, 'num_layers=9 must lie'),
])
def test_what_does_not_fit_the_folder_is_named(make_config, options, message):
  with pytest.raises(ValueError, match=message):
    build(make_config, model__pretrained=family('roberta'), **options)


@pytest.mark.parametrize('name', ['tied', 'two'])
@pytest.mark.slow
def test_an_export_starts_a_run_with_the_same_bits(name, runs, make_config):
  workdir, out = runs[name]
  retriever = trained.open(workdir, num_devices=1)
  experiment, params = retriever.experiment, retriever.params
  again = build(
      make_config, model__pretrained=out, model__scale=0.,
      model__tied=experiment.model.tied,
      model__learn_scale=experiment.model.learn_scale)
  np.testing.assert_array_equal(again.embed_targets(again.params),
                                experiment.embed_targets(params))
  for tower in experiment.model.tower_names:
    found = again.params[tower]
    if name == 'two':  # From scratch there are no token types; BERT has some.
      assert not found['transformer']['embeddings'].pop('types').any()
    jax.tree.map(np.testing.assert_array_equal, found, params[tower])
  np.testing.assert_allclose(again.model.scale_of(again.params),
                             experiment.model.scale_of(params), rtol=1e-6)
  for ours, theirs in ((again.query_tokens, experiment.query_tokens),
                       (again.target_tokens, experiment.target_tokens)):
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
  if name == 'two':
    with pytest.raises(ValueError, match='two towers; set model.tied=False'):
      build(make_config, model__pretrained=out, model__tied=True)


@pytest.mark.slow
def test_a_learned_temperature_survives(runs):
  workdir, out = runs['tied']
  retriever = trained.open(workdir, num_devices=1)
  experiment, params = retriever.experiment, retriever.params
  scale = float(experiment.model.scale_of(params))
  assert scale != 7
  assert sentence_modules.read(out).scale == pytest.approx(scale, rel=1e-6)


def test_the_card_states_data_measures_cost_and_config(runs):
  workdir, out = runs['tied']
  with open(os.path.join(out, 'README.md'), encoding='utf-8') as f:
    card = f.read()
  results = scripts_test.read_json(workdir, 'results.json')
  for part in (
      '120 passages, 88 queries', '12 judged in `test`', 'roberta, 2 layers',
      f"{results['measures']['test']['RR@10']:.4f}", "'query: ' before queries",
      f"| {results['meter']['query_encoder_calls']} |", '(learned)',
      '"num_negatives": 1', 'step 2 of 2'):
    assert part in card
  assert os.path.dirname(workdir) not in card


def test_the_card_has_a_row_per_form(runs):
  workdir, out = runs['two']
  with open(os.path.join(out, 'README.md'), encoding='utf-8') as f:
    lines = f.read().splitlines()
  of_test = scripts_test.read_json(workdir, 'results.json')['measures']['test']
  start = lines.index(next(x for x in lines if x.startswith('| `test`, whole')))
  names = [name for name in of_test if '/' not in name]
  for line, label, form in (
      (lines[start + 2], '**this model**', ''),
      (lines[start + 3], '**this model**, int8', '/int8')):
    assert line == f'| {label} | ' + ' | '.join(
        f'{of_test[name + form]:.4f}' for name in names) + ' |'


def test_embeddings_come_as_npy_safetensors_and_index(runs):
  folder = os.path.join(runs['two'][1], 'embeddings')
  both = safetensors_numpy.load_file(
      os.path.join(folder, 'embeddings.safetensors'))
  for name, value in both.items():
    np.testing.assert_array_equal(
        value, np.load(os.path.join(folder, f'{name}.npy')))
  assert both['targets'].shape == (tiny.NUM_TARGETS, 12)
  path = os.path.join(folder, 'targets.faiss')
  if not importlib.util.find_spec('faiss'):
    assert not os.path.exists(path)
    return
  import faiss
  scores, rows = faiss.read_index(path).search(both['queries'], 3)
  exact = both['queries'] @ both['targets'].T
  np.testing.assert_array_equal(rows, np.argsort(-exact)[:, :3])
  np.testing.assert_allclose(scores, -np.sort(-exact)[:, :3], atol=1e-6)


def test_quantised_targets_come_as_safetensors_and_index(runs):
  folder = os.path.join(runs['two'][1], 'embeddings')
  load = lambda name: safetensors_numpy.load_file(
      os.path.join(folder, f'embeddings{name}.safetensors'))
  both, int8, binary = load(''), load('_int8'), load('_binary')
  targets, queries = both['targets'], both['queries']
  np.testing.assert_array_equal(
      int8['ranges'], [targets.min(axis=0), targets.max(axis=0)])
  np.testing.assert_array_equal(int8['targets'], quantisation.to_int8(
      targets, int8['ranges']))
  width = quantisation.steps(int8['ranges'])
  stored = quantisation.from_int8(int8['targets'], int8['ranges'])
  assert 0 < np.abs(targets - stored).max() <= 1.001 * width.max()
  np.testing.assert_array_equal(
      binary['targets'], np.packbits(targets > 0, axis=1))
  assert not os.path.exists(os.path.join(
      runs['tied'][1], 'embeddings', 'embeddings_int8.safetensors'))
  faiss = pytest.importorskip('faiss')
  path = lambda name: os.path.join(folder, f'targets_{name}.faiss')
  index = faiss.read_index(path('int8'))
  decoded = index.reconstruct_n(0, index.ntotal)
  assert index.metric_type == faiss.METRIC_INNER_PRODUCT
  np.testing.assert_array_less(
      np.abs(decoded - stored - width / 2),
      np.broadcast_to(1.001 * width, stored.shape))
  found, _ = faiss.read_index_binary(path('binary')).search(
      quantisation.to_binary(queries), 3)
  differ = (queries[:, None] > 0) != (targets[None] > 0)
  np.testing.assert_array_equal(
      found, np.sort(differ.sum(axis=2), axis=1)[:, :3])


def test_the_card_serves_quantised_targets(runs):
  cards = {}
  for name, (_, out) in runs.items():
    with open(os.path.join(out, 'README.md'), encoding='utf-8') as f:
      cards[name] = f.read()
  assert 'Quantised' not in cards['tied']
  assert '`embeddings/embeddings_int8.safetensors` | [N, 12] int8' in (
      cards['two'])
  assert '[N, 2] uint8, the signs (`ubinary`) | 2 |' in cards['two']
  [code] = [part for part in cards['two'].split('```python\n')
            if 'load_file' in part]
  of_int8 = code[:code.index('# Signs')].replace("'embeddings/", "FOLDER + '/")
  folder = os.path.join(runs['two'][1], 'embeddings')
  queries = np.load(os.path.join(folder, 'queries.npy'))
  names = {'FOLDER': folder, 'queries': queries}
  exec(of_int8, names)
  targets = np.load(os.path.join(folder, 'targets.npy'))
  ranges = quantisation.ranges(targets)
  served = names['scores'] + queries @ (
      ranges[0] + 128 * quantisation.steps(ranges))[:, None]
  np.testing.assert_allclose(served, queries @ quantisation.from_int8(
      quantisation.to_int8(targets, ranges), ranges).T, atol=1e-5)


@pytest.mark.parametrize('flags, message', [
    (['--precisions=int8'], '--precisions=int8 is of embeddings, .* add it'),
    (['--embeddings', '--precisions=int4'],
     r"--precisions=\['int4'\]: expected names among \('int8', 'binary'\)")])
def test_other_precisions_are_refused(flags, message, tmp_path):
  with pytest.raises(SystemExit, match=message):
    scripts_test.call(export, '--workdir=none', f'--out={tmp_path}/out', *flags)


def test_nothing_is_overwritten_and_nothing_half_written(
    runs, tmp_path, monkeypatch):
  with pytest.raises(SystemExit, match='two exists; name a new folder'):
    scripts_test.call(export, f'--workdir={runs["two"][0]}',
                      f'--out={runs["two"][1]}')

  def fail(*args, **options):
    raise OSError('disk full')
  monkeypatch.setattr(model_card, 'write', fail)
  with pytest.raises(OSError, match='disk full'):
    retrieval_jax.export(str(tmp_path / 'out'), runs['two'][0])
  assert not os.listdir(tmp_path)


@pytest.mark.skipif(
    not importlib.util.find_spec('sentence_transformers'),
    reason='sentence-transformers is not installed')
@pytest.mark.parametrize('name', ['tied', 'two'])
def test_sentence_transformers_gives_the_same_embeddings(name, runs):
  import sentence_transformers
  workdir, out = runs[name]
  retriever = trained.open(workdir, num_devices=1)
  experiment, params = retriever.experiment, retriever.params
  model = sentence_transformers.SentenceTransformer(
      out, device='cpu', local_files_only=True)
  queries, targets = (
      list(texts) for texts in (experiment.dataset.query_texts,
                                experiment.dataset.corpus_texts))
  ours = (experiment.embed_queries(params), experiment.embed_targets(params))
  theirs = (model.encode_query(queries), model.encode_document(targets))
  worst = max(np.abs(a - b).max() for a, b in zip(ours, theirs))
  print(f'{name}: largest difference {worst:.1e}')
  assert worst < 1e-5
  if name == 'two':
    for tower, encode, wanted in (('query', 'encode_query', ours[0]),
                                  ('target', 'encode_document', ours[1])):
      alone = sentence_transformers.SentenceTransformer(
          os.path.join(out, tower), device='cpu', local_files_only=True)
      texts = queries if tower == 'query' else targets
      np.testing.assert_allclose(
          getattr(alone, encode)(texts), wanted, atol=1e-5)
