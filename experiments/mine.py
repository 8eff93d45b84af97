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
bm25. Or the results stand in a TREC run file already. DIR gets a folder for
each --format, see retrieval_jax/mining/formats.py, and mining.json, the options
and what was found. To train on them, move DIR/candidates into the data's
folder.

What is barred always: every target that the split's judgements call relevant,
or junk, and where texts are known the copies of positives. What the other
options mean is in retrieval_jax/mining/negatives.py. A known recipe is
--relative_margin=0.05 (NV-Retriever).

Memory beyond the targets is that of --batch_size queries, see mining.mine; the
results of BM25 and of a run file are held whole.
"""

from collections.abc import Callable, Container
import dataclasses
import json
import os
import re
from typing import Any
from urllib import parse

from absl import app
from absl import flags
from ml_collections import config_flags
import numpy as np

from experiments import process
from experiments import saved
from experiments import search
from retrieval_jax import factory
from retrieval_jax import indexes
from retrieval_jax import mining
from retrieval_jax import sharding
from retrieval_jax.data import dataset as datasets
from retrieval_jax.data import embeddings as embeddings_lib
from retrieval_jax.data import progress
from retrieval_jax.evaluation import bm25
from retrieval_jax.evaluation import trec
from retrieval_jax.mining import formats
from retrieval_jax.mining import negatives

INDEXES = ('exact', 'faiss_flat', 'faiss_hnsw', 'bm25')


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  at = dict(flag_values=values)
  flags.DEFINE_string('workdir', None, 'Folder of the run that searches.', **at)
  config_flags.DEFINE_config_file(
      'config', None, 'Config file: its data, searched by the encoder it '
      'starts from; or the texts of --embeddings.', **at)
  flags.DEFINE_string(
      'embeddings', None, 'Folder that experiments.embed wrote.', **at)
  flags.DEFINE_string(
      'run', None, 'TREC run file to mine from, in place of a search.', **at)
  flags.DEFINE_enum('index', 'exact', INDEXES, 'What searches.', **at)
  flags.DEFINE_string('out', None, 'Folder to write; must not exist.', **at)
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
  flags.DEFINE_integer(
      'batch_size', 256, 'Queries at a time, which bounds memory.',
      lower_bound=1, **at)
  flags.DEFINE_integer(
      'chunk_rows', 4096, 'Targets scored at a time by --index=exact.',
      lower_bound=1, **at)
  flags.DEFINE_integer('links', 32, 'M of faiss_hnsw.', **at)
  flags.DEFINE_integer('ef_construction', 200, 'Of faiss_hnsw.', **at)
  flags.DEFINE_integer('ef_search', 128, 'Of faiss_hnsw.', **at)
  flags.mark_flags_as_required(['out'], **at)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  if bool(values.workdir) + bool(values.embeddings or values.config) != 1:
    raise app.UsageError(
        'Expected --workdir (a run), or --embeddings (a folder), --config (a '
        'data set) or both of these, of which the config gives the texts.')
  if values.run and values['index'].present:
    raise app.UsageError(
        f'--run={values.run} holds results already; leave --index out.')
  with process.script():
    rules = mining.Rules(**{field.name: values[field.name].value
                            for field in dataclasses.fields(mining.Rules)})
    write(values.out, rules, values)


def write(out, rules, values):
  """Mines and writes `out` whole or not at all; prints a summary.

  Raises:
    ValueError: if `out` exists, an option asks for what the data lacks, or an
      input is malformed.
  """
  if os.path.exists(out):
    raise ValueError(f'--out={out} exists; name a new folder or remove it.')
  source = _open(values)
  splits = values.splits or [source.train_split]
  unknown = set(splits) - set(source.data.qrels)
  if unknown:
    raise ValueError(
        f'--splits names {sorted(unknown)}; {source.data.name} has '
        f'{sorted(source.data.qrels)}.')
  textual = [form for form in values.format if form in formats.TEXTUAL]
  if source.data.corpus_texts is None and (
      textual or (values.index == 'bm25' and not values.run)):
    raise ValueError(
        f'--embeddings={values.embeddings} has no texts, which '
        f'{"--format=" + textual[0] if textual else "--index=bm25"} needs; '
        'give the --config of its data, too.')
  qrels = {split: source.data.qrels[split] for split in splits}
  barred = {}
  if values.drop_self_matches:
    barred['own'] = _own(source.data)
  if source.data.corpus_texts is not None:
    barred['twins'] = mining.same_texts(source.data.corpus_texts, {
        int(row) for one in qrels.values()
        for row in one.corpus_rows[one.grades > 0]})
  depth = max(mining.depth(one, rules, **barred) for one in qrels.values())
  query_rows = np.unique(np.concatenate(
      [one.queries() for one in qrels.values()]))
  results = _results(values, source, query_rows, depth)
  summaries = {}
  with datasets.atomic_folder(os.path.abspath(out)) as folder:
    for split in splits:
      with progress.counter(f'mining {split}', unit='queries',
                            total=len(qrels[split].queries())) as add:
        mined = mining.mine(
            results, qrels[split], source.data.query_ids, rules,
            batch_size=values.batch_size, progress=add, **barred)
      for form in dict.fromkeys(values.format):
        formats.write(folder, split, form, mined, source.data)
      summaries[split] = summary(mined)
      _print(split, summaries[split], rules)
    if 'twins' not in barred:
      print('Copies of positives are not barred, for there are no texts; '
            '--config would give them.')
    trec.write_text(os.path.join(folder, 'mining.json'), json.dumps({
        'data': source.data.name, 'depth': depth,
        **{name: values[name].value for name in (
            'workdir', 'embeddings', 'run', 'index', 'drop_self_matches')},
        'rules': dataclasses.asdict(rules), 'splits': summaries},
        indent=2) + '\n')
  print(f'{out}: {", ".join(dict.fromkeys(values.format))}.')


def summary(mined):
  """Returns counts and mean scores of what was mined, for JSON.

  Means are over distinct (query, target) pairs of known score; None of none.
  """
  found = (mined.ids >= 0).sum(axis=1)
  mean = lambda scores: float(np.mean(scores)) if len(scores) else None
  return {
      'queries': len(found), 'negatives': int(found.sum()),
      'queries_with_fewer': int((found < mined.ids.shape[1]).sum()),
      'queries_with_none': int((found == 0).sum()),
      'mean_positive_score': mean(
          mined.positive_scores[np.isfinite(mined.positive_scores)]),
      'mean_negative_score': mean(mined.scores[mined.ids >= 0]),
      'positives_of_unknown_score': int(
          np.isneginf(mined.positive_scores).sum()),
      'removed': dict(mined.removed)}


def _print(split, facts, rules):
  """Prints a summary in a few lines."""
  shown = lambda x: 'unknown' if x is None else f'{x:.4f}'
  print(f'{split}: {facts["negatives"]:,} negatives of {facts["queries"]:,} '
        f'queries; {facts["queries_with_fewer"]:,} have fewer than '
        f'{rules.num_negatives}, {facts["queries_with_none"]:,} none.')
  print(f'  mean score: positives {shown(facts["mean_positive_score"])}, '
        f'negatives {shown(facts["mean_negative_score"])}' + (
            f'; {facts["positives_of_unknown_score"]:,} positives were not '
            'among the results' if facts['positives_of_unknown_score'] else ''))
  print('  removed: ' + ', '.join(
      f'{why} {number:,}' for why, number in facts['removed'].items()))


@dataclasses.dataclass(frozen=True)
class _Source:
  """Data to mine, and its embeddings.

  Attributes:
    data: with texts where they are known.
    train_split: what is mined by default.
    embeddings: query rows -> (queries [Q, D], of which those rows are filled,
      targets [N, D]).
  """
  data: datasets.Collection
  train_split: str
  embeddings: Callable[[np.ndarray], tuple[Any, Any]]


def _open(values):
  """Returns the _Source that the flags name."""
  if values.embeddings:
    targets, queries = embeddings_lib.read_both(values.embeddings)
    found = embeddings_lib.read_collection(
        values.embeddings, query_ids=queries.ids, corpus_ids=targets.ids)
    if values.config:
      dataset = factory.make_dataset(values.config)
      for column, ours, theirs in (
          ('corpus', targets.ids, dataset.corpus_ids),
          ('queries', queries.ids, dataset.query_ids)):
        if list(ours) != list(theirs):
          raise ValueError(
              f'--embeddings={values.embeddings} was not made of the data of '
              f'--config: the ids of the {column} differ ({len(ours)} and '
              f'{len(theirs)}).')
      found = dataclasses.replace(
          found, query_texts=dataset.query_texts,
          corpus_texts=dataset.corpus_texts)
    return _Source(
        found, 'train', lambda rows: (queries.vectors, targets.vectors))
  config = (saved.read_config(values.workdir) if values.workdir
            else values.config)
  dataset = factory.make_dataset(config)

  def embed(rows):
    experiment, params, table, step = saved.load_encoder(
        values.workdir, values.config)
    if values.workdir:
      targets = search.stored_targets(
          values.workdir, experiment, params, table, step)
    else:
      targets = experiment.targets_of(params, table)
    queries = np.zeros((len(dataset.query_ids), targets.shape[1]), np.float32)
    queries[rows] = experiment.embed_queries(params, rows)
    return queries, targets

  return _Source(dataset, config.data.train_split, embed)


def _own(names):
  """Returns [Q] int32, the target of each query's own id, -1 where none is."""
  rows = _rows_of(names.corpus_ids, set(names.query_ids))
  return np.asarray([rows.get(name, -1) for name in names.query_ids], np.int32)


