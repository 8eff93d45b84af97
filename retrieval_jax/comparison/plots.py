"""Figures of finished runs: quality against cost, and scalars over steps.

A group of seeds is drawn as its mean with a band from its least to its
greatest value, or with such error bars where it has a single point. A group
looks the same in all figures.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
import statistics
from typing import Any

import matplotlib
from matplotlib import figure as figures
from matplotlib import ticker
import numpy as np

from retrieval_jax.comparison import runs as runs_lib

# Okabe and Ito's palette without its yellow (too pale on white): apart for
# every common colour blindness. There are 8 markers to 7 colours, so that 56
# groups differ, and markers also tell them apart in grey. The second time round
# markers are hollow and lines dashed.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00',
            '#000000')
_MARKERS = 'osD^vPX*'
_DASHES = ('-', (0, (5, 1.5)), (0, (1.5, 1)))
_STYLE: Any = {'font.size': 9, 'axes.spines.top': False, 'axes.grid': True,
          'axes.spines.right': False, 'grid.alpha': 0.3, 'grid.linewidth': 0.6,
          'savefig.dpi': 200, 'axes.axisbelow': True}
_FRONT = 'Pareto front'
_DECADES = 5  # a log axis shows no more; what is smaller is as good as 0


@dataclasses.dataclass(frozen=True)
class Spread:
  """Mean, least and greatest over seeds of one point of a curve."""
  x: tuple[float, float, float]
  y: tuple[float, float, float]


def spreads(curves: Sequence[Mapping[int, tuple[float, float]]]
            ) -> list[Spread]:
  """Returns the points at the steps that all curves (step -> x, y) have."""
  if not curves:
    return []
  found = []
  for step in sorted(set.intersection(*map(set, curves))):
    x, y = zip(*(curve[step] for curve in curves))
    found.append(Spread((statistics.fmean(x), min(x), max(x)),
                        (statistics.fmean(y), min(y), max(y))))
  return found


def quality_against_cost(path: str, groups: runs_lib.Groups,
                         baselines: Mapping[str, float], label: str) -> None:
  """Draws quality against target-encoder calls, FLOPs and seconds.

  Args:
    path: of the PNG.
    groups: runs by name.
    baselines: quality by name, drawn as horizontal lines. The axis is that of
      the groups; the legend has the number of a baseline outside of it.
    label: of the quality axis.
  """
  unit, seconds_per_unit = _time_unit(groups.values())
  with matplotlib.rc_context(_STYLE):
    figure = figures.Figure(figsize=(10.5, 3.3), layout='constrained')
    panels = figure.subplots(1, 3, sharey=True)
    for axes, axis, x_label, divisor in zip(
        panels, ('calls', 'flops', 'seconds'),
        ('target-encoder calls (texts)', 'FLOP', f'time ({unit})'),
        (1, 1, seconds_per_unit)):
      curves = {name: _cost_curve(members, axis, divisor)
                for name, members in groups.items()}
      log = _is_log(curves.values())
      if log:  # which has no place for 0; 'untrained' shows the same number
        curves = {name: [point for point in curve if point.x[0] > 0]
                  for name, curve in curves.items()}
      ends = [(curve[-1].x[0], curve[-1].y[0])
              for curve in curves.values() if curve]
      if len(ends) > 2:
        axes.step(*zip(*front(ends)), where='post', color='0.6', linewidth=1,
                  linestyle=(0, (4, 2)), label=_FRONT, zorder=0)
      for number, (name, curve) in enumerate(curves.items()):
        _draw(axes, curve, number, _legend_name(name, groups[name]))
      axes.set_xlabel(x_label)
      form = '{x:g}' if axis == 'seconds' else ticker.EngFormatter(sep='')
      if log:
        _set_log(axes, axes.xaxis, form)
      else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.xaxis.set_major_formatter(form)
        axes.set_xlim(left=0)
    limits = panels[0].get_ylim()
    for axes in panels:
      for number, (name, value) in enumerate(baselines.items()):
        axes.axhline(value, color='0.35', linewidth=1,
                     label=_baseline_name(name, value),
                     linestyle=((0, (1, 1.5)), (0, (5, 2)), (0, (5, 1, 1, 1))
                                )[number % 3])
    panels[0].set_ylim(limits)
    panels[0].set_ylabel(label)
    # Read from top to bottom, the legend is in the order of the final quality.
    quality = {_baseline_name(*item): item[1] for item in baselines.items()} | {
        _legend_name(name, members): statistics.fmean(
            run.curve[-1].quality for run in members)
        for name, members in groups.items()}
    _legend(figure, panels, [*sorted(
        quality, key=quality.__getitem__, reverse=True), _FRONT])
    _save(figure, path)


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
  """Returns the (cost, quality) that no other beats at its cost or less.

  The Pareto front of the means; cheapest first, each better than those before.
  """
  found: list[tuple[float, float]] = []
  for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
    if not found or quality > found[-1][1]:
      found.append((cost, quality))
  return found


def over_steps(path: str, groups: runs_lib.Groups,
               names: Sequence[str]) -> None:
  """Draws logged scalars over training steps, one panel each.

  The axis is logarithmic where positive values span more than a decade.
  Groups that did not log a scalar are left out of its panel.

  Raises:
    ValueError: if no run logged one of the names.
  """
  runs = [run for members in groups.values() for run in members]
  logged = {name for run in runs for line in run.log for name in line}
  logged -= {'step'}
  for name in names:
    if name not in logged:
      raise ValueError(
          f'Expected --curves to name what metrics.jsonl holds, got {name!r}; '
          f'there is {", ".join(sorted(logged)) or "nothing"}.')
  columns = min(3, len(names))
  rows = -(-len(names) // columns)
  with matplotlib.rc_context(_STYLE):
    figure = figures.Figure(figsize=(2.8 * columns + 2.1, 2.6 * rows + 0.4),
                            layout='constrained')
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(names):]:
      axes.remove()
    for axes, name in zip(panels, names):
      curves = {group: _logged_curve(members, name)
                for group, members in groups.items()}
      for number, (group, curve) in enumerate(curves.items()):
        _draw(axes, curve, number, _legend_name(group, groups[group]))
      axes.set_title(name, fontsize='medium')
      axes.set_xlabel('step')
      axes.xaxis.set_major_locator(
          ticker.MaxNLocator(4, steps=(1, 2, 5, 10)))
      axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
      positive = [value for curve in curves.values() for point in curve
                  for value in point.y if value > 0]
      if positive and max(positive) > 10 * min(positive):
        axes.set_ylim(0.8 * max(min(positive), max(positive) / 10**_DECADES),
                      1.25 * max(positive))
        _set_log(axes, axes.yaxis, '{x:g}')
    _legend(figure, panels[:len(names)],
            [_legend_name(*group) for group in groups.items()])
    _save(figure, path)


def lines(path: str, curves: Mapping[str, Sequence[tuple[float, float]]],
          x: str, y: str) -> None:
  """Draws curves of (x, y) points under their names, one panel.

  Args:
    path: of the PNG.
    curves: name -> points in order.
    x: label of the horizontal axis.
    y: label of the vertical axis.
  """
  with matplotlib.rc_context(_STYLE):
    figure = figures.Figure(figsize=(5.6, 3.2), layout='constrained')
    axes = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
      _draw(axes, [Spread((at,) * 3, (value,) * 3) for at, value in points],
            number, name)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _legend(figure, [axes], list(curves))
    _save(figure, path)


def heat_maps(path: str, found: Mapping[str, tuple[
    Sequence[int], Sequence[Sequence[float | None]]]], title: str) -> None:
  """Draws a matrix under each name, with its numbers in percent.

  Args:
    path: of the PNG.
    found: name -> (steps of rows and columns, shares in [0, 1], None for none).
    title: above all.
  """
  columns = min(3, len(found))
  rows = -(-len(found) // columns)
  with matplotlib.rc_context(_STYLE | {'axes.grid': False}):
    figure = figures.Figure(figsize=(3.1 * columns, 2.7 * rows + 0.4),
                            layout='constrained')
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(found):]:
      axes.remove()
    for axes, (name, (steps, matrix)) in zip(panels, found.items()):
      values = np.array([[np.nan if value is None else 100 * value
                          for value in row] for row in matrix])
      axes.imshow(values, cmap='cividis', vmin=0, vmax=100)
      if len(steps) <= 8:  # else the numbers would run into each other
        for (row, column), value in np.ndenumerate(values):
          if np.isfinite(value):
            axes.text(column, row, f'{value:.0f}', ha='center', va='center',
                      color='black' if value > 50 else 'white')
      for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(len(steps)), [str(step) for step in steps])
      axes.set_xlabel('step of the look')
      axes.set_ylabel('step of the group')
      axes.set_title(name, fontsize='medium')
    figure.suptitle(title, fontsize='medium')
    _save(figure, path)


def _cost_curve(members: Sequence[runs_lib.FinishedRun], axis: str,
                divisor: float) -> list[Spread]:
  return spreads([
      {p.step: (getattr(p, axis) / divisor, p.quality) for p in run.curve
       if getattr(p, axis) is not None} for run in members])


def _logged_curve(members: Sequence[runs_lib.FinishedRun], name: str
                  ) -> list[Spread]:
  """Returns a scalar by step; members that never logged it do not count."""
  curves = [{int(line['step']): (line['step'], line[name]) for line in run.log
             if line.get(name) is not None} for run in members]
  return spreads([curve for curve in curves if curve])


def _draw(axes, curve: Sequence[Spread], number: int, label: str) -> None:
  """Draws a curve, or one point, in the look of group `number`."""
  if not curve:
    return
  x, y = ([getattr(point, name) for point in curve] for name in 'xy')
  colour, again = _COLOURS[number % len(_COLOURS)], number // len(_COLOURS)
  look = {'color': colour, 'marker': _MARKERS[number % len(_MARKERS)],
          'markerfacecolor': 'white' if again else colour}
  mean, least, greatest = zip(*y)
  if len(curve) == 1:
    bars = [_bar(*point) for point in (x[0], y[0])]
    axes.errorbar(x[0][0], mean, xerr=bars[0], yerr=bars[1], linestyle='',
                  markersize=5, elinewidth=1, capsize=2, label=label, **look)
    return
  axes.plot([point[0] for point in x], mean, linewidth=1.3, markersize=4,
            markevery=max(1, len(curve) // 6), label=label, **look,
            linestyle=_DASHES[again % len(_DASHES)])
  if least != greatest:
    axes.fill_between([point[0] for point in x], least, greatest,
                      color=colour, alpha=0.15, linewidth=0)


def _bar(mean: float, least: float, greatest: float
         ) -> list[list[float]] | None:
  if least == greatest:
    return None
  return [[mean - least], [greatest - mean]]


def _baseline_name(name: str, quality: float) -> str:
  return f'{name}: {quality:.3f}'


def _legend_name(name: str, members: Sequence[runs_lib.FinishedRun]) -> str:
  return name if len(members) == 1 else f'{name} ({len(members)} seeds)'


def _legend(figure, panels, order: Sequence[str]) -> None:
  """Draws one legend for all panels beside them, as a column."""
  handles: dict[str, Any] = {}
  for axes in panels:  # a group may have points in one of the panels only
    handles |= dict(reversed(pair) for pair in zip(
        *axes.get_legend_handles_labels()))
  labels = [name for name in order if name in handles]
  figure.legend([handles[name] for name in labels], labels, frameon=False,
                loc='outside right center', labelspacing=0.35)
  # A long legend makes the figure higher rather than being cut off.
  figure.set_figheight(max(figure.get_figheight(), 0.3 + 0.19 * len(labels)))


def _time_unit(groups: Iterable[Sequence[runs_lib.FinishedRun]]
               ) -> tuple[str, int]:
  """Returns the unit that gives the longest run a readable number."""
  longest = max((point.seconds or 0 for members in groups for run in members
                 for point in run.curve), default=0)
  for unit, seconds in (('h', 3600), ('min', 60)):
    if longest >= 3 * seconds:
      return unit, seconds
  return 's', 1


def _is_log(curves: Iterable[Sequence[Spread]]) -> bool:
  """Returns whether some group costs more than five times another."""
  ends = [curve[-1].x[0] for curve in curves if curve]
  ends = [end for end in ends if end > 0]
  return bool(ends) and max(ends) > 5 * min(ends)


def _set_log(axes, axis, form) -> None:
  """Makes an axis logarithmic; few decades get ticks at 1, 2 and 5."""
  (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)('log')
  low, high = axis.get_view_interval()
  axis.set_major_locator(ticker.LogLocator(
      subs=(1, 2, 5) if high < 50 * low else (1,)))
  axis.set_major_formatter(form)
  axis.set_minor_formatter(ticker.NullFormatter())


def _save(figure, path: str) -> None:
  """Writes the whole PNG, or leaves an earlier one untouched."""
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  temporary = path + '.partial.png'
  try:
    figure.savefig(temporary)
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)
