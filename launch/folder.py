"""A sweep as its folder tells it: for each cell what was asked, and what has become of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.claims import CLAIM, DONE, FAILED, PRUNED, describe, is_foreign, is_live
from launch.files import read_json
from launch.lease import HEARTBEAT, Leases
from transformer.errors import UserError
from transformer.runs import saved_steps

STATES = ('done', 'pruned', 'running', 'lost', 'waiting', 'failed')


@dataclass(frozen=True)
class CellState:
  """What has become of a cell.

  state: 'done'; 'pruned', by a search; 'running'; 'lost': claimed by a process that is gone;
  'failed'; 'waiting': to be begun or continued. where: who runs it, or ran it. step, steps, loss,
  tokens_per_s: how far it is, by its heartbeat or result. cause, message, log_tail, attempts: of
  its last failure.
  """

  name: str
  folder: Path
  state: str
  where: str = ''
  step: int = 0
  steps: int = 0
  loss: float | None = None
  tokens_per_s: float | None = None
  seconds: float | None = None  # of a finished cell
  phase: str = ''
  cause: str = ''
  message: str = ''
  log_tail: str = field(default='', repr=False)
  attempts: int = 0
  queued: bool = False  # waits in a cluster's queue

  def to_json(self) -> dict:
    """As `launch.status --json` prints it."""
    plain = {k: v for k, v in vars(self).items() if v not in ('', None, 0, False)}
    return {**plain, 'folder': str(self.folder)}


def asked(workdir: str | Path) -> dict:
  """experiment.json of a folder. Raises UserError where there is none."""
  path = Path(workdir) / 'experiment.json'
  found = read_json(path)
  if found is None or not isinstance(found.get('cells'), list):
    raise UserError(f'{path}: no such file; give the folder of an experiment or a sweep')
  return found


def read(
  workdir: str | Path, leases: Leases | None = None, engine: Mapping[str, str] | None = None
) -> list[CellState]:
  """Every cell of a folder, as it is now.

  leases: of an observer who looks again and again, and so sees hearts that have stopped.
  engine: folder name -> 'waiting', 'running' or 'gone', as clusters tell it (engines.states).
  Raises UserError where the folder holds no experiment.
  """
  workdir = Path(workdir)
  leases, engine = leases or Leases(), engine or {}
  return [
    _read(workdir / 'cells' / cell['folder'], cell['name'], leases, engine.get(cell['folder'], ''))
    for cell in asked(workdir)['cells']
  ]


def counts(cells: Sequence[CellState]) -> dict[str, int]:
  """State -> how many cells are in it, of all states."""
  found = Counter(cell.state for cell in cells)
  return {state: found[state] for state in STATES}


def _read(folder: Path, name: str, leases: Leases, engine: str) -> CellState:
  if (done := read_json(folder / DONE, strict=False)) is not None:
    told = {'loss': done.get('eval/loss'), 'step': done.get('step', 0)}
    told |= {'tokens_per_s': done.get('tokens_per_s'), 'seconds': done.get('seconds')}
    return CellState(name, folder, 'done', steps=told['step'], **told)
  claim = read_json(folder / CLAIM, strict=False)
  beat = read_json(folder / HEARTBEAT, strict=False) or {}
  told = {key: beat.get(key) for key in ('loss', 'tokens_per_s')}
  told |= {key: beat.get(key) or 0 for key in ('step', 'steps')}
  if claim:
    gone = engine == 'gone' and is_foreign(claim)
    lives = is_live(claim) and not gone and not leases.lapsed(folder, claim)
    state, phase = ('running', beat.get('phase') or '') if lives else ('lost', '')
    return CellState(name, folder, state, describe(claim), phase=phase, **told)
  if pruned := read_json(folder / PRUNED, strict=False):
    return CellState(name, folder, 'pruned', **told | {'step': pruned.get('step', 0)})
  if failed := read_json(folder / FAILED, strict=False):
    why = {key: str(failed.get(key, '')) for key in ('cause', 'message', 'log_tail')}
    state = 'waiting' if engine in ('waiting', 'running') else 'failed'
    return CellState(name, folder, state, attempts=failed.get('attempts', 1), **told, **why)
  if beat:  # it has been left: only what it saved counts
    told['step'] = max(saved_steps(folder / 'checkpoints'), default=0)
  return CellState(name, folder, 'waiting', queued=engine == 'waiting', **told)
