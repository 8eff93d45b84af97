"""Compares finished runs: writes tables and figures into a folder."""

from collections.abc import Sequence
import os
import statistics

from retrieval_jax import files
from retrieval_jax.comparison import curves as curves_lib
from retrieval_jax.comparison import differences
from retrieval_jax.comparison import plots
from retrieval_jax.comparison import runs as runs_lib
from retrieval_jax.comparison import tables
from retrieval_jax.evaluation import report


def run(workdirs: Sequence[str], out: str, *, runs: Sequence[str] = (),
        split: str = 'dev', measure: str = 'RR@10',
        choose_on: str | None = None, references: Sequence[str] = (),
        pairs: Sequence[str] = (), curves: Sequence[str] = (),
        steps_to: str | None = None) -> str:
  """Writes the comparison into `out` and returns its Markdown tables.

  Args:
    workdirs: folders of finished runs.
    out: folder to write to.
    runs: files runs.csv of earlier comparisons, whose runs are added.
    split: whose measures are shown.
    measure: what is plotted, judged and chosen by.
    choose_on: the split on which the best setting of each method is chosen;
      None to show all.
    references: methods that all others are judged against, each.
    pairs: 'A:B', methods A to be judged against methods B.
    curves: names of logged scalars to plot over steps.
    steps_to: a method; in how many steps each reaches its final measure on dev
      is shown.

  Raises:
    FileNotFoundError: if a run has not finished.
    ValueError: if there is no such split, measure, method or scalar.
  """
  if not (workdirs or runs):
    raise ValueError(
        'Expected --sweep=DIR or --workdirs=A,B,... with at least one folder, '
        'or --runs=FILE.')
  groups: runs_lib.Groups = runs_lib.group_seeds([
      runs_lib.read_run(workdir, name, split, measure)
      for workdir, name in zip(workdirs, runs_lib.names_of(workdirs))] + [
          run for path in runs
          for run in runs_lib.read_table(path, split, measure)])
  of_curves = curves_lib.columns(groups, measure, steps_to)
  every_run = tables.to_csv(tables.tabulate_runs(groups, split, of_curves))
  sentences: list[str] = []
  if choose_on:
    groups, sentences = differences.choose(groups, choose_on, measure)
  sentences += curves_lib.sentences(
      of_curves, report.LABELS.get(measure, measure))
  sentences += tables.uncounted(groups)
  judged = [(name, reference) for reference in references for name in groups
            if name != reference]
  for pair in pairs:
    method, colon, against = pair.partition(':')
    if not colon:
      raise ValueError(f'Expected --pairs=A:B,..., got {pair!r}.')
    judged.append((method, against))
  found = [differences.difference(groups, *pair, split, measure)
           for pair in dict.fromkeys(judged)]
  rows = tables.tabulate(groups, split, measure, of_curves)
  label = f'{report.LABELS.get(measure, measure)} on {split}'
  parts = [f'# Comparison on {split}\n', tables.to_markdown(rows),
           *(f'{sentence}\n' for sentence in sentences)]
  if found:
    parts += [f'## Differences in {label}, in points\n',
              tables.differences_markdown(found)]
  markdown = '\n'.join(parts)
  if curves:  # first of all, because it may refuse a name
    plots.over_steps(os.path.join(out, 'curves.png'), groups, curves)
  files.write_text(os.path.join(out, 'comparison.csv'), tables.to_csv(rows))
  files.write_text(os.path.join(out, 'runs.csv'), every_run)
  heat_maps = of_forgetting(groups)
  figures = [f'![{label} against cost](comparison.png)\n',
             *(['![Scalars over steps](curves.png)\n'] if curves else []),
             *(['![What is forgotten](forgetting.png)\n']
               if heat_maps else [])]
  files.write_text(os.path.join(out, 'comparison.md'),
                  '\n'.join([markdown, *figures]))
  if heat_maps:
    plots.heat_maps(
        os.path.join(out, 'forgetting.png'), heat_maps,
        'Pairs of a group that are ranked right, %')
  baselines = tables.baselines(
      [run for members in groups.values() for run in members], split)
  plots.quality_against_cost(
      os.path.join(out, 'comparison.png'), groups,
      {name: values[measure] for name, values in baselines.items()
       if values.get(measure) is not None}, label)
  return markdown


def of_forgetting(groups: runs_lib.Groups) -> dict[str, tuple]:
  """Returns name -> (steps, accuracies), means over seeds, of those that have.

  Of a group whose seeds were looked at after different steps, nothing.
  """
  found = {}
  for name, members in groups.items():
    looks = [run.forgetting for run in members if run.forgetting]
    if looks and all(look['steps'] == looks[0]['steps'] for look in looks):
      found[name] = looks[0]['steps'], [
          [None if None in values else statistics.fmean(values)
           for values in zip(*rows)]
          for rows in zip(*(look['accuracy'] for look in looks))]
  return found
