"""One process that runs cells of an experiment, one after the other.

  python -m launch.worker --workdir=runs/x --cells=a-1a2b3c4d,b-5e6f7a8b [--core=0]

Cells are folder names below <workdir>/cells, each with its config.json. What is done, or claimed
by another process, is left alone, so any number of workers may be given the same list. With --wait
a worker without a launcher beside it, on a cluster, stays until each of them has ended, and takes
over what was claimed by a process that gives no sign of life any more.

With --together so many cells of one shape are trained as one program (transformer/population.py).
With --distributed several such processes, on one host or many, run each cell together (team.py).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from launch import causes
from launch.cells import Claim, ClaimLost, code_digest, state
from launch.claims import CLAIM, describe, holder
from launch.control import Control, Stopping
from launch.files import read_json, tail
from launch.lease import Leases, beats
from launch.team import Alone, Follower, Team
from transformer.config import Config, static_key
from transformer.errors import UserError
from transformer.provenance import library_digest

STOPPED = os.EX_TEMPFAIL  # asked to stop: the same cells can be continued
DISK = os.EX_IOERR  # the run folder takes no more: no use in going on
_LOOK = 1.0  # seconds between looks at cells that others hold
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_HICCUP = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # of a shared folder, which may pass

Runner = Callable[[Config, Path, Control], dict]


def main(argv: list[str] | None = None, run: Runner | None = None) -> int:
  """Runs the cells listed in `argv`; returns the exit status: 0, STOPPED or DISK.

  run: runs one cell; transformer.train.run unless given. After DISK, standard output holds one
  line of JSON, [errno, text, file]; all else that is printed goes to standard error.
  """
  args = _parse(argv)
  stopping = Stopping(args.parent)
  report = os.dup(1)
  os.dup2(2, 1)
  for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(line_buffering=True)  # a crash must not take the last lines with it
  faulthandler.enable()
  if args.core:
    os.sched_setaffinity(0, args.core)
  library_digest()  # now: the files may be edited while we run
  try:
    if args.distributed != 'off':
      return _one_of_several(args, run, stopping)
    if not _run_cells(args, run or _train_run(), stopping, Alone()):
      return STOPPED
  except OSError as e:
    traceback.print_exc()
    os.write(report, json.dumps([e.errno, e.strerror, e.filename]).encode())
    return DISK if args.distributed == 'off' else _at_once(DISK)
  return 0


def _one_of_several(args: argparse.Namespace, run: Runner | None, stopping: Stopping) -> int:
  """What one of several processes does: the first leads, the others follow."""
  try:
    team = Team(args.distributed)
  except UserError as e:
    print(e, file=sys.stderr)
    return _at_once(os.EX_SOFTWARE)
  except Exception:
    traceback.print_exc()
    return _at_once(os.EX_UNAVAILABLE)
  try:
    run = run or _train_run()
    if team.rank:
      _follow(args, run, stopping, team)
    else:
      team.end(_run_cells(args, run, stopping, team))
    return 0 if team.ended_well else STOPPED
  except OSError:
    raise
  except Exception as e:
    if isinstance(e, UserError):
      print(e, file=sys.stderr)
    else:
      traceback.print_exc()
    return _at_once(os.EX_SOFTWARE)


def _follow(args: argparse.Namespace, run: Runner, stopping: Stopping, team: Team) -> None:
  """Runs the cells that the first process begins."""
  for name in team.begun():
    folder = args.workdir / 'cells' / name
    try:
      with _output_to(folder / f'log-{team.rank}.txt'), _traced():
        run(_config(folder), folder, Follower(stopping))
    except Exception as e:
      if not team.survives(e):
        raise


def _at_once(status: int) -> int:
  """Ends this process: in a tidy end jax would wait for the others, and they wait for us."""
  sys.stderr.flush()
  os._exit(status)


def _run_cells(
  args: argparse.Namespace, run: Runner, stopping: Stopping, team: Alone | Team
) -> bool:
  """Runs what is free of its cells; returns False if it was stopped before the end of them."""
  leases, left = Leases(), args.cells
  while left:
    queue = list(left)
    while queue:
      if stopping:
        return False
      claims = _claims(queue, args, leases)
      own = _together(claims, stopping) if len(claims) > 1 else run
      went_on = [_run_cell(claim, own, stopping, team) for claim in claims]
      if not all(went_on):
        return False
    left = [name for name in left if args.wait and _held(args.workdir / 'cells' / name)]
    if left:
      time.sleep(_LOOK)
  return True


def _held(folder: Path) -> bool:
  return state(folder) == 'running'


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--workdir', type=Path, required=True)
  parser.add_argument('--cells', nargs='+', required=True, help='folder names')
  parser.add_argument('--core', type=_cores, help='pin to these cores, as in 0 or 0,1')
  parser.add_argument('--launch', default='', help='identifier shared by the workers of a launch')
  parser.add_argument('--retries', type=int, default=0, help='tries after one that may pass')
  parser.add_argument('--wait', action='store_true', help='for cells that others hold')
  parser.add_argument('--together', type=int, default=1, help='cells to train as one program')
  parser.add_argument('--distributed', default='off', help='as --parallel.distributed')
  parser.add_argument('--parent', type=int, default=os.getppid(), help='stop when it is gone')
  args = parser.parse_args(argv)
  args.cells = [name for names in args.cells for name in names.split(',') if name]
  return args


def _cores(text: str) -> set[int]:
  return {int(core) for core in text.split(',')}


def _train_run() -> Runner:
  """The real runner. Imported only here, after affinity is set: jax counts cores as it loads."""
  from transformer import train

  return train.run


def _claims(queue: list[str], args: argparse.Namespace, leases: Leases) -> list[Claim]:
  """The right to run a queue's next cell, if it is free; with --together others of its shape too.

  What has been tried is taken off the queue.
  """
  cells = args.workdir / 'cells'
  found = [_claim(cells / queue.pop(0), args, leases)]
  if found[0] and args.together > 1 and args.distributed == 'off':
    shape = _shape(found[0].folder)
    alike = [name for name in queue if _shape(cells / name) == shape][: args.together - 1]
    for name in alike:
      queue.remove(name)
      found.append(_claim(cells / name, args, leases))
  return list(filter(None, found))


def _shape(folder: Path) -> str:
  """Equal for cells that one program can train; '' for one that cannot be read."""
  try:
    return static_key(_config(folder))
  except UserError:
    return ''


def _together(claims: list[Claim], stopping: Stopping) -> Runner:
  """Trains cells as one program; returns what gives, or raises, what each has come to.

  What is printed meanwhile goes to the first one's log.
  """
  from transformer import population

  with _output_to(claims[0].folder / 'log.txt'), contextlib.ExitStack() as stack:
    try:
      controls = [stack.enter_context(Control(claim, stopping)) for claim in claims]
      given = [(_config(claim.folder), claim.folder) for claim in claims]
      found = population.run([(*g, control) for g, control in zip(given, controls, strict=True)])
    except Exception as e:
      found = [e] * len(claims)
  came = {claim.folder: each for claim, each in zip(claims, found, strict=True)}

  def result(config: Config, folder: Path, control: Control) -> dict:
    if isinstance(came[folder], Exception):
      raise came[folder]
    return came[folder] | {'together': len(claims)}

  return result


def _run_cell(claim: Claim, run: Runner, stopping: Stopping, team: Alone | Team) -> bool:
  """Runs one cell; returns False if it was stopped.

  Raises OSError for a bad disk, and what one of several processes cannot go on after.
  """
  folder = claim.folder
  team.begin(folder.name)
  try:
    with _output_to(folder / 'log.txt'), _traced():
      config = _config(folder)
      with Control(claim, stopping) as control:
        done = run(config, folder, control)
    claim.commit({**done, 'code': code_digest(config)})
  except ClaimLost as e:
    if not team.survives(e):
      raise
  except Exception as e:
    if _is_stop(e):
      return control.pruned and not stopping  # then this cell alone was to stop
    if full := _disk_full(e):
      raise full from e
    with contextlib.suppress(ClaimLost):
      cause = causes.LOST if team.is_loss(e) else _cause(e)
      claim.fail(cause, _message(e), tail(folder / 'log.txt'))
    if not team.survives(e):
      raise
  finally:
    claim.release()
  return True


@contextlib.contextmanager
def _traced() -> Iterator[None]:
  """An error of the cell's own is printed where its output goes."""
  try:
    yield
  except Exception as e:
    if not isinstance(e, ClaimLost) and not _is_stop(e):
      traceback.print_exc()
    raise


