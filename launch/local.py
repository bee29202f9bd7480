"""Runs cells on this machine: worker processes, kept going until no cell is left.

Everything that matters is in the cells' folders, so a launcher may be killed, repeated, or run
beside another one on the same folder.
"""

from __future__ import annotations

import contextlib
import errno
import math
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from launch import records
from launch.causes import LOST, may_retry
from launch.cells import Cell, Claim, by_program, read_json, state, write_config
from launch.claims import CLAIM, DONE, FAILED, PRUNED, describe, failures, holder, is_foreign
from launch.files import tail
from launch.lease import HEARTBEAT, Leases, beats
from launch.machine import rows_of, seats
from launch.pool import Pool, Worker
from launch.progress import Display
from transformer import axes
from transformer.errors import UserError

if TYPE_CHECKING:
  from rich.console import Console

_TICK = 0.1  # seconds between looks at the workers
_SPARE = 20.0  # a look at all cells is followed by as many times its length without one,
_LONGEST = 2.0  # or by these seconds
_MOST_FRUITLESS = 3  # workers in a row that die before they begin a cell


@dataclass
class Outcome:
  """What a launch came to. done: in this launch, by whomever; skipped_done: before it."""

  done: list[Cell] = field(default_factory=list)
  failed: list[Cell] = field(default_factory=list)
  pruned: list[Cell] = field(default_factory=list)
  skipped_done: list[Cell] = field(default_factory=list)
  interrupted: bool = False


class Source(Protocol):
  """Who makes cells while a launch runs, as a search does."""

  total: int  # cells in the end

  def look(self, running: Collection[str], free: int) -> list[Cell]:
    """Called again and again: cells to add, at the end none.

    running: folder names of those that have not ended. free: how many more could be at work.
    """


def run(
  workdir: str | Path,
  cells: Sequence[Cell],
  workers: int,
  console: Console | None = None,
  worker_command: Sequence[str] | None = None,
  retries: int = 2,
  source: Source | None = None,
  asked: list[int] | None = None,
  of: int = 0,
  like: Sequence[Cell] = (),
) -> Outcome:
  """Runs every cell that is not done, side by side in `workers` processes, and waits.

  workers: 0: one a core on CPU, one an accelerator; under --parallel.distributed it is one, and the
  same command runs on every host. console: a rich console; standard error unless given.
  worker_command: what to start instead of `python -m launch.worker`. retries: tries of a cell after
  one whose cause may pass (causes.py), as when its worker died; others have one a launch. source:
  makes further cells. asked: where the caller collects signals that ask to stop; without, they are
  collected here. of: cells of the whole experiment, where these are but some. like: such as the
  source makes, where there are none yet.

  SIGINT or SIGTERM, or launch.cancel, lets the workers checkpoint and leave; a second signal kills
  them. Raises OSError naming the file if the run folder cannot be written, UserError if no worker
  gets as far as its first cell.
  """
  workdir = Path(workdir).absolute()
  outcome, todo = Outcome(), []
  for cell in by_program(cells):
    done = read_json(cell.folder(workdir) / DONE)  # a corrupt one is found now, not at the end
    if done is not None and 'token' not in done:
      raise UserError(f'{cell.folder(workdir) / DONE}: is damaged; delete it to run the cell again')
    (todo if done is None else outcome.skipped_done).append(cell)
  for cell in todo:
    if not holder(cell.folder(workdir)):
      write_config(cell, workdir)
  if not todo and not source:
    return outcome
  launch, skipped = uuid.uuid4().hex, len(outcome.skipped_done)
  total = source.total if source else len(todo) + skipped
  shown = cells or like
  distributed = next((c.config.parallel.distributed for c in shown), 'off')
  if distributed != 'off':  # this machine's part of a team
    workers = 1
  # seats as for all cells: one continued must not find itself on other cores than it began on
  rows = rows_of([cell.config for cell in shown])
  places = seats(workers, max(of, total), _devices_of(shown), rows)[: total - skipped]
  together = max((cell.config.launch.together for cell in shown), default=1)
  pool = Pool(workdir, places, launch, worker_command, retries, distributed, together)
  display = Display(console, total, skipped)
  work = _Launch(workdir, launch, todo, pool, display, outcome, retries, source)
  collected = signals() if asked is None else contextlib.nullcontext(asked)
  with collected as asked, records.running(workdir, launch) as cancelled, pool, display:
    work.run(asked, cancelled)
  return outcome


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
  """Collects SIGINT and SIGTERM in the list it yields; puts the handlers back."""
  asked: list[int] = []
  if threading.current_thread() is not threading.main_thread():
    yield asked
    return
  numbers = (signal.SIGINT, signal.SIGTERM)
  old = {n: signal.signal(n, lambda number, frame: asked.append(number)) for n in numbers}
  try:
    yield asked
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def _devices_of(cells: Sequence[Cell]) -> int:
  """Accelerators that the widest of these cells asks for by its mesh; 1 where none does."""
  meshes = {cell.config.parallel.mesh for cell in cells}
  return max((math.prod(axes.parse_mesh(mesh).values()) for mesh in meshes), default=1)


