"""How a launch shows itself: a live display in a terminal, one line per cell anywhere else."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from rich.console import Console, Group, RenderableType
  from rich.table import Table

_BAR, _PHASE = 10, 13  # columns; the longest phase is 'checkpointing'
_UNKNOWN = ('', 'starting', 'preparing')  # phases before it is known where a run goes on


@dataclass
class Estimate:
  """Time left, from worker-seconds per cell so far and the share done of the running cells."""

  busy: float = 0.0  # worker-seconds spent
  worked: float = 0.0  # cells made in that time, parts included
  _seen: dict[str, float] = field(default_factory=dict)  # name -> share done when last seen
  _last: float | None = None

  def update(self, now: float, running: dict[str, float | None]) -> None:
    """running: name -> share done, None while that is not known. A first share may be resumed."""
    self.busy += (now - (self._last or now)) * len(running)
    self._last = now
    for name, share in running.items():
      if share is not None:
        self.worked += max(0.0, share - self._seen.get(name, share))
        self._seen[name] = share

  def finished(self, name: str) -> None:
    self.worked += 1.0 - self._seen.pop(name, 0.0)

  def left(self, waiting: int, running: dict[str, float | None], workers: int) -> float | None:
    """Seconds until `waiting` and `running` cells are done by `workers`; None: cannot be told."""
    parts = [1.0 - (share or 0.0) for share in running.values()] + [1.0] * waiting
    if self.worked < 0.02 or not parts:
      return None
    return self.busy / self.worked * max(sum(parts) / max(1, workers), *parts)


class Display:
  """Follows a launch on a rich console. As a context manager it tidies up the terminal."""

  def __init__(self, console: Console | None, total: int, done: int):
    from rich.console import Console
    from rich.live import Live

    self._console = console or Console(stderr=True)
    self._total, self._done, self._failed, self._workers = total, done, 0, 0
    self._running: dict[str, dict] = {}
    self._estimate, self._began = Estimate(), time.monotonic()
    live = self._console.is_terminal and not self._console.is_dumb_terminal
    self._live = (
      Live(get_renderable=self._render, console=self._console, auto_refresh=False, transient=True)
      if live
      else None
    )

  def __enter__(self) -> Display:
    if self._live:
      self._live.start()
    return self

  def __exit__(self, *error: object) -> None:
    if self._live:
      self._live.stop()

  def update(self, running: dict[str, dict], workers: int) -> None:
    """running: name of cell -> its heartbeat."""
    self._running, self._workers = running, workers
    self._estimate.update(time.monotonic(), self._shares())
    if self._live:
      self._live.refresh()

  def finished(self, name: str, done: dict) -> None:
    """Says that a cell is done, with its loss and speed."""
    self._done += 1
    self._running.pop(name, None)
    self._estimate.finished(name)
    loss = number('loss ', done.get('eval/loss'))
    speed = rate(done.get('tokens_per_s'), ' tokens/s')
    self._line(name, loss, speed, duration(done.get('seconds')), _spikes(done, ' loss spikes'))

  def failed(self, name: str, failed: dict, again: bool = False) -> None:
    """Says that a cell has failed, of what, and whether it is tried again."""
    self._failed += not again
    self._running.pop(name, None)
    word = 'tried again' if again else 'FAILED'
    self._line(name, f'{word} ({failed.get("cause")})', str(failed.get('message', '')))

  def pruned(self, name: str, pruned: dict) -> None:
    """Says that a search has stopped a cell."""
    self._done += 1
    self._running.pop(name, None)
    self._estimate.finished(name)
    self._line(name, f'pruned at step {pruned.get("step")}', number('loss ', pruned.get('loss')))

  def note(self, text: str) -> None:
    """Prints a line of its own."""
    self._console.print(text, markup=False, highlight=False, soft_wrap=True)

  def _line(self, name: str, *parts: str) -> None:
    width = len(str(self._total))
    count = f'[{self._done + self._failed:{width}}/{self._total}]'
    if not self._live:  # which shows them itself
      times = filter(None, (f'{duration(self._elapsed())} elapsed', self._left()))
      parts += (f'({", ".join(times)})',)
    self.note('  '.join(filter(None, (f'{count} {name}', *parts))))

  def _elapsed(self) -> float:
    return time.monotonic() - self._began

  def _shares(self) -> dict[str, float | None]:
    return {
      name: None
      if beat.get('phase', '') in _UNKNOWN
      else beat.get('step', 0) / max(1, beat.get('steps', 0))
      for name, beat in self._running.items()
    }

  def _left(self) -> str:
    waiting = self._total - self._done - self._failed - len(self._running)
    left = self._estimate.left(waiting, self._shares(), self._workers)
    return '' if left is None else f'{duration(left)} left'

  def _render(self) -> Group:
    from rich.console import Group

    room = max(1, self._console.height - 3)
    rows = list(self._running.items())
    more = [f'… and {len(rows) - room} more'] if len(rows) > room else []
    return Group(self._overall(), self._rows(rows[:room]), *more)

  def _overall(self) -> Table:
    from rich.progress_bar import ProgressBar

    closed = self._done + self._failed
    failed = f'{self._failed} failed' if self._failed else ''
    texts = [f'{duration(self._elapsed())} elapsed', self._left() or 'estimating', failed]
    bar = ProgressBar(self._total, closed, width=20)
    return _grid([['cells', bar, f'{closed}/{self._total}', *texts]])

  def _rows(self, rows: list[tuple[str, dict]]) -> Table:
    from rich.progress_bar import ProgressBar

    texts = [
      (
        f'{beat.get("step", 0)}/{beat["steps"]}' if beat.get('steps') else '',
        number('', beat.get('loss')) + _spikes(beat, '', ' '),
        rate(beat.get('tokens_per_s'), '/s'),
        str(beat.get('phase', '')).ljust(_PHASE),
      )
      for _, beat in rows
    ]
    taken = sum(max(map(len, column)) + 1 for column in zip(*texts, strict=True))
    room = max(8, self._console.width - _BAR - 1 - taken)
    return _grid(
      [_shorten(name, room), ProgressBar(beat.get('steps') or 1, beat.get('step', 0), _BAR), *text]
      for (name, beat), text in zip(rows, texts, strict=True)
    )


def _grid(rows: Any) -> Table:
  from rich.table import Table

  grid = Table.grid(padding=(0, 1))
  for row in rows:
    cells: list[RenderableType] = row
    while len(grid.columns) < len(cells):
      grid.add_column(no_wrap=True)
    grid.add_row(*cells)
  return grid


def _shorten(text: str, room: int) -> str:
  """Cut in the middle: what tells cells apart is at both ends ('relu-…-seed3')."""
  if len(text) <= room:
    return text
  tail = (room - 1) // 2
  return f'{text[: room - 1 - tail]}…{text[-tail:]}'


def number(label: str, value: float | None) -> str:
  """'loss 3.1416'; '' for none."""
  return '' if value is None else f'{label}{value:.4f}'


def _spikes(told: dict, unit: str, before: str = '') -> str:
  """'↯3': steps whose loss jumped; nothing if there were none."""
  return f'{before}↯{told["spikes"]}{unit}' if told.get('spikes') else ''


def rate(value: float | None, unit: str) -> str:
  """'12.3k tokens/s'; '' for none."""
  if value is None:
    return ''
  for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:.1f}{letter}{unit}'
  return f'{value:.0f}{unit}'


def duration(seconds: float | None) -> str:
  """'7s', '1:12' (minutes) or '2:03:04' (hours)."""
  if seconds is None:
    return ''
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 1:
    return f'{rest}s'
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'