def _claim(folder: Path, args: argparse.Namespace, leases: Leases) -> Claim | None:
  """The right to run a cell, if it is free; where no launcher does, charges whoever was lost."""
  claim = Claim.acquire(folder, args.launch, retries=args.retries)
  if claim or not args.wait:
    return claim
  if held := holder(folder):
    lost = leases.lapsed(folder, held) and Claim.take_over(folder, held, beats(folder), args.launch)
    cause, message = causes.LOST, f'no sign of life of {describe(held)}'
  else:
    held = read_json(folder / CLAIM, strict=False)
    lost = held and Claim.acquire(folder, args.launch, retry=True)
    cause, message = causes.DIED, f'{describe(held or {})} is gone'
  if not lost:
    return None
  lost.fail(cause, message, tail(folder / 'log.txt'))
  return Claim.acquire(folder, args.launch, retries=args.retries)


def _config(folder: Path) -> Config:
  path = folder / 'config.json'
  tree = read_json(path)
  if tree is None:
    raise UserError(f'{path}: no such file; a launcher writes it before it starts a worker')
  return Config.from_json(tree, str(path))


def _is_stop(e: Exception) -> bool:
  return type(e).__name__ == 'Stopped'  # transformer.train's, which this file cannot import


def _cause(e: Exception) -> str:
  if isinstance(e, UserError):
    return causes.REFUSED
  if isinstance(e, MemoryError) or 'RESOURCE_EXHAUSTED' in str(e):  # as XLA says it
    return causes.MEMORY
  if isinstance(e, OSError) and e.errno in _HICCUP:
    return causes.LOST
  own = causes.NON_FINITE if type(e).__name__ == 'NonFinite' else causes.BUG
  return getattr(e, 'cause', '') or own


def _message(e: Exception) -> str:
  first = next((line for line in str(e).splitlines() if line.strip()), '')
  kind = '' if isinstance(e, UserError) else type(e).__name__ + ': ' * bool(first)
  return kind + first


def _disk_full(e: BaseException) -> OSError | None:
  """The OSError that no other cell will escape, however a library has wrapped it."""
  while e is not None:
    if isinstance(e, OSError) and e.errno in _FULL:
      return e
    if os.strerror(errno.ENOSPC) in str(e):
      return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    e = e.__cause__ or e.__context__
  return None


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
  """Appends all that this process prints, C++ and crash traces included, to `path`."""
  kept = os.dup(1), os.dup(2)
  log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
  for fd in (1, 2):
    os.dup2(log, fd)
  os.close(log)
  try:
    yield
  finally:
    with contextlib.suppress(OSError):
      sys.stdout.flush()
      sys.stderr.flush()
    for fd, old in zip((1, 2), kept, strict=True):
      os.dup2(old, fd)
      os.close(old)


if __name__ == '__main__':
  sys.exit(main())
