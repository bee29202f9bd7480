"""launch.json: what has been started for a folder, by whom and when."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launch.claims import is_live, this_process
from launch.files import locked, read_json, write_json

FILE = 'launch.json'


def read(workdir: str | Path) -> list[dict]:
  """All launches of a folder, in order: {'engine': …, 'time': …, …}. The last one is the latest."""
  return (read_json(Path(workdir) / FILE) or {}).get('launches', [])


def write(workdir: str | Path, launches: list[dict]) -> None:
  """Replaces all of them. Whoever calls holds the folder's lock."""
  write_json(Path(workdir) / FILE, {'launches': launches})


@contextlib.contextmanager
def running(workdir: Path, launch: str) -> Iterator[Callable[[], bool]]:
  """While this process runs a folder's cells: yields whether somebody has cancelled that."""
  workdir.mkdir(parents=True, exist_ok=True)
  with locked(workdir):
    kept = [r for r in read(workdir) if r['engine'] != 'local' or is_live(r)]
    write(workdir, [*kept, {'engine': 'local', 'launch': launch, **this_process()}])

  def mine() -> dict:
    return next((r for r in read(workdir) if r.get('launch') == launch), {})

  try:
    yield lambda: 'cancelled' in mine()
  finally:
    with contextlib.suppress(OSError), locked(workdir):
      write(workdir, [r for r in read(workdir) if r.get('launch') != launch])


def mark_cancelled(workdir: Path, record: dict) -> None:
  """Says of a launch that it has been cancelled; one on this machine or another one hears it."""
  with locked(workdir):
    launches = read(workdir)
    write(workdir, [r | ({'cancelled': time.time()} if r == record else {}) for r in launches])
