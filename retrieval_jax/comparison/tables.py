"""Tables of finished runs, as CSV and as Markdown."""

from collections.abc import Mapping, Sequence
import csv
import io
import json
import statistics
from typing import Any

from retrieval_jax.comparison import curves
from retrieval_jax.comparison import differences
from retrieval_jax.comparison import runs as runs_lib
from retrieval_jax.evaluation import measures
from retrieval_jax.evaluation import report

_COSTS = {
    'target calls, step': '{:,.0f}', 're-embedded targets': '{:,.0f}',
    **{f'TFLOP, {part}': '{:,.1f}' for part in runs_lib.FLOP_PARTS},
    'TFLOP': '{:,.1f}', 'training seconds': '{:,.0f}',
    'total seconds': '{:,.0f}', 'table MiB': '{:,.0f}',
    'device MiB': '{:,.0f}'}
_SPREAD = ('sd', 'min', 'max')


def run_row(run: runs_lib.FinishedRun, split: str, names: Sequence[str],
            of_curves: curves.OfRuns) -> dict[str, Any]:
  """Returns measures and cost of one run; what is not known is None."""
  meter, values = run.results.get('meter', {}), run.results['measures'][split]
  tera = lambda flops: None if flops is None else flops / 1e12
  mebi = lambda size: None if size is None else size / 2**20
  measured = {name: values.get(name) for name in names}
  costs = (
      meter.get('target_encoder_calls_in_step'),
      meter.get('target_encoder_calls_reembedding'),
      *(tera(meter.get(part)) for part in runs_lib.FLOP_PARTS.values()),
      tera(runs_lib.total_flops(meter)),
      runs_lib.training_seconds(meter), meter.get('seconds', {}).get('total'),
      mebi(meter.get('table_bytes')), mebi(meter.get('device_bytes')))
  return measured | of_curves[run.name] | dict(
      zip(_COSTS, costs, strict=True))


def method_row(members: Sequence[runs_lib.FinishedRun], split: str,
               names: Sequence[str], of_curves: curves.OfRuns
               ) -> dict[str, Any]:
  """Returns means over seeds, and their spread in columns such as 'R@1 sd'."""
  rows = [run_row(run, split, names, of_curves) for run in members]
  found: dict[str, Any] = {'seeds': len(rows)}
  for column in rows[0]:
    values = [row[column] for row in rows]
    if None in values:
      values = []
    found[column] = statistics.fmean(values) if values else None
    several = len(values) > 1
    found |= {
        f'{column} sd': statistics.stdev(values) if several else None,
        f'{column} min': min(values) if several else None,
        f'{column} max': max(values) if several else None}
  return found


def baselines(loaded: Sequence[runs_lib.FinishedRun], split: str
              ) -> dict[str, Mapping[str, float]]:
  """Returns BM25 and untrained measures; one entry per distinct outcome."""
  found = {}
  for label, field in (('BM25', 'bm25'), ('untrained', 'untrained')):
    outcomes: dict[str, tuple[str, Mapping[str, float]]] = {}
    for run in loaded:
      values = (run.results.get(field) or {}).get(split)
      if values:
        key = json.dumps(values, sort_keys=True)
        outcomes.setdefault(key, (run.name, values))
    for name, values in outcomes.values():
      found[label if len(outcomes) == 1 else f'{label} ({name})'] = values
  return found


def tabulate(groups: runs_lib.Groups, split: str, measure: str,
             of_curves: curves.OfRuns) -> list[dict[str, Any]]:
  """Returns the rows of the table: baselines, then methods."""
  names = list(dict.fromkeys([*report.LABELS, 'nDCG@10', measure]))
  runs = [run for members in groups.values() for run in members]
  rows = [{'method': label} | {name: values.get(name) for name in names}
          for label, values in baselines(runs, split).items()]
  rows += [{'method': name} | method_row(members, split, names, of_curves)
           for name, members in groups.items()]
  return _aligned(rows)


def tabulate_runs(groups: runs_lib.Groups, split: str, of_curves: curves.OfRuns
                  ) -> list[dict[str, Any]]:
  """Returns a row for every single run, with all its measures.

  'commit' is that of the code, '' where the run does not know it.
  """
  seen = {name for members in groups.values() for run in members
          for name in run.results['measures'][split]}
  names = [name for name in measures.ALL if name in seen] + sorted(
      seen - set(measures.ALL))
  return _aligned([
      {'run': run.name, 'method': method, 'seed': run.results.get('seed'),
       'steps': run.results.get('steps'),
       'commit': run.results.get('commit') or ''} | run_row(
           run, split, names, of_curves)
      for method, members in groups.items() for run in members])


def _aligned(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns rows with the same columns, none of which is empty."""
  longest = max(rows, key=len)
  used = [column for column in longest
          if any(row.get(column) is not None for row in rows)]
  return [{column: row.get(column) for column in used} for row in rows]


def uncounted(groups: runs_lib.Groups) -> list[str]:
  """Returns a sentence for each part of the FLOPs that only some runs count."""
  counted = {name: {part for part, key in runs_lib.FLOP_PARTS.items()
                    if all(key in run.results.get('meter', {})
                           for run in members)}
             for name, members in groups.items()}
  sentences = []
  for part in [part for part in runs_lib.FLOP_PARTS if part != 'reading']:
    without = [name for name, parts in counted.items() if part not in parts]
    if 0 < len(without) < len(counted):
      sentences.append(f'The TFLOP of {", ".join(without)} leave out {part}, '
                       'which was not counted.')
  return sentences


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table with full precision; missing values are empty.

  Columns are those of all rows, in the order in which they come up.
  """
  text = io.StringIO()
  columns = list(dict.fromkeys(name for row in rows for name in row))
  writer = csv.DictWriter(text, columns, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table of methods, rounded for reading."""
  columns = [c for c in rows[0] if c.rpartition(' ')[2] not in _SPREAD]
  return _markdown([report.LABELS.get(c, c) for c in columns],
                   [[_cell(row, column) for column in columns] for row in rows])


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
  return ''.join('| ' + ' | '.join(
      cell.replace('|', '\\|') for cell in line) + ' |\n' for line in lines)


def _cell(row: Mapping[str, Any], column: str) -> str:
  """Returns 'mean ± sd (min..max)', or 'mean' where all seeds agree."""
  value = row[column]
  if value is None or column in ('method', 'seeds'):
    return '' if value is None else str(value)
  shown = _COSTS.get(
      column, '{:,.0f}' if column.startswith(curves.STEPS_TO) else '{:.4f}'
  ).format
  sd, least, greatest = (row.get(f'{column} {name}') for name in _SPREAD)
  if least is None or shown(least) == shown(greatest):
    return shown(value)
  return f'{shown(value)} ± {shown(sd)} ({shown(least)}..{shown(greatest)})'


def differences_markdown(found: Sequence[differences.Difference]) -> str:
  """Returns the second table."""
  return _markdown(
      ['method', 'against', 'difference', 'standard error', '95 % interval',
       'paired', 'exceeds both spreads'],
      [[d.method, d.against, f'{d.points:+.2f}',
        '' if d.error is None else f'{d.error:.2f}',
        '' if d.interval is None else
        f'{d.interval[0]:+.2f}..{d.interval[1]:+.2f}',
        'yes' if d.paired else 'no', d.verdict] for d in found])