class _Launch:
  """The loop of one launch. Cells leave `open` as they are done, failed or given up."""

  def __init__(
    self,
    workdir: Path,
    launch: str,
    todo: list[Cell],
    pool: Pool,
    display: Display,
    outcome: Outcome,
    retries: int,
    source: Source | None,
  ):
    self._workdir, self._launch, self._retries = workdir, launch, retries
    self._pool, self._display, self._outcome = pool, display, outcome
    self._source, self._leases, self._open = source, Leases(), {}
    self._failures: dict[str, int] = {}  # name -> how often it has failed as far as we know
    self._fruitless = 0
    self._available: list[str] = []
    self._next_scan = 0.0
    for cell in todo:
      self._add(cell)

  def _add(self, cell: Cell) -> None:
    self._open[cell.folder_name] = cell
    self._failures[cell.folder_name] = failures(self._folder(cell.folder_name))

  def run(self, asked: list[int], cancelled: Callable[[], bool]) -> None:
    """Goes on until every cell is closed, or until asked to stop and all workers have left."""
    heard = 0
    while True:
      for worker in self._pool.reap():
        self._ended(worker, len(asked))
        self._next_scan = 0.0
      if time.monotonic() >= self._next_scan:
        self._look()
        if not asked and cancelled():
          asked.append(signal.SIGTERM)
      if not self._open and not asked:
        return
      if asked:
        self._outcome.interrupted = True
        heard = self._stop(heard, len(asked))
        if not self._pool:
          self._scan()  # what has ended since the last look
          self._outcome.interrupted = bool(self._open or self._source)
          return
      else:
        self._pool.fill(self._available)
      time.sleep(_TICK)

  def _look(self) -> None:
    """Sees how all open cells stand: of many less often, so that the cores are left to them."""
    began = time.monotonic()
    self._available = self._scan()
    if self._source:
      for cell in self._source.look(self._open, self._pool.seats - len(self._open)):
        if not holder(cell.folder(self._workdir)):
          write_config(cell, self._workdir)
        self._add(cell)
        self._available.append(cell.folder_name)
    now = time.monotonic()
    self._next_scan = now + min(_LONGEST, _SPARE * (now - began))

  def _stop(self, heard: int, asked: int) -> int:
    """Passes on what has been asked since `heard` signals; returns how many are heard now."""
    if not heard:
      self._display.note('stopping: workers save their state and leave; once more to kill them')
      self._pool.signal(signal.SIGTERM)
    if asked > 1 and heard < 2:
      self._pool.signal(signal.SIGKILL)
    return asked

  def _folder(self, name: str) -> Path:
    return self._workdir / 'cells' / name

  def _ended(self, worker: Worker, asked: int) -> None:
    """Sees to a worker that has left: charges the cell it died at, raises if none can work.

    asked: signals the launch has had; the second kills workers, through no fault of their cells,
    and the first ends those that have not yet come to the line where they would hear it.
    """
    error = worker.disk_error()
    if error and error.errno == errno.ENOENT and self._workdir.exists():
      for cell in self._open.values():  # somebody deleted a folder: its cell starts anew
        write_config(cell, self._workdir)
    elif error:
      error.filename = error.filename or str(self._workdir)
      raise error
    if worker.ended_well() or asked > 1 or self._charge(worker) or asked:
      return
    self._fruitless += 1
    if self._fruitless >= _MOST_FRUITLESS:
      words = worker.last_words()
      self._display.note(words)
      last = words.splitlines()[-1].strip() if words else 'it printed nothing'
      raise UserError(
        f'{worker.log}: workers end before they begin a cell; {worker.ending()}: {last}'
      )

  def _charge(self, worker: Worker) -> bool:
    """Writes failed.json for the cells that a dead worker was running; False if it ran none."""
    found = False
    for name in self._open:
      folder = self._folder(name)
      held = read_json(folder / CLAIM, strict=False) or {}
      if is_foreign(held) or (held.get('pid'), held.get('start')) != (
        worker.process.pid,
        worker.start,
      ):
        continue
      if claim := Claim.acquire(folder, self._launch, retry=True):
        claim.fail(worker.cause(), worker.ending(), tail(folder / 'log.txt'))
      found = True
    return found

  def _scan(self) -> list[str]:
    """Closes the cells that have ended, shows the running ones; returns those free to be run."""
    running, available = {}, []
    for name, cell in list(self._open.items()):
      folder = self._folder(name)
      now = state(folder)
      if now == 'running':
        self._watch(name, cell)
        running[cell.name] = read_json(folder / HEARTBEAT, strict=False) or {}
      elif now == 'done':
        self._close(name, self._outcome.done)
        self._display.finished(cell.name, read_json(folder / DONE) or {})
      elif now == 'pruned':
        self._close(name, self._outcome.pruned)
        self._display.pruned(cell.name, read_json(folder / PRUNED, strict=False) or {})
      elif now == 'failed' and self._is_over(name, cell):
        self._close(name, self._outcome.failed)
      else:
        available.append(name)
    self._display.update(running, max(len(self._pool), len(running)))
    return available

  def _is_over(self, name: str, cell: Cell) -> bool:
    """Whether a cell that has failed, in this launch, is not to be tried again. Says so once."""
    count = failures(self._folder(name))
    if count <= self._failures[name]:
      return False  # of an earlier launch, which it may have passed
    self._failures[name], self._fruitless = count, 0
    failed = read_json(self._folder(name) / FAILED, strict=False) or {}
    again = may_retry(failed, self._launch, self._retries)
    self._display.failed(cell.name, failed, again)
    return not again

  def _close(self, name: str, into: list[Cell]) -> None:
    into.append(self._open.pop(name))
    self._fruitless = 0

  def _watch(self, name: str, cell: Cell) -> None:
    """Frees a cell whose holder gives no sign of life any more."""
    folder = self._folder(name)
    held = holder(folder)
    if not held or not self._leases.lapsed(folder, held):
      return
    if is_foreign(held) or not self._pool.kill(held.get('pid')):
      claim = Claim.take_over(folder, held, beats(folder), self._launch)
      if claim:
        claim.fail(LOST, f'no sign of life of {describe(held)}', tail(folder / 'log.txt'))
