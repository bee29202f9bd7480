"""Grids of two settings, what is inside the FFN, loss spikes: what the pictures are drawn from."""

import csv
import io
import itertools
import json

import numpy as np
import pytest

from transformer.analysis import curves, drawing, inside, page, plots, report, sweep, table
from transformer.analysis.grid import grid, selected, sentences
from transformer.analysis.load import load
from transformer.analysis.theme import DARK, LIGHT, looks

from .conftest import write_folder

BY = 'ffn.activation,optim.learning_rate'
FAILED = tuple(f'gelu-seed{i}' for i in range(4))


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """relu and gelu at four rates; relu is best at .008, gelu at .001; at .064 gelu is lost."""
  at = tmp_path_factory.mktemp('runs')
  losses = {0.001: (0.1, 0.0), 0.008: (0.0, 0.02), 0.016: (0.05, 0.03), 0.064: (5.0, 0.1)}
  return [
    write_folder(
      at / str(rate),
      variants={'relu': (relu, 0.0), 'gelu': (gelu, 0.004)},
      settings={'optim.learning_rate': rate},
      failed=FAILED if rate == 0.064 else (),
      inside=rate > 0.001,
      spikes={'relu-seed1': (250, 300)} if rate == 0.008 else None,
    )
    for rate, (relu, gelu) in losses.items()
  ]


@pytest.fixture(scope='module')
def both(folders):
  return load(folders, BY, 'relu, 0.008')


def test_the_grid_has_a_line_for_each_value_and_knows_its_best(both):
  found = grid(both)
  assert (found.x, found.other) == ('optim.learning_rate', 'ffn.activation')
  relu, gelu = found.lines
  assert [x for x, _ in relu.points] == found.xs == [0.001, 0.008, 0.016, 0.064]
  assert (relu.best[0], relu.at_edge) == (0.008, False)
  assert (gelu.best[0], gelu.at_edge) == (0.001, True)
  assert [x for x, _ in gelu.shown] == [0.001, 0.008, 0.016] and sweep._lost(gelu) == [0.064]
  said = sentences(both)
  assert said[0].startswith('Each at its best learning_rate, picked on this same held-out text: ')
  assert '`relu` 3.8' in said[0] and 'at 0.008' in said[0]
  assert said[1].startswith('The best learning_rate of `gelu` is the least or the largest tried')


def test_two_settings_without_a_number_are_no_grid(folders):
  assert grid(load(folders, 'ffn.activation,optim.schedule')) is None
  assert grid(load(folders, 'ffn.activation')) is None


def test_curves_show_the_best_of_each_line(both):
  assert {v.name for v in selected(both, 12)} == {'relu, 0.008', 'gelu, 0.001'}
  assert 'Each activation at its best learning_rate.' in curves.caption(both)


def test_a_line_has_one_look_and_the_baseline_is_in_ink(both):
  found = looks(both, LIGHT)
  assert {found[f'relu, {r}'].colour for r in ('0.001', '0.008', '0.016')} == {LIGHT.ink}
  assert found['gelu, 0.001'] == found['gelu, 0.016'] != found['relu, 0.001']


def test_looks_repeat_no_colour_with_the_same_dash(run_folder):
  found = load(run_folder(variants={f'v{i}': (0.01 * i, 0.0) for i in range(20)}, baseline='v0'))
  for theme in (LIGHT, DARK):
    assert len(set(looks(found, theme).values())) == 20
  assert len(selected(found, 12)) == 12


def test_what_ran_wild_does_not_flatten_the_picture(both):
  _, high = sweep._limits(list(grid(both).lines))
  assert 3.9 < high < 4.5  # relu at .064 has 8.8
  assert 'Means far above the rest are off the picture.' in sweep.grid_caption(both)
  assert 'Crosses at the top' in sweep.grid_caption(both)


def _axes():
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure((7, 4))
  FigureCanvasAgg(figure)
  return figure.add_subplot()


@pytest.mark.parametrize(
  ('values', 'scale', 'texts'),
  [
    ([0.001, 0.002, 0.004, 0.008], 'log', 4),
    ([1, 2, 3, 4], 'linear', 4),
    ([0, 1, 100], 'linear', 2),  # 0 and 1 would run into each other
    ([0.0010, 0.0011, 0.0012, 0.1], 'log', 2),
    ([5], 'linear', 1),
  ],
)
def test_an_axis_of_numbers(values, scale, texts):
  ax = _axes()
  drawing.number_axis(ax, {v: f'{v:g}' for v in values}, 'x')
  assert ax.get_xscale() == scale
  assert sum(bool(t.get_text()) for t in ax.get_xticklabels()) == texts
  low, high = ax.get_xlim()
  assert low < min(values) and high > max(values)


