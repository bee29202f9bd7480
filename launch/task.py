"""One task of a cluster: runs its share of the cells, and saves itself when its time is over.

  python -m launch.task --shares=runs/x/tasks/isoffn-1a2b3c.json --index=0

An engine starts it (launch/slurm.py, launch/kubernetes.py). Before a time limit or an eviction it
lets the workers checkpoint and leaves with status 75; started again it continues.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from launch import causes, claims, local, shares
from launch.cells import Cell, Claim, read_json, state, write_config, write_json
from launch.files import tail
from launch.lease import HEARTBEAT
from launch.pool import COMMAND
from launch.shares import Shares
from launch.worker import STOPPED
from transformer import runs
from transformer.config import Config, resolve
from transformer.errors import UserError

FAILED = 2  # no use in trying again; also of a mistake in what was asked
_TICK = 0.1


class Asked(list):
  """The first signal that asks to stop. Further ones say the same again: they do not kill.

  number: of the signal; 0 if none has come, as when launch.cancel has asked.
  """

  def __init__(self) -> None:
    super().__init__()
    self.number = 0
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
      signal.signal(number, self._hear)

  def _hear(self, number: int, frame: object) -> None:
    if not self:
      self.number = number
      self.append(number)


def main(argv: Sequence[str] | None = None, worker: Sequence[str] = COMMAND) -> int:
  """Returns the exit status: 0, STOPPED, FAILED, or 1 where another try may help.

  worker: the command that runs cells.
  """
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--shares', type=Path, required=True, help='file that says who runs what')
  parser.add_argument('--index', type=int, required=True, help='of the task')
  args = parser.parse_args(argv)
  asked = Asked()
  try:
    return _Task(shares.read(args.shares), args.index, asked, worker).run()
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return FAILED
  except OSError as e:  # a full disk, a share that is away
    print(f'error: {e.filename or args.shares}: {e.strerror}', file=sys.stderr)
    return 1


class _Task:
  """What is left of a share, and how often it was tried in vain."""

  def __init__(self, dealt: Shares, index: int, asked: Asked, worker: Sequence[str]):
    if not 0 <= index < len(dealt.cells):
      raise UserError(f'--index={index}: there are tasks 0 to {len(dealt.cells) - 1}')
    self._shares, self._asked, self._worker = dealt, asked, worker
    self._names = dealt.cells[index]
    self._record = dealt.path.with_name(f'{dealt.name}-{index}.json')

  def run(self) -> int:
    launch, together = self._shares.launch, self._shares.launch.nodes > 1
    pod = os.environ.get('JOB_COMPLETION_INDEX')
    if together and int(pod or 0):  # follows the first pod, which counts tries and sees to the rest
      return STOPPED if self._left() and self._together(self._names) else 0
    while left := self._begin():
      for cell in left:
        write_config(cell, self._shares.workdir)
      if not together:
        given = {'worker_command': self._worker, 'retries': launch.retries, 'asked': self._asked}
        local.run(self._shares.workdir, left, launch.workers, **given)
        break
      if not (status := self._together([cell.folder_name for cell in left])) or self._asked:
        break
      print(f'a process ended with status {status}', file=sys.stderr)
      if status == os.EX_UNAVAILABLE:  # others have not come: no try of ours
        self._note(in_vain=self._noted()['in_vain'] - 1)
      if pod is not None:  # Kubernetes starts pods again
        break
    if self._asked and self._left():
      if self._asked.number:
        limit = self._asked.number == signal.SIGUSR1
        self._note(ended=causes.TIME if limit else causes.PREEMPTED)
        _requeue(self._asked.number)
      return STOPPED
    if self._left():
      return STOPPED if together and pod is not None else 1
    return FAILED if any(self._failed(name) for name in self._names) else 0

  def _left(self) -> list[Cell]:
    """Cells that have not ended."""
    found = []
    for name in self._names:
      if self._ended(name):
        continue
      path = self._folder(name) / 'config.json'
      tree = read_json(path)
      if tree is None:
        raise UserError(f'{path}: no such file; submit the cells again')
      config = Config.from_json(tree, str(path))
      files = [self._shares.plugins.get(file, file) for file in config.plugin.split(',')]
      config = resolve(config.replace(plugin=','.join(files)))
      found.append(Cell(name.rpartition('-')[0], '', config))
    return found

  def _ended(self, name: str) -> bool:
    return state(self._folder(name)) in ('done', 'pruned') or self._failed(name)

  def _failed(self, name: str) -> bool:
    """Whether a cell has failed since it was submitted, and is not to be tried again."""
    failed = read_json(self._folder(name) / claims.FAILED, strict=False)
    if not failed or failed.get('attempts', 1) <= self._shares.failed[name]:
      return False
    if name in self._noted().get('given_up', ()):
      return True
    return not causes.may_retry(failed, failed.get('launch', ''), self._shares.launch.retries)

  def _folder(self, name: str) -> Path:
    return self._shares.workdir / 'cells' / name

  def _begin(self) -> list[Cell]:
    """Counts a beginning; returns what is left. Gives cells up that never get any further."""
    noted, now = self._noted(), self._progress()
    again = noted.get('in_vain', -1) + 1 if noted.get('progress') == now else 0
    if again > self._shares.launch.retries:
      self._give_up(noted.get('ended', causes.LOST), again)
      again, now = 0, self._progress()
    self._note(progress=now, in_vain=again, ended=causes.LOST)  # unless we live to say otherwise
    return self._left()

  def _noted(self) -> dict:
    return read_json(self._record, strict=False) or {}

  def _note(self, **more: object) -> None:
    write_json(self._record, self._noted() | more)

  def _progress(self) -> list[int]:
    """Cells that have ended, and steps saved of the others: grows with every bit of work kept."""
    ended = {name for name in self._names if self._ended(name)}
    saved = [self._folder(name) / 'checkpoints' for name in self._names if name not in ended]
    return [len(ended), sum(max(runs.saved_steps(folder), default=0) for folder in saved)]

  def _give_up(self, cause: str, times: int) -> None:
    """Writes failed.json for the cells that were begun; if none was, for all that are left."""
    left = [cell.folder_name for cell in self._left()]
    begun = [name for name in left if (self._folder(name) / HEARTBEAT).exists()]
    for name in begun or left:
      if claim := Claim.acquire(self._folder(name)):
        log = tail(self._folder(name) / 'log.txt')
        claim.fail(cause, f'started {times} times without getting any further', log)
    self._note(given_up=[*self._noted().get('given_up', ()), *(begun or left)])

  def _together(self, names: list[str]) -> int:
    """Runs cells one after the other on all hosts of the task; returns the exit status."""
    launch = self._shares.launch
    command = [*self._worker, f'--workdir={self._shares.workdir}', f'--launch={uuid.uuid4().hex}']
    command += [f'--retries={launch.retries}', '--wait', '--distributed=auto']
    if 'SLURM_JOB_ID' in os.environ:
      step = [f'--nodes={launch.nodes}', '--ntasks-per-node=1', '--kill-on-bad-exit=1']
      step.append('--export=ALL')  # some sites export nothing, and steps would run other code
      step += [f'--cpus-per-task={launch.cpus}'] * bool(launch.cpus)
      command = ['srun', *step, *command]
    process = subprocess.Popen([*command, '--cells', *names])
    told = False
    while process.poll() is None:
      if self._asked and not told:
        with contextlib.suppress(ProcessLookupError):
          process.send_signal(signal.SIGTERM)  # srun passes it on
        told = True
      time.sleep(_TICK)
    return process.returncode


def _requeue(number: int) -> None:
  """Puts a task of Slurm back into the queue, unless somebody has cancelled it."""
  env = os.environ  # an array's own number is that of one of its tasks as well
  array, index = env.get('SLURM_ARRAY_JOB_ID'), env.get('SLURM_ARRAY_TASK_ID')
  job = f'{array}_{index}' if array and index else env.get('SLURM_JOB_ID')
  if not job:
    return
  try:
    if number != signal.SIGUSR1:
      now = shares.command(['squeue', '--noheader', f'--jobs={job}', '--format=%T']).strip()
      if now != 'RUNNING':  # cancelled, or requeued already
        return
    shares.command(['scontrol', 'requeue', job])
  except UserError as e:
    print(f'not requeued: {e}', file=sys.stderr)


if __name__ == '__main__':
  sys.exit(main())
