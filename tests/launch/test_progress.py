"""The estimate of the time left, and what a terminal shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from launch.progress import Display, Estimate, _shorten, duration, rate


def test_time_left_is_seconds_per_cell_over_the_workers() -> None:
  estimate = Estimate()
  estimate.update(100.0, {'a': None, 'b': 0.5})  # b is resumed at one half
  assert estimate.left(4, {'a': None, 'b': 0.5}, 2) is None
  estimate.update(110.0, {'a': None, 'b': 0.75})
  estimate.finished('a')
  # 20 worker-seconds made 1 + 0.25 cells: 16 s each. 0.25 + 3 cells by two workers: 26 s
  assert estimate.left(3, {'b': 0.75}, 2) == pytest.approx(26.0)
  # one cell waiting: no second worker can help it
  assert estimate.left(1, {'b': 0.75}, 2) == pytest.approx(16.0)


@pytest.mark.parametrize('height', [24, 6])
def test_a_terminal_of_80_columns_shows_a_line_per_cell(height: int) -> None:
  console = Console(file=io.StringIO(), width=80, height=height, force_terminal=True)
  beat = {'count': 9, 'step': 12345, 'steps': 20000, 'loss': 10.12345, 'tokens_per_s': 123456.0}
  running = {
    f'swiglu-with-a-long-name-seed{i}': {**beat, 'phase': 'checkpointing'} for i in range(9)
  }
  with Display(console, 28, 3) as display:
    display.update(running, 9)
  with console.capture() as shown:
    console.print(display._render())
  lines = Text.from_ansi(shown.get()).plain.splitlines()
  assert lines[0].startswith('cells ━')
  assert '3/28' in lines[0]
  rows = [line for line in lines if '…' in line and 'seed' in line]
  assert len(rows) == min(9, height - 3)
  assert all('12345/20000' in r and '10.1235' in r and '123.5k/s' in r for r in rows)
  assert all('checkpointing' in r and len(r) <= 80 for r in rows)
  assert len(lines) <= height
  assert (height == 24) or lines[-1] == '… and 6 more'


def test_words_for_numbers() -> None:
  assert [duration(s) for s in (0.4, 59.6, 72, 7384)] == ['0s', '1:00', '1:12', '2:03:04']
  assert [rate(r, '/s') for r in (950, 12345, 2.5e6, None)] == ['950/s', '12.3k/s', '2.5M/s', '']
  assert _shorten('relu-ratio4-seed3', 11) == 'relu-…seed3'


def test_loss_spikes_are_flagged_where_there_are_any() -> None:
  shown = io.StringIO()
  display = Display(Console(file=shown, width=200), 2, 0)
  display.finished('rough', {'eval/loss': 3.0, 'spikes': 3})
  display.finished('calm', {'eval/loss': 3.0, 'spikes': 0})
  rough, calm = shown.getvalue().splitlines()
  assert '↯3 loss spikes' in rough
  assert '↯' not in calm
  display.update({'rough': {'step': 5, 'steps': 9, 'loss': 3.0, 'spikes': 2}}, 1)
  with display._console.capture() as live:
    display._console.print(display._render())
  assert '3.0000 ↯2' in Text.from_ansi(live.get()).plain
