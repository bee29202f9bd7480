"""Who runs a cell: one process at a time, and one result ever.

A claim is a file with a token. Whoever finds the claiming process dead, or its heartbeat stopped
for a lease (lease.py), takes the cell over with a token of its own; the former owner, if it lives
after all, learns so at its next check and can no longer commit.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from launch.causes import may_retry, tries
from launch.files import locked, read_json, write_json, write_synced
from launch.lease import beats
from transformer.runs import saved_steps

CLAIM, DONE, FAILED = 'claim.json', 'done.json', 'failed.json'
PRUNED = 'pruned.json'  # a search has seen enough of this cell
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class ClaimLost(Exception):
  """The cell belongs to another process now, or is done; leave its files alone."""


@dataclass(frozen=True)
class Claim:
  """The right to run one cell, held until commit, fail or release."""

  folder: Path
  token: str
  launch: str

  @staticmethod
  def acquire(
    folder: str | Path, launch: str = '', retry: bool = False, retries: int = 0
  ) -> Claim | None:
    """Claims a cell; returns None if it is done, pruned or claimed by a live process.

    launch: identifier of the launch the caller works for. A cell at which a worker of this very
    launch has died is not claimed either (its launcher sees to it), nor one that has failed and
    that `retries` further tries do not allow, unless `retry`.
    """
    folder = Path(folder)
    with locked(folder):
      if (folder / DONE).exists() or (folder / PRUNED).exists() or holder(folder):
        return None
      if launch and not retry:
        claim, failed = (read_json(folder / name, strict=False) for name in (CLAIM, FAILED))
        if claim and claim.get('launch') == launch:
          return None
        if tries(failed, launch) and not may_retry(failed, launch, retries):
          return None
      return _write_claim(folder, launch)

  @staticmethod
  def take_over(folder: str | Path, lost: dict, count: int, launch: str = '') -> Claim | None:
    """Claims a cell from the holder of the claim `lost`, whose lease has passed.

    count: of its heartbeat, as last seen. Returns None if it has stirred after all.
    """
    folder = Path(folder)
    with locked(folder):
      held = read_json(folder / CLAIM, strict=False) or {}
      moved = held.get('token') != lost.get('token') or beats(folder) != count
      return None if moved or (folder / DONE).exists() else _write_claim(folder, launch)

  def check(self) -> None:
    """Raises ClaimLost unless this claim still holds the cell."""
    current = read_json(self.folder / CLAIM, strict=False) or {}
    if current.get('token') != self.token:
      raise ClaimLost(f'{self.folder}: now held by {describe(current) or "nobody"}')

  def commit(self, done: dict) -> None:
    """Writes the cell's one and only done.json and ends the claim.

    Raises ClaimLost if the claim is lost or the cell is done; what is there then stays.
    """
    with locked(self.folder):
      self.check()
      temporary = self.folder / f'.{DONE}.{self.token}'
      try:
        write_synced(temporary, {**done, 'token': self.token})
        _link(temporary, self.folder / DONE)
      except FileExistsError:
        raise ClaimLost(f'{self.folder}: is done already') from None
      finally:
        temporary.unlink(missing_ok=True)
      _sync_folder(self.folder)
      (self.folder / FAILED).unlink(missing_ok=True)
      (self.folder / CLAIM).unlink(missing_ok=True)

  def fail(self, cause: str, message: str, log_tail: str = '') -> None:
    """Writes failed.json and ends the claim. Raises ClaimLost if it is lost.

    attempts: all there have been. tries: those of this launch since the cell last got further.
    """
    with locked(self.folder):
      self.check()
      before = read_json(self.folder / FAILED, strict=False)
      message = ' '.join(message.split())[:400]
      failed = {'cause': cause, 'message': message, 'log_tail': log_tail, 'launch': self.launch}
      step = max(saved_steps(self.folder / 'checkpoints'), default=0)
      further = before is not None and step > before.get('step', 0)
      counts = {'tries': 1 if further else tries(before, self.launch) + 1, 'step': step}
      write_json(self.folder / FAILED, {**failed, 'attempts': failures(self.folder) + 1, **counts})
      (self.folder / CLAIM).unlink(missing_ok=True)

  def release(self) -> None:
    """Ends the claim and leaves the cell to be continued; harmless when it is lost or over."""
    with locked(self.folder):
      try:
        self.check()
      except ClaimLost:
        return
      (self.folder / CLAIM).unlink(missing_ok=True)


def _write_claim(folder: Path, launch: str) -> Claim:
  """Makes the cell this process's. Whoever calls holds the folder's lock."""
  claim = Claim(folder, uuid.uuid4().hex, launch)
  write_json(folder / CLAIM, {'token': claim.token, 'launch': launch, **this_process()})
  return claim


def this_process() -> dict:
  """What names this process, here and elsewhere."""
  pid = os.getpid()
  return {'pid': pid, 'start': process_start(pid), 'time': time.time(), **_this_machine()}


def failures(folder: Path) -> int:
  """How often the cell has failed so far."""
  return int((read_json(folder / FAILED, strict=False) or {}).get('attempts', 0))


def holder(folder: Path) -> dict | None:
  """The claim on a cell if its process lives, or cannot be seen from here; else None."""
  claim = read_json(folder / CLAIM, strict=False)
  return claim if claim and is_live(claim) else None


def is_foreign(claim: dict) -> bool:
  """Whether the claiming process cannot be seen from here: another host, another container."""
  here = _this_machine()
  return claim.get('host') != here['host'] or (
    claim.get('boot') == here['boot'] and claim.get('namespace') != here['namespace']
  )


def describe(claim: dict) -> str:
  """'process 123 on host', or '' for no claim."""
  return f'process {claim.get("pid")} on {claim.get("host")}' if claim else ''


def process_start(pid: int) -> str | None:
  """When a process started, in the system's words; '' if it is gone; None if that is hidden.

  With the pid it names a process for ever: pids are used again, start times are not.
  """
  try:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return '' if fields[0] in 'ZX' else fields[19]
  except OSError:
    if Path('/proc/self/stat').exists():
      return '' if _is_gone(pid) else None
  asked = ['ps', '-o', 'stat=,lstart=', '-p', str(pid)]  # no /proc: macOS
  state, _, start = subprocess.run(asked, capture_output=True, text=True).stdout.partition(' ')
  return '' if state.startswith('Z') else start.strip()


def is_live(claim: dict) -> bool:
  """Whether a process of `this_process` lives, as far as can be seen from here."""
  if is_foreign(claim):
    return True
  if claim.get('boot') != _this_machine()['boot']:
    return False  # the machine has restarted since
  pid = claim.get('pid')
  return isinstance(pid, int) and process_start(pid) in (None, claim.get('start'))


def _is_gone(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  except PermissionError:  # another user's
    pass
  return False


@cache
def _this_machine() -> dict[str, str]:
  """Host name, boot and process namespace: equal where processes can be seen."""
  boot = namespace = ''
  try:
    boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    namespace = os.readlink('/proc/self/ns/pid')
  except OSError:
    pass  # no /proc
  return {'host': socket.gethostname(), 'boot': boot, 'namespace': namespace}


def _link(source: Path, target: Path) -> None:
  """Creates `target` whole, exactly once; raises FileExistsError."""
  try:
    os.link(source, target)
  except OSError as e:
    if e.errno not in _NO_LINKS:
      raise
    if target.exists():  # no hard links here (FAT, some network drives): the lock must do
      raise FileExistsError(target) from None
    os.replace(source, target)


def _sync_folder(folder: Path) -> None:
  fd = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
