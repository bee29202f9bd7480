"""The processes of a team on this machine: started, watched, and started anew when one is lost.

  python -m launch.peers --processes=2 -- --workdir=runs/x --cells=a-1a2b3c4d      on one machine
  srun python -m launch.peers --distributed=auto -- --workdir=runs/x --cells=…    one a node

What stands behind -- are arguments of launch.worker. When a process of the team dies, here or on
another host, or hangs, the rest cannot go on: each host says so in one line, ends its own and
starts them again, and the cell is continued from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from launch.files import read_json
from launch.lease import HEARTBEAT
from launch.worker import DISK, STOPPED

COMMAND = (sys.executable, '-m', 'launch.worker')
_TICK = 0.2  # seconds between looks
_MOST_FRUITLESS = 3  # starts in a row that came to nothing


def main(argv: Sequence[str] | None = None, command: Sequence[str] = COMMAND) -> int:
  """Runs a team to its end; returns the exit status of a worker.

  command: what to start instead of `python -m launch.worker`.
  """
  args = _parse(argv)
  return _Peers(args, command).run()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--processes', type=int, default=1, help='to start on this machine')
  parser.add_argument(
    '--distributed',
    default='',
    help='as --parallel.distributed, of one process a host; empty: the team is all here',
  )
  parser.add_argument(
    '--retries', type=int, default=2, help='tries of a cell after one that may pass'
  )
  parser.add_argument(
    '--hung', type=float, default=1800.0, help='seconds without progress after which it is ended'
  )
  parser.add_argument('worker', nargs='+', help='-- and the arguments of launch.worker')
  args = parser.parse_args(argv)
  if args.distributed and args.processes > 1:
    parser.error('--distributed names one process; leave --processes out, or --distributed')
  return args


class _Peers:
  """The processes of one host, and why they had to be started again."""

  def __init__(self, args: argparse.Namespace, command: Sequence[str]):
    self._args, self._command = args, tuple(command)
    self._launch = (
      uuid.uuid4().hex
    )  # one, whatever has to be started again: tries are counted by it
    self._processes: list[subprocess.Popen] = []
    self._stopping = False
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._stop)

  def run(self) -> int:
    """Starts them until they end well, or it is no use."""
    fruitless = 0
    while True:
      self._start()
      before = self._progress()
      reason = self._watch()
      statuses = [p.returncode for p in self._processes]
      if not reason:
        return max(statuses)
      if DISK in statuses:
        return DISK
      fruitless = 0 if self._progress() != before else fruitless + 1
      again = 'they stop' if self._stopping else 'all start again from the last checkpoint'
      over = fruitless >= _MOST_FRUITLESS
      print(f'{reason}; {"giving up" if over else again}', file=sys.stderr, flush=True)
      if self._stopping or over:
        return STOPPED if self._stopping else os.EX_UNAVAILABLE

  def _start(self) -> None:
    count = self._args.processes
    port = _free_port() if not self._args.distributed else 0
    more = [f'--launch={self._launch}', f'--retries={self._args.retries}', '--wait']
    more.append(f'--parent={os.getpid()}')
    self._processes = []
    for rank in range(count):
      team = self._args.distributed or f'127.0.0.1:{port},{rank},{count}'
      command = [*self._command, *more, f'--distributed={team}', *self._args.worker]
      # A session of its own: Ctrl-C in the terminal reaches this process, which passes it on.
      self._processes.append(
        subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
      )

  def _watch(self) -> str:
    """Waits until all have ended; returns why the team was lost, if it was."""
    seen, since = self._progress(), time.monotonic()
    while any(p.poll() is None for p in self._processes):
      time.sleep(_TICK)
      if lost := self._lost():
        self._end()
        return lost
      if (now := self._progress()) != seen:
        seen, since = now, time.monotonic()
      if time.monotonic() - since > self._args.hung:
        self._end()
        return f'no progress for {self._args.hung:.0f} seconds: a process hangs'
    return self._lost()

  def _lost(self) -> str:
    """The first process that ended otherwise than well, in words; '' if none did."""
    for rank, process in enumerate(self._processes):
      status = process.poll()
      if status not in (None, 0, STOPPED):
        how = f'with status {status}' if status > 0 else f'by {signal.Signals(-status).name}'
        count = len(self._processes)
        which = f'process {rank} of {count}' if count > 1 else 'the process'
        return f'{which} on {socket.gethostname()} ended {how}'
    return ''

  def _end(self) -> None:
    """Ends those that are left: at once, as they can only wait for who is gone."""
    for process in self._processes:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    for process in self._processes:
      process.wait()

  def _progress(self) -> list:
    """What changes as cells go on: phase and step of each, and which of them are done."""
    worker = argparse.ArgumentParser()
    worker.add_argument('--workdir', type=Path)
    worker.add_argument('--cells', nargs='+')
    known, _ = worker.parse_known_args(self._args.worker)
    names = [name for names in known.cells or () for name in names.split(',') if name]
    found = []
    for name in names:
      folder = known.workdir / 'cells' / name
      beat = read_json(folder / HEARTBEAT, strict=False) or {}
      found.append((beat.get('step'), beat.get('phase'), (folder / 'done.json').exists()))
    return found

  def _stop(self, number: int, frame: object) -> None:
    """Passes a request to stop on; a second one kills."""
    again, self._stopping = self._stopping, True
    for process in self._processes:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL if again else signal.SIGTERM)


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


if __name__ == '__main__':
  sys.exit(main())
