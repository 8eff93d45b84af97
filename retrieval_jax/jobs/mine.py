"""Mines hard negatives from a run, a config, embeddings or a TREC run file."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
import dataclasses
import os
import re
from typing import Any
from urllib import parse

from ml_collections import config_dict
import numpy as np

from retrieval_jax import factory
from retrieval_jax import files
from retrieval_jax import indexes
from retrieval_jax import mining
from retrieval_jax import processes
from retrieval_jax import sharding
from retrieval_jax import trained
from retrieval_jax.data import dataset as datasets
from retrieval_jax.data import embeddings as embeddings_lib
from retrieval_jax.data import errors
from retrieval_jax.data import progress
from retrieval_jax.evaluation import answers
from retrieval_jax.evaluation import bm25
from retrieval_jax.evaluation import trec
from retrieval_jax.mining import formats

INDEXES = (*indexes.INDEXES, 'bm25')


@dataclasses.dataclass(frozen=True)
class Options:
  """What to mine, by what, and where to.

  Attributes:
    out: folder to write; must not exist.
    rules: which results become negatives.
    workdir: folder of a run, which searches its own data; or
    config: ConfigDict: its data, searched by the encoder it starts from; or the
      texts of `embeddings`.
    embeddings: folder that experiments.embed wrote.
    run: run file of TREC or MS MARCO, maybe compressed, that holds the results
      already, in place of a search. MS MARCO's has no scores: what is mined
      from it has none either, and no rule may ask for them.
    index: one of INDEXES, what searches.
    index_options: fields of the index.
    splits: to mine; None for the training split of the config, or train.
    formats: to write, of mining.formats.FORMATS.
    drop_self_matches: whether the target with a query's own id is barred.
    batch_size: queries at a time, which bounds memory.
    lenient: whether what is wrong with the judgements of `embeddings` is
      dropped and counted; of a config it is data.lenient.

  Raises:
    ValueError: where what is mined, or by what, is not given or given twice.
  """
  out: str
  rules: mining.Rules
  workdir: str | None = None
  config: config_dict.ConfigDict | None = None
  embeddings: str | None = None
  run: str | None = None
  index: str = 'exact'
  index_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  splits: Sequence[str] | None = None
  formats: Sequence[str] = ('candidates',)
  drop_self_matches: bool = False
  bar_answers: bool = False
  batch_size: int = 256
  lenient: bool = False

  def __post_init__(self) -> None:
    if bool(self.workdir) + bool(self.embeddings or self.config) != 1:
      raise ValueError(
          'Expected --workdir (a run), or --embeddings (a folder), --config (a '
          'data set) or both of these, of which the config gives the texts.')
    if self.lenient and not self.embeddings:
      raise ValueError(
          '--lenient goes with --embeddings; of a config it is '
          '--config.data.lenient=True, and a run has its own.')
    if self.index not in INDEXES:
      raise ValueError(f'--index={self.index} is not one of {list(INDEXES)}.')
    if self.index_options and (self.run or self.index == 'bm25'):
      raise ValueError(
          f'--{next(iter(self.index_options))} belongs to an index over '
          f'embeddings, not to {"--run" if self.run else "--index=bm25"}; '
          'leave it out.')
    if os.path.exists(self.out):
      raise ValueError(
          f'--out={self.out} exists; name a new folder or remove it.')


def run(options: Options,
        say: Callable[[str, Mapping[str, Any]], None] | None = None
        ) -> dict[str, Any]:
  """Mines and writes options.out whole or not at all.

  Args:
    options: see there.
    say: takes each split and its `summary` when it is done.

  Returns:
    What mining.json holds.

  Raises:
    ValueError: if an option asks for what the data lacks, or an input is
      malformed.
  """
  source = open_source(options)
  splits = options.splits or [source.train_split]
  unknown = set(splits) - set(source.data.qrels)
  if unknown:
    raise ValueError(
        f'--splits names {sorted(unknown)}; {source.data.name} has '
        f'{sorted(source.data.qrels)}.')
  for split in splits:
    if not len(source.data.qrels[split].grades):
      raise ValueError(
          f'--splits={split}: {source.data.name} has answers in it and no '
          'judgements, whose positives negatives are mined for.')
  texts = source.data.corpus_texts
  textual = [form for form in options.formats
             if formats.FORMATS[form].needs_texts]
  if texts is None and (
      textual or (options.index == 'bm25' and not options.run)):
    raise ValueError(
        f'--embeddings={options.embeddings} has no texts, which '
        f'{"--format=" + textual[0] if textual else "--index=bm25"} needs; '
        'give the --config of its data, too.')
  qrels = {split: source.data.qrels[split] for split in splits}
  barred: dict[str, Any] = {}
  if options.drop_self_matches:
    barred['own'] = _own(source.data)
  if source.data.copies is not None:
    barred['twins'] = source.data.copies.others({
        int(row) for one in qrels.values()
        for row in one.corpus_rows[one.grades > 0]})
  holders = _holders(source.data, splits) if options.bar_answers else {}
  depth = max(mining.depth(
      one, options.rules, has_answer=holders.get(split), **barred)
              for split, one in qrels.items())
  query_rows = np.unique(np.concatenate(
      [one.queries() for one in qrels.values()]))
  scored = options.run is None or trec.has_scores(options.run)
  if not scored:
    _check_without_scores(options)
  results = _results(options, source, query_rows, depth)
  facts = {
      'data': source.data.name, 'depth': depth,
      **{name: getattr(options, name) for name in (
          'workdir', 'embeddings', 'run', 'index', 'drop_self_matches',
          'bar_answers')},
      'copies_of_positives_barred': source.data.copies is not None,
      'rules': dataclasses.asdict(options.rules),
      'dropped': {split: source.data.dropped[split] for split in splits
                  if split in source.data.dropped}, 'splits': {}}
  with processes.new_folder(options.out) as folder:
    for split in splits:
      with progress.counter(f'mining {split}', unit='queries',
                            show=processes.is_first(),
                            total=len(qrels[split].queries())) as add:
        mined = mining.mine(
            results, qrels[split], source.data.query_ids, options.rules,
            batch_size=options.batch_size, has_answer=holders.get(split),
            progress=add, **barred)
      if not scored:  # minus the ranks would pass for a teacher's
        mined = mined._replace(
            positive_scores=np.full_like(mined.positive_scores, np.nan),
            scores=np.full_like(mined.scores, np.nan))
      for form in dict.fromkeys(options.formats):
        formats.write(folder, split, form, mined, source.data)
      facts['splits'][split] = summary(mined)
      if say:
        say(split, facts['splits'][split])
    files.write_json(os.path.join(folder, 'mining.json'), facts)
  return facts


def _holders(collection: datasets.Collection, splits: Sequence[str]
             ) -> dict[str, mining.Holds]:
  """Returns split -> which results have an answer to their query."""
  texts = collection.corpus_texts
  without = [name for name in splits if name not in collection.answers]
  if without or texts is None:
    raise ValueError(
        f'--bar_answers needs answers and texts; {collection.name} has '
        f'{f"no answers in {without}" if without else "no texts"}.')

  return {split: answers.holders(collection.answers[split].of, texts)
          for split in splits}


def _check_without_scores(options: Options) -> None:
  """Raises ValueError where an option needs the scores that a run lacks."""
  rules = options.rules
  for name in ('absolute_margin', 'relative_margin', 'max_score', 'min_score'):
    if getattr(rules, name) is not None:
      raise ValueError(
          f'--run={options.run} has ranks but no scores (three columns), which '
          f'--{name} needs; leave that out, or give a run of six columns.')
  if 'trec' in options.formats:
    raise ValueError(
        f'--run={options.run} has ranks but no scores (three columns), which '
        '--format=trec needs; give a run of six columns.')


def summary(mined: mining.Mined) -> dict[str, Any]:
  """Returns counts and mean scores of what was mined, for JSON.

  Means are over distinct (query, target) pairs of known score; None without
  any.
  """
  found = (mined.ids >= 0).sum(axis=1)
  mean = lambda scores: float(np.mean(scores)) if len(scores) else None
  return {
      'queries': len(found), 'negatives': int(found.sum()),
      'queries_with_fewer': int((found < mined.ids.shape[1]).sum()),
      'queries_with_none': int((found == 0).sum()),
      'mean_positive_score': mean(
          mined.positive_scores[np.isfinite(mined.positive_scores)]),
      'mean_negative_score': mean(mined.scores[np.isfinite(mined.scores)]),
      'positives_of_unknown_score': int(
          np.isneginf(mined.positive_scores).sum()),
      'removed': dict(mined.removed)}


@dataclasses.dataclass(frozen=True)
class Source:
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


def open_source(options: Options) -> Source:
  """Returns the data that the options name."""
  if options.embeddings:
    targets, queries = embeddings_lib.read_both(options.embeddings)
    found = embeddings_lib.read_collection(
        options.embeddings, query_ids=queries.ids, corpus_ids=targets.ids,
        dropped={} if options.lenient else None)
    if options.config:
      dataset = factory.make_dataset(options.config, training=False)
      for column, ours, theirs in (
          ('corpus', targets.ids, dataset.corpus_ids),
          ('queries', queries.ids, dataset.query_ids)):
        if list(ours) != list(theirs):
          raise ValueError(
              f'--embeddings={options.embeddings} was not made of the data of '
              f'--config: the ids of the {column} differ ({len(ours)} and '
              f'{len(theirs)}).')
      origin = embeddings_lib.read_origin(options.embeddings)
      if origin and origin['corpus'] != dataset.corpus_fingerprint:
        raise ValueError(
            f'--embeddings={options.embeddings} was made of other texts than '
            'those of --config, under the same ids; embed them again.')
      found = dataclasses.replace(
          found, query_texts=dataset.query_texts,
          corpus_texts=dataset.corpus_texts, copies=dataset.copies)
    return Source(
        found, 'train', lambda rows: (queries.vectors, targets.vectors))
  config: Any = (trained.read_config(options.workdir) if options.workdir
                 else options.config)
  dataset = factory.make_dataset(config, training=False)

  def embed(rows):
    retriever = trained.open_either(options.workdir, options.config)
    targets = retriever.stored_targets()
    queries = np.zeros((len(dataset.query_ids), targets.shape[1]), np.float32)
    queries[rows] = retriever.experiment.embed_queries(retriever.params, rows)
    return queries, targets

  return Source(dataset, config.data.train_split, embed)


def _own(names: datasets.Collection) -> np.ndarray:
  """Returns [Q] int32, the target of each query's own id, -1 where none is."""
  rows = _rows_of(names.corpus_ids, set(names.query_ids))
  return np.asarray([rows.get(name, -1) for name in names.query_ids], np.int32)