def test_labels_do_not_cover_each_other():
  from matplotlib.text import Text

  ax = _axes()
  ends = [drawing.End(1, 0.5 + 0.001 * i, f'line {i}', 'k') for i in range(8)]
  drawing.label_ends(ax, ends)
  ax.figure.canvas.draw()
  drawn = ax.figure.canvas.get_renderer()
  boxes = sorted((Text.get_window_extent(t, drawn) for t in ax.texts), key=lambda b: b.y0)
  assert len(boxes) == 8 and all(a.y1 <= b.y0 for a, b in itertools.pairwise(boxes))


def test_inside_the_ffn(both):
  assert inside.statistics(both) == ['zeros', 'kurtosis', 'effective_rank', 'up_norm']
  by_name = {v.name: v for v in both.variants}
  relu = by_name['relu, 0.008']
  layers = inside.layers(relu.cells[0], 'zeros')
  assert list(layers) == [0, 1] and layers[0] == pytest.approx(0.8, abs=0.05)
  # the last of four evaluations, mean over four seeds of the mean over two layers
  expected = np.mean(
    [[r['ffn/zeros/0'], r['ffn/zeros/1']] for c in relu.cells for r in c.rows[-1:]]
  )
  assert inside.mean(relu, 'zeros') == pytest.approx(expected)
  assert inside.mean(by_name['gelu, 0.008'], 'zeros') is None
  assert inside.mean(by_name['relu, 0.001'], 'kurtosis') is None
  headings, rows = inside.table(both)
  assert headings == [
    'activation', 'learning_rate', 'zeros (share)', 'kurtosis', 'effective rank', 'largest σ of up',
  ]  # fmt: skip
  row = next(r for r in rows if r[:2] == ['gelu', '0.008'])
  assert row[2] == '–' and float(row[3]) == pytest.approx(6, abs=0.5)
  assert [inside.number(x) for x in (0.4711, 1234.5, 3.14e-5, -2.0)] == [
    '0.471', '1,234', '3.14e−05', '−2',
  ]  # fmt: skip


def test_a_row_that_is_not_an_evaluation_hides_nothing(run_folder):
  folder = run_folder(variants={'relu': (0, 0)}, seeds=1, inside=True)
  (path,) = folder.glob('cells/*/metrics.jsonl')
  path.write_text(path.read_text() + json.dumps({'step': 400, 'train/loss': 3.8}) + '\n')
  found = load(folder)
  assert inside.layers(found.cells[0], 'kurtosis').keys() == {0, 1}
  assert inside.layers(found.cells[0], 'kurto') == {}


def test_spikes_are_marked_and_counted(folders, both):
  curve = next(c for c in curves._curves(both) if c.name == 'relu, 0.008')
  relu = {v.name: v for v in both.variants}['relu, 0.008'].cells[1]
  own = dict(zip(*relu.series('train/loss'), strict=True))
  assert curve.spikes == ((250, own[250]), (300, own[300]))  # where the loss was, not the line
  assert 'Crosses: rows with loss spikes of any seed, at their loss.' in curves.caption(both)
  column = next(c for c in table.columns(both) if c.heading == 'loss spikes')
  assert {v.name: column.show(v) for v in both.variants}['relu, 0.008'] == '2'
  without = load(folders[0])
  assert 'loss spikes' not in [c.heading for c in table.columns(without)]
  assert 'Crosses' not in curves.caption(without)


def test_every_picture_is_drawn_and_the_report_holds_it(both):
  pictures = plots.draw(both)
  assert [p.name for p in pictures] == ['variable', 'loss', 'differences', 'inside']
  assert all(p.light.startswith(b'\x89PNG') and p.light != p.dark for p in pictures)
  html = page.html(both, pictures)
  order = [html.find(t) for t in ('<figure>', '<table>', 'Inside the FFN', 'zeros (share)')]
  assert -1 not in order and order == sorted(order)  # of a grid the picture comes first
  text = report.markdown(both, pictures)
  assert '## Inside the FFN' in text and '![inside](plots/inside.png)' in text
  assert '| activation | learning_rate | zeros (share) |' in text
  rows = {r['variant']: r for r in csv.DictReader(io.StringIO(report.summary(both)))}
  row = rows['gelu, 0.016']
  assert (row['ffn.activation'], row['optim.learning_rate']) == ('gelu', '0.016')
  assert row['ffn/zeros'] == '' and float(row['ffn/kurtosis']) > 5
  assert rows['relu, 0.008']['loss_spikes'] == '2'


def test_without_rows_of_the_ffn_there_is_no_such_section(folders):
  found = load(folders[0])
  pictures = plots.draw(found)
  assert 'inside' not in [p.name for p in pictures]
  assert 'Inside the FFN' not in page.html(found, pictures) + report.markdown(found, pictures)