def _rows_of(ids, wanted, shown=lambda name: name):
  """Returns id -> row of those ids that are wanted, as `shown`."""
  return {name: row for row, name in enumerate(map(shown, ids))
          if name in wanted}


def _results(values, source, query_rows, depth):
  """Returns the mining.Results that the flags ask for."""
  names = source.data
  if values.run:
    return _from_run(values.run, names, query_rows, depth)
  if values.index == 'bm25':
    found, scores = bm25.bm25_run(
        names.corpus_texts, [names.query_texts[row] for row in query_rows],
        depth)
    return _listed(len(names.query_ids), query_rows, found, scores)
  if values.index == 'exact':
    index = indexes.ExactIndex(
        sharding.make_mesh(), values.chunk_rows, values.batch_size)
  else:
    index = indexes.FaissIndex(
        kind=values.index.removeprefix('faiss_'), links=values.links,
        ef_construction=values.ef_construction, ef_search=values.ef_search,
        batch_size=values.batch_size)
  queries, targets = source.embeddings(query_rows)
  return mining.Dense(index, queries, targets, index.build(targets))


def _listed(num_queries, query_rows, found, scores):
  """Returns mining.Listed of results for some query rows."""
  ids = np.full((num_queries, found.shape[1]), -1, np.int32)
  all_scores = np.full(ids.shape, -np.inf, np.float32)
  ids[query_rows], all_scores[query_rows] = found, scores
  return mining.Listed(ids, all_scores)


