"""Runs the cells that a search makes on a cluster: submits them as they come, and waits for them.

The launcher itself only watches, wherever it can see the folder; it may be stopped and started
again, and cells on their way go on meanwhile.
"""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path

from launch import engines, records
from launch.causes import MAY_PASS
from launch.cells import Cell, read_json, state, write_config
from launch.claims import FAILED
from launch.job import Job
from launch.local import Outcome, Source, signals
from transformer.config import LaunchConfig
from transformer.errors import UserError

_EVERY = 5.0  # seconds between looks at the folder
_ENGINE_EVERY = 15.0  # seconds between questions to the cluster


def run(on: str, workdir: Path, launch: LaunchConfig, source: Source) -> Outcome:
  """Runs a search to its end. --launch.workers cells are on their way at a time.

  A cell that the cluster has let go of without a result is submitted again, launch.retries times.
  SIGINT, SIGTERM or launch.cancel ends the watching. Raises UserError where it is not said how many
  cells at a time.
  """
  if not launch.workers:
    raise UserError(f'--launch.workers=0: say how many trials at a time are to run on {on}')
  watch = _Watch(on, workdir, launch, source)
  with signals() as asked, records.running(workdir, uuid.uuid4().hex) as cancelled:
    while not (asked or cancelled()) and watch.look():
      time.sleep(_EVERY)
    watch.outcome.interrupted = bool(asked or cancelled())
  return watch.outcome


class _Watch:
  def __init__(self, on: str, workdir: Path, launch: LaunchConfig, source: Source):
    self._on, self._workdir, self._launch, self._source = on, workdir, launch, source
    self._open: dict[str, Cell] = {}
    self._submissions: dict[str, int] = {}
    self._asked = -_ENGINE_EVERY
    self.outcome = Outcome()

  def look(self) -> bool:
    """Closes what has ended, submits what is new or was dropped; False once nothing is open."""
    engine = {}
    if time.monotonic() - self._asked >= _ENGINE_EVERY:
      self._asked = time.monotonic()
      try:
        engine = engines.states(self._workdir)
      except UserError as e:
        print(f'{e}; asked again in {_ENGINE_EVERY:.0f} s', file=sys.stderr)
    for name, cell in list(self._open.items()):
      self._see(name, cell, engine.get(name, ''))
    again = [cell for name, cell in self._open.items() if engine.get(name) == 'gone']
    new = self._source.look(self._open, self._launch.workers - len(self._open))
    for cell in new:
      write_config(cell, self._workdir)
      self._open[cell.folder_name] = cell
    if names := tuple(cell.folder_name for cell in (*new, *again)):
      for name in names:
        self._submissions[name] = self._submissions.get(name, 0) + 1
      engines.resubmit(self._on, Job(self._workdir, names, self._launch, report=False))
    return bool(self._open)

  def _see(self, name: str, cell: Cell, engine: str) -> None:
    """Closes a cell that is done, pruned, or has failed and was submitted often enough."""
    folder = self._workdir / 'cells' / name
    now = state(folder)
    if now in ('done', 'pruned'):
      (self.outcome.done if now == 'done' else self.outcome.pruned).append(self._open.pop(name))
    elif engine == 'gone' and now != 'running':
      failed = read_json(folder / FAILED, strict=False)
      hopeless = failed and failed.get('cause') not in MAY_PASS
      if hopeless or self._submissions.get(name, 1) > self._launch.retries:
        self.outcome.failed.append(self._open.pop(name))
