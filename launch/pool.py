"""The worker processes of a launch on this machine: start, watch, ask to stop, kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch import causes
from launch.claims import process_start
from launch.files import tail
from launch.lease import LEASE
from launch.machine import Seat, oom_kills
from launch.worker import DISK, STOPPED

COMMAND = (sys.executable, '-m', 'launch.worker')
_GRACE = 10.0  # seconds to leave in when something has gone wrong here
_MOST = 1000  # cells that a worker is given: more would not fit a command line
_PAUSE = 1.0  # seconds before a seat is used again after a worker without work


@dataclass
class Worker:
  """A process in a seat. start: names it together with its pid; log: what it prints itself.

  lost: it gave no sign of life any more, and was killed for it.
  """

  process: subprocess.Popen
  start: str | None
  log: Path
  log_start: int
  report: bytes = b''
  lost: bool = False
  oom_kills: int = field(default_factory=oom_kills)

  def ended_well(self) -> bool:
    return self.process.returncode in (0, STOPPED)

  def ending(self) -> str:
    """How a dead worker ended, in words."""
    status = self.process.returncode
    if self.lost:
      return f'no sign of life for {LEASE:.0f} s; its process was killed'
    if status >= 0:
      return f'its process ended with status {status}'
    hint = ' (the system does so when memory runs out)' if status == -signal.SIGKILL else ''
    return f'its process was killed by {signal.Signals(-status).name}{hint}'

  def cause(self) -> str:
    """The same in a word."""
    if self.lost:
      return causes.LOST
    killed = self.process.returncode == -signal.SIGKILL
    return causes.MEMORY if killed and oom_kills() > self.oom_kills else causes.DIED

  def last_words(self) -> str:
    return tail(self.log, start=self.log_start)

  def disk_error(self) -> OSError | None:
    """What it met if it left because the run folder takes no more."""
    if self.process.returncode != DISK:
      return None
    try:
      return OSError(*json.loads(self.report))
    except (ValueError, TypeError):
      return None


class Pool:
  """As many workers as seats. As a context manager it leaves none behind."""

  def __init__(
    self,
    workdir: Path,
    seats: list[Seat],
    launch: str,
    command: Sequence[str] | None = None,
    retries: int = 0,
    distributed: str = 'off',
    together: int = 1,
  ):
    self._workdir, self._launch, self._command = workdir, launch, tuple(command or COMMAND)
    self._given = f'--retries={retries}', f'--distributed={distributed}', f'--together={together}'
    self._seats = seats
    self._workers: list[Worker | None] = [None] * len(seats)
    self._free_at = [0.0] * len(seats)

  def __enter__(self) -> Pool:
    return self

  def __exit__(self, *error: object) -> None:
    self.signal(signal.SIGTERM)
    end = time.monotonic() + _GRACE
    for worker in self._live():
      with contextlib.suppress(subprocess.TimeoutExpired):
        worker.process.wait(max(0.0, end - time.monotonic()))
    self.signal(signal.SIGKILL)
    for worker in self._live():
      worker.process.wait()
    self.reap()

  def __len__(self) -> int:
    """How many are at work."""
    return len(self._live())

  def fill(self, cells: Sequence[str]) -> None:
    """Starts workers in free seats, no more than there are cells, on these cells.

    Each gets the whole list, rotated to a start of its own: claims share out the work.
    """
    free = [
      i for i, w in enumerate(self._workers) if w is None and time.monotonic() >= self._free_at[i]
    ][: len(cells)]
    for turn, i in enumerate(free):
      offset = turn * len(cells) // len(free)
      turned = [*cells[offset:], *cells[:offset]]
      self._workers[i] = self._start(i, turned[:_MOST])

  def reap(self) -> list[Worker]:
    """The workers that have ended since the last call; their seats are free again."""
    ended = []
    for i, worker in enumerate(self._workers):
      if worker and worker.process.poll() is not None:
        with worker.process.stdout as pipe:
          worker.report = pipe.read() or b''
        self._workers[i] = None
        self._free_at[i] = time.monotonic() + (_PAUSE if worker.ended_well() else 0.0)
        ended.append(worker)
    return ended

  def signal(self, number: int) -> None:
    """Sends a signal: SIGKILL to each worker with its children, others to the worker alone."""
    for worker in self._live():
      with contextlib.suppress(ProcessLookupError):
        send = os.killpg if number == signal.SIGKILL else os.kill
        send(worker.process.pid, number)

  def kill(self, pid: int) -> bool:
    """Kills one worker with its children; False if it is none of ours."""
    for worker in self._live():
      if worker.process.pid == pid:
        worker.lost = True
        with contextlib.suppress(ProcessLookupError):
          os.killpg(pid, signal.SIGKILL)
        return True
    return False

  @property
  def seats(self) -> int:
    """How many could be at work."""
    return len(self._seats)

  def _live(self) -> list[Worker]:
    return [w for w in self._workers if w and w.process.poll() is None]

  def _start(self, i: int, cells: list[str]) -> Worker:
    seat = self._seats[i]
    log = self._workdir / 'workers' / f'worker-{i}.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [f'--workdir={self._workdir}', f'--launch={self._launch}']
    arguments += [f'--parent={os.getpid()}', *self._given]
    if seat.cores and hasattr(os, 'sched_setaffinity'):
      arguments.append(f'--core={",".join(map(str, seat.cores))}')
    with open(log, 'ab') as out:
      process = subprocess.Popen(
        [*self._command, *arguments, '--cells', *cells],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=out,
        env=seat.environment(),
        start_new_session=True,  # Ctrl-C in the terminal reaches the launcher alone
      )
      os.set_blocking(process.stdout.fileno(), False)  # a grandchild may keep it open for ever
      return Worker(process, process_start(process.pid), log, out.tell())