def _rows_of(ids: Iterable[str], wanted: Container[str],
             shown: Callable[[str], str] = lambda name: name) -> dict[str, int]:
  """Returns id -> row of those ids that are wanted, as `shown`."""
  return {name: row for row, name in enumerate(map(shown, ids))
          if name in wanted}


def _results(options: Options, source: Source, query_rows: np.ndarray,
             depth: int) -> mining.Results:
  """Returns the results that the options ask for."""
  names = source.data
  if options.run:
    return _from_run(options.run, names, query_rows, depth)
  if options.index == 'bm25':
    assert names.query_texts is not None and names.corpus_texts is not None
    found, scores = bm25.bm25_run(
        names.corpus_texts, [names.query_texts[row] for row in query_rows],
        depth)
    return _listed(len(names.query_ids), query_rows, found, scores)
  index = indexes.make(options.index, sharding.make_mesh(),
                       batch_size=options.batch_size, **options.index_options)
  queries, targets = source.embeddings(query_rows)
  return mining.IndexResults(index, queries, targets, index.build(targets))


def _listed(num_queries: int, query_rows: Sequence[int] | np.ndarray,
            found: np.ndarray, scores: np.ndarray) -> mining.Listed:
  """Returns mining.Listed of results for some query rows."""
  ids = np.full((num_queries, found.shape[1]), -1, np.int32)
  all_scores = np.full(ids.shape, -np.inf, np.float32)
  ids[query_rows], all_scores[query_rows] = found, scores
  return mining.Listed(ids, all_scores)


def _from_run(path: str, names: datasets.Collection, query_rows: np.ndarray,
              depth: int) -> mining.Listed:
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
    place, name = _line_of(path, sought - set(targets))
    raise ValueError(
        f'{place}: {name!r}: the corpus has no such target '
        f'({len(names.corpus_ids)} targets); is the run of another corpus?'
        f'{errors.lookalike(name, names.corpus_ids)}')
  targets[''] = -1
  found = np.asarray([[targets[name] for name in run.ids[i]] for i in places],
                     np.int32).reshape(len(places), -1)
  return _listed(len(names.query_ids),
                 [rows[run.query_ids[i]] for i in places], found,
                 run.scores[places])


def _as_in_urls(name: str) -> str:
  """Returns an id with '%20' for a space, as other tools write run files."""
  return re.sub(r'\s', lambda found: parse.quote(found[0]), name)


def _line_of(path: str, corpus_ids: Container[str]) -> tuple[str, str]:
  """Returns 'file:line' and the id of the first line with one of the ids."""
  return next((where, corpus_id)
              for where, _, corpus_id, _ in trec.run_lines(path)
              if corpus_id in corpus_ids)
