"""Cells for the launchers' tests, and the command of a worker that only pretends to train."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from launch.cells import Cell
from transformer.config import Config, resolve

ROOT = Path(__file__).parents[2]
FAKE_WORKER = [sys.executable, str(Path(__file__).with_name('fake_worker.py'))]


def make_cells(*names: str) -> list[Cell]:
  """A cell per name, told apart by seed."""
  return [Cell(n, n, resolve(Config().replace(seed=i))) for i, n in enumerate(names)]


def executions(workdir: Path) -> Counter:
  """Name of cell -> how often a runner has entered it."""
  path = workdir / 'executions.txt'
  return Counter(path.read_text().split()) if path.exists() else Counter()


def result(cell: Cell, workdir: Path, name: str = 'done.json') -> dict:
  return json.loads((cell.folder(workdir) / name).read_text())


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
  """Waits for a condition; fails the test if it never comes."""
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.01)
