"""Retrieval measures, computed by ir-measures.

What `evaluate` returns is what the command `ir_measures QRELS RUN MEASURES`
prints for the files that `trec` writes of the same run and judgements:

  * every judged query counts; one without results scores zero (trec_eval
    without -c, and pytrec_eval used alone, leave it out of the mean);
  * equal scores are ranked by id, never by the order they came in: descending
    id in the measures that trec_eval computes (R, Success, nDCG), ascending id
    in RR@k, which ir-measures takes from the MS MARCO script. A constant
    scorer therefore gets no more than luck;
  * nDCG uses graded gains; the others count grades of 1 and more as relevant;
  * a passage of grade 0 or below keeps its rank and gains nothing in
    `MEASURES`, as one that is not judged: junk (a grade below 0) is not taken
    out of the ranking.
"""

from collections.abc import Mapping, Sequence

import ir_measures
import numpy as np

from retrieval_jax.data import dataset
from retrieval_jax.evaluation import answers
from retrieval_jax.evaluation import predictions
from retrieval_jax.evaluation import runs
from retrieval_jax.evaluation import trec

MEASURES = ('RR@10', 'R@1', 'R@20', 'R@100', 'Success@1', 'Success@20',
            'nDCG@10')
"""What results.json holds of a split with judgements."""
ALL = (*MEASURES, *answers.MEASURES, *predictions.MEASURES)
"""And of a split with answers; the last by a run that has a reader."""


def qrels_from_rows(query_rows: np.ndarray, corpus_rows: np.ndarray,
                    grades: np.ndarray, query_ids: Sequence[str],
                    corpus_ids: Sequence[str]) -> dict[str, dict[str, int]]:
  """Returns judgements given as rows in the form `evaluate` takes.

  Args:
    query_rows: [J] int, positions in `query_ids`.
    corpus_rows: [J] int, positions in `corpus_ids`.
    grades: [J] int.
    query_ids: strings of all queries.
    corpus_ids: strings of all passages.
  """
  qrels: dict[str, dict[str, int]] = {}
  for query_row, corpus_row, grade in zip(
      query_rows.tolist(), corpus_rows.tolist(), grades.tolist()):
    judged = qrels.setdefault(query_ids[query_row], {})
    judged[corpus_ids[corpus_row]] = grade
  return qrels


def _parse(measures: Sequence[str]) -> dict[str, ir_measures.Measure]:
  parsed = {}
  for name in measures:
    try:
      parsed[name] = ir_measures.parse_measure(name)
    except (NameError, ValueError, SyntaxError) as error:
      raise ValueError(
          f'Expected measures in the spelling of ir-measures, such as '
          f'{", ".join(MEASURES[:3])}; got {name!r} ({error}).') from error
  return parsed


def per_query(run: runs.Run, qrels: trec.Judgements,
              measures: Sequence[str] = MEASURES, *,
              drop_self_matches: bool = False
              ) -> dict[str, dict[str, float]]:
  """Returns measure -> query id -> value, for every judged query.

  Args:
    run: the answers; queries that are not judged are ignored.
    qrels: query id -> corpus id -> grade.
    measures: names in the spelling of ir-measures.
    drop_self_matches: whether passages whose id equals the query's id are
      taken out first. The BEIR tool always does so, which is right where the
      queries are passages of the corpus (ArguAna, Quora) and wrong where the
      two kinds of ids are equal by accident; so it is a choice here.

  Raises:
    ValueError: if nothing is judged, a query id occurs twice in the run, or a
      measure is unknown.
  """
  if not qrels:
    raise ValueError(
        'Expected judgements of at least one query, got none; check the split '
        'name and its qrels file.')
  if len(set(run.query_ids)) != len(run.query_ids):
    raise ValueError(
        f'Expected each query once in a run, got {len(run.query_ids)} rows of '
        f'{len(set(run.query_ids))} queries; merge their answers first.')
  if drop_self_matches:
    run = runs.drop_self_matches(run)
  parsed = _parse(measures)
  # Plain dicts of floats are what the C++ side of pytrec_eval takes.
  rankings = {
      query_id: dict(zip(ids, scores.astype(float).tolist()))
      for query_id, ids, scores in run.rankings() if query_id in qrels}
  judged = {query_id: dict(grades) for query_id, grades in qrels.items()}
  names = {measure: name for name, measure in parsed.items()}
  values: dict[str, dict[str, float]] = {name: {} for name in parsed}
  for metric in ir_measures.iter_calc(list(names), judged, rankings):
    values[names[metric.measure]][metric.query_id] = float(metric.value)
  return values


def evaluate(run: runs.Run, qrels: trec.Judgements,
             measures: Sequence[str] = MEASURES, *,
             drop_self_matches: bool = False) -> dict[str, float]:
  """Returns the mean of each measure over all judged queries.

  Arguments and errors are those of `per_query`.
  """
  values = per_query(run, qrels, measures, drop_self_matches=drop_self_matches)
  return {name: _mean(of_query) for name, of_query in values.items()}


def _mean(of_query: Mapping[str, float]) -> float:
  return sum(of_query.values()) / len(of_query)


def of_split(run: runs.Run, collection: dataset.Collection, split: str,
             measures: Sequence[str] = ALL) -> dict[str, float]:
  """Returns those measures that a split has what they need for.

  `Answer@k` need answers and texts, the others a judgement.

  Args:
    run: of the queries of the split; others are ignored.
    collection: with the judgements and answers.
    split: its name.
    measures: names in the spelling of ir-measures, and `Answer@k`; those of
      `predictions` are left out.

  Raises:
    ValueError: if no measure is left, and as `per_query` does.
  """
  qrels, found = collection.qrels[split], {}
  of_answers = [name for name in measures if answers.is_measure(name)]
  judged = [name for name in measures
            if name not in of_answers and name not in predictions.MEASURES]
  relevant = qrels.grades > 0  # below 0: related, neither right nor wrong
  if judged and relevant.any():
    found = evaluate(run, qrels_from_rows(
        qrels.query_rows[relevant], qrels.corpus_rows[relevant],
        qrels.grades[relevant], collection.query_ids, collection.corpus_ids),
                     judged)
  if of_answers and split in collection.answers:
    found |= _of_answers(run, collection, split, of_answers)
  if not found:
    has = [what for what, there in (
        ('judgements', relevant.any()),
        ('answers', split in collection.answers)) if there]
    raise ValueError(
        f'Expected measures of what split {split!r} of {collection.name} has '
        f'({" and ".join(has) or "nothing"}), got {", ".join(measures)}.')
  return found


def _of_answers(run: runs.Run, collection: dataset.Collection, split: str,
                measures: Sequence[str]) -> dict[str, float]:
  """Returns `Answer@k` of a run on a split that has answers."""
  texts = collection.corpus_texts
  assert texts is not None
  rows = dict(zip(run.ids.ravel().tolist(), runs.to_rows(
      run, collection.corpus_ids).ravel().tolist()))
  return answers.evaluate(
      run, collection.answers_of(split), lambda name: texts[rows[name]],
      measures)
