"""What a run leaves behind and prints at its end."""

from collections.abc import Mapping
import math
import os
from typing import Any

import numpy as np
import rich.table

from retrieval_jax import files

RESULTS_FILE = 'results.json'
LABELS = {'RR@10': 'MRR@10', 'R@1': 'Recall@1', 'R@20': 'Recall@20',
          'R@100': 'Recall@100'}
"""The measures that tables show, and what the field calls them."""
OF_ANSWERS = {name: name for name in ('Answer@1', 'Answer@20', 'EM', 'F1')}
"""And those of a split with answers."""


def write_results(workdir: str, results: Mapping[str, Any]) -> str:
  """Writes results.json whole or not at all, and returns its path.

  Numbers of numpy and jax become plain ones; infinities and nan become null,
  which strict JSON cannot express.
  """
  path = os.path.join(workdir, RESULTS_FILE)
  files.write_json(path, _plain(results))
  return path


def is_finished(workdir: str) -> bool:
  """Returns whether a run in `workdir` has written its final results.

  Results of an evaluation half-way through have fewer steps than their config
  asks for.
  """
  if not os.path.exists(os.path.join(workdir, RESULTS_FILE)):
    return False
  results = read_results(workdir)
  wanted = (results.get('config') or {}).get('num_steps', 0)
  return results.get('steps', wanted) >= wanted


def read_results(workdir: str) -> dict[str, Any]:
  """Returns the results of a finished run.

  Raises:
    FileNotFoundError: if the run has not finished.
    ValueError: naming the file, if it is damaged.
  """
  path = os.path.join(workdir, RESULTS_FILE)
  if not os.path.exists(path):
    raise FileNotFoundError(
        f'Expected {path}, which a run writes at its end; finish the run (the '
        'same command resumes it) or leave this folder out.')
  results = files.read_object(path)
  for name in ('measures', 'config', 'meter'):
    if not isinstance(results.get(name), dict | None):
      raise ValueError(
          f'{path}: expected {name!r} to be an object, got '
          f'{type(results[name]).__name__}. Remove the file; the command of '
          'the run, given again, writes it anew.')
  return results


def measured_step(results: Mapping[str, Any]) -> int | None:
  """Returns the step of the checkpoint that results are of."""
  return (results.get('best') or {}).get('step', results.get('steps'))


def _plain(value: Any) -> Any:
  """Returns the value in types that JSON knows."""
  if isinstance(value, Mapping):
    return {str(name): _plain(item) for name, item in value.items()}
  if value is None or isinstance(value, (str, bool)):
    return value
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, int):
    return value
  if hasattr(value, 'to_dict'):  # an ml_collections ConfigDict
    return _plain(value.to_dict())
  if hasattr(value, 'dtype'):
    return _plain(np.asarray(value).tolist())
  return str(value)


def results_table(results: Mapping[str, Any], split: str = 'test'
                  ) -> rich.table.Table:
  """Returns a table of BM25, the untrained and the trained encoder.

  Args:
    results: the content of results.json.
    split: whose measures are shown.

  Raises:
    ValueError: if that split was not evaluated.
  """
  if split not in results.get('measures', {}):
    raise ValueError(
        f'Expected measures of split {split!r}, got those of '
        f'{sorted(results.get("measures", {}))}; name one of these.')
  table = rich.table.Table(title=f'{split} queries, whole corpus')
  table.add_column('', no_wrap=True)
  rows = (('BM25', results.get('bm25') or {}),
          ('untrained encoder', results.get('untrained') or {}),
          ('trained encoder', results['measures']))
  measured = results['measures'][split]
  labels = {name: label for name, label in {**LABELS, **OF_ANSWERS}.items()
            if name in measured} or LABELS
  for label in labels.values():
    table.add_column(label, justify='right')
  for label, of_split in rows:
    values = of_split.get(split)
    if values:
      table.add_row(label, *(
          _shown(values.get(name), '.3f') for name in labels),
          style='bold' if label == 'trained encoder' else None)
  return table


def measures_table(title: str, rows: Mapping[str, Mapping[str, float]], *,
                   bold: str | None = None) -> rich.table.Table:
  """Returns a table of measures.

  Args:
    title: above it.
    rows: {label of the row: {measure: value}}.
    bold: label of the row that is printed in bold.
  """
  table = rich.table.Table(title=title)
  table.add_column('', no_wrap=True)
  names = list(dict.fromkeys(name for row in rows.values() for name in row))
  for name in names:
    table.add_column(name, justify='right')
  for label, values in rows.items():
    table.add_row(label, *(_shown(values.get(name), '.4f') for name in names),
                  style='bold' if label == bold else None)
  return table


