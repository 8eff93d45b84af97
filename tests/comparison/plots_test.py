"""Figures show every method, apart from the others, and what it logged."""

import dataclasses
import os
import struct
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from matplotlib import colors

from retrieval_jax.comparison import plots
from retrieval_jax.comparison import runs as runs_lib
from tests.comparison import made_up


class PlotsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = self.create_tempdir().full_path
    self.path = os.path.join(self.root, 'out', 'figure.png')

  def groups(self, methods, **options):
    sweep = made_up.write_sweep(
        os.path.join(self.root, f'sweep{len(os.listdir(self.root))}'), methods,
        **options)
    workdirs, _ = runs_lib.in_sweep(sweep)
    return runs_lib.group_seeds([
        runs_lib.read_run(*pair, 'dev', 'RR@10')
        for pair in zip(workdirs, runs_lib.names_of(workdirs))])

  def drawn(self, plot, *arguments):
    """Returns the figure instead of writing it."""
    with mock.patch.object(plots, '_save') as save:
      plot(self.path, *arguments)
    return save.call_args.args[0]

  def lines(self, axes):
    return {line.get_label(): line for line in axes.get_lines()
            if not line.get_label().startswith('_')}

  def legend(self, figure):
    [legend] = figure.legends
    return [text.get_text() for text in legend.get_texts()]

  def test_a_whole_png_is_written(self):
    plots.quality_against_cost(
        self.path, self.groups({'a': (0.5,)}), {}, 'MRR@10')
    with open(self.path, 'rb') as f:
      head = f.read(24)
    self.assertEqual(head[:8], b'\x89PNG\r\n\x1a\n')
    self.assertGreater(struct.unpack('>II', head[16:])[0], 1000)
    self.assertEqual(os.listdir(os.path.dirname(self.path)), ['figure.png'])

  def test_spreads_are_of_the_steps_that_all_have(self):
    self.assertEqual(
        plots.spreads([{0: (0, 1.), 5: (10, 2.)}, {5: (20, 5.), 9: (1, 1.)},
                       {5: (60, 2.)}]),
        [plots.Spread((30, 10, 60), (3., 2., 5.))])
    self.assertEqual(plots.spreads([]), [])

  def test_quality_is_drawn_against_calls_flops_and_seconds(self):
    groups = self.groups({'a': (0.5, 0.75)}, num_seeds=2)
    figure = self.drawn(
        plots.quality_against_cost, groups, {'BM25': 0.25}, 'MRR@10 on dev')
    self.assertEqual([axes.get_xlabel() for axes in figure.axes], [
        'target-encoder calls (texts)', 'FLOP', 'time (s)'])
    for axes, x in zip(figure.axes, (
        (200, 200 + 2000 / 3, 1200), (200e9, 2200e9, 3200e9), (0, 40, 60))):
      line = self.lines(axes)['a (2 seeds)']
      for found, expected in zip(line.get_xdata(), x, strict=True):
        self.assertAlmostEqual(found / x[-1], expected / x[-1])
      for found, expected in zip(
          line.get_ydata(), (0, 0.625 * 2 / 3, 0.625), strict=True):
        self.assertAlmostEqual(found, expected)
      [band] = axes.collections
      self.assertAlmostEqual(band.get_paths()[0].vertices[:, 1].max(), 0.75)
    self.assertEqual(figure.axes[0].get_ylabel(), 'MRR@10 on dev')

  def test_a_method_evaluated_once_is_a_point_with_error_bars(self):
    groups = self.groups({'a': (0.375, 0.875, 0.25)}, curve=False)
    figure = self.drawn(plots.quality_against_cost, groups, {}, 'MRR@10')
    for axes in figure.axes:
      [bars] = axes.containers
      self.assertEqual(bars.lines[0].get_ydata(), [0.5])
      [segments] = bars.lines[2]  # none along x: all seeds cost the same
      self.assertEqual(segments.get_segments()[0][:, 1].tolist(), [0.25, 0.875])

  def test_the_front_is_of_what_nothing_cheaper_beats(self):
    points = [(4., .5), (1., .2), (2., .6), (2., .4), (1., .3), (8., .6),
              (9., .7)]
    self.assertEqual(plots.front(points), [(1., .3), (2., .6), (9., .7)])
    self.assertEqual(plots.front([]), [])
    groups = {name: [dataclasses.replace(run, curve=[
        dataclasses.replace(run.curve[-1], calls=calls, quality=quality)])]
              for (name, [run]), (calls, quality) in zip(self.groups(
                  {f'm{i}': (.5,) for i in range(len(points))},
                  num_seeds=1).items(), points)}
    figure = self.drawn(plots.quality_against_cost, groups, {}, 'MRR@10')
    front = self.lines(figure.axes[0])['Pareto front']
    self.assertEqual(list(front.get_xdata()), [1., 2., 9.])
    self.assertEqual(list(front.get_ydata()), [.3, .6, .7])

  def test_a_baseline_far_away_does_not_squeeze_the_methods(self):
    groups = self.groups({'a': (0.5, 0.75, 0.625)}, curve=False)
    figure = self.drawn(
        plots.quality_against_cost, groups, {'BM25': 0.1}, 'MRR@10')
    for axes in figure.axes:
      self.assertGreater(axes.get_ylim()[0], 0.45)
      self.assertEqual(
          list(self.lines(axes)['BM25: 0.100'].get_ydata()), [0.1, 0.1])
    self.assertIn('BM25: 0.100', self.legend(figure))

  def test_costs_far_apart_get_a_log_axis_without_zero(self):
    groups = self.groups({'a': (0.5,)}) | self.groups(
        {'b': (0.5,)}, calls=90000)
    figure = self.drawn(plots.quality_against_cost, groups, {}, 'MRR@10')
    calls, flops, seconds = figure.axes
    self.assertEqual([axes.get_xscale() for axes in (calls, flops, seconds)],
                     ['log', 'log', 'linear'])
    far = self.groups({'c': (0.5,)}, seconds=6000.)
    figure = self.drawn(
        plots.quality_against_cost, groups | far, {}, 'MRR@10')
    seconds = figure.axes[2]
    self.assertEqual(seconds.get_xscale(), 'log')
    self.assertGreater(self.lines(seconds)['a'].get_xdata()[0], 0)

  def test_many_methods_look_different_and_stand_in_order_of_quality(self):
    methods = {f'm{i}': (i / 16,) for i in range(1, 15)}
    groups = self.groups(methods, num_seeds=1)
    figure = self.drawn(
        plots.quality_against_cost, groups, {'BM25': 0.26}, 'MRR@10')
    lines = self.lines(figure.axes[0])
    looks = {(colors.to_hex(line.get_color()), line.get_marker())
             for name, line in lines.items() if name in methods}
    self.assertLen(looks, 14)
    # Two of one colour also differ in their dashes.
    self.assertLen({(colors.to_hex(line.get_color()), str(line._dash_pattern))
                    for name, line in lines.items() if name in methods}, 14)
    self.assertEqual(lines['m7'].get_markerfacecolor(), plots._COLOURS[6])
    self.assertEqual(lines['m8'].get_markerfacecolor(), 'white')
    self.assertEqual(self.legend(figure), [
        *(f'm{i}' for i in range(14, 4, -1)), 'BM25: 0.260',
        *(f'm{i}' for i in range(4, 0, -1)), 'Pareto front'])
    figure.draw_without_rendering()
    [legend] = figure.legends
    box = legend.get_window_extent()
    self.assertGreaterEqual(box.y0, 0)
    self.assertLessEqual(box.y1, figure.bbox.y1)
    for axes in figure.axes:
      self.assertLess(axes.get_window_extent().x1, box.x0)

  def test_a_long_legend_makes_the_figure_higher(self):
    groups = self.groups({f'm{i}': (i / 30,) for i in range(1, 29)},
                         num_seeds=1, curve=False)
    figure = self.drawn(plots.quality_against_cost, groups, {}, 'MRR@10')
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    self.assertGreaterEqual(box.y0, 0)
    self.assertLessEqual(box.y1, figure.bbox.y1)

  def test_scalars_are_drawn_over_steps(self):
    groups = self.groups({'a': (0.5, 0.5)}, num_seeds=2, diagnostics={
        'diagnostics/kl': (1., 0.1, 0.01), 'diagnostics/tv': (0.4, 0.5, 0.6)})
    [first, second] = groups['a']
    for line in second.log:  # the second seed is off by a factor of 3
      if 'diagnostics/tv' in line:
        line['diagnostics/tv'] *= 3
    groups |= self.groups({'none': (0.5,)}, num_seeds=1)
    figure = self.drawn(plots.over_steps, groups,
                        ['diagnostics/kl', 'diagnostics/tv'])
    kl, tv = figure.axes
    self.assertEqual([axes.get_title() for axes in (kl, tv)],
                     ['diagnostics/kl', 'diagnostics/tv'])
    self.assertEqual([axes.get_yscale() for axes in (kl, tv)],
                     ['log', 'linear'])
    self.assertEqual(list(self.lines(tv)), ['a (2 seeds)'])
    line = self.lines(tv)['a (2 seeds)']
    self.assertEqual(list(line.get_xdata()), [10, 20, 30])
    for found, expected in zip(line.get_ydata(), (0.8, 1.0, 1.2), strict=True):
      self.assertAlmostEqual(found, expected)
    [band] = tv.collections
    self.assertAlmostEqual(band.get_paths()[0].vertices[:, 1].min(), 0.4)
    self.assertEqual(self.legend(figure), ['a (2 seeds)'])

  def test_rounding_errors_do_not_stretch_a_log_axis(self):
    groups = self.groups({'a': (0.5,)}, num_seeds=1, diagnostics={
        'diagnostics/kl': (1., 1e-15, 0.)})
    figure = self.drawn(plots.over_steps, groups, ['diagnostics/kl'])
    bottom, _ = figure.axes[0].get_ylim()
    self.assertAlmostEqual(bottom, 0.8e-5)

  def test_a_seed_without_the_scalar_does_not_hide_the_others(self):
    groups = self.groups({'a': (0.5, 0.5)}, num_seeds=2, diagnostics={
        'diagnostics/kl': (1., 2., 3.)})
    for line in groups['a'][0].log:
      line.pop('diagnostics/kl', None)
    figure = self.drawn(plots.over_steps, groups, ['diagnostics/kl'])
    self.assertIn('a (2 seeds)', self.lines(figure.axes[0]))

  def test_a_group_looks_alike_in_both_figures(self):
    groups = self.groups({'a': (0.5,), 'b': (0.75,)}, num_seeds=1)
    cost = self.drawn(plots.quality_against_cost, groups, {}, 'MRR@10')
    steps = self.drawn(plots.over_steps, groups, ['train/nll'])
    for name in groups:
      first, second = (self.lines(figure.axes[0])[name]
                       for figure in (cost, steps))
      self.assertEqual((first.get_color(), first.get_marker()),
                       (second.get_color(), second.get_marker()))


if __name__ == '__main__':
  absltest.main()
