"""The README.md of an exported model: what it is and how it was made."""

from collections.abc import Iterator, Mapping, Sequence
import json
from typing import Any

from retrieval_jax import trained
from retrieval_jax.evaluation import report

_CALLS = {
    'query_encoder_calls': 'query-encoder calls',
    'target_encoder_calls_in_step': 'target-encoder calls in the steps',
    'target_encoder_calls_reembedding': 'targets re-embedded',
    'flops_in_step': 'FLOPs in the steps',
    'flops_reembedding': 'FLOPs of re-embedding',
    'flops_scoring': 'FLOPs of scoring',
    'flops_correcting': 'FLOPs of correcting',
    'flops_indexing': 'FLOPs of indexing',
    'reader_calls': 'passages read in the steps',
    'flops_reading': 'FLOPs of reading',
    'table_bytes': 'bytes of the table',
}


def write(retriever: trained.TrainedRetriever,
          results: Mapping[str, Any] | None,
          precisions: Sequence[str] = ()) -> str:
  """Returns the Markdown text.

  Args:
    retriever: trained.TrainedRetriever.
    results: content of results.json, None for a run without.
    precisions: in which the folder has the targets, besides floats.
  """
  experiment, step = retriever.experiment, retriever.step
  model, config = experiment.model, experiment.config
  scale = float(model.scale_of(retriever.params))
  towers = ('one tower for both' if model.tied else
            'separate towers in `query/` and `target/`, chosen by a router')
  lines = [
      '---', 'library_name: sentence-transformers',
      'pipeline_tag: sentence-similarity', 'tags:', '- sentence-transformers',
      '- feature-extraction', '- dense-retrieval', '---', '',
      f'# Dense retriever trained on {experiment.dataset.name}', '',
      f'Maps queries and passages to {model.dim} dimensions, '
      f'{"of length one" if model.normalize else "of any length"}; a passage '
      'is scored by its dot product with the query. Trained with '
      'retrieval_jax.', '',
      '```python', 'from sentence_transformers import SentenceTransformer', '',
      'model = SentenceTransformer(FOLDER)',
      "queries = model.encode_query(['...'])",
      "passages = model.encode_document(['...'])",
      'scores = queries @ passages.T', '```', '',
      f'- encoder: {model.config.model_type}, {model.config.num_layers} layers '
      f'of width {model.config.hidden_size}, {model.pooling} pooling, {towers}',
      f'- started from: {config.model.pretrained or "scratch"}',
      f'- prompts: {config.model.query_prompt!r} before queries, '
      f'{config.model.target_prompt!r} before passages',
      f'- inverse temperature: {scale:.6g}'
      f'{" (learned)" if model.learn_scale else ""}',
      f'- trained on queries of {config.data.query_length} tokens and passages '
      f'of {config.data.target_length}, special tokens and prompts included'
      + ('; this folder cuts both at the larger number'
         if model.tied else ''),
  ]
  if experiment.method.targets.source != 'encoder':
    lines.append(
        '- its queries were trained against the rows of a table, not against '
        'the target tower; search those (`embeddings/targets.npy` of an export '
        'with `--embeddings`)')
  lines += _quantised(precisions, model.dim)
  dataset = experiment.dataset
  lines += ['', '## Data', '', f'{dataset.name}: '
            f'{len(dataset.corpus_ids):,} passages, '
            f'{len(dataset.query_ids):,} queries; '
            + ', '.join(f'{len(dataset.queries_of(split)):,} '
                        f'{"judged" if len(qrels.grades) else "answered"} '
                        f'in `{split}`'
                        for split, qrels in dataset.qrels.items())
            + f'. Trained on `{config.data.train_split}`.',
            '', '## Measures', '']
  lines += (_measures(results, step) if results else
            ['Not evaluated yet (`python -m experiments.evaluate`).'])
  if results:
    lines += ['', '## Cost', '', *_table(
        ['', ''], [[label, f'{results["meter"][name]:,.4g}'
                    if 'flops' in name else f'{results["meter"][name]:,}']
                   for name, label in _CALLS.items()
                   if results['meter'].get(name) is not None]
        + [[f'seconds, {phase}', f'{seconds:,.1f}'] for phase, seconds
           in results['meter'].get('seconds', {}).items()])]
  options = config.to_dict()
  # Where the data lay says nothing to others.
  options['data'] = {name: value for name, value in options['data'].items()
                     if name not in ('cache', 'path', 'sets')}
  lines += ['', '## Method and configuration', '',
            f'`{experiment.method!r}`, step {step} of {config.num_steps}.', '',
            '```json', json.dumps(options, indent=2, default=str), '```', '']
  return '\n'.join(lines)