def by_form(measures: Mapping[str, float]) -> dict[str, dict[str, float]]:
  """Returns {form: {measure: value}} of {'MEASURE/FORM': value}.

  The form is that of the embeddings: '' for whole floats, which come first,
  '64' for a prefix, 'int8', '64/int8'. Of one of several data sets it begins
  with the name of that, as in 'SET' and 'SET/64'; MEASURE alone is the mean.
  """
  forms: dict[str, dict[str, float]] = {'': {}}
  for name, value in measures.items():
    measure, _, form = name.partition('/')
    if measure not in measures:  # 'SET/MEASURE/FORM'
      of_set, (measure, _, form) = measure, form.partition('/')
      form = f'{of_set}/{form}' if form else of_set
    forms.setdefault(form, {})[measure] = value
  return forms


def labelled(label: str, form: str) -> str:
  """Returns the label of a form of a system, as in 'encoder, int8'."""
  return f'{label}, {form}' if form else label


def encoder_tables(results: Mapping[str, Any]) -> list[rich.table.Table]:
  """Returns the tables of an encoder that was evaluated as it is.

  Of one data set it is a table per split, with a row per form (`by_form`), of
  several one per split, system and form, with the mean over the sets below
  them.

  Args:
    results: what `jobs.evaluate.of_config` returns.
  """
  tables = []
  for split in results['measures']:
    # system and form -> data set, or '' for all of them -> measures
    rows: dict[str, dict[str, Mapping[str, float]]] = {}
    for label, kind in (('BM25', 'bm25'), ('encoder', 'measures')):
      of_sets = {name: of_set[kind].get(split) or {} for name, of_set in
                 {**results.get('sets', {}), '': results}.items()}
      for name, measures in of_sets.items():
        for form, values in by_form(measures).items():
          if values:
            rows.setdefault(labelled(label, form), {})[name] = values
    if 'sets' not in results:
      tables.append(measures_table(
          f'{results["data"]}: {split} queries, whole corpus',
          {label: of_sets[''] for label, of_sets in rows.items()},
          bold='encoder'))
      continue
    mean_of = f'mean of {len(results["sets"])}'
    for label, of_sets in rows.items():
      tables.append(measures_table(
          f'{label}: {split} queries, whole corpus',
          {name or mean_of: values for name, values in of_sets.items()},
          bold=mean_of))
  return tables


def meter_table(results: Mapping[str, Any]) -> rich.table.Table:
  """Returns a table of what the run cost."""
  meter = results['meter']
  table = rich.table.Table(title='what it cost')
  table.add_column('', no_wrap=True)
  table.add_column('', justify='right')
  calls = {
      'query-encoder calls': 'query_encoder_calls',
      'target-encoder calls in the step': 'target_encoder_calls_in_step',
      'targets re-embedded': 'target_encoder_calls_reembedding'}
  flops = {'encoder TFLOP in the step': 'flops_in_step',
           'encoder TFLOP re-embedding': 'flops_reembedding',
           'TFLOP scoring': 'flops_scoring',
           'TFLOP correcting': 'flops_correcting'}
  if 'flops_indexing' in meter:
    flops['TFLOP indexing'] = 'flops_indexing'
  if 'reader_calls' in meter:
    calls['passages read'] = 'reader_calls'
    flops['TFLOP reading'] = 'flops_reading'
  for label, name in calls.items():
    table.add_row(label, _shown(meter.get(name), ',.0f'))
  for label, name in flops.items():
    value = meter.get(name)
    table.add_row(label, _shown(None if value is None else value / 1e12,
                                ',.2f'))
  for label, name in (
      ('table', 'table_bytes'), ('index', 'index_bytes'),
      ('alive on the devices', 'device_bytes'), ('on the host', 'host_bytes')):
    value = meter.get(name)
    table.add_row(
        f'{label}, MiB', _shown(None if value is None else value / 2**20,
                                ',.1f'))
  for phase, seconds in meter.get('seconds', {}).items():
    table.add_row(f'seconds, {phase}', _shown(seconds, ',.1f'),
                  style='bold' if phase == 'total' else None)
  return table


def _shown(value: float | None, form: str) -> str:
  return '-' if value is None else format(value, form)
