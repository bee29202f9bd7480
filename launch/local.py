"""Runs cells on this machine: worker processes, kept going until no cell is left.

Everything that matters is in the cells' folders, so a launcher may be killed, repeated, or run
beside another one on the same folder.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cells import Cell, Claim, by_program, read_json, state, write_config
from launch.claims import CLAIM, DONE, FAILED, describe, failures, holder, is_foreign
from launch.files import tail
from launch.machine import seats
from launch.pool import Pool, Worker
from launch.progress import Display
from transformer.errors import UserError

if TYPE_CHECKING:
  from rich.console import Console

_TICK = 0.1  # seconds between looks at the workers
_STILL = 600.0  # seconds without a heartbeat after which another host's cell is waited for no more
_MOST_FRUITLESS = 3  # workers in a row that die before they begin a cell


@dataclass
class Outcome:
  """What a launch came to. done: in this launch, by whomever; elsewhere: left to other hosts."""

  done: list[Cell] = field(default_factory=list)
  failed: list[Cell] = field(default_factory=list)
  skipped_done: list[Cell] = field(default_factory=list)
  elsewhere: list[Cell] = field(default_factory=list)
  interrupted: bool = False


def run(
  workdir: str | Path,
  cells: Sequence[Cell],
  workers: int,
  console: Console | None = None,
  worker_command: Sequence[str] | None = None,
) -> Outcome:
  """Runs every cell that is not done, side by side in `workers` processes, and waits.

  workers: 0: one a core on CPU, one on an accelerator; under --parallel.distributed it is one, and
  the same command runs on every host. console: a rich console; standard error
  unless given. worker_command: what to start instead of `python -m launch.worker`.

  A cell that fails, or at which a worker dies, is tried once per launch. SIGINT or SIGTERM lets the
  workers checkpoint and leave; a second one kills them. Raises OSError naming the file if the run
  folder cannot be written, UserError if no worker gets as far as its first cell.
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
  if not todo:
    return outcome
  launch = uuid.uuid4().hex
  # seats as for all cells: one continued must not find itself on other cores than it began on
  distributed = todo[0].config.parallel.distributed
  if distributed != 'off':  # this machine's part of a team; the first process's cells are theirs
    workers = 1
  places = seats(workers, len(todo) + len(outcome.skipped_done))[: len(todo)]
  pool = Pool(workdir, places, launch, worker_command, [f'--distributed={distributed}'])
  display = Display(console, len(todo) + len(outcome.skipped_done), len(outcome.skipped_done))
  with _signals() as asked, pool, display:
    _Launch(workdir, launch, todo, pool, display, outcome).run(asked)
  return outcome


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
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
  ):
    self._workdir, self._launch = workdir, launch
    self._pool, self._display, self._outcome = pool, display, outcome
    self._open = {cell.folder_name: cell for cell in todo}
    self._failures = {name: failures(self._folder(name)) for name in self._open}
    self._fruitless = 0
    self._foreign: dict[str, tuple[int, float]] = {}  # name -> heartbeat, when it last changed

  def run(self, asked: list[int]) -> None:
    """Goes on until every cell is closed, or until asked to stop and all workers have left."""
    heard = 0
    while True:
      for worker in self._pool.reap():
        self._ended(worker, len(asked))
      available = self._scan()
      if not self._open:
        return
      if asked:
        self._outcome.interrupted = True
        heard = self._stop(heard, len(asked))
        if not self._pool:
          return
      else:
        self._pool.fill(available)
      time.sleep(_TICK)

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
    """Writes failed.json for the cell that a dead worker was running; False if it ran none."""
    for name in self._open:
      folder = self._folder(name)
      held = read_json(folder / CLAIM, strict=False) or {}
      if is_foreign(held) or (held.get('pid'), held.get('start')) != (
        worker.process.pid,
        worker.start,
      ):
        continue
      if claim := Claim.acquire(folder, self._launch, retry=True):
        claim.fail('died', worker.ending(), tail(folder / 'log.txt'))
      return True
    return False

  def _scan(self) -> list[str]:
    """Closes the cells that have ended, shows the running ones; returns those free to be run."""
    running, available = {}, []
    for name, cell in list(self._open.items()):
      folder = self._folder(name)
      now = state(folder)
      if now == 'running':
        if self._is_awaited(name, cell):
          running[cell.name] = read_json(folder / 'heartbeat.json', strict=False) or {}
      elif now == 'done':
        self._close(name, self._outcome.done)
        self._display.finished(cell.name, read_json(folder / DONE) or {})
      elif failures(folder) > self._failures[name]:
        self._close(name, self._outcome.failed)
        self._display.failed(cell.name, read_json(folder / FAILED, strict=False) or {})
      else:
        available.append(name)
    self._display.update(running, max(len(self._pool), len(running)))
    return available

  def _close(self, name: str, into: list[Cell]) -> None:
    into.append(self._open.pop(name))
    self._fruitless = 0

  def _is_awaited(self, name: str, cell: Cell) -> bool:
    """False, and the cell is closed, if another host holds it and has not stirred for long."""
    folder = self._folder(name)
    held = read_json(folder / CLAIM, strict=False) or {}
    if not held or not is_foreign(held):
      return True
    count = (read_json(folder / 'heartbeat.json', strict=False) or {}).get('count', 0)
    last, since = self._foreign.get(name, (None, 0.0))
    if last is None:
      self._display.note(
        f'{cell.name}: left to {describe(held)}; delete {folder / CLAIM} if that is gone'
      )
    if count != last:
      self._foreign[name] = (count, time.monotonic())
    elif time.monotonic() - since > _STILL:
      self._display.note(f'{cell.name}: no sign of {describe(held)}; waiting for it no more')
      self._close(name, self._outcome.elsewhere)
      return False
    return True