def _from_run(path, names, query_rows, depth):
  """Returns the results of a TREC run file as mining.Listed."""
  run = trec.read_run(path).top(depth)
  queries = {names.query_ids[row]: row for row in query_rows.tolist()}
  rows = {_as_in_urls(name): row for name, row in queries.items()} | queries
  places = [i for i, name in enumerate(run.query_ids) if name in rows]
  if not places:
    raise ValueError(
        f'--run={path} has results of {len(run.query_ids)} queries, but of '
        f'none of the {len(query_rows)} that are mined (the first is '
        f'{next(iter(rows))!r}); is it of another data set or split?')
  sought = set(run.ids[places].ravel()) - {''}
  targets = (_rows_of(names.corpus_ids, sought, _as_in_urls)
             | _rows_of(names.corpus_ids, sought))
  if len(targets) < len(sought):
    raise ValueError(
        f'{_line_of(path, sought - set(targets))}: the corpus has no such '
        f'target ({len(names.corpus_ids)} targets); is the run of another '
        'corpus?')
  targets[''] = -1
  found = np.asarray([[targets[name] for name in run.ids[i]] for i in places],
                     np.int32).reshape(len(places), -1)
  return _listed(len(names.query_ids),
                 [rows[run.query_ids[i]] for i in places], found,
                 run.scores[places])


def _as_in_urls(name):
  """Returns an id with '%20' for a space, as other tools write run files."""
  return re.sub(r'\s', lambda found: parse.quote(found[0]), name)


def _line_of(path, corpus_ids: Container[str]):
  """Returns 'file:line' and the id of the first line with one of the ids."""
  with open(path, encoding='utf-8', newline='\n') as f:
    return next(f'{path}:{number}: {line.split()[2]!r}'
                for number, line in enumerate(f, 1)
                if line.split()[2:3]
                and trec.decode_id(line.split()[2]) in corpus_ids)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
