"""The written report: whole, self-contained, escaped, and readable on a narrow terminal."""

import csv
import html.parser
import io
import re

import numpy as np
import pytest
from rich.console import Console

from transformer.analysis import curves, drawing, plots, report, table
from transformer.analysis.load import load

PARTIAL = dict(
  failed=('silu-seed1',), unfinished=('gelu-seed3',), waiting=('identity-seed2', 'identity-seed3')
)


class _Page(html.parser.HTMLParser):
  """Checks that tags nest; collects tags and the text outside <style>."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.links, self.text = [], set(), [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.tags.add(tag)
    self.links += [v for k, v in attributes if k in ('src', 'srcset', 'href')]
    if tag not in ('meta', 'img', 'source'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'style' not in self.open:
      self.text.append(data)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  from .conftest import write_folder

  folder = write_folder(tmp_path_factory.mktemp('runs') / 'activations', **PARTIAL)
  report.write(folder)
  return folder


def test_every_file_is_written_and_nothing_else(written):
  made = {p.name for p in written.iterdir() if p.name != 'cells'}
  assert made == {
    'experiment.json', 'resolved.json', 'references.json',
    'report.html', 'report.md', 'summary.csv', 'table.tex', 'plots',
  }  # fmt: skip
  assert {p.name for p in (written / 'plots').iterdir()} == {'loss.png', 'differences.png'}
  assert (written / 'plots' / 'loss.png').read_bytes().startswith(b'\x89PNG')


def test_the_page_needs_nothing_from_outside(written):
  page = _Page((written / 'report.html').read_text())
  beside = [link for link in page.links if not link.startswith('data:image/png;base64,')]
  assert beside == ['summary.csv', 'table.tex', 'report.md'] and len(page.links) > 3
  assert all((written / name).exists() for name in beside)
  assert page.tags.isdisjoint({'script', 'link', 'iframe'})
  assert {'picture', 'source', 'table'} <= page.tags


def test_the_page_escapes_what_it_read(written):
  text = (written / 'report.html').read_text()
  assert 'ValueError: &lt;b&gt;shapes&lt;/b&gt; &amp; sizes' in text
  assert '<b>' not in text


def test_the_page_answers_first(written):
  text = ' '.join(''.join(_Page((written / 'report.html').read_text()).text).split())
  order = [
    'Which activation is best', 'beat relu', 'The next better experiment', 'Results',
    'difference to relu', 'Failed cells', 'Traceback', 'Unfinished cells',
    'step 120 of 400, training', 'Not started',
    'fingerprint', 'da7ada7a', 'Provenance', '0123456789abcdef', 'Protocol', 'How each number',
  ]  # fmt: skip
  places = [text.find(part) for part in order]
  assert -1 not in places and places == sorted(places)


def test_markdown_has_the_same(written):
  text = (written / 'report.md').read_text()
  assert '![loss](plots/loss.png)' in text
  row = next(line for line in text.splitlines() if line.startswith('| swiglu'))
  assert '| 319,968 | 256 |' in row and '−0.037 ± 0.007' in row and 'better' in row


def test_summary_csv_is_for_machines(written):
  text = (written / 'summary.csv').read_text()
  assert text.isascii()
  rows = {r['variant']: r for r in csv.DictReader(io.StringIO(text))}
  assert float(rows['swiglu']['difference_mean']) == pytest.approx(-0.037)
  assert rows['relu']['difference_mean'] == '' and rows['relu']['seeds_done'] == '4'
  assert rows['identity']['verdict'] == 'too few seeds'
  assert rows['identity']['loss_half_width_95'] == ''


def test_writing_again_replaces(written):
  before = (written / 'report.md').read_text()
  report.write(written)
  assert (written / 'report.md').read_text() == before
  assert not list(written.rglob('.*'))


def test_nothing_finished_still_makes_a_report(run_folder):
  cells = tuple(f'{v}-seed{s}' for v in ('relu', 'gelu') for s in range(2))
  variants = {'relu': (0, 0), 'gelu': (-0.04, 0)}
  folder = run_folder(variants=variants, seeds=2, waiting=cells)
  report.write(folder)
  page = _Page((folder / 'report.html').read_text())
  assert 'No cell is finished yet' in ''.join(page.text)
  assert 'img' not in page.tags


@pytest.mark.parametrize('seeds', [1, 2, 4])
def test_one_variant_without_a_baseline(run_folder, seeds):
  options = dict(variants={'gelu': (0, 0.01)}, baseline='', name='train', variable='', match='')
  folder = run_folder(seeds=seeds, **options)
  found = report.write(folder)
  assert [c.heading for c in table.columns(found)] == [
    'run', 'parameters', 'd_ff', 'held-out nats/token', 'bits/byte', 'tokens/s', 'seeds',
  ]  # fmt: skip
  assert {p.name for p in (folder / 'plots').iterdir()} == {'loss.png'}


def test_columns_follow_what_differs(run_folder):
  widths = {'1': (0.04, 0.005), '2': (0, 0), '4': (-0.02, 0.005)}
  folder = run_folder(variants=widths, baseline='2', name='ffn_width', variable='ffn.ratio')
  found = load(folder)
  headings = [c.heading for c in table.columns(found)]
  assert 'FLOPs/token' in headings and 'off target' in headings
  assert 'd_model' not in headings and 'skipped steps' not in headings
  assert {p.name for p in plots.draw(found)} == {'loss', 'differences', 'variable'}


@pytest.mark.parametrize('width', [80, 100, 140])
def test_the_terminal_shows_whole_cells_at_any_width(written, width):
  out = Console(width=width, file=io.StringIO(), color_system=None)
  report.console(load(written), out)
  text = out.file.getvalue()
  assert '…' not in text
  commands = ('  python', 'Report:')
  lines = [line for line in text.splitlines() if not line.startswith(commands)]
  assert max(map(len, lines)) <= width
  row = next(line for line in lines if line.strip().startswith('swiglu'))
  assert '−0.037 ± 0.007' in row and 'better' in row
  assert ('319,968' in row) == (width == 140)
  assert re.search(r'gelu \(−0\.046 ±\s0\.009\)', text.replace('\n', ' '))


@pytest.mark.parametrize('width', [60, 80, 120])
@pytest.mark.parametrize('long', ['gelu', 'wordpiece(vocab_size=1024)'])
def test_every_column_stands_whole_in_some_table(run_folder, width, long):
  found = load(run_folder(variants={'relu': (0, 0), long: (-0.04, 0.004)}))
  out = Console(width=width, file=io.StringIO(), color_system=None)
  for drawn in report._fit(found, out):
    out.print(drawn)
  text = out.file.getvalue()
  for column in table.columns(found):
    assert all(column.show(v) in text for v in found.variants), column.heading
    assert all(word in text for word in column.heading.split())
  assert '…' not in text


def test_smoothing_looks_back_only():
  line = np.where(np.arange(100) == 50, 9.0, 1.0)
  np.testing.assert_array_equal(curves.smooth(line), np.ones(100))  # one row up is no slope
  step = np.where(np.arange(100) < 50, 5.0, 1.0)
  smooth = curves.smooth(step)
  assert len(smooth) == 100
  np.testing.assert_array_equal(smooth[:50], step[:50])  # nothing is drawn before it happens
  np.testing.assert_array_equal(smooth[53:], step[53:])
  assert curves.smooth(np.arange(100.0))[-1] == 97  # the end is that of the last five rows
  few = [5.0, 1.0, 9.0]
  assert curves.smooth(np.array(few)).tolist() == few


def test_labels_are_spread_apart_inside_their_limits():
  # the three at the lower edge go up from it; three around 1.5 stay centred there
  placed = drawing.spread(np.array([1.0, 1.01, 1.02, 1.9]), 0.2, 1.0, 2.0)
  np.testing.assert_allclose(placed, [1.0, 1.2, 1.4, 1.9])
  placed = drawing.spread(np.array([1.49, 1.5, 1.51]), 0.2, 1.0, 2.0)
  np.testing.assert_allclose(placed, [1.3, 1.5, 1.7])
  assert len(drawing.spread(np.array([]), 0.2, 1.0, 2.0)) == 0
