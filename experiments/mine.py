r"""Mines hard negatives: search results that are not the answer, but near it.

  python -m experiments.mine --workdir=runs/stale --relative_margin=0.05 \
      --num_negatives=5 --out=mined/stale
  python -m experiments.mine --config=configs/stale.py --index=bm25 --out=DIR
  python -m experiments.mine --embeddings=embeddings/stale \
      --index=faiss_hnsw --out=DIR
  python -m experiments.mine --config=configs/stale.py --run=FILE --out=DIR

What is searched: the corpus of a run by its last checkpoint, that of a config
by the encoder it starts from, or embeddings that experiments.embed wrote, which
saves embedding for each try. By what: --index exact, faiss_flat, faiss_hnsw or
bm25. Or the results come from a TREC run file. DIR gets a folder for each
--format, see retrieval_jax/mining/formats.py, and mining.json, the options and
what was found. To train on them, move DIR/candidates into the data's folder.

Always barred are targets that the split's judgements call relevant or junk and,
where texts are known, copies of positives; with --bar_answers, as DPR has it,
all that have an answer to the query. What the other options mean is in
retrieval_jax/mining/negatives.py. A known recipe is --relative_margin=0.05
(NV-Retriever).

Memory beyond the targets is that of --batch_size queries, see mining.mine; the
results of BM25 and of a run file are held whole.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from absl import app
from absl import flags

from experiments import process
from retrieval_jax import coarse
from retrieval_jax import indexes
from retrieval_jax import mining
from retrieval_jax.jobs import mine
from retrieval_jax.mining import formats
from retrieval_jax.mining import negatives

_OF_INDEX = ('chunk_rows', 'scan_dtype', 'links', 'ef_construction',
             'ef_search', 'leaf_size', 'opened', 'beam')


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  at = dict(flag_values=values)
  process.DEFINE_path('workdir', None, 'Folder of the run that searches.', **at)
  process.DEFINE_config(
      'Config file: its data, searched by the encoder it '
      'starts from; or the texts of --embeddings.', **at)
  process.DEFINE_path(
      'embeddings', None, 'Folder that experiments.embed wrote.', **at)
  process.DEFINE_path(
      'run', None, 'Run file to mine from, of TREC or MS MARCO, in place of a '
      'search.', **at)
  flags.DEFINE_enum('index', 'exact', mine.INDEXES, 'What searches.', **at)
  process.DEFINE_path('out', None, 'Folder to write; must not exist.', **at)
  flags.DEFINE_list(
      'splits', None, 'Splits to mine; by default the training split of the '
      'config, or train.', **at)
  flags.DEFINE_multi_enum(
      'format', ['candidates'], list(formats.FORMATS),
      'Format to write; may be repeated.', **at)
  flags.DEFINE_integer('num_negatives', 3, 'Negatives per query.', **at)
  flags.DEFINE_integer(
      'range_min', 0, 'Results skipped first, after the barred ones.', **at)
  flags.DEFINE_integer(
      'range_max', None, 'End of the window of ranks; by default range_min + '
      'num_negatives, times 10 if candidates may be dropped.', **at)
  flags.DEFINE_float(
      'absolute_margin', None, 'Least distance to the score of the positive.',
      **at)
  flags.DEFINE_float(
      'relative_margin', None, 'The same, as a share of that score.', **at)
  flags.DEFINE_enum(
      'margin_to', 'lowest', negatives.REFERENCES,
      'Which positive of several the margins are measured from, by score.',
      **at)
  flags.DEFINE_float('max_score', None, 'Highest score of a negative.', **at)
  flags.DEFINE_float('min_score', None, 'Lowest score of a negative.', **at)
  flags.DEFINE_enum(
      'sampling', 'top', negatives.SAMPLINGS,
      'The best candidates, or random ones.', **at)
  flags.DEFINE_integer('seed', 0, 'Of --sampling=random.', **at)
  flags.DEFINE_boolean(
      'drop_self_matches', False, "Bars the target with the query's own id.",
      **at)
  flags.DEFINE_boolean(
      'bar_answers', False, 'Bars all targets that have an answer to the '
      'query.', **at)
  flags.DEFINE_integer(
      'batch_size', 256, 'Queries at a time, which bounds memory.',
      lower_bound=1, **at)
  flags.DEFINE_integer(
      'chunk_rows', 4096, 'Targets scored at a time by --index=exact, tree.',
      lower_bound=1, **at)
  flags.DEFINE_enum(
      'scan_dtype', 'float32', coarse.DTYPES, 'What --index=exact reads of all '
      'targets: coarse copies give the same results in less time.', **at)
  flags.DEFINE_integer('links', 32, 'M of faiss_hnsw.', **at)
  flags.DEFINE_integer('ef_construction', 200, 'Of faiss_hnsw.', **at)
  flags.DEFINE_integer('ef_search', 128, 'Of faiss_hnsw.', **at)
  flags.DEFINE_integer(
      'leaf_size', 64, 'Most targets of a leaf of --index=tree.', **at)
  flags.DEFINE_integer(
      'opened', 64, 'Leaves of tree that are scored for a query; 0: all.', **at)
  flags.DEFINE_integer(
      'beam', 0, 'Parents of tree whose leaves are looked at; 0: all.', **at)
  process.DEFINE_lenient(**at)
  flags.mark_flags_as_required(['out'], **at)
  process.DEFINE_processes(values)


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  if values.run and values['index'].present:
    raise app.UsageError(
        f'--run={values.run} holds results already; leave --index out.')
  with process.script(values):
    rules = mining.Rules(**{field.name: values[field.name].value
                            for field in dataclasses.fields(mining.Rules)})
    facts = mine.run(mine.Options(
        out=values.out, rules=rules, formats=values.format,
        index_options=_index_options(values),
        **{name: values[name].value for name in (
            'workdir', 'config', 'embeddings', 'run', 'index', 'splits',
            'drop_self_matches', 'bar_answers', 'batch_size',
            'lenient')}), say=_print)
    if not facts['copies_of_positives_barred']:
      print('Copies of positives are not barred, because there are no texts; '
            '--config gives them.')
  print(f'{values.out}: {", ".join(dict.fromkeys(values.format))}.')


def _index_options(values: flags.FlagValues) -> dict[str, Any]:
  """Returns the options that the index has, and those that are given."""
  known = set()
  if values.index in indexes.INDEXES and not values.run:
    known = {field.name for field in dataclasses.fields(
        indexes.INDEXES[values.index])}
  return {name: values[name].value for name in _OF_INDEX
          if name in known or values[name].present}


def _print(split: str, facts: Mapping[str, Any]) -> None:
  """Prints a summary in a few lines."""
  shown = lambda x: 'unknown' if x is None else f'{x:.4f}'
  print(f'{split}: {facts["negatives"]:,} negatives of {facts["queries"]:,} '
        f'queries; {facts["queries_with_fewer"]:,} have fewer than asked for, '
        f'{facts["queries_with_none"]:,} none.')
  print(f'  mean score: positives {shown(facts["mean_positive_score"])}, '
        f'negatives {shown(facts["mean_negative_score"])}' + (
            f'; {facts["positives_of_unknown_score"]:,} positives were not '
            'among the results' if facts['positives_of_unknown_score'] else ''))
  print('  removed: ' + ', '.join(
      f'{why} {number:,}' for why, number in facts['removed'].items()))


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
