r"""Measures BM25 alone, with the first words of each query weighted.

  python -m experiments.bm25 --source=wordnet --split=test
  python -m experiments.bm25 --source=wordnet --split=test --separator=": " \
      --lead_repeats=3
  python -m experiments.bm25 --source=beir --path=DIR --split=links_test \
      --separator=" | " --lead_only

The lead of a query is what comes before its first --separator: the lemma in
WordNet, the mention in the Wikipedia links. BM25 may be a much
stronger baseline when it is told which words matter. k1 0.9, b 0.4.
"""

import os

from absl import app
from absl import flags

from experiments import process
from retrieval_jax import data
from retrieval_jax import factory
from retrieval_jax.evaluation import bm25
from retrieval_jax.evaluation import measures as measures_lib
from retrieval_jax.evaluation import runs

_DEPTH = 100


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  flags.DEFINE_enum(
      'source', None, sorted(factory.READERS), 'Format of the data.',
      flag_values=values)
  process.DEFINE_path(
      'path', '', 'Folder, file or name of the data, as --config.data.path.',
      flag_values=values)
  flags.DEFINE_string(
      'split', 'test', 'Split to measure.', flag_values=values)
  flags.DEFINE_string(
      'separator', '', "What ends a query's lead; without it there is none.",
      flag_values=values)
  flags.DEFINE_integer(
      'lead_repeats', 1, 'How often words of the lead count.', lower_bound=1,
      flag_values=values)
  flags.DEFINE_bool(
      'lead_only', False, 'Leave out what follows the lead.',
      flag_values=values)
  flags.DEFINE_list(
      'measures', list(measures_lib.ALL),
      'Measures in the spelling of ir-measures.', flag_values=values)
  flags.DEFINE_string(
      'cache', '~/.cache/retrieval_jax', 'Prepared data.', flag_values=values)
  process.DEFINE_lenient(flag_values=values)
  flags.mark_flags_as_required(['source'], flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script():
    cache = os.path.expanduser(values.cache)
    dataset = data.prepare(
        factory.make_reader(values.source, values.path, cache,
                            lenient=values.lenient), cache)
    found = evaluate(
        dataset, values.split, values.measures, separator=values.separator,
        lead_repeats=values.lead_repeats, lead_only=values.lead_only)
  print('  '.join(f'{name} {value:.4f}' for name, value in found.items()))


def evaluate(dataset, split, measures, *, separator='', lead_repeats=1,
             lead_only=False):
  """Returns {measure: value} of BM25 on a split.

  Args:
    dataset: data.RetrievalDataset.
    split: its name.
    measures: names of ir-measures, and Answer@k of a split with answers.
    separator: what ends the lead of a query; '' for no lead.
    lead_repeats: how often words of the lead count.
    lead_only: whether to leave out what follows the lead.

  Raises:
    ValueError: for an unknown split or measure, or options of a lead without
      separator.
  """
  if split not in dataset.qrels:
    raise ValueError(f'--split={split!r} is not a split of {dataset.name}; it '
                     f'has {sorted(dataset.qrels)}.')
  if not separator and (lead_only or lead_repeats > 1):
    raise ValueError('--lead_repeats and --lead_only need --separator, which '
                     "says where a query's lead ends.")
  rows = dataset.queries_of(split)
  texts = [dataset.query_texts[row] for row in rows]
  leads = [text.split(separator, 1)[0] for text in texts] if separator else None
  found, scores = bm25.bm25_run(
      dataset.corpus_texts, leads if lead_only else texts, _DEPTH,
      lemmas=leads, lemma_repeats=lead_repeats)
  run = runs.from_rows([dataset.query_ids[row] for row in rows], found, scores,
                       dataset.corpus_ids)
  return measures_lib.of_split(run, dataset, split, measures)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