def _quantised(precisions: Sequence[str], dim: int) -> Iterator[str]:
  """Yields what the quantised targets are and how they are searched."""
  if not precisions:
    return
  files = {
      'int8': [f'[N, {dim}] int8, and `ranges` [2, {dim}], the least and the '
               'largest value of each dimension', str(dim)],
      'binary': [f'[N, {-(-dim // 8)}] uint8, the signs (`ubinary`)',
                 str(-(-dim // 8))]}
  yield from ('', '## Quantised passages', '', (
      'The passages of `embeddings/target_ids.txt`, as `quantize_embeddings` '
      'of sentence-transformers makes them with these passages for '
      f'calibration ({4 * dim} bytes each as floats):'), '')
  yield from _table(
      ['file', '`targets`', 'bytes a passage'],
      [[f'`embeddings/embeddings_{name}.safetensors`', *files[name]]
       for name in precisions])
  yield from ('', '```python', 'import numpy as np',
              'from safetensors.numpy import load_file')
  if 'int8' in precisions:
    yield from (
        '', '# Float queries against int8; what is left out is the same for '
        'all passages.',
        "int8 = load_file('embeddings/embeddings_int8.safetensors')",
        "low, high = int8['ranges']",
        'width = np.where(high == low, 1, (high - low) / 255)',
        "scores = (queries * width) @ int8['targets'].T.astype(np.float32)")
  if 'binary' in precisions:
    yield from (
        '', '# Signs by Hamming distance, the best 40 ranked by the float '
        'query.', 'import faiss',
        'from sentence_transformers.util.quantization import '
        'semantic_search_faiss',
        "bits = load_file('embeddings/embeddings_binary.safetensors')"
        "['targets']", 'index = faiss.IndexBinaryFlat(8 * bits.shape[1])',
        'index.add(bits)', 'found, _ = semantic_search_faiss(',
        "    queries, corpus_index=index, corpus_precision='ubinary', "
        'top_k=10,', '    rescore_multiplier=4)')
  yield '```'


def _measures(results: Mapping[str, Any], step: int) -> Iterator[str]:
  """Yields a table of every evaluated split, its baselines first."""
  measured = report.measured_step(results)
  if measured != step:
    yield f'Measured at step {measured}:'
    yield ''
  for split, measures in results['measures'].items():
    rows: dict[str, Mapping[str, float]] = {}
    for label, of_split in (
        ('BM25', results.get('bm25') or {}),
        ('untrained', results.get('untrained') or {}),
        ('**this model**', results['measures'])):
      rows |= {report.labelled(label, form): values for form, values
               in report.by_form(of_split.get(split) or {}).items() if values}
    names = report.by_form(measures)['']
    yield from _table([f'`{split}`, whole corpus', *(
        report.LABELS.get(name, name) for name in names)],
                      [[label, *(f'{values[name]:.4f}' if name in values else ''
                                 for name in names)]
                       for label, values in rows.items()])
    yield ''


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]
           ) -> Iterator[str]:
  """Yields the lines of a Markdown table."""
  for row in (header, ['---'] * len(header), *rows):
    yield f'| {" | ".join(row)} |'
