"""A progress bar for what takes long with text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformer.data.corpus import Watch


@contextlib.contextmanager
def shown() -> Iterator[Watch]:
  """Gives a `Watch` that draws a bar on standard error while it lasts, if that is a terminal."""
  from rich import progress as bars
  from rich.console import Console

  console = Console(stderr=True)
  text = bars.TextColumn('{task.description}', markup=False)
  columns = (text, bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
  off = not console.is_terminal
  with bars.Progress(*columns, console=console, transient=True, disable=off) as progress:
    task = progress.add_task('', total=None)

    def watch(doing: str, done: int, total: int) -> None:
      progress.update(task, description=doing, completed=done, total=total or None)

    yield watch
